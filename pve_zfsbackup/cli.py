"""The command line: parse, call the application, render, exit. No decisions."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from pve_zfsbackup import __version__, report, terminal
from pve_zfsbackup.app.gather import Scope, assign, inventory
from pve_zfsbackup.app.history import discover as find_all
from pve_zfsbackup.app.history import history
from pve_zfsbackup.app.preview import preview
from pve_zfsbackup.app.prune import freed, plan_all
from pve_zfsbackup.app.run import ALL_STAGES, Stage
from pve_zfsbackup.app.run import run as run_stages
from pve_zfsbackup.app.session import Session, open_session
from pve_zfsbackup.app.setup_node import setup_node
from pve_zfsbackup.config import Config, load_config
from pve_zfsbackup.errors import BackupError, ExitCode
from pve_zfsbackup.model import Selector, parse_selector

CONFIG = Path("/etc/pve-zfsbackup/config.yaml")
F = TypeVar("F", bound=Callable[..., Any])


class SelectorType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.2
    """A guest on the command line: any selector the configuration knows."""

    name = "guest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Selector:
        try:
            return parse_selector(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def common(function: F) -> F:
    """Options every command takes."""
    config = click.option(
        "--config", "config_path", type=click.Path(path_type=Path), default=CONFIG, show_default=True,
        help="Configuration file.",
    )  # fmt: skip
    as_json = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
    verbose = click.option("-v", "--verbose", is_flag=True, help="Say what is done.")
    return config(as_json(verbose(function)))


def scoped(function: F) -> F:
    """Guests and jobs a command is narrowed down to."""
    guests = click.argument("guests", nargs=-1, type=SelectorType())
    jobs = click.option("--job", "jobs", multiple=True, help="Only the guests of this job. Repeatable.")
    return guests(jobs(function))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pve-zfsbackup")
def cli() -> None:
    """Guest-consistent ZFS snapshots, replication and retention for Proxmox VE.

    GUESTS are vmids (100), ranges (100-199), or name:web*, tag:prod, pool:production, storage:fast.
    Exit codes: 0 all well, 1 some guests or targets failed, 2 failed, 3 configuration or usage, 4 locked.
    """


@cli.command()
@click.option("--dry-run", is_flag=True, help="Show what would be done, and the commands that would do it.")
@click.option("--remove", is_flag=True, help="Take back the token, and with the last one the user and the role.")
@common
def setup(dry_run: bool, remove: bool, config_path: Path, as_json: bool, verbose: bool) -> int:
    """Prepare this node: role, user and API token, an ssh key, a first configuration. Safe to repeat."""
    actions = setup_node(config_path, dry_run=dry_run, remove=remove)
    if as_json:
        terminal.print_json(report.actions_json(actions))
    else:
        terminal.print_table(report.actions_table(actions, commands=dry_run or verbose))
        if not (dry_run or remove):
            for line in report.next_steps(config_path):
                terminal.note(line)
    return ExitCode.OK


@cli.command()
@common
def discover(config_path: Path, as_json: bool, verbose: bool) -> int:
    """Show every guest and disk of this node: protected, or why not."""
    with _session(config_path) as session:
        found = find_all(session)
    if as_json:
        terminal.print_json(report.discovery_json(found))
    else:
        terminal.print_table(report.discovery_table(found))
        _notes(found.notes)
    return ExitCode.OK


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
    with _session(config_path) as session:
        found = history(session, Scope(jobs=tuple(jobs), guests=tuple(guests)), only=where)
        zone = session.timezone
    if as_json:
        terminal.print_json(report.points_json(found))
    else:
        terminal.print_table(report.points_table(found, zone, disks=disks))
        _errors(found.errors.values())
    return ExitCode.PARTIAL if found.errors else ExitCode.OK


@cli.command()
@scoped
@common
def status(guests: Sequence[Selector], jobs: Sequence[str], config_path: Path, as_json: bool, verbose: bool) -> int:
    """Show the age of the newest point of each guest here and on each target, and what is not protected."""
    with _session(config_path) as session:
        found = history(session, Scope(jobs=tuple(jobs), guests=tuple(guests)))
    if as_json:
        terminal.print_json(report.status_json(found))
    else:
        terminal.print_table(report.status_table(found))
        _errors(found.errors.values())
        _notes(found.notes)
    return ExitCode.PARTIAL if found.errors else ExitCode.OK


@cli.command()
@scoped
@click.option("--dry-run", is_flag=True, help="Show what would be snapshotted, and how.")
@common
def snapshot(**options: Any) -> int:
    """Take a recovery point of each guest: freeze, snapshot all disks at one instant, thaw."""
    return _stages((Stage.SNAPSHOT,), **options)


@cli.command()
@scoped
@click.option("--dry-run", is_flag=True, help="Show what would be sent, from which base.")
@common
def replicate(**options: Any) -> int:
    """Send the newest points to the targets, incrementally."""
    return _stages((Stage.REPLICATE,), **options)


@cli.command()
@scoped
@click.option("--dry-run", is_flag=True, help="Show every verdict with its reason, and the bytes freed.")
@common
def prune(
    guests: Sequence[Selector], jobs: Sequence[str], dry_run: bool, config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Remove the points the policy does not keep, here and on the targets."""
    if not dry_run:
        return _stages(
            (Stage.PRUNE,), guests=guests, jobs=jobs, dry_run=False, config_path=config_path, as_json=as_json,
            verbose=verbose,
        )  # fmt: skip
    with _session(config_path) as session:
        found = inventory(session)
        items, _ = assign(session, found, Scope(jobs=tuple(jobs), guests=tuple(guests)))
        work = plan_all(session, found, items)
        total: dict[str, int] = {}
        for pruning in work.guests:
            for host, count in freed(session, pruning).items():
                total[host] = total.get(host, 0) + count
        zone = session.timezone
    if as_json:
        terminal.print_json(report.verdicts_json(work, total))
    else:
        terminal.print_table(report.verdicts_table(work, zone))
        for host, count in sorted(total.items()):
            terminal.say(f"{host}: {report.size(count)} would be freed")
        for result in work.silent:
            terminal.note(terminal.result_line(result))
    return ExitCode.PARTIAL if work.silent else ExitCode.OK


@cli.command()
@scoped
@click.option(
    "--stage", "stages", multiple=True, type=click.Choice([stage.value for stage in ALL_STAGES]),
    help="Only this stage. Repeatable; the order is always snapshot, replicate, prune.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what each stage would do.")
@common
def run(stages: Sequence[str], **options: Any) -> int:
    """Snapshot, replicate and prune: what cron calls."""
    chosen = tuple(stage for stage in ALL_STAGES if not stages or stage.value in stages)
    return _stages(chosen, **options)


def _stages(
    stages: Sequence[Stage], *, guests: Sequence[Selector], jobs: Sequence[str], dry_run: bool, config_path: Path,
    as_json: bool, verbose: bool,
) -> int:  # fmt: skip
    scope = Scope(jobs=tuple(jobs), guests=tuple(guests))
    config = load_config(config_path)
    with (
        terminal.Reporter(verbose=verbose, quiet=as_json) as reporter,
        open_session(config, reporter.emit) as session,
    ):
        if dry_run:
            return _show_preview(session, scope, stages, as_json=as_json)
        done = run_stages(session, scope, stages)
    if as_json:
        terminal.print_json(report.report_json(done))
    elif verbose or sys.stdout.isatty():
        terminal.print_table(report.results_table(done.results))
        _notes(done.notes)
    return done.exit_code


def _show_preview(session: Session, scope: Scope, stages: Sequence[Stage], *, as_json: bool) -> int:
    shown = preview(session, scope, stages)
    if as_json:
        terminal.print_json(report.preview_json(shown))
    else:
        terminal.print_table(report.preview_table(shown))
    return ExitCode.PARTIAL if shown.errors else ExitCode.OK


def _session(path: Path) -> Any:
    config: Config = load_config(path)
    return open_session(config, lambda _: None)


def _notes(notes: Sequence[str]) -> None:
    for text in notes:
        terminal.note(text)


def _errors(errors: Any) -> None:
    for error in errors:
        terminal.print_error(error)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM and SIGHUP end the run the orderly way: guests are thawed, children ended, tokens kept."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> NoReturn:
    """Entry point. Every way out has a documented exit code."""
    terminal.open_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    code: int | None = ExitCode.FAILED
    try:
        code = cli.main(prog_name="pve-zfsbackup", standalone_mode=False)
    except Exception as error:
        code = _exit_code(error)
        with contextlib.suppress(OSError):  # the terminal may be gone
            _tell(error)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr)
    terminal.settle_streams()
    sys.exit(int(code or 0))


def _exit_code(error: Exception) -> ExitCode:
    if isinstance(error, BackupError):
        return error.exit_code
    return ExitCode.CONFIG if isinstance(error, click.ClickException) else ExitCode.FAILED


def _tell(error: Exception) -> None:
    if isinstance(error, BackupError):
        terminal.print_error(error)
    elif isinstance(error, click.ClickException):
        error.show()
    elif isinstance(error, click.exceptions.Abort):
        print("interrupted", file=sys.stderr)
    else:  # a bug of ours: Python's own exit status 1 would say "partly done"
        traceback.print_exception(error)
