"""Boot drills: a guest nobody knows, started from clones, and gone again."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest

from pve_zfsbackup.app.alerts import alerted_run, tell_results
from pve_zfsbackup.app.drill import Ground, Rules, as_result, as_told, drill, drilling_alone, on_node
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health
from pve_zfsbackup.app.history import history
from pve_zfsbackup.app.leavings import STRAY
from pve_zfsbackup.app.measure import measure
from pve_zfsbackup.app.proofs import measured, proofs_between
from pve_zfsbackup.app.proving import prove
from pve_zfsbackup.app.status import status
from pve_zfsbackup.errors import BackupError, CommandTimeoutError, ConfigError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import notify
from pve_zfsbackup.host.boot import Yard
from pve_zfsbackup.host.clones import MARK
from pve_zfsbackup.model import parse_selector
from pve_zfsbackup.model.drill import Drilled
from pve_zfsbackup.model.health import Level as Health
from pve_zfsbackup.model.proof import VERIFIED, Level, Reading
from pve_zfsbackup.model.stages import DRILL, SWEEP
from pve_zfsbackup.report.health import health_json
from pve_zfsbackup.report.leavings import leaving_lines
from pve_zfsbackup.report.metrics import metrics_json
from pve_zfsbackup.report.status import status_json
from pve_zfsbackup.report.verify import drill_json, drilled_table
from tests.fakes.disks import Disks
from tests.fakes.node import GuestState
from tests.fakes.runner import HERE, Fault, Killed
from tests.fakes.world import CONFIG, CT, WEB, World

ID = 999_000
RULES = Rules(every=1.0, budget=3600.0, reading=Reading.NONE, named=True, boot=True)
Call = Callable[..., list[Drilled | Result]]


def at(disks: Disks, ground: Ground, memory: int) -> Ground:
    (disks.place / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {memory << 10} kB\n")
    yard = replace(ground.boots.yard, meminfo=disks.place / "meminfo")
    own = replace(ground.boots, yard=yard, bench=disks.bench(ground.boots.bench))
    return replace(ground, bench=disks.bench(ground.bench), boots=own)


@pytest.fixture
def call(world: World, disks: Disks) -> Call:
    def run(vmid: int = WEB, *, boot: bool = True, memory: int = 8192) -> list[Drilled | Result]:
        with world.session() as session:
            scope = Scope(guests=(parse_selector(str(vmid)),))
            ground = at(disks, on_node(session, scope), memory)
            return list(drill(ground, replace(RULES, boot=boot), session.config, session.now().timestamp()))

    return run


def one(ends: list[Drilled | Result]) -> Drilled:
    (end,) = (end for end in ends if isinstance(end, Drilled))
    return end


def configs(world: World) -> list[str]:
    return sorted(path.name for path in (world.node.etc / "qemu-server").iterdir())


def nothing_is_left(world: World, disks: Disks) -> None:
    assert "999000.conf" not in configs(world)
    for pools in world.hosts:
        assert not [name for name in pools.datasets if "pve-zfsbackup-boot" in name or "pve-zfsbackup-drill" in name]
    assert (disks.mounted, disks.maps) == ({}, [])


def proof(world: World) -> str:
    newest = world.runner.pools[HERE].datasets["rpool/data/vm-100-disk-0"].newest
    assert newest
    return newest.props.get(VERIFIED, "")


def test_a_guest_that_comes_up_is_booted_and_gone(world: World, disks: Disks, call: Call) -> None:
    before = configs(world)
    end = one(call())
    assert (end.judgement.level, end.judgement.problems) == (Level.BOOTED, ())
    assert end.booted
    assert end.booted.system == "Debian \\x1b[2J12"
    assert proof(world).startswith("booted 2026")
    assert configs(world) == before
    nothing_is_left(world, disks)
    started = world.node.started
    assert list(started) == [ID]
    assert "net" not in started[ID]
    assert "scsi0: " + str(disks.devices / "rpool/pve-zfsbackup-boot/") in started[ID]
    (row,) = drill_json([end], [])["drills"]
    assert row["boot_seconds"] >= 0
    assert "up after" in drilled_table([end]).rows[0][-1]


def test_no_other_guest_is_touched(world: World, call: Call) -> None:
    world.runner.ran.clear()
    call()
    touched = {ran.argv[2] for ran in world.runner.ran if ran.argv[0] == "qm" and ran.argv[1] != "guest"}
    assert touched == {str(ID)}
    assert {ran.argv[3] for ran in world.runner.ran if ran.argv[:2] == ("qm", "guest")} == {str(ID)}
    destroyed = [ran.argv[-1] for ran in world.runner.ran if ran.argv[:2] == ("zfs", "destroy")]
    assert all("/pve-zfsbackup-" in name for name in destroyed)


def test_it_is_waited_for_until_it_answers(world: World, call: Call) -> None:
    world.node.guests[ID] = GuestState(running=False, deaf=5)
    assert one(call()).judgement.level is Level.BOOTED


def test_one_that_never_answers_has_failed(world: World, disks: Disks, call: Call) -> None:
    world.node.guests[ID] = GuestState(running=False, agent="dead")
    end = one(call())
    (problem,) = end.judgement.problems
    assert problem.startswith("did not boot: its agent did not answer within 600 s: QEMU guest agent is not running")
    assert as_result(end).outcome is Outcome.FAILED
    assert proof(world).startswith("failed ")
    nothing_is_left(world, disks)


def test_one_that_stops_by_itself_has_failed_at_once(world: World, disks: Disks, call: Call) -> None:
    world.node.guests[ID] = GuestState(running=False, deaf=1, crashes=True)
    assert one(call()).judgement.problems == ("did not boot: it stopped by itself",)
    nothing_is_left(world, disks)


def test_one_that_proxmox_does_not_start_is_told_and_keeps_what_was_proven(
    world: World, disks: Disks, call: Call
) -> None:
    world.runner.faults.append(Fault(words=("qm", "start"), answer=(255, "MAX 2 vcpus allowed per VM on this node")))
    (end,) = call()
    assert isinstance(end, Result)
    assert "MAX 2 vcpus allowed" in end.message
    assert proof(world).startswith("files ")
    nothing_is_left(world, disks)


def test_a_start_without_an_end_is_stopped_and_removed(world: World, disks: Disks, call: Call) -> None:
    world.runner.faults.append(Fault(words=("qm", "start"), error=CommandTimeoutError("qm: no end after 300 s")))
    (end,) = call()
    assert isinstance(end, Result)
    nothing_is_left(world, disks)


def test_who_runs_here_has_memory_first(world: World, disks: Disks, call: Call) -> None:
    end = one(call(memory=900))
    assert end.judgement.level is Level.FILES
    assert end.judgement.notes[-1] == "not booted: it takes 512 MiB of memory, and 900 MiB are free here"
    assert world.node.started == {}
    nothing_is_left(world, disks)


def test_containers_and_bad_disks_are_not_booted(world: World, disks: Disks, call: Call) -> None:
    assert one(call(CT)).judgement.notes[-1] == "not booted: containers are not"
    disks.contents["rpool/data/vm-100-disk-0"].fsck = "Inode 2 has illegal blocks."
    assert one(call()).judgement.level is Level.FAILED
    assert world.node.started == {}


def test_what_was_booted_keeps_its_level_and_its_time_until_a_drill_fails(
    world: World, disks: Disks, call: Call
) -> None:
    call()
    booted = proof(world)
    assert booted.startswith("booted ")
    world.clock.now += 40 * 86_400
    assert one(call(boot=False)).judgement.level is Level.FILES
    assert proof(world) == booted, "nobody booted it since"
    assert one(call()).judgement.level is Level.BOOTED
    assert proof(world) > booted
    disks.contents["rpool/data/vm-100-disk-0"].fsck = "Inode 2 has illegal blocks."
    call(boot=False)
    assert proof(world).startswith("failed ")


def test_the_time_until_it_was_up_is_measured_as_recovery(world: World, disks: Disks) -> None:
    with world.session() as session:
        ground = at(disks, on_node(session, Scope(guests=(parse_selector(str(WEB)),))), 8192)
        now = session.now().timestamp()
        proved = prove(session, DRILL, drill(ground, RULES, session.config, now), as_result, as_told)
        (end,) = (end for end in proved.ends if isinstance(end, Drilled))
        (told,) = proofs_between(session.config, 0, session.now().timestamp())
        recovery = measured(session.config, session.now().timestamp())
        (web, *_) = status_json(status(session, Scope()))["guests"]
        samples = metrics_json(measure(session))["metrics"]
    assert end.booted
    assert told.boot == round(end.booted.seconds, 3) > 0
    assert {proof.stage: proof.seconds for proof in recovery.rto[WEB]} == {DRILL: told.seconds, "boot": told.boot}
    assert web["rto"]["boot"]["seconds"] == told.boot
    rto = {s["labels"]["by"]: s["value"] for s in samples if s["name"].endswith("measured_rto_seconds")}
    assert rto == {"drill": told.seconds, "boot": told.boot}


def test_without_asking_nothing_is_started(world: World, call: Call) -> None:
    assert one(call(boot=False)).judgement.level is Level.FILES
    assert world.node.started == {}


def test_a_taken_vmid_is_not_taken_again(world: World, disks: Disks, call: Call) -> None:
    taken = world.node.define(ID, "cores: 1\nname: somebodys\n")
    elsewhere = world.node.etc / "nodes/pve2/lxc"
    elsewhere.mkdir(parents=True)
    (elsewhere / "999001.conf").write_text("rootfs: x\n")
    assert one(call()).judgement.level is Level.BOOTED
    assert list(world.node.started) == [999_002]
    assert taken.running
    assert "somebodys" in (world.node.etc / f"qemu-server/{ID}.conf").read_text()


def test_a_killed_boot_is_swept_by_the_next_drill(world: World, disks: Disks, call: Call) -> None:
    """Wherever it dies (fault 66): no guest runs on, none is left, and no clone."""
    died = running = 0
    world.runner.ran.clear()
    call()
    ran = [ran.argv for ran in world.runner.ran]
    first = next(n for n, argv in enumerate(ran) if argv[:2] == ("zfs", "create") and "zfsbackup-boot" in argv[-1])
    start = next(n for n, argv in enumerate(ran) if argv[:2] == ("qm", "start"))
    for number in sorted({*range(first, len(ran), 5), start, start + 1, start + 2}):
        world.runner.ran.clear()
        world.runner.kill_at, world.runner.kill_when = number, "after"
        try:
            call()
        except Killed:
            died += 1
        world.runner.revive()
        running += world.node.guests[ID].running
        assert one(call(boot=False)).judgement.level is Level.FILES
        assert not world.node.guests[ID].running
        nothing_is_left(world, disks)
    assert died > 3
    assert running > 0


def test_only_what_is_ours_is_swept(world: World, disks: Disks, call: Call) -> None:
    """A copy of a drill's guest that somebody made, and a guest whose description speaks of us."""
    call()
    mine = world.node.started[ID]
    theirs = {ID: "cores: 1\nname: x\n" + mine, 555: mine}
    states = {vmid: world.node.define(vmid, text) for vmid, text in theirs.items()}
    call(boot=False)
    assert all(state.running for state in states.values())
    assert {f"{vmid}.conf" for vmid in theirs} <= set(configs(world))


def test_a_guest_that_does_not_stop_is_no_silence(world: World, disks: Disks, call: Call) -> None:
    world.node.guests[ID] = GuestState(running=False, stubborn=True)
    (end,) = call()
    assert isinstance(end, Result)
    assert "guest 999000, made by a drill, does not stop: running" in end.message
    assert "999000.conf" in configs(world)
    world.node.guests[ID].stubborn = False
    told = [end.message for end in call(boot=False) if isinstance(end, Result)]
    assert "a boot drill was killed: removed guest 999000" in told
    nothing_is_left(world, disks)


def test_on_a_host_without_proxmox_it_is_refused(world: World, disks: Disks, tmp_path: Path) -> None:
    with world.session() as session:
        ground = on_node(session, Scope(guests=(parse_selector(str(WEB)),)))
        nowhere = replace(ground.boots, yard=replace(ground.boots.yard, root=tmp_path / "none"))
        with pytest.raises(ConfigError, match="is this Proxmox"):
            list(drill(replace(ground, boots=nowhere), RULES, session.config, session.now().timestamp()))


# -- what a killed one leaves, until the next drill


@pytest.fixture
def stray(world: World, disks: Disks, call: Call) -> World:
    """A guest that runs on, because its drill was killed after `qm start`."""
    world.runner.ran.clear()
    call()
    start = next(n for n, ran in enumerate(world.runner.ran) if ran.argv[:2] == ("qm", "start"))
    world.runner.ran.clear()
    world.runner.kill_at, world.runner.kill_when = start, "after"
    with pytest.raises(Killed):
        call()
    world.runner.revive()
    assert world.node.guests[ID].running
    return world


def told_of(world: World) -> list[str]:
    with world.session() as session:
        found = status(session, Scope()).history
        lines = list(leaving_lines(found, UTC))
        findings = [one for one in health(session, Scope()).findings if one.text == STRAY]
        assert found.strays == tuple(health_json(health(session, Scope()))["strays"])
    assert [one.level for one in findings] == [Health.WARNING] * len(lines)
    assert [f"{one.about}: {one.text}" for one in findings] == lines
    return lines


def test_a_guest_that_runs_on_is_told_by_status_and_check(stray: World) -> None:
    assert told_of(stray) == [f"guest {ID}: {STRAY}"]


def test_every_run_takes_it_away_after_its_own_work(stray: World, disks: Disks) -> None:
    points = len(stray.complete(HERE, WEB))
    report = stray.run()
    assert report.exit_code == 0, stray.results(report, Outcome.FAILED)
    assert next((one.stage, one.message) for one in stray.results(report, Outcome.WARNING)) == (
        "sweep", f"a boot drill was killed: removed guest {ID}",
    )  # fmt: skip
    assert len(stray.complete(HERE, WEB)) == points + 1
    assert not stray.node.guests[ID].running
    nothing_is_left(stray, disks)
    assert told_of(stray) == []
    assert stray.results(stray.run(), Outcome.WARNING) == []


def test_the_sweep_of_a_run_is_no_drill_that_went_well(stray: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mails: list[str] = []
    monkeypatch.setattr(notify, "mail", lambda runner, to, subject, text: mails.append(subject))
    stray.configure(CONFIG + "alerts: {{mail: [root]}}\n")
    bad = Result(stage=DRILL, outcome=Outcome.FAILED, vmid=WEB, guest="web", message="its file system is damaged")

    def broken() -> Iterator[Result]:
        yield bad
        raise BackupError("the pool went away")

    with stray.session() as session:
        with pytest.raises(BackupError):
            prove(session, DRILL, broken(), lambda end: end)
        stray.clock.now += 3600
        report, _ = alerted_run(session, Scope())
        told = measure(session)
    assert told.last[DRILL].failed(DRILL)
    assert DRILL not in told.good
    assert SWEEP not in {*told.last, *told.good}, "it does not come again"
    assert not [subject for subject in mails if "recovered" in subject]
    assert "sweep" in {result.stage for result in report.results}


def test_a_sweep_that_failed_is_over_with_the_next_sweep_or_drill(
    stray: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    mails: list[str] = []
    monkeypatch.setattr(notify, "mail", lambda runner, to, subject, text: mails.append(subject))
    stray.configure(CONFIG + "alerts: {{mail: [root]}}\n")
    for ending in (SWEEP, DRILL):
        stray.node.guests[ID].stubborn = True
        with stray.session() as session:
            stray.clock.now += 3600
            alerted_run(session, Scope())
            assert "recovered" not in mails[-1]
            tell_results(session, [Result(stage=ending, outcome=Outcome.OK)])
        assert "1 recovered" in mails[-1]


def test_while_a_drill_is_at_work_its_guest_is_its_own(stray: World) -> None:
    with stray.session() as session, drilling_alone(session.config):
        assert told_of(stray) == []
        stray.run()
        assert stray.node.guests[ID].running
    assert told_of(stray) != []


def test_one_that_does_not_go_fails_the_run_but_no_other_guest(stray: World) -> None:
    stray.node.guests[ID].stubborn = True
    report = stray.run()
    (failure,) = stray.results(report, Outcome.FAILED)
    assert (failure.stage, failure.vmid) == ("sweep", None)
    assert "does not stop" in failure.message
    assert len(stray.results(report, Outcome.OK)) >= 6
    assert told_of(stray) != []


def test_proxmoxs_file_system_that_goes_away_meanwhile_breaks_nothing_off(
    stray: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([(ID,), (ID,)])  # the two before it is swept

    def gone(yard: Yard) -> tuple[int, ...]:
        for found in looks:
            return found
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("pve_zfsbackup.app.leavings.marked_guests", gone)
    monkeypatch.setattr("pve_zfsbackup.host.boot.marked_guests", gone)
    report = stray.run()
    (failure,) = stray.results(report, Outcome.FAILED)
    assert failure.stage == "sweep"
    assert "Transport endpoint is not connected" in failure.message
    with stray.session() as session:
        found = history(session, Scope())
    assert found.strays == ()
    assert any("whether a drill left a guest cannot be told" in note for note in found.notes)


def test_one_that_comes_up_while_it_is_removed_keeps_its_configuration(
    stray: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `qm start` that outlived its drill: without a configuration nobody would find the guest again."""
    states = iter(("stopped", "stopped", "running"))
    monkeypatch.setattr("pve_zfsbackup.host.boot._state", lambda *_: next(states))
    (failure,) = stray.results(stray.run(), Outcome.FAILED)
    assert "it stays" in failure.message
    assert "999000.conf" in configs(stray)
    monkeypatch.undo()
    assert told_of(stray) != []
    stray.run()
    assert told_of(stray) == []


def test_a_strange_mark_on_a_dataset_of_others_is_told_and_breaks_nothing_off(stray: World) -> None:
    name = "rpool/pve-zfsbackup-boot/mine"
    stray.source.add(name).props[MARK] = "a\tb\nc\td"
    (failure,) = stray.results(stray.run(), Outcome.FAILED)
    assert f"{name}: left, and not ours" in failure.message
    assert name in stray.source.datasets


def test_guests_of_others_are_no_strays(stray: World) -> None:
    mine = stray.node.started[ID]
    stray.node.define(999_001, "cores: 1\nname: theirs\n" + mine)
    stray.node.define(999_002, mine)  # a copy names the vmid it was made of
    assert told_of(stray) == [f"guest {ID}: {STRAY}"]
    stray.run()
    assert {999_001, 999_002} <= {int(name.removesuffix(".conf")) for name in configs(stray)}


def test_where_there_is_none_nothing_is_asked(world: World, disks: Disks) -> None:
    world.runner.ran.clear()
    world.run()
    ran = [ran.argv for ran in world.runner.ran]
    assert not [argv for argv in ran if argv[0] in ("qm", "dmsetup") and argv[1:2] != ("guest",)]
    assert len([argv for argv in ran if argv[:2] == ("zfs", "list") and "pve-zfsbackup-" in argv[-1]]) == 0
