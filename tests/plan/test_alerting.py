"""What is told when: the first failures, then ever rarer; each recovery once."""

from __future__ import annotations

from collections.abc import Mapping

from pve_zfsbackup.model.alerts import Known, Problem
from pve_zfsbackup.plan.alerting import DAY, FORGET, Tidings, tidings

HOUR = 3600
NOW = 1_800_000_000


def problem(key: str = "replicate:100:backup1", message: str = "no route to host") -> Problem:
    return Problem(key=key, message=message)


def hours_told(hours: int, *, failing: int | None = None) -> list[int]:
    """A run each hour, failing in the first `failing` of them: the hours in which something was told."""
    memory: Mapping[str, Known] = {}
    told = []
    for hour in range(hours):
        bad = failing is None or hour < failing
        found = tidings(
            memory, [problem()] if bad else [], [] if bad else ["replicate:100:backup1"], now=NOW + hour * HOUR
        )
        memory = found.memory
        if not found.empty:
            told.append(hour)
    return told


def test_the_first_three_are_told_then_after_1_2_4_8_days_and_so_on() -> None:
    days = [0, 1, 3, 7, 15, 23, 31]
    assert hours_told(24 * 33) == [0, 1, *(2 + 24 * day for day in days)]


def test_a_recovery_is_told_once() -> None:
    assert hours_told(24 * 10, failing=2) == [0, 1, 2]
    assert hours_told(24 * 10, failing=24 * 5) == [0, 1, 2, 26, 74, 120]


def test_what_was_never_told_needs_no_recovery() -> None:
    silent = Known(problem=problem(), since=NOW, seen=NOW)
    found = tidings({"replicate:100:backup1": silent}, [], ["replicate:100:backup1"], now=NOW + HOUR)
    assert found == Tidings(memory={})


def test_no_news_is_no_recovery() -> None:
    first = tidings({}, [problem()], [], now=NOW)
    later = tidings(first.memory, [], ["replicate:101:backup1"], now=NOW + HOUR)
    assert later.empty
    assert later.memory == first.memory


def test_each_problem_has_its_own_count_and_its_newest_words() -> None:
    memory = tidings({}, [problem()], [], now=NOW).memory
    found = tidings(memory, [problem(message="disk full"), problem("snapshot:101:")], [], now=NOW + HOUR)
    assert [(known.problem.key, known.problem.message, known.tellings, known.since) for known in found.news] == [
        ("replicate:100:backup1", "disk full", 2, NOW),
        ("snapshot:101:", "no route to host", 1, NOW + HOUR),
    ]


def test_a_failure_beats_a_success_of_the_same_key() -> None:
    """One disk of a guest arrived, another did not: both are results of one key."""
    memory = tidings({}, [problem()], [], now=NOW).memory
    found = tidings(memory, [problem()], ["replicate:100:backup1"], now=NOW + HOUR)
    assert not found.recovered
    assert len(found.news) == 1


def test_a_clock_set_back_does_not_silence_an_alarm() -> None:
    known = Known(problem=problem(), since=NOW, seen=NOW, told=NOW + 3650 * DAY, tellings=5)
    assert tidings({known.problem.key: known}, [problem()], [], now=NOW).news


def test_what_nobody_tries_any_more_is_forgotten_silently() -> None:
    memory = tidings({}, [problem()], [], now=NOW).memory
    assert tidings(memory, [], [], now=NOW + FORGET + 1) == Tidings(memory={})
