"""What history costs, and what pruning would free: known, or said to be unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pve_zfsbackup.app.cost import history_costs
from pve_zfsbackup.app.gather import Scope, assign, inventory
from pve_zfsbackup.app.history import between, history
from pve_zfsbackup.app.prune import freed, plan_all
from pve_zfsbackup.model import SOURCE, parse_selector
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import TARGET, WEB, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, keep="{keep-last: 9}")
    for _ in range(4):
        made.run()
        made.write()
    made.runner.ran.clear()
    return made


def test_all_points_of_a_guest_together_one_process_for_each_dataset(world: World) -> None:
    with world.session() as session:
        found = history(session, Scope(guests=(parse_selector(str(WEB)),)))
        told = {cost.host: cost for cost in history_costs(session, found)}
    assert {host: (len(cost.points), cost.reason) for host, cost in told.items()} == {SOURCE: (4, ""), TARGET: (4, "")}
    assert all(cost.freed for cost in told.values())
    asked = [ran.argv for ran in world.runner.ran if "destroy" in ran.argv]
    assert len(asked) == 4, "two disks, here and there"
    assert not world.runner.changes


def test_a_range_is_what_lies_between(world: World) -> None:
    with world.session() as session:
        found = history(session, Scope(guests=(parse_selector(str(WEB)),)), only=SOURCE)
        points = found.points[SOURCE][WEB]
        part = between(found, points[1].creation, points[2].creation)
        (cost,) = history_costs(session, part)
        assert cost.points == points[1:3]
        assert history_costs(session, between(found, 0, 1)) == ()
        (whole,) = history_costs(session, found)
    assert cost.freed is not None
    assert whole.freed is not None
    assert cost.freed < whole.freed


def test_an_append_only_target_is_not_asked(world: World) -> None:
    world.config.write_text(world.config.read_text().replace("parallel: 1, keep: {keep-last: 9}", "append-only: true"))
    with world.session() as session:
        costs = history_costs(session, history(session, Scope(), only=TARGET))
        assert {cost.freed for cost in costs} == {None}
        assert {cost.reason for cost in costs} == {"append-only: it takes no destroy"}
    assert not [ran for ran in world.runner.ran if "destroy" in ran.argv]


def test_a_target_that_goes_away_meanwhile_is_unknown(world: World) -> None:
    with world.session() as session:
        found = history(session, Scope(), only=TARGET)
        world.runner.down[TARGET] = "ssh: connect to host backup1.example port 22: No route to host"
        assert {cost.freed for cost in history_costs(session, found)} == {None}


def test_what_pruning_would_free_is_exact_or_unknown(world: World) -> None:
    world.config.write_text(world.config.read_text().replace("keep-last: 9", "keep-last: 1"))
    with world.session() as session:
        found = inventory(session)
        items, _ = assign(session, found, Scope())
        work = plan_all(session, found, items)
        exact = freed(session, work)
        world.runner.faults.append(Fault(words=("destroy", "-nvp"), host=HERE, nth=2, answer=(1, "internal error")))
        assert all(exact.values())
        assert freed(session, work) == {SOURCE: None, TARGET: exact[TARGET]}
    assert not world.runner.changes
