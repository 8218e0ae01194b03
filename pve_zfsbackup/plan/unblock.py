"""Making way for a rollback by Proxmox: which snapshots and bookmarks of ours go, and what that costs.

Only ours, and only those newer than the snapshot Proxmox is to roll back to. What is older stays, so a target goes
on from there where both sides still have something in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pve_zfsbackup.model import (
    SOURCE,
    Bookmark,
    Conflict,
    Dataset,
    Destroy,
    DestroyBookmark,
    Guest,
    Guid,
    Listing,
    PointId,
    Snapshot,
    Step,
    Volume,
    World,
)
from pve_zfsbackup.model.proof import decode_proof
from pve_zfsbackup.plan.foreign import ours_newer, owner_of, volumes_of_guest
from pve_zfsbackup.plan.pairing import common_base, holders
from pve_zfsbackup.plan.points import bookmark_target


@dataclass(frozen=True, slots=True, kw_only=True)
class NextSend:
    """How a disk goes on to a target afterwards: from `base`, or in full when there is none. `surplus` are the
    snapshots of `replica` that the source will not know any more: they must go there before anything is received."""

    target: str
    disk: Dataset
    replica: Dataset
    base: str = ""
    surplus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NextArchive:
    """A box whose next archive has these disks in full: the bookmark it would go on from goes, and none is older."""

    box: str
    disks: tuple[Dataset, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unblock:
    """The plan. `points` are lost here, of which a drill found `proven` good; `remaining` are snapshots of others that
    still stand in Proxmox's way."""

    snapshot: str
    steps: tuple[Step, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    points: tuple[PointId, ...] = ()
    proven: frozenset[PointId] = frozenset()
    sends: tuple[NextSend, ...] = ()
    archives: tuple[NextArchive, ...] = ()
    unknown: tuple[str, ...] = ()  # targets that were not asked or did not answer
    remaining: tuple[str, ...] = ()


def plan_unblock(guest: Guest, name: str, world: World, targets: Sequence[str], boxes: Sequence[str] = ()) -> Unblock:
    """Make way for a rollback to the snapshot `name` on all volumes that have it. `world` has the source, and of
    `targets` those that answered; `boxes` are asked nothing: their bookmarks tell."""
    label = f"{guest.kind.value}/{guest.vmid}"
    volumes = volumes_of_guest(guest, world[SOURCE])
    wanted = {volume.name: next((s for s in volume.snapshots if s.name == name), None) for volume in volumes}
    goals = {dataset: snapshot for dataset, snapshot in wanted.items() if snapshot is not None}
    if not goals:
        message = f"none of the guest's disks has a snapshot {name}"
        return Unblock(snapshot=name, conflicts=(Conflict(kind="no-such-snapshot", object=label, message=message),))
    going = {volume.name: ours_newer(volume, goals[volume.name]) for volume in volumes if volume.name in goals}
    fast = tuple(s for snapshots, _ in going.values() for s in snapshots if s.userrefs or s.clones)
    if fast:
        evidence = tuple(f"{s.full_name} {'is held' if s.userrefs else 'has clones'}" for s in fast)
        hint = "release the holds or destroy the clones, then run this again"
        conflict = Conflict(
            kind="in-use", object=label, message="some of our snapshots are in use", evidence=evidence, resolve=hint
        )
        return Unblock(snapshot=name, conflicts=(conflict,))
    steps: list[Step] = [DestroyBookmark(bookmark=mark) for _, marks in going.values() for mark in marks]
    # The newest goes first: cut anywhere, what is left is a history without gaps.
    steps += (Destroy(host=SOURCE, snapshot=s) for snapshots, _ in going.values() for s in reversed(snapshots))
    return Unblock(
        snapshot=name,
        steps=tuple(steps),
        points=tuple(sorted({s.point for snapshots, _ in going.values() for s in snapshots if s.point})),
        proven=frozenset(s.point for snapshots, _ in going.values() for s in snapshots if s.point and _proven(s)),
        sends=_sends(volumes, going, world),
        archives=_archives(volumes, going, boxes),
        unknown=tuple(target for target in targets if target not in world),
        remaining=_remaining(volumes, goals),
    )


def _proven(snapshot: Snapshot) -> bool:
    proof = decode_proof(snapshot.verified)
    return proof is not None and proof.level.drilled


def _remaining(volumes: Sequence[Volume], goals: Mapping[Dataset, Snapshot]) -> tuple[str, ...]:
    """pvesr's go by themselves: Proxmox removes them at a rollback (pve-facts §c)."""
    return tuple(
        snapshot.full_name
        for volume in volumes
        if volume.name in goals
        for snapshot in volume.snapshots
        if snapshot.createtxg > goals[volume.name].createtxg
        and snapshot.point is None
        and owner_of(snapshot.name) != "pvesr"
    )


Going = tuple[tuple[Snapshot, ...], tuple[Bookmark, ...]]


def _archives(
    volumes: Sequence[Volume], going: Mapping[Dataset, Going], boxes: Sequence[str]
) -> tuple[NextArchive, ...]:
    found = []
    for box in boxes:
        full = []
        for volume in volumes:
            marks = {mark for mark in volume.bookmarks if bookmark_target(mark) == box}
            if marks and marks <= set(going.get(volume.name, ((), ()))[1]):
                full.append(volume.name)
        if full:
            found.append(NextArchive(box=box, disks=tuple(full)))
    return tuple(found)


def _sends(volumes: Sequence[Volume], going: Mapping[Dataset, Going], world: World) -> tuple[NextSend, ...]:
    found = []
    for target in sorted(world.keys() - {SOURCE}):
        there = holders(world[target])
        for volume in volumes:
            if any(going.get(volume.name, ((), ()))):
                found += _next(volume, going[volume.name], target, world[target], there)
    return tuple(found)


def _next(
    volume: Volume, going: Going, target: str, listing: Listing, there: Mapping[Guid, tuple[Dataset, ...]]
) -> list[NextSend]:
    """One for each dataset of the target that has something of the volume: a replica, and old generations of it."""
    gone = {item.guid for part in going for item in part}
    left = replace(
        volume,
        snapshots=tuple(s for s in volume.snapshots if s not in going[0]),
        bookmarks=tuple(b for b in volume.bookmarks if b not in going[1]),
    )
    names = sorted({name for guid in gone for name in there.get(guid, ())})
    found = []
    for name in names:
        replica = listing.volumes[name]
        base = common_base(left, replica)
        newest = next((s.createtxg for s in replica.snapshots if base and s.guid == base.guid), -1)
        surplus = tuple(s.full_name for s in replica.snapshots if s.createtxg > newest) if base else ()
        found.append(
            NextSend(
                target=target, disk=volume.name, replica=name, base=base.full_name if base else "", surplus=surplus
            )
        )
    return found
