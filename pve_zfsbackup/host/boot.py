"""Starting a guest that nobody else knows, waiting for its agent, and removing it.

The only guests touched here are those whose configuration carries our mark with their own vmid. Their disks are clones
on a bench, named by path: Proxmox owns none of them, and removing the guest is removing its configuration.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pve_zfsbackup.errors import AgentError, NotBootedError, PveError, PveUnreachableError
from pve_zfsbackup.host.agent import QmAgent
from pve_zfsbackup.host.guest_files import config_path, remove_config, write_config
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.model import GuestKind, Vmid, printable
from pve_zfsbackup.model.boot import FIRST, is_marked

LOCK: Final = "drill"  # who has it may have such a guest; without it, it was left by one who was killed
START_SECONDS: Final = 300.0
STOP_SECONDS: Final = 120.0
ASK_SECONDS: Final = 15.0
PAUSE: Final = 3.0
SPARE: Final = 512 << 20  # bytes of memory that the host keeps beside what the guest takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Yard:
    """The Proxmox node on which a guest is started. `wait` is how many seconds it has to answer."""

    runner: Runner
    wait: float = 600.0
    root: Path = Path("/etc/pve")
    locks: Path = Path("/var/lock")
    meminfo: Path = Path("/proc/meminfo")

    @property
    def there(self) -> bool:
        return (self.root / "local").is_symlink()  # pmxcfs is mounted


def free_vmid(yard: Yard) -> Vmid:
    """One that no guest of the cluster has. Raises `PveError` when there is none."""
    taken = {path.stem for path in yard.root.glob("nodes/*/*/*.conf")}
    taken |= {path.stem for path in yard.root.glob("*/*.conf")}
    for vmid in range(FIRST, FIRST + 1000):
        if str(vmid) not in taken:
            return Vmid(vmid)
    raise PveError(f"no free vmid from {FIRST} on")


def lacking_memory(yard: Yard, wanted: int) -> str:
    """Why there is no room for a guest of so many bytes, or "". What runs here matters more than a drill."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", yard.meminfo.read_text("ascii"), re.MULTILINE)
    available = int(match[1]) << 10 if match else 0
    if wanted + SPARE <= available:
        return ""
    return f"not booted: it takes {wanted >> 20} MiB of memory, and {available >> 20} MiB are free here"


def boot(yard: Yard, vmid: Vmid, text: str) -> str:
    """Start a guest with this configuration, which carries our mark; returns how its system calls itself.

    Gone again at the end, whatever happened. Raises `NotBootedError` when it does not come up.
    """
    if not is_marked(text, vmid):
        raise PveError(f"guest {vmid}: its configuration has no mark: it is not started")
    write_config(vmid, GuestKind.VM, text, root=yard.root, locks=yard.locks)
    try:
        yard.runner.run(("qm", "start", str(vmid)), timeout=START_SECONDS)
        return _answer(yard, vmid)
    finally:
        remove(yard, vmid)


def _answer(yard: Yard, vmid: Vmid) -> str:
    agent, deadline = QmAgent(yard.runner), time.monotonic() + yard.wait
    while True:
        try:
            return _name(agent.call(vmid, "get-osinfo", ASK_SECONDS))
        except (AgentError, PveUnreachableError) as error:
            if _state(yard, vmid) != "running":
                raise NotBootedError("did not boot: it stopped by itself") from None
            if time.monotonic() + PAUSE > deadline:
                raise NotBootedError(
                    f"did not boot: its agent did not answer within {yard.wait:.0f} s: {error.message}"
                ) from None
        time.sleep(PAUSE)


def _name(answer: Any) -> str:
    """A guest's own words."""
    told = answer.get("pretty-name") or answer.get("name") or answer.get("id") if isinstance(answer, dict) else ""
    return printable(str(told or "a system without a name"))[:120]


def _state(yard: Yard, vmid: Vmid) -> str:
    done = yard.runner.run(("qm", "status", str(vmid)), timeout=60, check=False)
    return done.stdout.partition("status:")[2].strip()


def remove(yard: Yard, vmid: Vmid) -> None:
    """Stop a guest of ours, and remove it. Raises `PveError` when it does not go."""
    path = config_path(vmid, GuestKind.VM, yard.root)
    if not _ours(path, vmid):
        return
    if _state(yard, vmid) != "stopped":
        yard.runner.run(("qm", "stop", str(vmid)), timeout=STOP_SECONDS, check=False)
    if (state := _state(yard, vmid)) != "stopped":
        raise PveError(f"guest {vmid}, made by a drill, does not stop: {state or 'no state'}", hint="stop it")

    def idle(text: str) -> bool:
        """Looked at again while nobody else may start it: a `qm start` that outlived its drill ends before the lock."""
        return is_marked(text, vmid) and _state(yard, vmid) == "stopped"

    remove_config(vmid, GuestKind.VM, root=yard.root, locks=yard.locks, ours=idle)


def marked_guests(yard: Yard) -> tuple[Vmid, ...]:
    """The guests on this node that drills made. Raises `OSError` when Proxmox's file system does not answer."""
    found = ((int(path.stem), path) for path in (yard.root / "qemu-server").glob("*.conf") if path.stem.isdecimal())
    return tuple(Vmid(vmid) for vmid, path in sorted(found) if vmid >= FIRST and _ours(path, Vmid(vmid)))


def sweep_guests(yard: Yard) -> Iterator[str]:
    """Remove the guests that a killed drill left on this node. Only while no other drill is at work."""
    for vmid in marked_guests(yard):
        remove(yard, vmid)
        yield f"removed guest {vmid}"


def _ours(path: Path, vmid: Vmid) -> bool:
    try:
        return is_marked(path.read_text("utf-8", "surrogateescape"), vmid)
    except FileNotFoundError:
        return False
