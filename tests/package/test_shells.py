"""TAB in bash, zsh and fish themselves, with the completion and the program of the package.

A shell reads its keys one after another, so that what is typed behind a TAB waits for it: nothing here waits for a
time. What is awaited is a prompt, or words on the screen; SECONDS are for a machine that has much else to do.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # each TAB starts the program
SECONDS = 600.0
PROMPT = "pzb-ready> "
CONFIG = """\
journal-dir: {place}
targets:
  offsite: {{host: c, root: tank/x}}
jobs:
  all: {{guests: [all]}}
  nightly: {{guests: [all]}}
"""
# No number that could be part of a path.
JOURNAL = (
    '{"event":"result","vmid":610001,"guest":"web","point":"610001/20261123T180000Z-ab12"}\n'
    '{"event":"result","vmid":610002,"guest":"db","point":"610002/20261123T180000Z-ab13"}\n'
    '{"event":"result","vmid":720005,"guest":"mail","point":"720005/20261124T180000Z-ab14"}\n'
)
# Start files, so that nothing is typed before the first prompt.
BASH = f"""\
PS1="{PROMPT}"
bind "set enable-bracketed-paste off"; bind "set show-all-if-ambiguous on"; bind "set horizontal-scroll-mode off"
. {{root}}/usr/share/bash-completion/completions/pve-zfsbackup
"""
ZSH = f"""\
PS1="{PROMPT}"; unsetopt LIST_AMBIGUOUS LIST_BEEP PROMPT_SP; unset zle_bracketed_paste; bindkey -e
fpath=({{root}}/usr/share/zsh/vendor-completions $fpath); autoload -Uz compinit; compinit -u -D
"""
FISH = "source {root}/usr/share/fish/vendor_completions.d/pve-zfsbackup.fish; complete -C $argv[1]"
UNIQUE = (
    ("repl", "replicate"),
    ("run --config {config} 72", "720005"),
    ("snapshot --config {config} --job ni", "nightly"),
    ("why replicate --config {config} --target o", "offsite"),
    ("restore --config {config} 720005 --at 2026", "20261124T180000Z-ab14"),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("node")
    (place / "journal.jsonl").write_text(JOURNAL)
    file = place / "c.yaml"
    file.write_text(CONFIG.format(place=place))
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def environment(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The package's program, with Debian's own Python and libraries of this host."""
    return {
        "PATH": f"{unpacked}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": f"{unpacked}/usr/lib/python3/dist-packages",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path_factory.mktemp("home")),
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
    }


class Shell:
    """An interactive shell, typed to on a terminal of its own; it is at its prompt when this returns."""

    def __init__(self, argv: tuple[str, ...], environment: dict[str, str]) -> None:
        self.terminal, slave = pty.openpty()
        # So wide that no line is broken: what a shell does then looks different in each.
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 900, 0, 0))
        self.child = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd="/", start_new_session=True
        )
        os.close(slave)
        try:
            self.read(re.escape(PROMPT))
        except BaseException:
            self.close()
            raise

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def read(self, until: str) -> str:
        """What is shown, up to a pattern; AssertionError with it when that does not come, or the shell ends."""
        shown = ""
        end = time.monotonic() + SECONDS
        while not re.search(until, shown):
            ready, _, _ = select.select([self.terminal], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {until!r} in {shown!r}"
            try:
                shown += os.read(self.terminal, 65536).decode(errors="replace")
            except OSError as error:  # the shell is gone
                raise AssertionError(f"no {until!r} in {shown!r}, and then {error}") from error
        return shown

    def words(self) -> list[str]:
        """The words that stand on the command line when all that was typed is done, by a printf before them."""
        self.type("\x01printf '<%s>\\n' begin \x05 end\n")
        shown = self.read(rf"<begin>[\s\S]*<end>[\s\S]*{re.escape(PROMPT)}")
        return re.findall(r"<([^<>]+)>", shown[shown.index("<begin>") :])[1:-1]

    def close(self) -> None:
        os.close(self.terminal)
        self.child.kill()
        self.child.wait()


@pytest.fixture(params=["bash", "zsh"])
def shell(
    request: pytest.FixtureRequest, unpacked: Path, environment: dict[str, str], tmp_path: Path
) -> Iterator[Shell]:
    argv, name, text = {
        "bash": (("bash", "--noprofile", "--rcfile", str(tmp_path / "start"), "-i"), "start", BASH),
        "zsh": (("zsh", "-d", "-i"), ".zshrc", ZSH),  # -d: no start files of this host
    }[request.param]
    (tmp_path / name).write_text(text.format(root=unpacked))
    opened = Shell(argv, {**environment, "ZDOTDIR": str(tmp_path)})
    yield opened
    opened.close()


@pytest.fixture
def fish(unpacked: Path, environment: dict[str, str]) -> Callable[[str], list[str]]:
    def offered(line: str) -> list[str]:
        argv = ("fish", "--no-config", "-c", FISH.format(root=unpacked), line)
        done = subprocess.run(argv, check=True, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.stderr == ""
        return done.stdout.splitlines()

    return offered


@pytest.mark.parametrize(("typed", "whole"), UNIQUE)
def test_tab_ends_the_word(shell: Shell, config: Path, typed: str, whole: str) -> None:
    line = f"pve-zfsbackup {typed.format(config=config)}"
    shell.type(line + "\t")
    assert shell.words() == ["pve-zfsbackup", *line.split()[1:-1], whole]


def test_tab_lists_what_there_is(shell: Shell, config: Path) -> None:
    shell.type(f"pve-zfsbackup run --config {config} 6\t\t")
    shown = shell.read(r"610001[\s\S]*610002|610002[\s\S]*610001")
    assert "720005" not in shown
    assert shell.words()[-1] in ("61000", "610001"), "zsh has begun to go through them"


@pytest.mark.parametrize(("typed", "whole"), UNIQUE)
def test_fish_ends_the_word(fish: Callable[[str], list[str]], config: Path, typed: str, whole: str) -> None:
    assert [line.split("\t")[0] for line in fish(f"pve-zfsbackup {typed.format(config=config)}")] == [whole]


def test_fish_tells_names_beside_numbers(fish: Callable[[str], list[str]], config: Path) -> None:
    assert fish(f"pve-zfsbackup run --config {config} 6") == ["610001\tweb", "610002\tdb"]
