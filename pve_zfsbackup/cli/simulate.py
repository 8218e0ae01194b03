"""`simulate`: a policy tried out before it is lived with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.session import timezone
from pve_zfsbackup.app.simulate import simulate_config
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common
from pve_zfsbackup.config import load_config
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.report.simulate import simulated_json, simulated_points, simulated_table


def _now() -> datetime:
    return datetime.now(UTC)


@cli.command()
@click.option("--job", "jobs", multiple=True, help="Only this job. Repeatable.")
@click.option(
    "--every", type=click.FloatRange(0.25, 168), default=1.0, show_default=True,
    help="Hours from one point to the next; the package's schedule is hourly.",
)  # fmt: skip
@click.option("--days", type=click.IntRange(1, 3660), default=365, show_default=True, help="How far to look ahead.")
@click.option("--points", is_flag=True, help="Every point that would be there then, and the rule that keeps it.")
@common
def simulate(
    jobs: Sequence[str], every: float, days: int, points: bool, config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Show what the policies of the configuration would keep in a year: here, on each target, in each box.

    Points come every hour and are pruned once a day, right before each count. Each row is one job alone: a guest in
    several jobs keeps what the rows of any of them show. In boxes, increments count as small, and each chain as read
    back when it is there.
    """
    config = load_config(config_path)
    zone = timezone(config)
    start = _now().astimezone(zone).replace(hour=3, minute=7, second=0, microsecond=0)
    seconds = round(every * 3600)
    rows = simulate_config(config, start=start, every=seconds, days=days, jobs=jobs)
    if as_json:
        terminal.print_json(simulated_json(rows, seconds))
    else:
        terminal.print_table(simulated_points(rows, zone) if points else simulated_table(rows, zone))
    return ExitCode.OK
