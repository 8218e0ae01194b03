"""One guest's trouble is its own, whatever kind of trouble it is."""

from __future__ import annotations

from typing import Any

import pytest

from pve_zfsbackup.app import prune, snapshot, works
from pve_zfsbackup.app.gather import Assignment, Inventory
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import ExitCode, HostUnreachableError
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.model import Disk, Plan, Vmid
from pve_zfsbackup.plan.prune import PrunePlan
from pve_zfsbackup.plan.replication import ReplicationPolicy, Sides
from pve_zfsbackup.plan.unchanged import References
from tests.fakes.pools import Ds, Mark, Pools, Snap
from tests.fakes.reading import Reading
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import CT, DB, DISKS, REPLICAS, TARGET, WEB, World, assert_replicated


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


def test_a_bug_of_ours_in_one_snapshot_is_one_guests_trouble(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = snapshot.plan_one

    def plan_one(session: Session, found: Inventory, item: Assignment) -> Plan:
        if item.guest.vmid == WEB:
            raise ZeroDivisionError("oops")
        return real(session, found, item)

    monkeypatch.setattr(snapshot, "plan_one", plan_one)
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.vmid, failed.message) == (WEB, "internal error: ZeroDivisionError: oops")
    assert any("plan_one" in line for line in failed.details), "where it was"
    assert_replicated(world, (DB, CT))


def test_a_bug_of_ours_in_one_stream_is_one_disks_trouble(world: World) -> None:
    fault = Fault(words=("receive", REPLICAS["fast/vm-100-disk-0"]), error=ZeroDivisionError("oops"), again=True)
    world.runner.faults.append(fault)
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.stage, failed.vmid) == ("replicate", WEB)
    assert not world.runner.cancelled, "other targets have their streams still before them"
    assert_replicated(world, (DB, CT))


def test_a_bug_of_ours_in_one_plan_is_one_guests_trouble(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = works.plan_replication

    def plan(disk: Disk, sides: Sides, policy: ReplicationPolicy, spared: References) -> Plan:
        if disk.dataset == "rpool/data/vm-100-disk-0":
            raise ZeroDivisionError("oops")
        return real(disk, sides, policy, spared)

    monkeypatch.setattr(works, "plan_replication", plan)
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.stage, failed.vmid) == ("replicate", WEB)
    assert_replicated(world, (DB, CT))


def second(world: World) -> Pools:
    """A target that comes after backup1."""
    pools = world.runner.pools["backup2"] = Pools("backup2", world.clock)
    pools.pool("tank")
    world.runner.addresses["backup2.example"] = "backup2"
    text = world.config.read_text().replace("targets: [backup1]", "targets: [backup1, backup2]")
    other = "  backup2: {host: backup2.example, root: tank/backups, parallel: 1, keep: {keep-last: 3}}\njobs:\n"
    world.config.write_text(text.replace("jobs:\n", other))
    return pools


def test_a_target_that_answers_garbage_fails_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    second(world)
    real = Reading.cell

    def cell(self: Reading, dataset: Ds, part: Snap | Mark | None, column: str) -> str:
        if self.pools is world.target and column == "createtxg":
            return "\x1b]0;owned"
        return real(self, dataset, part, column)

    world.run()
    monkeypatch.setattr(Reading, "cell", cell)
    world.write()
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    failed = world.results(report, Outcome.FAILED)
    assert [(result.stage, result.host) for result in failed] == [("replicate", TARGET), ("prune", TARGET)]
    assert len(world.complete("backup2", WEB)) == 2


def no_program() -> Fault:
    """A node whose ZFS runs no channel programs: commands do it."""
    return Fault(words=("program",), host=HERE, again=True, answer=(1, "Channel program execution failed"))


def test_what_one_host_does_not_prune_the_others_do(world: World) -> None:
    second(world)
    for _ in range(3):
        world.write()
        assert world.run().exit_code is ExitCode.OK
    lost = Fault(words=("destroy",), host=TARGET, again=True, error=HostUnreachableError("connection lost"))
    busy = Fault(words=("destroy", "zfs"), host=HERE, again=True, answer=(1, "cannot destroy: dataset is busy"))
    world.runner.faults += [lost, busy, no_program()]
    world.write()
    world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    report = world.run(Stage.PRUNE)
    assert {r.host for r in world.results(report, Outcome.FAILED, WEB)} == {"", TARGET}
    assert len(world.complete("backup2", WEB)) == 3


@pytest.mark.parametrize("status", [137, -9])
def test_a_killed_listing_is_no_listing(world: World, status: int) -> None:
    """It named a root that is missing, then it was killed: what it had not come to is not gone."""
    world.run()
    told = "cannot open 'tank/backups': dataset does not exist"
    world.runner.faults.append(Fault(words=("list",), host=TARGET, again=True, answer=(status, told)))
    world.write()
    world.runner.ran.clear()
    report = world.run(Stage.REPLICATE)
    assert [r.host for r in world.results(report, Outcome.FAILED)] == [TARGET]
    assert not world.runner.zfs(TARGET, "create")


def test_a_check_of_guids_that_was_killed_destroys_nothing_and_says_so(world: World) -> None:
    for _ in range(4):
        world.write()
        world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    world.runner.faults += [Fault(words=("get", "guid"), again=True, answer=(-9, "")), no_program()]
    report = world.run(Stage.PRUNE)
    assert report.exit_code is ExitCode.FAILED
    assert len(world.complete(HERE, WEB)) == len(world.complete(TARGET, WEB)) == 4


def test_a_guest_that_nothing_can_be_decided_of_does_not_keep_the_others_from_being_pruned(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        world.write()
        world.run(Stage.SNAPSHOT)
    real = prune.plan_prune

    def broken(vmid: Vmid, *args: Any, **more: Any) -> PrunePlan:
        if vmid == DB:
            raise ValueError("year 31690708 is out of range")
        return real(vmid, *args, **more)

    monkeypatch.setattr(prune, "plan_prune", broken)
    report = world.run(Stage.PRUNE)
    (told,) = world.results(report, Outcome.FAILED)
    assert (told.vmid, "31690708" in told.message) == (DB, True)
    assert (len(world.complete(HERE, DB)), len(world.complete(HERE, WEB))) == (4, 3)


def test_a_point_of_a_time_that_no_calendar_has_stops_the_pruning_of_its_guest_alone(world: World) -> None:
    """A target may say anything of its snapshots."""
    for _ in range(4):
        world.write()
        world.run()
    for name in (REPLICAS[disk] for disk in DISKS if "101" in disk):
        for snap in world.target.datasets[name].snaps.values():
            snap.creation = 10**15
    for _ in range(2):
        world.write()
        report = world.run()
        assert not world.results(report, Outcome.FAILED)
    assert any("from the future" in result.message for result in world.results(report, Outcome.WARNING))
    assert len(world.complete(TARGET, DB)) > 3
    assert (len(world.complete(TARGET, WEB)), len(world.complete(HERE, DB))) == (3, 3)
