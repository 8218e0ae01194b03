"""Which snapshots of one guest go, on the source and on the targets that answered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from operator import attrgetter
from typing import Final

from pve_zfsbackup.model import (
    SOURCE,
    Bookmark,
    Dataset,
    Destroy,
    DestroyBookmark,
    Guid,
    Keep,
    Listing,
    Plan,
    Point,
    Snapshot,
    Step,
    Verdict,
    Vmid,
    Volume,
    World,
)
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.plan.pairing import bases, common_base, holders
from pve_zfsbackup.plan.points import GuestPoints, bookmark_target, guest_points
from pve_zfsbackup.plan.proven import proven_guids
from pve_zfsbackup.plan.retention import decide_retention

SELF_PRUNED: Final = "append-only: the target prunes itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePolicy:
    """For one guest: the keep rules per host, those of all its jobs, its targets that did not answer, those
    that were not asked this time, and the append-only ones, which prune themselves."""

    keep: Mapping[str, Sequence[Keep]]
    silent: frozenset[str] = frozenset()
    unasked: frozenset[str] = frozenset()
    boxes: frozenset[str] = frozenset()
    append_only: frozenset[str] = frozenset()
    still: str = ""  # why nothing of the guest goes anywhere: its role was taken over, or a disk of it is not seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What pruning needs to know of the whole world, found in one pass for all guests; see `survey`."""

    world: World
    points: Mapping[str, GuestPoints]  # by host
    protections: Mapping[str, dict[Guid, str]]  # by host: why a snapshot must stay
    based: frozenset[tuple[Dataset, str]]  # source dataset and target that have something in common

    @property
    def vmids(self) -> tuple[Vmid, ...]:
        """Every guest with a point anywhere, also those that no longer exist."""
        return tuple(sorted({vmid for found in self.points.values() for vmid in found.vmids}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """A verdict for every point of the guest on every host that was seen, and the steps that carry them out. `ahead`:
    its newest point on one of them is from the future, so that nothing goes there until a clock is put right."""

    verdicts: tuple[Verdict, ...]
    plan: Plan
    ahead: bool = False


def survey(world: World) -> Survey:
    """Group the points and find what must stay, whatever the rules say. `world` always has the source."""
    found = {host: guest_points(listing) for host, listing in world.items()}
    protections: dict[str, dict[Guid, str]] = {host: _own(listing) for host, listing in world.items()}
    based: set[tuple[Dataset, str]] = set()
    for host in sorted(world.keys() - {SOURCE}):
        for dataset, guid in _bases(world[SOURCE], world[host]):
            based.add((dataset, host))
            _protect(protections[SOURCE], guid, f"base of the next send to {host}")
            _protect(protections[host], guid, "base of the next send from the source")
        for guid in _partial(world[host]):
            _protect(protections[SOURCE], guid, f"needed to resume the send to {host}")
            _protect(protections[host], guid, "base of an interrupted receive")
    return Survey(world=world, points=found, protections=protections, based=frozenset(based))


def plan_prune(vmid: Vmid, seen: Survey, policy: PrunePolicy, *, tz: tzinfo, now: int) -> PrunePlan:
    """Decide about all points of one guest. `now` are seconds since the epoch, `tz` gives days and weeks.

    Only snapshots that are part of a point are ever named; on each host the oldest go first.
    """
    verdicts: list[Verdict] = []
    steps: list[Step] = []
    for host in sorted(seen.world, key=lambda host: (host != SOURCE, host)):
        if policy.still:  # what it runs from and comes back to, and which points are whole, cannot be told from here
            everything = seen.points[host].of(vmid)
            verdicts += (Verdict(host=host, point=point, keep=True, reasons=(policy.still,)) for point in everything)
            continue
        own = seen.points[host].of(vmid)
        volumes = _volumes(own, seen.world[SOURCE]) if host == SOURCE else []
        protections = _of_guest(own, volumes, seen.protections[host])
        for guid, reason in proven_guids(own).items():
            _protect(protections, guid, reason)
        for guid, reason in (found for volume in volumes for found in _unseen(volume, seen, policy)):
            _protect(protections, guid, reason)
        if host in policy.append_only:
            verdicts += (Verdict(host=host, point=point, keep=True, reasons=(SELF_PRUNED,)) for point in own)
            continue
        decided = decide_retention(own, policy.keep.get(host, ()), protections, host=host, tz=tz, now=now)
        going = [verdict.point for verdict in decided if not verdict.keep]
        steps += (Destroy(host=host, snapshot=snapshot) for point in going for snapshot in _sorted(point))
        steps += (step for volume in volumes for step in _stale_bookmarks(volume, seen, protections))
        verdicts += decided
    warnings = tuple(
        f"{target} did not answer: nothing is removed there, and its base stays" for target in sorted(policy.silent)
    )
    reasons = tuple(_explain(verdicts)) or ("the guest has no recovery point on any host that was seen",)
    plan = Plan(steps=tuple(steps), warnings=warnings, reasons=reasons)
    ahead = any(verdict.point.creation > now + SKEW for verdict in verdicts)
    return PrunePlan(verdicts=tuple(verdicts), plan=plan, ahead=ahead)


def _of_guest(own: Sequence[Point], volumes: Sequence[Volume], known: Mapping[Guid, str]) -> dict[Guid, str]:
    """The part of the known protections that this guest's points and bookmarks may have."""
    snapshots = [snapshot.guid for point in own for snapshot in point.own.values() if snapshot.guid in known]
    marks = [bookmark.guid for volume in volumes for bookmark in volume.bookmarks if bookmark.guid in known]
    return {guid: known[guid] for guid in (*snapshots, *marks)}


def _own(listing: Listing) -> dict[Guid, str]:
    """What a snapshot's own state forbids."""
    found: dict[Guid, str] = {}
    for volume in listing.volumes.values():
        for snapshot in volume.snapshots:
            if snapshot.userrefs:
                found[snapshot.guid] = "held"
            elif snapshot.clones:
                found[snapshot.guid] = "has clones"
    return found


def _bases(source: Listing, target: Listing) -> Iterator[tuple[Dataset, Guid]]:
    """The newest common guid of every source volume with every dataset of the target that shares one."""
    there = holders(target)
    for volume in source.volumes.values():
        names = {name for base in bases(volume) for name in there.get(base.guid, ())}
        for name in sorted(names):
            base = common_base(volume, target.volumes[name])
            if base is not None:
                yield volume.name, base.guid


def _partial(target: Listing) -> Iterator[Guid]:
    """What interrupted receives would go on from and to."""
    for volume in target.volumes.values():
        if volume.resume is not None:
            yield from sorted({volume.resume.to_guid, volume.resume.from_guid} - {Guid("")})


def _protect(found: MutableMapping[Guid, str], guid: Guid, reason: str) -> None:
    known = found.get(guid)
    if known is None:
        found[guid] = reason
    elif reason not in known.split("; "):
        found[guid] = f"{known}; {reason}"


def _unseen(volume: Volume, seen: Survey, policy: PrunePolicy) -> Iterator[tuple[Guid, str]]:
    """What may be the base on targets that did not answer, or where no replica was seen.

    Replication makes a bookmark before it sends and destroys the old ones afterwards: the base is one of what
    lies between them. Of more than three the two oldest are of the last replica that was seen, and the others of full
    streams that did not arrive since: nothing went there in between. Nothing is known of a silent target without any.
    """
    marked = _bookmarks_by_target(volume)
    for target in sorted(marked.keys() | policy.silent | policy.unasked):
        if target in policy.silent:
            state = "did not answer"
        elif target in policy.unasked:
            state = "was not asked"
        elif target in policy.boxes:
            yield from ((mark.guid, f"base of the next archive in {target}") for mark in marked[target])
            continue
        elif target in seen.world and (volume.name, target) not in seen.based:
            state = "shows no replica"
        else:
            continue
        own = marked.get(target, [])
        spans = [own[:2], own[2:]] if len(own) > 3 else [own]
        yield from ((bookmark.guid, f"base on {target}, which {state}") for bookmark in own)
        for snapshot in volume.snapshots:
            if not own:
                yield snapshot.guid, f"{target} {state} and has no bookmark here"
            elif any(span[0].createtxg < snapshot.createtxg < span[-1].createtxg for span in spans):
                yield snapshot.guid, f"perhaps the base on {target}, which {state}"


def _bookmarks_by_target(volume: Volume) -> dict[str, list[Bookmark]]:
    """Ours, oldest first."""
    found: dict[str, list[Bookmark]] = defaultdict(list)
    for bookmark in sorted(volume.bookmarks, key=lambda bookmark: (bookmark.createtxg, bookmark.name)):
        target = bookmark_target(bookmark)
        if target is not None:
            found[target].append(bookmark)
    return dict(found)


def _stale_bookmarks(volume: Volume, seen: Survey, protections: Mapping[Guid, str]) -> Iterator[Step]:
    """Ours, of a snapshot that is gone, with a newer one of the same target beside it: nothing needs them.

    Only of targets that answered: one that did not may have gone back to an older state.
    """
    there = {snapshot.guid for snapshot in volume.snapshots}
    for target, bookmarks in sorted(_bookmarks_by_target(volume).items()):
        for bookmark in bookmarks[:-1]:
            if target in seen.world and bookmark.guid not in there and bookmark.guid not in protections:
                yield DestroyBookmark(bookmark=bookmark)


def _volumes(own: Sequence[Point], source: Listing) -> list[Volume]:
    names = {snapshot.dataset for point in own for snapshot in point.own.values()}
    return [source.volumes[name] for name in sorted(names)]


def _sorted(point: Point) -> list[Snapshot]:
    return sorted(point.own.values(), key=attrgetter("dataset"))


def _explain(verdicts: Sequence[Verdict]) -> Iterator[str]:
    kept: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        kept[verdict.host].append(verdict.keep)
    for host, decisions in kept.items():
        yield f"{host}: {sum(decisions)} of {len(decisions)} points stay"
