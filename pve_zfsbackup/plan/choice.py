"""Which of a guest's points is meant: the newest, the one of a time or a name; and which one a failover takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from itertools import takewhile

from pve_zfsbackup.model import SNAPSHOT_NAME, Conflict, Point
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.model.proof import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The point a failover takes. `passed` are newer ones, newest first, that a drill on this host found wrong;
    `proven` is the newest that passed one and is not newer than `point`: the same, an older one, or None."""

    point: Point
    passed: tuple[Point, ...] = ()
    proven: Point | None = None


def named(at: str) -> bool:
    """Whether it is a point's name (`100/2026…`, or its stamp), and no time."""
    return SNAPSHOT_NAME.match(f"pzb:{at.rpartition('/')[2]}") is not None


def choose_point(points: Sequence[Point], at: str, zone: tzinfo, *, now: float) -> Point | Conflict:
    """The newest complete point, the newest not after a time, or the one that is named (`100/2026…`, or its stamp). One
    from the future is not the newest while there are others: a clock was wrong, and what was made since has more."""
    complete = [point for point in points if point.complete]
    if not at:
        found = [point for point in complete if point.creation <= now + SKEW] or complete
    elif named(at):
        found = [point for point in complete if at in (point.id, point.stamp)]
        if not found and any(at in (point.id, point.stamp) for point in points):
            lacking = next(point for point in points if at in (point.id, point.stamp))
            gone = tuple(sorted(lacking.disks.keys() - lacking.snapshots.keys()))
            message = f"point {at} is not complete here: {', '.join(gone)} missing"
            return Conflict(kind="incomplete", object=at, message=message, resolve="try --from another host")
    else:
        try:
            moment = datetime.fromisoformat(at)
        except ValueError:
            hint = "a point as `list` shows it, or a time such as 2026-11-26T14:00"
            return Conflict(kind="not-understood", object=at, message=f"{at!r} is no point and no time", resolve=hint)
        limit = (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
        found = [point for point in complete if point.creation <= limit]
    if not found:
        return Conflict(kind="no-point", object=at or "newest", message="there is no such point", resolve="see `list`")
    return max(found, key=_order)


def choose_sound(points: Sequence[Point], at: str, zone: tzinfo, *, now: float) -> Choice | Conflict:
    """As `choose_point`, but no point that a drill found wrong, unless it is named: nobody looks into a disk on the day
    of a disaster. One that no drill has opened is taken before an older proven one: it has more of the data."""
    newest = choose_point(points, at, zone, now=now)
    if isinstance(newest, Conflict):
        return newest
    upto = sorted((p for p in points if p.complete and _order(p) <= _order(newest)), key=_order, reverse=True)
    passed = () if at in (newest.id, newest.stamp) else tuple(takewhile(_known_bad, upto))
    if len(passed) == len(upto):
        return Conflict(
            kind="known-bad",
            object=newest.id,
            message="every point that could be taken failed its last drill",
            evidence=tuple(point.id for point in passed),
            resolve=f"see what is wrong with them (`verify drill`); --at {newest.id} takes it all the same",
        )
    proven = next((point for point in upto[len(passed) :] if point.proof and point.proof.level.drilled), None)
    return Choice(point=upto[len(passed)], passed=passed, proven=proven)


def _known_bad(point: Point) -> bool:
    return point.proof is not None and point.proof.level is Level.FAILED


def _order(point: Point) -> tuple[int, str]:
    return point.creation, point.stamp
