"""The package's cron jobs: silent before anything is configured and after the removal, and never after that."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CRON = Path(__file__).parent.parent / "debian/pve-zfsbackup.cron.d"
pytestmark = pytest.mark.processes


def jobs(place: Path) -> list[str]:
    """The commands, with every path below `place` and our program replaced by one that says that it ran."""
    lines = [line for line in CRON.read_text().splitlines() if " root " in line and not line.startswith("#")]
    commands = [line.partition(" root ")[2] for line in lines]
    moved = [re.sub(r"(?<= )(/(?:usr/bin|etc|var)/[\w./-]+)", rf"{place}\1", command) for command in commands]
    return [command.replace(" pve-zfsbackup run", " echo ran") for command in moved]


def ran(place: Path) -> list[bool]:
    outputs = [subprocess.check_output(["/bin/sh", "-c", command], text=True) for command in jobs(place)]
    return ["ran" in text for text in outputs]


def have(place: Path, *paths: str) -> None:
    for path in paths:
        file = place / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        file.chmod(0o755)


PROGRAM = "/usr/bin/pve-zfsbackup"


@pytest.mark.parametrize("config", ["/etc/pve-zfsbackup/config.yaml", "/etc/pve/pve-zfsbackup.yaml"])
def test_a_configuration_of_the_node_or_the_cluster_is_enough(tmp_path: Path, config: str) -> None:
    have(tmp_path, PROGRAM, config)
    assert ran(tmp_path) == [True, True]


def test_before_anything_is_configured_nothing_is_said(tmp_path: Path) -> None:
    have(tmp_path, PROGRAM)
    assert ran(tmp_path) == [False, False]


def test_without_the_package_nothing_is_said(tmp_path: Path) -> None:
    have(tmp_path, "/etc/pve-zfsbackup/config.yaml", "/var/log/pve-zfsbackup/journal.jsonl")
    assert ran(tmp_path) == [False, False]


def test_a_clusters_configuration_that_is_gone_is_no_silence(tmp_path: Path) -> None:
    """pmxcfs is not mounted: /etc/pve is an ordinary, empty directory then."""
    have(tmp_path, PROGRAM, "/var/log/pve-zfsbackup/journal.jsonl")
    (tmp_path / "etc/pve").mkdir(parents=True)
    assert ran(tmp_path) == [True, True]
