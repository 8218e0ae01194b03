"""The words by which guests and disks are chosen, in the configuration and on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pve_zfsbackup.model.names import Vmid


class SelectorKind(StrEnum):
    ALL = "all"
    VMID = "vmid"
    NAME = "name"
    TAG = "tag"
    POOL = "pool"
    STORAGE = "storage"
    NODE = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which guests: one word of a job's list or of the command line, see `parse_selector`."""

    kind: SelectorKind
    text: str  # as written
    low: int = 0
    high: int = 0
    pattern: str = ""
    negated: bool = False

    @property
    def explicit(self) -> bool:
        """Names one guest, so that its absence is worth telling."""
        if self.kind is SelectorKind.NAME:
            return not set("*?[") & set(self.pattern)
        return self.kind is SelectorKind.VMID and self.low == self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPattern:
    """Which disks: a key with wildcards, of one guest or of all."""

    text: str
    key: str
    vmid: Vmid | None = None


SELECTOR_FORMS: Final = (
    "all, a vmid (100), a range (100-199), or name:web*, tag:prod, pool:production, storage:fast, node:pve1"
)
DISK_FORMS: Final = "a disk key (scsi1, mp*) or VMID:key (101:scsi1)"
_VMID: Final = re.compile(r"([1-9][0-9]{2,8})(?:-([1-9][0-9]{2,8}))?\Z")
_DISK: Final = re.compile(r"(?:([1-9][0-9]{2,8}):)?([a-z*?][a-z0-9*?\[\]-]*)\Z")


def parse_selector(text: str) -> Selector:
    """Read one selector; a leading `!` excludes. Raises ValueError naming the forms that are understood."""
    negated = text.startswith("!")
    word = text[1:].strip() if negated else text.strip()
    if word == SelectorKind.ALL:
        return Selector(kind=SelectorKind.ALL, text=text, negated=negated)
    if match := _VMID.match(word):
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise ValueError("expected the smaller vmid first")
        return Selector(kind=SelectorKind.VMID, text=text, low=low, high=high, negated=negated)
    kind, colon, pattern = word.partition(":")
    if colon and pattern and kind in set(SelectorKind) - {SelectorKind.ALL, SelectorKind.VMID}:
        return Selector(kind=SelectorKind(kind), text=text, pattern=pattern, negated=negated)
    raise ValueError(f"expected {SELECTOR_FORMS}")


def parse_disk_pattern(text: str) -> DiskPattern:
    """Read `scsi1`, `mp*` or `101:scsi1`. Raises ValueError naming the forms that are understood."""
    match = _DISK.match(text)
    if not match:
        raise ValueError(f"expected {DISK_FORMS}")
    return DiskPattern(text=text, key=match[2], vmid=Vmid(int(match[1])) if match[1] else None)
