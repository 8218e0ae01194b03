"""Steps are data: `execute` is their only interpreter, `plan.project` their only simulator."""

from __future__ import annotations

from dataclasses import dataclass

from pve_zfsbackup.model.guests import Guest
from pve_zfsbackup.model.names import Dataset, Guid, PointId
from pve_zfsbackup.model.points import Quiesce
from pve_zfsbackup.model.zfs import Bookmark, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """An obstacle with its evidence: shown and alarmed, never forced. `resolve` is what a person may do."""

    kind: str
    object: str
    message: str
    evidence: tuple[str, ...] = ()
    resolve: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotGuest:
    """Freeze the guest, snapshot all its disks (one command per pool), thaw."""

    guest: Guest
    point: PointId
    name: str
    pools: tuple[tuple[Dataset, ...], ...]
    disks: str
    quiesce: Quiesce
    freeze: bool  # whether to try
    reason: str = ""  # why not
    props: str = ""  # what a restore needs of the disks, see `encode_props`


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateParent:
    """Create the container datasets a replica is received under, with properties that keep it inert.

    The root gets its `owner`.
    """

    host: str
    dataset: Dataset
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Make a root that nobody owns ours: no other cluster shall keep and prune its points there."""

    host: str
    dataset: Dataset
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """One stream: full when `base` is None. `through` are our snapshots sent in between by `-I`, oldest first."""

    host: str
    snapshot: Snapshot
    base: Snapshot | Bookmark | None
    dataset: Dataset  # received as
    raw: bool
    through: tuple[Snapshot, ...] = ()
    origin: str = ""  # a snapshot of the receiving host: received as a clone of it, an increment into a new dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Go on with an interrupted receive: the token tells what to send."""

    host: str
    token: str
    snapshot: Snapshot
    dataset: Dataset
    raw: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortReceive:
    """Throw away the partial state of an interrupted receive that cannot be resumed (`zfs receive -A`)."""

    host: str
    dataset: Dataset
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Give a received snapshot the properties of its source: only now it is part of a point on the target.

    Sets what the source snapshot has (point, disks, consistency, configuration), and `volume`; `disks` instead of
    the source's where some disks of the point do not go to this target.
    """

    host: str
    source: Snapshot
    dataset: Dataset
    volume: Guid  # of the source dataset
    disks: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    host: str
    snapshot: Snapshot
    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    host: str
    snapshot: Snapshot
    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateBookmark:
    snapshot: Snapshot
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroyBookmark:
    bookmark: Bookmark


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroy:
    """Destroy one of our snapshots. Takes a `Snapshot`, never a string; the guid is checked again first."""

    host: str
    snapshot: Snapshot


Step = (
    SnapshotGuest | CreateParent | Adopt | Send | Resume | AbortReceive | Mark | Hold | Release
    | CreateBookmark | DestroyBookmark | Destroy
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in order, and what stood in the way. Used once."""

    steps: tuple[Step, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    warnings: tuple[str, ...] = ()  # done, but somebody should know: a new generation, an aborted receive
    alarms: tuple[str, ...] = ()  # those of the warnings that whoever is told of failures is told of
    reasons: tuple[str, ...] = ()  # why these steps, for `why` and dry runs
    since: int = 0  # of a replica: when what both sides have was made, or the oldest point here where that is nothing
