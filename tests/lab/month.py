"""A month of cron's runs, scaled down: when what is called, what is broken meanwhile, and what must be told. Pure.

Two runs a day instead of one an hour, retention once a day. The target is away for 17 days: as long as it takes to
hear of it by every step of the ladder (three times in a row, then after 1, 2, 4, 8 days). Later the node itself is off
for two days, which only a dead man's switch can tell. Every call comes a little later in its day than the one before,
as cron's splay has it: what is due "after a day" must not hang on a second.

Nothing of this can be had with faketime: creation times are ZFS' own, from the kernel's clock, and retention, ages and
the order of points go by them. In the lab the clocks of both hosts are moved (test_month.py), with the fakes theirs
(tests/app/test_month.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from itertools import pairwise

from pve_zfsbackup.model import Keep
from pve_zfsbackup.plan.retention import marks

HOUR, DAY = 3600, 86_400
DAYS = 31
AWAY = (4 * DAY, 21 * DAY)  # the target does not answer
OFF = (25 * DAY, 27 * DAY)  # the node does not run
RUN, PRUNE = ("snapshot", "replicate", "archive"), ("prune",)  # as the package's lines for cron have them
KEEP, TARGET_KEEP = Keep(last=2, daily=7, weekly=3), Keep(daily=14, weekly=4)
GRACE = 7 * HOUR  # of the dead man's switch, after the twelve hours until the next run


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One line of cron: when, in seconds since the month began, and with which stages."""

    at: int
    stages: tuple[str, ...]

    @property
    def away(self) -> bool:
        return AWAY[0] <= self.at < AWAY[1]

    @property
    def snapshots(self) -> bool:
        return self.stages == RUN


def keep_text(keep: Keep) -> str:
    """As the configuration has it."""
    counts = {"last": keep.last, "daily": keep.daily, "weekly": keep.weekly}
    return "{" + ", ".join(f"keep-{name}: {count}" for name, count in counts.items() if count) + "}"


def calls() -> list[Call]:
    """All of the month, in order; none while the node is off."""
    runs = [Call(at=number * (DAY // 2 + 120), stages=RUN) for number in range(2 * DAYS)]
    prunes = [Call(at=6 * HOUR + number * (DAY + 240), stages=PRUNE) for number in range(DAYS)]
    return sorted((c for c in runs + prunes if not OFF[0] <= c.at < OFF[1]), key=lambda call: call.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One thing that was told: of which stage, whether it is over, and when."""

    stage: str
    over: bool
    at: int


def told(mails: Iterable[tuple[int, str]]) -> list[Told]:
    """What stands in mails (when it came, its text): a paragraph for each problem and each recovery."""
    found = []
    for at, text in mails:
        for stage, _, rest in re.findall(r"^(\w[\w-]*)(, target backup1)?: (.+)$", text, re.MULTILINE):
            if stage in (*RUN, *PRUNE):
                found.append(Told(stage=stage, over=rest.startswith("well again"), at=at))
    return found


def expected() -> Iterator[tuple[Told, str]]:
    """Everything that must be told, and why; nothing else may be."""
    why = ("the first failure", "the second in a row", "the third in a row", "a day later", "two days after that",
           "four days after that", "eight days after that")  # fmt: skip
    for stage, found in (("replicate", (0, 1, 2, 4, 8, 16, 32)), ("prune", (0, 1, 2, 3, 5, 9))):
        own = [call for call in calls() if stage in call.stages]
        failing = [call for call in own if call.away]
        for number, reason in zip(found, why, strict=False):
            yield Told(stage=stage, over=False, at=failing[number].at), reason
        back = next(call for call in own if call.at > failing[-1].at)
        yield Told(stage=stage, over=True, at=back.at), "the target answers again"


def call_of(at: int, tolerance: int = 20 * 60) -> Call:
    """The call during which something happened: one takes seconds, in the lab up to minutes."""
    begun = [call for call in calls() if call.at <= at]
    assert begun, f"{at}: before the month"
    assert at - begun[-1].at < tolerance, f"{at}: at no call"
    return begun[-1]


def explained(mails: Iterable[tuple[int, str]]) -> list[str]:
    """A line for each thing that was told, with the reason. Fails for anything else, and for what was not told."""
    found = [Told(stage=one.stage, over=one.over, at=call_of(one.at).at) for one in told(mails)]
    due = sorted(expected(), key=lambda pair: pair[0].at)
    assert sorted(found, key=lambda one: one.at) == [one for one, _ in due]
    words = {False: "fails", True: "is well again"}
    return [f"day {one.at / DAY:5.2f}: {one.stage} {words[one.over]}: {why}" for one, why in due]


def silences(pings: Sequence[int]) -> list[tuple[int, int]]:
    """When a dead man's switch that waits for a run every twelve hours would have alarmed: from, until."""
    limit = DAY // 2 + GRACE
    return [(one + limit, two) for one, two in pairwise(pings) if two - one > limit]


def bases() -> tuple[int, int]:
    """The last point that reached the target before it was away, and the first after it."""
    own = [call for call in calls() if call.snapshots]
    away = [number for number, call in enumerate(own) if call.away]
    return own[away[0] - 1].at, own[away[-1] + 1].at


def survivors(start: int, zone: tzinfo) -> tuple[list[int], list[int]]:
    """The points that must be left at the end, here and on the target, by the calls that made them."""
    here: list[int] = []
    there: list[int] = []
    for call in calls():
        if call.snapshots:
            here.append(call.at)
            if not call.away:
                there += [at for at in here if at > max(there, default=-1)]
            continue
        common = max(set(here) & set(there))  # the base of the next increment stays, whatever the rules say
        here = _kept(here, KEEP, start, zone, {common})
        if not call.away:
            there = _kept(there, TARGET_KEEP, start, zone, {max(there)})
    return here, there


def _kept(times: Sequence[int], keep: Keep, start: int, zone: tzinfo, also: Collection[int]) -> list[int]:
    rules = marks([start + at for at in times], keep, zone)
    return [at for at, rule in zip(times, rules, strict=True) if rule or at in also]
