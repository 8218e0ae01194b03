"""Commands that answer questions and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from pve_zfsbackup import report, terminal
from pve_zfsbackup.app.audit import audit
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.history import discover as find_all
from pve_zfsbackup.app.history import history
from pve_zfsbackup.cli.options import cli, common, scoped, session_of, tell_errors, tell_notes
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.model import Selector


@cli.command()
@click.option("--check", is_flag=True, help="Only what nobody decided to leave unprotected; exit code 1 if any.")
@common
def discover(check: bool, config_path: Path, as_json: bool, verbose: bool) -> int:
    """Show every guest and disk of this node: protected, or why not."""
    if check:
        return _audited(config_path, as_json=as_json)
    with session_of(config_path) as session:
        found = find_all(session)
    if as_json:
        terminal.print_json(report.discovery_json(found))
    else:
        terminal.print_table(report.discovery_table(found))
        tell_notes(found.notes)
    return ExitCode.OK


def _audited(config_path: Path, *, as_json: bool) -> int:
    with session_of(config_path) as session:
        found = audit(session)
    if as_json:
        terminal.print_json(report.audit_json(found))
    else:
        if found.open:
            terminal.print_table(report.audit_table(found))
        tell_notes(found.notes)
    return ExitCode.PARTIAL if found.open else ExitCode.OK


@cli.command("list")
@scoped
@click.option("--where", default="", help="Only this host: source, or the name of a target.")
@click.option("--disks", is_flag=True, help="Also the snapshot of each disk.")
@common
def list_(
    guests: Sequence[Selector], jobs: Sequence[str], where: str, disks: bool, config_path: Path, as_json: bool,
    verbose: bool,
) -> int:  # fmt: skip
    """List recovery points: here and on every target, with creation, used and refer."""
    with session_of(config_path) as session:
        found = history(session, Scope(jobs=tuple(jobs), guests=tuple(guests)), only=where)
        zone = session.timezone
    if as_json:
        terminal.print_json(report.points_json(found))
    else:
        terminal.print_table(report.points_table(found, zone, disks=disks))
        tell_errors(found.errors.values())
    return ExitCode.PARTIAL if found.errors else ExitCode.OK


@cli.command()
@scoped
@common
def status(guests: Sequence[Selector], jobs: Sequence[str], config_path: Path, as_json: bool, verbose: bool) -> int:
    """Show the age of the newest point of each guest here and on each target, and what is not protected."""
    with session_of(config_path) as session:
        found = history(session, Scope(jobs=tuple(jobs), guests=tuple(guests)))
    if as_json:
        terminal.print_json(report.status_json(found))
    else:
        terminal.print_table(report.status_table(found))
        tell_errors(found.errors.values())
        tell_notes(found.notes)
    return ExitCode.PARTIAL if found.errors else ExitCode.OK
