"""Recovery points of one host, put together from its loose snapshots."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from pve_zfsbackup.model import (
    SNAPSHOT_NAME,
    SOURCE,
    Bookmark,
    Guid,
    Listing,
    Point,
    PointId,
    Snapshot,
    Vmid,
    Volume,
)
from pve_zfsbackup.plan.drafts import Draft, proven_places

BOOKMARK_NAME: Final = re.compile(r"pzb:(\d{8}T\d{6}Z-[0-9a-f]{4}):(.+)\Z")
_VMID_DIGITS: Final = 9
_POINT_ID: Final = re.compile(r"([0-9]{1,9})/(\d{8}T\d{6}Z-[0-9a-f]{4})\Z")


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

    def _drafts(self, vmid: Vmid) -> dict[PointId, Draft]:
        drafts: dict[PointId, Draft] = {}
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
                    draft = drafts[point] = Draft()
                draft.add(volume, snapshot)
        return drafts

    def _made(self, vmid: Vmid, drafts: Mapping[PointId, Draft]) -> Iterator[Point]:
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
            self._places = frozenset(place for volume in volumes.values() for place in proven_places(volume))
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
