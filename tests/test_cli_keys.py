"""`key` for encrypted datasets as it is typed: what goes where, exit codes, standard input."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pve_zfsbackup.app.keys import Keyring
from pve_zfsbackup.cli import cli, keys
from pve_zfsbackup.cli import options as cli_options
from pve_zfsbackup.errors import ConfigError, ExitCode, LockedError
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE
from tests.fakes.world import World

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> World:
    made = World(tmp_path)

    minutes = itertools.count()

    def keyring(host: Host) -> Keyring:
        now = datetime(2026, 11, 26, 12, tzinfo=UTC) + timedelta(minutes=next(minutes))
        return Keyring(host=host, directory=tmp_path / "keys", now=lambda: now)

    monkeypatch.setattr(keys, "Keyring", keyring)
    monkeypatch.setattr(keys, "ProcessRunner", lambda: made.runner)
    opened = cli_options.open_session
    monkeypatch.setattr(cli_options, "open_session", lambda config, emit: opened(config, emit, made.runner))
    return made


@pytest.fixture
def call(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = cli.main(["key", *words, "--config", str(world.config)], standalone_mode=False)
        told = capsys.readouterr()
        return int(code or 0), told.out, told.err

    return run


def test_made_tried_changed_and_brought_into_the_safe(world: World, call: Call) -> None:
    code, out, err = call("create", "rpool/secret")
    assert (code, "created" in out, "key escrow rpool/secret" in err) == (0, True, True)
    assert call("test", "rpool/secret")[0] == ExitCode.OK
    code, out, err = call("change", "rpool/secret")
    assert (code, "backup1" in err, "master key" in err) == (0, True, True)
    code, out, _ = call("escrow", "rpool/secret")
    assert code == 0
    assert out.count("sha256 begins with") == 2
    found = json.loads(call("test", "rpool/secret", "--json")[1])
    assert [action["state"] for action in found["actions"]] == ["right"]
    assert json.loads(call("change", "rpool/secret", "--json")[1])["notes"]


def test_a_passphrase_comes_by_standard_input(world: World, call: Call) -> None:
    assert call("create", "rpool/secret", "--passphrase", typed="correct horse\n")[0] == ExitCode.OK
    assert call("test", "rpool/secret", typed="correct horse\n")[0] == ExitCode.OK
    assert call("test", "rpool/secret", typed="wrong\nhorse\n")[0] == ExitCode.FAILED
    code, out, _ = call("test", "rpool/secret")
    assert (code, "not tried" in out) == (ExitCode.FAILED, True)
    with pytest.raises(ConfigError, match="8 to 512 bytes"):
        call("create", "rpool/other", "--passphrase", typed="short\n")


def test_a_change_waits_for_no_run_that_sends(world: World, call: Call) -> None:
    call("create", "rpool/secret")
    with run_lock(world.place / "run", "replicate"), pytest.raises(LockedError):
        call("change", "rpool/secret")


def test_what_is_neither_box_nor_dataset_is_told(world: World, call: Call) -> None:
    with pytest.raises(ConfigError, match="dataset box9 does not exist") as caught:
        call("escrow", "box9")
    assert "boxes: none" in caught.value.hint


def test_without_a_configuration_keys_can_be_made_and_tried(world: World, call: Call) -> None:
    """On a host that only receives, or before `setup`."""
    world.config.unlink()
    assert call("create", "rpool/secret")[0] == ExitCode.OK
    assert call("test", "rpool/secret")[0] == ExitCode.OK
    assert call("escrow", "rpool/secret")[0] == ExitCode.OK


def test_the_keyring_is_the_one_of_the_package() -> None:
    assert str(Keyring(host=Host(name=SOURCE, runner=None)).directory) == "/etc/pve-zfsbackup/keys"  # type: ignore[arg-type]
