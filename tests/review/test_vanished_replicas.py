"""A target that lost its replicas does not get new ones without a word."""

from __future__ import annotations

from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.events import Outcome
from tests.fakes.world import CT, DB, WEB, World, assert_replicated


def test_replicas_that_are_gone_are_sent_in_full_and_missed(world: World) -> None:
    assert not world.results(world.run(), Outcome.WARNING)
    for name in sorted(set(world.target.datasets) - {"tank"}):
        del world.target.datasets[name]
    world.write()
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    warned = world.results(report, Outcome.WARNING)
    assert {result.vmid for result in warned} == {WEB, DB, CT}
    assert all("has no replica of" in result.message for result in warned)
    assert_replicated(world)
    world.write()
    assert not world.results(world.run(), Outcome.WARNING)
