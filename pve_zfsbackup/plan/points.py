"""Recovery points of one host, put together from its loose snapshots."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
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
    drafts: dict[PointId, _Draft] = defaultdict(_Draft)
    for _, volume in sorted(listing.volumes.items()):
        for snapshot in volume.snapshots:
            if snapshot.point is not None and _POINT_ID.match(snapshot.point):
                drafts[snapshot.point].add(volume, snapshot)
    places = {place for draft in drafts.values() for place in draft.places()}
    alive = frozenset(volume.guid for volume in listing.volumes.values()) if listing.host == SOURCE else None
    made = (draft.point(point, places, alive) for point, draft in drafts.items())
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


@dataclass(slots=True)
class _Draft:
    """A point being put together: which snapshot is which disk.

    The source dataset's guid tells. It cannot after `zfs send -R` (offline migration, pvesr): snapshots and
    properties then lie in datasets with new guids. For those the volume's name decides, and where disks on
    several storages have the same name, the parent dataset in which other points have that storage.
    """

    disks: dict[str, PointDisk] = field(default_factory=dict)
    matched: dict[str, Snapshot] = field(default_factory=dict)
    rest: list[Snapshot] = field(default_factory=list)

    def add(self, volume: Volume, snapshot: Snapshot) -> None:
        origin = snapshot.volume or volume.guid
        own = None
        for disk in _decoded(snapshot.disks):
            self.disks[disk.key] = disk
            if disk.guid == origin and own is None:
                own = disk.key
        if own is not None and own not in self.matched:
            self.matched[own] = snapshot
        else:
            self.rest.append(snapshot)

    def places(self) -> Iterator[tuple[str, str]]:
        """Storages and the dataset their volumes lie in here, as far as guids prove it."""
        for key, snapshot in self.matched.items():
            yield _storage(self.disks[key]), _parent(snapshot)

    def point(self, name: PointId, places: Set[tuple[str, str]], alive: Set[Guid] | None) -> Point:
        """The finished point. `alive` are the guids of all datasets, on the source."""
        snapshots = {**self.matched, **self._by_name(places)} if self.rest else self.matched
        everything = (*self.matched.values(), *self.rest)
        kinds = {snapshot.consistency for snapshot in everything}
        missing = () if alive is None else self.disks.keys() - snapshots.keys()
        return Point(
            id=name,
            vmid=Vmid(int(name.partition("/")[0])),
            creation=min(snapshot.creation for snapshot in everything),
            consistency=kinds.pop() if len(kinds) == 1 else Consistency.CRASH,
            disks={key: disk.volid for key, disk in self.disks.items()},
            snapshots=snapshots,
            gone=frozenset(key for key in missing if alive is not None and self.disks[key].guid not in alive),
        )

    def _by_name(self, places: Set[tuple[str, str]]) -> dict[str, Snapshot]:
        """What the guid did not tell; what fits no disk stands under its dataset's name, so that it is seen."""
        found: dict[str, Snapshot] = {}
        left: list[Snapshot] = []
        for snapshots, certain in ((self.rest, True), (left, False)):  # by elimination: the certain ones first
            for snapshot in snapshots:
                free = [disk for key, disk in self.disks.items() if key not in self.matched and key not in found]
                fitting = [disk for disk in free if _fits(snapshot, disk)]
                if certain:
                    fitting = [disk for disk in fitting if _lies_with(snapshot, disk, places)]
                if len(fitting) == 1:
                    found[fitting[0].key] = snapshot
                elif certain:
                    left.append(snapshot)
                else:
                    found[snapshot.dataset] = snapshot
        return found


def _fits(snapshot: Snapshot, disk: PointDisk) -> bool:
    name = snapshot.dataset.rpartition("/")[2]
    volume = re.split("[:/]", disk.volid)[-1]
    return volume in (name, GENERATION.sub("", name))


def _lies_with(snapshot: Snapshot, disk: PointDisk, places: Set[tuple[str, str]]) -> bool:
    """Whether the parent dataset is the storage's: proven, or a replica's `<root>/<storage>`."""
    storage, parent = _storage(disk), _parent(snapshot)
    return (storage, parent) in places or storage == parent.rpartition("/")[2]


def _storage(disk: PointDisk) -> str:
    return disk.volid.partition(":")[0]


def _parent(snapshot: Snapshot) -> str:
    return snapshot.dataset.rpartition("/")[0]
