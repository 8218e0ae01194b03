"""Which snapshots of one guest go, on the source and on the targets that answered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from pve_zfsbackup.model import (
    SOURCE,
    Bookmark,
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
from pve_zfsbackup.plan.pairing import bases, common_base, compare
from pve_zfsbackup.plan.points import bookmark_target, by_guest, points
from pve_zfsbackup.plan.retention import decide_retention

Protections = Mapping[Guid, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePolicy:
    """For one guest: the keep rules per host, those of all its jobs, and its targets that did not answer."""

    keep: Mapping[str, Sequence[Keep]]
    silent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What pruning needs to know of the whole world, found in one pass for all guests; see `survey`."""

    world: World
    points: Mapping[str, Mapping[Vmid, tuple[Point, ...]]]  # by host, oldest first
    protections: Mapping[str, Protections]  # by host

    @property
    def vmids(self) -> tuple[Vmid, ...]:
        """Every guest with a point anywhere, also those that no longer exist."""
        return tuple(sorted({vmid for guests in self.points.values() for vmid in guests}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """A verdict for every point of the guest on every host that was seen, and the steps that carry them out."""

    verdicts: tuple[Verdict, ...]
    plan: Plan


def survey(world: World) -> Survey:
    """Group the points and find what must stay, whatever the rules say. `world` always has the source."""
    found = {host: by_guest(points(listing)) for host, listing in world.items()}
    protections: dict[str, dict[Guid, str]] = {host: _own(listing) for host, listing in world.items()}
    for host in sorted(world.keys() - {SOURCE}):
        _protect_bases(world[SOURCE], world[host], host, protections)
        _protect_partial(world[host], host, protections)
    return Survey(world=world, points=found, protections=protections)


def plan_prune(vmid: Vmid, seen: Survey, policy: PrunePolicy, *, tz: tzinfo, now: int) -> PrunePlan:
    """Decide about all points of one guest. `now` are seconds since the epoch, `tz` gives days and weeks.

    Only snapshots that are part of a point are ever named; on each host the oldest go first.
    """
    verdicts: list[Verdict] = []
    steps: list[Step] = []
    for host in sorted(seen.world, key=lambda host: (host != SOURCE, host)):
        own = seen.points[host].get(vmid, ())
        protections = dict(seen.protections[host])
        if host == SOURCE:
            for volume in _volumes(own, seen.world[SOURCE]):
                protections.update(_unseen(volume, seen, policy))
        decided = decide_retention(own, policy.keep.get(host, ()), protections, host=host, tz=tz, now=now)
        verdicts += decided
        for verdict in decided:
            if not verdict.keep:
                steps += (Destroy(host=host, snapshot=snapshot) for snapshot in _sorted(verdict.point))
        if host == SOURCE:
            for volume in _volumes(own, seen.world[SOURCE]):
                steps += _stale_bookmarks(volume, protections)
    warnings = tuple(
        f"{target} did not answer: nothing is removed there, and its base stays" for target in sorted(policy.silent)
    )
    plan = Plan(steps=tuple(steps), warnings=warnings, reasons=tuple(_explain(verdicts)) or warnings or _NOTHING)
    return PrunePlan(verdicts=tuple(verdicts), plan=plan)


_NOTHING = ("the guest has no recovery point on any host",)


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


def _protect_bases(
    source: Listing, target: Listing, host: str, protections: Mapping[str, dict[Guid, str]]
) -> None:
    """The newest common snapshot of every source volume with every dataset of the target that shares one."""
    sides = compare(source, target)
    for volume in source.volumes.values():
        names = {name for base in bases(volume) for name in sides.holders.get(base.guid, ())}
        for name in names:
            base = common_base(volume, target.volumes[name])
            if base is not None:
                protections[SOURCE][base.guid] = f"base of the next send to {host}"
                protections[host][base.guid] = "base of the next send from the source"


def _protect_partial(target: Listing, host: str, protections: Mapping[str, dict[Guid, str]]) -> None:
    for volume in target.volumes.values():
        if volume.resume is not None:
            for guid in {volume.resume.to_guid, volume.resume.from_guid} - {""}:
                protections[SOURCE].setdefault(guid, f"needed by the interrupted send to {host}")
                protections[host].setdefault(guid, "base of an interrupted receive")


def _unseen(volume: Volume, seen: Survey, policy: PrunePolicy) -> dict[Guid, str]:
    """Bases on targets that did not answer, or where no replica was seen: the bookmark tells which it is."""
    there = {snapshot.guid for snapshot in volume.snapshots}
    newest = _newest_bookmarks(volume)
    found: dict[Guid, str] = {}
    for target, bookmark in newest.items():
        silent = target not in seen.world
        if silent or not any(
            seen.protections[target].get(guid, "").startswith("base of the next") for guid in there
        ):
            state = "did not answer" if silent else "shows no replica"
            found[bookmark.guid] = f"base of the next send to {target}, which {state}"
    for target in sorted(policy.silent - newest.keys()):
        reason = f"{target} did not answer and has no bookmark here: nothing is removed"
        found |= dict.fromkeys(there, reason)
    return found


def _newest_bookmarks(volume: Volume) -> dict[str, Bookmark]:
    newest: dict[str, Bookmark] = {}
    for bookmark in sorted(volume.bookmarks, key=lambda bookmark: bookmark.createtxg):
        target = bookmark_target(bookmark)
        if target is not None:
            newest[target] = bookmark
    return newest


def _stale_bookmarks(volume: Volume, protections: Protections) -> Iterator[Step]:
    """Ours, of a snapshot that is gone, with a newer one of the same target beside it: nothing needs them."""
    there = {snapshot.guid for snapshot in volume.snapshots}
    newest = _newest_bookmarks(volume)
    for bookmark in volume.bookmarks:
        target = bookmark_target(bookmark)
        if target is None or bookmark.guid in there or bookmark.guid in protections:
            continue
        if bookmark.createtxg < newest[target].createtxg:
            yield DestroyBookmark(bookmark=bookmark)


def _volumes(own: Sequence[Point], source: Listing) -> list[Volume]:
    names = {snapshot.dataset for point in own for snapshot in point.snapshots.values()}
    return [source.volumes[name] for name in sorted(names)]


def _sorted(point: Point) -> list[Snapshot]:
    return sorted(point.snapshots.values(), key=lambda snapshot: snapshot.dataset)


def _explain(verdicts: Sequence[Verdict]) -> Iterator[str]:
    kept: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        kept[verdict.host].append(verdict.keep)
    for host, decisions in kept.items():
        yield f"{host}: {sum(decisions)} of {len(decisions)} points stay"
