"""What steps would make of the world: dry runs, and the simulator of the planners' tests.

As strict as ZFS: a step that real hosts would refuse raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import assert_never

from pve_zfsbackup.model import (
    SNAPSHOT_NAME,
    SOURCE,
    AbortReceive,
    Adopt,
    Bookmark,
    CreateBookmark,
    CreateParent,
    Dataset,
    Destroy,
    DestroyBookmark,
    Guid,
    Hold,
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
from pve_zfsbackup.plan.pairing import same_ivset
from pve_zfsbackup.plan.strict import (
    age,
    drafted,
    impossible,
    made_guid,
    names_of,
    newest,
    next_txg,
    present,
    require,
    volume_of,
    with_volume,
    without_volume,
)


def project(world: World, steps: Iterable[Step]) -> World:
    """The world after these steps. Raises ValueError, with the step, when one of them is impossible.

    Unknown before the fact, and made up here: guids of new snapshots and datasets, transaction groups.
    A listing counts holds without their tags, so a `Release` takes one away whosoever it was.
    """
    world = drafted(world)
    for step in steps:
        world = _apply(world, step)
    return world


def _apply(world: World, step: Step) -> World:
    match step:
        case SnapshotGuest():
            return _snapshot_guest(world, step)
        case CreateParent():
            return _create_parent(world, step)
        case Adopt():
            root = volume_of(world, step.host, step.dataset, step)
            require(not root.owner, step, "somebody's already")
            return with_volume(world, step.host, replace(root, owner=step.owner))
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
        raise impossible(step, "name and point disagree")
    taken = datetime.strptime(match[1].partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    for pool in step.pools:
        require(len({name.partition("/")[0] for name in pool}) == 1, step, "one command cannot span pools")
        txg = next_txg(world[SOURCE], pool[0])
        for name in pool:
            volume = volume_of(world, SOURCE, name, step)
            require(step.name not in names_of(volume), step, f"{name}@{step.name} exists")
            new = Snapshot(
                dataset=name,
                name=step.name,
                guid=made_guid(str(volume.guid), step.name),
                createtxg=txg,
                creation=int(taken.timestamp()),
                refer=volume.refer,
                written=volume.written,
                point=step.point,
                disks=step.disks,
                ivset=made_guid("iv", str(volume.guid), step.name) if volume.encrypted else Guid(""),
            )
            world = with_volume(world, SOURCE, replace(volume, snapshots=(*volume.snapshots, new), written=0))
    return world


def _create_parent(world: World, step: CreateParent) -> World:
    listing = world[step.host]
    require(step.dataset not in listing.volumes, step, "exists")
    new = Volume(name=step.dataset, guid=made_guid(step.host, step.dataset), type="filesystem", owner=step.owner)
    outer = any(step.dataset.startswith(f"{name}/") for name in (*listing.volumes, *listing.roots))
    roots = listing.roots if outer else listing.roots | {step.dataset}
    return with_volume({**world, step.host: replace(listing, roots=roots)}, step.host, new)


def _send(world: World, step: Send) -> World:
    source = volume_of(world, SOURCE, step.snapshot.dataset, step)
    present(source.snapshots, step.snapshot, step)
    require(step.raw == source.encrypted, step, "wrong mode")
    target = world[step.host].volumes.get(step.dataset)
    if step.base is None:
        require(not step.through, step, "a full stream has one snapshot")
        require(target is None, step, f"{step.dataset} exists")
        listing = world[step.host]
        parent = listing.volumes.get(Dataset(step.dataset.rpartition("/")[0]))
        require(parent is not None or step.dataset in listing.roots, step, "parent does not exist")
        target = Volume(
            name=step.dataset,
            guid=made_guid(step.host, step.dataset, str(step.snapshot.guid)),
            type=source.type,
            refer=source.refer,
            encrypted=step.raw or (parent is not None and parent.encrypted),
        )
        return with_volume(world, step.host, _receive(world, step, target, (step.snapshot,)))
    if target is None:
        raise impossible(step, f"{step.dataset} does not exist")
    present(source.snapshots + source.bookmarks, step.base, step)
    require(target.resume is None, step, "destination has partially received state")
    base_there = newest(target)
    require(base_there is not None and base_there.guid == step.base.guid, step, "the base is not the replica's newest")
    if step.raw and base_there is not None:
        require(same_ivset(base_there.ivset, step.base.ivset), step, "the base was not received raw")
    require(step.base.createtxg < step.snapshot.createtxg, step, "the base is not earlier")
    if step.through:
        require(isinstance(step.base, Snapshot), step, "-I takes no bookmark")
        low, high = step.base.createtxg, step.snapshot.createtxg
        between = sorted((s for s in source.snapshots if low < s.createtxg < high), key=age)
        same = [s.guid for s in between] == [s.guid for s in step.through]
        require(same, step, "-I sends everything in between")
    return with_volume(world, step.host, _receive(world, step, target, (*step.through, step.snapshot)))


def _resume(world: World, step: Resume) -> World:
    source = volume_of(world, SOURCE, step.snapshot.dataset, step)
    target = volume_of(world, step.host, step.dataset, step)
    token = target.resume
    if token is None or token.token != step.token:
        raise impossible(step, "no such token")
    present(source.snapshots, step.snapshot, step)
    require(token.to_guid == step.snapshot.guid, step, "the token is for another snapshot")
    require(token.raw == step.raw == source.encrypted, step, "wrong mode")
    base_there = newest(target)
    found = base_there.guid if base_there else Guid("")
    require(found == token.from_guid, step, "the base is not the replica's newest")
    require(
        not token.from_guid or any(base.guid == token.from_guid for base in source.snapshots + source.bookmarks),
        step,
        "the incremental source no longer exists",
    )
    done = replace(_receive(world, step, target, (step.snapshot,)), resume=None)
    return with_volume(world, step.host, replace(done, encrypted=done.encrypted or step.raw))


def _abort(world: World, step: AbortReceive) -> World:
    target = volume_of(world, step.host, step.dataset, step)
    require(target.resume is not None, step, "nothing partially received")
    if target.snapshots:
        return with_volume(world, step.host, replace(target, resume=None))
    return without_volume(world, step.host, step.dataset)


def _mark(world: World, step: Mark) -> World:
    def marked(found: Snapshot) -> Snapshot:
        mine = step.source
        kind = mine.consistency
        return replace(found, point=mine.point, disks=step.disks or mine.disks, consistency=kind, volume=step.volume)

    target = volume_of(world, step.host, step.dataset, step)
    require(step.source.point is not None, step, "the source is not part of a point")
    require(step.source.name in names_of(target), step, "not received")
    return with_volume(world, step.host, _change(target, step.source, marked, step))


def _count_hold(world: World, step: Hold | Release) -> World:
    change = 1 if isinstance(step, Hold) else -1
    target = volume_of(world, step.host, step.snapshot.dataset, step)

    def counted(found: Snapshot) -> Snapshot:
        return replace(found, userrefs=max(0, found.userrefs + change))

    return with_volume(world, step.host, _change(target, step.snapshot, counted, step))


def _bookmark(world: World, step: CreateBookmark | DestroyBookmark) -> World:
    if isinstance(step, DestroyBookmark):
        volume = volume_of(world, SOURCE, step.bookmark.dataset, step)
        require(step.bookmark in volume.bookmarks, step, "no such bookmark")
        rest = tuple(bookmark for bookmark in volume.bookmarks if bookmark != step.bookmark)
        return with_volume(world, SOURCE, replace(volume, bookmarks=rest))
    made = step.snapshot
    volume = volume_of(world, SOURCE, made.dataset, step)
    present(volume.snapshots, made, step)
    require(all(bookmark.name != step.name for bookmark in volume.bookmarks), step, "exists")
    new = Bookmark(
        dataset=made.dataset, name=step.name, guid=made.guid, createtxg=made.createtxg, creation=made.creation,
        ivset=made.ivset,
    )  # fmt: skip
    ordered = sorted((*volume.bookmarks, new), key=age)
    return with_volume(world, SOURCE, replace(volume, bookmarks=tuple(ordered)))


def _destroy(world: World, step: Destroy) -> World:
    volume = volume_of(world, step.host, step.snapshot.dataset, step)
    found = present(volume.snapshots, step.snapshot, step)
    require(found.point is not None, step, "not ours")
    require(not found.userrefs, step, "held")
    require(not found.clones, step, "has clones")
    pinned = volume.resume is not None and volume.resume.from_guid == found.guid
    require(not pinned, step, "base of an interrupted receive")
    rest = tuple(_after(found, snapshot, volume) for snapshot in volume.snapshots if snapshot != found)
    written = volume.written if any(s.createtxg > found.createtxg for s in rest) else volume.written + found.written
    return with_volume(world, step.host, replace(volume, snapshots=rest, written=written))


def _after(gone: Snapshot, snapshot: Snapshot, volume: Volume) -> Snapshot:
    """What was written into a snapshot that goes counts for the next one from then on; at most, for a part may have
    been overwritten."""
    later = min((s for s in volume.snapshots if s.createtxg > gone.createtxg), key=age, default=None)
    return replace(snapshot, written=snapshot.written + gone.written) if snapshot == later else snapshot


def _receive(world: World, step: Send | Resume, target: Volume, sent: tuple[Snapshot, ...]) -> Volume:
    txg = next_txg(world[step.host], target.name)

    def own(name: str) -> Guid:
        return made_guid("iv", target.name, name) if target.encrypted else Guid("")

    new = []
    for number, snapshot in enumerate(sent):
        require(snapshot.name not in names_of(target), step, f"{target.name}@{snapshot.name} exists")
        new.append(
            Snapshot(
                dataset=target.name,
                name=snapshot.name,
                guid=snapshot.guid,
                createtxg=txg + number,
                creation=snapshot.creation,
                refer=snapshot.refer,
                ivset=snapshot.ivset if step.raw else own(snapshot.name),
            )
        )
    return replace(target, snapshots=(*target.snapshots, *new))


def _change(volume: Volume, wanted: Snapshot, change: Callable[[Snapshot], Snapshot], step: Step) -> Volume:
    found = present(volume.snapshots, wanted, step)
    return replace(volume, snapshots=tuple(change(s) if s is found else s for s in volume.snapshots))
