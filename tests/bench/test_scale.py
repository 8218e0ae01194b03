"""The scale test measures plans that are right, and its plot shows every size."""

from __future__ import annotations

from tests.bench.scale import measure, svg


def test_a_small_world_is_planned_as_it_must_be() -> None:
    found = measure(6, 30)  # raises when the plan is not right
    assert (found["datasets"], found["snapshots"]) == (6, 180)
    assert found["peak_bytes"] >= found["listed_bytes"] > 0
    assert svg([found, {**found, "snapshots": 18_000}]).count("<circle") == 6
