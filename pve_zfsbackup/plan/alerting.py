"""Who is told what, and when: every problem soon, none of them every hour for weeks, and each recovery once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pve_zfsbackup.model.alerts import Known, Problem

DAY: Final = 86_400
AT_ONCE: Final = 3  # so many failures in a row are told as they come: the first might be overlooked
PAUSES: Final = (1, 2, 4, 8)  # days until the next telling after those, the last for ever
FORGET: Final = 60 * DAY  # nobody asked any more: the guest or target is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidings:
    """What is to be told now, and what is to be remembered then."""

    news: tuple[Known, ...] = ()
    recovered: tuple[Known, ...] = ()
    memory: Mapping[str, Known] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not self.news and not self.recovered


def tidings(memory: Mapping[str, Known], problems: Sequence[Problem], well: Iterable[str], *, now: int) -> Tidings:
    """Judge the problems of one run. `well` are the keys of what was tried and is well now.

    What was neither tried nor seen stays remembered as it is: no news is no recovery.
    """
    left = {key: known for key, known in memory.items() if now - known.seen <= FORGET}
    news: list[Known] = []
    for problem in problems:
        known = left.get(problem.key) or Known(problem=problem, since=now, seen=now)
        known = replace(known, problem=problem, seen=now)
        if _due(known, now):
            known = replace(known, told=now, tellings=known.tellings + 1)
            news.append(known)
        left[problem.key] = known
    failed = {problem.key for problem in problems}
    recovered = [left.pop(key) for key in sorted(set(well) - failed) if key in left]
    return Tidings(news=tuple(news), recovered=tuple(known for known in recovered if known.tellings), memory=left)


def _due(known: Known, now: int) -> bool:
    if known.tellings < AT_ONCE:
        return True
    pause = PAUSES[min(known.tellings - AT_ONCE, len(PAUSES) - 1)]
    # A clock that was set back must not silence an alarm for years.
    return now - known.told >= pause * DAY or now < known.told
