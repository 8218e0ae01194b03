"""A guest that is destroyed while it is sent leaves an interrupted receive on the target: told, then thrown away."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from pve_zfsbackup.app.run import Report, Stage
from pve_zfsbackup.events import Outcome, Result
from tests.fakes.runner import Fault
from tests.fakes.world import CT, REPLICAS, TARGET, World

DAY = 86_400
DISK = "rpool/data/subvol-200-disk-0"
REPLICA = REPLICAS[DISK]


@pytest.fixture
def left(world: World) -> World:
    """The container is gone, and what of it was under way lies there for an hour."""
    world.impatient()
    world.run()
    world.source.write(DISK, 4 << 20)
    world.runner.faults.append(Fault(words=("receive", REPLICA), cut=20_000))
    world.run()
    world.node.remove(CT)
    del world.source.datasets[DISK]
    world.run()
    assert world.target.datasets[REPLICA].partial
    return world


def after(world: World, days: float) -> Report:
    world.clock.now += int(days * DAY)
    return world.run(Stage.PRUNE)


def about(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.host == TARGET and result.vmid is None]


def test_it_is_told_after_two_days_and_thrown_away_after_a_week(left: World) -> None:
    kept = {snap.guid for snap in left.target.datasets[REPLICA].snaps.values()}
    assert about(after(left, 1).results) == []
    (told,) = about(after(left, 1).results)
    assert (told.outcome, REPLICA in told.message, "2 days" in told.message) == (Outcome.WARNING, True, True)
    assert f"zfs receive -A {REPLICA}" in told.hint
    assert left.target.datasets[REPLICA].partial
    (gone,) = about(after(left, 5).results)
    assert "was thrown away" in gone.message
    assert not left.target.datasets[REPLICA].partial
    assert {snap.guid for snap in left.target.datasets[REPLICA].snaps.values()} == kept, "its points stay"
    assert about(after(left, 1).results) == []


def test_one_with_which_somebody_went_on_meanwhile_stays(left: World, monkeypatch: pytest.MonkeyPatch) -> None:
    after(left, 1)
    monkeypatch.setattr("pve_zfsbackup.app.leftovers.read_resume_token", lambda host, dataset: "1-other")
    (told,) = about(after(left, 7).results)
    assert (told.outcome, "went on" in told.message) == (Outcome.SKIPPED, True)
    assert left.target.datasets[REPLICA].partial


def test_a_target_that_refuses_is_told_and_tried_again(left: World) -> None:
    after(left, 1)
    left.runner.faults.append(Fault(words=("receive", "-A"), answer=(1, f"cannot receive: {REPLICA}: dataset is busy")))
    (told,) = about(after(left, 7).results)
    assert told.outcome is Outcome.FAILED
    assert "was thrown away" in about(after(left, 0).results)[0].message


def test_an_append_only_target_does_it_itself(left: World) -> None:
    text = left.config.read_text()
    left.config.write_text(text.replace("retries: 0, keep: {keep-last: 3}", "retries: 0, append-only: true"))
    after(left, 1)
    assert about(after(left, 8).results) == []
    assert left.target.datasets[REPLICA].partial
    assert json.loads((left.place / "state" / "partials.json").read_text()) == {}
