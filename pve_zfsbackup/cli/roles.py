"""`failover` and `failback`: taking over the guests whose replicas lie here, and giving them back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.failback import Given
from pve_zfsbackup.app.failback_way import prepare, source_host
from pve_zfsbackup.app.failover import Request, ask, plan_takeover
from pve_zfsbackup.app.restore import restoring_alone
from pve_zfsbackup.app.roles_on_record import failback_on_record, failover_on_record
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common, session_of, tell_notes
from pve_zfsbackup.cli.restore import VMID, storage_map
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.model import Vmid, printable
from pve_zfsbackup.plan.failover import Question, permitted
from pve_zfsbackup.report.failover import failback_json, failback_lines, failover_json, failover_lines


@cli.command("failover")
@click.argument("guests", nargs=-1, type=VMID)
@click.option("--all", "everyone", is_flag=True, help="Every guest that has points here.")
@click.option("--at", default="", metavar="TIME|POINT", help="Not the newest point: the newest not after, or this one.")
@click.option("--storage", "storages", multiple=True, metavar="[OLD:]NEW", help="Where disks go to. Repeatable.")
@click.option("--root", default="", metavar="DATASET", help="Where the replicas lie. Without: as configured.")
@click.option("--source", default="", metavar="HOST", help="Whose guests they are. Without: as configured.")
@click.option("--fenced", is_flag=True, help="The source cannot run them: it is off, or cut from power and network.")
@click.option("--force", "forced", is_flag=True, help="Although the source answers. Needs --reason.")
@click.option("--reason", default="", metavar="TEXT", help="Why. It is recorded with the replicas.")
@click.option("--no-start", is_flag=True, help="Make the guests, and start none.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@common
def failover_command(
    guests: Sequence[int], everyone: bool, at: str, storages: Sequence[str], root: str, source: str, fenced: bool,
    forced: bool, reason: str, no_start: bool, dry_run: bool, config_path: Path, as_json: bool, verbose: bool,
) -> int:  # fmt: skip
    """On the host with the replicas: make the guests of a source that is gone, and start them in their order.

    Refuses as long as the source answers. A point whose last drill here failed is passed over, unless --at names it.
    The replicas are marked: when the source is back, it sends nothing for these guests until `failback`. A disk becomes
    a clone of its replica in the same pool, a copy in another. Safe to repeat.
    """
    if bool(guests) is everyone:
        raise click.UsageError("name guests, or --all")
    request = Request(
        guests=tuple(Vmid(vmid) for vmid in guests),
        at=at,
        storages=storage_map(storages),
        root=root,
        source=source,
        fenced=fenced,
        forced=forced,
        reason=reason,
        start=not no_start,
    )
    with (
        terminal.Reporter(verbose=verbose, quiet=as_json) as reporter,
        session_of(config_path, reporter.emit) as session,
        restoring_alone(session),
    ):
        question = ask(session, request)
        if not dry_run:
            question = _fenced(question, quiet=as_json)
        done = plan_takeover(session, request, question, dry_run=dry_run)
        if not dry_run:
            tell_notes(failover_on_record(session, done, question, start=request.start))
    if as_json:
        terminal.print_json(failover_json(done))
    else:
        _say(failover_lines(done))
    good = [taking for taking in done.guests if taking.good]
    return ExitCode.OK if len(good) == len(done.guests) else ExitCode.PARTIAL if good else ExitCode.FAILED


@cli.command("failback")
@click.argument("vmid", type=VMID)
@click.option("--root", default="", metavar="DATASET", help="Where the replicas lie. Without: as configured.")
@click.option("--source", default="", metavar="HOST", help="Where it goes home to. Without: as configured.")
@click.option("--start", is_flag=True, help="Start it there.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@common
def failback_command(
    vmid: int, root: str, source: str, start: bool, dry_run: bool, config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Give a guest that was taken over back to its source, with what it wrote here.

    Only what changed since the common point travels, most of it while the guest still runs; then it is shut down. On
    the source nothing is overwritten: its old disks are put aside. The copy here stays until you remove it. Safe to
    repeat.
    """
    with (
        terminal.Reporter(verbose=verbose, quiet=as_json) as reporter,
        session_of(config_path, reporter.emit) as session,
        restoring_alone(session),
        source_host(session, source) as host,
    ):
        way = prepare(session, host, Vmid(vmid), root)
        done = Given(plan=way.plan)
        if not dry_run and not way.plan.conflicts:
            for note in () if as_json else way.plan.notes:  # told before: it can still be ended, and nothing was moved
                terminal.note(printable(note))
            done, untold = failback_on_record(way, start=start)
            tell_notes(untold)
    if as_json:
        terminal.print_json(failback_json(done))
    else:
        _say(failback_lines(done))
    return ExitCode.FAILED if done.plan.conflicts else ExitCode.PARTIAL if done.error else ExitCode.OK


def _fenced(question: Question, *, quiet: bool) -> Question:
    """Ask a person, where there is one, what no program can know."""
    conflict = permitted(question)
    if conflict is None or conflict.kind != "not-fenced" or quiet or not sys.stdin.isatty():
        return question
    for line in (*question.signs, f"{question.source} {conflict.message}.", f"{conflict.resolve}"):
        terminal.note(line)
    typed = click.prompt(f"To confirm that {question.source} cannot run these guests, type its name", err=True)
    return replace(question, fenced=typed.strip() == question.source)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        terminal.say(printable(line))
