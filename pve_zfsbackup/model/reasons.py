"""What was weighed before a disk is sent: for `why`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pve_zfsbackup.model.guests import Disk
from pve_zfsbackup.model.names import Dataset
from pve_zfsbackup.model.steps import Conflict, Plan
from pve_zfsbackup.model.zfs import Bookmark, Snapshot


class Fate(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    BLOCKED = "would be the base"
    BESIDE = "bookmark beside the base"
    OLDER = "older than the base"
    OTHER_IVSET = "other IV set"
    ELSEWHERE = "elsewhere"
    ABSENT = "not there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A snapshot or bookmark of the source, and why it is the base or is not."""

    base: Snapshot | Bookmark
    fate: Fate
    why: str

    @property
    def kind(self) -> str:
        return "snapshot" if isinstance(self.base, Snapshot) else "bookmark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Bytes that the streams of a disk need on a target, with a margin, and what the dataset above them has left."""

    needed: int
    available: int
    place: Dataset

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """One disk on its way to one target. `candidates` newest first; `replica` is where it goes on, if anywhere.

    `manners` says of each stream that would be sent why it is one stream: `-I`, `-i` or full. `fit` is whether they
    have room, where that is told.
    """

    disk: Disk
    plan: Plan
    candidates: tuple[Candidate, ...] = ()
    replica: Dataset | None = None
    token: str = ""  # what an interrupted receive there is about
    manners: tuple[str, ...] = ()
    fit: Fit | None = None

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        return self.plan.conflicts
