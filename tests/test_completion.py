"""What TAB offers, as the shells ask for it: from two local files, asking nobody, silent where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete, ZshComplete

from pve_zfsbackup.cli import cli
from pve_zfsbackup.cli.completion import OFFERS

CONFIG = """\
journal-dir: {place}/log
targets:
  backup1: {{host: b, root: tank/x}}
  offsite: {{host: c, root: tank/x}}
boxes:
  box1: {{host: /mnt/x}}
jobs:
  all: {{guests: [all]}}
  nightly: {{guests: [all]}}
"""
Offered = Callable[..., list[str]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(place=tmp_path))
    (tmp_path / "log").mkdir()
    write(tmp_path, 100, "web", "20261123T180000Z-ab12")
    write(tmp_path, 101, "db", "20261123T190000Z-ab13")
    write(tmp_path, 100, "web-renamed", "20261124T180000Z-ab14")
    return file


def write(place: Path, vmid: int, guest: str, stamp: str) -> None:
    line = {"event": "result", "vmid": vmid, "guest": guest, "point": f"{vmid}/{stamp}"}
    with (place / "log/journal.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture
def offered(config: Path) -> Offered:
    """What is offered for the last word, behind the words before it."""

    def ask(*words: str) -> list[str]:
        *before, incomplete = words
        named = ["--config", str(config)]
        asked = BashComplete(cli, {}, "pve-zfsbackup", "_PVE_ZFSBACKUP_COMPLETE")
        option = before[-1:] if before[-1].startswith("-") else []
        words_before = [*before[: len(before) - len(option)], *named, *option]
        return [item.value for item in asked.get_completions(words_before, incomplete)]

    return ask


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("run", ""), ["100", "101"]),
        (("run", "101", "10"), ["100", "101"]),
        (("why", "prune", "1"), ["100", "101"]),
        (("thaw", ""), ["100", "101"]),
        (("snapshot", "--job", ""), ["all", "nightly"]),
        (("simulate", "--job", "n"), ["nightly"]),
        (("why", "replicate", "--target", ""), ["backup1", "offsite"]),
        (("list", "--where", ""), ["source", "backup1", "offsite"]),
        (("setup", "target", "o"), ["offsite"]),
        (("setup", "box", ""), ["box1"]),
        (("restore", "--from", ""), ["source", "backup1", "offsite", "box1"]),
        (("restore", "--replace", ""), ["100", "101"]),
        (("restore", "100", "--at", ""), ["20261124T180000Z-ab14", "20261123T180000Z-ab12"]),
        (("rollback", "100", "--at", ""), ["20261124T180000Z-ab14", "20261123T180000Z-ab12"]),
        (("restore", "--at", ""), ["20261124T180000Z-ab14", "20261123T180000Z-ab12", "20261123T190000Z-ab13"]),
    ],
)
def test_words_are_offered(offered: Offered, words: tuple[str, ...], values: list[str]) -> None:
    assert offered(*words) == values


def test_every_place_that_means_a_guest_or_a_name_offers_it() -> None:
    """A new command gets it by the names of its parameters."""

    def walk(command: click.Command, path: str) -> list[str]:
        found = [f"{path} {p.name}" for p in command.params if p.name in OFFERS and "shell_complete" not in vars(p)]
        names = command.list_commands(pressed) if isinstance(command, click.Group) else ()
        children = {name: command.get_command(pressed, name) for name in names}
        return found + [missing for name, child in children.items() for missing in walk(child, f"{path} {name}")]

    pressed = click.Context(cli, resilient_parsing=True)
    assert len(cli.list_commands(pressed)) > 20
    assert walk(cli, "") == []


def test_names_are_told_beside_the_number(config: Path) -> None:
    asked = ZshComplete(cli, {}, "pve-zfsbackup", "_PVE_ZFSBACKUP_COMPLETE")
    items = asked.get_completions(["run", "--config", str(config)], "100")
    assert [(item.value, item.help) for item in items] == [("100", "web-renamed")]


def test_a_hostile_name_is_one_line_of_text(config: Path, offered: Offered) -> None:
    write(config.parent, 666, "x\n$(reboot)\x1b[2J", "20261124T180000Z-ab99")
    asked = ZshComplete(cli, {}, "pve-zfsbackup", "_PVE_ZFSBACKUP_COMPLETE")
    (item,) = asked.get_completions(["run", "--config", str(config)], "666")
    assert asked.format_completion(item).splitlines() == ["plain", "666", "x\\n$(reboot)\\x1b[2J"]
    write(config.parent, 777, "y", "$(reboot)")
    assert "$(reboot)" not in offered("restore", "--at", "")


@pytest.mark.parametrize("damage", ["no config", "bad config", "no journal", "bad journal", "a directory"])
def test_what_cannot_be_read_offers_nothing_and_says_nothing(
    config: Path, offered: Offered, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = config.parent / "log/journal.jsonl"
    match damage:
        case "no config":
            config.unlink()
        case "bad config":
            config.write_text("jobs: [")
        case "no journal":
            journal.unlink()
        case "bad journal":
            journal.write_bytes(b'{"vmid": "x"}\n[1]\nnonsense\n{"vmid": true}\n\xff\n')
        case "a directory":
            journal.unlink()
            journal.mkdir()
    assert offered("run", "x") == []
    assert offered("run", "7") == []
    assert capsys.readouterr() == ("", "")


def test_only_the_end_of_a_large_journal_is_read(config: Path, offered: Offered) -> None:
    journal = config.parent / "log/journal.jsonl"
    journal.write_text(journal.read_text() + "".join(f'{{"n": {number}}}\n' for number in range(40_000)))
    write(config.parent, 300, "new", "20261125T180000Z-0001")
    assert offered("run", "") == ["300"]
