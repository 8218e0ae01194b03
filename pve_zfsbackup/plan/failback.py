"""The way home: which dataset of the source takes what was written here, and from which common snapshot.

Nothing of the source is written to. What comes is received as a clone of the common snapshot (`zfs receive -o
origin=`), which only costs what changed; when all of it is there, the clone is promoted and takes the old disk's name,
and the old disk, with whatever was written after the common snapshot, is a clone beside it. Seen on OpenZFS 2.3.9.

Encrypted disks come whole, into a new dataset: raw increments in the other direction have damaged data (openzfs #12594,
#16351).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pve_zfsbackup.model import Conflict, Dataset, Disk, Guest, GuestKind, Listing, Snapshot, Storage, Vmid, Volume
from pve_zfsbackup.model.restore import ASIDE, STAGING
from pve_zfsbackup.plan.discovery import disk_keys
from pve_zfsbackup.plan.guest_config import volume_in
from pve_zfsbackup.plan.rollback import LOCK
from pve_zfsbackup.plan.snapshot import LOCKS
from pve_zfsbackup.plan.takeover import Takeover
from pve_zfsbackup.plan.volumes import owner_of_volume

PREFIX: Final = "pzb-failback-"  # of the snapshots it makes; the colon of `pzb:` is for points alone
# What differs without anybody having changed it, tells of one side only, or is nobody's to read.
_OWN: Final = re.compile(
    r"(?:lock|parent|digest|description|onboot|meta|vmgenid|vmstate|snaptime|snapstate|running.*|cipassword|unused[0-9]+|lxc.*)\Z"
)


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
    """`locked`: an earlier try was cut off with Proxmox's lock of the guest on the source taken."""

    vmid: Vmid
    folder: str
    disks: tuple[Return, ...] = ()
    parents: tuple[Dataset, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()
    locked: bool = False

    @property
    def work(self) -> str:
        return work_of(self.vmid)


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """The source: what the guest's configuration says there, the storages, their datasets with what lies below, names
    of Proxmox's own snapshots of the guest, and the lock that is in the way of an exchange of disks."""

    host: str
    config: Mapping[str, str]
    storages: Mapping[str, Storage]
    listing: Listing
    snapshots: tuple[str, ...] = ()
    lock: str = ""


def plan_failback(
    guest: Guest, taken: Takeover, here: Listing, replicas: Listing, there: There, config: Mapping[str, str]
) -> Failback:
    """Every disk's way, or its obstacles. `config` is what the guest's configuration says here. Planned again after an
    interruption, it finds the same names."""
    folder = f"{guest.vmid}-failback"
    conflicts: list[Conflict] = []
    disks: list[Return] = []
    notes = [*_ahead(taken, replicas)]
    for disk in guest.disks:
        volume = here.volumes.get(disk.dataset) if disk.dataset else None
        if volume is None or not volume.restored.startswith(f"{taken.point},"):
            if disk.key.startswith("unused"):
                notes.append(f"{disk.key}: {disk.volid} is not attached, and stays here")
            elif disk.storage:  # and not a CD-ROM, a cloud-init drive or a path of the host
                conflicts.append(_added(guest, disk, taken))
            continue
        key = volume.restored.split(",")[1]
        found = _return(guest, key, volume, replicas, there, folder)
        if isinstance(found, Conflict):
            conflicts.append(found)
        else:
            disks.append(found)
    if not disks and not conflicts:
        message = f"has no disk that was made of point {taken.point}"
        conflicts.append(Conflict(kind="no-disk", object=f"guest {guest.vmid}", message=message))
    locked = there.lock == LOCK and any(volume.work == work_of(guest.vmid) for volume in there.listing.volumes.values())
    if locked:
        notes.append(
            f"guest {guest.vmid} is locked on the source by an earlier try that was cut off, and its disks there may "
            f"be of two times: this goes on with it, and unlocks it; {unlocking(guest, there.host)}"
        )
    elif there.lock:
        conflicts.append(_locked(guest, there))
    notes += _changed(guest.kind, config, there.config, {disk.key for disk in disks})
    notes += _parted(guest, disks, here, replicas, there)
    pools = {Dataset(disk.name.rpartition("/")[0]) for disk in disks}
    return Failback(
        vmid=guest.vmid,
        folder=folder,
        disks=tuple(disks),
        parents=tuple(sorted(pools)),
        conflicts=tuple(conflicts),
        notes=tuple(notes),
        locked=locked,
    )


def work_of(vmid: Vmid) -> str:
    """What unfinished work of a guest's failback is marked with."""
    return f"failback:{vmid}"


def unlocking(guest: Guest, host: str) -> str:
    return f"to take the lock off on {host}: {tool(guest)} unlock {guest.vmid}"


def _locked(guest: Guest, there: There) -> Conflict:
    why = f": {LOCKS[there.lock]}" if there.lock in LOCKS else ""
    return Conflict(
        kind="locked",
        object=f"guest {guest.vmid}",
        message=f"is locked on {there.host} ({there.lock}){why}",
        resolve=f"wait until the task there has ended; if it is dead, {unlocking(guest, there.host)}",
    )


def _added(guest: Guest, disk: Disk, taken: Takeover) -> Conflict:
    """Left behind it would be missed at home, and nobody would know: so a person decides."""
    what = disk.dataset or disk.volid
    if disk.lost:
        message, hint = disk.reason, "it cannot go home before it is seen here again"
    else:
        message = "was not made of the point that was taken over: it has no place on the source, and would stay behind"
        hint = (
            f"to take it along: shut the guest down, copy {what} to a storage there (zfs send | zfs receive, under a "
            f"free name of guest {guest.vmid}'s), there `{tool(guest)} rescan` and attach it as {disk.key}; then, or "
            f"to leave it behind, detach it here: {tool(guest)} set {guest.vmid} --delete {disk.key}"
        )
    return Conflict(
        kind="added-disk",
        object=f"guest {guest.vmid} {disk.key}",
        message=f"{disk.volid} {message}",
        evidence=(f"point {taken.point}",),
        resolve=hint,
    )


def _changed(kind: GuestKind, here: Mapping[str, str], there: Mapping[str, str], home: set[str]) -> Iterator[str]:
    """Only disks go home: what else was changed here stays as the source has it."""
    for key in disk_keys(kind, there):
        volid = volume_in(kind, there[key])
        if key not in home and not key.startswith("unused") and owner_of_volume(volid) is not None:
            yield f"{key}: does not come from here: on the source it stays attached as it was ({volid})"
    drives = {*disk_keys(kind, here), *disk_keys(kind, there)}
    for key in sorted((here.keys() | there.keys()) - drives):
        ours, theirs = here.get(key, ""), there.get(key, "")
        if ours != theirs and not _OWN.match(key):
            yield f"{key}: {ours or 'not set'} here, and stays {theirs or 'not set'} on the source: change it there"


def _parted(guest: Guest, disks: list[Return], here: Listing, replicas: Listing, there: There) -> Iterator[str]:
    """Proxmox's own snapshots that stay with the old disks: those after the common snapshot, and all where a disk comes
    whole."""
    gone: set[str] = set()
    for disk in disks:
        old = there.listing.volumes.get(disk.name)
        common = _common(here.volumes[disk.here], replicas, old) if old and not disk.raw else None
        since = common[1].createtxg if common else -1
        gone |= {snapshot.name for snapshot in (old.snapshots if old else ()) if snapshot.createtxg > since}
    for name in there.snapshots:
        if name in gone:
            yield (
                f"Proxmox's snapshot {name} on the source goes aside with the old disks: the guest cannot be rolled "
                f"back to it any more, and it goes by {tool(guest)} delsnapshot {guest.vmid} {name} --force"
            )


def tool(guest: Guest) -> str:
    return "qm" if guest.kind is GuestKind.VM else "pct"


def _return(guest: Guest, key: str, volume: Volume, replicas: Listing, there: There, folder: str) -> Return | Conflict:
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


def _ahead(taken: Takeover, replicas: Listing) -> Iterator[str]:
    """Where the guest was taken over from an older point, the replica is ahead of what comes home."""
    for name in taken.datasets:
        stamp = taken.point.partition("/")[2]
        volume = replicas.volumes[name]
        base = next((s for s in volume.snapshots if s.name == f"pzb:{stamp}"), None)
        newer = [s.name for s in volume.snapshots if base and s.createtxg > base.createtxg]
        if newer:
            yield (f"{name} has points after {taken.point} ({len(newer)}): replication will call that a conflict")
