"""The freeze window: what is truthfully recorded, and that the guest thaws whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.errors import (
    CommandTimeoutError,
    FreezeError,
    GuestBusyError,
    GuestChangedError,
    PveError,
    PveUnreachableError,
)
from pve_zfsbackup.host import watchdog
from pve_zfsbackup.host.agent import LET_GO, ApiAgent, NodeAgent, QmAgent
from pve_zfsbackup.host.api import refusal
from pve_zfsbackup.host.container import ContainerFreezer
from pve_zfsbackup.host.guests import is_running
from pve_zfsbackup.host.hooks import freeze_hook
from pve_zfsbackup.host.lock import migration_lock
from pve_zfsbackup.host.pvesh import PveshApi
from pve_zfsbackup.host.quiesce import FreezeRules, Quiescer, Window
from pve_zfsbackup.host.watchdog import SystemdWatchdog, thaw_argv
from pve_zfsbackup.model import Consistency, Guest, GuestKind, PointId, Quiesce, SnapshotGuest, Vmid
from tests.fakes.node import FakeNode, GuestState
from tests.fakes.pools import Clock, Pools, no, ok
from tests.fakes.runner import HERE, FakeRunner, Fault, Killed, Ran


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    made = FakeNode(tmp_path / "etc")
    made.define(100, "name: web\n")
    return made


@pytest.fixture
def runner(node: FakeNode) -> FakeRunner:
    return FakeRunner({HERE: Pools(HERE, Clock())}, node, {})


@pytest.fixture
def guest(node: FakeNode) -> GuestState:
    return node.guests[100]


@pytest.fixture
def quiescer(runner: FakeRunner, tmp_path: Path) -> Quiescer:
    return Quiescer(
        agents={GuestKind.VM: QmAgent(runner), GuestKind.CT: ContainerFreezer(runner)},
        watchdog=SystemdWatchdog(runner),
        markers=tmp_path / "state/frozen",
        running=lambda guest: is_running(PveshApi(runner), guest),
        migration=lambda vmid: migration_lock(vmid, directory=tmp_path / "migrate"),
        unchanged=lambda guest: None,
        hook=freeze_hook(runner, 60),
    )


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes by only where somebody sleeps."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


def step(*, freeze: bool = True, quiesce: Quiesce = Quiesce.PREFER, running: bool = True) -> SnapshotGuest:
    return SnapshotGuest(
        guest=Guest(vmid=Vmid(100), kind=GuestKind.VM, node="pve1", name="web", running=running),
        point=PointId("100/20261118T101010Z-ab12"),
        name="pzb:20261118T101010Z-ab12",
        pools=(),
        disks="",
        quiesce=quiesce,
        freeze=freeze,
        reason="" if freeze else "quiesce is off",
    )


def words(runner: FakeRunner) -> list[str]:
    """What was done, in short: freeze, thaw, status, arm, disarm."""
    short = {"systemd-run": "arm", "systemctl": "disarm"}
    return [short.get(ran.argv[0], ran.argv[-1].removeprefix("fsfreeze-")) for ran in runner.ran]


def marker(quiescer: Quiescer) -> Path:
    return quiescer.markers / "100"


def through(quiescer: Quiescer, wanted: SnapshotGuest, inside: Callable[[], object] = lambda: None) -> Window:
    with quiescer.window(wanted, FreezeRules()) as window:
        inside()
    return window


def test_armed_before_the_freeze_and_disarmed_after_the_thaw(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState
) -> None:
    def inside() -> None:
        assert guest.frozen
        assert marker(quiescer).exists()
        assert marker(quiescer).parent.stat().st_mode & 0o777 == 0o700

    window = through(quiescer, step(), inside)
    assert words(runner) == ["status", "arm", "freeze", "thaw", "disarm"]
    assert (window.consistency, window.label) == (Consistency.QUIESCED, "quiesced")
    assert not guest.frozen
    assert not marker(quiescer).exists()
    assert not runner.timers


def test_the_watchdog_is_a_timer_that_retries(
    quiescer: Quiescer, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "uptime", lambda: 1000.0)
    through(quiescer, step())
    argv = next(ran.argv for ran in runner.ran if ran.argv[0] == "systemd-run")
    assert "--unit=pve-zfsbackup-thaw-100-ab12" in argv
    assert "--on-active=20s" in argv
    assert "--property=Restart=on-failure" in argv
    assert argv[argv.index("--") + 1 :] == thaw_argv(GuestKind.VM, Vmid(100), 1000 + 20 + 60)
    stop = next(ran.argv for ran in runner.ran if ran.argv[0] == "systemctl")
    assert stop == ("systemctl", "stop", "pve-zfsbackup-thaw-100-*.timer", "pve-zfsbackup-thaw-100-*.service")


@pytest.mark.parametrize(("limit", "thawed"), [(1, 11), (10, 20), (18, 28), (20, 28)])
def test_no_freeze_lasts_longer_than_30_s(quiescer: Quiescer, runner: FakeRunner, limit: float, thawed: int) -> None:
    """With the second the timer may be late, and qm's own; also when it is the snapshot that takes so long."""
    with quiescer.window(step(), FreezeRules(limit=limit)):
        pass
    argv = next(ran.argv for ran in runner.ran if ran.argv[0] == "systemd-run")
    assert f"--on-active={thawed}s" in argv


def test_a_snapshot_that_takes_too_long_loses_the_freeze_and_says_so(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState
) -> None:
    window = through(quiescer, step(), runner.fire_timers)
    assert window.label == f"crash-consistent: nothing was still {LET_GO}"
    assert not guest.frozen


def test_without_a_freeze_nothing_is_touched(quiescer: Quiescer, runner: FakeRunner) -> None:
    window = through(quiescer, step(freeze=False))
    assert window.label == "crash-consistent: quiesce is off"
    assert not runner.ran
    assert not quiescer.markers.exists()


def test_inside_the_window_a_point_claims_nothing(quiescer: Quiescer, guest: GuestState) -> None:
    """What is written with the snapshot stays when this process is killed a moment later."""
    unproven = "crash-consistent: the run was cut off before more was proven"
    with quiescer.window(step(), FreezeRules()) as frozen:
        assert frozen.label == unproven
    guest.running = False
    with quiescer.window(step(freeze=False, running=False), FreezeRules()) as stopped:
        assert stopped.label == unproven
    assert (frozen.label, stopped.label) == ("quiesced", "offline: quiesce is off")


def test_a_guest_started_meanwhile_is_not_called_offline(quiescer: Quiescer, guest: GuestState) -> None:
    guest.running = False
    window = through(quiescer, step(freeze=False, running=False), lambda: setattr(guest, "running", True))
    assert window.label == "crash-consistent: the guest was started while its point was made"


def test_a_guest_started_before_its_snapshot_is_to_be_read_anew(quiescer: Quiescer, guest: GuestState) -> None:
    """The listing said stopped, minutes ago: now it can be frozen."""
    assert guest.running
    with pytest.raises(GuestChangedError, match="guest 100: was started since it was read"):
        through(quiescer, step(freeze=False, running=False), lambda: pytest.fail("nothing is snapshotted"))


@pytest.mark.parametrize("hibernated", [False, True])
def test_a_point_that_would_be_crash_consistent_is_none_where_freezing_is_required(
    quiescer: Quiescer, node: FakeNode, hibernated: bool
) -> None:
    wanted = step(freeze=False, running=False, quiesce=Quiesce.REQUIRE)
    wanted = replace(wanted, guest=replace(wanted.guest, lock="suspended" if hibernated else ""))
    node.api = "no quorum"
    told = "guest is hibernated" if hibernated else "whether the guest runs is not known: .*no quorum"
    with pytest.raises(FreezeError, match=f"guest 100: quiescing is required, but {told}"):
        through(quiescer, wanted, lambda: pytest.fail("nothing is snapshotted"))


def test_a_state_nobody_tells_is_not_called_offline(quiescer: Quiescer, node: FakeNode, guest: GuestState) -> None:
    guest.running = False
    window = through(quiescer, step(freeze=False, running=False), lambda: setattr(node, "api", "no quorum"))
    assert window.label.startswith("crash-consistent: whether the guest runs is not known")


def test_a_refusing_agent_leaves_a_crash_consistent_point(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState
) -> None:
    guest.agent = "refuse"
    window = through(quiescer, step())
    assert window.consistency is Consistency.CRASH
    assert "has been disabled" in window.reason
    assert words(runner) == ["status", "arm", "freeze", "disarm"], "certainly not frozen: no thaw"
    assert not marker(quiescer).exists()


@pytest.mark.parametrize("agent", ["dead", "hang"])
def test_an_agent_that_does_not_answer_is_not_asked_to_freeze(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState, agent: str
) -> None:
    guest.agent = agent
    window = through(quiescer, step())
    assert window.label.startswith("crash-consistent: the guest agent does not answer")
    assert words(runner) == ["status"]


def test_somebody_elses_freeze_is_not_ours_to_thaw(quiescer: Quiescer, runner: FakeRunner, guest: GuestState) -> None:
    guest.frozen = True
    window = through(quiescer, step())
    assert window.label == "crash-consistent: the guest is already frozen by somebody else"
    assert words(runner) == ["status"]
    assert guest.frozen


def test_a_guest_thawed_by_somebody_else_is_not_called_quiesced(quiescer: Quiescer, guest: GuestState) -> None:
    window = through(quiescer, step(), lambda: setattr(guest, "frozen", False))
    assert window.label == f"crash-consistent: nothing was still {LET_GO}"


@pytest.mark.parametrize(
    ("left", "label"),
    [
        (1, f"crash-consistent: only 1 of 3 file systems were still {LET_GO}"),
        (3, "quiesced"),
        (4, "quiesced"),
    ],
)
def test_file_systems_that_somebody_else_thawed_are_missed(
    quiescer: Quiescer, guest: GuestState, left: int, label: str
) -> None:
    """qemu-ga counts in both the file systems that were frozen and let go. More than were ours were frozen twice."""
    guest.filesystems = 3
    assert through(quiescer, step(), lambda: setattr(guest, "filesystems", left)).label == label


def test_an_agent_that_hangs_in_the_window_is_judged_by_its_thaw(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState
) -> None:
    thaws = []

    def back(ran: Ran) -> None:
        if ran.argv[0] == "qm" and ran.argv[-1] == "fsfreeze-thaw":
            thaws.append(ran)
            guest.agent = "ok" if len(thaws) == 3 else "hang"

    runner.watchers.append(back)
    window = through(quiescer, step(), lambda: setattr(guest, "agent", "hang"))
    assert (window.label, len(thaws)) == ("quiesced", 3), "it found its file systems frozen"
    assert not guest.frozen
    assert not marker(quiescer).exists()


def test_a_thaw_whose_answer_was_lost_proves_nothing(quiescer: Quiescer, runner: FakeRunner, guest: GuestState) -> None:
    def lost(ran: Ran) -> None:
        if ran.argv[0] == "qm" and ran.argv[-1] == "fsfreeze-thaw":
            runner.watchers.remove(lost)
            guest.frozen = False
            raise CommandTimeoutError("qm: no end after 15 s")

    runner.watchers.append(lost)
    assert through(quiescer, step()).label == f"crash-consistent: nothing was still {LET_GO}"
    assert not marker(quiescer).exists()


def test_a_freeze_of_nothing_is_not_called_quiesced(quiescer: Quiescer, runner: FakeRunner, guest: GuestState) -> None:
    """Qemu-ga counts 0 where no file system can be frozen, and calls itself thawed."""
    guest.filesystems = 0
    window = through(quiescer, step())
    assert window.label == "crash-consistent: the guest agent found nothing to freeze"
    assert words(runner)[-2:] == ["thaw", "disarm"]


def test_a_freeze_whose_answer_was_lost_is_thawed(quiescer: Quiescer, runner: FakeRunner, guest: GuestState) -> None:
    guest.lost = True
    window = through(quiescer, step(), lambda: None)
    assert window.label.startswith("crash-consistent: freezing was given up")
    assert words(runner) == ["status", "arm", "freeze", "thaw", "disarm"]
    assert not guest.frozen


@pytest.mark.parametrize("answer", ["cut", 404, 502, 503, 504])
def test_a_freeze_whose_answer_a_proxy_cut_or_replaced_is_thawed(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState, answer: int | str
) -> None:
    class Proxied:
        """The freeze takes place; what comes back is not Proxmox's word."""

        def request(self, method: str, path: str, params: object = None, *, timeout: float | None = None) -> object:
            done = runner.run(("qm", "guest", "cmd", "100", path.rpartition("/")[2])).stdout.strip()
            if path.endswith("-freeze") and answer == "cut":
                raise PveError("this is no Proxmox API", status=200)
            if path.endswith("-freeze"):
                raise refusal(int(answer), "Bad Gateway", {})
            return {"result": int(done) if done.isdecimal() else done}

    behind = replace(quiescer, agents={GuestKind.VM: ApiAgent(Proxied(), "pve1")})  # type: ignore[arg-type]
    window = through(behind, step())
    assert window.label.startswith("crash-consistent: freezing was given up")
    assert words(runner) == ["status", "arm", "freeze", "thaw", "disarm"]
    assert not guest.frozen


def test_a_thaw_that_is_not_heard_is_repeated(quiescer: Quiescer, runner: FakeRunner, guest: GuestState) -> None:
    guest.deaf = 7
    through(quiescer, step())
    assert words(runner).count("thaw") == 8
    assert not guest.frozen


def test_a_guest_that_never_confirms_its_thaw_is_left_to_the_watchdog(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState
) -> None:
    with pytest.raises(PveError):
        through(quiescer, step(), lambda: setattr(guest, "agent", "hang"))
    assert marker(quiescer).exists()
    assert len(runner.timers) == 1
    guest.agent = "ok"
    runner.fire_timers()
    assert not guest.frozen


def test_the_watchdog_does_not_take_the_guests_error_for_a_thaw(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState
) -> None:
    """qm prints it and exits 0: a unit that went by the status would be done, and the guest frozen for good."""
    with pytest.raises(PveError):
        through(quiescer, step(), lambda: setattr(guest, "agent", "hang"))
    guest.agent, guest.grumbles = "ok", 1
    runner.fire_timers()
    assert guest.frozen
    assert len(runner.timers) == 1, "systemd runs it again"
    runner.fire_timers()
    assert not guest.frozen


@pytest.mark.parametrize("comes", [True, False])
def test_the_watchdog_waits_for_a_freeze_that_is_still_queued(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    """Behind pvedaemon's workers, given up by us: until one of them gets to it, a thaw finds nothing frozen."""

    class Queued(QmAgent):
        def call(self, vmid: Vmid, command: str, timeout: float) -> object:
            if command == "fsfreeze-freeze":
                raise PveUnreachableError("no answer in time")
            return super().call(vmid, command, timeout)

    now = watchdog.uptime()
    monkeypatch.setattr(watchdog, "uptime", lambda: now)
    window = through(replace(quiescer, agents={GuestKind.VM: Queued(runner)}), step())
    assert window.label == "crash-consistent: freezing was given up: no answer in time"
    assert marker(quiescer).exists()
    now += 20
    runner.fire_timers()
    assert runner.timers, "systemd runs it again"
    guest.frozen = comes
    now += 59 if comes else 61
    runner.fire_timers()
    assert not guest.frozen
    assert not runner.timers, "it ends by itself"


def test_what_goes_wrong_inside_still_thaws(quiescer: Quiescer, guest: GuestState) -> None:
    with pytest.raises(ZeroDivisionError):
        through(quiescer, step(), lambda: 1 // 0)
    assert not guest.frozen
    assert not marker(quiescer).exists()


def test_an_interrupt_inside_still_thaws(quiescer: Quiescer, guest: GuestState) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        through(quiescer, step(), interrupt)
    assert not guest.frozen


@pytest.mark.parametrize("agent", ["dead", "hang", "refuse"])
def test_required_quiescing_that_fails_takes_no_snapshot(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState, agent: str
) -> None:
    guest.agent = agent
    with pytest.raises(FreezeError, match="quiescing is required, but"):
        through(quiescer, step(quiesce=Quiesce.REQUIRE), lambda: pytest.fail("inside"))
    assert not runner.timers
    assert not marker(quiescer).exists()


def test_required_quiescing_whose_answer_was_lost_is_thawed_and_fails(quiescer: Quiescer, guest: GuestState) -> None:
    guest.lost = True
    with pytest.raises(FreezeError):
        through(quiescer, step(quiesce=Quiesce.REQUIRE), lambda: pytest.fail("inside"))
    assert not guest.frozen


def test_required_quiescing_does_not_take_somebody_elses_freeze(quiescer: Quiescer, guest: GuestState) -> None:
    guest.frozen = True
    with pytest.raises(FreezeError, match="already frozen by somebody else"):
        through(quiescer, step(quiesce=Quiesce.REQUIRE), lambda: pytest.fail("inside"))
    assert guest.frozen


@pytest.mark.parametrize("quiesce", [Quiesce.PREFER, Quiesce.REQUIRE])
def test_without_a_watchdog_there_is_no_freeze(quiescer: Quiescer, runner: FakeRunner, quiesce: Quiesce) -> None:
    runner.faults.append(Fault(words=("systemd-run",), answer=(1, "Failed to start transient timer unit")))
    if quiesce is Quiesce.REQUIRE:
        with pytest.raises(FreezeError, match="watchdog cannot be armed"):
            through(quiescer, step(quiesce=quiesce))
    else:
        window = through(quiescer, step(quiesce=quiesce))
        assert window.label.startswith("crash-consistent: the watchdog cannot be armed: systemd-run: Failed to start")
    assert words(runner) == ["status", "arm"]
    assert not marker(quiescer).exists(), "the sweep would thaw what we never froze"


def test_the_window_tells_how_long_the_guest_stood_still(quiescer: Quiescer) -> None:
    assert through(quiescer, step(), lambda: time.sleep(1.5)).seconds == 1.5


# -- the sweep


def test_the_sweep_thaws_what_a_killed_run_left(quiescer: Quiescer, runner: FakeRunner, guest: GuestState) -> None:
    def die(ran: Ran) -> None:
        if ran.argv[0] == "qm" and ran.argv[-1] == "fsfreeze-thaw":
            raise Killed

    runner.watchers.append(die)
    with pytest.raises(Killed):
        through(quiescer, step())
    runner.watchers.clear()
    assert guest.frozen
    assert marker(quiescer).exists()
    assert quiescer.sweep() == ["guest 100: thawed after an interrupted run"]
    assert not guest.frozen
    assert not runner.timers
    assert quiescer.sweep() == []


@pytest.mark.parametrize("way", ["sweep", "by hand"])
def test_a_token_that_was_revoked_keeps_no_guest_frozen(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState, way: str
) -> None:
    class Refusing:
        def call(self, vmid: Vmid, command: str, timeout: float) -> object:
            raise PveError("invalid token value!", status=401)

    guest.frozen = True
    quiescer.markers.mkdir(parents=True)
    marker(quiescer).touch()
    node = replace(quiescer, agents={GuestKind.VM: NodeAgent(Refusing(), QmAgent(runner))})
    if way == "sweep":
        assert node.sweep() == ["guest 100: thawed after an interrupted run"]
    else:
        assert node.thaw(Vmid(100)) == 2
    assert not guest.frozen
    assert not marker(quiescer).exists()


def of_a_life(quiescer: Quiescer, tmp_path: Path, boot: str = "b2", pid: str = "22") -> Quiescer:
    (tmp_path / "boot_id").write_text(f"{boot}\n")
    (tmp_path / "pids").mkdir(exist_ok=True)
    (tmp_path / "pids/100.pid").write_text(f"{pid}\n")
    return replace(quiescer, boot_id=tmp_path / "boot_id", pids=tmp_path / "pids")


def test_a_marker_says_in_which_life_of_the_guest_it_was_written(quiescer: Quiescer, tmp_path: Path) -> None:
    life = of_a_life(quiescer, tmp_path)
    seen = through_text(life)
    assert (seen[0], seen[2:]) == ("qemu", ["b2", "22"])
    (tmp_path / "pids/100.pid").unlink()
    assert through_text(life)[2:] == ["b2"]
    (tmp_path / "boot_id").unlink()
    assert through_text(life)[2:] == ["-"]


def through_text(quiescer: Quiescer) -> list[str]:
    seen: list[str] = []
    through(quiescer, step(), lambda: seen.extend(marker(quiescer).read_text().split()))
    return seen


@pytest.mark.parametrize("text", ["qemu 1 b1 22\n", "qemu 1 b2 11\n", "qemu 1 b1\n"])
def test_somebody_elses_freeze_is_not_ended_for_a_marker_of_a_former_life(
    quiescer: Quiescer,
    runner: FakeRunner,
    guest: GuestState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    """After a reboot vzdump freezes the guest, and a sweep that goes by the marker alone would break its backup."""
    life = of_a_life(quiescer, tmp_path)
    quiescer.markers.mkdir(parents=True)
    marker(quiescer).write_text(text)
    guest.frozen = True
    sleep = time.sleep

    def meanwhile(seconds: float) -> None:
        sleep(seconds)
        guest.frozen = time.monotonic() < 8

    monkeypatch.setattr(time, "sleep", meanwhile)
    assert life.sweep() == ["guest 100: was started again since an interrupted run, and is not frozen"]
    assert "thaw" not in words(runner)
    assert words(runner)[-1] == "disarm", "nor by a watchdog that waits for a freeze to come"
    assert not marker(quiescer).exists()


def test_a_freeze_that_lasts_is_ended_also_for_a_marker_of_a_former_life(
    quiescer: Quiescer, guest: GuestState, tmp_path: Path
) -> None:
    """The guest may have migrated away frozen, and back after the reboot: no one else will ever thaw it."""
    life = of_a_life(quiescer, tmp_path)
    quiescer.markers.mkdir(parents=True)
    marker(quiescer).write_text("qemu 1 b1 11\n")
    guest.frozen = True
    assert life.sweep() == ["guest 100: thawed after an interrupted run"]
    assert time.monotonic() >= 30
    assert not guest.frozen


@pytest.mark.parametrize("text", ["qemu 1\n", "", "qemu 1 b2 22\n", "qemu 1 b2\n", "qemu 1 - 22\n", "\xff"])
def test_a_marker_of_this_life_or_of_old_thaws_at_once(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState, tmp_path: Path, text: str
) -> None:
    life = of_a_life(quiescer, tmp_path)
    quiescer.markers.mkdir(parents=True)
    marker(quiescer).write_text(text)
    guest.frozen = True
    assert life.sweep() == ["guest 100: thawed after an interrupted run"]
    assert words(runner)[0] == "thaw"
    assert not guest.frozen


def test_a_stopped_guest_of_a_former_life_is_not_waited_for(
    quiescer: Quiescer, guest: GuestState, tmp_path: Path
) -> None:
    life = of_a_life(quiescer, tmp_path)
    quiescer.markers.mkdir(parents=True)
    marker(quiescer).write_text("qemu 1 b1 11\n")
    guest.running = False
    assert len(life.sweep()) == 1
    assert time.monotonic() == 0
    assert not marker(quiescer).exists()


def test_the_sweep_says_what_it_could_not_do_and_goes_on(quiescer: Quiescer, node: FakeNode, guest: GuestState) -> None:
    node.define(101, "name: db\n").frozen = True
    quiescer.markers.mkdir(parents=True)
    for vmid in ("100", "101", "999"):
        (quiescer.markers / vmid).touch()
    guest.agent = "hang"
    told = quiescer.sweep()
    assert told[0].startswith("guest 100: may still be frozen by an interrupted run: ")
    assert told[1:] == ["guest 101: thawed after an interrupted run", "guest 999: thawed after an interrupted run"]
    assert [path.name for path in quiescer.markers.iterdir()] == ["100"]


def test_a_watchdog_that_cannot_be_stopped_does_not_stop_the_sweep(quiescer: Quiescer, runner: FakeRunner) -> None:
    quiescer.markers.mkdir(parents=True)
    marker(quiescer).touch()
    runner.faults.append(Fault(words=("systemctl",), answer=(1, "Failed to connect to bus")))
    (told,) = quiescer.sweep()
    assert "Failed to connect to bus" in told
    assert marker(quiescer).exists(), "it is tried again"


def test_a_stopped_guest_counts_as_thawed(quiescer: Quiescer, guest: GuestState) -> None:
    quiescer.markers.mkdir(parents=True)
    marker(quiescer).touch()
    guest.running = False
    assert quiescer.sweep() == ["guest 100: thawed after an interrupted run"]


# -- what else can happen to a freeze


def test_a_windows_guest_that_let_writes_through_is_not_called_quiesced(
    quiescer: Quiescer, runner: FakeRunner, guest: GuestState
) -> None:
    """VSS gives up after about 10 s and says so at the thaw, the freeze long being over (reliability §2)."""
    guest.agent = "vss"
    window = through(quiescer, step())
    assert window.label == ("crash-consistent: the guest could not hold its writes back until the snapshot was done")
    assert words(runner) == ["status", "arm", "freeze", "thaw", "disarm"], "nothing is left to thaw"
    assert not marker(quiescer).exists()


def test_while_proxmox_moves_the_guest_nothing_is_frozen(quiescer: Quiescer, runner: FakeRunner) -> None:
    with quiescer.migration(Vmid(100)), pytest.raises(GuestBusyError, match="is being migrated"):
        through(quiescer, step(), lambda: pytest.fail("inside"))
    assert words(runner) == ["status"]
    assert not marker(quiescer).exists()


def test_a_hibernated_guest_is_not_called_offline(quiescer: Quiescer, guest: GuestState) -> None:
    guest.running = False
    asleep = step(freeze=False, running=False)
    window = through(quiescer, replace(asleep, guest=replace(asleep.guest, lock="suspended")))
    assert window.label.startswith("crash-consistent: guest is hibernated")


# -- containers


def container(quiesce: Quiesce = Quiesce.PREFER) -> SnapshotGuest:
    return replace(step(quiesce=quiesce), guest=Guest(vmid=Vmid(200), kind=GuestKind.CT, node="pve1", name="files",
                                                      running=True))  # fmt: skip


@pytest.fixture
def ct(node: FakeNode) -> GuestState:
    return node.define(200, "rootfs: local-zfs:subvol-200-disk-0\n")


def programs(runner: FakeRunner) -> list[str]:
    return [ran.argv[0] for ran in runner.ran]


def test_a_container_stands_still_for_its_snapshot(quiescer: Quiescer, runner: FakeRunner, ct: GuestState) -> None:
    def inside() -> None:
        assert ct.frozen
        assert (quiescer.markers / "200").read_text().startswith("lxc ")
        assert list(runner.timers.values()) == [("lxc-unfreeze", "-n", "200")]

    window = through(quiescer, container(), inside)
    assert window.label == "frozen"
    assert not ct.frozen
    assert not runner.timers
    assert not (quiescer.markers / "200").exists()
    done = ["lxc-info", "systemd-run", "lxc-info", "lxc-freeze", "lxc-info", "lxc-unfreeze", "systemctl"]
    assert programs(runner) == done


def test_a_container_that_somebody_let_go_is_not_called_frozen(quiescer: Quiescer, ct: GuestState) -> None:
    window = through(quiescer, container(), lambda: setattr(ct, "frozen", False))
    assert window.label == f"crash-consistent: nothing was still {LET_GO}"


def test_a_container_that_somebody_froze_stays_frozen(quiescer: Quiescer, runner: FakeRunner, ct: GuestState) -> None:
    ct.frozen = True
    assert "already frozen" in through(quiescer, container()).label
    assert ct.frozen
    assert programs(runner) == ["lxc-info"]


@pytest.mark.parametrize("agent", ["hang", "refuse"])
def test_a_container_that_cannot_be_frozen_is_thawed_all_the_same(
    quiescer: Quiescer, runner: FakeRunner, ct: GuestState, agent: str
) -> None:
    """A freezer that waits for FUSE has stopped some of the processes already."""
    ct.agent = agent

    def inside() -> None:
        ct.agent = "ok"

    window = through(quiescer, container(), inside)
    assert window.label.startswith("crash-consistent: freezing was given up: ct 200: lxc-freeze")
    assert "lxc-unfreeze" in programs(runner)
    assert not ct.frozen


def test_a_container_that_was_never_frozen_leaves_no_marker_and_no_watchdog(
    quiescer: Quiescer, runner: FakeRunner, ct: GuestState
) -> None:
    """No freeze of it can still be queued: that its thaw found nothing frozen is the end of it."""
    runner.faults.append(Fault(words=("lxc-freeze",), answer=(1, "no such freezer")))
    assert "freezing was given up" in through(quiescer, container()).label
    assert not (quiescer.markers / "200").exists()
    assert not runner.timers
    assert not ct.frozen


def test_a_container_that_does_not_thaw_is_left_to_its_watchdog_and_the_sweep(
    quiescer: Quiescer, runner: FakeRunner, ct: GuestState
) -> None:
    with pytest.raises(PveError):
        through(quiescer, container(), lambda: setattr(ct, "agent", "hang"))
    ct.agent = "ok"
    runner.fire_timers()
    assert not ct.frozen
    ct.frozen = True
    assert quiescer.sweep() == ["guest 200: thawed after an interrupted run"]
    assert not ct.frozen


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_container_that_is_gone_needs_no_thaw(quiescer: Quiescer, node: FakeNode, by_hand: bool) -> None:
    """Or its marker would be a failure of every run from now on."""
    quiescer.markers.mkdir(parents=True)
    (quiescer.markers / "200").write_text("lxc 1\n")
    if by_hand:
        assert quiescer.thaw(Vmid(200)) == 0
    else:
        assert quiescer.sweep() == ["guest 200: thawed after an interrupted run"]
    assert time.monotonic() == 0, "and is not waited for"
    assert not (quiescer.markers / "200").exists()


def test_a_container_that_stopped_needs_no_thaw(quiescer: Quiescer, ct: GuestState) -> None:
    window = through(quiescer, container(), lambda: setattr(ct, "running", False))
    assert window.consistency is Consistency.CRASH
    assert not (quiescer.markers / "200").exists()


# -- commands around it


RULES = FreezeRules(before=(("/bin/pause",),), after=(("/bin/resume", "now"),))


def stages(runner: FakeRunner) -> list[str]:
    return [ran.argv[-1] for ran in runner.ran if ran.argv[0] == "timeout"]


def test_what_goes_wrong_inside_still_runs_what_belongs_after(quiescer: Quiescer, runner: FakeRunner) -> None:
    with pytest.raises(ZeroDivisionError), quiescer.window(step(), RULES):
        _ = 1 / 0
    assert stages(runner) == ["/bin/pause", "now"]
    assert programs(runner)[-1] == "timeout", "after the thaw"


def test_required_quiescing_fails_with_the_command_before_it(quiescer: Quiescer, runner: FakeRunner) -> None:
    runner.hooks = lambda argv: no(argv, "no") if argv[-1] == "/bin/pause" else ok(argv)
    with (
        pytest.raises(FreezeError, match="before-freeze command failed"),
        quiescer.window(step(quiesce=Quiesce.REQUIRE), RULES),
    ):
        pytest.fail("inside")
    assert stages(runner) == ["/bin/pause", "now"]
    assert not marker(quiescer).exists()


def test_a_command_that_fails_afterwards_does_not_make_the_point_worse(quiescer: Quiescer, runner: FakeRunner) -> None:
    runner.hooks = lambda argv: no(argv, "no") if argv[-1] == "now" else ok(argv)
    with quiescer.window(step(), RULES) as window:
        pass
    assert window.label == "quiesced"
    assert window.trouble == "the after-thaw command failed: /bin/resume: exit status 1: no"


def test_without_a_freeze_no_command_runs(quiescer: Quiescer, runner: FakeRunner) -> None:
    with quiescer.window(step(freeze=False), RULES):
        pass
    assert not stages(runner)
