"""What `project` stands on: looking things up in a world, changing one, and refusing what ZFS would refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from pve_zfsbackup.model import Bookmark, Dataset, Guid, Listing, Snapshot, Step, Volume, World

_Kind = TypeVar("_Kind", Snapshot, Bookmark, Snapshot | Bookmark)


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
    listing: Listing = world[host]
    return {**world, host: replace(listing, volumes={**listing.volumes, volume.name: volume})}


def names_of(volume: Volume) -> set[str]:
    return {snapshot.name for snapshot in volume.snapshots}


def newest(volume: Volume) -> Snapshot | None:
    return max(volume.snapshots, key=age, default=None)


def next_txg(listing: Listing, name: Dataset) -> int:
    pool = name.partition("/")[0]
    volumes = (volume for volume in listing.volumes.values() if volume.name.partition("/")[0] == pool)
    found = (item.createtxg for volume in volumes for item in volume.snapshots + volume.bookmarks)
    return max(found, default=0) + 1


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
