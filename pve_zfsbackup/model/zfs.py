"""What one host's ZFS has. Identity of a snapshot is its guid; order is createtxg within one pool (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pve_zfsbackup.model.names import Dataset, Guid, PointId

UNKNOWN: Final = Guid("")
ONLINE: Final = "ONLINE"
SUSPENDED: Final = "SUSPENDED"
# What ZFS does not send along without `-p`, and a restore must set again (reliability §1, "Properties").
RESTORE_PROPS: Final = (
    "volsize", "volblocksize", "refreservation", "recordsize", "compression", "acltype", "xattr", "dnodesize", "quota",
    "refquota",
)  # fmt: skip
# The same, but only where somebody set it on the disk itself: what it inherits is its storage's affair, the old one's
# as the new one's. Not `checksum` and `dedup`: a restore needs neither, and to put them on another pool can harm it.
TUNING_PROPS: Final = (
    "sync", "logbias", "primarycache", "secondarycache", "copies", "redundant_metadata", "special_small_blocks",
    "atime", "relatime", "reservation",
)  # fmt: skip


def tuning(props: Mapping[str, str]) -> dict[str, str]:
    """What of these properties somebody had set on the disk itself; a reservation last, because it may find no room."""
    return {name: props[name] for name in TUNING_PROPS if props.get(name)}


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
    window: int = 0  # milliseconds the guest stood still for it
    volume: Guid = UNKNOWN  # on a target: guid of the source dataset it was taken of, set when it is marked
    ivset: Guid = UNKNOWN  # of an encrypted one: a receive that is not raw keeps the guid and changes this
    written: int = 0  # bytes since the snapshot before it; 0 says that nothing at all was
    verified: str = ""  # how far it is proven on this host, see `model.proof`

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
    ivset: Guid = UNKNOWN

    @property
    def full_name(self) -> str:
        return f"{self.dataset}#{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeToken:
    """State of an interrupted receive. The guids are empty when the token is none of a stream of ours."""

    token: str
    to_guid: Guid = UNKNOWN
    from_guid: Guid = UNKNOWN
    raw: bool = False
    received: int = 0  # bytes that are there
    snapshot: str = ""  # what is sent, as its host calls it


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
    written: int = 0  # bytes since the newest snapshot
    available: int | None = None  # bytes, quotas counted in
    snapshots_left: int | None = None  # on a target: how many more it may have with all below, None for no limit
    filesystems_left: int | None = None
    failover: str = ""  # on a target: where the guest runs now, see `plan.takeover`
    owner: str = ""  # on a target: whose replicas these are, see `plan.standing`
    props: Mapping[str, str] = field(default_factory=dict)  # on the source: what a restore needs, see RESTORE_PROPS
    work: str = ""  # of which restore this is the unfinished work; inherited from the dataset it lies in
    # "point,key": made of that point's disk by a restore; only where it names this very dataset. A comma behind it
    # tells that another restore of the same point has begun since.
    restored: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What one `zfs list` of one host said. `roots` are the datasets that were asked for and exist.

    `health` has the state of their pools, where it is known: a suspended one is not asked for anything.
    """

    host: str
    volumes: Mapping[Dataset, Volume] = field(default_factory=dict)
    roots: frozenset[Dataset] = frozenset()
    health: Mapping[str, str] = field(default_factory=dict)


World = Mapping[str, Listing]  # SOURCE and the targets by name
