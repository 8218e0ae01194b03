"""Whether the points of a guest on a target are what the source made: every guid, hold and property."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pve_zfsbackup.model import Guid, Listing, Point, PointId, Snapshot, Vmid, Volume, decode_disks
from pve_zfsbackup.plan.pairing import common_base, owner, same_ivset


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What is known of one guest on one target. `whole` are the points nothing is wrong with, `unheld` the snapshots
    (and their disks) that the next increments start from and nothing holds."""

    vmid: Vmid
    host: str
    points: int
    whole: tuple[Point, ...]
    unheld: tuple[str, ...] = ()
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()


def chain(
    vmid: Vmid, source: Listing, target: Listing, here: Sequence[Point], there: Sequence[Point],
    refused: Mapping[PointId, str] = MappingProxyType({}),
) -> Chain:  # fmt: skip
    """Compare the points of one guest on both sides, oldest first on each. What only the target still has cannot be
    compared: it was, when it was received, and ZFS keeps it since. `refused` are points that a restore would refuse,
    and why."""
    made = {point.id: point for point in here}
    problems: list[str] = []
    whole = []
    notes = []
    unheld: list[str] = []
    complete = [point for point in there if point.complete]
    for point in there:
        found = list(_point(point, made.get(point.id)))
        found += [f"{point.stamp}: {refused[point.id]}: it cannot be restored"] if point.id in refused else []
        problems += found
        if not point.complete:
            missing = ", ".join(sorted(point.disks.keys() - point.snapshots.keys()))
            notes.append(f"{point.stamp}: incomplete: {missing} missing")
        elif not found:
            whole.append(point)
    if not complete:
        problems.append("no complete point there")
    else:
        volumes = {volume.guid: volume for volume in source.volumes.values()}
        for key, snapshot in sorted(complete[-1].snapshots.items()):
            problems += (f"{key}: {told}" for told in _replica(snapshot, target, volumes))
            unheld += (f"{key}: {name}" for name in _unheld(snapshot, target, volumes))
    return Chain(
        vmid=vmid, host=target.host, points=len(there), whole=tuple(whole), unheld=tuple(unheld),
        problems=tuple(problems), notes=tuple(notes),
    )  # fmt: skip


def _point(there: Point, here: Point | None) -> Iterator[str]:
    for key, snapshot in sorted(there.own.items()):  # what is borrowed is judged with its own point
        about = f"{there.stamp} {key}"
        if not snapshot.volume:
            yield f"{about}: not marked with the disk it came from: {snapshot.full_name}"
        if key not in {disk.key for disk in decode_disks(snapshot.disks)}:
            yield f"{about}: its properties name no such disk: {snapshot.full_name}"
        made = here.snapshots.get(key) if here else None
        if made is None:
            continue
        if made.guid != snapshot.guid:
            yield f"{about}: another snapshot of the same name: guid {snapshot.guid} instead of {made.guid}"
        elif not same_ivset(made.ivset, snapshot.ivset):
            yield f"{about}: encrypted anew there: it was not received raw"
        elif made.consistency != snapshot.consistency:
            yield f"{about}: is called {snapshot.consistency or 'nothing'} there, and {made.consistency} here"


def _replica(newest: Snapshot, target: Listing, source: dict[Guid, Volume]) -> Iterator[str]:
    """The dataset of a disk: whether the next increment has a start, and nothing foreign after it."""
    replica = target.volumes[newest.dataset]
    volume = source.get(owner(replica))
    if volume is None:
        return  # the guest, or this disk of it, is gone from the node
    base = common_base(volume, replica)
    if base is None:
        yield f"the chain is broken: {replica.name} has no snapshot in common with {volume.name}"
        return
    common = next(snapshot for snapshot in replica.snapshots if snapshot.guid == base.guid)
    for snapshot in replica.snapshots:
        if snapshot.createtxg > common.createtxg and snapshot.guid not in {one.guid for one in volume.snapshots}:
            yield f"{snapshot.full_name} is not from the source: nothing can be received behind it"


def _unheld(newest: Snapshot, target: Listing, source: dict[Guid, Volume]) -> Iterator[str]:
    replica = target.volumes[newest.dataset]
    volume = source.get(owner(replica))
    base = common_base(volume, replica) if volume else None
    yield from (one.full_name for one in replica.snapshots if base and one.guid == base.guid and not one.userrefs)
