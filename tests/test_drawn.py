"""What a person at a terminal sees of a run, and that nobody else pays for it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pve_zfsbackup import drawn, terminal
from pve_zfsbackup.events import Outcome, Progress, Result
from pve_zfsbackup.report.format import Table

HOME = Path(terminal.__file__).parents[1]  # another test may have left this process in another directory


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def person(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called by the test itself: pytest sets the streams anew between a fixture and its test."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    return made


def test_a_terminal_gets_bars_and_results_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = person(monkeypatch)
    with terminal.Reporter(verbose=False, quiet=False) as reporter:
        reporter.emit(Progress(host="b[red]ox", disk="vm-100-disk-0", moved=1 << 20, total=4 << 20, seconds=1))
        reporter.emit(Result(stage="replicate", outcome=Outcome.OK, message="[bold]3 streams"))
        reporter.emit(
            Progress(host="b[red]ox", disk="vm-100-disk-0", moved=4 << 20, total=4 << 20, seconds=2, done=True)
        )
    shown = screen.getvalue()
    assert "vm-100-disk-0 → b[red]ox" in shown, "markup in a name stays text"
    assert "4.0" in shown
    assert "[bold]3 streams" in shown


def test_with_json_on_standard_output_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = person(monkeypatch)
    with terminal.Reporter(verbose=False, quiet=True) as reporter:
        reporter.emit(Progress(host="b", disk="d", moved=1, total=1, seconds=1, done=True))
        reporter.emit(Result(stage="replicate", outcome=Outcome.OK, message="3 streams"))
    assert screen.getvalue() == ""


@pytest.mark.processes
def test_a_run_without_a_terminal_does_not_import_rich() -> None:
    code = (
        "import sys, pve_zfsbackup.cli.work, pve_zfsbackup.cli.look\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'rich'])"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True, cwd=HOME)
    assert done.stdout.strip() == "[]"


def test_on_a_narrow_screen_no_word_is_broken_that_need_not_be() -> None:
    columns = ("GUEST", "NEWEST POINT", "AGE", "CONSISTENCY", "PROBLEM")
    rows = (("100 web-server-of-the-shop", "2026-11-27 07:00:12", "44 min", "crash-consistent: no agent", "late"),)
    console = Console(width=70)
    with console.capture() as captured:
        console.print(drawn._drawn(Table(columns=columns, rows=rows, last_below=True), 70))
    words = captured.get().split()
    assert {"crash-consistent:", "web-server-of-the-shop", "2026-11-27", "07:00:12", "late"} <= set(words)
    assert max(map(len, captured.get().splitlines())) <= 70
