"""What `project` stands on: looking things up in a world, changing one, and refusing what ZFS would refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from pve_zfsbackup.model import Bookmark, Dataset, Guid, Listing, Snapshot, Step, Volume, World

_Kind = TypeVar("_Kind", Snapshot, Bookmark, Snapshot | Bookmark)


class _Draft(dict[Dataset, Volume]):
    """The volumes of a host while they are changed in place: one copy for all steps, not one for each."""

    def __init__(self, volumes: Mapping[Dataset, Volume]) -> None:
        super().__init__(volumes)
        self.tops: dict[str, int] = {}  # newest transaction group by pool, where it was asked for


def drafted(world: World) -> World:
    """A copy of the world that the functions below may change."""
    return {host: replace(listing, volumes=_Draft(listing.volumes)) for host, listing in world.items()}


def volume_of(world: World, host: str, name: Dataset, step: Step) -> Volume:
    volume = world[host].volumes.get(name)
    if volume is None:
        raise impossible(step, f"{name} does not exist on {host}")
    return volume


def present(there: Iterable[_Kind], wanted: Snapshot | Bookmark, step: Step) -> _Kind:
    for found in there:
        if (type(found), found.name, found.guid) == (type(wanted), wanted.name, wanted.guid):
            return found
    raise impossible(step, f"{wanted.full_name} with guid {wanted.guid} does not exist")


def with_volume(world: World, host: str, volume: Volume) -> World:
    volumes = _draft(world[host])
    volumes[volume.name] = volume
    pool = _pool(volume.name)
    if pool in volumes.tops:
        volumes.tops[pool] = max(volumes.tops[pool], _top([volume]))
    return world


def without_volume(world: World, host: str, name: Dataset) -> World:
    del _draft(world[host])[name]
    return world


def _draft(listing: Listing) -> _Draft:
    if not isinstance(listing.volumes, _Draft):
        raise TypeError("only a drafted world can be changed")
    return listing.volumes


def _pool(name: Dataset) -> str:
    return name.partition("/")[0]


def _top(volumes: Iterable[Volume]) -> int:
    return max((item.createtxg for volume in volumes for item in volume.snapshots + volume.bookmarks), default=0)


def names_of(volume: Volume) -> set[str]:
    return {snapshot.name for snapshot in volume.snapshots}


def newest(volume: Volume) -> Snapshot | None:
    return max(volume.snapshots, key=age, default=None)


def next_txg(listing: Listing, name: Dataset) -> int:
    volumes, pool = _draft(listing), _pool(name)
    if pool not in volumes.tops:
        volumes.tops[pool] = _top(volume for volume in volumes.values() if _pool(volume.name) == pool)
    return volumes.tops[pool] + 1


def made_guid(*parts: str) -> Guid:
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return Guid(str(int.from_bytes(digest, "big")))


def age(item: Snapshot | Bookmark) -> tuple[int, str]:
    return item.createtxg, item.name


def require(condition: bool, step: Step, why: str) -> None:
    if not condition:
        raise impossible(step, why)


def impossible(step: Step, why: str) -> ValueError:
    return ValueError(f"{why}: {step}")
