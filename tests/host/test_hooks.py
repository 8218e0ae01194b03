"""Commands of the administrator, run for real: environment, time limit, what they say."""

from __future__ import annotations

import os
import syslog
import time
from pathlib import Path

import pytest

from pve_zfsbackup.errors import CommandError, CommandTimeoutError
from pve_zfsbackup.host.hooks import run_hook
from pve_zfsbackup.host.runner import ProcessRunner

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: lines.append(text))
    return lines


def script(place: Path, text: str) -> str:
    path = place / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_facts_are_its_environment_and_secrets_of_ours_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PZB_TOKEN", "secret")
    out = tmp_path / "out"
    run_hook(ProcessRunner(), (script(tmp_path, f'env >{out}; echo "$1" >>{out}'), "a b; $(c)"), {
        "PZB_HOOK": "on-error", "PZB_NAME": "evil\nname=x", "PZB_VMID": "100"}, 10)  # fmt: skip
    lines = out.read_text().splitlines()
    assert {"PZB_HOOK=on-error", "PZB_VMID=100", r"PZB_NAME=evil\nname=x", "LC_ALL=C"} <= set(lines)
    assert lines[-1] == "a b; $(c)", "no shell of ours reads it"
    assert not any("secret" in line for line in lines)


def test_what_it_prints_goes_to_the_journal(tmp_path: Path, logged: list[str]) -> None:
    run_hook(ProcessRunner(), (script(tmp_path, "echo one; echo two >&2"),), {"PZB_HOOK": "after-run"}, 10)
    assert [line.partition("/")[0] for line in logged] == ["after-run: ", "after-run: "]
    assert [line.rpartition(": ")[2] for line in logged] == ["one", "two"]


def test_a_failure_tells_status_and_last_words(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"hook: exit status 7: it \\x1b is broken"):
        run_hook(ProcessRunner(), (script(tmp_path, "printf 'it \\033 is broken\\n'; exit 7"),), {}, 10)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="exit status 127"):
        run_hook(ProcessRunner(), (str(tmp_path / "none"),), {}, 10)


def test_the_time_limit_ends_it_with_all_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CommandTimeoutError, match=r"no end after 0\.5 s"):
        run_hook(ProcessRunner(), (script(tmp_path, f"sleep 600 & echo $! >{tmp_path}/child; wait"),), {}, 0.5)
    assert time.monotonic() - started < 10
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < deadline, "what it started lives on"
        time.sleep(0.05)


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
