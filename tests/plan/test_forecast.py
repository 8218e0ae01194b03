"""When is it full? Told only where there is reason to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pve_zfsbackup.model import Dataset
from pve_zfsbackup.model.room import Room
from pve_zfsbackup.plan.forecast import DAY, outlook

GIB = 1 << 30


def rooms(available: Sequence[float], *, host: str = "backup1", start: float = 1000 * DAY) -> list[Room]:
    """One a day, GiB."""
    return [
        Room(host=host, dataset=Dataset("tank"), used=0, available=int(gib * GIB), at=start + day * DAY)
        for day, gib in enumerate(available)
    ]


def days(available: Sequence[float]) -> float | None:
    *before, now = rooms(available)
    return outlook(now, before).days


def test_what_fills_evenly_is_full_when_it_looks_so() -> None:
    *before, now = rooms([100, 90, 80, 70, 60, 50])
    found = outlook(now, before)
    assert (found.known, found.days, found.per_day) == (True, 5.0, 10 * GIB)


@pytest.mark.parametrize("series", [[50] * 10, [10, 20, 30, 40, 50, 60], [100, 100 - 1e-3] * 5])
def test_what_does_not_fill_has_no_day(series: list[float]) -> None:
    assert days(series) is None


def test_little_history_is_no_history() -> None:
    *before, now = rooms([100, 50, 20, 10])
    assert (outlook(now, before).known, outlook(now, before).days) == (False, None)
    many = [r for hour in range(48) for r in rooms([100 - hour], start=1000 * DAY + hour * 3600)]
    assert not outlook(many[-1], many[:-1]).known, "two days, seen often, are two days"


def test_one_great_event_turns_nothing_over() -> None:
    even = [100 - day for day in range(20)]
    assert days(even) == 81
    freed = [gib + (30 if day >= 16 else 0) for day, gib in enumerate(even)]
    told = days(freed)
    assert told is not None
    assert 100 < told < 130, "the day 30 GiB were freed is not the trend"


def test_what_is_pruned_once_a_week_is_no_end_and_no_beginning() -> None:
    told = days([1000 - 10 * day + 56 * (day // 7) for day in range(28)])  # 2 GiB a day in the end
    assert told is not None
    assert 300 < told < 700


def test_another_root_has_nothing_to_say() -> None:
    *before, now = rooms([100, 90, 80, 70, 60, 50])
    assert outlook(now, rooms([5] * 30, host="other")).known is False
    assert outlook(now, [*before, *rooms([5] * 30, host="other")]).days == 5.0


def test_the_order_of_lines_does_not_matter() -> None:
    *before, now = rooms([100, 90, 80, 70, 60, 50])
    assert outlook(now, reversed(before)).days == 5.0
