"""What a look into a recovery point is for, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pve_zfsbackup.model.boot import Booted
from pve_zfsbackup.model.canary import Planted
from pve_zfsbackup.model.names import PointId, Vmid
from pve_zfsbackup.model.proof import Level


class State(StrEnum):
    GOOD = "good"
    UNOPENED = "unopened"  # recognised, and not looked into
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one disk, partition, volume or file system of a point turned out to be. `kind` is blkid's word or ours, ""
    for nothing recognised; `use` is the type the partition table gives."""

    disk: str
    place: str  # for people: "", "partition 2", "LV vg/root"
    kind: str
    state: State
    text: str = ""
    size: int = 0  # bytes; 0 where it does not matter
    use: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What was found in the disks of a point. `present` are those of the files that were looked for, `canaries` the
    texts of those that lie there, `system` is how the guest calls itself in its os-release, `read` are bytes."""

    looks: tuple[Look, ...] = ()
    present: frozenset[str] = frozenset()
    canaries: tuple[str, ...] = ()
    system: str = ""
    read: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the disks of a guest should have: files of the administrator's, the canaries that were planted, and the keys
    of disks that have no file system."""

    files: tuple[str, ...] = ()
    raw: frozenset[str] = frozenset()
    planted: tuple[Planted, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a drill proved. `problems` empty means that the point passed."""

    level: Level
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drilled:
    """One guest's point after its drill."""

    vmid: Vmid
    guest: str
    host: str
    point: PointId
    judgement: Judgement
    contents: Contents
    seconds: float
    booted: Booted | None = None
    jobs: tuple[str, ...] = ()
