"""Kinds of names, the marks by which we know our own, and text that may be shown."""

from __future__ import annotations

import re
from typing import Final, NewType

Vmid = NewType("Vmid", int)
Dataset = NewType("Dataset", str)
Guid = NewType("Guid", str)  # decimal; a string because JSON readers round u64
PointId = NewType("PointId", str)  # "100/20261123T180000Z-ab12": guest and instant


PREFIX: Final = "pzb:"  # the colon keeps ours apart from every name Proxmox accepts (pve-facts §c)
PROPERTY: Final = "pve-zfsbackup:"
SNAPSHOT_NAME: Final = re.compile(r"pzb:(\d{8}T\d{6}Z-[0-9a-f]{4})\Z")
SOURCE: Final = "source"


def printable(text: str) -> str:
    """Names are hostile text: line breaks, escapes and direction marks become visible, the rest stays."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
