"""`verify`: prove that what is kept is whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app import chains, pools
from pve_zfsbackup.app.drill import STAGE, Ground, Rules, as_result, as_told, drill, drilling_alone, on_target
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.grounds import grounds
from pve_zfsbackup.app.planting import STAGE as PLANT
from pve_zfsbackup.app.planting import forget, plant, planting_alone
from pve_zfsbackup.app.proving import Proved, failures, prove
from pve_zfsbackup.app.run import exit_code
from pve_zfsbackup.app.session import Home
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common, scoped, session_of, tell_notes
from pve_zfsbackup.config import Config, load_config
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.guests import node_name
from pve_zfsbackup.host.runner import ProcessRunner
from pve_zfsbackup.model import Dataset, Selector
from pve_zfsbackup.model.drill import Drilled, Expected
from pve_zfsbackup.model.proof import Reading
from pve_zfsbackup.plan.chain import Chain
from pve_zfsbackup.report.verify import (
    chains_json,
    chains_table,
    drill_json,
    drilled_table,
    looks_table,
    planted_json,
    pools_json,
    pools_table,
)

DAY = 86_400.0
# Of drills on a host without a configuration. Not where runs have theirs: cron takes that for a node that had one.
LOCAL_JOURNAL = Path("/var/log/pve-zfsbackup/local")


class Span(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.2
    """A span of time: 90s, 30m, 2h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d{1,7})([smhd]?)", str(value))
        if not match:
            self.fail(f"{value!r}: expected a span of time, such as 90s, 30m or 2h", param, ctx)
        return int(match[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}[match[2]]


@cli.group()
def verify() -> None:
    """Prove that what is kept is whole."""


@verify.command("pools")
@click.option("--follow", is_flag=True, help="Wait for the scrubs that run on this node.")
@common
def verify_pools(follow: bool, config_path: Path, as_json: bool, verbose: bool) -> int:
    """Ask ZFS for the state, the errors and the last scrub of every pool here and of each target's.

    A scrub that is due (`verify: scrub-every`) is started on this node; on a target it is only told.
    """
    with session_of(config_path) as session:
        asked = pools.verify_pools(session, follow=follow, note=terminal.note)
        proved = prove(session, pools.STAGE, asked, pools.as_result)
        found, results = [*proved.ends, *failures(proved.results)], proved.results
        tell_notes(proved.notes)
    states = [end for end in found if isinstance(end, pools.PoolFound)]
    if as_json:
        terminal.print_json(pools_json(states, results))
    elif states and _speaking(results, verbose=verbose):
        terminal.print_table(pools_table(states, session.now().timestamp()))
    if not as_json:
        _tell([end for end in found if isinstance(end, Result)], verbose=verbose)
    return exit_code(results)


@verify.command("points")
@scoped
@common
def verify_points(
    guests: Sequence[Selector], jobs: Sequence[str], config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Compare every point on the targets with the source: guids, holds, properties, and the base of the next send.

    No data is read: that is what `verify drill` is for.
    """
    with session_of(config_path) as session:
        compared = chains.verify_points(session, Scope(jobs=tuple(jobs), guests=tuple(guests)))
        proved = prove(session, chains.STAGE, compared, chains.as_result)
        found, results = [*proved.ends, *failures(proved.results)], proved.results
        tell_notes(proved.notes)
    verdicts = [end for end in found if isinstance(end, Chain)]
    if as_json:
        terminal.print_json(chains_json(verdicts, results))
    elif verdicts and _speaking(results, verbose=verbose):
        terminal.print_table(chains_table(verdicts))
    if not as_json:
        _tell([end for end in found if isinstance(end, Result)], verbose=verbose)
    return exit_code(results)


@verify.command("drill")
@scoped
@click.option("--budget", type=Span(), help="Begin no further drill after this time, such as 30m.")
@click.option("--read", type=click.Choice([reading.value for reading in Reading]), help="How much is read.")
@click.option("--local", "root", default="", metavar="ROOT", help="Run on a target: the replicas below this dataset.")
@click.option("--boot", is_flag=True, help="Also start each VM from the clones, without network, and ask its agent.")
@click.option("--boot-wait", type=Span(), default="10m", show_default=True, help="How long it has to answer.")
@click.option("--expect", "files", multiple=True, metavar="PATH", help="With --local: a file each guest must have.")
@common
def verify_drill(
    guests: Sequence[Selector], jobs: Sequence[str], budget: float | None, read: str | None, root: str,
    boot: bool, boot_wait: float, files: Sequence[str], config_path: Path, as_json: bool, verbose: bool,
) -> int:  # fmt: skip
    """Open the newest point of each guest that is due, check and mount its file systems, and look for its files.

    The point's snapshots are cloned; nothing of the guest is touched, and nothing stays. Named guests are drilled
    whether due or not. On a target, run it there as root with --local, or name its roots as `verify: local` in a
    configuration there, which makes cron do it every week: that is the honest drill.
    """
    if root:
        if jobs:
            raise ConfigError(["--job is for the node: a target knows no jobs"])
        config = load_config(config_path) if config_path.exists() else Config(journal_dir=LOCAL_JOURNAL)
        home = Home(config=config, runner=ProcessRunner(), node=node_name(config.api.node or ""))
        with drilling_alone(config):
            ground = on_target(config, home.runner, Dataset(root), guests, Expected(files=tuple(files)))
            rules = _rules(config, budget, read, named=bool(guests), boot=boot)
            proved = _drilled(home, [ground], rules, boot_wait)
        return _show(proved, as_json=as_json, verbose=verbose)
    if files:
        raise ConfigError(["--expect goes with --local; on the node, jobs have `verify-files`"])
    with session_of(config_path) as session, drilling_alone(session.config):
        rules = _rules(session.config, budget, read, named=bool(guests), boot=boot)
        places = grounds(session, Scope(jobs=tuple(jobs), guests=tuple(guests)))
        proved = _drilled(session, places, rules, boot_wait)
    return _show(proved, as_json=as_json, verbose=verbose)


@verify.command("plant")
@scoped
@click.option("--forget", "forgetting", is_flag=True, help="Expect no canary in these guests any more.")
@common
def verify_plant(
    guests: Sequence[Selector], jobs: Sequence[str], forgetting: bool, config_path: Path, as_json: bool, verbose: bool
) -> int:
    """Put a small file into running guests, which drills of their later points must find as it was written.

    It is /var/lib/pve-zfsbackup-canary, written by the guest agent, or by pct into a container. A file there that is
    not ours stays. Each call writes it anew.
    """
    with session_of(config_path) as session, planting_alone(session.config):
        work = forget if forgetting else plant
        planting = work(session, Scope(jobs=tuple(jobs), guests=tuple(guests)))
        proved = prove(session, PLANT, planting, lambda result: result)
        results = proved.results
        tell_notes(proved.notes)
    if as_json:
        terminal.print_json(planted_json(results))
    else:
        loud = verbose or terminal.is_watched()
        _tell([result for result in results if loud or result.outcome is not Outcome.OK], verbose=verbose)
    return exit_code(results)


def _drilled(home: Home, places: Iterable[Ground | Result], rules: Rules, wait: float) -> Proved[Drilled | Result]:
    """One place after another; of one that cannot be looked at there is a result."""

    def drills() -> Iterator[Drilled | Result]:
        for place in places:
            if isinstance(place, Result):
                yield place
                continue
            boots = replace(place.boots, yard=replace(place.boots.yard, wait=wait))
            yield from drill(replace(place, boots=boots), rules, home.config, home.now().timestamp())

    return prove(home, STAGE, drills(), as_result, as_told)


def _rules(config: Config, budget: float | None, read: str | None, *, named: bool, boot: bool) -> Rules:
    own = config.verify
    return Rules(
        every=own.every * DAY,
        budget=own.budget if budget is None else budget,
        reading=Reading(read) if read else own.read,
        named=named,
        boot=boot,
    )


def _show(proved: Proved[Drilled | Result], *, as_json: bool, verbose: bool) -> int:
    drills = [end for end in proved.ends if isinstance(end, Drilled)]
    others = [*(end for end in proved.ends if isinstance(end, Result)), *failures(proved.results)]
    tell_notes(proved.notes)
    results = proved.results
    if as_json:
        terminal.print_json(drill_json(drills, others))
        return exit_code(results)
    if drills and _speaking(results, verbose=verbose):
        terminal.print_table(drilled_table(drills))
        if verbose or any(end.judgement.problems for end in drills):
            terminal.print_table(looks_table(drills))
    _tell(others, verbose=verbose)
    return exit_code(results)


def _speaking(results: Sequence[Result], *, verbose: bool) -> bool:
    """Nothing on standard output while all is well and nobody looks: cron's mail means trouble."""
    return verbose or terminal.is_watched() or any(result.outcome is Outcome.FAILED for result in results)


def _tell(results: Sequence[Result], *, verbose: bool) -> None:
    for result in results:
        if result.outcome is not Outcome.SKIPPED or verbose or terminal.is_watched():
            terminal.note(terminal.result_line(result))
