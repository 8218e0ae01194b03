"""Compression on the wire: for plain streams of disks that ZFS did not compress, over links known to be slow."""

from __future__ import annotations

import pytest

from pve_zfsbackup.model import Compress
from pve_zfsbackup.plan.wire import (
    ENOUGH,
    GAIN,
    KEPT,
    LONG,
    SLOW,
    believed,
    gain,
    gained,
    gains,
    measured_rate,
    plan_wire,
    remembered,
)

MIB = 1 << 20


@pytest.mark.parametrize(
    ("limit", "measured", "packs", "why"),
    [
        (0, 0, False, "no run has seen yet"),
        (0, SLOW, False, "64.0 MiB a second are the most that runs of a month brought there"),
        (0, SLOW - 1, True, "runs of a month"),
        (20 * MIB, 0, True, "20.0 MiB a second are the most that may go there now"),
        (20 * MIB, 2 * MIB, True, "2.0 MiB a second are the most that runs"),
        (2 * MIB, 200 * MIB, True, "may go there now"),
        (200 * MIB, 0, False, "200.0 MiB a second"),
    ],
)
def test_the_slower_of_limit_and_link_decides(limit: int, measured: int, packs: bool, why: str) -> None:
    wire = plan_wire(Compress.AUTO, limit=limit, measured=measured)
    assert wire.packs() is packs
    assert why in wire.why
    assert wire.told(raw=False).startswith("compressed on the wire: " if packs else "as it is on the wire: ")
    assert not wire.packs(1.05), "what ZFS compressed is never worth it"


def test_what_somebody_chose_holds_whatever_the_link() -> None:
    for measured in (0, MIB, 1000 * MIB):
        assert plan_wire(Compress.ZSTD, measured=measured).packs(3.0)
        assert not plan_wire(Compress.OFF, measured=measured).packs()
    assert plan_wire(Compress.OFF).told(raw=False) == "as it is on the wire: `compress` is off"
    assert plan_wire(Compress.ZSTD).told(raw=True) == "as it is on the wire: it is encrypted"
    slow = plan_wire(Compress.AUTO, limit=MIB)
    assert slow.told(raw=False, ratio=1.8) == "as it is on the wire: ZFS compressed it to 1/1.80"


@pytest.mark.parametrize(
    ("moved", "seconds", "rate"),
    [
        (63 * MIB, 60.0, 0),  # says nothing: hardly anything was sent
        (640 * MIB, 9.9, 640 * MIB * 10 // 99),
        (64 * MIB, 9.9, 0),  # begins and ends of sessions take as long
        (64 * MIB, 10.0, 64 * MIB // 10),
        (64 * MIB, 0.0, 64 * MIB * 1000),
    ],
)
def test_little_says_nothing_of_a_link(moved: int, seconds: float, rate: int) -> None:
    assert measured_rate(moved, seconds) == pytest.approx(rate, rel=1e-6)


def test_the_best_of_a_month_is_believed() -> None:
    first = remembered({}, 5, 1000.0)
    assert believed(first, 1000.0) == 5
    assert remembered(first, 4, 2000.0) == first
    assert believed(remembered(first, 6, 2000.0), 2000.0) == 6
    assert believed(first, 1000.0 + KEPT) == 5
    assert believed(first, 1001.0 + KEPT) == 0
    assert believed(remembered(first, 4, 1001.0 + KEPT), 1001.0 + KEPT) == 4
    assert believed(first, 999.0) == 0, "the clock was set back"


@pytest.mark.parametrize("memory", [{}, {"rate": "5", "at": 1}, {"rate": 5}, {"rate": -5, "at": 1}, {"at": 1}])
def test_what_is_not_understood_is_not_known(memory: dict[str, object]) -> None:
    assert believed(memory, 1.0) == 0


def test_a_buffer_pays_where_a_tenth_of_the_time_would_be_saved() -> None:
    assert gain(ENOUGH, 20.0, 5.0) == 0.25
    assert gain(ENOUGH - 1, 20.0, 5.0) is None
    assert gain(ENOUGH, LONG - 1, 5.0) is None
    assert gains(gained({}, GAIN, 1000.0), 1000.0)
    assert not gains(gained({}, GAIN - 0.01, 1000.0), 1000.0)


def test_what_is_known_of_a_buffer_holds_for_a_month_beside_the_speed() -> None:
    known = gained(remembered({}, 5, 1000.0), 0.5, 2000.0)
    assert (believed(known, 2000.0), gains(known, 2000.0 + KEPT)) == (5, True)
    assert not gains(known, 2001.0 + KEPT)
    assert not gains(known, 1999.0), "of the future"
    assert gains(remembered(known, 9, 3000.0), 3000.0), "another speed says nothing of it"
    for odd in ({}, {"gain": "0.5", "gain-at": 1}, {"gain": 0.5}, {"gain": None, "gain-at": 1}):
        assert not gains(odd, 2000.0)
