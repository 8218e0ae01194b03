"""The run journal: whole lines of JSON, appended, and never a reason to guess."""

from __future__ import annotations

import gzip
import json
import os
import syslog
from datetime import datetime
from pathlib import Path

import pytest

from pve_zfsbackup.errors import BackupError, ConfigError, ExitCode
from pve_zfsbackup.host.journal import NAME, Journal, log_line, read_journal


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


# -- reading


def written(place: Path, name: str, *runs: str) -> Path:
    text = "".join(json.dumps({"run": run}) + "\n" for run in runs).encode()
    path = place / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def runs_read(place: Path, since: float = 0.0) -> list[str]:
    return [line["run"] for line in read_journal(place, since)]


def test_rotated_files_are_read_oldest_first(tmp_path: Path) -> None:
    assert runs_read(tmp_path) == [], "there is none before the first run"
    written(tmp_path, NAME, "e")
    written(tmp_path, f"{NAME}.1", "c", "d")
    written(tmp_path, f"{NAME}.2.gz", "b")
    written(tmp_path, f"{NAME}.10.gz", "a")
    written(tmp_path, f"{NAME}.bak", "x")
    assert runs_read(tmp_path) == ["a", "b", "c", "d", "e"]


def test_files_that_are_older_are_left_alone(tmp_path: Path) -> None:
    old = written(tmp_path, f"{NAME}.1", "a")
    written(tmp_path, NAME, "b")
    os.utime(old, (1000, 1000))
    assert runs_read(tmp_path, 2000) == ["b"]


def test_what_is_damaged_is_skipped(tmp_path: Path) -> None:
    written(tmp_path, f"{NAME}.3.gz", "a").write_bytes(b"no gzip")
    cut = written(tmp_path, f"{NAME}.2.gz", *"bcdefgh")
    cut.write_bytes(cut.read_bytes()[:-12])
    (tmp_path / NAME).write_bytes(b'{"run": "i"}\n[]\n{"run": "x"\n\xff\xfe\n{"run": "j"}\n{"run": "cu')
    assert runs_read(tmp_path)[-2:] == ["i", "j"]


def test_a_journal_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(BackupError, match="cannot be read"):
        runs_read(tmp_path)
