"""The run journal: whole lines of JSON, appended, and never a reason to guess."""

from __future__ import annotations

import json
import os
import syslog
from datetime import datetime
from pathlib import Path

import pytest

from pve_zfsbackup.errors import BackupError, ConfigError, ExitCode
from pve_zfsbackup.host.journal import NAME, Journal, log_line


def lines(place: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (place / NAME).read_text().splitlines()]


def test_two_runs_append_to_one_file(tmp_path: Path) -> None:
    place = tmp_path / "log"
    one, two = Journal(place, "a"), Journal(place, "b")
    one.write("start", {"node": "pve1"})
    two.write("start", {})
    one.write("end", {"exit_code": 0})
    one.close()
    two.close()
    assert [(line["run"], line["event"]) for line in lines(place)] == [("a", "start"), ("b", "start"), ("a", "end")]
    assert (place / NAME).stat().st_mode & 0o777 == 0o640
    assert datetime.fromisoformat(str(lines(place)[0]["time"])).utcoffset() is not None


def test_hostile_names_stay_one_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.write("result", {"guest": "evil\n{\"event\": \"end\"}", "other": "\udcff ü \u2028"})
    journal.close()
    assert (tmp_path / NAME).read_bytes().count(b"\n") == 1
    assert lines(tmp_path)[0]["event"] == "result"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "shadow").touch()
    (tmp_path / NAME).symlink_to(tmp_path / "shadow")
    with pytest.raises(ConfigError, match="cannot be written"):
        Journal(tmp_path, "a")
    assert (tmp_path / "shadow").read_text() == ""


def test_a_place_that_is_no_directory_is_told_before_anything(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="the journal cannot be written") as caught:
        Journal(tmp_path / "file", "a")
    assert caught.value.exit_code is ExitCode.CONFIG


def test_a_full_disk_is_an_error_of_ours(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._file)
    os.close(full)
    with pytest.raises(BackupError, match="No space left on device"):
        journal.write("start", {})
    journal.close()


@pytest.mark.parametrize(("failed", "priority"), [(False, syslog.LOG_INFO), (True, syslog.LOG_ERR)])
def test_syslog_gets_one_line(monkeypatch: pytest.MonkeyPatch, failed: bool, priority: int) -> None:
    got: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda level, text: got.append((level, text)))
    log_line("run a\nforged: line\x1b[2J", failed=failed)
    assert got == [(priority, "run a?forged: line?[2J")]
