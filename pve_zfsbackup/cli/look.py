"""Commands that answer questions and change nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.audit import audit
from pve_zfsbackup.app.cost import history_costs
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.history import between, history
from pve_zfsbackup.app.history import discover as find_all
from pve_zfsbackup.app.status import status as look
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common, scoped, session_of, tell_errors, tell_notes
from pve_zfsbackup.errors import BackupError, ConfigError, ExitCode
from pve_zfsbackup.model import Selector
from pve_zfsbackup.report.audit import audit_json, audit_table
from pve_zfsbackup.report.coverage import discovery_json, discovery_table
from pve_zfsbackup.report.format import Table, moment
from pve_zfsbackup.report.leavings import leaving_lines
from pve_zfsbackup.report.points import points_json, points_table
from pve_zfsbackup.report.status import status_json, status_table

WHEN = click.DateTime(["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"])


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
        terminal.print_json(discovery_json(found))
    else:
        terminal.print_table(discovery_table(found))
        tell_notes(found.notes)
    return ExitCode.OK


def _audited(config_path: Path, *, as_json: bool) -> int:
    with session_of(config_path) as session:
        found = audit(session)
    if as_json:
        terminal.print_json(audit_json(found))
    else:
        if found.open:
            terminal.print_table(audit_table(found))
        tell_notes(found.notes)
    return ExitCode.PARTIAL if found.open else ExitCode.OK


@cli.command("list")
@scoped
@click.option("--where", default="", help="Only there: source, or the name of a target or a box.")
@click.option("--disks", is_flag=True, help="Also the snapshot of each disk.")
@click.option("--cost", is_flag=True, help="Also what destroying all listed points of a guest would free.")
@click.option("--since", type=WHEN, metavar="TIME", help="Only points created then or later.")
@click.option("--until", type=WHEN, metavar="TIME", help="Only points created then or earlier.")
@common
def list_(
    guests: Sequence[Selector], jobs: Sequence[str], where: str, disks: bool, cost: bool, since: datetime | None,
    until: datetime | None, config_path: Path, as_json: bool, verbose: bool,
) -> int:  # fmt: skip
    """List recovery points: here, on every target and in every box, with creation, used and refer.

    `used` is what destroying that point alone would free. Together it is more: what several share is in none of them.
    --cost asks ZFS for all points of a guest that are listed, which --since and --until narrow down to any range. It
    is exact (zfs destroy -nvp), and nothing is destroyed. TIME is 2026-11-20 or "2026-11-20 13:30".
    """
    with session_of(config_path) as session:
        found = history(session, Scope(jobs=tuple(jobs), guests=tuple(guests)), only=where)
        zone = session.timezone
        first, last = (when.replace(tzinfo=zone).timestamp() if when else None for when in (since, until))
        found = between(found, first or 0, math.inf if last is None else last)
        costs = history_costs(session, found) if cost else None
    if as_json:
        terminal.print_json(points_json(found, costs))
    else:
        terminal.print_table(points_table(found, zone, disks=disks, costs=costs or ()))
        tell_errors(found.errors.values())
    return ExitCode.PARTIAL if found.errors else ExitCode.OK


@cli.command()
@scoped
@click.option(
    "--watch", "every", type=click.IntRange(1, 99), is_flag=False, flag_value=10, metavar="[SECONDS]",
    help="Look again every so many seconds (without: 10), until Ctrl-C. Guests stand before it.",
)  # fmt: skip
@common
def status(
    guests: Sequence[Selector], jobs: Sequence[str], every: int | None, config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Show how each guest stands: age of its newest point here, on targets and in boxes, how it was taken, what was
    verified last and when, when the next point is due, and what somebody should look at.

    Due is when a guest is late by its job's warn-age, if nothing new arrives. Colour, on a terminal: red what is not
    protected as promised, yellow what is late. With --watch, one look after another; nothing stays open in between.
    """
    scope = Scope(jobs=tuple(jobs), guests=tuple(guests))
    if every is not None:
        _watchable(as_json=as_json)
        return _watch(config_path, scope, every)
    with session_of(config_path) as session:
        found = look(session, scope)
        zone = session.timezone
    if as_json:
        terminal.print_json(status_json(found))
    else:
        terminal.print_table(status_table(found, zone))
        tell_errors(found.history.errors.values())
        tell_notes((*found.notes, *leaving_lines(found.history, zone)))
    return ExitCode.PARTIAL if found.history.errors else ExitCode.OK


def _watchable(*, as_json: bool) -> None:
    if as_json:
        raise ConfigError(["--watch is for a screen, --json for programs"], hint="call it without --watch, repeatedly")
    if not terminal.is_watched():
        raise ConfigError(
            ["--watch needs a terminal, and standard output is none"],
            hint="`status` without it for a file, `check` and `metrics` for monitoring",
        )


def _watch(config_path: Path, scope: Scope, every: int) -> int:
    """Until Ctrl-C, which is how it is meant to end. What fails at the first look is the caller's; later it is shown,
    and may pass."""
    looked = False
    try:
        while True:
            try:
                heading, table, told = _looked(config_path, scope)
                terminal.redraw(f"{heading}  every {every} s, Ctrl-C ends", table, told)
                looked = True
            except BackupError as error:
                if not looked:
                    raise
                told = [text for text in (error.message, error.hint) if text]
                terminal.redraw(f"cannot be known now; again in {every} s, Ctrl-C ends", None, told)
            time.sleep(every)
    except KeyboardInterrupt as stop:
        if stop.args:  # a signal that ends programs, or a terminal that is gone
            raise
    return ExitCode.OK


def _looked(config_path: Path, scope: Scope) -> tuple[str, Table, list[str]]:
    """One look, by a session of its own."""
    with session_of(config_path) as session:
        found, zone, node = look(session, scope), session.timezone, session.node
    history = found.history
    notes = [*(error.message for error in history.errors.values()), *found.notes, *leaving_lines(history, zone)]
    return f"{node}  {moment(found.history.now, zone)}", status_table(found, zone), notes
