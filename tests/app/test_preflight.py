"""What is found out before anything is done: sick and suspended pools, full and foreign targets, missing features."""

from __future__ import annotations

import pytest

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.history import history
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.host.identity import owner_id
from pve_zfsbackup.model import decode_props
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import CONFIG, CT, DB, REPLICAS, ROOT, TARGET, WEB, World, assert_replicated

OWNER = "pve-zfsbackup:owner"


def ours(world: World) -> str:
    return owner_id(world.node.etc)


def messages(world: World, *stages: Stage) -> list[str]:
    return [result.message for result in world.run(*stages).results if result.outcome is not Outcome.OK]


# The target's pool


def test_a_suspended_target_fails_alone_and_nothing_is_asked_of_it(world: World) -> None:
    world.run()
    world.target.states["tank"] = "SUSPENDED"
    world.runner.ran.clear()
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    failed = world.results(report, Outcome.FAILED)
    assert {(result.stage, result.host) for result in failed} == {("replicate", TARGET), ("prune", TARGET)}
    assert all("pool tank is suspended" in result.message for result in failed)
    assert all("zpool clear tank" in result.hint for result in failed)
    assert not world.runner.zfs(TARGET)
    world.target.states.clear()
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_degraded_target_is_used_and_told(world: World) -> None:
    world.target.states["tank"] = "DEGRADED"
    report = world.run()
    assert report.exit_code is ExitCode.OK
    (warning,) = world.results(report, Outcome.WARNING)
    assert (warning.host, warning.vmid) == (TARGET, None)
    assert "tank of backup1 is DEGRADED" in warning.message
    assert_replicated(world)


def test_a_target_that_does_not_tell_its_pools_state_is_used(world: World) -> None:
    world.target.kstat = False
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


# The node's own pools


@pytest.fixture
def states(world: World) -> World:
    for pool in ("rpool", "fast"):
        (world.place / "kstat" / pool).mkdir(parents=True)
        (world.place / "kstat" / pool / "state").write_text("ONLINE\n")
    return world


def test_a_suspended_source_pool_is_not_asked_and_stops_only_its_guests(states: World) -> None:
    world = states
    for _ in range(5):
        world.write()
        world.run()
    before = world.complete(HERE, WEB), world.complete(TARGET, WEB)
    (world.place / "kstat/fast/state").write_text("SUSPENDED\n")
    world.runner.ran.clear()
    for _ in range(5):
        world.write()
        report = world.run()
        assert {result.vmid for result in world.results(report, Outcome.FAILED)} == {WEB}
        assert any("pool fast is SUSPENDED" in note for note in report.notes)
    assert not [ran for ran in world.runner.ran if ran.host == HERE and "fast" in " ".join(ran.argv)]
    assert_replicated(world, [DB, CT])
    assert (world.complete(HERE, WEB), world.complete(TARGET, WEB)) == before, "nothing of it ages out meanwhile"
    (world.place / "kstat/fast/state").write_text("ONLINE\n")
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_degraded_source_pool_is_a_note(states: World) -> None:
    (states.place / "kstat/fast/state").write_text("DEGRADED\n")
    report = states.run()
    assert report.exit_code is ExitCode.OK
    assert any("pool fast is DEGRADED" in note for note in report.notes)


# Whose root it is


def test_a_new_root_is_ours_from_the_first_command(world: World) -> None:
    world.run()
    assert world.target.datasets[ROOT].props[OWNER] == ours(world)
    assert OWNER not in world.target.datasets[f"{ROOT}/local-zfs"].props


@pytest.mark.parametrize("filled", [False, True])
def test_a_root_without_an_owner_is_adopted_when_all_in_it_is_known(world: World, filled: bool) -> None:
    if filled:
        world.run()
        del world.target.datasets[ROOT].props[OWNER]
    else:
        world.target.add(ROOT)
    assert world.run().exit_code is ExitCode.OK
    assert world.target.datasets[ROOT].props[OWNER] == ours(world)
    assert_replicated(world)


def test_a_root_without_an_owner_that_holds_somebody_elses_is_warned_of(world: World) -> None:
    world.run()
    del world.target.datasets[ROOT].props[OWNER]
    for name in ("rpool/data/vm-100-disk-0", "fast/vm-100-disk-0"):
        world.source.drop(name)
    world.node.remove(WEB)
    report = world.run()
    (warning,) = world.results(report, Outcome.WARNING)
    assert "belongs to nobody and holds 2 replicas that are not known here" in warning.message
    assert OWNER not in world.target.datasets[ROOT].props


def test_somebody_elses_root_is_neither_written_nor_pruned_but_can_be_looked_at(world: World) -> None:
    for _ in range(4):
        world.write()
        world.run()
    before = {name: sorted(dataset.snaps) for name, dataset in world.target.datasets.items()}
    (world.node.etc / "pve-root-ca.pem").write_text("another cluster's\n")
    world.runner.ran.clear()
    report = world.run()
    failed = world.results(report, Outcome.FAILED)
    assert {(result.stage, result.host) for result in failed} == {("replicate", TARGET), ("prune", TARGET)}
    assert all(f"zfs set {OWNER}={ours(world)} {ROOT}" in result.hint for result in failed)
    assert {name: sorted(dataset.snaps) for name, dataset in world.target.datasets.items()} == before
    assert not [argv for argv in world.runner.zfs(TARGET) if argv[1] != "list"]
    with world.session() as session:
        seen = history(session, Scope())
    assert not seen.errors
    assert seen.points[TARGET]
    world.target.datasets[ROOT].props[OWNER] = ours(world)
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_an_append_only_root_is_not_marked_from_here(world: World) -> None:
    world.configure(CONFIG.replace("parallel: 1, keep: {keep}", "parallel: 1, append-only: true"))
    world.target.add(ROOT)
    report = world.run()
    assert any("its administrator makes it ours" in r.message for r in world.results(report, Outcome.WARNING))
    assert OWNER not in world.target.datasets[ROOT].props
    world.target.datasets[ROOT].props[OWNER] = ours(world)
    assert world.run().exit_code is ExitCode.OK


# Room and features


def test_a_full_target_is_told_before_anything_is_sent_and_recovers(world: World) -> None:
    world.run()
    world.write(1 << 20)
    world.target.datasets[ROOT].props["quota"] = "1"
    world.runner.ran.clear()
    report = world.run()
    failed = world.results(report, Outcome.FAILED)
    assert {result.vmid for result in failed} == {WEB, DB, CT}
    assert all("are needed on backup1" in result.message for result in failed)
    assert not [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv]
    del world.target.datasets[ROOT].props["quota"]
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_limit_of_snapshots_is_told_before_anything_is_sent_and_recovers(world: World) -> None:
    """The receive itself would speak of a space quota, and of each disk after the other."""
    world.run()
    world.target.bound = True
    there = world.target.count(ROOT, "snapshot")
    world.target.datasets[ROOT].props["snapshot_limit"] = str(there + 3)
    world.runner.ran.clear()
    report = world.run()
    failed = world.results(report, Outcome.FAILED)
    assert len(failed) == 1, "four are due, and the guest with two disks goes first"
    assert f"snapshot_limit of {ROOT} on {TARGET} leaves" in failed[0].message
    assert world.target.count(ROOT, "snapshot") <= there + 3
    world.target.datasets[ROOT].props["snapshot_limit"] = str(there + 100)
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_receiver_that_is_older_than_the_limits_is_asked_without_them(world: World) -> None:
    """Who brings the node up to date before the target would have sent nothing more there."""
    told = "pve-zfsbackup-receiver: denied: 'type,name' is not allowed here"
    for columns in {argv[argv.index("-o") + 1] for argv in listings(world)}:
        world.runner.faults.append(Fault(words=("list", columns), host=TARGET, answer=(126, told), again=True))
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def listings(world: World) -> list[tuple[str, ...]]:
    """As the target is asked for them."""
    world.run()
    found = [argv for argv in world.runner.zfs(TARGET, "list") if "-r" in argv]
    assert any("snapshot_limit" in argv[argv.index("-o") + 1] for argv in found)
    return found


def test_limits_do_not_bind_root(world: World) -> None:
    world.config.write_text(world.config.read_text().replace("user: backup", "user: root"))
    world.run()
    world.target.datasets[ROOT].props["snapshot_limit"] = "0"
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_limit_of_datasets_is_told_for_those_that_would_be_new(world: World) -> None:
    world.run(guests=[str(DB), str(CT)])
    world.target.bound = True
    world.target.datasets[ROOT].props["filesystem_limit"] = str(world.target.count(ROOT, "filesystem") + 1)
    failed = world.results(world.run(), Outcome.FAILED)
    assert [(result.vmid, "filesystem_limit" in result.message) for result in failed] == [(WEB, True)]


def counted(world: World) -> dict[str, int]:
    """How many processes a run started on each host, and ssh sessions."""
    return {host: len([ran for ran in world.runner.ran if ran.host == host]) for host in (HERE, TARGET)}


def test_a_replica_that_was_written_to_is_told_before_anything_is_sent_to_it(world: World) -> None:
    world.run()
    world.write(1 << 20)
    world.runner.ran.clear()
    assert world.run().exit_code is ExitCode.OK
    usual = counted(world)
    replica = REPLICAS["rpool/data/vm-100-disk-0"]
    world.target.write(replica, 1 << 20)
    newest = world.target.datasets[replica].newest
    assert newest is not None
    world.write(1 << 20)
    world.runner.ran.clear()
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.vmid, failed.host) == (WEB, TARGET)
    assert "it was written to, or its newest snapshot was destroyed" in failed.message
    assert f"zfs rollback {replica}@{newest.name}" in failed.hint
    sent = [argv for argv in world.runner.zfs(HERE, "send") if "rpool/data/vm-100-disk-0@" in argv[-1]]
    assert not [argv for argv in sent if "-nvP" not in argv]
    now = counted(world)
    assert all(now[host] <= usual[host] for host in now), "nothing more is asked for it"
    dataset = world.target.datasets[replica]
    dataset.content, dataset.dirty = newest.content, 0  # zfs rollback
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_newest_snapshot_destroyed_on_the_target_is_told_and_the_older_base_goes_on(world: World) -> None:
    """Row 28 of the matrix."""
    for _ in range(2):
        world.run()
        world.write(1 << 20)
    replica = REPLICAS["rpool/data/vm-100-disk-0"]
    dataset = world.target.datasets[replica]
    older, newest = sorted(dataset.snaps.values(), key=lambda snap: snap.createtxg)[-2:]
    del dataset.snaps[newest.name]
    dataset.dirty += newest.written
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert f"zfs rollback {replica}@{older.name}" in failed.hint
    dataset.content, dataset.dirty = older.content, 0
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_pool_imported_read_only_is_told(world: World) -> None:
    """A full stream is not even begun; for an increment the pool is not asked: the first receive says it for all."""
    world.target.sealed.add("tank")
    failed = world.results(world.run(), Outcome.FAILED)
    assert {result.vmid for result in failed if result.stage == "replicate"} == {WEB, DB, CT}
    assert all("is imported read-only: nothing can be received" in r.message for r in failed if r.stage == "replicate")
    world.target.sealed.clear()
    assert world.run().exit_code is ExitCode.OK
    world.write(1 << 20)
    world.target.sealed.add("tank")
    world.runner.ran.clear()
    failed = list(world.results(world.run(Stage.SNAPSHOT, Stage.REPLICATE), Outcome.FAILED))
    assert {result.vmid for result in failed} == {WEB, DB, CT}
    assert all("pool is read-only" in r.message and "zpool import" in r.hint for r in failed)
    assert len(world.runner.zfs(TARGET, "receive")) == 1
    world.target.sealed.clear()
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_a_read_only_pool_here_is_no_other_guests_trouble(world: World) -> None:
    """The bookmark before a stream is refused: what shares its session goes on."""
    world.run()
    world.write(1 << 20)
    refused = (1, "cannot create bookmark: dataset is read-only")
    world.runner.faults.append(Fault(words=("bookmark",), host=HERE, answer=refused))
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert [result.vmid for result in world.results(report, Outcome.FAILED)] == [WEB]
    assert_replicated(world, [DB, CT])


def test_a_feature_the_target_lacks_is_told_for_the_disks_that_need_it(world: World) -> None:
    world.target.features["feature@encryption"] = "disabled"
    report = world.run()
    failed = world.results(report, Outcome.FAILED)
    assert [result.vmid for result in failed] == [DB]
    assert "lacks encryption" in failed[0].message
    assert_replicated(world, [WEB, CT])
    world.target.features["feature@encryption"] = "enabled"
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)


def test_pools_are_asked_only_where_a_full_stream_is_due(world: World) -> None:
    def asked() -> int:
        return len([ran for ran in world.runner.ran if ran.argv[0] == "zpool"])

    world.run()
    assert asked() == 3  # rpool and fast, and the target's
    world.runner.ran.clear()
    world.write()
    world.run()
    assert asked() == 0
    world.node.define(300, "name: new\nscsi0: local-zfs:vm-300-disk-0,size=1G\n")
    world.source.add("rpool/data/vm-300-disk-0", zvol=True)
    world.run(Stage.REPLICATE)
    assert asked() == 0, "it has no point yet"
    world.run()
    assert asked() == 2


# What a restore needs, and disks that go elsewhere


def test_a_point_has_its_disks_properties_on_both_sides(world: World) -> None:
    world.run()
    for pools, names in ((world.source, REPLICAS.keys()), (world.target, REPLICAS.values())):
        snaps = [snap for name in names for snap in pools.datasets[name].snaps.values()]
        found = [decode_props(snap.props["pve-zfsbackup:props"]) for snap in snaps]
        assert found[0] == found[1]
        assert found[0]["scsi0"]["volsize"] == str(1 << 30)
        assert found[0].keys() == {"scsi0", "scsi1"}
        assert found[3]["rootfs"]["acltype"] == "off"


TWO_JOBS = """\
api: {{node: pve1, token-file: {place}/no.token}}
targets:
  backup1: {{host: backup1.example, user: backup, root: tank/backups, parallel: 1, keep: {keep}}}
jobs:
  system:
    guests: [100]
    exclude-disks: [scsi1]
    targets: [backup1]
    keep: {keep}
  all:
    guests: [all]
    keep: {keep}
timezone: Europe/Berlin
journal-dir: {place}/log
runtime-dir: {place}/run
state-dir: {place}/state
"""


def test_a_target_that_gets_some_of_the_disks_has_complete_points_of_them(world: World) -> None:
    world.configure(TWO_JOBS)
    for _ in range(5):
        world.write()
        assert world.run().exit_code is ExitCode.OK
    here, there = world.points(HERE, WEB), world.points(TARGET, WEB)
    assert [set(point.disks) for point in here] == [{"scsi0", "scsi1"}] * 3
    assert [set(point.disks) for point in there] == [{"scsi0"}] * 3
    assert all(point.complete for point in (*here, *there))
    assert [point.id for point in here] == [point.id for point in there]


def test_what_does_not_fit_together_is_not_all_begun(world: World) -> None:
    """Alone each guest has room. Who is on the target already goes on; the new ones that do not fit are told."""
    assert world.run(guests=["100"]).exit_code is ExitCode.OK
    world.write(400 << 10)
    world.target.room = 3 << 20
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    failed = [result for result in report.results if result.outcome is Outcome.FAILED]
    assert [result.vmid for result in failed] == [DB] or [result.vmid for result in failed] == [CT]
    assert "when guests" in failed[0].message
    assert "100" in failed[0].message
    assert_replicated(world, [WEB, DB if failed[0].vmid == CT else CT])
    world.target.room = 1 << 40
    assert world.run().exit_code is ExitCode.OK
    assert_replicated(world)
