"""`verify archive` on record: in the journal, told to whoever is told of failures, and in the report."""

from __future__ import annotations

import json
import syslog
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.overview import overview
from pve_zfsbackup.app.proofs import proofs_between
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.cli import cli
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.memory import recall
from pve_zfsbackup.plan.past import past_runs
from pve_zfsbackup.report.page import report_page
from tests.archive.worldly import Boxed
from tests.fakes.world import CT, DB, WEB, World

pytestmark = pytest.mark.processes
STAGE = "verify-archive"


@pytest.fixture
def boxed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> Boxed:
    world = World(tmp_path)
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(world.clock.now, UTC))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: None)
    monkeypatch.setattr("pve_zfsbackup.app.alerts.notify.mail", lambda *words: None)
    world.config.write_text(f"{world.config.read_text()}alerts: {{mail: [root]}}\n")
    made = Boxed(world)
    made.run()
    return made


def verified(boxed: Boxed, *more: str) -> int:
    words = ["verify", "archive", "box1", *more, "--config", str(boxed.world.config)]
    return int(cli.main(words, standalone_mode=False) or 0)


def lines(boxed: Boxed) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (boxed.world.place / "log/journal.jsonl").read_text().splitlines()]


def results(boxed: Boxed) -> list[tuple[Any, ...]]:
    found = [line for line in lines(boxed) if line.get("stage") == STAGE]
    return [(line.get("vmid"), line["host"], line["outcome"], line.get("level")) for line in found]


def known(boxed: Boxed) -> dict[str, Any]:
    found: dict[str, Any] = recall(boxed.world.place / "state/alerts.json").get("known", {})
    return found


def a_segment(boxed: Boxed, vmid: int) -> Path:
    content = boxed.choose(vmid).content
    return next((boxed.world.place / "mnt/root" / content.path).glob("seg-*"))


def test_each_guest_and_the_box_have_their_line(boxed: Boxed, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(boxed, "--level", "hashed", "--json") == 0
    assert json.loads(capsys.readouterr().out)["good"]
    assert results(boxed) == [(None, "box1", "ok", None)] + [
        (vmid, "box1", "ok", "hashed") for vmid in (WEB, DB, CT)
    ]  # fmt: skip
    run = past_runs(lines(boxed))[-1]
    assert (list(run.stages), run.exit_code, run.bytes) == ([STAGE], 0, 0)
    with boxed.session() as session:
        now = time.time()
        proofs = proofs_between(session.config, now - 600, now)
        assert [(proof.vmid, proof.place, proof.level, proof.message) for proof in proofs] == [
            (vmid, "box1", "hashed", "1 point is whole") for vmid in (WEB, DB, CT)
        ]
        boxed.world.clock.now = int(now)  # the journal has the time of this machine
        page = report_page(overview(session, Scope()))
    verification = page[page.index('id="verification"') : page.index('id="runs"')]
    assert verification.count("read back: hashed") == 3


def test_what_is_wrong_in_the_box_is_told_until_it_is_mended(boxed: Boxed) -> None:
    segment = a_segment(boxed, WEB)
    data = segment.read_bytes()
    segment.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert verified(boxed) == 0, "a look at the listing sees sizes only"
    assert known(boxed) == {}
    assert verified(boxed, "--level", "hashed") == 2
    assert [(vmid, outcome) for vmid, _, outcome, _ in results(boxed)[4:]] == [
        (None, "ok"), (WEB, "failed"), (DB, "ok"), (CT, "ok"),
    ]  # fmt: skip
    assert known(boxed).keys() == {f"{STAGE}:{WEB}:box1"}
    problem = known(boxed)[f"{STAGE}:{WEB}:box1"]["problem"]
    assert "1 of 1 point is damaged" in problem["message"]
    assert "verify archive box1" in problem["hint"]
    segment.write_bytes(data)
    assert verified(boxed, "--level", "hashed") == 0
    assert known(boxed) == {}


def test_a_box_that_is_away_is_told_as_this_boxs_trouble(boxed: Boxed) -> None:
    mount = boxed.world.place / "mnt"
    mount.rename(mount.with_name("away"))
    with pytest.raises(BackupError):
        verified(boxed)
    assert known(boxed).keys() == {f"{STAGE}::box1"}
    assert past_runs(lines(boxed))[-1].broken_off
    mount.with_name("away").rename(mount)
    assert verified(boxed) == 0
    assert known(boxed) == {}


def test_without_a_journal_the_box_is_verified_all_the_same(boxed: Boxed, capsys: pytest.CaptureFixture[str]) -> None:
    journal = boxed.world.place / "log/journal.jsonl"
    journal.unlink()
    journal.mkdir()
    assert verified(boxed) == 1
    told = capsys.readouterr()
    assert "the journal cannot be written" in told.err
    assert known(boxed).keys() == {"journal::"}
