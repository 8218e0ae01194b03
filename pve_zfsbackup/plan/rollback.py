"""A guest's disks back to a point, in their places, with nothing lost.

`zfs rollback` goes to the newest snapshot only, and with `-r` destroys what is newer. Instead each disk is cloned at
the point, the clone is promoted (it takes over all history up to the point, in an instant and without a byte copied)
and takes the disk's name; what was there is renamed aside with everything newer in it. The names stay, because
Proxmox's own snapshots of the guest speak of them; meanwhile the guest is locked as Proxmox locks it for a rollback.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pve_zfsbackup.model import Conflict, Dataset, Guest, GuestKind, Guid, Listing, Point, PointId, Snapshot, Volume
from pve_zfsbackup.model.restore import STAGING
from pve_zfsbackup.plan.restore import aside_name
from pve_zfsbackup.plan.snapshot import LOCKS

LOCK = "rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackDisk:
    """`dataset` gets the content of `snapshot`, which now lies in it, or in `staging` where an earlier try had begun.

    `aside` is where what is there goes; `volume` the guid of the dataset the point was made of.
    """

    key: str
    dataset: Dataset
    snapshot: Snapshot
    staging: Dataset
    aside: Dataset | None
    volume: Guid


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """The plan. `newer` are points that go aside, `others` snapshots of others that do; `begun`: an earlier try was cut
    off. `former` are disks with the marks of an earlier way back to this point, which would pass for this one's."""

    guest: Guest
    point: Point
    disks: tuple[RollbackDisk, ...] = ()
    newer: tuple[PointId, ...] = ()
    others: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()  # keys of disks that are no part of the point
    former: tuple[Volume, ...] = ()
    begun: bool = False
    conflicts: tuple[Conflict, ...] = ()

    @property
    def work(self) -> str:
        return f"{self.guest.vmid}:{self.point.id}:rollback"

    @property
    def folder(self) -> str:
        return f"{self.guest.vmid}-{self.point.stamp}-rollback"

    @property
    def parents(self) -> tuple[Dataset, ...]:
        return tuple(sorted({Dataset(disk.dataset.rpartition("/")[0]) for disk in self.disks}))

    def mark(self, disk: RollbackDisk) -> str:
        """What a disk that is done is known by."""
        return f"{self.point.id},{disk.key}"


def plan_rollback(
    guest: Guest, point: Point, places: Sequence[Dataset], listing: Listing, work: Listing, theirs: Sequence[str]
) -> Rollback:
    """`places` are the datasets of the guest's disks as its configuration names them, there or not; `work` has the
    unfinished work, `theirs` names Proxmox's own snapshots of the guest."""
    plan = Rollback(guest=guest, point=point)
    begun = _begun(plan, work)
    disks = tuple(_disks(plan, places, listing, begun=begun))
    touched = {disk.dataset for disk in disks}
    newer = [(disk, s) for disk in disks for s in _newer(disk, listing.volumes.get(disk.dataset))]
    return Rollback(
        guest=guest,
        point=point,
        disks=disks,
        newer=tuple(sorted({s.point for _, s in newer if s.point})),
        others=tuple(s.full_name for _, s in newer if s.point is None and s.name not in theirs),
        untouched=tuple(disk.key for disk in guest.disks if disk.dataset and disk.dataset not in touched),
        former=() if begun else tuple(_former(plan, disks, listing)),
        begun=begun,
        conflicts=tuple(_conflicts(plan, disks, [s for _, s in newer], theirs, begun=begun)),
    )


def _begun(plan: Rollback, work: Listing) -> bool:
    """Whether an earlier try is under way still: places that are empty, of a guest without the lock, tell of one that
    did nothing yet, or came to its end."""
    mine = [name for name, volume in work.volumes.items() if volume.work == plan.work]
    return any(plan.guest.lock == LOCK or not name.endswith(f"/{plan.folder}") for name in mine)


def _done(plan: Rollback, key: str, current: Volume) -> bool:
    return current.restored == f"{plan.point.id},{key}"


def _former(plan: Rollback, disks: Sequence[RollbackDisk], listing: Listing) -> Iterator[Volume]:
    for disk in disks:
        current = listing.volumes.get(disk.dataset)
        if current is not None and _done(plan, disk.key, current):
            yield current


def _disks(plan: Rollback, places: Sequence[Dataset], listing: Listing, *, begun: bool) -> Iterator[RollbackDisk]:
    """The disks of the guest that the point has a snapshot of, where it lies now."""
    for place in sorted(places):
        pool, _, name = place.rpartition("/")
        staging = Dataset(f"{pool}/{STAGING}/{plan.folder}/{name}")
        current = listing.volumes.get(place)
        for key, snapshot in sorted(plan.point.snapshots.items()):
            if key in plan.point.disks and snapshot.dataset in (place, staging):
                done = begun and current is not None and _done(plan, key, current)
                yield RollbackDisk(
                    key=key,
                    dataset=place,
                    snapshot=snapshot,
                    staging=staging,
                    aside=None if current is None or done else aside_name(place, current.guid, plan.guest.vmid),
                    volume=snapshot.volume or (current.guid if current else Guid("")),
                )


def _newer(disk: RollbackDisk, current: Volume | None) -> tuple[Snapshot, ...]:
    if current is None or disk.snapshot.dataset != disk.dataset:
        return ()
    return tuple(s for s in current.snapshots if s.createtxg > disk.snapshot.createtxg)


def _conflicts(
    plan: Rollback, disks: Sequence[RollbackDisk], newer: Sequence[Snapshot], theirs: Sequence[str], *, begun: bool
) -> Iterator[Conflict]:
    guest, label = plan.guest, f"guest {plan.guest.vmid}"
    tool = "qm" if guest.kind is GuestKind.VM else "pct"
    if guest.running:
        yield Conflict(kind="running", object=label, message="is running", resolve="stop it first, then run this again")
    if guest.lock and not (begun and guest.lock == LOCK):
        message = f"is locked ({guest.lock})" + (f": {LOCKS[guest.lock]}" if guest.lock in LOCKS else "")
        yield Conflict(kind="locked", object=label, message=message, resolve="wait until the task has ended")
    missing = sorted(plan.point.disks.keys() - {disk.key for disk in disks})
    if missing:
        message = f"{', '.join(missing)} of the point {'is' if len(missing) == 1 else 'are'} no disk of the guest now"
        hint = (
            f"`restore {guest.vmid} --at {plan.point.stamp} --replace {guest.vmid}` makes the guest anew of the point"
        )
        yield Conflict(kind="other-disks", object=plan.point.id, message=message, resolve=hint)
    blocking = sorted({snapshot.name for snapshot in newer if snapshot.name in theirs})
    if blocking:
        message = f"Proxmox has {len(blocking)} newer snapshots of it, which would lose their disks"
        hint = "; ".join(f"{tool} delsnapshot {guest.vmid} {name}" for name in reversed(blocking))
        yield Conflict(
            kind="proxmox-snapshot",
            object=label,
            message=message,
            evidence=tuple(blocking),
            resolve=f"remove them: {hint}",
        )
    replicated = sorted({s.full_name for s in newer if s.name.startswith("__replicate_")})
    if replicated:
        message = "Proxmox's own replication (pvesr) goes on from a newer snapshot"
        hint = "remove its job (pvesr delete), roll back, and make the job anew"
        yield Conflict(kind="pvesr", object=label, message=message, evidence=tuple(replicated), resolve=hint)


def within_roots(plan: Rollback, roots: Mapping[Dataset, Dataset | None]) -> Rollback:
    """The plan, judged by the encryption roots of its disks and of their storages. A disk can be renamed within its
    root only, and after `promote` the clone is the root of both: halfway nothing would go on."""
    return replace(plan, conflicts=(*plan.conflicts, *_bound(plan, roots)))


def _bound(plan: Rollback, roots: Mapping[Dataset, Dataset | None]) -> Iterator[Conflict]:
    vmid, at = plan.guest.vmid, plan.point.stamp
    for disk in plan.disks:
        storage = Dataset(disk.dataset.rpartition("/")[0])
        root, above = roots.get(disk.dataset), roots.get(storage)
        if root is None or root == above:
            continue
        if above and root in (disk.dataset, disk.staging):
            hint = f"let it use that key, when both are loaded: zfs change-key -i {root}; then run this again"
        elif root == disk.dataset:
            hint = f"`restore {vmid} --at {at} --replace {vmid}` makes the guest anew of the point"
        else:
            hint = f"`restore {vmid} --at {at} --as VMID` makes another guest of the point"
        yield Conflict(
            kind="own-key",
            object=f"guest {vmid} {disk.key}",
            message=f"{disk.dataset} does not use the key of its storage: ZFS would not let it be put aside",
            evidence=(f"encryptionroot {root}; of {storage}: {above or 'not encrypted'}",),
            resolve=hint,
        )
