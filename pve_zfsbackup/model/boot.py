"""A guest that is started from the clones of a point, to see whether it comes up, and removed again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model.names import PointId, Vmid

FIRST: Final = 999_000  # vmids above what people and Proxmox choose
TAG: Final = "pve-zfsbackup-drill"
_MARK: Final = re.compile(r"#pve-zfsbackup boot drill as (\d{3,9}) of \d{1,9}/\d{8}T\d{6}Z-[0-9a-f]{4}\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """A guest that came up: how its system calls itself, and the seconds from the first clone to its agent's answer."""

    system: str
    seconds: float


def boot_mark(vmid: Vmid, point: PointId) -> str:
    """The first line of such a guest's configuration. It names the vmid, so that a copy of the guest has it not."""
    return f"#pve-zfsbackup boot drill as {vmid} of {point}"


def is_marked(text: str, vmid: Vmid) -> bool:
    """Whether this is the configuration of a guest that a drill made, under this very vmid."""
    match = _MARK.fullmatch(text.partition("\n")[0])
    return match is not None and int(match[1]) == vmid
