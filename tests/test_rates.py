"""Rates by hour and day, and the pace that keeps them."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from pve_zfsbackup.host.pace import LARGEST, SMALLEST, Pace
from pve_zfsbackup.model import RateRule, parse_rate, parse_rate_rule, rate_at

MIB = 1 << 20
# 2026-11-23 is a Monday
MONDAY, SATURDAY, SUNDAY = 23, 28, 29


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize(("text", "rate"), [("0", 0), ("1K", 1024), ("20M", 20 * MIB), ("1G", 1 << 30), ("5000", 5000)])
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "20m", "20MB", "-1", "1.5M", "1023", "20 M", "M", "9" * 13, "２0M"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="bytes per second"):
        parse_rate(text)


@pytest.mark.parametrize(
    "text",
    ["", "08:00-18:00", "08:00-18:00 20M", "8:00-18:00: 20M", "08:60-18:00: 20M", "08:00-24:01: 20M", "24:00-08:00: 1M",
     "08:00-08:00: 20M", "mon-fry 08:00-18:00: 20M", "Mon 08:00-18:00: 20M", "mon-fri08:00-18:00: 20M",
     "08:00-18:00: 20T", "08:00-18:00: 5", "mon-tue-wed 08:00-18:00: 1M"],
)  # fmt: skip
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_rate_rule(text)


def test_the_first_rule_that_fits_counts() -> None:
    rules = [parse_rate_rule(text) for text in ("mon-fri 08:00-18:00: 20M", "08:00-20:00: 50M", "22:00-06:00: 0")]
    told = {
        at(MONDAY, 7, 59): 1, at(MONDAY, 8): 20 * MIB, at(MONDAY, 17, 59): 20 * MIB, at(MONDAY, 18): 50 * MIB,
        at(SATURDAY, 9): 50 * MIB, at(SATURDAY, 20): 1, at(SATURDAY, 22): 0, at(SUNDAY, 5, 59): 0, at(SUNDAY, 6): 1,
    }  # fmt: skip
    assert {when: rate_at(rules, 1, when) for when in told} == told


def test_over_midnight_the_day_is_that_of_the_beginning() -> None:
    rule = parse_rate_rule("sun 22:00-06:00: 1M")
    assert rule == RateRule(days=frozenset({6}), start=1320, end=360, rate=MIB)
    assert [rule.holds(when) for when in (at(SUNDAY, 5), at(SUNDAY, 23), at(MONDAY, 5), at(MONDAY, 23))] == [
        False, True, True, False,
    ]  # fmt: skip


def test_days_may_go_over_the_end_of_the_week() -> None:
    assert parse_rate_rule("sat-mon 00:00-24:00: 1M").days == {5, 6, 0}
    assert parse_rate_rule("wed 00:00-24:00: 1M").days == {2}


class Hand:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_waits_add_up_to_the_rate_for_all_together() -> None:
    hand = Hand()
    pace = Pace(lambda: 1000, hand)
    assert pace.wait(500) == 0.5
    assert pace.wait(500) == 1.0, "another stream of the same target"
    hand.now += 10
    assert pace.wait(100) == pytest.approx(0.1), "what was not used is not saved up"


def test_a_rate_may_change_and_end() -> None:
    hand, rate = Hand(), [1000]
    pace = Pace(lambda: rate[0], hand)
    assert pace.wait(100) == pytest.approx(0.1)
    rate[0] = 100
    assert pace.wait(100) == pytest.approx(1.1)
    rate[0] = 0
    assert pace.wait(1 << 30) == 0.0
    assert pace.piece() == LARGEST


@pytest.mark.parametrize(("rate", "piece"), [(0, LARGEST), (1 << 40, LARGEST), (1024, SMALLEST), (10 * MIB, MIB)])
def test_a_piece_takes_a_tenth_of_a_second(rate: int, piece: int) -> None:
    assert Pace(lambda: rate).piece() == piece
