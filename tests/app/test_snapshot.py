"""Guests that do not hold still: locked, moving, edited while their point is made; and what a point carries."""

from __future__ import annotations

import fcntl
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.host import agent as host_agent
from pve_zfsbackup.host.agent import Agent
from pve_zfsbackup.host.guests import unpack_config
from pve_zfsbackup.model import Vmid, decode_props
from tests.fakes.pools import no, ok
from tests.fakes.runner import HERE, Fault, Ran
from tests.fakes.world import CT, DB, WEB, World

ZVOL = "rpool/data/vm-100-disk-0"
KEEP_JOB = "    targets: [backup1]\n"


def conf(world: World, vmid: int) -> Path:
    return next(world.node.etc.glob(f"*/{vmid}.conf"))


def edit(world: World, vmid: int, text: str) -> None:
    path = conf(world, vmid)
    path.write_text(path.read_text() + text)


def job(world: World, text: str) -> None:
    world.config.write_text(world.config.read_text().replace(KEEP_JOB, f"{KEEP_JOB}    {text}\n"))


def at(world: World, words: set[str], act: Callable[[], None], nth: int = 1) -> None:
    """Do something right before the nth command with all these words."""
    seen = [0]

    def watch(ran: Ran) -> None:
        if words <= set(" ".join(ran.argv).split()):
            seen[0] += 1
            if seen[0] == nth:
                act()

    world.runner.watchers.append(watch)


@contextmanager
def migrating(world: World, vmid: int) -> Iterator[None]:
    """Another process has Proxmox's lock of a guest on its way."""
    (world.place / "migrate").mkdir(exist_ok=True)
    with open(world.place / f"migrate/pve-migrate-{vmid}", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- locks


@pytest.mark.parametrize(
    ("lock", "told"),
    [
        ("backup", "a backup by vzdump is under way"),
        ("snapshot", "Proxmox takes a snapshot of it"),
        ("snapshot-delete", "Proxmox removes a snapshot of it"),
        ("migrate", "the guest is being migrated"),
        ("rollback", "the guest is being rolled back"),
        ("suspending", "the guest is being hibernated"),
        ("clone", "the guest is being cloned"),
    ],
)
def test_a_lock_that_stays_is_told_by_its_name(world: World, lock: str, told: str) -> None:
    edit(world, DB, f"lock: {lock}\n")
    report = world.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.PARTIAL
    assert [result.vmid for result in report.results] == [WEB, CT, DB], "the others have their turn first"
    failed = report.results[-1]
    assert f"guest is locked ({lock}): {told}" in failed.message
    assert "left to the next run" in failed.message
    assert "qm unlock 101" in failed.hint
    assert ("goes on with the same command" in failed.hint) is (lock == "rollback"), "it may be a lock of ours"
    assert not world.points(HERE, DB)


def test_a_lock_that_goes_is_waited_for(world: World) -> None:
    text = conf(world, DB).read_text()
    edit(world, DB, "lock: backup\n")
    at(world, {"get", "/nodes/pve1/qemu/101/config"}, lambda: conf(world, DB).write_text(text) and None, nth=3)
    report = world.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.OK, report.results
    assert [result.vmid for result in report.results] == [WEB, CT, DB]
    assert [point.consistency for point in world.points(HERE, DB)] == ["quiesced"]


def test_waiting_ends_when_the_job_says(world: World) -> None:
    job(world, "lock-wait: 12")
    edit(world, DB, "lock: backup\n")
    report = world.run(Stage.SNAPSHOT)
    looks = [ran for ran in world.runner.ran if "/nodes/pve1/qemu/101/config" in ran.argv]
    assert 2 <= len(looks) <= 5
    assert "(waited 1" in report.results[-1].message


def test_without_waiting_a_locked_guest_is_left_at_once(world: World) -> None:
    job(world, "lock-wait: 0")
    edit(world, DB, "lock: backup\n")
    assert world.run(Stage.SNAPSHOT).results[-1].outcome is Outcome.FAILED
    assert "waited" not in world.run(Stage.SNAPSHOT).results[-1].message


def test_a_guest_locked_between_the_listing_and_its_turn_is_noticed(world: World) -> None:
    at(world, {"snapshot", "--"}, lambda: edit(world, DB, "lock: migrate\n"))
    report = world.run(Stage.SNAPSHOT)
    assert "guest is locked (migrate)" in report.results[-1].message
    assert not world.points(HERE, DB)


def test_a_hibernated_guest_has_points_that_say_so(world: World) -> None:
    edit(world, DB, "lock: suspended\nvmstate: crypt:vm-101-state-suspend\n")
    world.guest(DB).running = False
    assert world.run(Stage.SNAPSHOT).exit_code is ExitCode.OK
    (point,) = world.points(HERE, DB)
    assert point.consistency == (
        "crash-consistent: guest is hibernated: what it had in memory is not part of the point"
    )


def test_a_guest_under_way_is_not_frozen_and_left_to_the_next_run(world: World) -> None:
    with migrating(world, DB):
        report = world.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.PARTIAL
    assert "is being migrated, replicated by pvesr or rolled back" in report.results[-1].message
    assert not any(ran.argv[-2:] == ("101", "fsfreeze-freeze") for ran in world.runner.ran)
    assert world.run(Stage.SNAPSHOT).exit_code is ExitCode.OK


def test_proxmox_waits_while_a_guest_is_frozen_and_no_longer(world: World) -> None:
    held: dict[str, bool] = {}

    def look(ran: Ran) -> None:
        path = world.place / "migrate/pve-migrate-100"
        if not path.exists():
            return
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.setdefault(" ".join(ran.argv[-2:]), False)
            except BlockingIOError:
                held[" ".join(ran.argv[-2:])] = True

    world.runner.watchers.append(look)
    world.run(Stage.SNAPSHOT, guests=["100"])
    assert held["100 fsfreeze-freeze"]
    assert held["100 fsfreeze-thaw"]
    assert any(word.startswith("--") and "pzb:" in word and has for word, has in held.items()), "during zfs snapshot"
    with migrating(world, WEB):
        assert True, "free again"


# -- configurations that move


def test_a_configuration_edited_after_the_listing_is_read_again(world: World) -> None:
    at(world, {"snapshot", "--"}, lambda: edit(world, DB, "description: edited\n"))
    assert world.run(Stage.SNAPSHOT).exit_code is ExitCode.OK
    assert world.points(HERE, DB)[0].complete


def test_a_disk_added_after_the_listing_is_in_the_point(world: World) -> None:
    world.source.add("rpool/data/vm-101-disk-5", zvol=True)
    at(world, {"snapshot", "--"}, lambda: edit(world, DB, "scsi5: local-zfs:vm-101-disk-5,size=1G\n"))
    assert world.run(Stage.SNAPSHOT).exit_code is ExitCode.OK
    assert sorted(world.points(HERE, DB)[0].disks) == ["scsi0", "scsi5"]


def test_a_disk_added_during_the_snapshot_discards_the_point_and_one_more_is_made(world: World) -> None:
    world.source.add("rpool/data/vm-100-disk-5", zvol=True)
    foreign = world.source.snap(f"{ZVOL}@before-upgrade")
    at(world, {"100", "fsfreeze-thaw"}, lambda: edit(world, WEB, "scsi5: local-zfs:vm-100-disk-5,size=1G\n"))
    report = world.run(Stage.SNAPSHOT, guests=["100"])
    assert report.exit_code is ExitCode.OK, report.results
    (point,) = world.points(HERE, WEB)
    assert sorted(point.disks) == ["scsi0", "scsi1", "scsi5"]
    assert point.consistency == "quiesced"
    assert world.source.get(f"{ZVOL}@before-upgrade") is foreign
    assert len(world.source.datasets[ZVOL].snaps) == 2


def test_disks_that_never_hold_still_are_given_up(world: World) -> None:
    job(world, "lock-wait: 0")
    numbers = iter(range(5, 30))

    def exchange() -> None:
        number = next(numbers)
        world.source.add(f"rpool/data/vm-100-disk-{number}", zvol=True)
        edit(world, WEB, f"scsi{number}: local-zfs:vm-100-disk-{number},size=1G\n")

    def always(ran: Ran) -> None:
        if ran.argv[-2:] == ("100", "fsfreeze-thaw"):
            exchange()

    world.runner.watchers.append(always)
    report = world.run(Stage.SNAPSHOT, guests=["100"])
    (failed,) = report.results
    assert "its disks were changed each time while its point was made" in failed.message
    assert not world.source.datasets[ZVOL].snaps, "no half truth is left behind"


@pytest.mark.parametrize(
    "line", ["description: new\n", "[before-upgrade]\nscsi7: local-zfs:vm-100-disk-7\nsnaptime: 1\n", "tags: a;b\n"]
)
def test_an_edit_that_leaves_the_disks_alone_costs_no_point(world: World, line: str) -> None:
    at(world, {"100", "fsfreeze-thaw"}, lambda: edit(world, WEB, line))
    report = world.run(Stage.SNAPSHOT, guests=["100"])
    assert report.exit_code is ExitCode.OK, report.results
    assert len(world.points(HERE, WEB)) == 1


def test_a_resized_disk_is_the_same_disk(world: World) -> None:
    def grow() -> None:
        path = conf(world, WEB)
        path.write_text(path.read_text().replace("vm-100-disk-0,size=1G", "vm-100-disk-0,size=2G"))

    at(world, {"100", "fsfreeze-thaw"}, grow)
    world.run(Stage.SNAPSHOT, guests=["100"])
    assert len(world.points(HERE, WEB)) == 1


def test_a_guest_that_leaves_before_its_turn_is_told_and_no_failure(world: World) -> None:
    """Another node has it now, and makes its points; or it was removed, and has nothing that could be lost."""
    at(world, {"snapshot", "--"}, lambda: world.node.remove(DB))
    report = world.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.OK, report.results
    (left,) = world.results(report, Outcome.WARNING)
    assert left.vmid == DB
    assert "left this node" in left.message
    assert len(report.results) == 3


def test_a_guest_that_leaves_right_after_its_point_keeps_it(world: World) -> None:
    at(world, {"100", "fsfreeze-thaw"}, lambda: world.node.remove(WEB))
    report = world.run(Stage.SNAPSHOT, guests=["100"])
    assert report.exit_code is ExitCode.OK, report.results
    (left,) = world.results(report, Outcome.WARNING)
    assert left.vmid == WEB
    assert len(world.source.datasets[ZVOL].snaps) == 1


def test_a_guest_that_leaves_while_its_lock_is_waited_for_is_no_failure(world: World) -> None:
    edit(world, DB, "lock: migrate\n")
    at(world, {"get", "/nodes/pve1/qemu/101/config"}, lambda: world.node.remove(DB), nth=3)
    report = world.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.OK, report.results
    (left,) = world.results(report, Outcome.WARNING)
    assert left.vmid == DB


def test_a_guest_whose_configuration_cannot_be_read_fails_alone(world: World) -> None:
    fault = Fault(words=("get", "/nodes/pve1/qemu/101/pending"), answer=(2, "unable to parse value"), again=True)
    world.runner.faults.append(fault)
    report = world.run()
    (failed,) = [result for result in report.results if result.vmid == DB and result.stage == "snapshot"]
    assert failed.outcome is Outcome.FAILED
    assert "its configuration cannot be read: unable to parse value" in failed.message
    assert world.complete(HERE, WEB)
    assert world.complete(HERE, CT)
    world.runner.revive()
    assert world.run().exit_code is ExitCode.OK


def test_an_unmounted_cluster_file_system_is_told_as_that(world: World) -> None:
    def unmount() -> None:
        (world.node.etc / "local").unlink()
        conf(world, DB).unlink()

    at(world, {"snapshot", "--"}, unmount)
    report = world.run(Stage.SNAPSHOT)
    told = [result.message for result in report.results if result.vmid == DB]
    assert any("is not mounted" in text for text in told), told


@pytest.mark.parametrize("lock", ["rollback", "backup"])
@pytest.mark.parametrize(("vmid", "command"), [(WEB, "fsfreeze-status"), (DB, "/bin/pause")])
def test_a_guest_locked_on_the_way_to_its_freeze_is_not_frozen(
    world: World, lock: str, vmid: int, command: str
) -> None:
    """Commands and the agent take their time, and the point would carry the configuration of before."""
    job(world, "lock-wait: 0")
    job(world, "before-freeze: /bin/pause")
    job(world, "after-thaw: /bin/resume")

    def begin() -> None:
        path = conf(world, vmid)
        path.write_text(path.read_text().replace("cores: ", "cores: 1") + f"lock: {lock}\n")

    at(world, {str(vmid), command} if command.startswith("fs") else {f"PZB_VMID={vmid}", command}, begin)
    report = world.run(Stage.SNAPSHOT, guests=[str(vmid)])
    (failed,) = report.results
    assert f"guest is locked ({lock})" in failed.message
    assert not world.points(HERE, vmid)
    done = [ran.argv[-1] for ran in world.runner.ran]
    assert "fsfreeze-freeze" not in done
    assert "systemd-run" not in [ran.argv[0] for ran in world.runner.ran], "nothing was armed"
    assert done.count("/bin/pause") == done.count("/bin/resume") == 1
    assert not list((world.place / "state/frozen").glob("*"))


def test_a_guest_that_is_not_frozen_is_looked_at_under_the_lock_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback that had the lock until now."""
    taken: list[Vmid] = []

    @contextmanager
    def waited_for(vmid: Vmid, *, directory: Path) -> Iterator[None]:
        if not taken:
            edit(world, vmid, "description: rolled back\n")
        taken.append(vmid)
        yield

    monkeypatch.setattr("pve_zfsbackup.app.session.migration_lock", waited_for)
    assert world.run(Stage.SNAPSHOT, guests=["200"]).exit_code is ExitCode.OK
    assert taken == [CT, CT]
    (snap,) = world.source.datasets["rpool/data/subvol-200-disk-0"].snaps.values()
    assert unpack_config([snap.props["pve-zfsbackup:conf"]])["conf"] == conf(world, CT).read_text()


@pytest.fixture
def required(world: World) -> World:
    """A guest that is stopped, and quiesced if it runs."""
    job(world, "quiesce: require")
    world.guest(WEB).running = False
    return world


def start(world: World) -> None:
    world.guest(WEB).running = True


@pytest.mark.parametrize("quiesce", ["prefer", "require"])
def test_a_guest_started_after_the_listing_is_frozen(world: World, quiesce: str) -> None:
    job(world, f"quiesce: {quiesce}")
    world.guest(WEB).running = False
    at(world, {"get", "/nodes/pve1/qemu/100/status/current"}, lambda: start(world))
    report = world.run(Stage.SNAPSHOT, guests=["100"])
    assert report.exit_code is ExitCode.OK, report.results
    assert [point.consistency for point in world.points(HERE, WEB)] == ["quiesced"]


def test_a_guest_started_during_its_snapshot_has_another_point_where_freezing_is_required(required: World) -> None:
    at(required, {"snapshot", "--"}, lambda: start(required))
    report = required.run(Stage.SNAPSHOT, guests=["100"])
    assert report.exit_code is ExitCode.OK, report.results
    assert [point.consistency for point in required.points(HERE, WEB)] == ["quiesced"]
    assert len(required.source.datasets[ZVOL].snaps) == 1


def test_a_freeze_that_does_not_last_is_no_point_where_freezing_is_required(world: World) -> None:
    job(world, "quiesce: require")
    world.guest(WEB).thawed_meanwhile = True
    report = world.run(Stage.SNAPSHOT, guests=["100"])
    (failed,) = report.results
    assert failed.outcome is Outcome.FAILED
    assert "guest 100: quiescing is required, but nothing was still frozen at the thaw" in failed.message
    assert not world.source.datasets[ZVOL].snaps


def test_a_configuration_that_cannot_be_read_again_after_the_thaw_takes_the_point_back(world: World) -> None:
    """Whether the point has the guest's disks is not known then."""

    def unmount() -> None:
        (world.node.etc / "local").unlink()
        conf(world, WEB).unlink()

    at(world, {"100", "fsfreeze-thaw"}, unmount)
    report = world.run(Stage.SNAPSHOT, guests=["100"])
    assert report.exit_code is ExitCode.FAILED
    assert "is not mounted" in report.results[0].message
    assert not world.source.datasets[ZVOL].snaps
    assert not world.guest(WEB).frozen


# -- what is recorded


@pytest.mark.parametrize(("limits", "freeze", "watchdog"), [((7,), 7.0, 17), ((20,), 20.0, 28), ((15, 4), 4.0, 14)])
def test_the_freeze_limit_of_the_jobs_reaches_the_guest_and_its_watchdog(
    world: World, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, ...], freeze: float, watchdog: int
) -> None:
    text = world.config.read_text()
    more = "".join(f"  j{n}: {{guests: [100], freeze-limit: {limit}}}\n" for n, limit in enumerate(limits[1:]))
    text = text.replace("timezone:", f"{more}timezone:").replace(KEEP_JOB, f"{KEEP_JOB}    freeze-limit: {limits[0]}\n")
    world.config.write_text(text)
    seen: list[float] = []

    def frozen(agent: Agent, vmid: Vmid, *, timeout: float) -> int:
        seen.append(timeout)
        return freezing(agent, vmid, timeout=timeout)

    freezing = host_agent.freeze
    monkeypatch.setattr(host_agent, "freeze", frozen)
    world.run(Stage.SNAPSHOT, guests=["100"])
    assert seen == [freeze]
    (argv,) = [ran.argv for ran in world.runner.ran if ran.argv[0] == "systemd-run"]
    assert f"--on-active={watchdog}s" in argv


def test_the_freeze_window_is_a_property_of_the_point(world: World) -> None:
    world.run()
    for host in (HERE, "backup1"):
        assert all(point.window >= 1 for point in world.points(host, WEB))
        assert all(point.window == 0 for point in world.points(host, CT))


def test_a_point_carries_pool_tags_and_version(world: World) -> None:
    edit(world, WEB, "tags: prod;web\n")
    world.node.members[CT] = "production"
    world.run(Stage.SNAPSHOT, guests=["100", "200"])
    (snap,) = world.source.datasets[ZVOL].snaps.values()
    texts = unpack_config([snap.props["pve-zfsbackup:conf"]])
    assert (texts["tags"], texts["pve"]) == ("prod;web", "9.2.11")
    assert "pool" not in texts
    (snap,) = world.source.datasets["rpool/data/subvol-200-disk-0"].snaps.values()
    assert unpack_config([snap.props["pve-zfsbackup:conf"]])["pool"] == "production"


def test_a_firewall_file_that_does_not_fit_is_missed_aloud(world: World) -> None:
    (world.node.etc / "firewall").mkdir()
    (world.node.etc / "firewall/100.fw").write_text(random.Random(1).randbytes(60_000).hex())
    report = world.run(Stage.SNAPSHOT, guests=["100"])
    (result,) = report.results
    assert result.outcome is Outcome.WARNING
    assert result.message == (
        "2 disks, quiesced; its firewall file is too large for the point and not part of it: keep a copy"
    )
    (snap,) = world.source.datasets[ZVOL].snaps.values()
    texts = unpack_config([snap.props["pve-zfsbackup:conf"]])
    assert texts["conf"] == conf(world, WEB).read_text()


def test_a_container_is_frozen_where_its_job_says_so(world: World) -> None:
    job(world, "container-freeze: true")
    report = world.run(Stage.SNAPSHOT, guests=["200"])
    assert report.exit_code is ExitCode.OK, report.results
    assert dict(world.runner.frozen_at).popitem()[1] == {CT}
    (point,) = world.points(HERE, CT)
    assert (point.consistency, point.window > 0) == ("frozen", True)
    assert not world.guest(CT).frozen


def test_commands_around_the_freeze(world: World) -> None:
    job(world, "before-freeze: [/bin/pause, now]")
    job(world, "after-thaw: /bin/resume")
    ran: list[tuple[str, bool]] = []

    def hooks(argv: tuple[str, ...]) -> object:
        assert argv[:4] == ("timeout", "--kill-after=5", "60", "env")
        assert "PZB_VMID=100" in argv
        ran.append((" ".join(argv[argv.index("PZB_VMID=100") + 1 :]), world.guest(WEB).frozen))
        return ok(argv)

    world.runner.hooks = hooks  # type: ignore[assignment]
    assert world.run(Stage.SNAPSHOT, guests=["100"]).exit_code is ExitCode.OK
    assert ran == [("/bin/pause now", False), ("/bin/resume", False)]


def test_a_command_that_fails_before_means_no_freeze(world: World) -> None:
    job(world, "before-freeze: /bin/pause")
    job(world, "after-thaw: /bin/resume")
    world.runner.hooks = lambda argv: no(argv, "cannot pause") if argv[-1] == "/bin/pause" else ok(argv)
    report = world.run(Stage.SNAPSHOT, guests=["100"])
    assert report.results[0].outcome is Outcome.WARNING
    (point,) = world.points(HERE, WEB)
    assert point.consistency == (
        "crash-consistent: the before-freeze command failed: /bin/pause: exit status 1: cannot pause"
    )
    assert [ran.argv[-1] for ran in world.runner.ran if ran.argv[0] == "timeout"] == ["/bin/pause", "/bin/resume"]


def test_what_is_set_on_a_disk_itself_is_in_the_point_or_told_to_be_missing(world: World) -> None:
    world.source.datasets[ZVOL].props["sync"] = "always"
    world.source.datasets["rpool/data"].props["sync"] = "disabled"
    report = world.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.OK
    assert {key: own.get("sync") for key, own in props(world).items()} == {"scsi0": "always", "scsi1": None}
    asked = [ran.argv for ran in world.runner.ran if ran.argv[:2] == ("zfs", "get") and "local,received" in ran.argv]
    assert len(asked) == 1, "of all guests' disks at once"
    world.runner.faults.append(Fault(words=("get", "local,received"), answer=(1, "internal error")))
    report = world.run(Stage.SNAPSHOT)
    (told,) = world.results(report, Outcome.WARNING)
    assert "is not in these points: " in told.message
    assert len(world.complete(HERE, WEB)) == 2, "a point without it is better than none"
    assert props(world)["scsi0"]["volsize"]


def props(world: World) -> dict[str, dict[str, str]]:
    newest = world.source.datasets[ZVOL].newest
    assert newest
    return decode_props(newest.props["pve-zfsbackup:props"])
