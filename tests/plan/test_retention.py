"""Proxmox's keep rules, protections and verdicts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest

from pve_zfsbackup.model import Dataset, Guid, Keep, Point, PointId, Snapshot, Verdict, Vmid
from pve_zfsbackup.plan.retention import decide_retention, marks

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [UTC, BERLIN, ZoneInfo("America/St_Johns"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Pacific/Apia")]
FAR = 9_999_999_999


def at(text: str, tz: tzinfo = UTC) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=tz).timestamp())


def point(creation: int, *, disks: str = "a", present: str = "a", gone: str = "") -> Point:
    """A point of disks named by letters; `present` are those with a snapshot here."""
    stamp = f"{datetime.fromtimestamp(creation, UTC):%Y%m%dT%H%M%SZ}-0000"
    return Point(
        id=PointId(f"100/{stamp}"),
        vmid=Vmid(100),
        creation=creation,
        consistency="quiesced",
        disks={key: f"local-zfs:vm-100-disk-{key}" for key in disks},
        snapshots={
            key: Snapshot(
                dataset=Dataset(f"rpool/data/vm-100-disk-{key}"),
                name=f"pzb:{stamp}",
                guid=Guid(f"{creation}{ord(key)}"),
                createtxg=creation,
                creation=creation,
                point=PointId(f"100/{stamp}"),
            )
            for key in present
        },
        gone=frozenset(gone),
    )


def decide(
    points: Sequence[Point],
    *keep: Keep,
    protections: Mapping[Guid, str] | None = None,
    tz: tzinfo = UTC,
    now: int = FAR,
) -> tuple[Verdict, ...]:
    return decide_retention(points, keep, protections or {}, host="source", tz=tz, now=now)


def kept(creations: Sequence[int], keep: Keep, tz: tzinfo = UTC) -> list[int]:
    return sorted(when for when, mark in zip(creations, marks(creations, keep, tz), strict=True) if mark)


def reference(creations: Sequence[int], keep: Keep, tz: tzinfo) -> list[int]:
    """The same rules, told as groups: what no earlier rule decided, by period; the newest N groups keep one each."""

    def local(when: int) -> datetime:
        return datetime.fromtimestamp(when, tz)

    rules: list[tuple[int, Callable[[int], tuple[int, ...]]]] = [
        (keep.last, lambda when: (when,)),
        (keep.hourly, lambda when: (*local(when).timetuple()[:4],)),
        (keep.daily, lambda when: (*local(when).timetuple()[:3],)),
        (keep.weekly, lambda when: local(when).isocalendar()[:2]),
        (keep.monthly, lambda when: (local(when).year, local(when).month)),
        (keep.yearly, lambda when: (local(when).year,)),
    ]
    if not any(count for count, _ in rules):
        return sorted(creations)
    keeping: list[int] = []
    dropped: list[int] = []
    for count, period in rules:
        covered = {period(when) for when in keeping}
        groups: dict[tuple[int, ...], list[int]] = {}
        for when in sorted(creations, reverse=True):
            if when not in keeping and when not in dropped and period(when) not in covered:
                groups.setdefault(period(when), []).append(when)
        for members in list(groups.values())[:count]:
            keeping.append(members[0])
            dropped += members[1:]
    return sorted(keeping)


TABLE = [
    pytest.param(
        Keep(last=2),
        ["2026-11-20 10:00", "2026-11-21 10:00", "2026-11-22 10:00"],
        ["2026-11-21 10:00", "2026-11-22 10:00"],
        id="the newest N",
    ),
    pytest.param(
        Keep(daily=2),
        ["2026-11-20 23:00", "2026-11-22 01:00", "2026-11-22 23:00"],
        ["2026-11-20 23:00", "2026-11-22 23:00"],
        id="days without a point take no slot, the newest of a day stays",
    ),
    pytest.param(
        Keep(last=1, daily=1),
        ["2026-11-21 10:00", "2026-11-22 09:00", "2026-11-22 10:00"],
        ["2026-11-21 10:00", "2026-11-22 10:00"],
        id="a day that already has a kept point does not use the daily slot",
    ),
    pytest.param(
        Keep(hourly=1, daily=1),
        ["2026-11-22 08:00", "2026-11-22 10:10", "2026-11-22 10:50"],
        ["2026-11-22 10:50"],
        id="what shares an hour with a kept one is gone for later rules too",
    ),
    pytest.param(
        Keep(daily=1, weekly=1, monthly=1, yearly=1),
        ["2024-05-05 10:00", "2025-06-01 10:00", "2026-10-01 10:00", "2026-11-14 10:00", "2026-11-22 10:00"],
        ["2025-06-01 10:00", "2026-10-01 10:00", "2026-11-14 10:00", "2026-11-22 10:00"],
        id="each rule looks before what the earlier ones kept",
    ),
    pytest.param(
        Keep(weekly=2),
        ["2026-12-27 10:00", "2026-12-28 10:00", "2027-01-03 10:00", "2027-01-04 10:00"],
        ["2027-01-03 10:00", "2027-01-04 10:00"],
        id="ISO week 53 of 2026 ends on Sunday, 3 January",
    ),
    pytest.param(
        Keep(yearly=2),
        ["2024-12-31 23:59", "2025-01-01 00:00", "2025-12-31 23:59", "2026-01-01 00:00"],
        ["2025-12-31 23:59", "2026-01-01 00:00"],
        id="years",
    ),
    pytest.param(Keep(), ["2020-01-01 00:00", "2026-01-01 00:00"], ["2020-01-01 00:00", "2026-01-01 00:00"], id="none"),
]


@pytest.mark.parametrize("tz", ZONES, ids=str)
@pytest.mark.parametrize(("keep", "creations", "expected"), TABLE)
def test_keep_rules(keep: Keep, creations: list[str], expected: list[str], tz: tzinfo) -> None:
    assert kept([at(when, tz) for when in creations], keep, tz) == [at(when, tz) for when in expected]


def test_a_day_is_a_local_day() -> None:
    creations = [at("2026-11-21 22:30"), at("2026-11-21 23:30"), at("2026-11-22 22:30")]
    assert kept(creations, Keep(daily=2), UTC) == [creations[1], creations[2]]
    assert kept(creations, Keep(daily=2), BERLIN) == [creations[0], creations[2]]  # 23:30 UTC is the 22nd there


def test_the_hour_that_dst_repeats_is_one_hour() -> None:
    # 2026-10-25: 02:30 CEST is 00:30 UTC, 02:30 CET is 01:30 UTC
    creations = [at("2026-10-24 23:30"), at("2026-10-25 00:30"), at("2026-10-25 01:30"), at("2026-10-25 02:30")]
    assert kept(creations, Keep(hourly=3), BERLIN) == [creations[0], creations[2], creations[3]]
    assert kept(creations, Keep(hourly=3), UTC) == creations[1:]


def test_the_hour_that_dst_leaves_out_takes_no_slot() -> None:
    # 2026-03-29: 02:00 CET becomes 03:00 CEST at 01:00 UTC
    creations = [at("2026-03-28 23:30") + 3600 * hour for hour in range(4)]
    assert kept(creations, Keep(hourly=3), BERLIN) == creations[1:]
    assert [marks([when], Keep(hourly=1), BERLIN)[0] for when in creations] == [
        "keep-hourly 2026-03-29 00:00",
        "keep-hourly 2026-03-29 01:00",
        "keep-hourly 2026-03-29 03:00",
        "keep-hourly 2026-03-29 04:00",
    ]


def test_a_day_of_23_or_25_hours_is_one_day() -> None:
    for first in ("2026-03-28 22:00", "2026-10-23 22:00"):
        creations = [at(first) + 3600 * hour for hour in range(73)]
        assert len(kept(creations, Keep(daily=10), BERLIN)) == len(
            {datetime.fromtimestamp(when, BERLIN).date() for when in creations}
        )


def test_marks_agree_with_the_rules_told_differently() -> None:
    chance = random.Random(7)
    start = at("2026-01-01 00:00")
    for number in range(1500):
        tz = ZONES[number % len(ZONES)]
        step = chance.choice([600, 3600, 7200, 86_400, 700_000])
        around = start + chance.randrange(400) * 86_400
        creations = list({around + step * chance.randrange(60) + chance.randrange(1800) for _ in range(25)})
        keep = Keep(**{name: chance.choice([0, 0, 1, 2, 5]) for name in ("last", "hourly", "daily", "weekly")})
        more = Keep(monthly=chance.choice([0, 1, 3]), yearly=chance.choice([0, 1, 2]), weekly=keep.weekly)
        for rules in (keep, more):
            assert kept(creations, rules, tz) == reference(creations, rules, tz)


def test_marks_agree_on_every_small_history() -> None:
    """Every subset of nine instants around a week's, a month's and a DST day's end, with every small policy."""
    texts = ["24 10:00", "25 00:30", "25 01:30", "25 02:30", "25 22:50", "25 23:10", "26 00:05", "31 22:59", "31 23:01"]
    instants = [at(f"2026-10-{text}") for text in texts]
    policies = [
        Keep(last=last, hourly=hourly, daily=daily, weekly=weekly, monthly=monthly)
        for last, hourly, daily, weekly, monthly in itertools.product([0, 1], [0, 2], [0, 1, 2], [0, 1], [0, 1])
    ]
    for size in range(5):
        for chosen in itertools.combinations(instants, size):
            for keep in policies:
                assert kept(chosen, keep, BERLIN) == reference(chosen, keep, BERLIN)


def test_verdicts_say_why() -> None:
    days = [at(f"2026-11-{day} 10:00") for day in (19, 20, 21, 22)]
    points = [point(when) for when in days]
    base = points[0].snapshots["a"].guid
    verdicts = decide(points, Keep(daily=2), protections={base: "base of the next send to backup1"})
    assert [(verdict.keep, verdict.reasons) for verdict in verdicts] == [
        (True, ("base of the next send to backup1",)),
        (False, ("not kept by any rule",)),
        (True, ("keep-daily 2026-11-21",)),
        (True, ("keep-daily 2026-11-22", "newest complete point")),
    ]
    assert {verdict.host for verdict in verdicts} == {"source"}


def test_input_order_does_not_matter() -> None:
    points = [point(at(f"2026-11-{day} {hour}:00")) for day in (19, 20) for hour in (10, 11)]
    points += [point(at("2026-11-19 12:00"), disks="ab"), point(at("2026-11-20 10:30"), disks="ab")]
    expected = decide(points, Keep(last=1, daily=2))
    for order in itertools.permutations(points):
        assert decide(order, Keep(last=1, daily=2)) == expected


def test_several_jobs_keep_what_any_of_them_keeps() -> None:
    points = [point(at(f"2026-11-{day} 10:00")) for day in (19, 20, 21, 22)]
    verdicts = decide(points, Keep(last=1), Keep(weekly=1, last=2))
    assert [verdict.keep for verdict in verdicts] == [False, False, True, True]
    assert all(verdict.keep for verdict in decide(points, Keep(last=1), Keep()))
    assert all(verdict.keep for verdict in decide(points))


def test_incomplete_points_take_no_slot_and_go_once_a_complete_one_is_newer() -> None:
    old, stale, good, fresh = (
        point(at("2026-11-20 10:00")),
        point(at("2026-11-21 10:00"), disks="ab"),
        point(at("2026-11-22 10:00")),
        point(at("2026-11-23 10:00"), disks="ab"),
    )
    verdicts = decide([old, stale, good, fresh], Keep(last=2))
    assert [verdict.keep for verdict in verdicts] == [True, False, True, True]
    assert verdicts[1].reasons == ("incomplete",)
    assert verdicts[3].reasons == ("incomplete, but newer than the newest complete point",)
    held = decide([old, stale, good, fresh], Keep(last=2), protections={stale.snapshots["a"].guid: "held"})
    assert held[1].keep


def test_of_incomplete_points_here_the_newest_is_enough() -> None:
    """What a run left that was killed between its pools, time after time."""
    good = point(at("2026-11-20 10:00"))
    half = [point(at(f"2026-11-{day} 10:00"), disks="ab") for day in (21, 22, 23)]
    verdicts = decide([good, *half], Keep(last=2))
    assert [verdict.keep for verdict in verdicts] == [True, False, False, True]
    base = decide([good, *half], Keep(last=2), protections={half[0].snapshots["a"].guid: "base"})
    assert [verdict.keep for verdict in base] == [True, True, False, True]
    young = decide([good, *half], Keep(last=2), now=at("2026-11-23 10:00"))
    assert [verdict.keep for verdict in young] == [True, False, False, True]
    young = decide([good, *half, point(at("2026-11-23 10:05"), disks="ab")], Keep(last=2), now=at("2026-11-23 10:05"))
    assert [verdict.keep for verdict in young] == [True, False, False, True, True], "perhaps only half listed"
    there = decide_retention([good, *half], [Keep(last=2)], {}, host="backup1", tz=BERLIN, now=at("2026-12-01 10:00"))
    assert all(verdict.keep for verdict in there), "there they may be on their way, disk by disk"


def test_with_nothing_complete_nothing_goes() -> None:
    points = [point(at(f"2026-11-{day} 10:00"), disks="ab") for day in (19, 20, 21)]
    assert all(verdict.keep for verdict in decide(points, Keep(last=1)))


def test_a_removed_disk_does_not_make_history_incomplete() -> None:
    points = [point(at(f"2026-11-{day} 10:00"), disks="ab", gone="b") for day in (19, 20, 21)]
    verdicts = decide([*points, point(at("2026-11-22 10:00"))], Keep(last=3))
    assert [verdict.keep for verdict in verdicts] == [False, True, True, True]


def test_a_clock_before_the_newest_point_removes_nothing() -> None:
    points = [point(at(f"2026-11-{day} 10:00")) for day in (19, 20, 21)]
    verdicts = decide(points, Keep(last=1), now=at("2026-11-21 09:59"))
    assert all(verdict.keep for verdict in verdicts)
    assert all(any(reason.startswith("clock:") for reason in verdict.reasons) for verdict in verdicts)
    later = decide(points, Keep(last=1), now=at("2026-11-21 10:00"))
    assert [verdict.keep for verdict in later] == [False, False, True]


def test_no_point_no_verdict() -> None:
    assert decide([], Keep(last=1)) == ()


def test_every_verdict_has_reasons_and_the_newest_complete_point_stays() -> None:
    start = datetime(2026, 11, 20, tzinfo=UTC)
    kinds = ["a:a", "ab:a", "ab:ab", "ab:a:b"]
    for shape in itertools.product(kinds, repeat=4):
        points = []
        for hour, kind in enumerate(shape):
            disks, present, gone = [*kind.split(":"), ""][:3]
            when = int((start + timedelta(hours=hour)).timestamp())
            points.append(point(when, disks=disks, present=present, gone=gone))
        for keep in (Keep(last=1), Keep(daily=1), Keep()):
            verdicts = decide(points, keep)
            assert len(verdicts) == 4
            assert all(verdict.reasons and all(verdict.reasons) for verdict in verdicts)
            complete = [verdict for verdict in verdicts if verdict.point.complete]
            usable = [v for v in verdicts if v.point.complete or v.point.gone]
            assert not usable or usable[-1].keep
            assert verdicts[-1].keep
            assert not complete or any(v.keep for v in verdicts if v.point.complete or v.point.gone)


def borrowing(borrower: Point, lender: Point, key: str = "b") -> Point:
    return replace(
        borrower, snapshots={**borrower.snapshots, key: lender.snapshots[key]}, borrowed=borrower.borrowed | {key}
    )


def test_what_a_kept_point_borrows_from_stays_with_it() -> None:
    first, second, third, fourth = (point(1000 * n, disks="ab", present="ab" if n == 1 else "a") for n in range(1, 5))
    second, third, fourth = (borrowing(late, first) for late in (second, third, fourth))
    verdicts = decide([first, second, third, fourth], Keep(last=2))
    assert [verdict.keep for verdict in verdicts] == [True, False, True, True]
    assert verdicts[0].reasons == (f"{fourth.id} and 1 more has a disk in common with it, unchanged",)


def test_so_does_what_that_one_borrows_from() -> None:
    first, second, third = (
        point(1000 * n, disks="abc", present=present) for n, present in enumerate(("abc", "ab", "a"), 1)
    )
    second = borrowing(second, first, "c")
    third = borrowing(borrowing(third, second, "b"), first, "c")
    assert all(verdict.keep for verdict in decide([first, second, third], Keep(last=1)))
    alone = borrowing(borrowing(point(3000, disks="abc", present="a"), second, "b"), second, "c")
    assert all(verdict.keep for verdict in decide([first, second, alone], Keep(last=1)))


def test_what_protects_the_lender_protects_no_borrower() -> None:
    first, second, third = (point(1000 * n, disks="ab", present="ab" if n != 2 else "a") for n in range(1, 4))
    second = borrowing(second, first)
    verdicts = decide([first, second, third], Keep(last=1), protections={first.snapshots["b"].guid: "held"})
    assert [verdict.keep for verdict in verdicts] == [True, False, True]
