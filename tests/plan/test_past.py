"""Runs put together from the journal's lines."""

from __future__ import annotations

from typing import Any

import pytest

from pve_zfsbackup.plan.past import arrivals, last_of_each_stage, past_proofs, past_runs, worst_gaps


def line(run: str, minute: int, event: str, **more: Any) -> dict[str, Any]:
    return {"time": f"2026-11-24T10:{minute:02d}:00.000+00:00", "run": run, "event": event, **more}


def whole(run: str, minute: int, outcome: str = "ok", stage: str = "snapshot") -> list[dict[str, Any]]:
    return [
        line(run, minute, "start", stages=[stage]),
        line(run, minute, "result", stage=stage, outcome=outcome, vmid=100, guest="web", bytes=5, message="told"),
        line(run, minute + 1, "end", exit_code=0 if outcome == "ok" else 1, seconds=59.5),
    ]


def test_a_run_from_its_lines() -> None:
    (run,) = past_runs(whole("a", 0))
    assert (run.name, run.exit_code, run.seconds, run.bytes) == ("a", 0, 59.5, 5)
    assert run.ended == run.started + 60
    assert run.stages["snapshot"].outcomes == {"ok": 1}
    assert run.troubles == ()


def test_runs_that_overlap_are_told_apart() -> None:
    one, two = whole("a", 0), whole("b", 0, "failed")
    mixed = [text for pair in zip(one, two, strict=True) for text in pair]
    assert [(run.name, run.exit_code, len(run.troubles)) for run in past_runs(mixed)] == [("a", 0, 0), ("b", 1, 1)]


def test_a_run_without_an_end_is_not_over_and_counts_for_nothing() -> None:
    (run,) = past_runs(whole("a", 0)[:2])
    assert (run.ended, run.exit_code) == (None, None)
    assert last_of_each_stage([run]) == {}


def test_a_run_that_broke_off_did_nothing_well() -> None:
    lines = [line("a", 0, "start", stages=["snapshot", "prune"]), line("a", 2, "broken-off", error="oops")]
    runs = past_runs(lines)
    assert (runs[0].exit_code, runs[0].seconds, runs[0].broken_off) == (2, 120.0, "oops")
    assert last_of_each_stage(runs).keys() == {"snapshot", "prune"}
    assert last_of_each_stage(runs, good=True) == {}


def test_what_was_left_to_another_run_is_neither_done_nor_failed() -> None:
    lines = [
        line("a", 0, "start", stages=["snapshot", "replicate", "prune"]),
        line("a", 0, "result", stage="snapshot", outcome="ok"),
        line("a", 0, "result", stage="replicate", outcome="skipped", message="left to a later run"),
        line("a", 0, "deferred", stages=["replicate", "prune"]),
        line("a", 1, "end", exit_code=0),
    ]
    assert last_of_each_stage(past_runs(lines), good=True).keys() == {"snapshot"}


def test_the_last_good_one_is_not_the_last_one() -> None:
    runs = past_runs([*whole("a", 0), *whole("b", 10, "failed"), *whole("c", 20, stage="prune")])
    assert {stage: run.name for stage, run in last_of_each_stage(runs).items()} == {"snapshot": "b", "prune": "c"}
    assert last_of_each_stage(runs, good=True)["snapshot"].name == "a"


@pytest.mark.parametrize(
    "damaged",
    [
        {}, {"time": 5, "run": "a"}, {"time": "soon", "run": "a", "event": "end"},
        line("a", 5, "end"), line("a", 5, "end", exit_code="many"), line("a", 5, "result"),
        line("a", 5, "result", stage="snapshot", outcome="ok", bytes=[]), line("a", 5, "deferred"),
        line("a", 5, "start", stages=7), line("a", 5, "brand new"),
    ],
)  # fmt: skip
def test_a_damaged_line_spoils_nothing(damaged: dict[str, Any]) -> None:
    lines = whole("a", 0)
    (run,) = past_runs([*lines[:1], damaged, *lines[1:]])
    assert (run.exit_code, run.stages["snapshot"].outcomes["ok"]) == (0, 1)


# -- proofs, and what would have been lost


def result(minute: int, **more: Any) -> dict[str, Any]:
    return line("a", minute, "result", **{"outcome": "ok", "vmid": 100, **more})


def test_proofs_are_those_of_guests() -> None:
    lines = [
        result(5, stage="verify-points", host="backup1", outcome="failed", message="bad"),
        result(1, stage="verify-drill", point="100/x", level="files", seconds=2.5),
        result(2, stage="verify-pools", host="backup1"), result(3, stage="snapshot"),
        result(4, stage="restore", host="box1", disks=["scsi1"]),
    ]  # fmt: skip
    drill, restore, chain = past_proofs(lines)
    assert (drill.place, drill.level, drill.seconds, drill.point) == ("source", "files", 2.5, "100/x")
    assert drill.passed
    assert (restore.place, restore.whole) == ("box1", False)
    assert (chain.passed, chain.message) == (False, "bad")


def arrived(minute: int, made: int, stage: str = "replicate", **more: Any) -> dict[str, Any]:
    host = {} if stage == "snapshot" else {"host": "backup1"}
    return result(minute, stage=stage, point=f"100/20261124T10{made:02d}00Z-0001", **host, **more)


def test_the_worst_moment_is_right_before_a_point_arrives_or_now() -> None:
    base = past_runs(whole("z", 0))[0].started
    late = [arrived(2, 0), arrived(12, 10), arrived(40, 20)]
    assert worst_gaps(arrivals(late), now=base + 41 * 60) == {(100, "backup1"): 30 * 60.0}
    assert worst_gaps(arrivals(late), now=base + 59 * 60) == {(100, "backup1"): 39 * 60.0}
    assert worst_gaps(arrivals([late[0]]), now=base + 5 * 60) == {(100, "backup1"): 5 * 60.0}


def test_only_what_arrived_counts() -> None:
    lines = [
        arrived(1, 0, outcome="failed"), arrived(2, 0, outcome="skipped"), arrived(3, 0, outcome="warning"),
        arrived(4, 0, "prune"), result(5, stage="replicate", host="backup1"),
    ]  # fmt: skip
    assert arrivals(lines) == ()
    (here,) = arrivals([arrived(5, 5, "snapshot", outcome="warning")])
    assert (here.place, here.at, here.made) == ("source", here.made, here.at)


def test_a_clock_that_was_set_back_makes_no_gap_negative() -> None:
    base = past_runs(whole("z", 0))[0].started
    lines = [arrived(1, 0), arrived(59, 58)]
    assert worst_gaps(arrivals(lines), now=base - 30 * 60) == {(100, "backup1"): 0.0}
    assert worst_gaps(arrivals(lines), now=base - 86_400) == {}


@pytest.mark.parametrize(
    "damaged",
    [
        {}, {"event": "result", "stage": "replicate", "outcome": "ok"}, arrived(1, 0, time="soon"),
        {**arrived(1, 0), "point": 7}, {**arrived(1, 0), "point": "100/yesterday-0001"},
        {**arrived(1, 0), "vmid": None}, {**arrived(1, 0), "vmid": "web"}, {**arrived(1, 0), "stage": []},
        result(1, stage="verify-drill", seconds="long"), result(1, stage="verify-drill", vmid=[]),
        {"event": "result", "stage": "verify-drill", "outcome": "ok"}, {**result(1, stage=[]), "outcome": []},
        {**arrived(1, 0), "outcome": {}},
    ],
)  # fmt: skip
def test_damaged_lines_spoil_neither_proofs_nor_arrivals(damaged: dict[str, Any]) -> None:
    assert len(past_proofs([damaged, result(1, stage="verify-drill")])) == 1
    assert len(arrivals([damaged, arrived(1, 0)])) == 1
