"""Points in a storage box, and what is to be put there or taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pve_zfsbackup.model.names import Dataset, Guid, PointId, Vmid
from pve_zfsbackup.model.zfs import UNKNOWN, Bookmark, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedDisk:
    """One disk of an archived point. `volume` is the guid of the source dataset, `base` empty for a full stream."""

    key: str
    volid: str
    volume: Guid
    guid: Guid  # of the snapshot
    base: Guid = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """One guest at one instant, as it lies in a box. `parent` is the `name` of the point it builds on.

    `series` holds all of one guest of one node, `generation` one chain: a full archive and its increments.
    """

    point: PointId
    vmid: Vmid
    creation: int
    consistency: str
    series: str
    generation: str
    name: str
    sequence: int
    parent: str = ""
    bytes: int = 0  # stored
    disks: Mapping[str, ArchivedDisk] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return not self.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveStream:
    """One `zfs send` into a box; full without a base."""

    key: str
    volid: str
    volume: Guid
    dataset: Dataset
    snapshot: Snapshot
    base: Snapshot | Bookmark | None
    raw: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveTask:
    """Put one point into a box. Without a parent it begins a new generation, and every stream is full."""

    point: PointId
    vmid: Vmid
    creation: int
    consistency: str
    parent: Archived | None
    streams: tuple[ArchiveStream, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePlan:
    """What is due for one guest in one box, and why; `warnings` are for a person."""

    task: ArchiveTask | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveVerdict:
    """What retention decided about one archived point. `reasons` is never empty."""

    archived: Archived
    keep: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A point of which an attempt that broke off brought segments into a box. `parent` is the `name` of the archived
    point it builds on, empty for a full one."""

    point: PointId
    parent: str
