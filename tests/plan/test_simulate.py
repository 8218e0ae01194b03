"""A policy lived through: what is kept after a day, a week, a month and a year."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from pve_zfsbackup.model import Keep
from pve_zfsbackup.plan.archive import DAY, ArchivePolicy
from pve_zfsbackup.plan.retention import marks
from pve_zfsbackup.plan.simulate import Future, simulate, simulate_box

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2026, 11, 26, 3, 7, tzinfo=BERLIN)
HOUR = 3600
BOX = ArchivePolicy(every=DAY, full_days=30, full_increments=30, full_percent=100)


def counts(future: Future) -> dict[int, int]:
    return {look.days: look.points for look in future.looks}


def test_the_default_policy_over_a_year() -> None:
    future = simulate([Keep(hourly=24, daily=7, weekly=4, monthly=12)], start=START, every=HOUR, days=365)
    assert counts(future) == {1: 24, 7: 30, 30: 34, 365: 46}
    # Twelve months, but a month's last daily point went before the month's rule could take it: the last of its Sundays.
    months = [creation for creation, why in future.kept if why.startswith("keep-monthly")]
    assert len(months) == 11
    assert {datetime.fromtimestamp(creation, BERLIN).strftime("%a %H:%M") for creation in months} == {"Sun 23:07"}
    assert len(future.last_day) == 24
    assert future.most == 46 + 24
    assert [creation for creation, _ in future.kept] == sorted({creation for creation, _ in future.kept})


def test_what_stays_at_the_end_is_what_pruning_again_would_leave() -> None:
    keep = Keep(last=2, hourly=5, daily=3, weekly=2, monthly=3, yearly=1)
    future = simulate([keep], start=START, every=HOUR, days=200)
    points = [creation for creation, _ in future.kept]
    assert all(marks(points, keep, BERLIN))


@pytest.mark.parametrize("keep", [Keep(), Keep(last=5000)])
def test_what_keeps_everything_counts_everything(keep: Keep) -> None:
    future = simulate([keep], start=START.astimezone(UTC), every=HOUR, days=100)
    assert counts(future) == {1: 25, 7: 169, 30: 721, 100: 2401}
    assert future.most == len(future.kept) == 2401
    assert future.looks[-1].age == 100 * DAY


def test_what_one_of_several_jobs_keeps_stays() -> None:
    few, many = Keep(last=3), Keep(daily=5)
    both = simulate([few, many], start=START, every=6 * HOUR, days=60)
    assert {c for c, _ in simulate([many], start=START, every=6 * HOUR, days=60).kept} <= {c for c, _ in both.kept}
    assert counts(both)[60] == 6


def test_the_newest_point_stays_whatever_the_rule_says() -> None:
    """The first point of a day already covered takes no slot of `daily`, and is the newest."""
    future = simulate([Keep(yearly=1)], start=START, every=HOUR, days=3)
    assert future.kept[-1][0] == future.end


def test_points_that_come_seldom_leave_days_without_any() -> None:
    future = simulate([Keep(daily=3)], start=START, every=72 * HOUR, days=30)
    assert counts(future) == {1: 1, 7: 3, 30: 3}
    assert future.last_day == (future.end,)


def test_days_are_those_of_the_clock_on_the_wall() -> None:
    """Summer time begins on 28 March 2027: that day has 23 hours, and the count is made at 03:07 all the same."""
    future = simulate([Keep(hourly=48)], start=datetime(2027, 3, 26, 3, 7, tzinfo=BERLIN), every=HOUR, days=3)
    assert datetime.fromtimestamp(future.end, BERLIN).strftime("%d %H:%M") == "29 03:07"
    assert len(future.kept) == 48


def test_a_box_keeps_what_kept_increments_build_on() -> None:
    keep = Keep(daily=7, monthly=3)
    future = simulate_box(keep, BOX, start=START, every=HOUR, days=120)
    rules = [why for _, why in future.kept if why.startswith("keep-")]
    parents = [why for _, why in future.kept if "builds on it" in why and not why.startswith("keep-")]
    assert len(rules) >= 9
    assert parents
    assert len(future.kept) == len(rules) + len(parents)
    assert counts(future)[1] == 2


def test_a_box_takes_a_point_no_sooner_than_it_is_due() -> None:
    policy = ArchivePolicy(every=36 * HOUR, full_days=30, full_increments=2, full_percent=100)
    future = simulate_box(Keep(last=100), policy, start=START, every=24 * HOUR, days=10)
    points = [creation for creation, _ in future.kept]
    assert {after - before for before, after in itertools.pairwise(points)} == {48 * HOUR}
