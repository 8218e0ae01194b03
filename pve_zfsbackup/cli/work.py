"""The stages, one by one and as cron calls them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.gather import Scope, assign, inventory
from pve_zfsbackup.app.run import ALL_STAGES, Stage
from pve_zfsbackup.app.run import run as run_stages
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common, scoped, session_for, session_of, tell_notes
from pve_zfsbackup.config import load_config
from pve_zfsbackup.errors import BackupError, ExitCode
from pve_zfsbackup.model import Selector
from pve_zfsbackup.report.format import cost
from pve_zfsbackup.report.runs import report_json, results_table, verdicts_json, verdicts_table


@cli.command()
@scoped
@click.option("--dry-run", is_flag=True, help="Show what would be snapshotted, and how.")
@common
def snapshot(**options: Any) -> int:
    """Take a recovery point of each guest: freeze, snapshot all disks at one instant, thaw."""
    return do_stages((Stage.SNAPSHOT,), **options)


@cli.command()
@scoped
@click.option("--dry-run", is_flag=True, help="Show what would be sent, from which base.")
@common
def replicate(**options: Any) -> int:
    """Send the newest points to the targets, incrementally."""
    return do_stages((Stage.REPLICATE,), **options)


@cli.command()
@scoped
@click.option("--dry-run", is_flag=True, help="Show every verdict with its reason, and the bytes freed.")
@common
def prune(
    guests: Sequence[Selector], jobs: Sequence[str], dry_run: bool, config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Remove the points the policy does not keep, here and on the targets."""
    if not dry_run:
        return do_stages(
            (Stage.PRUNE,), guests=guests, jobs=jobs, dry_run=False, config_path=config_path, as_json=as_json,
            verbose=verbose,
        )  # fmt: skip
    from pve_zfsbackup.app.prune import freed, plan_all, swept  # noqa: PLC0415 - only for this, and takes time to load

    with session_of(config_path) as session:
        found = inventory(session)
        items, _ = assign(session, found, Scope(jobs=tuple(jobs), guests=tuple(guests)))
        work = plan_all(session, found, items)
        total = freed(session, work)
        zone = session.timezone
        told = [*swept(session, work.world, dry=True), *work.silent]
    if as_json:
        terminal.print_json(verdicts_json(work, total, told))
    else:
        terminal.print_table(verdicts_table(work, zone))
        for host, count in sorted(total.items()):
            terminal.say(f"{host}: {cost(count)} would be freed")
        for result in told:
            terminal.note(terminal.result_line(result))
    return ExitCode.PARTIAL if work.silent else ExitCode.OK


@cli.command()
@scoped
@click.option(
    "--stage", "stages", multiple=True, type=click.Choice([stage.value for stage in ALL_STAGES]),
    help="Only this stage. Repeatable; the order is always snapshot, replicate, archive, prune.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what each stage would do.")
@common
def run(stages: Sequence[str], **options: Any) -> int:
    """Snapshot, replicate, archive and prune: what cron calls. Failures and recoveries are told as `alerts` says."""
    chosen = tuple(stage for stage in ALL_STAGES if not stages or stage.value in stages)
    return do_stages(chosen, alerted=True, **options)


def do_stages(
    stages: Sequence[Stage], *, guests: Sequence[Selector], jobs: Sequence[str], dry_run: bool, config_path: Path,
    as_json: bool, verbose: bool, alerted: bool = False,
) -> int:  # fmt: skip
    """Do stages, or show what they would do, as every command that does so."""
    scope = Scope(jobs=tuple(jobs), guests=tuple(guests))
    with terminal.Reporter(verbose=verbose, quiet=as_json) as reporter, contextlib.ExitStack() as stack:
        config = load_config(config_path)
        try:
            session = stack.enter_context(session_for(config, reporter.emit))
        except BackupError as error:
            if alerted and not dry_run:
                from pve_zfsbackup.app.alerts import tell_not_begun  # noqa: PLC0415 - see below

                tell_notes(tell_not_begun(config, error))
            raise
        if dry_run:
            return _show_preview(session, scope, stages, as_json=as_json)
        if alerted:
            from pve_zfsbackup.app.alerts import alerted_run  # noqa: PLC0415 - single stages tell nobody

            done, untold = alerted_run(session, scope, stages)
            tell_notes(untold)
        else:
            done = run_stages(session, scope, stages)
    if as_json:
        terminal.print_json(report_json(done))
    elif verbose or sys.stdout.isatty():
        terminal.print_table(results_table(done.results))
        tell_notes(done.notes)
    return done.exit_code


def _show_preview(session: Session, scope: Scope, stages: Sequence[Stage], *, as_json: bool) -> int:
    from pve_zfsbackup.app.preview import preview  # noqa: PLC0415 - loads every stage
    from pve_zfsbackup.report.steps import preview_json, preview_table  # noqa: PLC0415 - the same

    shown = preview(session, scope, stages)
    if as_json:
        terminal.print_json(preview_json(shown))
    else:
        terminal.print_table(preview_table(shown))
        for result in shown.partials:
            terminal.note(terminal.result_line(result))
    return ExitCode.PARTIAL if shown.errors else ExitCode.OK
