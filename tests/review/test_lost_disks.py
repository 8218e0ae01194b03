"""A disk that should be there and is not seen is never left out silently: its history would age out behind it."""

from __future__ import annotations

from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.events import Outcome
from tests.fakes.runner import HERE
from tests.fakes.world import CT, DB, TARGET, WEB, World, assert_replicated

FAST = "fast/vm-100-disk-0"


def test_a_pool_that_is_gone_does_not_replace_whole_points_by_halves(world: World) -> None:
    for _ in range(3):
        world.write()
        world.run()
    whole = world.complete(TARGET, WEB)
    world.source.drop(FAST)
    for _ in range(5):
        world.write()
        report = world.run()
        assert report.exit_code is ExitCode.PARTIAL
        (failed,) = [result for result in world.results(report, Outcome.FAILED) if result.stage == "snapshot"]
        assert failed.vmid == WEB
        assert f"dataset {FAST} does not exist" in failed.message
    assert world.complete(TARGET, WEB) == whole
    assert all(sorted(point.disks) == ["scsi0", "scsi1"] for point in world.points(TARGET, WEB))
    assert len(world.complete(HERE, DB)) == len(world.complete(HERE, CT)) == 3


def test_who_gives_the_disk_up_says_so_and_goes_on(world: World) -> None:
    world.source.drop(FAST)
    text = world.config.read_text()
    world.config.write_text(text.replace("guests: [all]\n", "guests: [all]\n    exclude-disks: ['100:scsi1']\n"))
    assert world.run().exit_code is ExitCode.OK
    world.config.write_text(text)
    conf = world.node.etc / "qemu-server/100.conf"
    world.node.define(WEB, conf.read_text().replace("fast:vm-100-disk-0", "fast:vm-100-disk-0,backup=0"))
    assert world.run().exit_code is ExitCode.OK
    assert len(world.complete(TARGET, WEB)) == 2


def test_a_token_that_sees_no_storage_is_not_a_node_without_disks(world: World) -> None:
    world.run()
    world.node.storages.clear()
    report = world.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.FAILED
    assert {result.vmid for result in world.results(report, Outcome.FAILED)} == {WEB, DB, CT}


def test_a_disk_that_is_no_longer_attached_is_not_missed(world: World) -> None:
    conf = world.node.etc / "qemu-server/100.conf"
    world.source.drop(FAST)
    world.node.define(WEB, conf.read_text().replace("scsi1: ", "unused0: "))
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world, (DB, CT))
