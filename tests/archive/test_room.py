"""How full a box is: noted by runs that archive, judged by `check` without asking the box, with the age of the word."""

from __future__ import annotations

import json
import syslog
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health
from pve_zfsbackup.app.measure import measure
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, ExitCode, HostUnreachableError
from pve_zfsbackup.host.sftp import Session as Batch
from pve_zfsbackup.host.sftp import Sftp
from pve_zfsbackup.host.store import Space
from pve_zfsbackup.host.store_dir import DirectoryStore
from pve_zfsbackup.host.store_sftp import SftpStore
from pve_zfsbackup.model.health import Health
from pve_zfsbackup.report.health import check_lines, health_json
from pve_zfsbackup.report.metrics import samples
from tests.archive.worldly import Boxed
from tests.fakes.world import World

GIB = 1 << 30


@pytest.fixture
def boxed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> Boxed:
    world = World(tmp_path)
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(world.clock.now, UTC))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: None)
    world.clock.now = int(time.time())  # the journal has the time of this machine
    return Boxed(world)


def says(monkeypatch: pytest.MonkeyPatch, space: Space | BackupError | None) -> list[int]:
    """The box says this of its room. What comes back counts how often it was asked."""
    asked: list[int] = []

    def told(self: DirectoryStore) -> Space | None:
        asked.append(1)
        if isinstance(space, BackupError):
            raise space
        return space

    monkeypatch.setattr(DirectoryStore, "space", told)
    monkeypatch.setattr(DirectoryStore, "free", lambda self: None)
    return asked


def judged(boxed: Boxed) -> Health:
    with boxed.session() as session:
        return health(session, Scope())


def texts(found: Health) -> list[str]:
    return [f"{item.level.name} {item.about}: {item.text}" for item in found.findings if "full" in item.text]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("free", "told"),
    [
        (16, []),
        (15, ["WARNING box box1: 85% full, as a run saw it 5.0 h ago"]),
        (5, ["CRITICAL box box1: 95% full, as a run saw it 5.0 h ago"]),
        (0, ["CRITICAL box box1: 100% full, as a run saw it 5.0 h ago"]),
    ],
)
def test_a_box_that_fills_is_told_with_the_age_of_the_word_and_is_not_asked(
    boxed: Boxed, monkeypatch: pytest.MonkeyPatch, free: int, told: list[str]
) -> None:
    asked = says(monkeypatch, Space(free=free * GIB, size=100 * GIB))
    boxed.run()
    assert len(asked) == 1, "once in a run"
    boxed.world.clock.now += 5 * 3600
    here = judged(boxed)
    assert len(asked) == 1, "check knows it from the journal"
    assert texts(here) == told
    assert f"used_box1={100 - free}.0%;;;0;100" in check_lines(here)[0]
    (space,) = (one for one in health_json(here)["space"] if one["host"] == "box1")
    assert (space["dataset"], space["used"], space["available"]) == ("", (100 - free) * GIB, free * GIB)
    assert abs(space["age"] - 5 * 3600) < 60


@pytest.mark.processes
def test_its_metrics_have_the_time_of_the_word(boxed: Boxed, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, Space(free=40 * GIB, size=100 * GIB))
    boxed.run()
    seen = boxed.world.clock.now
    boxed.world.clock.now += 5 * 3600
    with boxed.session() as session:
        found = {(name, labels): value for name, labels, value in samples(measure(session))}
    assert found["available_bytes", ("box1", "")] == 40 * GIB
    assert found["used_bytes", ("box1", "")] == 60 * GIB
    assert abs(found["room_timestamp_seconds", ("box1", "")] - seen) < 60
    assert found["room_timestamp_seconds", ("source", "rpool/data")] == boxed.world.clock.now


@pytest.mark.processes
@pytest.mark.parametrize("word", [None, HostUnreachableError("box1: the line broke"), Space(free=GIB)])
def test_a_box_that_does_not_say_is_no_trouble(
    boxed: Boxed, monkeypatch: pytest.MonkeyPatch, word: Space | BackupError | None
) -> None:
    says(monkeypatch, word)
    assert boxed.run().exit_code is ExitCode.OK
    here = judged(boxed)
    assert texts(here) == []
    known = [one.room for one in here.outlooks if one.room.host == "box1"]
    assert [(room.used, room.available) for room in known] == ([(0, GIB)] if isinstance(word, Space) else [])
    with boxed.session() as session:
        names = {name for name, labels, _ in samples(measure(session)) if labels[:1] == ("box1",)}
    assert "used_bytes" not in names, "what nobody told is not claimed"


@pytest.mark.processes
def test_limits_are_the_boxs_own_and_a_word_that_is_too_old_is_none(
    boxed: Boxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, Space(free=40 * GIB, size=100 * GIB))
    text = boxed.world.config.read_text().replace("    every-hours: 0\n", "    every-hours: 0\n    warn-full: 60\n")
    boxed.world.config.write_text(text)
    boxed.run()
    assert texts(judged(boxed)) == ["WARNING box box1: 60% full, as a run saw it 0.0 h ago"]
    boxed.world.clock.now += 31 * 86_400
    assert not [text for text in texts(judged(boxed)) if "box1: 60%" in text]


@pytest.mark.processes
def test_when_a_box_is_full_is_forecast_as_for_roots(boxed: Boxed, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, Space(free=20 * GIB, size=100 * GIB))
    boxed.run()
    journal = boxed.world.place / "log/journal.jsonl"
    with journal.open("a") as file:
        for day in range(1, 10):
            when = datetime.fromtimestamp(boxed.world.clock.now - day * 86_400, UTC).isoformat()
            room = {"host": "box1", "dataset": "", "used": (80 - 2 * day) * GIB, "available": (20 + 2 * day) * GIB}
            file.write(json.dumps({"time": when, "run": f"r{day}", "event": "room", **room}) + "\n")
    (told,) = texts(judged(boxed))
    trend = "full in about 10 days, if it goes on as in the last weeks"
    assert told == f"WARNING space of box box1: {trend}, as a run saw it 0.0 h ago"
    assert "days_to_full_box1=10.0;14:;3:;0" in check_lines(judged(boxed))[0]


class Says:
    """A client of a server that answers `df` so."""

    name = "box1"

    def __init__(self, *lines: str) -> None:
        self.lines = lines

    def batch(self, lines: list[str], *_: object) -> Batch:
        return Batch(0, ((lines[0], self.lines),), "")


HEAD = "        Size         Used        Avail       (root)    %Capacity"


@pytest.mark.parametrize(
    ("lines", "space"),
    [
        ((HEAD, "   100   80   15   20   80%"), Space(free=15 << 10, size=100 << 10)),
        ((), None),
        ((HEAD,), None),
        ((HEAD, "100 80"), None),
        ((HEAD, f"{'9' * 5000} 80 15 20 80%"), None),
        ((HEAD, "100 80 -15 20 80%"), None),
        ((HEAD, "\u0661\u0660 80 15 20 80%"), None),
        ((HEAD, "0 0 0 0 100%"), Space(free=0, size=0)),
    ],
)
def test_the_word_of_a_server_is_bounded(lines: tuple[str, ...], space: Space | None) -> None:
    assert SftpStore(client=cast(Sftp, Says(*lines))).space() == space


def test_room_that_contradicts_itself_is_not_negative() -> None:
    assert Space(free=20, size=10).used == Space(free=20).used == Space(free=0, size=0).used == 0
