"""`status` and a `replicate` under way as a person sees them, drawn in the browser: build/reports/terminal-*.png."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pve_zfsbackup import terminal
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.status import status
from pve_zfsbackup.events import Outcome, Progress, Result
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.report.status import status_table
from tests.browser.chromium import Browser, browser
from tests.browser.screen import Terminal, page
from tests.browser.test_report import PICTURES
from tests.fakes.world import DB, TARGET, World

WIDTHS = (80, 140)
GIB = 1 << 30


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


def person(monkeypatch: pytest.MonkeyPatch, stream: str, width: int) -> Terminal:
    """Called by the test itself: pytest sets the streams anew between a fixture and its test."""
    made = Terminal()
    monkeypatch.setattr(sys, stream, made)
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", str(width)), ("LINES", "40")):
        monkeypatch.setenv(name, value)
    return made


def drawn(opened: Browser, place: Path, name: str, command: str, lines: list[str], width: int) -> None:
    """The picture; nothing on it is wider than the terminal."""
    file = place / "screen.html"
    file.write_text(page(command, lines, width))
    opened.show(width * 9 + 28)
    opened.open(file)
    opened.picture(PICTURES / f"terminal-{name}-{width}.png")
    inside = "document.querySelector('pre').scrollWidth <= document.querySelector('pre').clientWidth"
    assert opened.evaluate(inside)
    assert opened.evaluate("performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_status(opened: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    world = World(tmp_path / "world")
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(world.clock.now, UTC))
    monkeypatch.setattr("syslog.syslog", lambda *words: None)
    text = (world.node.etc / f"qemu-server/{DB}.conf").read_text()
    world.node.define(DB, f"{text}scsi1: local:{DB}/vm-{DB}-disk-1.qcow2,size=1G\n")
    world.node.define(103, "cores: 1\nname: alone\nscsi0: local:103/vm-103-disk-0.qcow2,size=1G\n", running=False)
    world.run()
    world.write()
    world.clock.now += 30 * 3600
    world.run(Stage.SNAPSHOT, guests=("100", "101"))
    world.clock.now += 5400
    screen = person(monkeypatch, "stdout", width)
    with world.session() as session:
        terminal.print_table(status_table(status(session, Scope()), session.timezone))
    drawn(opened, tmp_path, "status", "pve-zfsbackup status", screen.lines(), width)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_replicate_under_way(opened: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    clock = itertools.count(0, 2.0)
    monkeypatch.setattr("rich.console.monotonic", lambda: float(next(clock)))
    screen = person(monkeypatch, "stderr", width)
    with terminal.Reporter(verbose=True, quiet=False) as reporter:
        for step in range(1, 6):
            for disk, size in (("rpool/data/vm-100-disk-0", 64), ("fast/vm-100-disk-0", 10), ("rpool/vm-7-disk-1", 3)):
                moved = min(step * GIB // 3, size * GIB)
                reporter.emit(Progress(host=TARGET, disk=disk, moved=moved, total=size * GIB, seconds=step, done=False))
        for vmid, guest, outcome, message, hint in (
            (101, "db", Outcome.OK, "1 stream", ""),
            (
                200,
                "files",
                Outcome.FAILED,
                "rpool/data/subvol-200-disk-0: zfs receive: out of space",
                "free some",
            ),
        ):
            reporter.emit(
                Result(stage="replicate", outcome=outcome, vmid=Vmid(vmid), guest=guest, host=TARGET, message=message,
                       hint=hint, bytes=3 * GIB if not hint else 0, seconds=61.2)
            )  # fmt: skip
        lines = screen.lines()
    drawn(opened, tmp_path, "replicate", "pve-zfsbackup replicate", lines, width)
    text = "\n".join(lines)
    assert text.count("rpool/data/vm-100-disk-0") == 1, "what is drawn anew stands there once"
    assert "out of space" in text
