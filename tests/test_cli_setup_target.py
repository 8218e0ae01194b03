"""`setup target` as a person types it: golden output, exit codes, what is refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup import cli
from pve_zfsbackup.app.setup_target import Preparation
from pve_zfsbackup.cli import prepare_target
from tests.fakes.target_host import HOST_KEY, TargetHost
from tests.fakes.target_link import NODE_KEY, NOW, TargetLink

pytestmark = pytest.mark.processes
GOLDEN = Path(__file__).parent / "golden/cli"
ROOT = "tank/backups/pve1"
CONFIG = """\
api: {{node: pve1}}
runtime-dir: {place}/run
targets:
  backup1:
    host: backup1
    root: tank/backups/pve1
    append-only: true
    identity-file: {place}/id_ed25519
    known-hosts-file: {place}/known_hosts
"""


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Shell:
    """A node and its target; `call` is a command line."""

    link: TargetLink
    place: Path
    call: Callable[..., Ended]

    def neutral(self, text: str) -> str:
        """Without the directories of this very test."""
        for path, name in ((self.link.host.config, "/etc/pve-zfsbackup-receiver.toml"), (self.link.host.place, ""),
                           (self.place, "/etc/pve-zfsbackup")):  # fmt: skip
            text = text.replace(str(path), name)
        text = text.replace("/bin/pve", "/usr/bin/pve")
        return re.sub(" {2,}", "  ", text.replace(" /state", " /var/lib/pve-zfsbackup-receiver"))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    link = TargetLink(TargetHost(tmp_path / "h").build())
    (place := tmp_path / "n").mkdir(mode=0o700)
    (place / "pve").mkdir()
    (place / "pve/pve-root-ca.pem").write_text("certificate\n")
    (place / "id_ed25519").write_text("private\n")
    (place / "id_ed25519.pub").write_text(f"{NODE_KEY} pve-zfsbackup@pve1\n")
    config = place / "config.yaml"
    config.write_text(CONFIG.format(place=place))
    config.chmod(0o600)

    def prepared(**fields: Any) -> Preparation:
        return replace(Preparation(**fields), runner=link, pve_root=place / "pve", agent="", now=lambda: NOW)

    monkeypatch.setattr(prepare_target, "Preparation", prepared)
    monkeypatch.setattr("signal.signal", lambda *words: None)
    monkeypatch.setattr("pve_zfsbackup.host.ssh.SOCKET_LIMIT", 200)

    def call(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pve-zfsbackup", "setup", "target", *words, "--config", str(config)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return Shell(link, place, call)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs; --update-golden takes it over"

    return compare


Compare = Callable[[str, str], None]


@pytest.mark.parametrize("form", ["txt", "json"])
def test_golden_output(shell: Shell, golden: Compare, form: str) -> None:
    more = ("--json",) if form == "json" else ()
    for name, words in (
        ("dry-run", ("--admin", "root@backup1", "--dry-run")),
        ("admin", ("--admin", "root@backup1")),
        ("again", ("--admin", "root@backup1")),
        ("check", ("--check",)),
    ):
        done = shell.call("backup1", *words, *more)
        assert (done.code, done.stderr) == (0, "")
        golden(f"setup-target-{name}.{form}", shell.neutral(done.stdout))

    def spoil(state: dict[str, Any]) -> None:
        state["datasets"][ROOT].update({"readonly": "off", "pve-zfsbackup:owner": "pve-0123456789abcdef"})
        state["allow"].clear()

    shell.link.host.edit(spoil)
    shell.link.clock += 600
    shell.link.maintained = 0
    done = shell.call("backup1", "--check", *more)
    assert (done.code, done.stderr) == (1, "")
    golden(f"setup-target-check-wrong.{form}", shell.neutral(done.stdout))


def test_golden_help(shell: Shell, golden: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = shell.call("--help")
    assert (done.code, done.stderr) == (0, "")
    golden("help-setup-target.txt", done.stdout)


@pytest.mark.parametrize("mode", ["append-only", "plain"])
def test_golden_script(shell: Shell, golden: Compare, mode: str) -> None:
    if mode == "plain":
        config = shell.place / "config.yaml"
        config.write_text(config.read_text().replace("append-only: true", "append-only: false"))
    done = shell.call("backup1", "--print")
    assert (done.code, done.stderr) == (0, "")
    golden(f"setup-target-print-{mode}.sh", done.stdout)
    assert json.loads(shell.call("backup1", "--print", "--json").stdout) == {"format": 1, "script": done.stdout}
    assert shell.link.ran == []


def test_what_does_not_go_together(shell: Shell) -> None:
    for words in (
        ("backup1", "--check", "--print"),
        ("backup1", "--check", "--admin", "root@backup1"),
        ("backup1", "--nope"),
        ("nowhere",),
        ("backup1", "--root", "tank/other"),
        (),
    ):
        done = shell.call(*words)
        assert (done.code, done.stdout) == (3, ""), words
        assert done.stderr
        assert "Traceback" not in done.stderr
    assert shell.link.ran == []


def test_options_before_the_word_target_are_not_lost(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pve-zfsbackup", "setup", "--dry-run", "target", "backup1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert shell.link.ran == []


@pytest.mark.parametrize(("terminal", "code"), [(True, 0), (False, 1)])
def test_who_is_asked_for_the_host_key(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, terminal: bool, code: int
) -> None:
    shell.call("backup1", "--admin", "root@backup1")
    (shell.place / "known_hosts").unlink()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("click.confirm", lambda question, **more: "SHA256:" in question)
    done = shell.call("backup1")
    assert done.code == code
    assert (shell.place / "known_hosts").exists() == terminal
    if not terminal:
        assert "nobody vouched for ssh-ed25519 SHA256:" in done.stdout
        assert "# --accept-hostkey SHA256:" in done.stdout


def test_hostile_answers_do_not_reach_the_terminal(shell: Shell) -> None:
    keys = shell.link.host
    keys.account()
    keys.keys().write_text(f'# x\n\x1b[2Jcommand="evil\u202e" {NODE_KEY} bob\n')
    done = shell.call("backup1", "--admin", "root@backup1")
    assert done.code == 1
    assert "\x1b" not in done.stdout + done.stderr
    assert "\u202e" not in done.stdout + done.stderr
    assert HOST_KEY not in done.stdout
