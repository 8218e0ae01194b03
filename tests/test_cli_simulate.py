"""`simulate` as a person types it: golden output; it asks neither ZFS nor Proxmox, and opens no secret."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pve_zfsbackup import cli
from pve_zfsbackup.cli import simulate

GOLDEN = Path(__file__).parent / "golden/cli"
CONFIG = """\
api: {token-file: /nonexistent/token}
targets:
  backup1: {host: backup1, root: tank/pve, keep: {keep-hourly: 48, keep-daily: 14, keep-monthly: 24}}
  safe: {host: safe, root: tank/pve, append-only: true}
boxes:
  box1: {host: /mnt/box, keep: {keep-daily: 7, keep-monthly: 6}}
timezone: Europe/Berlin
jobs:
  all: {guests: [all], targets: [backup1, safe], boxes: [box1]}
  scratch: {guests: ['tag:scratch'], keep: {keep-last: 3}}
  vault: {guests: [101], keep: {}}
"""
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    monkeypatch.setattr(simulate, "_now", lambda: datetime(2026, 11, 26, 17, 30, tzinfo=UTC))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pve-zfsbackup", "simulate", "--config", str(config), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("simulate.txt", ()),
        ("simulate-points.txt", ("--points", "--job", "scratch", "--job", "all", "--days", "40")),
        ("simulate.json", ("--json", "--job", "all", "--every", "6", "--days", "30")),
    ],
)
def test_golden_output(call: Call, request: pytest.FixtureRequest, name: str, words: tuple[str, ...]) -> None:
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    path = GOLDEN / name
    if request.config.getoption("--update-golden"):
        path.write_text(out)
    assert out == path.read_text(), f"{path} differs; --update-golden takes it over"


def test_the_table_and_the_json_say_the_same(call: Call) -> None:
    data = json.loads(call("--json")[1])
    assert data["format"] == 1
    rows = call()[1].splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [[row["job"], row["host"]] for row in data["policies"]]
    own = next(row for row in data["policies"] if row["host"] == "safe")
    assert own["after"] is own["kept"] is None, "what the target keeps by its own policy is not made up"
    for row in data["policies"]:
        if row["kept"]:
            assert row["after"][-1]["points"] == len(row["kept"])


def test_a_job_that_is_not_there_is_usage(call: Call) -> None:
    code, out, err = call("--job", "al")
    assert (code, out) == (3, "")
    assert "no job named al" in err
