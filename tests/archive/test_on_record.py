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
from pve_zfsbackup.app.measure import measure
from pve_zfsbackup.app.overview import overview
from pve_zfsbackup.app.proofs import proofs_between
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.cli import cli
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.host.memory import recall
from pve_zfsbackup.model.health import Level
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
    assert verified(boxed) == 0
    with boxed.session() as session:
        page = report_page(overview(session, Scope()))
    assert page.count("looked at: listed") == 3


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


def damage(segment: Path) -> bytes:
    data = segment.read_bytes()
    segment.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return data


def test_damage_is_told_until_a_look_as_deep_passes(boxed: Boxed) -> None:
    key = f"{STAGE}:{WEB}:box1"
    segment = a_segment(boxed, WEB)
    data = damage(segment)
    assert verified(boxed, "--level", "hashed") == 2
    for shallower in ("sampled", "listed"):  # a sample may happen to read the damaged one again
        assert verified(boxed, "--level", shallower) == 2, shallower
        assert known(boxed).keys() == {key}
    problem = known(boxed)[key]["problem"]
    assert f"{segment.name}: what lies there is not what was stored" in problem["message"]
    assert "by --level hashed, which has not passed since" in problem["message"]
    segment.write_bytes(data)
    assert verified(boxed) == 2, "a listing does not take it back"
    assert verified(boxed, "--level", "hashed") == 0
    assert verified(boxed) == 0
    assert known(boxed) == {}


def test_damage_that_a_sample_finds_outlives_the_next_sample(boxed: Boxed) -> None:
    data = damage(a_segment(boxed, WEB))
    codes = [verified(boxed, "--level", "sampled", "--parts", "3") for _ in range(4)]
    assert codes == sorted(codes), "once found, always told"
    assert codes[-1] == 2
    a_segment(boxed, WEB).write_bytes(data)
    assert verified(boxed, "--level", "hashed") == 0
    assert verified(boxed, "--level", "sampled") == 0
    assert lines(boxed)[-2]["message"] == "1 point is listed, part 1 of 20 read"
    assert verified(boxed) == 0
    assert lines(boxed)[-2]["message"] == "1 point is listed, not read"


def test_nothing_is_built_upon_what_reading_found_damaged(boxed: Boxed) -> None:
    before = boxed.choose(WEB).content.signed.outer
    segment = a_segment(boxed, WEB)
    data = damage(segment)
    assert verified(boxed, "--level", "hashed") == 2
    boxed.world.write()
    report = boxed.run()
    told = [one.message for one in report.results if one.stage == "archive" and one.outcome is Outcome.FAILED]
    assert any(segment.name in message for message in told)
    after = boxed.choose(WEB).content.signed.outer
    assert (after.generation != before.generation, len(boxed.choose(WEB).chain)) == (True, 1)
    assert len(boxed.choose(DB).chain) == 2
    segment.write_bytes(data)
    assert verified(boxed, "--level", "hashed") == 0
    assert [one for one in boxed.run().results if one.outcome is Outcome.FAILED] == []


def test_what_is_gone_is_damaged_no_more(boxed: Boxed) -> None:
    damage(a_segment(boxed, WEB))
    assert verified(boxed, "--level", "hashed") == 2
    (name,) = boxed.vault.damaged()
    boxed.vault.note_damage({"gone": boxed.vault.damaged()[name]}, ())
    verified(boxed)
    assert boxed.vault.damaged().keys() == {name}


def test_damage_stays_in_the_metrics_though_another_look_is_good(boxed: Boxed) -> None:
    damage(a_segment(boxed, WEB))
    assert verified(boxed, "--level", "hashed") == 2
    assert verified(boxed, "--level", "hashed", "--guest", str(DB)) == 0  # as a look into another box would be
    boxed.world.clock.now = int(time.time())  # the journal has the time of this machine
    with boxed.session() as session:
        told = measure(session)
    assert STAGE not in {*told.last, *told.good}, "one stage for all boxes says nothing of any"
    assert told.health
    assert [one.level for one in told.health.findings if one.about == "box box1" and "has not passed" in one.text] == [
        Level.CRITICAL
    ]


def test_a_wrong_identity_is_no_damage(boxed: Boxed) -> None:
    key = boxed.vault.box.catalog_key_file  # opens the manifests, and no segment
    assert verified(boxed, "--level", "opened", "--identity", str(key)) == 2
    assert boxed.vault.damaged() == {}
    assert verified(boxed) == 0


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
