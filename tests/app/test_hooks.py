"""The administrator's commands at the points of a run, and Proxmox's hooks: what they are told, what they can stop."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pve_zfsbackup.app.proxmox_hooks import FAIL_BACKUP, VZDUMP_PHASES, Answer, guest_hook, vzdump_hook
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.thaw import thaw
from pve_zfsbackup.errors import CommandError, ExitCode, LockedError
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.model import Vmid
from tests.fakes.pools import no, ok
from tests.fakes.runner import HERE, Fault, Ran
from tests.fakes.world import CT, DB, GUESTS, TARGET, WEB, World

ALL = ("before-run", "before-snapshot", "after-snapshot", "before-replicate", "after-replicate", "after-prune",
       "on-error", "after-run")  # fmt: skip


class Commands:
    """Stands for every command of the administrator; remembers the environment of each."""

    def __init__(self, *failing: str) -> None:
        self.calls: list[dict[str, str]] = []
        self.failing = failing

    def __call__(self, argv: tuple[str, ...]) -> Completed:
        facts = dict(word.split("=", 1) for word in argv[4:] if word.startswith("PZB_"))
        self.calls.append(facts)
        return no(argv, "it says no") if facts["PZB_HOOK"] in self.failing else ok(argv)

    @property
    def points(self) -> list[str]:
        return [facts["PZB_HOOK"] for facts in self.calls]

    def of(self, point: str) -> list[dict[str, str]]:
        return [facts for facts in self.calls if facts["PZB_HOOK"] == point]


def hooked(world: World, *failing: str, points: tuple[str, ...] = ALL) -> Commands:
    lines = "".join(f"  {point}: /bin/hook\n" for point in points)
    world.config.write_text(f"{world.config.read_text()}hooks:\n{lines}")
    world.runner.hooks = commands = Commands(*failing)
    return commands


def test_every_point_of_a_run_is_called_in_order(world: World) -> None:
    commands = hooked(world)
    assert world.run(guests=["100"]).exit_code is ExitCode.OK
    assert [point for point in commands.points if point != "after-prune"] == [
        "before-run", "before-snapshot", "after-snapshot", "before-replicate", "after-replicate", "after-run",
    ]  # fmt: skip
    (snapshot,) = commands.of("after-snapshot")
    (point,) = world.points(HERE, WEB)
    assert snapshot["PZB_VMID"] == "100"
    assert (snapshot["PZB_NAME"], snapshot["PZB_STAGE"], snapshot["PZB_RESULT"]) == ("web", "snapshot", "ok")
    assert snapshot["PZB_POINT"] == point.id
    assert commands.of("before-snapshot")[0]["PZB_POINT"] == point.id
    (sent,) = commands.of("after-replicate")
    assert (sent["PZB_HOST"], int(sent["PZB_BYTES"]) > 0) == (TARGET, True)
    assert commands.of("after-run")[0] | {"PZB_RUN": "", "PZB_NODE": ""} == {
        "PZB_HOOK": "after-run", "PZB_RESULT": "ok", "PZB_EXIT_CODE": "0", "PZB_RUN": "", "PZB_NODE": "",
    }  # fmt: skip


def test_failures_are_told(world: World) -> None:
    commands = hooked(world)
    world.runner.down[TARGET] = "ssh: No route to host"
    world.run(guests=["100"])
    told = commands.of("on-error")
    assert told
    assert {facts["PZB_HOST"] for facts in told} == {TARGET}
    assert "No route to host" in told[0]["PZB_MESSAGE"]
    assert commands.of("after-run")[0]["PZB_RESULT"] == "partial"


def test_a_command_that_fails_afterwards_is_a_warning(world: World) -> None:
    hooked(world, "after-snapshot", "after-run", "on-error")
    report = world.run()
    assert report.exit_code is ExitCode.OK
    told = [result.message for result in world.results(report, Outcome.WARNING)]
    assert told.count("after-snapshot command failed: /bin/hook: exit status 1: it says no") == 3
    assert world.complete(TARGET, WEB)


def test_before_a_snapshot_it_can_keep_a_guest_from_its_point(world: World) -> None:
    hooked(world, "before-snapshot", points=("before-snapshot",))
    report = world.run(Stage.SNAPSHOT)
    assert {result.outcome for result in report.results} == {Outcome.FAILED}
    assert "the before-snapshot command failed: /bin/hook: exit status 1" in report.results[0].message
    assert not world.points(HERE, WEB)
    assert not world.runner.zfs(HERE, "snapshot")


def test_before_replication_it_keeps_all_from_being_sent(world: World) -> None:
    hooked(world, "before-replicate", points=("before-replicate",))
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    assert not world.runner.zfs(HERE, "send")
    assert [result.message for result in world.results(report, Outcome.FAILED) if result.stage == "replicate"] == [
        "the before-replicate command failed: /bin/hook: exit status 1: it says no"
    ]


def test_before_a_run_it_keeps_the_run_from_being(world: World) -> None:
    commands = hooked(world, "before-run", points=("before-run", "after-run"))
    with pytest.raises(CommandError, match="it says no"):
        world.run()
    assert not world.runner.zfs(HERE, "snapshot")
    assert commands.points == ["before-run", "after-run"]
    assert commands.calls[-1]["PZB_RESULT"] == "broken-off"


# -- vzdump


def vzdump(world: World, phase: str, vmid: int | None = None) -> Answer:
    def opened() -> AbstractContextManager[Session]:
        return world.session()

    return vzdump_hook(opened, phase, Vmid(vmid) if vmid else None)


def backed_up(world: World, vmid: int) -> Iterator[str]:
    """The phases of one guest of a job, with the lock vzdump gives it."""
    path = next(world.node.etc.glob(f"*/{vmid}.conf"))
    text = path.read_text()
    for phase in ("backup-start", "pre-stop", "pre-restart", "post-restart", "backup-end", "log-end"):
        path.write_text(text if phase in ("backup-start", "log-end") else f"{text}lock: backup\n")
        yield phase


def test_a_job_gives_each_guest_a_point_at_the_end_of_its_backup(world: World) -> None:
    for phase in ("job-init", "job-start"):
        assert vzdump(world, phase) == Answer()
    for vmid in (WEB, CT):
        for phase in backed_up(world, vmid):
            before = len(world.complete(TARGET, vmid))
            answer = vzdump(world, phase, vmid)
            assert answer.code == 0
            assert len(world.complete(TARGET, vmid)) - before == (phase == "backup-end"), phase
            assert bool(answer.lines) is (phase == "backup-end")
    assert vzdump(world, "job-end") == Answer()
    assert not world.points(HERE, DB), "a guest that is not in the vzdump job"
    assert [point.consistency for point in world.points(HERE, WEB)] == ["quiesced"]


def test_a_failing_guest_does_not_break_vzdump(world: World) -> None:
    world.runner.faults.append(Fault(words=("snapshot", "--"), again=True, answer=(1, "out of space")))
    answer = vzdump(world, "backup-end", WEB)
    assert answer.code == 0
    assert "guest 100: snapshot failed: zfs snapshot: out of space" in answer.lines[0]


def test_a_failing_guest_breaks_vzdump_where_that_is_configured(world: World) -> None:
    world.config.write_text(f"{world.config.read_text()}vzdump: {{fail-backup: true}}\n")
    world.runner.faults.append(Fault(words=("snapshot", "--"), again=True, answer=(1, "out of space")))
    assert vzdump(world, "backup-end", WEB).code == FAIL_BACKUP
    world.runner.revive()
    assert vzdump(world, "backup-end", WEB).code == 0


def test_a_guest_in_no_job_of_ours_is_no_failure_of_its_backup(world: World) -> None:
    answer = vzdump(world, "backup-end", 999)
    assert answer.code == 0
    assert "no such guest in any job" in answer.lines[0]


def test_a_guest_with_a_young_point_is_left_alone(world: World) -> None:
    vzdump(world, "backup-end", WEB)
    world.clock.now += 1800
    world.runner.ran.clear()
    assert "has a point that is 18" in vzdump(world, "backup-end", WEB).lines[0]
    assert not world.runner.changes
    world.clock.now += 1801
    vzdump(world, "backup-end", WEB)
    assert len(world.points(HERE, WEB)) == 2


@pytest.mark.parametrize("within", [3600, 0])
def test_a_point_from_the_future_keeps_no_guest_from_its_own(world: World, within: int) -> None:
    """One run with a wrong clock, and no backup would have made a point for a year."""
    world.config.write_text(f"{world.config.read_text()}vzdump: {{skip-within: {within}}}\n")
    world.clock.now += 86400 * 365
    world.run(Stage.SNAPSHOT)
    world.clock.now -= 86400 * 365
    vzdump(world, "backup-end", WEB)
    assert len(world.points(HERE, WEB)) == 2
    world.clock.now += 60
    vzdump(world, "backup-end", WEB)
    assert len(world.points(HERE, WEB)) == (2 if within else 3), "beside it a young one counts"


def test_without_replication_only_the_point_is_made(world: World) -> None:
    world.config.write_text(f"{world.config.read_text()}vzdump: {{replicate: false, skip-within: 0}}\n")
    vzdump(world, "backup-end", WEB)
    assert world.points(HERE, WEB)
    assert not world.runner.zfs(HERE, "send")


def test_another_run_is_no_failure_of_the_backup(world: World) -> None:
    with run_lock(world.place / "run", "snapshot"):
        answer = vzdump(world, "backup-end", WEB)
    assert answer.code == 0
    assert "another run is at work" in answer.lines[0]


@pytest.mark.parametrize("phase", sorted(set(VZDUMP_PHASES) - {"backup-end"}))
def test_nothing_happens_in_the_other_phases(world: World, phase: str) -> None:
    assert vzdump(world, phase, WEB) == Answer()
    assert not world.runner.ran


SCRIPT = Path(__file__).parents[2] / "hooks/vzdump-hook"
GIVEN = {"LC_ALL": "C", "STOREID": "backups"}  # what is left of the environment; job-init comes before the directory
IN_JOB = {**GIVEN, "DUMPDIR": "/mnt/backups/dump"}


@dataclass
class Job:
    """vzdump's side of a job, by the table of pve-facts §e, with our script in its place; only the program it calls is
    another one. That hands over argv and environment to this process, and ends as the answer says."""

    world: World
    broken: int = 0  # the guest whose archive fails
    calls: list[tuple[tuple[str, ...], dict[str, str]]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        place = self.world.place / "bin"
        place.mkdir()
        (program := place / "pve-zfsbackup").write_text(
            f"#!/bin/sh\nprintf '%s\\0' \"$@\" >{place}/argv\n/usr/bin/env -0 >{place}/environment\n"
            'echo called\nread -r code\nexit "$code"\n'
        )
        (script := place / "vzdump-hook").write_text(SCRIPT.read_text().replace("/usr/bin/pve-zfsbackup", str(program)))
        for file in (program, script):
            file.chmod(0o755)

    def run(self, guests: dict[int, tuple[str, str]]) -> None:
        assert self.hook(("job-init",), GIVEN) == 0
        assert self.hook(("job-start",), IN_JOB) == 0
        for vmid, (kind, mode) in guests.items():
            archive = f"/mnt/backups/dump/vzdump-{kind}-{vmid}-2026_11_18-11_10_00"
            suffix = "vma.zst" if kind == "qemu" else "tar.zst"
            own = {"VMTYPE": kind, "HOSTNAME": f"guest{vmid}", "TARGET": f"{archive}.{suffix}",
                   "LOGFILE": f"{archive}.log"}  # fmt: skip
            with self._locked(vmid):
                if not self._guest(vmid, mode, {**IN_JOB, **own}):
                    self.failed.append(vmid)
                    self.hook(("backup-abort", mode, str(vmid)), {**IN_JOB, **own})
            self.hook(("log-end", mode, str(vmid)), {**IN_JOB, **own})
        assert self.hook(("job-end",), IN_JOB) == 0

    def _guest(self, vmid: int, mode: str, environment: dict[str, str]) -> bool:
        """Whether vzdump calls it saved: a hook that fails fails the guest, at `backup-end` too."""
        for phase in ("backup-start", "pre-stop", "pre-restart", "post-restart"):
            if self.hook((phase, mode, str(vmid)), environment):
                return False
        return vmid != self.broken and not self.hook(("backup-end", mode, str(vmid)), environment)

    @contextmanager
    def _locked(self, vmid: int) -> Iterator[None]:
        path = next(self.world.node.etc.glob(f"*/{vmid}.conf"))
        text = path.read_text()
        path.write_text(f"{text}lock: backup\n")
        yield
        path.write_text(text)

    def hook(self, argv: tuple[str, ...], environment: dict[str, str]) -> int:
        with subprocess.Popen(
            [self.world.place / "bin/vzdump-hook", *argv], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == "called\n"
            called = (self.world.place / "bin/argv").read_text().split("\0")[:-1]
            words = (self.world.place / "bin/environment").read_text().split("\0")[:-1]
            self.calls.append((tuple(called), dict(word.split("=", 1) for word in words)))
            assert called[:2] == ["hook", "vzdump"]
            answer = vzdump(self.world, called[2], int(called[4]) if len(called) > 4 else None)
            self.log += answer.lines
            process.stdin.write(f"{answer.code}\n")
        return process.returncode


def of_sh() -> set[str]:
    """What sh itself puts into an empty environment."""
    told = subprocess.run(["/bin/sh", "-c", "/usr/bin/env -0"], env={}, check=True, capture_output=True, text=True)
    return {word.partition("=")[0] for word in told.stdout.split("\0") if word}


@pytest.mark.processes
@pytest.mark.parametrize("fails", ["its archive", "its point"])
def test_a_job_of_two_guests_whose_first_fails_gives_the_second_its_point(world: World, fails: str) -> None:
    """Through the script that is shipped, with argv and environment as vzdump has them, in every phase."""
    job = Job(world, broken=WEB if fails == "its archive" else 0)
    if fails == "its point":
        world.config.write_text(f"{world.config.read_text()}vzdump: {{fail-backup: true}}\n")
        world.runner.faults.append(Fault(words=("snapshot", "--"), answer=(1, "out of space")))
    job.run({WEB: ("qemu", "snapshot"), CT: ("lxc", "suspend")})
    assert job.failed == [WEB]
    assert not world.complete(HERE, WEB), "of its two pools only one may have its part"
    (point,) = world.complete(TARGET, CT)
    assert world.complete(HERE, CT) == [point]
    told = "guest 100: snapshot failed: zfs snapshot: out of space"
    assert any(line.startswith(told) for line in job.log) is (fails == "its point")
    assert any(line.startswith("guest 200: snapshot ok") for line in job.log)

    failing = ["backup-end"] if fails == "its point" else []
    phases = ["backup-start", "pre-stop", "pre-restart", "post-restart"]
    assert [argv[2:] for argv, _ in job.calls] == [
        ("job-init",),
        ("job-start",),
        *((phase, "snapshot", "100") for phase in [*phases, *failing, "backup-abort", "log-end"]),
        *((phase, "suspend", "200") for phase in [*phases, "backup-end", "log-end"]),
        ("job-end",),
    ]
    dump = "/mnt/backups/dump/vzdump"
    guests = {
        "100": {"VMTYPE": "qemu", "HOSTNAME": "guest100", "TARGET": f"{dump}-qemu-100-2026_11_18-11_10_00.vma.zst",
                "LOGFILE": f"{dump}-qemu-100-2026_11_18-11_10_00.log"},
        "200": {"VMTYPE": "lxc", "HOSTNAME": "guest200", "TARGET": f"{dump}-lxc-200-2026_11_18-11_10_00.tar.zst",
                "LOGFILE": f"{dump}-lxc-200-2026_11_18-11_10_00.log"},
    }  # fmt: skip
    added = of_sh()
    for argv, environment in job.calls:
        wanted = GIVEN if argv[2] == "job-init" else {**IN_JOB, **guests.get(argv[-1], {})}
        assert {key: value for key, value in environment.items() if key not in added} == wanted, argv


# -- a guest's own hook script


def test_a_guest_has_a_point_before_its_start_and_after_its_stop(world: World) -> None:
    world.guest(WEB).running = False
    for phase, points in (("pre-start", 1), ("post-start", 1), ("pre-stop", 1), ("post-stop", 2)):
        world.clock.now += 60
        assert guest_hook(world.session, Vmid(WEB), phase).code == 0
        assert len(world.points(HERE, WEB)) == points, phase
    assert {point.consistency for point in world.points(HERE, WEB)} == {"offline: guest is not running"}


def test_it_never_keeps_a_guest_from_starting(world: World) -> None:
    world.runner.faults.append(Fault(words=("list",), again=True, answer=(1, "I/O error")))
    answer = guest_hook(world.session, Vmid(WEB), "pre-start")
    assert (answer.code, len(answer.lines)) == (0, 1)


@pytest.mark.parametrize(("phase", "lock"), [("pre-start", "migrate"), ("post-stop", "backup"), ("pre-start", "")])
def test_a_guest_whose_own_task_calls_us_is_not_waited_for(
    world: World, phase: str, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task waits for us: what it has locked stays locked until we are done."""
    world.guest(WEB).running = False
    world.node.define(WEB, GUESTS[WEB] + (f"lock: {lock}\n" if lock else ""), running=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    answer = guest_hook(world.session, Vmid(WEB), phase)
    assert answer.code == 0
    assert len(world.points(HERE, WEB)) == (not lock)
    if lock:
        (line,) = answer.lines
        assert line.startswith(f"guest 100: snapshot skipped: qemu/100: guest is locked ({lock}): ")
        assert "no point is made, the guest goes on" in line


# -- thawing by hand


def test_thaw_without_names_does_what_the_sweep_does(world: World) -> None:
    (world.place / "state/frozen").mkdir(parents=True)
    (world.place / "state/frozen/100").write_text("qemu 1\n")
    world.guest(WEB).frozen = world.guest(DB).frozen = True
    with world.session() as session:
        (result,) = thaw(session)
        assert (result.vmid, result.outcome, result.message) == (WEB, Outcome.OK, "thawed, 2 were frozen")
        assert not world.guest(WEB).frozen
        assert world.guest(DB).frozen, "somebody else's freeze"
        assert thaw(session) == ()


def test_thaw_by_name_takes_anybodys_freeze(world: World) -> None:
    world.guest(DB).frozen = world.guest(CT).frozen = True
    with world.session() as session, run_lock(world.place / "run", "snapshot"):
        told = thaw(session, [Vmid(DB), Vmid(CT), Vmid(WEB), Vmid(999)])
        with pytest.raises(LockedError):
            thaw(session)
    assert [result.message for result in told] == [
        "thawed, 2 were frozen", "thawed, 1 were frozen", "was not frozen", "was not frozen",
    ]  # fmt: skip
    assert not world.guest(DB).frozen
    assert not world.guest(CT).frozen


@pytest.mark.parametrize("at", ["systemd-run", "fsfreeze-freeze"])
def test_thaw_by_name_leaves_a_run_its_marker_and_its_watchdog(world: World, at: str) -> None:
    """Or nobody would thaw what that run freezes a moment later, and is killed."""
    seen = []

    def by_hand(ran: Ran) -> None:
        if at in (ran.argv[0], ran.argv[-1]) and not seen:
            seen.append("by hand")
            with world.session() as session:
                thaw(session, [Vmid(WEB)])
        if ran.argv[:2] == ("zfs", "snapshot") and world.guest(WEB).frozen:
            assert (world.place / "state/frozen/100").exists()
            assert world.runner.timers
            seen.append("frozen")

    world.runner.watchers.append(by_hand)
    world.run(Stage.SNAPSHOT)
    assert set(seen) == {"by hand", "frozen"}
    assert not world.runner.timers
    assert not (world.place / "state/frozen/100").exists()


def test_thaw_by_name_ends_what_an_interrupted_run_left(world: World) -> None:
    (world.place / "state/frozen").mkdir(parents=True)
    (world.place / "state/frozen/100").write_text("qemu 1\n")
    world.guest(WEB).frozen = True
    with world.session() as session:
        thaw(session, [Vmid(WEB)])
    assert not (world.place / "state/frozen/100").exists()


def test_a_guest_that_does_not_thaw_is_told(world: World) -> None:
    world.guest(DB).agent = "hang"
    with world.session() as session:
        (result,) = thaw(session, [Vmid(DB)])
    assert (result.outcome, result.vmid) == (Outcome.FAILED, DB)
