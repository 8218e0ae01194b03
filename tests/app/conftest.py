"""A cluster in memory for the tests of whole runs."""

from __future__ import annotations

import syslog
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pve_zfsbackup.app.session import Session
from tests.fakes.world import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(made.clock.now, UTC))
    skipped, monotonic = [0.0], time.monotonic
    monkeypatch.setattr(time, "sleep", lambda seconds: skipped.__setitem__(0, skipped[0] + seconds))
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + skipped[0])  # who sleeps finds that time went by
    return made


@pytest.fixture(autouse=True)
def syslog_lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What would have gone to syslog."""
    lines: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: lines.append((priority, text)))
    return lines
