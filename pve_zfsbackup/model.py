"""Domain values: frozen, comparable, without behaviour that touches the world.

Identity of a snapshot is its guid; order is createtxg within one pool; names are for people (DESIGN §2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
class RawGuest:
    """A guest as the Proxmox API answers, before anybody judged its disks (`plan.discovery` does).

    `config` is what runs (`current=1`), every value as text; `pending` holds what the next start changes:
    key -> new value, or None where the key is deleted (pve-facts §a).
    """

    vmid: Vmid
    kind: GuestKind
    node: str
    name: str = ""
    status: str = "stopped"
    config: Mapping[str, str] = field(default_factory=dict)
    pending: Mapping[str, str | None] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    pool: str = ""
    lock: str = ""
    template: bool = False
    qmp_status: str = ""  # "" when unknown; a paused VM has the status "running"
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """An entry of storage.cfg (pve-facts §c). `nodes` empty means every node; `pool` only for zfspool."""

    id: str
    type: str
    pool: str = ""
    nodes: frozenset[str] = frozenset()
    disabled: bool = False
    mountpoint: str = ""
    content: frozenset[str] = frozenset()


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


def printable(text: str) -> str:
    """Names are hostile text: line breaks, escapes and direction marks become visible, the rest stays."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


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
    volume: Guid = Guid("")  # on a target: guid of the source dataset it was taken of, set when it is marked

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
    `gone` are disks whose dataset no longer exists on the source: nothing failed, an administrator removed it.
    A snapshot that fits no disk (never seen but after tampering) stands under its dataset's name.
    """

    id: PointId
    vmid: Vmid
    creation: int
    consistency: str
    disks: Mapping[str, str]  # key -> volid
    snapshots: Mapping[str, Snapshot]  # key -> snapshot
    gone: frozenset[str] = frozenset()

    @property
    def complete(self) -> bool:
        return bool(self.disks) and self.disks.keys() <= self.snapshots.keys()

    @property
    def stamp(self) -> str:
        return self.id.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointDisk:
    """A disk of a point: the key in the guest's configuration, its volid and its source dataset's guid then."""

    key: str
    volid: str
    guid: Guid


def encode_disks(disks: Iterable[PointDisk]) -> str:
    """The value of the `disks` property: `scsi0=local-zfs:vm-100-disk-0#17,scsi1=fast:vm-100-disk-0#23`.

    All disks of a point carry the same value (one `zfs snapshot -o`); the guid after `#` tells which is which,
    also after a rename. Neither `,` nor `=` nor `#` occurs in keys or in volids of ZFS storages.
    """
    return ",".join(f"{disk.key}={disk.volid}#{disk.guid}" for disk in sorted(disks, key=lambda disk: disk.key))


def decode_disks(text: str) -> tuple[PointDisk, ...]:
    """The disks of a point, in the order of the text; what cannot be read is left out."""
    found = []
    for item in text.split(","):
        key, _, rest = item.partition("=")
        volid, _, guid = rest.rpartition("#")
        if key and volid:
            found.append(PointDisk(key=key, volid=volid, guid=Guid(guid)))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Proxmox's `keep-*` (pve-facts; same meaning). All zero keeps everything.

    The help texts are here because the configuration's reference is made from them.
    """

    last: int = field(default=0, metadata={"help": "the newest N points"})
    hourly: int = field(default=0, metadata={"help": "the newest point of each of the last N hours that have one"})
    daily: int = field(default=0, metadata={"help": "the newest point of each of the last N days that have one"})
    weekly: int = field(default=0, metadata={"help": "the newest point of each of the last N weeks that have one"})
    monthly: int = field(default=0, metadata={"help": "the newest point of each of the last N months that have one"})
    yearly: int = field(default=0, metadata={"help": "the newest point of each of the last N years that have one"})

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
    freeze: bool  # whether to try
    reason: str = ""  # why not


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
    """Give a received snapshot the properties of its source: only now it is part of a point on the target.

    Sets what the source snapshot has (point, disks, consistency, configuration), and `volume`.
    """

    host: str
    source: Snapshot
    dataset: Dataset
    volume: Guid  # of the source dataset


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
