"""What a policy would keep as time goes by: points come regularly, and once a day those that no rule keeps go.

Pruning day by day is not the same as pruning once at the end: what is gone cannot be kept later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pve_zfsbackup.model import Keep, PointId, Vmid
from pve_zfsbackup.model.archive import Archived
from pve_zfsbackup.plan.archive import ArchivePolicy, full_because, plan_expiry
from pve_zfsbackup.plan.retention import marks

LOOKS: Final = (1, 7, 30, 365)  # days after which is counted
_FULL_BYTES: Final = 1 << 40  # of an archive beside which increments are nothing: their sizes cannot be foretold

Kept = tuple[tuple[int, str], ...]  # creation of each point, oldest first, and what keeps it
Prune = Callable[[Sequence[int], int], Kept]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is there right after pruning, `days` after the first point. `age` of the oldest in seconds."""

    days: int
    points: int
    age: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Future:
    """A policy as it would work out. `most` points were there at once; `kept` is what is there at the end."""

    looks: tuple[Look, ...]
    most: int
    kept: Kept
    end: int

    @property
    def last_day(self) -> tuple[int, ...]:
        """Creation of the points kept of the last 24 hours."""
        return tuple(creation for creation, _ in self.kept if creation > self.end - 86_400)


def simulate(keep: Sequence[Keep], *, start: datetime, every: int, days: int) -> Future:
    """Points every so many seconds from `start` on, pruned at its time of day, for `days` days.

    `start` has a zone, whose days and weeks count. `keep` are the policies of all jobs: what one keeps stays.
    """
    tz = start.tzinfo
    assert tz is not None, "a time without a zone has no days"

    def prune(points: Sequence[int], _: int) -> Kept:
        told = [marks(points, rule, tz) for rule in keep]
        reasons = ["; ".join(dict.fromkeys(filter(None, words))) for words in zip(*told, strict=True)]
        reasons[-1] = reasons[-1] or "newest complete point"
        return tuple((point, why) for point, why in zip(points, reasons, strict=True) if why)

    ends = _days(start, days)
    if any(rule.everything for rule in keep):  # nothing goes: it is enough to count
        ends = (look for look in ends if look[0] in LOOKS or look[0] == days)
    return _live(prune, ends, start=start, every=every, days=days)


def simulate_box(keep: Keep, policy: ArchivePolicy, *, start: datetime, every: int, days: int) -> Future:
    """The same for archives of points that come every so many seconds, each chain read back when it is there."""
    tz = start.tzinfo
    assert tz is not None, "a time without a zone has no days"
    known: dict[int, Archived] = {}

    def prune(points: Sequence[int], now: int) -> Kept:
        there = [known[point] for point in points if point in known]
        for point in (point for point in points if point not in known):
            known[point] = _archived(point, there, policy)
            there.append(known[point])
        proven = frozenset(archived.generation for archived in there)
        verdicts = plan_expiry(there, keep, proven, tz=tz, now=now)
        return tuple((verdict.archived.creation, "; ".join(verdict.reasons)) for verdict in verdicts if verdict.keep)

    spacing = max(every, -(-int(policy.every) // every) * every)  # the first point that is old enough
    return _live(prune, _days(start, days), start=start, every=spacing, days=days)


def _archived(creation: int, there: Sequence[Archived], policy: ArchivePolicy) -> Archived:
    newest = there[-1] if there else None
    full = bool(full_because(creation, newest, there, policy, frozenset()))
    return Archived(
        point=PointId(str(creation)),
        vmid=Vmid(0),
        creation=creation,
        consistency="",
        series="",
        generation=str(creation) if full or newest is None else newest.generation,
        name=str(creation),
        sequence=creation,
        parent="" if full or newest is None else newest.name,
        bytes=_FULL_BYTES if full else 0,
    )


def _live(prune: Prune, ends: Iterable[tuple[int, int]], *, start: datetime, every: int, days: int) -> Future:
    first = end = int(start.timestamp())
    kept: Kept = ()
    looks = []
    most = made = 0
    for day, end in ends:
        fresh = range(first + made * every, end + 1, every)
        made += len(fresh)
        points = [*(creation for creation, _ in kept), *fresh]
        most = max(most, len(points))
        kept = prune(points, end)
        if day in LOOKS or day == days:
            looks.append(Look(days=day, points=len(kept), age=end - kept[0][0]))
    return Future(looks=tuple(looks), most=most, kept=kept, end=end)


def _days(start: datetime, days: int) -> Iterator[tuple[int, int]]:
    """Each day's number, and when it is pruned: at the same time of day by the clock on the wall."""
    for day in range(1, days + 1):
        yield day, int((start + timedelta(days=day)).timestamp())
