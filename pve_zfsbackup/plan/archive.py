"""What of one guest goes into a box, as full or as increment, and what has had its time there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import tzinfo
from math import inf

from pve_zfsbackup.model import (
    Bookmark,
    CreateBookmark,
    DestroyBookmark,
    Guest,
    Guid,
    Keep,
    Listing,
    Point,
    Snapshot,
    Volume,
)
from pve_zfsbackup.model.archive import Archived, ArchivePlan, ArchiveStream, ArchiveTask, ArchiveVerdict, Begun
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.plan.points import bookmark_name, bookmark_target, points_of
from pve_zfsbackup.plan.retention import marks

DAY = 86_400
BEGUN_DAYS = 30  # a point that cannot be finished in that time gives way to a newer one


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePolicy:
    """When something is due and when a chain is long enough. `every` in seconds, `full_days` in days; what is from
    after `now` (seconds since the epoch) was made while a clock was wrong."""

    every: float
    full_days: int
    full_increments: int
    full_percent: int
    now: float = inf


def plan_archive(
    guest: Guest,
    source: Listing,
    there: Sequence[Archived],
    policy: ArchivePolicy,
    *,
    unusable: Set[str] = frozenset(),
    begun: Begun | None = None,
) -> ArchivePlan:
    """Whether the newest complete point of the guest is due, and on what it builds; or the one that was `begun`, while
    it is there and would build on the same: most of it may be in the box, and of a newer one nothing is.

    `there` are the guest's points in the box, `unusable` the generations nothing may be added to any more (damaged).
    Disks the jobs leave out are left out. What is from the future, here or there, was made while a clock was wrong: it
    is not waited for.
    """
    points = [point for point in points_of(source, guest.vmid) if point.complete]
    points = [point for point in points if point.creation <= policy.now + SKEW] or points
    if not points:
        return ArchivePlan(task=None, reasons=("the guest has no complete recovery point on the source",))
    newest = max(there, key=lambda archived: archived.sequence, default=None)

    def plan(wanted: Point) -> ArchivePlan:
        if reason := _not_due(wanted, newest, policy):
            return ArchivePlan(task=None, reasons=(reason,))
        return _task(guest, source, wanted, newest, full_because(wanted.creation, newest, there, policy, unusable))

    for point in points[:-1] if begun else ():
        if begun and point.id == begun.point and points[-1].creation - point.creation < BEGUN_DAYS * DAY:
            planned = plan(point)
            if planned.task and (planned.task.parent.name if planned.task.parent else "") == begun.parent:
                return replace(planned, reasons=(*planned.reasons, "goes on where an attempt before broke off"))
    return plan(points[-1])


def _task(guest: Guest, source: Listing, wanted: Point, newest: Archived | None, why: str) -> ArchivePlan:
    """The point as an increment to the newest there, or in full for this reason."""
    streams = tuple(_streams(guest, source, wanted, None if why else newest))
    if not streams:
        return ArchivePlan(task=None, reasons=(f"no protected disk is part of {wanted.id}",))
    if newest and not why and all(stream.base is None for stream in streams):
        why = "no disk has what its last archive is based on: neither snapshot nor bookmark is there"
    warnings = tuple(_warnings(newest, streams)) if not why else ()
    task = ArchiveTask(
        point=wanted.id,
        vmid=wanted.vmid,
        creation=wanted.creation,
        consistency=wanted.consistency,
        parent=None if why else newest,
        streams=streams,
    )
    told = f"full: {why}" if why or newest is None else f"increment to {newest.point}"
    return ArchivePlan(task=task, reasons=(told,), warnings=warnings)


def plan_bookmarks(
    guest: Guest, source: Listing, task: ArchiveTask, box: str
) -> tuple[tuple[CreateBookmark | DestroyBookmark, ...], tuple[DestroyBookmark, ...]]:
    """What is done before a point is sent and after it is published, so that the next base lies between.

    Those that earlier runs made for what never arrived go after: they name nothing that is in the box. Of many, those
    in the middle go before: each keeps a snapshot from being pruned, and a box may be full for long.
    """
    made: list[CreateBookmark | DestroyBookmark] = []
    stale = []
    for stream in task.streams:
        volume = source.volumes[stream.dataset]
        ours = [mark for mark in volume.bookmarks if bookmark_target(mark) == box]
        many = _many(ours, {stream.snapshot.guid, stream.base.guid if stream.base else stream.snapshot.guid})
        ours = [mark for mark in ours if mark not in many]
        made += [DestroyBookmark(bookmark=mark) for mark in many]
        name = bookmark_name(stream.snapshot, box)
        if all(mark.guid != stream.snapshot.guid for mark in ours):
            stale += [DestroyBookmark(bookmark=mark) for mark in ours if mark.name != name]
            made.append(CreateBookmark(snapshot=stream.snapshot, name=name))
        else:
            stale += [DestroyBookmark(bookmark=mark) for mark in ours if mark.guid != stream.snapshot.guid]
    return tuple(made), tuple(stale)


def _many(ours: Sequence[Bookmark], needed: Set[Guid]) -> list[Bookmark]:
    """All but the two oldest, which are of the last archive that was seen and of the first attempt since, and the
    newest."""
    ordered = sorted(ours, key=lambda mark: mark.createtxg)
    return [mark for mark in ordered[2:-1] if mark.guid not in needed]


def _not_due(wanted: Point, newest: Archived | None, policy: ArchivePolicy) -> str:
    if newest is None:
        return ""
    if newest.point == wanted.id:
        return f"nothing new: {wanted.id} is there"
    if newest.creation > policy.now + SKEW:
        return ""
    if wanted.creation <= newest.creation:
        return f"{newest.point}, which is there, is newer than {wanted.id}"
    if wanted.creation - newest.creation < policy.every:
        return f"not due: {newest.point} is there, and the next comes {policy.every / 3600:g} hours after it"
    return ""


def full_because(
    creation: int, newest: Archived | None, there: Sequence[Archived], policy: ArchivePolicy, unusable: Set[str]
) -> str:
    """Why a point of this time goes in full; empty where an increment to `newest` will do."""
    if newest is None:
        return "the first one"
    if newest.generation in unusable:
        return "the chain in the box is damaged"
    chain = [archived for archived in there if archived.generation == newest.generation]
    first = min(chain, key=lambda archived: archived.sequence)
    grown = sum(archived.bytes for archived in chain if not archived.full)
    if creation - first.creation >= policy.full_days * DAY:
        return f"the last full one is {policy.full_days} days old"
    if len(chain) - 1 >= policy.full_increments:
        return f"the chain has {policy.full_increments} increments"
    if len(chain) > 1 and grown * 100 >= first.bytes * policy.full_percent:
        return f"the increments have {policy.full_percent} % of the size of the full one"
    return ""


def _streams(guest: Guest, source: Listing, wanted: Point, parent: Archived | None) -> Iterator[ArchiveStream]:
    ours = {disk.key for disk in guest.protected_disks}
    for key, snapshot in sorted(wanted.snapshots.items()):
        if key in wanted.disks and key in ours:
            volume = source.volumes[snapshot.dataset]
            yield ArchiveStream(
                key=key,
                volid=wanted.disks[key],
                volume=volume.guid,
                dataset=volume.name,
                snapshot=snapshot,
                base=_base(volume, key, snapshot, parent),
                raw=volume.encrypted,
            )


def _base(volume: Volume, key: str, snapshot: Snapshot, parent: Archived | None) -> Snapshot | Bookmark | None:
    """What the disk's last archive ended with; the snapshot rather than its bookmark."""
    last = parent.disks.get(key) if parent else None
    if last is None or last.volume != volume.guid:
        return None
    known: tuple[Snapshot | Bookmark, ...] = (*volume.snapshots, *volume.bookmarks)
    fitting = (base for base in known if base.guid == last.guid and base.createtxg < snapshot.createtxg)
    return next(fitting, None)


def _warnings(parent: Archived | None, streams: Iterable[ArchiveStream]) -> Iterator[str]:
    for stream in streams:
        last = parent.disks.get(stream.key) if parent else None
        if stream.base is None and last is not None:
            yield f"{stream.key}: what its last archive is based on is gone, so it goes in full once more"


def plan_expiry(
    there: Sequence[Archived], keep: Keep, proven: Set[str], *, tz: tzinfo, now: int, damaged: Set[str] = frozenset()
) -> tuple[ArchiveVerdict, ...]:
    """A verdict for each point of one guest in a box, oldest first.

    What kept points build on stays. So does the newest chain, and until that is `proven` (its generation was read
    back) the newest one that is, or the one before it where none is. Points of `damaged` generations take no slot from
    the others.
    """
    ordered = sorted(there, key=lambda archived: archived.sequence)
    reasons: dict[str, list[str]] = {archived.name: [] for archived in ordered}
    for asked in (ordered, [archived for archived in ordered if archived.generation not in damaged]):
        for archived, mark in zip(asked, marks([a.creation for a in asked], keep, tz), strict=True):
            if mark and mark not in reasons[archived.name]:
                reasons[archived.name].append(mark)
    if ordered:
        reasons[ordered[-1].name].append("newest archived point")
        if ordered[-1].creation > now:
            for archived in ordered:
                reasons[archived.name].append("clock: the newest point is in the future, nothing is removed")
    generations = list(dict.fromkeys(archived.generation for archived in ordered))
    if len(generations) > 1 and generations[-1] not in proven:
        older = [generation for generation in generations if generation in proven] or generations[:-1]
        for archived in ordered:
            if archived.generation == older[-1]:
                reasons[archived.name].append("the newest chain was not read back yet")
    _keep_parents({archived.name: archived for archived in ordered}, reasons)
    return tuple(
        ArchiveVerdict(archived=a, keep=bool(reasons[a.name]), reasons=tuple(reasons[a.name]) or ("no rule keeps it",))
        for a in ordered
    )


def removals(verdicts: Sequence[ArchiveVerdict]) -> tuple[Archived, ...]:
    """Those that go, each before what it builds on."""
    going = [verdict.archived for verdict in verdicts if not verdict.keep]
    return tuple(sorted(going, key=lambda archived: -archived.sequence))


def _keep_parents(named: Mapping[str, Archived], reasons: Mapping[str, list[str]]) -> None:
    for archived in sorted(named.values(), key=lambda archived: -archived.sequence):  # a parent is always older
        if reasons[archived.name] and archived.parent in reasons:
            reasons[archived.parent].append(f"{archived.point} builds on it")
