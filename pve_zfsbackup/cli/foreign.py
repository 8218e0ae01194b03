"""`import`: the configuration of another tool, told in our words."""

from __future__ import annotations

from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.import_sanoid import import_sanoid
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import config_option, session_without_config
from pve_zfsbackup.errors import ExitCode


@cli.group("import")
def import_() -> None:
    """Translate another tool's configuration into one of ours, on standard output. Nothing is written."""


@import_.command("sanoid")
@click.argument("file", type=click.Path(path_type=Path))
@config_option("Configuration file; it says how to reach the API, and need not exist.")
def import_sanoid_command(file: Path, config_path: Path) -> int:
    """Turn FILE, a sanoid.conf, into a config.yaml with a comment for each of its lines.

    Proxmox and ZFS are asked which guests are on the datasets it names. What has no equivalent says so and why.
    """
    with session_without_config(config_path) as session:
        terminal.say(import_sanoid(session, file).rstrip("\n"))
    return ExitCode.OK
