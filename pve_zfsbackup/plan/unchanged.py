"""Disks with nothing written since what a target has of them (`skip-unchanged`): their streams are spared.

Every disk is snapshotted all the same, so a point is one instant as ever, and whether something was written is read
from the snapshots themselves: a look before the snapshot would miss what a freeze, or the transaction group that is
open, still brings to disk. On the target the point names the older snapshot that has the same content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pve_zfsbackup.model import Conflict, Disk, Guid, PointId, Volume
from pve_zfsbackup.plan.pairing import Sides, same_ivset
from pve_zfsbackup.plan.route import ReplicationPolicy, Route, route

# Seconds after which an unchanged disk is sent again. What points refer to stays, with the whole point it is part of,
# and so does the base of the next stream: this bounds both. It is also how long a changed key waits for its way there.
RENEW: Final = 86_400
MOST: Final = 64  # disks of a guest: each reference makes the property `disks` longer, which ends at 8,192 bytes

# For each point, by the guid of the source dataset: the snapshot on the target that stands for this disk.
References = Mapping[PointId, Mapping[Guid, Guid]]
NO_REFERENCES: Final[References] = {}


@dataclass(slots=True, kw_only=True)
class _Course:
    """One disk: points that the target could still get of it, and what stands for it in which point."""

    volume: Guid
    points: frozenset[PointId]
    lacking: frozenset[PointId] = frozenset()
    same: dict[PointId, Guid] = field(default_factory=dict)


def references(disks: Iterable[Disk], sides: Sides, policy: ReplicationPolicy) -> References:
    """What the points of one guest may refer to on one target: only ever what is there, and part of a point of it.

    At least one disk of each point is sent: without a snapshot of its own there would be no point.
    """
    disks = sorted(disks, key=lambda disk: disk.key)
    if len(disks) > MOST:
        return NO_REFERENCES
    courses = [
        _course(source, route(disk, source, sides, policy), sides)
        for disk in disks
        if disk.dataset and (source := sides.source.volumes.get(disk.dataset))
    ]
    for course in courses:
        if any(all(point in c.same for c in courses if point in c.points) for point in course.lacking):
            course.same = {point: guid for point, guid in course.same.items() if point not in course.lacking}
    found: dict[PointId, dict[Guid, Guid]] = {}
    for course in courses:
        for point, guid in course.same.items():
            found.setdefault(point, {})[course.volume] = guid
    return found


def _course(source: Volume, way: Route | Conflict, sides: Sides) -> _Course:
    """Where something has to be settled first, nothing is spared."""
    points = frozenset(snapshot.point for snapshot in source.snapshots if snapshot.point in sides.complete)
    if isinstance(way, Conflict) or way.base is None or way.steps:
        return _Course(volume=source.guid, points=points)
    since = way.base.createtxg
    lacking = frozenset(s.point for s in source.snapshots if s.createtxg > since and s.point in points)
    return _Course(volume=source.guid, points=points, lacking=lacking, same=dict(_same(source, way, sides)))


def _same(source: Volume, way: Route, sides: Sides) -> Iterator[tuple[PointId, Guid]]:
    """The points of which the replica has no snapshot, but an older one with nothing written since.

    ZFS reckons `written` from the snapshot right before, whosoever it is, and what is gone counts for the next one.
    Points older than the base are told as well: a run that was cut off may not have marked them yet.
    """
    assert way.base is not None
    there = {snapshot.guid: snapshot for snapshot in way.snapshots}
    lender = None
    for snapshot in sorted(source.snapshots, key=lambda snapshot: snapshot.createtxg):
        twin = there.get(snapshot.guid)
        if twin and twin.point and twin.point == snapshot.point and same_ivset(twin.ivset, snapshot.ivset):
            lender = snapshot
        elif snapshot.written:
            lender = None
        elif lender and not twin and lender.point and snapshot.point in sides.complete:
            assert snapshot.point is not None
            recent = snapshot.creation - lender.creation < RENEW or snapshot.createtxg < way.base.createtxg
            if recent and snapshot.point.partition("/")[0] == lender.point.partition("/")[0]:
                yield snapshot.point, lender.guid
