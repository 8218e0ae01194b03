"""What a restore is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pve_zfsbackup.model.guests import Guest, GuestKind, Storage
from pve_zfsbackup.model.names import Dataset, Guid, Vmid
from pve_zfsbackup.model.points import Point
from pve_zfsbackup.model.steps import Conflict
from pve_zfsbackup.model.zfs import Listing, Snapshot, Volume, tuning

STAGING = "pzb-restore"  # below a storage's dataset, where Proxmox does not look (pve-facts §c): unfinished disks
ASIDE = "pzb-aside"  # the same, for what a restored disk took the place of: never destroyed by us


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked for. `storages` leads from a storage of the point to one of this node, "" from any other one."""

    vmid: Vmid
    new: Vmid
    replace: bool = False
    disks: frozenset[str] = frozenset()  # keys; none: the whole guest
    storages: Mapping[str, str] = field(default_factory=dict)
    clones: bool = False  # in the pool of their snapshot, disks become clones of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A point where it lies, with what its snapshots tell of the guest.

    `texts` has the guest's configuration and firewall file, `props` what a restore must set on each disk,
    `raw` the disks that travel encrypted, with their key unknown to whoever sends them; `own` has all our properties
    of each disk's snapshot; `notes` is what a person should know of how it was found.
    """

    host: str
    point: Point
    kind: GuestKind
    texts: Mapping[str, str]
    props: Mapping[str, Mapping[str, str]]
    raw: frozenset[str] = frozenset()
    own: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """The node a guest is restored on. `owners` are all guests of the cluster with the node each is on.

    `listing` has the datasets of the storages, `work` the unfinished restores below them. `guest` is what has the
    wished vmid on this node now, `config` its configuration file.
    """

    node: str
    listing: Listing
    work: Listing
    storages: Mapping[str, Storage]
    owners: Mapping[Vmid, str]
    guest: Guest | None = None
    config: str = ""
    owner_offline: bool = False  # the node that has the wished vmid is another one, and does not answer the cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What Proxmox tells everywhere of a cluster: each node's status (online, offline, unknown), whose guest is where,
    and which storage is for which nodes."""

    nodes: Mapping[str, str]
    owners: Mapping[Vmid, str]
    storages: Mapping[str, Storage]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRestore:
    """One disk: `snapshot` is received as `staging`, given its properties, and renamed to `dataset`. The two are one
    for a clone of what is encrypted: ZFS refuses to rename it, as it would leave its encryption root."""

    key: str
    snapshot: Snapshot
    raw: bool
    staging: Dataset
    dataset: Dataset
    volid: str
    props: Mapping[str, str]
    placed: bool = False  # it is there already: an earlier try came that far
    history: bool = False  # its snapshot becomes a part of the point again, and the base of the next increment

    @property
    def size(self) -> int:
        return self.snapshot.refer

    @property
    def tuned(self) -> dict[str, str]:
        """What somebody had set on the disk itself."""
        return tuning(self.props)

    @property
    def pool(self) -> Dataset:
        """The dataset of the storage it goes to."""
        return Dataset(self.dataset.rpartition("/")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """A dataset that loses its place: renamed, with everything in it."""

    dataset: Dataset
    guid: Guid
    to: Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """The plan. `work` marks what is unfinished: `<new vmid>:<point>`; `parents` are the datasets of the storages
    that something is done below.

    `config` is empty where the guest's configuration stays as it is. `copy`: another vmid, for the
    original may still be there, or somewhere else. `node` is set where another node of the cluster has to do it, and
    `command` is what does it there: nothing else is planned then. `former` are disks that an earlier restore
    made of the same point.
    """

    work: str
    origin: Origin
    wish: Wish
    disks: tuple[DiskRestore, ...] = ()
    aside: tuple[Aside, ...] = ()
    former: tuple[Volume, ...] = ()
    parents: tuple[Dataset, ...] = ()
    config: str = ""
    firewall: str = ""
    pool: str = ""
    copy: bool = False
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()
    node: str = ""
    command: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the dataset that holds the unfinished work, in each storage."""
        return f"{self.wish.new}-{self.origin.point.stamp}"
