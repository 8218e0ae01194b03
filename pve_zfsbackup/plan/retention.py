"""Which points stay: Proxmox's keep rules propose, protections veto, every verdict has its reasons.

The rules mark as `prune_mark_backup_group` of pve-storage does (src/PVE/Storage.pm): rules in the order last,
hourly, daily, weekly, monthly, yearly; points newest first; a period that already has a kept point is skipped;
the newest point of a new period takes a slot, the others of that period are marked and never looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from operator import attrgetter
from typing import Final

from pve_zfsbackup.model import SOURCE, Guid, Keep, Point, PointId, Verdict

BY_AGE: Final = attrgetter("creation", "id")  # of one guest's points, whose ids differ by their stamps alone
IN_THE_MAKING: Final = 3600  # seconds: a listing may have seen a point of now before it was whole


@dataclass(frozen=True, slots=True)
class _Rule:
    """A keep rule: when two points are in the same period, and how a period is called."""

    name: str
    period: Callable[[datetime], Hashable]
    label: str = ""


# Of local time: the hour that DST repeats is one hour.
_RULES = (
    _Rule("last", lambda when: when.timestamp()),
    _Rule("hourly", lambda when: (when.year, when.month, when.day, when.hour), " %Y-%m-%d %H:00"),
    _Rule("daily", lambda when: (when.year, when.month, when.day), " %Y-%m-%d"),
    _Rule("weekly", lambda when: when.isocalendar()[:2], " %G-W%V"),
    _Rule("monthly", lambda when: (when.year, when.month), " %Y-%m"),
    _Rule("yearly", lambda when: when.year, " %Y"),
)


def marks(creations: Sequence[int], keep: Keep, tz: tzinfo) -> tuple[str, ...]:
    """For each creation time, in any order, the rule that keeps it ("keep-daily 2026-11-22"), or ""."""
    if keep.everything:
        return ("no keep rule: all are kept",) * len(creations)
    newest_first = sorted(range(len(creations)), key=lambda index: -creations[index])
    local = [(index, datetime.fromtimestamp(creations[index], tz)) for index in newest_first]
    marked: dict[int, str] = {}
    for rule in _RULES:
        count = getattr(keep, rule.name)
        if count:
            _mark(marked, local, rule, count)
    return tuple(marked.get(index, "") for index in range(len(creations)))


def _mark(marked: dict[int, str], entries: list[tuple[int, datetime]], rule: _Rule, count: int) -> None:
    covered = {rule.period(when) for index, when in entries if marked.get(index)}
    new: set[Hashable] = set()
    for index, when in entries:
        if index in marked:
            continue
        period = rule.period(when)
        if period in covered:
            continue
        if period in new:
            marked[index] = ""  # not kept, and no later rule looks at it
            continue
        if len(new) >= count:
            return
        new.add(period)
        marked[index] = f"keep-{rule.name}{when.strftime(rule.label)}"


def decide_retention(
    points: Sequence[Point],
    keep: Sequence[Keep],
    protections: Mapping[Guid, str],
    *,
    host: str,
    tz: tzinfo,
    now: int,
) -> tuple[Verdict, ...]:
    """A verdict for each point of one guest on one host, oldest first.

    `keep` are the policies of all jobs that have the guest: what one of them keeps stays; none keeps all.
    `protections` say for a snapshot's guid why it must stay. Incomplete points take no slot: they stay while
    no complete one is newer; on the source the newest of them is enough, for nothing arrives there any more. A point
    whose disk was since removed from the source counts as complete.
    """
    ordered = sorted(points, key=BY_AGE)
    usable = [point for point in ordered if _usable(point)]
    reasons: dict[str, list[str]] = {point.id: [] for point in ordered}
    for rule in keep:
        for point, mark in zip(usable, marks([point.creation for point in usable], rule, tz), strict=True):
            if mark and mark not in reasons[point.id]:
                reasons[point.id].append(mark)
    complete = {point.id for point in usable}
    halves = [point for point in ordered if point.id not in complete]
    newest = usable[-1] if usable else None
    everything = any(rule.everything for rule in keep)
    ahead = bool(ordered) and ordered[-1].creation > now
    for point in ordered:
        own = reasons[point.id]
        if not keep:
            own.append("no policy for this host")
        if everything and not own:
            own.append("no keep rule: all are kept")
        if point is newest:
            own.append("newest complete point")
        if point.id not in complete and (newest is None or point.creation >= newest.creation):
            spare = host == SOURCE and newest and point.creation <= now - IN_THE_MAKING and point not in halves[-1:]
            if not spare:
                own.append("incomplete, but newer than the newest complete point")
        for snapshot in point.own.values():
            if snapshot.guid in protections:
                found = (protections.get(snapshot.guid) for _, snapshot in sorted(point.own.items()))
                own.extend(dict.fromkeys(reason for reason in found if reason))
                break
        if ahead:
            own.append("clock: the newest point is in the future, nothing is removed")
    _keep_lenders(ordered, reasons)
    return tuple(_verdict(point, host, reasons[point.id], usable=point.id in complete) for point in ordered)


def _keep_lenders(points: Sequence[Point], reasons: Mapping[str, list[str]]) -> None:
    """What a point that stays refers to stays as well, and what that one refers to."""
    if not any(point.borrowed for point in points):
        return
    owners = {snapshot.full_name: point for point in points for snapshot in point.own.values()}
    waiting = [point for point in points if reasons[point.id]]
    borrowers: dict[PointId, list[Point]] = {}
    while waiting:
        borrower = waiting.pop()
        names = {borrower.snapshots[key].full_name for key in borrower.borrowed}
        for lender in {owners[name].id: owners[name] for name in names if name in owners}.values():
            if not reasons[lender.id] and lender.id not in borrowers:
                waiting.append(lender)
            borrowers.setdefault(lender.id, []).append(borrower)
    for owner, own in borrowers.items():
        newest = max(own, key=lambda point: (point.creation, point.stamp))
        others = f" and {len(own) - 1} more" if len(own) > 1 else ""
        reasons[owner].append(f"{newest.id}{others} has a disk in common with it, unchanged")


def _usable(point: Point) -> bool:
    return point.complete or (bool(point.disks) and point.disks.keys() <= point.snapshots.keys() | point.gone)


def _verdict(point: Point, host: str, reasons: list[str], *, usable: bool) -> Verdict:
    if reasons:
        return Verdict(host=host, point=point, keep=True, reasons=tuple(reasons))
    why = "not kept by any rule" if usable else "incomplete"
    return Verdict(host=host, point=point, keep=False, reasons=(why,))
