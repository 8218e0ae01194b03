"""One guest's trouble is its own, whatever kind of trouble it is."""

from __future__ import annotations

from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.events import Outcome
from tests.fakes.runner import HERE
from tests.fakes.world import CT, DB, WEB, World


def test_a_firewall_file_that_cannot_be_read_is_one_guests_trouble(world: World) -> None:
    (world.node.etc / "firewall/100.fw").mkdir(parents=True)
    report = world.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.PARTIAL
    (failed,) = world.results(report, Outcome.FAILED)
    assert failed.vmid == WEB
    assert "100.fw: cannot be read" in failed.message
    assert world.complete(HERE, DB)
    assert world.complete(HERE, CT)


def test_without_a_place_for_markers_nothing_is_frozen_and_everything_snapshotted(world: World) -> None:
    (world.place / "state").mkdir()
    (world.place / "state/frozen").write_text("in the way")
    report = world.run(Stage.SNAPSHOT)
    assert [result.vmid for result in world.results(report, Outcome.WARNING)] == [WEB, DB]
    assert "marker cannot be written" in world.points(HERE, WEB)[0].consistency
    assert not any(frozen for _, frozen in world.runner.frozen_at)
    assert world.complete(HERE, CT)
