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
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: None)
    return made
