"""`why`: what stands behind a decision."""

from __future__ import annotations

from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.why import why_prune, why_replicate
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import SelectorType, common, session_of, tell_errors, tell_notes
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.model import Selector
from pve_zfsbackup.report.runs import verdicts_json, verdicts_table
from pve_zfsbackup.report.why import why_json, why_table


@cli.group()
def why() -> None:
    """Explain what a run would do, and why not something else."""


@why.command("replicate")
@click.argument("guest", type=SelectorType())
@click.option("--target", default="", help="Only this target.")
@common
def why_replicate_command(guest: Selector, target: str, config_path: Path, as_json: bool, verbose: bool) -> int:
    """Show for each disk of GUEST the base that is chosen, what was rejected, and what would be sent."""
    with session_of(config_path) as session:
        told = why_replicate(session, guest, target)
        zone = session.timezone
    if as_json:
        terminal.print_json(why_json(told))
    else:
        terminal.print_table(why_table(told, zone))
        tell_errors(told.errors.values())
        tell_notes(told.notes)
    return ExitCode.PARTIAL if told.errors else ExitCode.OK


@why.command("prune")
@click.argument("guest", type=SelectorType())
@common
def why_prune_command(guest: Selector, config_path: Path, as_json: bool, verbose: bool) -> int:
    """Show for each point of GUEST whether it stays, and the rule or the need that keeps it."""
    with session_of(config_path) as session:
        work = why_prune(session, guest)
        zone = session.timezone
    if as_json:
        terminal.print_json(verdicts_json(work, {}))
    else:
        terminal.print_table(verdicts_table(work, zone))
        for result in work.silent:
            terminal.note(terminal.result_line(result))
    return ExitCode.PARTIAL if work.silent else ExitCode.OK
