"""Whole runs on a cluster in memory: from the guests to a pruned history on both sides."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from pve_zfsbackup import app
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.run import Stage, exit_code, run
from pve_zfsbackup.errors import CommandTimeoutError, ConfigError, ExitCode, LockedError, PveError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import destroying
from pve_zfsbackup.host import journal as host_journal
from pve_zfsbackup.host.guests import unpack_config
from pve_zfsbackup.host.lock import reading, run_lock
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import Snapshot, Vmid
from tests.fakes.pools import Pools, Snap
from tests.fakes.runner import HERE, Fault, Ran
from tests.fakes.world import CONFIG, CT, DB, REPLICAS, TARGET, WEB, World, assert_replicated, assert_safe

ZVOL = "rpool/data/vm-100-disk-0"
ENCRYPTED = "rpool/crypt/vm-101-disk-0"


def test_a_first_run_protects_every_guest_on_both_sides(world: World) -> None:
    report = world.run()
    assert report.exit_code is ExitCode.OK, report.results
    assert_replicated(world)
    for vmid in (WEB, DB, CT):
        assert len(world.complete(HERE, vmid)) == len(world.complete(TARGET, vmid)) == 1
    assert set(REPLICAS.values()) <= world.target.datasets.keys()


def test_every_vm_was_frozen_for_its_snapshot_and_only_then(world: World) -> None:
    world.run(Stage.SNAPSHOT)
    frozen = {name.partition("@")[0]: vmids for name, vmids in world.runner.frozen_at}
    assert frozen == {
        ZVOL: {WEB}, "fast/vm-100-disk-0": {WEB}, ENCRYPTED: {DB}, "rpool/data/subvol-200-disk-0": frozenset(),
    }  # fmt: skip
    assert [point.consistency for point in world.points(HERE, WEB)] == ["quiesced"]
    assert [point.consistency for point in world.points(HERE, CT)] == ["crash-consistent: container: ZFS has no freeze"]
    assert_safe(world)


def test_disks_of_one_pool_are_one_command_and_each_pool_has_one(world: World) -> None:
    world.source.add("rpool/data/vm-100-disk-1", zvol=True)
    text = (world.node.etc / "qemu-server/100.conf").read_text()
    world.node.define(WEB, f"{text}scsi2: local-zfs:vm-100-disk-1,size=1G\n")
    world.run(Stage.SNAPSHOT, guests=["100"])
    snapshots = world.runner.zfs(HERE, "snapshot")
    assert [len([word for word in argv if "@" in word]) for argv in snapshots] == [1, 2]
    (point,) = world.points(HERE, WEB)
    same = [point.snapshots[key].createtxg for key in ("scsi0", "scsi2")]
    assert same[0] == same[1]


def test_the_point_carries_the_guests_configuration_and_firewall(world: World) -> None:
    (world.node.etc / "firewall").mkdir()
    (world.node.etc / "firewall/100.fw").write_text("[OPTIONS]\nenable: 1\n")
    world.run(guests=["100"])
    replica = next(iter(world.target.datasets[REPLICAS[ZVOL]].snaps.values()))
    texts = unpack_config([replica.props["pve-zfsbackup:conf"]])
    assert texts["conf"] == (world.node.etc / "qemu-server/100.conf").read_text()
    assert texts["firewall"] == "[OPTIONS]\nenable: 1\n"


def test_encrypted_disks_leave_raw_and_plain_ones_as_they_lie_on_disk(world: World) -> None:
    world.run()
    sends = [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv]
    modes = {argv[-1].partition("@")[0]: argv[2:-2] for argv in sends}
    assert modes.pop(ENCRYPTED) == ("-w",)
    assert set(modes.values()) == {("-L", "-c")}
    replica = world.target.datasets[REPLICAS[ENCRYPTED]]
    assert (replica.crypt, replica.key) == ("aes-256-gcm", False)


def test_history_goes_on_incrementally_and_is_pruned_on_both_sides(world: World) -> None:
    world.run()
    for _ in range(5):
        world.runner.ran.clear()
        world.write()
        assert world.run().exit_code is ExitCode.OK
        sends = [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv]
        assert len(sends) == 4
        assert all("-i" in argv for argv in sends)
        assert_replicated(world)
    for vmid in (WEB, DB, CT):
        assert len(world.complete(HERE, vmid)) == len(world.complete(TARGET, vmid)) == 3
    marks = [mark for dataset in world.source.datasets.values() for mark in dataset.marks]
    assert len(marks) == 4, "one bookmark per disk and target"


def test_what_goes_of_many_guests_goes_together(world: World) -> None:
    """Each command waits for the pool or for the way to the target: one guest after another would wait for each."""
    for _ in range(4):
        world.write()
        world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    world.runner.ran.clear()
    assert world.run(Stage.PRUNE).exit_code is ExitCode.OK
    for vmid in (WEB, DB, CT):
        assert len(world.complete(HERE, vmid)) == len(world.complete(TARGET, vmid)) == 3
    here = [argv[1] for argv in world.runner.zfs(HERE)]
    assert here == ["list", "program", "program"], "one for each of the two pools"
    there = [argv[1] for argv in world.runner.zfs(TARGET)]
    assert there == ["list", "get", *["destroy"] * 4]


def pruned_later(world: World) -> None:
    """Four points of each guest on either side, of which three are to stay."""
    for _ in range(4):
        world.write()
        world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    world.runner.ran.clear()


def test_a_connection_that_breaks_in_the_midst_is_the_trouble_of_nobody_whose_snapshots_can_go(world: World) -> None:
    pruned_later(world)
    fault = Fault(words=("zfs", "destroy"), host=TARGET, nth=2, answer=(255, "Connection reset by peer"))
    world.runner.faults.append(fault)
    report = world.run(Stage.PRUNE)
    assert fault.seen > 2, "it broke, and more was destroyed after it"
    assert report.exit_code is ExitCode.OK, report.results
    assert [len(world.complete(TARGET, vmid)) for vmid in (WEB, DB, CT)] == [3, 3, 3]


def test_a_target_that_went_away_is_not_asked_for_every_guest(world: World) -> None:
    pruned_later(world)
    world.runner.faults.append(Fault(words=("zfs", "get"), host=TARGET, answer=(255, "No route"), again=True))
    report = world.run(Stage.PRUNE)
    failed = world.results(report, Outcome.FAILED)
    assert [(result.vmid, result.host) for result in failed] == [(vmid, TARGET) for vmid in (WEB, DB, CT)]
    asked = [argv for argv in world.runner.zfs(TARGET) if argv[1] == "get"]
    assert len(asked) == 2, "once for all, and once for the first alone"
    assert [len(world.complete(HERE, vmid)) for vmid in (WEB, DB, CT)] == [3, 3, 3]


def test_a_restore_that_begins_while_it_is_pruned_finds_the_rest_in_place(world: World) -> None:
    """The look is taken again before each host, not once for all that goes together."""
    pruned_later(world)
    stack = contextlib.ExitStack()

    def begin(ran: Ran) -> None:
        if ran.argv[1] == "program" and not world.runner.zfs(TARGET, "get"):
            stack.enter_context(reading(world.place / "run"))

    with stack:
        world.runner.watchers.append(begin)
        report = world.run(Stage.PRUNE)
    assert [len(world.complete(HERE, vmid)) for vmid in (WEB, DB, CT)] == [3, 3, 3]
    assert [len(world.complete(TARGET, vmid)) for vmid in (WEB, DB, CT)] == [4, 4, 4]
    (left,) = [one for one in report.results if one.stage == "prune" and one.vmid is None]
    assert left.message.startswith("the rest is left to the next run")


def test_what_cannot_go_of_one_guest_is_no_other_guests_trouble(world: World) -> None:
    for _ in range(4):
        world.write()
        world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    oldest = next(iter(world.source.datasets[ENCRYPTED].snaps.values()))
    world.runner.faults.append(Fault(words=("program",), answer=(1, "no"), again=True))
    world.runner.faults.append(Fault(words=("destroy", f"{ENCRYPTED}@{oldest.name}"), answer=(1, "busy"), again=True))
    report = world.run(Stage.PRUNE)
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.vmid, failed.host) == (DB, "")
    assert f"1 snapshots could not be destroyed: {ENCRYPTED}@{oldest.name}: " in failed.message
    assert len(world.results(report, Outcome.OK)) == 2
    assert [len(world.complete(HERE, vmid)) for vmid in (WEB, DB, CT)] == [3, 4, 3]
    assert [len(world.complete(TARGET, vmid)) for vmid in (WEB, DB, CT)] == [3, 3, 3]


def test_a_bug_met_with_many_guests_is_looked_for_with_each(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        world.write()
        world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    real = destroying.destroy

    def broken(host: Host, snapshots: Sequence[Snapshot]) -> list[tuple[Snapshot, Exception]]:
        if host.name != TARGET and any(snapshot.dataset == ENCRYPTED for snapshot in snapshots):
            raise ZeroDivisionError("a bug")
        return real(host, snapshots)

    monkeypatch.setattr(destroying, "destroy", broken)
    report = world.run(Stage.PRUNE)
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.vmid, "a bug" in failed.message) == (DB, True)
    assert [len(world.complete(HERE, vmid)) for vmid in (WEB, DB, CT)] == [3, 4, 3]
    assert [len(world.complete(TARGET, vmid)) for vmid in (WEB, DB, CT)] == [3, 3, 3]


def test_snapshots_made_while_the_target_was_away_follow_in_one_stream(world: World) -> None:
    world.run()
    for _ in range(3):
        world.write()
        world.run(Stage.SNAPSHOT)
    world.runner.ran.clear()
    assert world.run(Stage.REPLICATE).exit_code is ExitCode.OK
    sends = [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv]
    assert len(sends) == 4
    assert all("-I" in argv for argv in sends)
    assert len(world.complete(TARGET, WEB)) == 4
    assert_replicated(world)


def test_a_second_replicate_lists_once_per_side_and_does_nothing_else(world: World) -> None:
    world.run()
    world.runner.ran.clear()
    world.runner.connections = 0
    report = world.run(Stage.REPLICATE)
    assert report.exit_code is ExitCode.OK
    assert {result.outcome for result in report.results} == {Outcome.SKIPPED}
    assert [argv[1] for argv in world.runner.zfs()] == ["list", "list"]
    assert len(world.runner.zfs(TARGET)) == 1
    assert world.runner.connections == 1
    assert not world.runner.changes


def test_a_disk_added_later_joins_the_next_point(world: World) -> None:
    world.run()
    world.source.add("rpool/data/vm-100-disk-5", zvol=True)
    text = (world.node.etc / "qemu-server/100.conf").read_text()
    world.node.define(WEB, f"{text}scsi5: local-zfs:vm-100-disk-5,size=1G\n")
    world.write()
    assert world.run().exit_code is ExitCode.OK
    here = world.points(TARGET, WEB)
    assert [sorted(point.disks) for point in here] == [["scsi0", "scsi1"], ["scsi0", "scsi1", "scsi5"]]
    assert all(point.complete for point in here)


# -- one guest's trouble is its own


def test_a_guest_that_cannot_be_snapshotted_does_not_stop_the_others(world: World) -> None:
    world.runner.faults.append(Fault(words=("snapshot", f"{ENCRYPTED}@pzb:20261118T120640Z-0003"), answer=(1, "io")))
    world.runner.faults[0].words = ("snapshot", "--")
    world.runner.faults[0].nth = 3  # 100 has two pools
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.stage, failed.vmid, failed.message) == ("snapshot", DB, "zfs snapshot: io")
    assert not world.points(HERE, DB)
    assert_replicated(world, (WEB, CT))


def test_a_point_without_its_second_pool_is_no_point(world: World) -> None:
    world.run()
    before = world.complete(HERE, WEB)
    world.write()
    world.runner.faults.append(Fault(words=("snapshot", "--"), nth=2, error=CommandTimeoutError("no end")))
    assert world.run(guests=["100"]).exit_code is ExitCode.FAILED, "of this guest nothing worked"
    assert world.complete(HERE, WEB) == world.complete(TARGET, WEB) == before
    assert [point.complete for point in world.points(HERE, WEB)] == [True, False]
    assert_safe(world)
    world.write()
    assert world.run(guests=["100"]).exit_code is ExitCode.OK
    assert [point.complete for point in world.points(HERE, WEB)] == [True, True], "what is incomplete goes"
    assert_replicated(world)


def test_a_pool_that_stays_full_leaves_no_half_points(world: World) -> None:
    """None of them would ever go, as long as no point is whole; and each costs what is written over."""
    world.run()
    for _ in range(3):
        world.runner.faults[:] = [Fault(words=("snapshot", "--"), nth=2, answer=(1, "out of space"))]
        assert world.run(guests=["100"]).exit_code is ExitCode.FAILED
    assert [point.complete for point in world.points(HERE, WEB)] == [True]


def test_a_locked_guest_is_left_alone_and_told(world: World) -> None:
    text = (world.node.etc / "qemu-server/101.conf").read_text()
    world.node.define(DB, f"{text}lock: migrate\n")
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.vmid, failed.stage) == (DB, "snapshot")
    assert "migrate" in failed.message
    assert_replicated(world, (WEB, CT))


def test_one_disk_that_cannot_be_sent_does_not_stop_the_others(world: World) -> None:
    replica = REPLICAS["fast/vm-100-disk-0"]
    world.runner.faults.append(Fault(words=("receive", replica), answer=(1, "cannot receive: out of space")))
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.stage, failed.vmid, failed.host) == ("replicate", WEB, TARGET)
    assert "out of space" in failed.message
    assert not world.complete(TARGET, WEB), "half a point is no point"
    assert_replicated(world, (DB, CT))
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_receive_that_lies_is_found_out(world: World) -> None:
    """It says it is done, and there is a snapshot of the right name: only the guid tells."""
    world.run()
    world.write()
    replica = REPLICAS[ZVOL]
    world.runner.faults.append(Fault(words=("receive", replica), lie=True))

    def forge(ran: Ran) -> None:
        if ran.argv[:3] == ("zfs", "send", "-L") and ZVOL in ran.argv[-1]:
            world.target.snap(f"{replica}@{ran.argv[-1].partition('@')[2]}")

    world.runner.watchers.append(forge)
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert failed.vmid == WEB
    assert f"{replica} lacks 1 snapshots that were sent, although every command succeeded" in failed.message
    forged = world.target.datasets[replica].newest
    assert forged is not None
    assert not forged.props, "it is not made part of a point"
    assert not forged.holds
    assert len(world.complete(TARGET, WEB)) == 1


def test_marks_that_did_not_arrive_are_made_up_for(world: World) -> None:
    refused = Fault(words=("set",), host=TARGET, answer=(1, "cannot set property"), again=True)
    world.runner.faults.append(refused)
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    assert not world.complete(TARGET, WEB)
    world.runner.revive()
    assert world.run(Stage.REPLICATE).exit_code is ExitCode.OK
    assert not world.runner.zfs(HERE, "send"), "what is there is not sent again"
    assert_replicated(world)


def test_an_unknown_replica_state_is_shown_and_nothing_is_forced(world: World) -> None:
    world.run()
    replica = REPLICAS[ZVOL]
    foreign: Snap = world.target.snap(f"{replica}@admin")
    world.write()
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.stage, failed.vmid) == ("replicate", WEB)
    assert f"{replica}@admin" in failed.details[0]
    assert world.target.get(f"{replica}@admin") is foreign
    assert len(world.complete(TARGET, WEB)) == 1
    assert_replicated(world, (DB, CT))


@pytest.mark.parametrize(
    ("vmid", "kind", "hint"),
    [(WEB, "qemu", "`qm guest cmd 100 fsfreeze-thaw`"), (CT, "lxc", "`lxc-unfreeze -n 200`")],
)
def test_a_guest_that_may_still_be_frozen_is_a_failure_with_what_thaws_its_kind(
    world: World, monkeypatch: pytest.MonkeyPatch, vmid: int, kind: str, hint: str
) -> None:
    monkeypatch.setattr("pve_zfsbackup.host.quiesce.THAW_WITHIN", 0)
    marker = world.place / f"state/frozen/{vmid}"
    marker.parent.mkdir(parents=True)
    marker.write_text(f"{kind} 1\n")
    world.guest(vmid).frozen = True
    world.guest(vmid).agent = "hang"
    failed = world.results(world.run(Stage.SNAPSHOT), Outcome.FAILED)[0]
    assert (failed.stage, failed.vmid, failed.message) == ("thaw", vmid, "may still be frozen by an interrupted run")
    assert hint in failed.hint


# -- the target's trouble


DOWN = "ssh: connect to host backup1.example port 22: No route to host"


def test_without_its_target_a_run_still_snapshots_and_keeps_every_base(world: World) -> None:
    world.run()
    base = world.complete(HERE, WEB)[0]
    world.runner.down[TARGET] = DOWN
    for _ in range(5):
        world.write()
        report = world.run()
        assert report.exit_code is ExitCode.PARTIAL
        failed = world.results(report, Outcome.FAILED)
        assert [(result.stage, result.host) for result in failed] == [("replicate", TARGET), ("prune", TARGET)]
        assert "No route to host" in failed[0].message
    assert base in world.complete(HERE, WEB), "the base of the next send stays, whatever the policy says"
    assert len(world.complete(HERE, WEB)) == 4
    world.runner.down.clear()
    world.runner.ran.clear()
    assert world.run().exit_code is ExitCode.OK
    sends = [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv]
    assert all("-i" in argv or "-I" in argv for argv in sends)
    assert_replicated(world)


def test_a_changed_host_key_is_refused_with_what_to_do(world: World) -> None:
    world.runner.down[TARGET] = "Host key verification failed."
    report = world.run(Stage.REPLICATE)
    assert report.exit_code is ExitCode.FAILED
    (failed,) = world.results(report, Outcome.FAILED)
    assert "known_hosts" in failed.hint


def test_a_listing_that_fails_is_never_taken_for_absence(world: World) -> None:
    world.run()
    before = sorted(world.target.datasets)
    fault = Fault(words=("list",), host=TARGET, again=True, answer=(1, "cannot open 'tank/backups': I/O error"))
    world.runner.faults.append(fault)
    world.write()
    world.runner.ran.clear()
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    assert not world.runner.zfs(HERE, "send")
    assert [argv[1] for argv in world.runner.zfs(TARGET)] == ["list", "list"]
    assert sorted(world.target.datasets) == before


def test_a_failing_listing_of_the_source_ends_the_run_before_anything(world: World) -> None:
    world.runner.faults.append(Fault(words=("list",), host=HERE, answer=(1, "internal error: out of memory")))
    with pytest.raises(Exception, match="out of memory"):
        world.run()
    assert not world.runner.changes


def test_one_silent_target_does_not_keep_the_points_from_the_other(world: World) -> None:
    world.runner.pools["backup2"] = Pools("backup2", world.clock)
    world.runner.pools["backup2"].pool("tank")
    world.runner.addresses["backup2.example"] = "backup2"
    text = world.config.read_text().replace("targets: [backup1]", "targets: [backup1, backup2]")
    other = "  backup2: {host: backup2.example, root: tank/backups, parallel: 1, keep: {keep-last: 3}}\njobs:\n"
    world.config.write_text(text.replace("jobs:\n", other))
    assert world.run().exit_code is ExitCode.OK
    (base,) = world.complete(HERE, WEB)
    world.runner.down[TARGET] = DOWN
    for _ in range(5):
        world.write()
        report = world.run()
        assert report.exit_code is ExitCode.PARTIAL
        assert {result.host for result in world.results(report, Outcome.FAILED)} == {TARGET}
    assert len(world.complete("backup2", WEB)) == 3
    assert world.complete("backup2", WEB)[-1] == world.complete(HERE, WEB)[-1]
    assert base in world.complete(HERE, WEB), "what the silent one needs stays"
    world.runner.down.clear()
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)
    assert world.complete("backup2", WEB)[-1] == world.complete(TARGET, WEB)[-1]


def test_a_connection_that_breaks_during_a_stream_is_the_targets_fault(world: World) -> None:
    lost = (255, "client_loop: send disconnect: Broken pipe")
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), answer=lost, again=True))
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.vmid, failed.host) == (WEB, TARGET)
    assert failed.message.startswith(f"{ZVOL}: target backup1: ssh to backup@backup1.example:22 failed")
    assert_replicated(world, (DB, CT))
    assert world.waits[-3:] == [10, 20, 40], "tried again three times without getting further, later each time"
    world.runner.revive()
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_stream_that_stalls_is_told_and_made_up_for(world: World) -> None:
    silent = Fault(words=("receive", REPLICAS[ZVOL]), error=CommandTimeoutError("no byte moved"), again=True)
    world.runner.faults.append(silent)
    report = world.run()
    assert [result.vmid for result in world.results(report, Outcome.FAILED)] == [WEB]
    assert world.waits[-3:] == [10, 20, 40]
    world.runner.revive()
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_held_snapshot_is_no_reason_to_stop_pruning_the_others(world: World) -> None:
    for _ in range(3):
        world.run()
        world.write()
    oldest = min(world.target.datasets[REPLICAS[ZVOL]].snaps.values(), key=lambda snap: snap.createtxg)
    oldest.holds.add("auditor")
    for _ in range(4):
        world.write()
        assert world.run().exit_code is ExitCode.OK
    names = list(world.target.datasets[REPLICAS[ZVOL]].snaps.values())
    assert oldest in names
    assert len(names) <= 4


# -- interrupted streams


def test_a_cut_stream_is_resumed_by_the_next_run(world: World) -> None:
    world.impatient()
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), cut=600_000))
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    assert world.target.datasets[REPLICAS[ZVOL]].partial
    world.runner.revive()
    assert world.run(Stage.REPLICATE).exit_code is ExitCode.OK
    (resumed,) = [argv for argv in world.runner.zfs(HERE, "send") if "-t" in argv and "-nvP" not in argv]
    assert resumed[2] == "-t"
    assert_replicated(world)


def test_a_token_whose_snapshot_is_gone_is_thrown_away_once(world: World) -> None:
    world.run()
    world.write()
    world.impatient()
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), cut=20_000))
    world.run()
    partial = world.target.datasets[REPLICAS[ZVOL]].partial
    assert partial
    stale = partial.package.name
    del world.source.datasets[ZVOL].snaps[stale]
    world.runner.revive()
    world.write()
    report = world.run()
    assert report.exit_code is ExitCode.OK, report.results
    assert [argv[-1] for argv in world.runner.zfs(TARGET, "receive") if "-A" in argv] == [REPLICAS[ZVOL]]
    assert any("thrown away" in result.message for result in report.results)
    assert_replicated(world, (WEB,))


# -- identity


@pytest.mark.parametrize("forged", [False, True], ids=["by-name", "with-our-properties"])
def test_a_snapshot_recreated_under_its_name_is_not_taken_for_the_old_one(world: World, forged: bool) -> None:
    world.run()
    (name,) = world.source.datasets[ZVOL].snaps
    old = world.source.datasets[ZVOL].snaps.pop(name)
    world.source.write(ZVOL)
    new = world.source.snap(f"{ZVOL}@{name}")
    if forged:
        new.props.update(old.props)
    replica = world.target.datasets[REPLICAS[ZVOL]]
    content = replica.snaps[name].content
    world.write()
    report = world.run()
    assert replica.snaps[name].guid == old.guid
    assert replica.snaps[name].content == content
    assert new.guid not in {snap.guid for snap in replica.snaps.values()}
    if not forged:
        assert report.exit_code is ExitCode.OK, report.results
        assert_replicated(world)  # the bookmark was the base


def test_names_shuffled_against_time_do_not_mislead(world: World) -> None:
    world.run()
    world.clock.now -= 40 * 86400  # the clock was wrong: names and creation say older, createtxg says newer
    world.write()
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert report.exit_code is ExitCode.OK, report.results
    snaps = world.source.datasets[ZVOL].snaps
    newest = max(snaps.values(), key=lambda snap: snap.createtxg)
    replica = world.target.datasets[REPLICAS[ZVOL]]
    assert replica.newest is not None
    assert replica.newest.guid == newest.guid
    world.runner.ran.clear()
    world.clock.now -= 7200
    world.run(Stage.PRUNE)
    assert not world.runner.zfs("", "destroy"), "the clock is behind: nothing is removed"


def test_a_recreated_disk_starts_a_new_generation_beside_the_old(world: World) -> None:
    world.run()
    old = world.target.datasets[REPLICAS[ZVOL]]
    kept = dict(old.snaps)
    world.source.drop(ZVOL)
    world.source.add(ZVOL, zvol=True)
    world.source.write(ZVOL, 4096)
    report = world.run()
    assert report.exit_code is ExitCode.OK, report.results
    warned = [r for r in world.results(report, Outcome.WARNING) if r.stage == "replicate"]
    assert "new generation" in warned[0].message
    generations = [name for name in world.target.datasets if name.startswith(REPLICAS[ZVOL])]
    assert len(generations) == 2
    assert world.target.datasets[REPLICAS[ZVOL]].snaps == kept, "the old generation is as it was"
    new = world.target.datasets[max(generations, key=len)]
    assert new.newest is not None
    assert new.newest.content == world.source.datasets[ZVOL].content
    assert world.complete(TARGET, WEB)[-1] == world.complete(HERE, WEB)[-1]
    world.write()
    world.runner.ran.clear()
    assert world.run().exit_code is ExitCode.OK
    assert all("-i" in a for a in world.runner.zfs(HERE, "send") if "-nvP" not in a)


def test_a_renamed_replica_is_followed_by_guid(world: World) -> None:
    world.run()
    world.target.rename(REPLICAS[ZVOL], f"{REPLICAS[ZVOL]}-moved")
    world.write()
    world.runner.ran.clear()
    assert world.run().exit_code is ExitCode.OK
    assert REPLICAS[ZVOL] not in world.target.datasets
    assert len(world.target.datasets[f"{REPLICAS[ZVOL]}-moved"].snaps) == 2


def test_foreign_snapshots_survive_everything(world: World) -> None:
    names = [f"{ZVOL}@__replicate_100-0_1795000000__", f"{ZVOL}@vzdump", f"{ZVOL}@pzb:mine", f"{ZVOL}@before-upgrade"]
    foreign = [world.source.snap(name) for name in names]
    world.source.datasets[ZVOL].props["pve-zfsbackup:point"] = "100/20261118T110640Z-ffff"  # inherited by them all
    for _ in range(6):
        world.write()
        assert world.run().exit_code is ExitCode.OK
    assert [world.source.find(name) for name in names] == foreign
    destroyed = {argv[-1] for argv in world.runner.zfs("", "destroy")}
    assert destroyed
    assert not [name for name in destroyed if any(n.partition("@")[2] in name for n in names)]


def test_history_of_a_guest_that_is_gone_stays(world: World) -> None:
    world.run()
    world.node.remove(DB)
    world.source.drop(ENCRYPTED)
    for _ in range(5):
        world.write()
        assert world.run().exit_code is ExitCode.OK
    assert len(world.complete(TARGET, DB)) == 1


# -- exit codes


def test_nothing_worked_is_failed(world: World) -> None:
    world.runner.faults.append(Fault(words=("snapshot", "--"), again=True, answer=(1, "suspended")))
    report = world.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.FAILED
    assert len(world.results(report, Outcome.FAILED)) == 3


def test_a_remark_of_the_run_is_nothing_that_worked(world: World) -> None:
    broken = Result(stage="snapshot", outcome=Outcome.FAILED, vmid=Vmid(WEB), message="suspended")
    remark = Result(stage="hook", outcome=Outcome.WARNING, message="on-error command failed: mail is down")
    assert exit_code([broken, remark]) is ExitCode.FAILED
    assert exit_code([broken, replace(remark, stage="snapshot", vmid=Vmid(DB))]) is ExitCode.PARTIAL
    assert exit_code([broken, replace(remark, stage="prune", host=TARGET)]) is ExitCode.PARTIAL
    assert exit_code([broken, replace(remark, stage="pools", outcome=Outcome.OK)]) is ExitCode.PARTIAL, "this node's"
    assert exit_code([remark]) is ExitCode.OK


@pytest.mark.parametrize(
    ("busy", "stages"),
    [
        ("snapshot", ()),
        ("snapshot", (Stage.SNAPSHOT,)),
        ("replicate", (Stage.REPLICATE,)),
        ("replicate", (Stage.PRUNE,)),
    ],
)
def test_a_second_run_is_told_who_has_the_lock_and_touches_nothing(
    world: World, busy: str, stages: tuple[Stage, ...]
) -> None:
    with run_lock(world.place / "run", busy):
        world.runner.ran.clear()
        with pytest.raises(LockedError, match=rf"{busy} \(process \d+\)") as caught:
            world.run(*stages)
    assert caught.value.exit_code is ExitCode.LOCKED
    assert not world.runner.ran


def test_a_configuration_without_jobs_is_no_success(world: World) -> None:
    with world.session() as session:
        bare = replace(session, config=replace(session.config, jobs={}))
        with pytest.raises(ConfigError, match="no job is configured"):
            run(bare, Scope())


def test_new_points_do_not_wait_for_a_long_replication(world: World) -> None:
    with run_lock(world.place / "run", "replicate"):
        report = world.run()
    assert report.exit_code is ExitCode.OK
    assert len(world.points(HERE, WEB)) == 1
    assert not world.points(TARGET, WEB)
    (left,) = world.results(report, Outcome.SKIPPED)
    assert left.message.startswith("replicate, prune: left to a later run: another run is at work on this: replicate")
    world.run()
    assert len(world.points(TARGET, WEB)) == 1


def test_nothing_is_pruned_while_files_or_a_box_are_read(world: World) -> None:
    for _ in range(4):
        world.write()
        with reading(world.place / "run"):
            report = world.run()
    assert len(world.points(HERE, WEB)) == 4
    (left,) = [one for one in report.results if one.stage == "prune"]
    assert left.message.startswith("the rest is left to the next run")
    world.run(Stage.PRUNE)
    assert len(world.points(HERE, WEB)) == 3


def test_half_a_point_passes_for_no_whole_one_while_the_disk_it_lacks_is_not_seen(world: World) -> None:
    """The pool that failed in the midst of the snapshots is not imported any more: the points before are the last."""
    for _ in range(3):
        world.run()
        world.write()
    whole = world.complete(HERE, WEB)
    world.runner.faults.append(Fault(words=("snapshot", "--"), nth=2, error=CommandTimeoutError("no end")))
    world.run(Stage.SNAPSHOT)
    assert len(world.points(HERE, WEB)) == 4
    hidden = world.node.storages.pop(0)
    world.run()
    world.node.storages.insert(0, hidden)
    assert world.complete(HERE, WEB) == whole


def test_what_a_run_at_its_snapshots_froze_is_not_thawed_by_another(world: World) -> None:
    marker = world.place / "state/frozen/100"
    marker.parent.mkdir(parents=True)
    marker.write_text("1\n")
    world.node.guests[100].frozen = True
    with run_lock(world.place / "run", "snapshot"):
        world.run(Stage.REPLICATE)
        assert world.node.guests[100].frozen
    world.run(Stage.REPLICATE)
    assert not world.node.guests[100].frozen
    assert not marker.exists()


def test_an_unknown_job_or_guest_is_a_mistake_of_the_caller(world: World) -> None:
    with pytest.raises(ConfigError, match="no job named nightly") as caught:
        world.run(jobs=["nightly"])
    assert caught.value.exit_code is ExitCode.CONFIG
    with pytest.raises(ConfigError, match="999: no such guest"):
        world.run(guests=["999"])
    assert not world.runner.changes


def test_without_the_api_nothing_is_done(world: World) -> None:
    world.node.api = "ipcc_send_rec[1] failed: Connection refused"
    with pytest.raises(PveError) as caught:
        world.run()
    assert caught.value.exit_code is ExitCode.FAILED
    assert not world.runner.changes


# -- the journal and syslog


def journal(world: World) -> list[dict[str, object]]:
    return [json.loads(line) for line in (world.place / "log/journal.jsonl").read_text().splitlines()]


def test_the_journal_tells_the_run(world: World, syslog_lines: list[tuple[int, str]]) -> None:
    report = world.run()
    lines = journal(world)
    assert [line["event"] for line in lines if line["event"] != "room"] == ["start", *["result"] * 9, "end"]
    assert {line["run"] for line in lines} == {report.run}
    assert all(line["jobs"] == ["all"] for line in lines if line["event"] == "result" and "vmid" in line)
    assert lines[-1]["exit_code"] == 0
    ((_, text),) = syslog_lines
    assert "snapshot+replicate+prune: 6 ok, 3 skipped" in text


Heard = Callable[[], list[dict[str, str]]]


def test_journald_hears_of_each_failure_with_its_fields(world: World, journald: Heard) -> None:
    world.runner.faults.append(Fault(words=("snapshot", "--"), nth=2, answer=(1, "out of space")))
    report = world.run(Stage.SNAPSHOT)
    failure, end = journald()
    own = {key: value for key, value in failure.items() if key.startswith("PZB_")}
    (result,) = world.results(report, Outcome.FAILED)
    assert own.pop("PZB_SECONDS") == str(round(result.seconds, 3))
    assert own == {
        "PZB_RUN": report.run, "PZB_STAGE": "snapshot", "PZB_OUTCOME": "failed", "PZB_VMID": str(result.vmid),
        "PZB_GUEST": result.guest, "PZB_JOBS": "all",
    }  # fmt: skip
    assert failure["PRIORITY"] == "3"
    assert failure["MESSAGE"].startswith(f"run {report.run} snapshot guest {result.vmid} ")
    assert "out of space" in failure["MESSAGE"]
    assert failure["MESSAGE"].endswith(f"({result.hint})")
    assert (end["PZB_RUN"], end["PZB_EXIT_CODE"]) == (report.run, "1")


def test_journald_hears_of_a_target_and_of_warnings_and_of_nothing_that_went_well(
    world: World, journald: Heard
) -> None:
    world.run()
    (end,) = journald()
    assert "PZB_STAGE" not in end
    world.guest(WEB).agent = "dead"
    world.run(Stage.SNAPSHOT)
    warning, _ = journald()
    assert (warning["PZB_OUTCOME"], warning["PZB_VMID"], warning["PRIORITY"]) == ("warning", str(WEB), "4")
    assert int(warning.get("PZB_BYTES", "0")) == 0
    world.impatient()
    world.runner.down[TARGET] = "no route to host"
    world.run(Stage.REPLICATE)
    assert [line.get("PZB_HOST") for line in journald()] == [TARGET, None]


def test_a_journald_that_is_stopped_holds_no_run_up(
    world: World, journald: Heard, monkeypatch: pytest.MonkeyPatch, syslog_lines: list[tuple[int, str]]
) -> None:
    monkeypatch.setattr(host_journal, "JOURNALD_SECONDS", 0.01)
    for _ in range(600):  # its queue is full: net.unix.max_dgram_qlen
        host_journal.log_line("x" * 1000, failed=False)
    assert not syslog_lines, "that would wait for it as well"
    assert world.run(Stage.SNAPSHOT).exit_code is ExitCode.OK


def test_what_breaks_a_run_off_is_its_last_line(world: World, syslog_lines: list[tuple[int, str]]) -> None:
    world.node.api = "ipcc_send_rec[1] failed: Connection refused"
    with pytest.raises(PveError):
        world.run()
    assert [line["event"] for line in journal(world)] == ["start", "broken-off"]
    assert "broken off" in syslog_lines[0][1]


def test_two_jobs_with_one_guest_make_one_point_by_the_strictest(world: World) -> None:
    world.configure(CONFIG + "")
    text = world.config.read_text().replace(
        "jobs:\n", "jobs:\n  strict: {guests: [101], quiesce: require, keep: {keep-last: 9}}\n"
    )
    world.config.write_text(text)
    world.guest(DB).agent = "dead"
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert failed.vmid == DB
    assert "required" in failed.message
    world.guest(DB).agent = "ok"
    for _ in range(6):
        world.write()
        world.run()
    assert (len(world.complete(HERE, DB)), len(world.complete(HERE, WEB))) == (6, 3)


def test_nothing_is_held_or_removed_on_an_append_only_target(world: World) -> None:
    text = CONFIG.replace("parallel: 1, keep: {keep}", "parallel: 1, append-only: true")
    world.configure(text)
    for _ in range(5):
        world.write()
        assert world.run().exit_code is ExitCode.OK
        for dataset in world.target.datasets.values():  # as the target's own maintenance does
            for snap in dataset.snaps.values():
                snap.holds.add("pve-zfsbackup")
    assert not world.runner.zfs(TARGET, "hold", "release", "destroy")
    assert len(world.complete(TARGET, WEB)) == 5
    assert len(world.complete(HERE, WEB)) == 3
    world.runner.ran.clear()
    assert world.run(Stage.REPLICATE).exit_code is ExitCode.OK
    assert not world.runner.changes


@pytest.mark.parametrize(("stages", "there"), [((Stage.SNAPSHOT, Stage.PRUNE), True), ((Stage.SNAPSHOT,), False)])
def test_the_stages_of_a_run_are_loaded_before_the_first(
    world: World, monkeypatch: pytest.MonkeyPatch, stages: tuple[Stage, ...], there: bool
) -> None:
    """The package may be upgraded while the first takes hours. What is not asked for is not loaded."""
    name = "pve_zfsbackup.app.prune"
    monkeypatch.setattr(app, "prune", importlib.import_module(name))  # so that it is put back
    monkeypatch.delitem(sys.modules, name)
    seen: list[bool] = []
    world.runner.watchers.append(lambda ran: seen.append(name in sys.modules))
    assert world.run(*stages).exit_code is ExitCode.OK
    assert set(seen) == {there}
