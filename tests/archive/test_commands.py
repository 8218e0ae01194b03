"""`setup box`, `key`, `verify archive`, `restore`: as they are typed."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.app.archive_verify import Verification
from pve_zfsbackup.app.box import Vault
from pve_zfsbackup.app.catalog import Catalog, read_catalog
from pve_zfsbackup.app.setup_box import _on_system_disk
from pve_zfsbackup.app.target_hostkey import host_keys
from pve_zfsbackup.cli import archive as commands
from pve_zfsbackup.cli import cli, restore
from pve_zfsbackup.cli import keys as key_commands
from pve_zfsbackup.cli.archive import vault_of
from pve_zfsbackup.errors import BackupError, ConfigError, HostKeyError, VerificationError
from pve_zfsbackup.host.lock import ARCHIVES, being_read
from pve_zfsbackup.host.store_sftp import SftpStore
from tests.archive.sshd import serving

pytestmark = [pytest.mark.processes, pytest.mark.loopback]
KEYS = """\
    recipients-file: {place}/etc/archive.recipients
    catalog-key-file: {place}/etc/archive-catalog.key
    signing-key-file: {place}/etc/archive-signing
    signers-file: {place}/etc/archive.signers
    spool-dir: {place}/spool
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str, place: Path = tmp_path) -> Done:
        code = cli.main([*arguments, "--config", str(place / "config.yaml")], standalone_mode=False)
        told = capsys.readouterr()
        return Done(int(code or 0), told.out, told.err)

    return run


def configure(place: Path, box: str) -> None:
    state = f"state-dir: {place}/state\nruntime-dir: {place}/run\njournal-dir: {place}/log\n"
    (place / "config.yaml").write_text(f"{state}boxes:\n  box1:\n{box}{KEYS.format(place=place)}")
    (place / "config.yaml").chmod(0o600)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mnt").mkdir()
    configure(tmp_path, f"    host: {tmp_path}/mnt\n")
    return tmp_path


def test_setup_makes_the_keys_and_shows_the_identity_once(place: Path, call: Call) -> None:
    done = call("setup", "box", "box1")
    assert done.code == 0
    (secret,) = set(re.findall("AGE-SECRET-KEY-1[0-9A-Z]+", done.out))
    for path in (place / "etc").iterdir():
        assert secret not in path.read_text()
        if path.suffix != ".pub":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert "takes files and gives them back" in done.out
    assert not [path for path in (place / "mnt").rglob("*") if path.is_file()]
    keys = {path: path.read_bytes() for path in (place / "etc").iterdir()}
    again = call("setup", "box", "box1")
    assert again.code == 0
    assert "AGE-SECRET-KEY" not in again.out
    assert keys == {path: path.read_bytes() for path in (place / "etc").iterdir()}


def test_setup_in_json_has_the_identity_too(place: Path, call: Call) -> None:
    found = json.loads(call("setup", "box", "box1", "--json").out)
    assert found["identity"].startswith("AGE-SECRET-KEY-1")
    assert {action["state"] for action in found["actions"]} == {"created", "right"}


def test_recipients_an_administrator_chose_are_kept(place: Path, call: Call) -> None:
    (place / "etc").mkdir(mode=0o700)
    (place / "etc/archive.recipients").write_text("age1qqqq\n")
    done = call("setup", "box", "box1")
    assert "AGE-SECRET-KEY" not in done.out
    assert (place / "etc/archive.recipients").read_text() == "age1qqqq\n"


def test_what_belongs_in_the_safe_is_printed_and_is_no_secret(place: Path, call: Call) -> None:
    call("setup", "box", "box1")
    done = call("key", "escrow", "box1")
    assert str(place / "mnt/pve-zfsbackup") in done.out
    assert (place / "etc/archive.signers").read_text().strip() in done.out
    assert (place / "etc/archive.recipients").read_text().strip() in done.out
    assert "SECRET-KEY-1…" in done.out
    assert not re.search("SECRET-KEY-1[0-9A-Z]|PRIVATE", done.out)


def test_an_empty_box_is_good_and_says_that_it_is_empty_but_no_drill_succeeds(place: Path, call: Call) -> None:
    identity = place / "safe"
    identity.write_text(json.loads(call("setup", "box", "box1", "--json").out)["identity"] + "\n")
    done = call("verify", "archive", "box1")
    assert (done.code, "the box has no points" in done.err) == (0, True)
    with pytest.raises(VerificationError, match="nothing there"):
        call("key", "drill", "box1", "--identity", str(identity))
    with pytest.raises(ConfigError, match="no point of 100"):
        call("restore", "100", "--from", "box1", "--to", "rpool/back", "--identity", str(identity))


def test_while_disks_are_received_from_a_box_nothing_expires_in_it(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = place / "safe"
    identity.write_text(json.loads(call("setup", "box", "box1", "--json").out)["identity"] + "\n")
    seen = []

    def choosing(vault: Vault, **options: Any) -> Catalog:
        seen.append(being_read(place / "run"))
        return read_catalog(vault, **options)

    monkeypatch.setattr(restore, "read_catalog", choosing)
    with pytest.raises(ConfigError, match="no point of 100"):
        call("restore", "100", "--from", "box1", "--to", "rpool/back", "--identity", str(identity))
    assert seen == [True], "from before the point is chosen"
    assert not being_read(place / "run")


@pytest.mark.parametrize("command", [("verify", "archive", "box1"), ("key", "drill", "box1", "--identity", "safe")])
def test_while_a_box_is_looked_at_nothing_expires_in_it_and_points_here_do(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(place)
    (place / "safe").write_text(json.loads(call("setup", "box", "box1", "--json").out)["identity"] + "\n")
    seen = []

    def looking(*_: object, **__: object) -> Verification:
        seen.append((being_read(place / "run", ARCHIVES), being_read(place / "run")))
        return Verification(points=(), problems=())

    monkeypatch.setattr(commands, "look_at", looking)
    monkeypatch.setattr(key_commands, "drill_box", looking)
    call(*command)
    assert seen == [(True, False)]
    assert not being_read(place / "run", ARCHIVES)


def test_to_open_everything_needs_the_identity(place: Path, call: Call) -> None:
    call("setup", "box", "box1")
    with pytest.raises(ConfigError, match="identity from the safe"):
        call("verify", "archive", "box1", "--level", "opened")


def test_a_box_that_is_not_configured_is_told_with_those_that_are(place: Path, call: Call) -> None:
    with pytest.raises(ConfigError, match="no box named box2") as caught:
        call("verify", "archive", "box2")
    assert "box1" in caught.value.hint


def test_a_servers_key_is_pinned_only_when_its_fingerprint_is_given(tmp_path: Path, call: Call) -> None:
    with serving(tmp_path / "sshd") as sshd:
        (tmp_path / "sshd/known_hosts").unlink()
        configure(
            tmp_path,
            f"    host: 127.0.0.1\n    port: {sshd.port}\n    user: root\n    identity-file: {tmp_path}/sshd/id\n"
            f"    known-hosts-file: {tmp_path}/etc/known_hosts\n",
        )
        kind, blob, *_ = (tmp_path / "sshd/hostkey.pub").read_text().split()
        (key,) = host_keys([(kind, blob)])
        with pytest.raises(ConfigError, match=re.escape(key.fingerprint)):
            call("setup", "box", "box1")
        with pytest.raises(ConfigError):
            call("setup", "box", "box1", "--accept-hostkey", "SHA256:" + "A" * 43)
        assert not (tmp_path / "etc/known_hosts").exists()
        done = call("setup", "box", "box1", "--accept-hostkey", key.fingerprint)
        assert done.code == 0
        assert blob in (tmp_path / "etc/known_hosts").read_text()
        assert call("verify", "archive", "box1").code == 0
        (tmp_path / "etc/known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {kind} {other_blob(tmp_path)}\n")
        with pytest.raises(HostKeyError):
            call("verify", "archive", "box1")


def test_an_account_that_may_only_add_is_set_up(tmp_path: Path, call: Call) -> None:
    with serving(tmp_path / "sshd", "-P remove,rmdir") as sshd:
        configure(
            tmp_path,
            f"    host: 127.0.0.1\n    port: {sshd.port}\n    user: root\n    identity-file: {tmp_path}/sshd/id\n"
            f"    known-hosts-file: {tmp_path}/sshd/known_hosts\n",
        )
        for _ in range(2):
            done = call("setup", "box", "box1", "--json")
            assert done.code == 0
            assert "lets nothing be removed" in json.loads(done.out)["actions"][-1]["detail"]
        assert call("verify", "archive", "box1").code == 0


@pytest.mark.parametrize(("when", "rate"), [
    ("2027-01-13T07:59:59+01:00", 8), ("2027-01-13T08:00:00+01:00", 2), ("2027-01-13T17:59:59+01:00", 2),
    ("2027-01-16T12:00:00+01:00", 0), ("2027-01-13T18:00:00+01:00", 8),
])  # fmt: skip
def test_a_boxs_rate_follows_the_clock_and_is_shared_by_its_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, rate: int
) -> None:
    """In the configured time zone, whatever the node's own is; each file anew."""
    configure(
        tmp_path,
        "    host: box.example\n    user: u\n    connections: 4\n    rate: 8M\n"
        "    rate-schedule: ['mon-fri 08:00-18:00: 2M', 'sat-sun 00:00-24:00: 0']\n",
    )
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("timezone: Europe/Berlin\n")
    monkeypatch.setattr("pve_zfsbackup.app.box.datetime", Clock)
    store = vault_of(tmp_path / "config.yaml", "box1").store
    assert isinstance(store, SftpStore)
    told = 0
    for at in ("2027-01-13T03:00:00+01:00", when):
        monkeypatch.setattr(Clock, "now_is", at)
        told = store.client.rate()
    assert told == rate * (1 << 20) // 4
    argv = store.client.server.argv(told)
    assert ("-l" in argv) is bool(rate)
    assert not rate or int(argv[argv.index("-l") + 1]) == rate * (1 << 20) // 4 * 8 // 1000


class Clock(datetime):
    """Stands still."""

    now_is = ""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Clock:
        return cls.fromisoformat(cls.now_is).astimezone(tz)


def other_blob(place: Path) -> str:
    return (place / "sshd/id.pub").read_text().split()[1]


def test_a_directory_that_is_not_mounted_is_no_empty_box(place: Path, call: Call) -> None:
    call("setup", "box", "box1")
    shutil.rmtree(place / "mnt")
    with pytest.raises(BackupError, match="is not there"):
        call("verify", "archive", "box1")


def test_a_box_on_the_system_disk_is_told_for_a_share_may_not_be_mounted() -> None:
    assert _on_system_disk(Path("/"))
    assert not _on_system_disk(Path("/proc"))
    assert not _on_system_disk(None), "a server's"
