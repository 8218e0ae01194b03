"""The way home: which dataset of the source takes what was written here, and from which common snapshot.

Nothing of the source is written to. What comes is received as a clone of the common snapshot (`zfs receive -o
origin=`), which only costs what changed; when all of it is there, the clone is promoted and takes the old disk's name,
and the old disk, with whatever was written after the common snapshot, is a clone beside it. Seen on OpenZFS 2.3.9.

Encrypted disks come whole, into a new dataset: raw increments in the other direction have damaged data (openzfs #12594,
#16351).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pve_zfsbackup.model import (
    ASIDE,
    STAGING,
    Conflict,
    Dataset,
    Guest,
    Listing,
    Snapshot,
    Storage,
    Vmid,
    Volume,
)
from pve_zfsbackup.plan.guest_config import volume_in
from pve_zfsbackup.plan.takeover import Takeover

PREFIX: Final = "pzb-failback-"  # of the snapshots it makes; the colon of `pzb:` is for points alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """One disk. `here` is what the guest writes to, `base` the common snapshot as it is named here (of the replica
    where `here` is its clone), `origin` as it is named there; neither for an encrypted disk, which comes whole."""

    key: str
    here: Dataset
    raw: bool
    name: Dataset  # there, and what it will have again
    staging: Dataset
    aside: Dataset
    base: Snapshot | None = None
    origin: str = ""
    props: Mapping[str, str] = field(default_factory=dict)  # of the old one, for the new one


@dataclass(frozen=True, slots=True, kw_only=True)
class Failback:
    vmid: Vmid
    folder: str
    disks: tuple[Return, ...] = ()
    parents: tuple[Dataset, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def work(self) -> str:
        return f"failback:{self.vmid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """The source: what the guest's configuration says there, the storages, and their datasets with what lies below."""

    config: Mapping[str, str]
    storages: Mapping[str, Storage]
    listing: Listing


def plan_failback(guest: Guest, taken: Takeover, here: Listing, replicas: Listing, there: There) -> Failback:
    """Every disk's way, or its obstacles. Planned again after an interruption, it finds the same names."""
    folder = f"{guest.vmid}-failback"
    conflicts: list[Conflict] = []
    disks: list[Return] = []
    for disk in guest.disks:
        volume = here.volumes.get(disk.dataset) if disk.dataset else None
        if volume is None or not volume.restored.startswith(f"{taken.point},"):
            continue
        key = volume.restored.partition(",")[2]
        found = _return(guest, key, volume, replicas, there, folder)
        if isinstance(found, Conflict):
            conflicts.append(found)
        else:
            disks.append(found)
    if not disks and not conflicts:
        message = f"has no disk that was made of point {taken.point}"
        conflicts.append(Conflict(kind="no-disk", object=f"guest {guest.vmid}", message=message))
    pools = {Dataset(disk.name.rpartition("/")[0]) for disk in disks}
    return Failback(
        vmid=guest.vmid,
        folder=folder,
        disks=tuple(disks),
        parents=tuple(sorted(pools)),
        conflicts=tuple(conflicts),
        notes=tuple(_ahead(taken, replicas)),
    )


def _return(
    guest: Guest, key: str, volume: Volume, replicas: Listing, there: There, folder: str
) -> Return | Conflict:
    label = f"guest {guest.vmid} {key}"
    volid = volume_in(guest.kind, there.config.get(key, ""))
    storage = there.storages.get(volid.partition(":")[0])
    if not volid or storage is None or not storage.pool:
        message = "the source's configuration has no such disk on a ZFS storage"
        return Conflict(kind="no-disk-there", object=label, message=message, resolve="restore it there instead")
    name = Dataset(f"{storage.pool}/{volid.rpartition(':')[2].rpartition('/')[2]}")
    staging = Dataset(f"{storage.pool}/{STAGING}/{folder}/{key}")
    old = there.listing.volumes.get(name)
    way = Return(
        key=key,
        here=volume.name,
        raw=volume.encrypted,
        name=name,
        staging=staging,
        aside=Dataset(f"{storage.pool}/{ASIDE}/{guest.vmid}/{name.rpartition('/')[2]}-{int(old.guid) % (1 << 32):08x}")
        if old
        else name,
        props={k: v for k, v in old.props.items() if k != "volsize"} if old else {},
    )
    if volume.encrypted:
        return way
    common = _common(volume, replicas, old) if old else None
    if common is None and staging in there.listing.volumes:
        return way  # promoted: it has the common snapshots itself
    if old is None or common is None:
        message = f"{name} there has no snapshot in common with {volume.name}"
        hint = f"send it back in full with `restore {guest.vmid}` on the source, from a new point made here"
        return Conflict(kind="no-common-base", object=label, message=message, resolve=hint)
    base, theirs = common
    return replace(way, base=base, origin=f"{old.name}@{theirs.name}")


def _common(volume: Volume, replicas: Listing, old: Volume) -> tuple[Snapshot, Snapshot] | None:
    """The newest snapshot both have: of the volume itself (a copy), or of the replica it is a clone of, up to there."""
    mother = replicas.volumes.get(Dataset(volume.origin.partition("@")[0])) if volume.origin else None
    inherited: tuple[Snapshot, ...] = ()
    if mother:
        limit = next((s.createtxg for s in mother.snapshots if s.full_name == volume.origin), -1)
        inherited = tuple(s for s in mother.snapshots if s.createtxg <= limit)
    theirs = {snapshot.guid: snapshot for snapshot in old.snapshots}
    both = [(s, theirs[s.guid]) for s in (*inherited, *volume.snapshots) if s.guid in theirs]
    return both[-1] if both else None


def _ahead(taken: Takeover, replicas: Listing) -> list[str]:
    """Where the guest was taken over from an older point, the replica is ahead of what comes home."""
    told = []
    for name in taken.datasets:
        stamp = taken.point.partition("/")[2]
        volume = replicas.volumes[name]
        base = next((s for s in volume.snapshots if s.name == f"pzb:{stamp}"), None)
        newer = [s.name for s in volume.snapshots if base and s.createtxg > base.createtxg]
        if newer:
            told.append(f"{name} has points after {taken.point} ({len(newer)}): replication will call that a conflict")
    return told
