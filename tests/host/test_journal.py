"""The run journal: whole lines of JSON, appended, and never a reason to guess."""

from __future__ import annotations

import gzip
import json
import os
import socket
import syslog
from datetime import datetime
from pathlib import Path

import pytest

from pve_zfsbackup.config import read_secret
from pve_zfsbackup.errors import BackupError, ConfigError, ExitCode
from pve_zfsbackup.host import journal
from pve_zfsbackup.host.journal import NAME, Journal, log_line, read_journal
from pve_zfsbackup.model import secrets


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
    written = Journal(tmp_path, "a")
    written.write("result", {"guest": "evil\n{\"event\": \"end\"}", "other": "\udcff ü \u2028"})
    written.close()
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
    written = Journal(tmp_path, "a")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, written._file)
    os.close(full)
    with pytest.raises(BackupError, match="No space left on device"):
        written.write("start", {})
    written.close()


@pytest.mark.parametrize(("failed", "priority"), [(False, syslog.LOG_INFO), (True, syslog.LOG_ERR)])
def test_syslog_gets_one_line(monkeypatch: pytest.MonkeyPatch, failed: bool, priority: int) -> None:
    got: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda level, text: got.append((level, text)))
    log_line("run a\nforged: line\x1b[2J", failed=failed)
    assert got == [(priority, "run a?forged: line?[2J")]


# -- reading


def rotated(place: Path, name: str, *runs: str) -> Path:
    text = "".join(json.dumps({"run": run}) + "\n" for run in runs).encode()
    path = place / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def runs_read(place: Path, since: float = 0.0) -> list[str]:
    return [line["run"] for line in read_journal(place, since)]


def test_rotated_files_are_read_oldest_first(tmp_path: Path) -> None:
    assert runs_read(tmp_path) == [], "there is none before the first run"
    rotated(tmp_path, NAME, "e")
    rotated(tmp_path, f"{NAME}.1", "c", "d")
    rotated(tmp_path, f"{NAME}.2.gz", "b")
    rotated(tmp_path, f"{NAME}.10.gz", "a")
    rotated(tmp_path, f"{NAME}.bak", "x")
    assert runs_read(tmp_path) == ["a", "b", "c", "d", "e"]


def test_files_that_are_older_are_left_alone(tmp_path: Path) -> None:
    old = rotated(tmp_path, f"{NAME}.1", "a")
    rotated(tmp_path, NAME, "b")
    os.utime(old, (1000, 1000))
    assert runs_read(tmp_path, 2000) == ["b"]


def test_what_is_damaged_is_skipped(tmp_path: Path) -> None:
    rotated(tmp_path, f"{NAME}.3.gz", "a").write_bytes(b"no gzip")
    cut = rotated(tmp_path, f"{NAME}.2.gz", *"bcdefgh")
    cut.write_bytes(cut.read_bytes()[:-12])
    (tmp_path / NAME).write_bytes(b'{"run": "i"}\n[]\n{"run": "x"\n\xff\xfe\n{"run": "j"}\n{"run": "cu')
    assert runs_read(tmp_path)[-2:] == ["i", "j"]


def test_a_journal_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(BackupError, match="cannot be read"):
        runs_read(tmp_path)


# -- journald, and what is never written down


def heard(monkeypatch: pytest.MonkeyPatch, place: Path, **words: object) -> list[str]:
    """The lines of the datagram that a journald at that place got."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(place / "socket"))
        monkeypatch.setattr(journal, "JOURNALD", place / "socket")
        log_line("run a: 3 ok\nPRIORITY=0", failed=True, fields=words)
        return journald.recv(1 << 16).decode().splitlines()


def test_journald_gets_fields(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(syslog, "syslog", lambda *words: pytest.fail("it would be there twice"))
    got = heard(monkeypatch, tmp_path, run="a", guest="evil\nMESSAGE=all is well", jobs=["x", "y"], host="", bytes=5)
    assert got[:3] == ["MESSAGE=run a: 3 ok?PRIORITY=0", "PRIORITY=3", "SYSLOG_FACILITY=3"]
    assert got[3:7] == ["PZB_RUN=a", "PZB_GUEST=evil?MESSAGE=all is well", "PZB_JOBS=x,y", "PZB_BYTES=5"]
    assert got[7:] == ["SYSLOG_IDENTIFIER=pve-zfsbackup", f"SYSLOG_PID={os.getpid()}"]


TOKEN = "root@pam!backup=01234567-89ab-cdef-0123-456789abcdef"
ADDRESS = "https://hooks.example.org/services/T0/B0/abc\\def"


def test_secrets_that_were_read_are_not_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    for name, value in (("token", TOKEN), ("url", ADDRESS), ("short", "ok")):
        (tmp_path / name).write_text(value)
        (tmp_path / name).chmod(0o600)
        read_secret(tmp_path / name)
    told = Journal(tmp_path / "log", "a")
    told.write("result", {"message": f"bad {TOKEN.partition('=')[2]}: ok", "details": [f"no answer from {ADDRESS}"]})
    told.write("result", {"message": "Max retries exceeded with url: /services/T0/B0/abc\\def"})
    told.close()
    one, two = lines(tmp_path / "log")
    assert (one["message"], one["details"]) == ("bad ***: ok", ["no answer from ***"])
    assert two["message"] == "Max retries exceeded with url: ***"
    got = heard(monkeypatch, tmp_path, guest=TOKEN)
    assert "PZB_GUEST=***" in got
