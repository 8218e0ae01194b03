"""Commands for monitoring, and for trying out who would be told."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.alerts import send_test
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health
from pve_zfsbackup.app.measure import measure, nothing_measured
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common, scoped, session_of, tell_errors
from pve_zfsbackup.errors import BackupError, ConfigError, ExitCode
from pve_zfsbackup.host.private import write_output
from pve_zfsbackup.model import Selector
from pve_zfsbackup.model.health import Level
from pve_zfsbackup.report.health import check_lines, checkmk_line, health_json, unknown_line


@cli.command()
@scoped
@click.option("--checkmk", is_flag=True, help="One line as Checkmk's local checks have it.")
@common
def check(
    guests: Sequence[Selector], jobs: Sequence[str], checkmk: bool, config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Say for monitoring how well everything is protected: one line, performance data, exit code 0 1 2 3.

    Too old is what a job's warn-age and critical-age say. Exit codes here: 0 ok, 1 warning, 2 critical, 3 unknown.
    """
    try:
        with session_of(config_path) as session:
            found = health(session, Scope(jobs=tuple(jobs), guests=tuple(guests)))
    except BackupError as error:
        terminal.say(unknown_line(error.message, checkmk=checkmk))
        return 0 if checkmk else int(Level.UNKNOWN)
    if as_json:
        terminal.print_json(health_json(found))
    elif checkmk:
        terminal.say(checkmk_line(found))
        return 0  # Checkmk reads the line
    else:
        for line in check_lines(found):
            terminal.say(line)
    return int(found.level)


@cli.command()
@click.option(
    "--output", type=click.Path(path_type=Path),
    help="Replace this file, mode 0644, instead of printing: FILE.prom in the directory of node exporter's textfile "
    "collector.",
)  # fmt: skip
@common
def metrics(output: Path | None, config_path: Path, as_json: bool, verbose: bool) -> int:
    """Write what `check` finds, and what the last runs did, for Prometheus.

    Also when nothing can be asked: pve_zfsbackup_up is 0 then, and the exit code 2.
    """
    try:
        from pve_zfsbackup.report.metrics import metrics_json, metrics_text  # noqa: PLC0415 - its library is optional
    except ModuleNotFoundError as error:
        raise ConfigError([f"Python cannot find {error.name}"], hint="apt install python3-prometheus-client") from None
    try:
        with session_of(config_path) as session:
            found = measure(session)
    except BackupError as error:
        found = nothing_measured(error, time.time())
    text = json.dumps(metrics_json(found), indent=2) + "\n" if as_json else metrics_text(found)
    if output:
        write_output(output, text, mode=0o644)
    else:
        terminal.say(text.rstrip("\n"))
    tell_errors(found.errors)
    return ExitCode.FAILED if found.errors else ExitCode.OK


@cli.command("alert-test")
@common
def alert_test(config_path: Path, as_json: bool, verbose: bool) -> int:
    """Send a test message by mail, to every webhook and by apprise, as `alerts` and `webhooks` say."""
    with session_of(config_path) as session:
        results = send_test(session.config, session.runner, session.node)
    if as_json:
        terminal.print_json({"format": 1, "services": results})
    elif not results:
        terminal.note("no service is configured: see alerts and webhooks in the configuration")
    else:
        for name, trouble in results.items():
            terminal.say(f"{name}: {trouble or 'sent'}")
    failed = any(results.values())
    return ExitCode.PARTIAL if failed else ExitCode.OK
