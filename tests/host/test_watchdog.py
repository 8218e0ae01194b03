"""Who thaws when we cannot, where there is no systemd: a real process of its own."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from pve_zfsbackup.errors import CommandError
from pve_zfsbackup.host.runner import ENVIRONMENT, ProcessRunner
from pve_zfsbackup.host.thawer import watch
from pve_zfsbackup.host.watchdog import ChildWatchdog, thaw_argv, uptime
from pve_zfsbackup.model import GuestKind, Vmid
from tests.fakes.pools import ok

HERE = Path(__file__).parents[2]
VM = Vmid(100)


def wait_for(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.fixture
def thaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of `qm`, and where it leaves a trace."""
    trace = tmp_path / "thawed"
    program = tmp_path / "fake-qm"
    program.write_text(f"#!/bin/sh\n[ -e {tmp_path}/works ] || {{ touch {tmp_path}/tried; exit 1; }}\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setattr("pve_zfsbackup.host.watchdog.thaw_argv", lambda kind, vmid, until: (str(program),))
    monkeypatch.setattr(sys, "executable", _interpreter(tmp_path))
    return trace


def _interpreter(place: Path) -> str:
    """As installed: our package is found whatever the working directory is (-I looks nowhere else)."""
    starter = place / "python"
    starter.write_text(
        f'#!/bin/sh\n[ "$1" = -I ] && shift\n[ "$1" = -m ] && exec env PYTHONPATH={HERE} {sys.executable} "$@"\n'
    )
    starter.chmod(0o755)
    return str(starter)


@pytest.mark.processes
def test_it_thaws_when_nobody_else_does_and_tries_until_it_works(tmp_path: Path, thaw: Path) -> None:
    (tmp_path / "100").touch()
    started = time.monotonic()
    ChildWatchdog(ProcessRunner(), tmp_path).arm(GuestKind.VM, VM, "ab12", 0)
    assert time.monotonic() - started < 5, "arming does not wait for the end of the process"
    wait_for((tmp_path / "tried").exists)
    assert not thaw.exists()
    (tmp_path / "works").touch()
    wait_for(thaw.exists)


@pytest.mark.processes
def test_a_process_that_does_not_come_up_is_no_watchdog(
    tmp_path: Path, thaw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`setsid --fork` ends well whatever becomes of its child: without its word nothing may be frozen."""
    (tmp_path / "100").touch()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho No module named pve_zfsbackup >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(CommandError, match="did not come up: No module named pve_zfsbackup"):
        ChildWatchdog(ProcessRunner(), tmp_path).arm(GuestKind.VM, VM, "ab12", 0)


@pytest.mark.processes
def test_a_process_that_sees_no_marker_is_no_watchdog(tmp_path: Path, thaw: Path) -> None:
    with pytest.raises(CommandError, match="did not come up"):
        ChildWatchdog(ProcessRunner(), tmp_path).arm(GuestKind.VM, VM, "ab12", 0)


@pytest.mark.processes
def test_it_ends_when_the_marker_goes(tmp_path: Path, thaw: Path) -> None:
    (tmp_path / "100").touch()
    ChildWatchdog(ProcessRunner(), tmp_path).arm(GuestKind.VM, VM, "ab12", 60)
    wait_for(lambda: _processes(str(tmp_path / "100")))
    (tmp_path / "100").unlink()
    wait_for(lambda: not _processes(str(tmp_path / "100")))
    assert not (tmp_path / "tried").exists()


def _processes(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if word.encode() in command and b"pve_zfsbackup.host.thawer" in command:
            found.append(entry.parent.name)
    return found


class Scripted:
    """A runner that fails so many times."""

    def __init__(self, fails: int) -> None:
        self.fails, self.ran = fails, 0

    def run(self, argv: tuple[str, ...], **_: object) -> object:
        self.ran += 1
        if self.ran <= self.fails:
            raise CommandError("QEMU guest agent is not running")
        return ok(argv)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_it_waits_first(tmp_path: Path, clock: list[float]) -> None:
    (tmp_path / "100").touch()
    runner = Scripted(3)
    assert watch(runner, tmp_path / "100", 20, ("qm",))  # type: ignore[arg-type]
    assert (runner.ran, clock[0]) == (4, 26)


def test_a_marker_written_anew_belongs_to_a_later_freeze(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "100"
    path.touch()

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] == 5:
            os.utime(path, (1, 1))

    monkeypatch.setattr(time, "sleep", sleep)
    runner = Scripted(0)
    assert not watch(runner, path, 20, ("qm",))  # type: ignore[arg-type]
    assert (runner.ran, clock[0]) == (0, 5)


def test_it_does_not_try_for_ever(tmp_path: Path, clock: list[float]) -> None:
    (tmp_path / "100").touch()
    runner = Scripted(10_000)
    assert not watch(runner, tmp_path / "100", 20, ("qm",))  # type: ignore[arg-type]
    assert runner.ran == 300


def test_without_a_marker_there_is_nothing_to_thaw(tmp_path: Path) -> None:
    runner = Scripted(0)
    assert not watch(runner, tmp_path / "100", 20, ("qm",))  # type: ignore[arg-type]
    assert runner.ran == 0


# -- what is run


@pytest.fixture
def qm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `qm` that tells its argv, and answers the lines of a file one after another, with exit status 0."""
    program = tmp_path / "bin/qm"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nhead -n 1 {tmp_path}/answers\nsed -i 1d {tmp_path}/answers\n'
    )
    program.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "answers"


PAST, FUTURE = 0.0, 4e9


@pytest.mark.parametrize(
    ("told", "thawed"),
    [
        ("2", True),
        ('{"error":{"class":"GenericError","desc":"couldn\'t hold writes: fsfreeze is limited to 10 seconds"}}', True),
        ('{"error":{"class":"GenericError","desc":"failed to thaw: 5"}}', False),
        ('{"error":{"class":"CommandNotFound","desc":"$(touch /tmp/x) has been disabled"}}', False),
        ("-1", False),
        ("2 or 3", False),
        ("*", False),
        ("", False),
    ],
)
@pytest.mark.processes
def test_only_a_count_is_a_thaw(qm: Path, told: str, thawed: bool) -> None:
    """A guest's error is printed, and qm exits 0 (pve-facts §d)."""
    qm.write_text(f"{told}\n")
    done = ProcessRunner().run(thaw_argv(GuestKind.VM, VM, FUTURE), check=False)
    assert (done.returncode == 0) is thawed
    assert (qm.parent / "asked").read_text() == "guest cmd 100 fsfreeze-thaw\n"
    assert thawed or done.stderr == f"guest 100 is not thawed: {told}\n"


@pytest.mark.parametrize(
    ("until", "status", "said"), [(PAST, 0, ""), (FUTURE, 1, "guest 100 is not frozen yet\n")]
)
@pytest.mark.processes
def test_that_nothing_was_frozen_is_no_end_while_a_freeze_may_be_queued(
    qm: Path, until: float, status: int, said: str
) -> None:
    qm.write_text("0\n")
    done = ProcessRunner().run(thaw_argv(GuestKind.VM, VM, until), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


@pytest.mark.processes
def test_the_script_and_the_one_who_arms_go_by_the_same_clock(qm: Path) -> None:
    qm.write_text("0\n0\n")
    ends = [ProcessRunner().run(thaw_argv(GuestKind.VM, VM, uptime() + more), check=False) for more in (-1, 300)]
    assert [end.returncode for end in ends] == [0, 1]


@pytest.mark.processes
def test_the_process_goes_on_after_the_guests_error_and_while_nothing_is_frozen(
    tmp_path: Path, qm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pve_zfsbackup.host.thawer.PAUSE", 0)
    (tmp_path / "100").touch()
    qm.write_text('{"error":{"class":"GenericError","desc":"busy"}}\n{"error":{"desc":"busy"}}\n0\n0\n2\n')
    assert watch(ProcessRunner(), tmp_path / "100", 0, thaw_argv(GuestKind.VM, VM, FUTURE))
    assert (tmp_path / "asked").read_text() == "guest cmd 100 fsfreeze-thaw\n" * 5


def test_nothing_of_the_script_is_systemds() -> None:
    """`${…}` and `$$` in what a unit runs are replaced before sh sees them (systemd.service(5), Command lines), and
    `%` begins a specifier where systemd writes the unit down."""
    _, _, script, *words = thaw_argv(GuestKind.VM, VM, 1234.5)
    assert words == ["sh", "100", "1234"]
    for special in ("${", "$$", "%"):
        assert special not in script


def test_a_container_is_thawed_by_lxc_whose_exit_status_counts() -> None:
    assert thaw_argv(GuestKind.CT, Vmid(200), FUTURE) == ("lxc-unfreeze", "-n", "200")
