"""Domain values: frozen, comparable, without behaviour that touches the world.

Identity of a snapshot is its guid; order is createtxg within one pool; names are for people (DESIGN §2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, NewType

Vmid = NewType("Vmid", int)
Dataset = NewType("Dataset", str)
Guid = NewType("Guid", str)  # decimal; a string because JSON readers round u64
PointId = NewType("PointId", str)  # "100/20261123T180000Z-ab12": guest and instant

PREFIX: Final = "pzb:"  # the colon keeps ours apart from every name Proxmox accepts (pve-facts §c)
PROPERTY: Final = "pve-zfsbackup:"
SNAPSHOT_NAME: Final = re.compile(r"pzb:(\d{8}T\d{6}Z-[0-9a-f]{4})\Z")
SOURCE: Final = "source"


class GuestKind(StrEnum):
    VM = "qemu"
    CT = "lxc"


class Consistency(StrEnum):
    """How a point was taken. Only `QUIESCED` was frozen by the guest from before to after the snapshot."""

    QUIESCED = "quiesced"
    OFFLINE = "offline"  # the guest was not running
    CRASH = "crash-consistent"


class Quiesce(StrEnum):
    PREFER = "prefer"
    REQUIRE = "require"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The `agent:` option of a VM (pve-facts §b); containers have none."""

    enabled: bool = False
    freeze: bool = True  # freeze-fs, freeze-fs-on-backup and guest-fsfreeze are all honoured


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One volume of a guest's configuration and whether we can protect it.

    `dataset` is set only when the volume lies on a ZFS storage of this node and exists there.
    `reason` says why it is not protected; empty when it is.
    """

    key: str
    volid: str
    storage: str = ""
    volume: str = ""  # vm-100-disk-0, the last part of the volid
    dataset: Dataset | None = None
    size: int = 0
    reason: str = ""

    @property
    def protected(self) -> bool:
        return self.dataset is not None and not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A virtual machine or container as configured now on the node that owns it."""

    vmid: Vmid
    kind: GuestKind
    node: str
    name: str
    running: bool
    paused: bool = False
    template: bool = False
    lock: str = ""
    pool: str = ""
    tags: tuple[str, ...] = ()
    agent: Agent = Agent()
    disks: tuple[Disk, ...] = ()
    digest: str = ""  # sha1 of the config file, as PVE computes it
    notes: tuple[str, ...] = ()  # what an administrator should know, e.g. pending changes

    @property
    def protected_disks(self) -> tuple[Disk, ...]:
        return tuple(disk for disk in self.disks if disk.protected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A ZFS snapshot. `point` is set only when it is ours: our name and our property, agreeing."""

    dataset: Dataset
    name: str
    guid: Guid
    createtxg: int
    creation: int  # seconds since the epoch
    used: int = 0
    refer: int = 0
    userrefs: int = 0  # holds
    clones: bool = False
    point: PointId | None = None
    disks: str = ""  # the point's disks, see `encode_disks`
    consistency: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.dataset}@{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    dataset: Dataset
    name: str
    guid: Guid
    createtxg: int
    creation: int

    @property
    def full_name(self) -> str:
        return f"{self.dataset}#{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeToken:
    """State of an interrupted receive. The guids are empty when the source could not decode the token."""

    token: str
    to_guid: Guid = Guid("")
    from_guid: Guid = Guid("")
    raw: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A file system or zvol with its snapshots and bookmarks, oldest first by createtxg."""

    name: Dataset
    guid: Guid
    type: Literal["filesystem", "volume"]
    used: int = 0
    refer: int = 0
    encrypted: bool = False
    keystatus: str = ""
    origin: str = ""
    resume: ResumeToken | None = None
    snapshots: tuple[Snapshot, ...] = ()
    bookmarks: tuple[Bookmark, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What one `zfs list` of one host said. `roots` are the datasets that were asked for and exist."""

    host: str
    volumes: Mapping[Dataset, Volume] = field(default_factory=dict)
    roots: frozenset[Dataset] = frozenset()


World = Mapping[str, Listing]  # SOURCE and the targets by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A recovery point as found on one host: one guest at one instant.

    `disks` are those the point was made of; `snapshots` those present here. Complete means all of them are.
    """

    id: PointId
    vmid: Vmid
    creation: int
    consistency: str
    disks: Mapping[str, str]  # key -> volid
    snapshots: Mapping[str, Snapshot]  # key -> snapshot

    @property
    def complete(self) -> bool:
        return bool(self.disks) and set(self.snapshots) == set(self.disks)

    @property
    def stamp(self) -> str:
        return self.id.partition("/")[2]


def encode_disks(disks: Mapping[str, str]) -> str:
    """The value of the `disks` property: `scsi0=local-zfs:vm-100-disk-0,scsi1=fast:vm-100-disk-0`."""
    return ",".join(f"{key}={volid}" for key, volid in sorted(disks.items()))


def decode_disks(text: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {key: volid for key, _, volid in pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Proxmox's `keep-*` (pve-facts; same meaning). All zero keeps everything."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def everything(self) -> bool:
        return not (self.last or self.hourly or self.daily or self.weekly or self.monthly or self.yearly)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What retention decided about one point on one host, and why. `reasons` is never empty."""

    host: str
    point: Point
    keep: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """An obstacle with its evidence: shown and alarmed, never forced. `resolve` is what a person may do."""

    kind: str
    object: str
    message: str
    evidence: tuple[str, ...] = ()
    resolve: str = ""


# Steps are data; `execute` is their only interpreter, `plan.project` their only simulator.


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotGuest:
    """Freeze the guest, snapshot all its disks (one command per pool), thaw."""

    guest: Guest
    point: PointId
    name: str
    pools: tuple[tuple[Dataset, ...], ...]
    disks: str
    quiesce: Quiesce
    freeze_limit: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateParent:
    """Create the container datasets a replica is received under, with properties that keep it inert."""

    host: str
    dataset: Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """One stream: full when `base` is None. `through` are our snapshots sent in between by `-I`, oldest first."""

    host: str
    snapshot: Snapshot
    base: Snapshot | Bookmark | None
    dataset: Dataset  # received as
    raw: bool
    through: tuple[Snapshot, ...] = ()


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
    """Give received snapshots the properties of their source: only now they are points on the target."""

    host: str
    source: Snapshot
    dataset: Dataset


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
    SnapshotGuest | CreateParent | Send | Resume | AbortReceive | Mark | Hold | Release
    | CreateBookmark | DestroyBookmark | Destroy
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in order, and what stood in the way. Used once."""

    steps: tuple[Step, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    warnings: tuple[str, ...] = ()  # done, but somebody should know: a new generation, an aborted receive
    reasons: tuple[str, ...] = ()  # why these steps, for `why` and dry runs
