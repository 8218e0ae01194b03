"""Commands are imported when they are called: what says where they are is true, and a start stays cheap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from pve_zfsbackup.cli.commands import MODULES, cli

FOLDER = Path(import_module("pve_zfsbackup.cli").__file__ or "").parent


def _modules(command: click.Command) -> Iterator[str]:
    if command.callback:
        yield command.callback.__module__.rpartition(".")[2]
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from _modules(child)


def test_each_command_names_the_modules_that_define_it() -> None:
    for file in FOLDER.glob("*.py"):
        if file.stem != "__init__":
            import_module(f"pve_zfsbackup.cli.{file.stem}")
    assert {name: set(_modules(command)) for name, command in cli.commands.items()} == {
        name: set(modules) for name, modules in MODULES.items()
    }


@pytest.mark.processes
def test_the_version_is_told_without_the_application() -> None:
    code = "import sys, pve_zfsbackup.cli; print(*(name for name in sys.modules if name.startswith('pve_zfsbackup.')))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    rooms = {name.split(".")[1] for name in loaded}
    assert rooms <= {"cli", "errors", "events", "model", "report", "terminal"}
    assert "requests" not in loaded
