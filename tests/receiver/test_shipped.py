"""What is shipped beside the program says what the program does."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from pve_zfsbackup import receiver
from pve_zfsbackup.receiver import Root
from tests.receiver.conftest import RECEIVER

PACKAGING = Path(__file__).parent.parent.parent / "packaging" / "receiver"
EXAMPLE = PACKAGING / "pve-zfsbackup-receiver.toml"
PAGE = PACKAGING / "pve-zfsbackup-receiver.8"
DOCUMENT = PACKAGING.parent.parent / "docs" / "receiver.md"


def load(text: str, place: Path) -> list[Root]:
    path = place / "receiver.toml"
    path.write_text(text)
    path.chmod(0o644)
    return receiver.load(str(path))


def test_the_configuration_as_shipped_has_no_root(tmp_path: Path) -> None:
    assert load(EXAMPLE.read_text(), tmp_path) == []


def test_uncommented_it_has_every_option_with_its_default(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=\S)", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    assert load(text, tmp_path) == [Root(name="tank/backups/pve1")]
    given = set(re.findall(r"^([a-z-]+) = ", text, flags=re.MULTILINE))
    assert given == {field.name.replace("_", "-") for field in fields(Root)} - {"name"}


def test_every_option_is_in_the_man_page() -> None:
    page = PAGE.read_text().replace("\\-", "-")
    options = {word for action in receiver.arguments()._actions for word in action.option_strings}
    assert options == set(re.findall(r"\\fB(--?[a-z-]+)\\fR", page))


def test_the_document_names_every_form_of_the_grammar() -> None:
    text = DOCUMENT.read_text()
    for form in receiver.FORMS:
        words = form.split(" ")
        assert " ".join(words[: 3 if words[0] in ("zfs", "zpool") else 1]) in text or " ".join(words[:2]) in text, form
    ends = ("_age", "_share", "_full")
    for name in (field.name.replace("_", "-") for field in fields(Root) if field.name.endswith(ends)):
        assert name in text, name


@pytest.mark.processes
def test_it_runs_by_its_own_first_line(tmp_path: Path) -> None:
    """As the package installs it: executable, with the interpreter it names, from a directory that is not ours."""
    program = tmp_path / "pve-zfsbackup-receiver"
    program.write_bytes(RECEIVER.read_bytes())
    program.chmod(0o755)
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, cwd="/", env={})
    assert (done.returncode, done.stdout) == (0, f"{receiver.VERSION}\n"), done
    denied = subprocess.run(
        [program, "--root", "tank/x"], capture_output=True, check=False, env={"SSH_ORIGINAL_COMMAND": "id"}
    )
    assert denied.returncode == receiver.DENIED
    assert os.path.basename(program).encode() in denied.stderr
