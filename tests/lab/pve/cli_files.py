"""pct push and pct pull: one file into a container and out of it (PCT CLI/pct.pm).

Real ones open files in the container's namespaces. Here the path is resolved by openat2(2) below the container's root,
so no link leads out of it either. Both are tasks whose failure is printed and leaves exit code 0.
"""

import ctypes
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from fakepve.model import PveError

from .cli_text import Reply
from .node import Node
from .tasks import Task
from .usercfg import ROOT

_OPENAT2 = 437  # x86_64
_IN_ROOT = 0x10
_CREATE = os.O_WRONLY | os.O_CREAT
_libc = ctypes.CDLL(None, use_errno=True)


def inside(root: Path, path: str, flags: int, mode: int = 0) -> int:
    """A handle of a file in a container, whose links are followed as from there. Raises `OSError`."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, _IN_ROOT)
        found = _libc.syscall(_OPENAT2, top, os.fsencode(path), how, len(how))
    finally:
        os.close(top)
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(found)


def root_of(node: Node, vmid: int) -> Path:
    """Where a container's root file system is mounted."""
    storage, _, volume = node.etc.conf("lxc", vmid).main["rootfs"].partition(",")[0].partition(":")
    keys = node.etc.storages()[storage]
    return Path(keys.get("mountpoint", "/" + keys["pool"])) / volume


def _running(node: Node, vmid: int, refusal: str) -> Path:
    root = root_of(node, vmid)
    if not node.running("lxc", vmid):
        raise PveError(500, refusal)
    return root


def _owned(handle: int, options: dict[str, str], default: int) -> None:
    """`create_file`: owner and mode, where they are asked for."""
    for name in ("user", "group"):
        if name in options and not options[name].isdecimal():
            raise PveError(500, f"failed to get {name[0]}id for {options[name]}")
    if "perms" in options or default:
        os.fchmod(handle, int(options["perms"], 8) if "perms" in options else default)
    if options.keys() & {"user", "group"}:
        os.fchown(handle, int(options.get("user", -1)), int(options.get("group", -1)))


def push(pve: Any, vmid: int, file: str, path: str, options: dict[str, str]) -> Reply:
    """Copy a file of the host into a container."""
    root = _running(pve.node, vmid, "can only push files to a running CT")

    def body(_task: Task) -> None:
        try:
            given = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise PveError(500, f"failed to open {file} for reading") from None
        with open(given, "rb") as source:
            default = 0
            try:
                handle = inside(root, path, _CREATE | os.O_EXCL, 0o600)
                default = 0o644
            except FileExistsError:
                handle = _created(root, path)
            except OSError:
                raise PveError(500, f"failed to create file: {path}") from None
            with open(handle, "wb") as target:
                _owned(handle, options, default)
                shutil.copyfileobj(source, target)
    return _done(pve.node, "push_file", vmid, body)


def _created(root: Path, path: str) -> int:
    try:
        return inside(root, path, _CREATE | os.O_TRUNC, 0o600)
    except OSError:
        raise PveError(500, f"failed to create file: {path}") from None


def pull(pve: Any, vmid: int, path: str, file: str, options: dict[str, str]) -> Reply:
    """Copy a file of a container to the host; what it is copied to is there before it is looked for."""
    root = _running(pve.node, vmid, "can only pull files from a running VM")

    def body(_task: Task) -> None:
        with open(file, "wb") as target:
            _owned(target.fileno(), options, 0)
            try:
                found = inside(root, path, os.O_RDONLY)
            except OSError as error:
                raise PveError(500, f"failed to open {path}: {error.strerror}") from None
            with open(found, "rb") as source:
                shutil.copyfileobj(source, target)
    return _done(pve.node, "pull_file", vmid, body)


def _done(node: Node, kind: str, vmid: int, body: Any) -> Reply:
    task = node.tasks.get(node.tasks.start(kind, str(vmid), ROOT, body))
    task.done.wait()
    return Reply(0, "", "" if task.exitstatus == "OK" else f"{task.exitstatus}\n")
