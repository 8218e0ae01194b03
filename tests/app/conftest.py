"""A cluster in memory for the tests of whole runs."""

from __future__ import annotations

import contextlib
import socket
import syslog
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pve_zfsbackup.app.session import Session
from pve_zfsbackup.host import journal
from tests.fakes.disks import Content, Disks, linux
from tests.fakes.world import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(made.clock.now, UTC))
    skipped, monotonic = [0.0], time.monotonic
    monkeypatch.setattr(time, "sleep", lambda seconds: skipped.__setitem__(0, skipped[0] + seconds))
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + skipped[0])  # who sleeps finds that time went by
    return made


@pytest.fixture
def contents() -> dict[str, Content]:
    """What is on the guests' disks: a VM that boots with another file system beside it, and a container. Where more is
    looked into, modules have their own."""
    return {
        "rpool/data/vm-100-disk-0": linux(), "fast/vm-100-disk-0": Content(kind="xfs"),
        "rpool/data/subvol-200-disk-0": Content(files={"/etc/os-release": "PRETTY_NAME=x\n"}),
    }  # fmt: skip


@pytest.fixture
def disks(world: World, contents: dict[str, Content]) -> Disks:
    """Those disks with a first point of each, and the programs that look into clones of them."""
    made = Disks(place=world.place / "disks", contents=contents)
    world.runner.tools = made.run
    world.runner.watchers.append(made.watch)
    for name in made.contents:
        world.source.write(name, 2 << 20)
    world.run()
    return made


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, str]]]]:
    """A journald: what it was sent until it is asked, each datagram as its fields."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        taken.bind(str(tmp_path / "journald"))
        taken.setblocking(False)
        monkeypatch.setattr(journal, "JOURNALD", tmp_path / "journald")

        def heard() -> list[dict[str, str]]:
            found = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    lines = taken.recv(1 << 16).decode().splitlines()
                    found.append(dict(line.split("=", 1) for line in lines))
            return found

        yield heard


@pytest.fixture(autouse=True)
def syslog_lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What would have gone to syslog."""
    lines: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: lines.append((priority, text)))
    return lines
