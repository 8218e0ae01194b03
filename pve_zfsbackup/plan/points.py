"""Recovery points of one host, put together from its loose snapshots."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from types import MappingProxyType
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
_VMID_DIGITS: Final = 9
_POINT_ID: Final = re.compile(r"([0-9]{1,9})/(\d{8}T\d{6}Z-[0-9a-f]{4})\Z")
GENERATION: Final = re.compile(r"-g[0-9a-f]{8}\Z")


@dataclass(slots=True)
class GuestPoints:
    """The points of one host, put together guest by guest as they are asked for: all at once they take more memory
    than the listing. `alive` are the guids of all datasets, on the source."""

    _volumes: Mapping[Vmid, tuple[Volume, ...]]  # those with a snapshot of the guest's, by name
    _alive: Set[Guid] | None
    _places: frozenset[tuple[str, str]] | None = None

    @property
    def vmids(self) -> Iterable[Vmid]:
        return self._volumes.keys()

    def of(self, vmid: Vmid) -> tuple[Point, ...]:
        """The points of one guest, oldest first."""
        return tuple(sorted(self._made(vmid, self._drafts(vmid)), key=_BY_AGE))

    def complete(self, vmid: Vmid) -> Iterator[PointId]:
        """The ids of those that have a snapshot of every disk. Nearly all are told by their drafts: a listing may have
        half a million."""
        drafts = self._drafts(vmid)
        plain = {name: draft for name, draft in drafts.items() if draft.plain}
        yield from (name for name, draft in plain.items() if draft.whole)
        if len(plain) < len(drafts):
            made = self._made(vmid, drafts)
            yield from (point.id for point in made if point.id not in plain and point.complete)

    def _drafts(self, vmid: Vmid) -> dict[PointId, _Draft]:
        drafts: dict[PointId, _Draft] = {}
        start = f"{vmid}/"
        for volume in self._volumes.get(vmid, ()):
            for snapshot in volume.snapshots:
                point = snapshot.point
                if point is None or not point.startswith(start):
                    continue
                draft = drafts.get(point)
                if draft is None:
                    if not _POINT_ID.match(point):
                        continue
                    draft = drafts[point] = _Draft()
                draft.add(volume, snapshot)
        return drafts

    def _made(self, vmid: Vmid, drafts: Mapping[PointId, _Draft]) -> Iterator[Point]:
        places = self._all_places() if any(draft.rest for draft in drafts.values()) else frozenset()
        borrowing = any("@" in text for draft in drafts.values() for text in draft.texts)
        lenders = self._lenders(f"{vmid}/") if borrowing else {}
        return (draft.point(name, vmid, places, lenders, self._alive) for name, draft in drafts.items())

    def _lenders(self, start: str) -> Mapping[tuple[Guid, Guid], Snapshot]:
        """The guest's snapshots by the guid of their source dataset and their own: what others of its points refer
        to."""
        volumes = self._volumes.get(Vmid(int(start[:-1])), ())
        found = ((volume, s) for volume in volumes for s in volume.snapshots if s.point and s.point.startswith(start))
        return {(snapshot.volume or volume.guid, snapshot.guid): snapshot for volume, snapshot in found}

    def _all_places(self) -> frozenset[tuple[str, str]]:
        """Storages and the dataset their volumes lie in here, as far as guids prove it anywhere."""
        if self._places is None:
            volumes = {volume.name: volume for own in self._volumes.values() for volume in own}
            self._places = frozenset(place for volume in volumes.values() for place in _proven(volume))
        return self._places


def guest_points(listing: Listing) -> GuestPoints:
    """Which volumes have points of which guest, found in one pass."""
    volumes: dict[Vmid, list[Volume]] = defaultdict(list)
    for _, volume in sorted(listing.volumes.items()):
        for vmid in _vmids(volume):
            volumes[vmid].append(volume)
    alive = frozenset(volume.guid for volume in listing.volumes.values()) if listing.host == SOURCE else None
    return GuestPoints({vmid: tuple(own) for vmid, own in volumes.items()}, alive)


def points(listing: Listing) -> tuple[Point, ...]:
    """The points found on this host, oldest first; also those that are not complete here."""
    found = guest_points(listing)
    return tuple(sorted((point for vmid in found.vmids for point in found.of(vmid)), key=_order))


def points_of(listing: Listing, vmid: Vmid) -> tuple[Point, ...]:
    """The points of one guest on this host, oldest first."""
    return guest_points(listing).of(vmid)


def complete_points(listing: Listing) -> frozenset[PointId]:
    """Ids of the points that have a snapshot of every disk here."""
    found = guest_points(listing)
    return frozenset(name for vmid in found.vmids for name in found.complete(vmid))


def _vmids(volume: Volume) -> set[Vmid]:
    """Of all points this volume has a snapshot of; nearly always one guest's."""
    texts = {snapshot.point.partition("/")[0] for snapshot in volume.snapshots if snapshot.point is not None}
    return {Vmid(int(text)) for text in texts if text.isdecimal() and len(text) <= _VMID_DIGITS}


_BY_AGE: Final = attrgetter("creation", "id")  # of one guest: its ids differ by their stamps alone


def _order(point: Point) -> tuple[int, str, str]:
    return point.creation, point.stamp, point.id


def _proven(volume: Volume) -> set[tuple[str, str]]:
    found = {(snapshot.disks, snapshot.volume or volume.guid) for snapshot in volume.snapshots if snapshot.point}
    parent = volume.name.rpartition("/")[0]
    return {(_storage(disk), parent) for text, origin in found for disk in _decoded(text) if disk.guid == origin}


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


@lru_cache(maxsize=4096)
def _keys(text: str) -> Mapping[Guid, str]:
    """Key by guid; of several with one guid the first counts."""
    return {disk.guid: disk.key for disk in reversed(_decoded(text))}


@lru_cache(maxsize=4096)
def _volids(text: str) -> Mapping[str, str]:
    return MappingProxyType({disk.key: disk.volid for disk in _decoded(text)})


_NONE: Final = frozenset[str]()


@dataclass(slots=True)
class _Draft:
    """A point being put together: which snapshot is which disk.

    The source dataset's guid tells. It cannot after `zfs send -R` (offline migration, pvesr): snapshots and
    properties then lie in datasets with new guids. For those the volume's name decides, and where disks on
    several storages have the same name, the parent dataset in which other points have that storage.
    """

    texts: tuple[str, ...] = ()  # nearly always one: all snapshots of a point carry the same
    matched: dict[str, Snapshot] = field(default_factory=dict)
    rest: tuple[Snapshot, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether guids tell all of it, and it borrows nothing."""
        return not self.rest and len(self.texts) == 1 and "@" not in self.texts[0]

    @property
    def whole(self) -> bool:
        """Of a plain one: whether every disk is there."""
        disks = _volids(self.texts[0])
        return bool(disks) and disks.keys() <= self.matched.keys()

    def add(self, volume: Volume, snapshot: Snapshot) -> None:
        origin = snapshot.volume or volume.guid
        if snapshot.disks not in self.texts:
            self.texts = (*self.texts, snapshot.disks)
        own = _keys(snapshot.disks).get(origin)
        if own is not None and own not in self.matched:
            self.matched[own] = snapshot
        else:
            self.rest = (*self.rest, snapshot)

    def point(
        self,
        name: PointId,
        vmid: Vmid,
        places: Set[tuple[str, str]],
        lenders: Mapping[tuple[Guid, Guid], Snapshot],
        alive: Set[Guid] | None,
    ) -> Point:
        """The finished point."""
        snapshots = {**self.matched, **self._by_name(places)} if self.rest else self.matched
        borrowed = self._borrowed(snapshots.keys(), lenders) if lenders else {}
        snapshots = {**snapshots, **borrowed} if borrowed else snapshots
        everything = [*self.matched.values(), *self.rest] if self.rest else list(self.matched.values())
        kind, creation = everything[0].consistency, everything[0].creation
        for snapshot in everything[1:]:
            if snapshot.consistency != kind:
                kind = Consistency.CRASH
            creation = min(creation, snapshot.creation)
        volids = _volids(self.texts[0]) if len(self.texts) == 1 else {d.key: d.volid for d in self.disks.values()}
        gone = _NONE
        if alive is not None and (missing := volids.keys() - snapshots.keys()):
            gone = frozenset(key for key in missing if self.disks[key].guid not in alive)
        return Point(
            id=name,
            vmid=vmid,
            creation=creation,
            consistency=kind,
            disks=volids,
            snapshots=snapshots,
            gone=gone,
            borrowed=frozenset(borrowed) if borrowed else _NONE,
        )

    @property
    def disks(self) -> dict[str, PointDisk]:
        return {disk.key: disk for text in self.texts for disk in _decoded(text)}

    def _borrowed(
        self, own: Set[str], lenders: Mapping[tuple[Guid, Guid], Snapshot]
    ) -> Mapping[str, Snapshot]:
        """What stands for the disks that were not sent again, as far as it is there."""
        found: dict[str, Snapshot] = {}
        for disk in (disk for text in self.texts for disk in _decoded(text) if disk.same and disk.key not in own):
            lender = lenders.get((disk.guid, disk.same))
            if lender is not None:
                found.setdefault(disk.key, lender)
        return found

    def _by_name(self, places: Set[tuple[str, str]]) -> dict[str, Snapshot]:
        """What the guid did not tell; what fits no disk stands under its dataset's name, so that it is seen."""
        found: dict[str, Snapshot] = {}
        left: list[Snapshot] = []
        disks = self.disks
        for snapshots, certain in ((self.rest, True), (left, False)):  # by elimination: the certain ones first
            for snapshot in snapshots:
                free = [disk for key, disk in disks.items() if key not in self.matched and key not in found]
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
