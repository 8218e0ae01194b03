"""Nobody listening is no reason to stop a backup, nor to lie about how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pve_zfsbackup import cli, terminal
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.run import Stage, run
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.events import Outcome, Progress, Result
from pve_zfsbackup.host import journal
from tests.fakes.runner import HERE
from tests.fakes.world import CT, DB, WEB, World, assert_replicated


class Gone:
    """A standard stream whose other end is closed."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    def isatty(self) -> bool:
        return False


def test_a_reader_of_results_that_went_away_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    with terminal.Reporter(verbose=True, quiet=False) as reporter:
        reporter.emit(Result(stage="snapshot", outcome=Outcome.FAILED, message="x"))
        reporter.emit(Progress(host="b", disk="d", moved=1, total=1, seconds=1, done=True))


HOME = Path(cli.__file__).parents[2]
PROGRAM = """
import sys
from pve_zfsbackup import cli, terminal
from pve_zfsbackup.errors import BackupError, ExitCode
from pve_zfsbackup.report.format import Table
def main(**options):
    {body}
cli.cli.main = main
cli.main()
"""


def ended(body: str, redirections: str) -> tuple[int, str]:
    """Exit status and stderr of the command line with another `cli`, its streams as a shell can give them."""
    shell = f'"$0" -c "$1" {redirections}'
    argv = ("sh", "-c", shell, sys.executable, PROGRAM.format(body=body))
    done = subprocess.run(argv, check=False, capture_output=True, text=True, cwd=HOME, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.processes
@pytest.mark.parametrize(
    ("body", "redirections", "code"),
    [
        ("sys.stdout.isatty(); terminal.print_json({}); return 0", ">&-", 0),
        ("raise BackupError('x')", "2>&-", 2),
        ("raise KeyboardInterrupt", "2>/dev/full", 2),
        ("raise BackupError('x')", "2>/dev/full", 2),
    ],
    ids=["no-stdout", "no-stderr", "interrupted-full", "error-full"],
)
def test_the_exit_code_does_not_depend_on_who_listens(body: str, redirections: str, code: int) -> None:
    status, told = ended(body, redirections)
    assert status == code, told
    assert "Traceback" not in told
    assert "Exception ignored" not in told


@pytest.mark.processes
def test_a_table_that_nobody_reads_to_its_end_keeps_the_exit_code() -> None:
    body = "terminal.print_table(Table(columns=('a',), rows=(('b',),) * 99999)); return 1"
    reading, writing = os.pipe()
    os.close(reading)
    argv = (sys.executable, "-c", PROGRAM.format(body=body))
    done = subprocess.run(argv, check=False, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=HOME, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def full(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The journal's disk is full after so many lines."""
    left = [after]
    write: Callable[[int, bytes], int] = os.write

    def guarded(handle: int, data: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(journal.os, "write", guarded)


def test_a_journal_that_fills_its_disk_is_told_once_and_stops_no_guest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, 2)
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.stage, failed.message) == ("journal", "the journal cannot be written: No space left on device")
    assert failed in world.events
    assert_replicated(world)


def test_without_a_journal_from_the_beginning_nothing_is_begun(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, 0)
    with pytest.raises(Exception, match="the journal cannot be written"):
        world.run()
    assert not world.runner.changes


def test_a_guest_that_may_still_be_frozen_is_a_failure_of_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pve_zfsbackup.host.quiesce.THAW_WITHIN", 0.0)
    world.run()
    (world.place / "state/frozen").mkdir(parents=True, exist_ok=True)
    for vmid in ("100", "100~", ".swp"):
        (world.place / "state/frozen" / vmid).touch()
    world.guest(WEB).agent = "dead"
    world.write()
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.stage, failed.vmid) == ("thaw", WEB)
    assert report.exit_code is ExitCode.PARTIAL
    assert len(world.complete(HERE, DB)) == len(world.complete(HERE, CT)) == 2


def test_an_interruption_between_two_results_cuts_the_streams_before_the_lock_is_given_back(world: World) -> None:
    seen: list[bool] = []

    def interrupted(event: object) -> None:
        world.events.append(event)  # type: ignore[arg-type]
        if isinstance(event, Result) and event.stage == "replicate":
            raise KeyboardInterrupt

    world.clock.now += 3600
    with world.session() as session:
        object.__setattr__(session, "emit", interrupted)
        try:
            run(session, Scope(), (Stage.SNAPSHOT, Stage.REPLICATE))
        except KeyboardInterrupt:
            seen.append(world.runner.cancelled)
    assert seen == [True]

