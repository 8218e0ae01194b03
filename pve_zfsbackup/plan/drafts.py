"""Points being put together: which snapshot is which disk of a point."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from pve_zfsbackup.model import Consistency, Guid, Point, PointDisk, PointId, Snapshot, Vmid, Volume, decode_disks

GENERATION: Final = re.compile(r"-g[0-9a-f]{8}\Z")


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
class Draft:
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


def proven_places(volume: Volume) -> set[tuple[str, str]]:
    """Storages and the dataset their volumes lie in, as far as guids of this one prove it."""
    found = {(snapshot.disks, snapshot.volume or volume.guid) for snapshot in volume.snapshots if snapshot.point}
    parent = volume.name.rpartition("/")[0]
    return {(_storage(disk), parent) for text, origin in found for disk in _decoded(text) if disk.guid == origin}
