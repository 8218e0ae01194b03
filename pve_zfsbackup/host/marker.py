"""What is written down before a freeze, and survives a crash: this guest may be frozen, and in which of its lives."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pve_zfsbackup.model import GuestKind, Vmid

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
PIDS: Final = Path("/run/qemu-server")  # <vmid>.pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """`kind time [boot [pid]]`: the boot of this node, and the guest's QEMU. Markers of old have the first two only."""

    kind: GuestKind = GuestKind.VM
    boot: str = ""
    pid: str = ""

    def outlived_by(self, now: Marker) -> bool:
        """Whether the guest was surely started again since. What is not known on both sides says nothing."""
        pairs = ((self.boot, now.boot), (self.pid, now.pid))
        return any(then and here and then != here for then, here in pairs)


def marker_now(kind: GuestKind, vmid: Vmid, *, boot_id: Path = BOOT_ID, pids: Path = PIDS) -> Marker:
    """Of a guest as it is now."""
    pid = _word(pids / f"{vmid}.pid") if kind is GuestKind.VM else ""
    return Marker(kind=kind, boot=_word(boot_id), pid=pid)


def write_marker(path: Path, marker: Marker) -> None:
    """On the disk when this returns. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(" ".join((marker.kind.value, str(int(time.time())), marker.boot or "-", marker.pid)).rstrip() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_marker(path: Path) -> Marker:
    """Torn, or of before markers told the kind: a VM's, of which nothing else is known."""
    try:
        kind, _, boot, pid = (*path.read_text("ascii").split(), "", "", "", "")[:4]
        return Marker(kind=GuestKind(kind), boot=boot.strip("-"), pid=pid)
    except (OSError, ValueError):
        return Marker()


def _word(path: Path) -> str:
    """The one word of a file; empty when there is none."""
    try:
        word = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
    return word if len(word.split()) == 1 else ""
