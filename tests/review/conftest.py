"""The cluster in memory of the tests of whole runs, for what a reviewer tried on it."""

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
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: None)
    return made
