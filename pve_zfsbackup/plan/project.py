"""What steps would make of the world: dry runs, and the simulator of the planners' tests.

As strict as ZFS: a step that real hosts would refuse raises ValueError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar, assert_never

from pve_zfsbackup.model import (
    SNAPSHOT_NAME,
    SOURCE,
    AbortReceive,
    Bookmark,
    CreateBookmark,
    CreateParent,
    Dataset,
    Destroy,
    DestroyBookmark,
    Guid,
    Hold,
    Listing,
    Mark,
    Release,
    Resume,
    Send,
    Snapshot,
    SnapshotGuest,
    Step,
    Volume,
    World,
)

_Kind = TypeVar("_Kind", Snapshot, Bookmark, Snapshot | Bookmark)


def project(world: World, steps: Iterable[Step]) -> World:
    """The world after these steps. Raises ValueError, with the step, when one of them is impossible.

    Unknown before the fact, and made up here: guids of new snapshots and datasets, transaction groups.
    A listing counts holds without their tags, so a `Release` takes one away whosoever it was.
    """
    for step in steps:
        world = _apply(world, step)
    return world


def _apply(world: World, step: Step) -> World:
    match step:
        case SnapshotGuest():
            return _snapshot_guest(world, step)
        case CreateParent():
            return _create_parent(world, step)
        case Send():
            return _send(world, step)
        case Resume():
            return _resume(world, step)
        case AbortReceive():
            return _abort(world, step)
        case Mark():
            return _mark(world, step)
        case Hold() | Release():
            return _count_hold(world, step)
        case CreateBookmark() | DestroyBookmark():
            return _bookmark(world, step)
        case Destroy():
            return _destroy(world, step)
        case _:
            assert_never(step)


def _snapshot_guest(world: World, step: SnapshotGuest) -> World:
    match = SNAPSHOT_NAME.match(step.name)
    if match is None or step.point != f"{step.guest.vmid}/{match[1]}":
        raise _impossible(step, "name and point disagree")
    taken = datetime.strptime(match[1].partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    for pool in step.pools:
        _require(len({name.partition("/")[0] for name in pool}) == 1, step, "one command cannot span pools")
        txg = _next_txg(world[SOURCE], pool[0])
        for name in pool:
            volume = _volume(world, SOURCE, name, step)
            _require(step.name not in _names(volume), step, f"{name}@{step.name} exists")
            new = Snapshot(
                dataset=name,
                name=step.name,
                guid=_guid(str(volume.guid), step.name),
                createtxg=txg,
                creation=int(taken.timestamp()),
                refer=volume.refer,
                point=step.point,
                disks=step.disks,
            )
            world = _with(world, SOURCE, replace(volume, snapshots=(*volume.snapshots, new)))
    return world


def _create_parent(world: World, step: CreateParent) -> World:
    listing = world[step.host]
    _require(step.dataset not in listing.volumes, step, "exists")
    new = Volume(name=step.dataset, guid=_guid(step.host, step.dataset), type="filesystem")
    outer = any(step.dataset.startswith(f"{name}/") for name in (*listing.volumes, *listing.roots))
    roots = listing.roots if outer else listing.roots | {step.dataset}
    return _with({**world, step.host: replace(listing, roots=roots)}, step.host, new)


def _send(world: World, step: Send) -> World:
    source = _volume(world, SOURCE, step.snapshot.dataset, step)
    _present(source.snapshots, step.snapshot, step)
    _require(step.raw == source.encrypted, step, "wrong mode")
    target = world[step.host].volumes.get(step.dataset)
    if step.base is None:
        _require(not step.through, step, "a full stream has one snapshot")
        _require(target is None, step, f"{step.dataset} exists")
        listing = world[step.host]
        parent = listing.volumes.get(Dataset(step.dataset.rpartition("/")[0]))
        _require(parent is not None or step.dataset in listing.roots, step, "parent does not exist")
        target = Volume(
            name=step.dataset,
            guid=_guid(step.host, step.dataset, str(step.snapshot.guid)),
            type=source.type,
            refer=source.refer,
            encrypted=step.raw or (parent is not None and parent.encrypted),
        )
        return _with(world, step.host, _receive(world, step, target, (step.snapshot,)))
    if target is None:
        raise _impossible(step, f"{step.dataset} does not exist")
    _present(source.snapshots + source.bookmarks, step.base, step)
    _require(target.resume is None, step, "destination has partially received state")
    _require(_newest_guid(target) == step.base.guid, step, "the base is not the replica's newest")
    _require(step.base.createtxg < step.snapshot.createtxg, step, "the base is not earlier")
    if step.through:
        _require(isinstance(step.base, Snapshot), step, "-I takes no bookmark")
        low, high = step.base.createtxg, step.snapshot.createtxg
        between = sorted((s for s in source.snapshots if low < s.createtxg < high), key=_age)
        same = [s.guid for s in between] == [s.guid for s in step.through]
        _require(same, step, "-I sends everything in between")
    return _with(world, step.host, _receive(world, step, target, (*step.through, step.snapshot)))


def _resume(world: World, step: Resume) -> World:
    source = _volume(world, SOURCE, step.snapshot.dataset, step)
    target = _volume(world, step.host, step.dataset, step)
    token = target.resume
    if token is None or token.token != step.token:
        raise _impossible(step, "no such token")
    _present(source.snapshots, step.snapshot, step)
    _require(token.to_guid == step.snapshot.guid, step, "the token is for another snapshot")
    _require(token.raw == step.raw == source.encrypted, step, "wrong mode")
    _require(_newest_guid(target) == token.from_guid, step, "the base is not the replica's newest")
    _require(
        not token.from_guid or any(base.guid == token.from_guid for base in source.snapshots + source.bookmarks),
        step,
        "the incremental source no longer exists",
    )
    done = replace(_receive(world, step, target, (step.snapshot,)), resume=None)
    return _with(world, step.host, replace(done, encrypted=done.encrypted or step.raw))


def _abort(world: World, step: AbortReceive) -> World:
    target = _volume(world, step.host, step.dataset, step)
    _require(target.resume is not None, step, "nothing partially received")
    if target.snapshots:
        return _with(world, step.host, replace(target, resume=None))
    listing = world[step.host]
    volumes = {name: volume for name, volume in listing.volumes.items() if name != step.dataset}
    return {**world, step.host: replace(listing, volumes=volumes)}


def _mark(world: World, step: Mark) -> World:
    def marked(found: Snapshot) -> Snapshot:
        mine = step.source
        kind = mine.consistency
        return replace(found, point=mine.point, disks=mine.disks, consistency=kind, volume=step.volume)

    target = _volume(world, step.host, step.dataset, step)
    _require(step.source.point is not None, step, "the source is not part of a point")
    _require(step.source.name in _names(target), step, "not received")
    return _with(world, step.host, _change(target, step.source, marked, step))


def _count_hold(world: World, step: Hold | Release) -> World:
    change = 1 if isinstance(step, Hold) else -1
    target = _volume(world, step.host, step.snapshot.dataset, step)

    def counted(found: Snapshot) -> Snapshot:
        return replace(found, userrefs=max(0, found.userrefs + change))

    return _with(world, step.host, _change(target, step.snapshot, counted, step))


def _bookmark(world: World, step: CreateBookmark | DestroyBookmark) -> World:
    if isinstance(step, DestroyBookmark):
        volume = _volume(world, SOURCE, step.bookmark.dataset, step)
        _require(step.bookmark in volume.bookmarks, step, "no such bookmark")
        rest = tuple(bookmark for bookmark in volume.bookmarks if bookmark != step.bookmark)
        return _with(world, SOURCE, replace(volume, bookmarks=rest))
    made = step.snapshot
    volume = _volume(world, SOURCE, made.dataset, step)
    _present(volume.snapshots, made, step)
    _require(all(bookmark.name != step.name for bookmark in volume.bookmarks), step, "exists")
    new = Bookmark(
        dataset=made.dataset, name=step.name, guid=made.guid, createtxg=made.createtxg, creation=made.creation
    )
    ordered = sorted((*volume.bookmarks, new), key=_age)
    return _with(world, SOURCE, replace(volume, bookmarks=tuple(ordered)))


def _destroy(world: World, step: Destroy) -> World:
    volume = _volume(world, step.host, step.snapshot.dataset, step)
    found = _present(volume.snapshots, step.snapshot, step)
    _require(found.point is not None, step, "not ours")
    _require(not found.userrefs, step, "held")
    _require(not found.clones, step, "has clones")
    pinned = volume.resume is not None and volume.resume.from_guid == found.guid
    _require(not pinned, step, "base of an interrupted receive")
    rest = tuple(snapshot for snapshot in volume.snapshots if snapshot != found)
    return _with(world, step.host, replace(volume, snapshots=rest))


def _receive(world: World, step: Send | Resume, target: Volume, sent: tuple[Snapshot, ...]) -> Volume:
    txg = _next_txg(world[step.host], target.name)
    new = []
    for number, snapshot in enumerate(sent):
        _require(snapshot.name not in _names(target), step, f"{target.name}@{snapshot.name} exists")
        new.append(
            Snapshot(
                dataset=target.name,
                name=snapshot.name,
                guid=snapshot.guid,
                createtxg=txg + number,
                creation=snapshot.creation,
                refer=snapshot.refer,
            )
        )
    return replace(target, snapshots=(*target.snapshots, *new))


def _change(volume: Volume, wanted: Snapshot, change: Callable[[Snapshot], Snapshot], step: Step) -> Volume:
    found = _present(volume.snapshots, wanted, step)
    return replace(volume, snapshots=tuple(change(s) if s is found else s for s in volume.snapshots))


def _volume(world: World, host: str, name: Dataset, step: Step) -> Volume:
    volume = world[host].volumes.get(name)
    if volume is None:
        raise _impossible(step, f"{name} does not exist on {host}")
    return volume


def _present(there: Iterable[_Kind], wanted: Snapshot | Bookmark, step: Step) -> _Kind:
    for found in there:
        if (type(found), found.name, found.guid) == (type(wanted), wanted.name, wanted.guid):
            return found
    raise _impossible(step, f"{wanted.full_name} with guid {wanted.guid} does not exist")


def _with(world: World, host: str, volume: Volume) -> World:
    listing: Listing = world[host]
    return {**world, host: replace(listing, volumes={**listing.volumes, volume.name: volume})}


def _names(volume: Volume) -> set[str]:
    return {snapshot.name for snapshot in volume.snapshots}


def _newest_guid(volume: Volume) -> Guid:
    newest = max(volume.snapshots, key=_age, default=None)
    return newest.guid if newest else Guid("")


def _next_txg(listing: Listing, name: Dataset) -> int:
    pool = name.partition("/")[0]
    volumes = (volume for volume in listing.volumes.values() if volume.name.partition("/")[0] == pool)
    found = (item.createtxg for volume in volumes for item in volume.snapshots + volume.bookmarks)
    return max(found, default=0) + 1


def _guid(*parts: str) -> Guid:
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return Guid(str(int.from_bytes(digest, "big")))


def _age(item: Snapshot | Bookmark) -> tuple[int, str]:
    return item.createtxg, item.name


def _require(condition: bool, step: Step, why: str) -> None:
    if not condition:
        raise _impossible(step, why)


def _impossible(step: Step, why: str) -> ValueError:
    return ValueError(f"{why}: {step}")
