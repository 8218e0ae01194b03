"""What happens to the datasets of a restore, each step such that doing it again is doing it once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pve_zfsbackup.app.restore_receive import Supply, look
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import DatasetNotFoundError, OutOfSpaceError, VerificationError, ZfsError
from pve_zfsbackup.host import destroying, restoring, zfs
from pve_zfsbackup.host.listing import tuned
from pve_zfsbackup.model import PROPERTY, SOURCE, Dataset, Snapshot, Volume, tuning
from pve_zfsbackup.model.restore import STAGING, DiskRestore, Restore
from pve_zfsbackup.plan.restore_props import to_set

PLACE = "place"  # mark of the dataset that all unfinished work of a storage lies in


def make_places(session: Session, work: str, folder: str, parents: tuple[Dataset, ...]) -> None:
    """Where disks are received: marked as this restore's. Raises where something else has that name."""
    host = session.hosts[SOURCE]
    for pool in parents:
        above, place = Dataset(f"{pool}/{STAGING}"), Dataset(f"{pool}/{STAGING}/{folder}")
        for name, mark in ((above, PLACE), (place, work)):
            restoring.make_place(host, name, {f"{PROPERTY}restore": mark})
            found = look(session, name)
            if found is None or found.work != mark:
                raise VerificationError(
                    f"{name} is not ours: it has no property {PROPERTY}restore={mark}",
                    hint="nothing is overwritten: rename it, then run this again",
                )


def remove_places(session: Session, work: str, folder: str, parents: tuple[Dataset, ...]) -> None:
    """All is done. The place that others' work lies in stays."""
    host = session.hosts[SOURCE]
    for pool in parents:
        restoring.remove_place(host, Dataset(f"{pool}/{STAGING}/{folder}"), work)
        with contextlib.suppress(ZfsError):  # another restore is under way there
            restoring.remove_place(host, Dataset(f"{pool}/{STAGING}"), PLACE)


def outdate(session: Session, former: Sequence[Volume]) -> None:
    """Let these be disks that were made of the point before, and not those of the restore that now begins: cut off and
    repeated, it would take them for its own, although a guest has written to them since."""
    for volume in former:
        mark = f"{volume.restored},,{volume.guid}"
        zfs.set_properties(session.hosts[SOURCE], [volume.name], {f"{PROPERTY}restored": mark})


def bring(session: Session, plan: Restore, supply: Supply) -> tuple[int, tuple[str, ...]]:
    """Every disk into its staging place, read back, with its properties. Returns bytes moved, and remarks."""
    moved, notes = 0, []
    for disk in plan.disks:
        if disk.placed:
            continue
        moved += supply(disk)
        note = dress(session, disk, plan)
        notes += [f"{disk.dataset} {note.replace('NAME', disk.dataset)}"] if note else []
    return moved, tuple(notes)


def dress(session: Session, disk: DiskRestore, plan: Restore) -> str:
    """Check what was received, and give it the properties that a stream does not carry."""
    host = session.hosts[SOURCE]
    volume = _received(session, disk.staging, disk)
    size = disk.props.get("volsize", "")
    if size and volume.props.get("volsize") != size:
        raise VerificationError(f"{disk.staging}: volsize is {volume.props.get('volsize')}, the point's is {size}")
    note = restoring.inherit_key(host, disk.staging, disk.pool) if volume.encrypted else ""
    short = apply_props(session, disk.staging, disk.props)
    origin = f"{plan.origin.point.id},{disk.key},{volume.guid}"
    zfs.set_properties(host, [disk.staging], {f"{PROPERTY}restored": origin})
    return "; ".join(text for text in (note, short) if text)


def apply_props(session: Session, dataset: Dataset, props: Mapping[str, str]) -> str:
    """Set what differs from the point, and read it back. Room that cannot be reserved, and what was tuned and does not
    take here, is told, and no reason to have no guest."""
    host, found = session.hosts[SOURCE], look(session, dataset)
    assert found is not None
    short = ""
    wanted = to_set(found, props)
    for name, value in wanted.items():
        try:
            zfs.set_properties(host, [dataset], {name: value})
        except OutOfSpaceError:
            if name != "refreservation":
                raise
            short = f"has no room for its reservation: zfs set refreservation={value} NAME"
    after = look(session, dataset)
    left = to_set(after, props) if after else wanted
    if left.keys() - ({"refreservation"} if short else set()):
        told = ", ".join(f"{name}={value}" for name, value in left.items())
        raise VerificationError(f"{dataset}: these properties did not take: {told}")
    return "; ".join(text for text in (short, *_tune(session, dataset, tuning(props))) if text)


def _tune(session: Session, dataset: Dataset, wanted: Mapping[str, str]) -> Iterator[str]:
    """Another pool, or another release of ZFS, may not know a property, or not have the room."""
    host = session.hosts[SOURCE]
    have = tuned(host, [dataset])[dataset] if wanted else {}
    for name, value in wanted.items():
        if have.get(name) != value:
            try:
                zfs.set_properties(host, [dataset], {name: value})
            except ZfsError as error:
                yield f"does not take what its disk had set, {name}={value}: {error.message}"


def _received(session: Session, dataset: Dataset, disk: DiskRestore) -> Volume:
    volume = look(session, dataset)
    if volume is None:
        raise DatasetNotFoundError(f"{dataset}: does not exist, although it was received")
    cloned = volume.origin == disk.snapshot.full_name
    if volume.resume or not (cloned or any(snapshot.guid == disk.snapshot.guid for snapshot in volume.snapshots)):
        raise VerificationError(f"{dataset} lacks {disk.snapshot.name} (guid {disk.snapshot.guid})")
    return volume


def place(session: Session, plan: Restore) -> None:
    """Each disk under its name, and looked at there: only then may a configuration speak of it."""
    for disk in plan.disks:
        if not disk.placed:
            host, staged = session.hosts[SOURCE], _received(session, disk.staging, disk)
            if disk.staging == disk.dataset:  # it was made in its place, under a mark
                zfs.zfs(host, "inherit", f"{PROPERTY}restore", disk.dataset)
            else:
                restoring.rename(host, disk.staging, staged.guid, disk.dataset)
        found = look(session, disk.dataset)
        if found is None or found.restored != f"{plan.origin.point.id},{disk.key}":
            raise VerificationError(f"{disk.dataset} is not what was restored for {disk.key}")


def label_old(session: Session, plan: Restore) -> None:
    """Mark what is about to lose its place: cut off after the switch, the next try knows it by that."""
    for old in plan.aside:
        zfs.set_properties(session.hosts[SOURCE], [old.dataset], {f"{PROPERTY}restore": f"aside:{plan.work}"})


def put_aside(session: Session, plan: Restore) -> None:
    """Rename what lost its place, with all its snapshots. Nothing of it is destroyed."""
    host, now = session.hosts[SOURCE], int(session.now().timestamp())
    by = "failover" if plan.wish.clones else "restore"
    for old in plan.aside:
        restoring.put_aside(host, old.dataset, old.guid, old.to, by=by, at=now)


def settle_snapshots(session: Session, plan: Restore) -> None:
    """The restored snapshot is a part of the point again, and the base of the next increment; a copy has no use for
    it, and nobody would prune it."""
    host = session.hosts[SOURCE]
    for disk in plan.disks:
        volume = look(session, disk.dataset)
        mine = [s for s in volume.snapshots if _came_along(s, disk, plan)] if volume else []
        for snapshot in mine:
            if disk.history and snapshot.guid == disk.snapshot.guid:
                own = plan.origin.own.get(disk.key, {})
                zfs.set_properties(host, [snapshot.full_name], {PROPERTY + key: text for key, text in own.items()})
            elif not disk.history and not snapshot.clones:
                failed = destroying.destroy(host, [replace(snapshot, point=plan.origin.point.id)])
                for _, error in failed:
                    raise error


def _came_along(snapshot: Snapshot, disk: DiskRestore, plan: Restore) -> bool:
    """The snapshot that was restored, and those before it that an archive brings: points of the origin's guest."""
    point = plan.origin.point
    theirs = (snapshot.point or "").partition("/")[0] == str(point.vmid)
    return snapshot.guid == disk.snapshot.guid or (theirs and snapshot.name <= disk.snapshot.name)
