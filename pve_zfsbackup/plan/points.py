"""Recovery points of one host, put together from its loose snapshots."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from pve_zfsbackup.model import (
    SNAPSHOT_NAME,
    SOURCE,
    Bookmark,
    Consistency,
    Guid,
    Listing,
    Point,
    PointDisk,
    PointId,
    Snapshot,
    Vmid,
    Volume,
    decode_disks,
)

BOOKMARK_NAME: Final = re.compile(r"pzb:(\d{8}T\d{6}Z-[0-9a-f]{4}):(.+)\Z")
_POINT_ID: Final = re.compile(r"([0-9]{1,9})/(\d{8}T\d{6}Z-[0-9a-f]{4})\Z")
GENERATION: Final = re.compile(r"-g[0-9a-f]{8}\Z")


def points(listing: Listing) -> tuple[Point, ...]:
    """The points found on this host, oldest first; also those that are not complete here."""
    found: dict[PointId, list[tuple[Volume, Snapshot]]] = defaultdict(list)
    for volume in listing.volumes.values():
        for snapshot in volume.snapshots:
            if snapshot.point is not None and _POINT_ID.match(snapshot.point):
                found[snapshot.point].append((volume, snapshot))
    alive = frozenset(volume.guid for volume in listing.volumes.values()) if listing.host == SOURCE else None
    made = (_point(point, members, alive) for point, members in found.items())
    return tuple(sorted(made, key=lambda point: (point.creation, point.stamp, point.id)))


def points_of(listing: Listing, vmid: Vmid) -> tuple[Point, ...]:
    """The points of one guest on this host, oldest first."""
    return tuple(point for point in points(listing) if point.vmid == vmid)


def complete_points(listing: Listing) -> frozenset[PointId]:
    """Ids of the points that have a snapshot of every disk here."""
    return frozenset(point.id for point in points(listing) if point.complete)


def by_guest(found: Iterable[Point]) -> Mapping[Vmid, tuple[Point, ...]]:
    """The points of each guest, in the order given."""
    guests: dict[Vmid, list[Point]] = defaultdict(list)
    for point in found:
        guests[point.vmid].append(point)
    return {vmid: tuple(own) for vmid, own in guests.items()}


def bookmark_name(snapshot: Snapshot, target: str) -> str:
    """Name of the source bookmark that stands beside a snapshot as base for one target."""
    return f"{snapshot.name}:{target}"


def bookmark_target(bookmark: Bookmark) -> str | None:
    """The target one of our bookmarks belongs to; None when the bookmark is not ours."""
    match = BOOKMARK_NAME.match(bookmark.name)
    return match[2] if match else None


def stamp_of(snapshot: Snapshot) -> str | None:
    """`20261123T180000Z-ab12` of a snapshot that has a name of ours, marked or not."""
    match = SNAPSHOT_NAME.match(snapshot.name)
    return match[1] if match else None


@lru_cache(maxsize=4096)
def _decoded(text: str) -> tuple[PointDisk, ...]:
    """All points of a guest say the same until its disks change."""
    return decode_disks(text)


def _point(point: PointId, members: list[tuple[Volume, Snapshot]], alive: frozenset[Guid] | None) -> Point:
    members.sort(key=lambda member: member[1].dataset)
    disks = {disk.key: disk for _, snapshot in members for disk in _decoded(snapshot.disks)}
    matched = _match(disks, members)
    kinds = {snapshot.consistency for _, snapshot in members}
    missing = {key: disk for key, disk in disks.items() if key not in matched}
    return Point(
        id=point,
        vmid=Vmid(int(point.partition("/")[0])),
        creation=min(snapshot.creation for _, snapshot in members),
        consistency=kinds.pop() if len(kinds) == 1 else Consistency.CRASH,
        disks={key: disk.volid for key, disk in disks.items()},
        snapshots=matched,
        gone=frozenset(key for key, disk in missing.items() if alive is not None and disk.guid not in alive),
    )


def _match(disks: Mapping[str, PointDisk], members: list[tuple[Volume, Snapshot]]) -> dict[str, Snapshot]:
    """Which snapshot is which disk: by source dataset guid, else by a volume name that fits one disk only.

    The name decides where the guid cannot: after `zfs send -R` (offline migration, pvesr) the snapshots
    and their properties lie in datasets with new guids.
    """
    by_guid = {disk.guid: key for key, disk in sorted(disks.items(), reverse=True)}
    matched: dict[str, Snapshot] = {}
    rest = []
    for volume, snapshot in members:
        key = by_guid.get(snapshot.volume or volume.guid)
        if key is not None and key not in matched:
            matched[key] = snapshot
        else:
            rest.append(snapshot)
    for snapshot in rest:
        fitting = [key for key, disk in disks.items() if key not in matched and _fits(snapshot, disk)]
        exact = [key for key in fitting if _storage(snapshot) == disks[key].volid.partition(":")[0]]
        choice = exact if len(exact) == 1 else fitting
        matched[choice[0] if len(choice) == 1 else snapshot.dataset] = snapshot
    return matched


def _fits(snapshot: Snapshot, disk: PointDisk) -> bool:
    name = snapshot.dataset.rpartition("/")[2]
    volume = re.split("[:/]", disk.volid)[-1]
    return volume in (name, GENERATION.sub("", name))


def _storage(snapshot: Snapshot) -> str:
    """The storage id a replica's path names; on the source just some dataset, which then fits nothing."""
    return snapshot.dataset.split("/")[-2] if "/" in snapshot.dataset else ""
