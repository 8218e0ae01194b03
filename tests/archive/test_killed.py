"""Killed at every step of taking away: what is alive is whole, and the next run goes on (matrix row 64)."""

from __future__ import annotations

import itertools
import shutil
import syslog
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pve_zfsbackup.app import box as box_module
from pve_zfsbackup.app.archive_expire import expire
from pve_zfsbackup.app.archive_verify import Level, verify_box
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.session import Session
from tests.archive.bench import FaultyStore
from tests.archive.worldly import Boxed
from tests.fakes.world import CT, World

pytestmark = pytest.mark.processes


class Died(BaseException):
    """The process ends here."""


@pytest.fixture
def boxed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> Boxed:
    world = World(tmp_path)
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(world.clock.now, UTC))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: None)
    return Boxed(world)


def manifests_are_whole(boxed: Boxed) -> None:
    """No outer manifest in the box lacks a segment it speaks of."""
    found = verify_box(boxed.vault, Level.LISTED, identity=boxed.identity, note=lambda _: None)
    assert found.good, found
    for manifest in (boxed.world.place / "mnt/root").rglob("manifest.json"):
        named = [part.split('"')[0] for part in manifest.read_text().split('"sha256":"')[1:]]
        alive = manifest.read_text().partition('"alive"')[2]
        there = " ".join(path.name for path in manifest.parent.iterdir())
        assert all(digest in there or digest in alive for digest in named), manifest


def test_killed_at_every_step_of_a_removal(boxed: Boxed, monkeypatch: pytest.MonkeyPatch) -> None:
    text = boxed.world.config.read_text()
    text = text.replace("every-hours: 0", "every-hours: 0\n    full-increments: 1").replace(
        "keep-last: 3", "keep-last: 1"
    )
    boxed.world.config.write_text(text.replace("spool-dir", "connections: 1\n    spool-dir"))
    for _ in range(4):
        boxed.world.write()
        boxed.run(Stage.SNAPSHOT, Stage.ARCHIVE, guests=[str(CT)])
    assert verify_box(boxed.vault, Level.HASHED, note=lambda _: None).good
    before = [boxed.world.place / "mnt", boxed.world.place / "state"]
    for path in before:
        shutil.copytree(path, path.with_suffix(".before"))
    make = box_module._store
    left = {"steps": 0}

    def count(verb: str, path: str) -> None:
        if verb != "get":
            left["steps"] -= 1
            if left["steps"] == 0:
                raise Died

    monkeypatch.setattr(box_module, "_store", lambda *given: FaultyStore(make(*given), count))
    for steps in itertools.count(1):
        for path in before:
            shutil.rmtree(path)
            shutil.copytree(path.with_suffix(".before"), path)
        left["steps"] = steps
        with boxed.session() as session:
            try:
                list(expire(session, boxed.vault, "archive"))
            except Died:
                left["steps"] = 0
            else:
                break
            manifests_are_whole(boxed)
            assert boxed.points(CT)[-1:] != []
            list(expire(session, boxed.vault, "archive"))
            boxed.world.clock.now += 7 * 86_400  # what has no manifest any more is nobody's
            list(expire(session, boxed.vault, "archive"))
        manifests_are_whole(boxed)
        assert len(boxed.points(CT)) == 2, steps  # the newest, and what it builds on
        assert len(list((boxed.world.place / "mnt/root" / boxed.vault.writer).iterdir())) == 1
    assert steps > 10
