"""Guests' configuration files, written: in one step, under Proxmox's own lock, and read back (pve-facts §d, §h).

Not by the API: the token of `setup` may look and freeze, no more, a container cannot be created of volumes that exist
at all, and for a VM the API drops what only root may set (`args`, `hookscript`, pass-through).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import GuestBusyError, GuestChangedError, GuestMissingError, PveError, VerificationError
from pve_zfsbackup.host.api import Api
from pve_zfsbackup.host.guests import split_tags
from pve_zfsbackup.model import Guest, GuestKind, Vmid

LOCK_WAIT: Final = 10.0  # seconds, as Proxmox waits
_HINTS: Final = {  # what pmxcfs means by an error (pve-facts §h)
    errno.EACCES: "without a quorum nothing in /etc/pve can be changed: see `pvecm status`",
    errno.EFBIG: "/etc/pve takes files of up to 1 MiB; is there a huge description or rule set?",
    errno.ENOSPC: "/etc/pve is full: it holds 128 MiB in all",
    errno.EPERM: "not for the want of a quorum: /etc/pve does not support it; is something else mounted there?",
}
_FOLDERS: Final = {GuestKind.VM: "qemu-server", GuestKind.CT: "lxc"}


def defined(disk: str, root: Path) -> bool:
    """Whether a configuration of any guest on any node names this volume, snapshots and pending changes included; also
    where that cannot be told."""
    try:
        if not os.path.islink(root / "local"):
            return True  # pmxcfs is not mounted (pve-facts §h)
        nodes = [root, *(root / "nodes" / name for name in os.listdir(root / "nodes"))]
        return any(_names(node / folder, disk) for node in nodes for folder in _FOLDERS.values())
    except OSError:
        return True


def _names(folder: Path, disk: str) -> bool:
    found = re.compile(rf"(?<![A-Za-z0-9-]){re.escape(disk)}(?![A-Za-z0-9-])")
    for name in os.listdir(folder) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # it went meanwhile, perhaps to a node that was looked at before
            if name.endswith(".conf") and found.search((folder / name).read_text("utf-8", errors="replace")):
                return True
    return False


def read_owners(api: Api) -> dict[Vmid, str]:
    """Every guest of the cluster with its node. Raises `PveError`."""
    found = api.get("/cluster/resources", type="vm") or []
    return {Vmid(int(entry["vmid"])): str(entry.get("node") or "") for entry in found if entry.get("vmid")}


def read_others(api: Api, node: str) -> tuple[Guest, ...]:
    """The guests of all other nodes as the cluster lists them: without their disks. Raises `PveError`."""
    found = api.get("/cluster/resources", type="vm") or []
    return tuple(
        Guest(
            vmid=Vmid(int(entry["vmid"])),
            kind=GuestKind(str(entry["type"])),
            node=str(entry["node"]),
            name=str(entry.get("name") or ""),
            running=entry.get("status") == "running",
            template=bool(int(entry.get("template") or 0)),
            pool=str(entry.get("pool") or ""),
            tags=split_tags(str(entry.get("tags") or "")),
        )
        for entry in found
        if entry.get("vmid") and entry.get("node", node) != node
    )


def read_nodes(api: Api) -> dict[str, str]:
    """Every node of the cluster with its status: online, offline or unknown (pve-facts §a). Raises `PveError`."""
    found = api.get("/nodes") or []
    return {str(entry["node"]): str(entry.get("status") or "unknown") for entry in found if entry.get("node")}


def check_writable(root: Path) -> None:
    """Raises `PveError` when nothing can be written below /etc/pve now. Without a quorum no write bit shows there, not
    even that of the link `local`; unmounted, there is no such link (pve-facts §h)."""
    try:
        mode = os.lstat(root / "local").st_mode
    except OSError:
        mode = 0
    if not stat.S_ISLNK(mode):
        raise PveError(f"{root}: is not mounted", hint="is pve-cluster running?")
    if not mode & stat.S_IWUSR:
        raise PveError(
            f"{root}: can only be read, because the cluster has no quorum",
            hint="see `pvecm status`; run this again when there is a quorum: nothing was changed",
        )


def _hint(error: OSError) -> str:
    return _HINTS.get(error.errno or 0, "is pve-cluster running? See `systemctl status pve-cluster`")


def config_path(vmid: Vmid, kind: GuestKind, root: Path) -> Path:
    return root / _FOLDERS[kind] / f"{vmid}.conf"


@contextlib.contextmanager
def writing_config(
    vmid: Vmid, kind: GuestKind, *, root: Path, locks: Path, replaces: str = ""
) -> Iterator[Callable[[str], None]]:
    """What writes a guest's configuration, with Proxmox's lock held: a guest that is stopped now cannot be started
    before. `replaces` is the sha1 of the file it takes the place of; without, there is none anywhere in the cluster.
    `locks` is /var/lock.

    Raises `GuestChangedError` when that is not so (any more), `GuestBusyError` when Proxmox is at it, `PveError` when
    the file cannot be written: without a quorum nothing can.
    """
    path = config_path(vmid, kind, root)
    with _locked(vmid, kind, locks):
        _check(vmid, path, root, replaces)
        yield lambda text: _written(path, text)


def write_config(vmid: Vmid, kind: GuestKind, text: str, *, root: Path, locks: Path, replaces: str = "") -> None:
    """Write a guest's configuration. As `writing_config`, and raises as that."""
    with writing_config(vmid, kind, root=root, locks=locks, replaces=replaces) as write:
        write(text)


def remove_config(vmid: Vmid, kind: GuestKind, *, root: Path, locks: Path, ours: Callable[[str], bool]) -> None:
    """Remove a guest's configuration, if it is `ours` by its text. Raises `GuestChangedError` when it is not, and what
    `write_config` raises. Its volumes are not touched. Gone is what was wanted."""
    path = config_path(vmid, kind, root)
    with _locked(vmid, kind, locks), contextlib.suppress(FileNotFoundError):
        if not ours(path.read_text("utf-8", "surrogateescape")):
            raise GuestChangedError(f"guest {vmid}: its configuration is not the one we made: it stays")
        try:
            path.unlink()
        except OSError as error:
            raise PveError(f"{path}: cannot be removed: {error.strerror}", hint=_hint(error)) from None


def firewall_path(vmid: Vmid, root: Path) -> Path:
    return root / f"firewall/{vmid}.fw"


def write_firewall(vmid: Vmid, text: str, *, root: Path) -> None:
    """Write the guest's firewall rules; without any there is no file. Raises `PveError`."""
    path = firewall_path(vmid, root)
    if text:
        _written(path, text)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise PveError(f"{path}: cannot be removed: {error.strerror}", hint=_hint(error)) from None


def _check(vmid: Vmid, path: Path, root: Path, replaces: str) -> None:
    if replaces:
        try:
            found = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
        except FileNotFoundError:
            raise GuestMissingError(f"{path}: is gone", hint="run this again: it is planned anew") from None
        if found != replaces:
            raise GuestChangedError(f"guest {vmid}: its configuration was changed meanwhile", hint="run this again")
        return
    elsewhere = [
        *root.glob(f"nodes/*/*/{vmid}.conf"),
        *(root / folder / f"{vmid}.conf" for folder in _FOLDERS.values()),
    ]
    if taken := [str(other) for other in elsewhere if other.exists()]:
        raise GuestChangedError(f"guest {vmid}: exists by now: {taken[0]}", hint="choose another vmid with --as")


def _written(path: Path, text: str) -> None:
    """By a file beside it that takes its name: whoever reads sees the old or the new one."""
    beside = path.with_name(f"{path.name}.tmp.{os.getpid()}")  # as Proxmox names them: it passes them over
    data = text.encode("utf-8", "surrogateescape")
    try:
        path.parent.mkdir(exist_ok=True)
        beside.write_bytes(data)
        os.replace(beside, path)
        found = path.read_bytes()
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise PveError(f"{path}: cannot be written: {error.strerror}", hint=_hint(error)) from None
    if found != data:
        raise VerificationError(f"{path}: what was read back is not what was written")


@contextlib.contextmanager
def _locked(vmid: Vmid, kind: GuestKind, locks: Path) -> Iterator[None]:
    """Proxmox's lock of a guest's configuration."""
    name = f"qemu-server/lock-{vmid}.conf" if kind is GuestKind.VM else f"lxc/pve-config-{vmid}.lock"
    path = locks / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise GuestBusyError(f"guest {vmid}: its lock cannot be taken: {path}: {error.strerror}") from None
    try:
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise GuestBusyError(
                        f"guest {vmid}: Proxmox is changing its configuration", hint=f"its task holds {path}"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)
