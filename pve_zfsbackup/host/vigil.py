"""Whether Proxmox takes a disk away while it is sent: a stream keeps its dataset busy, and `zfs destroy -r` fails.

Removing a guest, Proxmox frees the disks first, tries six times within as many seconds when one is busy (pve-facts
§c), and only then removes the configuration: the guest is gone, its disk stays behind (pve-observed). So the task
itself is looked for as well: Proxmox lists those under way in a file (PVE::RPCEnvironment, PVE::INotify of
pve-common: `UPID saved`, and an end behind it for those that are over).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from pve_zfsbackup.errors import GuestMissingError, PveError
from pve_zfsbackup.host.guests import config_bytes
from pve_zfsbackup.model import Dataset, Disk, Guest

TASKS: Final = Path("/var/log/pve/tasks/active")
LOOK: Final = 1.0  # seconds; Proxmox tries for five
FRESH: Final = 10.0  # seconds after which nobody asks for a disk any more
_REMOVALS: Final = frozenset({"qmdestroy", "vzdestroy"})


@dataclass(slots=True)
class _Asked:
    guest: Guest
    disk: Disk
    when: float = 0.0
    gone: str = ""


class Vigil:
    """Looks once a second after the disks it is asked for, in a thread of its own: /etc/pve may hang, and then
    nothing is known. `root` is /etc/pve."""

    def __init__(self, guests: Iterable[Guest], *, root: Path, tasks: Path = TASKS, proc: Path = Path("/proc")) -> None:
        self._asked = {
            disk.dataset: _Asked(guest, disk) for guest in guests for disk in guest.protected_disks if disk.dataset
        }
        self._root, self._tasks, self._proc = root, tasks, proc
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Vigil:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()  # it is not waited for: it may be one that hangs

    def gone(self, dataset: Dataset) -> str:
        """Why the disk is not to be sent any more, as of the last look; empty while that is not known."""
        asked = self._asked.get(dataset)
        if asked is None:
            return ""
        asked.when = time.monotonic()
        return asked.gone

    def look(self) -> None:
        """One look after those that were asked for lately."""
        now = time.monotonic()
        wanted = [asked for asked in self._asked.values() if not asked.gone and now - asked.when < FRESH]
        tasks = removals(self._tasks, self._proc) if wanted else {}
        for asked in wanted:
            asked.gone = self._why(asked, tasks)

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            self.look()

    def _why(self, asked: _Asked, tasks: Mapping[str, str]) -> str:
        vmid, disk = str(asked.guest.vmid), asked.disk
        for id_ in (vmid, f"{vmid}@{disk.storage}"):
            if id_ in tasks:
                return f"Proxmox is removing {'it' if id_ != vmid else f'guest {vmid}'} (task {tasks[id_]})"
        try:
            text = config_bytes(asked.guest.vmid, asked.guest.kind, self._root)
        except GuestMissingError:
            return f"guest {vmid} was removed from this node"
        except PveError:
            return ""
        return "" if disk.volid.encode() in text else f"guest {vmid} does not have {disk.volid} any more"


def removals(path: Path, proc: Path) -> Mapping[str, str]:
    """Removals under way on this node: id of the task (`100`, or `100@local-zfs` for a single volume) and its type.

    Nothing where the file cannot be read. A worker that was killed stays listed for a while: it does not count.
    """
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    found = {}
    for words in (line.split() for line in lines):
        parts = words[0].split(":") if len(words) == 2 else []
        if len(parts) >= 8 and (parts[5] in _REMOVALS or parts[5] == "imgdel") and _lives(proc, parts[2], parts[3]):
            found[parts[6]] = parts[5]
    return found


def _lives(proc: Path, pid: str, start: str) -> bool:
    """Whether this very process is there: number and start time (field 22 of proc_pid_stat(5))."""
    try:
        text = (proc / str(int(pid, 16)) / "stat").read_text("utf-8", "replace")
        return text.rpartition(")")[2].split()[19] == str(int(start, 16))
    except (OSError, ValueError, IndexError):
        return False
