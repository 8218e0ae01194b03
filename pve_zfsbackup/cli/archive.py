"""Boxes: archive and check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.archive_verify import STAGE, Level, Look, Verification, as_results, look_at
from pve_zfsbackup.app.box import Vault, open_box
from pve_zfsbackup.app.proving import failures, prove
from pve_zfsbackup.app.run import Stage, exit_code
from pve_zfsbackup.app.session import Home
from pve_zfsbackup.app.setup_box import BoxSetup, try_out
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common, scoped, tell_notes
from pve_zfsbackup.cli.prepare import setup
from pve_zfsbackup.cli.verify import verify
from pve_zfsbackup.cli.work import do_stages
from pve_zfsbackup.config import Config, load_config
from pve_zfsbackup.errors import ConfigError, ExitCode
from pve_zfsbackup.events import Result
from pve_zfsbackup.host.guests import node_name
from pve_zfsbackup.host.lock import ARCHIVES, reading
from pve_zfsbackup.host.programs import ProcessPrograms
from pve_zfsbackup.host.runner import ProcessRunner
from pve_zfsbackup.model import Dataset
from pve_zfsbackup.report.archive import verification_json, verified_table
from pve_zfsbackup.report.setup import actions_json, actions_table

IDENTITY = click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True)


@cli.command()
@scoped
@click.option("--dry-run", is_flag=True, help="Show what would be archived, in full or as an increment, and why.")
@common
def archive(**options: Any) -> int:
    """Put the newest points that are due into the storage boxes, encrypted, and remove there what had its time."""
    return do_stages((Stage.ARCHIVE,), **options)


@verify.command("archive")
@click.argument("box")
@click.option(
    "--level", type=click.Choice([level.value for level in Level]), default=Level.LISTED.value, show_default=True,
    help="listed: signatures, chain, sizes; sampled: and a part of the segments hashed; hashed: all of them; "
    "opened: all decrypted and hashed, which needs --identity; received: all received into a scratch dataset, which "
    "needs --scratch as well.",
)  # fmt: skip
@click.option("--identity", type=IDENTITY, help="File with the age identity from the safe.")
@click.option("--parts", type=click.IntRange(1, 1000), default=20, show_default=True, help="Samples that make a cycle.")
@click.option("--guest", "guests", type=click.IntRange(100, 999_999_999), multiple=True, help="Only this guest.")
@click.option("--scratch", metavar="DATASET", help="Below which the scratch is made, and destroyed again.")
@common
def verify_archive(
    box: str, level: str, identity: Path | None, parts: int, guests: Sequence[int], scratch: str | None,
    config_path: Path, as_json: bool, verbose: bool,
) -> int:  # fmt: skip
    """Check everything in a storage box, and name what is wrong."""
    config = load_config(config_path)
    vault = _vault(config, config_path, box)
    look = Look(
        level=Level(level),
        identity=identity,
        parts=parts,
        guests=frozenset(guests),
        parent=Dataset(scratch) if scratch else None,
    )
    look.require()
    home = Home(config=config, runner=vault.seal.runner, node=node_name(config.api.node or ""))
    looked: list[Verification] = []

    def results() -> Iterator[Result]:
        with reading(config.runtime_dir, ARCHIVES):
            looked.append(look_at(vault, look, note=noting(verbose)))
        yield from as_results(box, looked[0])

    def told(result: Result) -> dict[str, object]:
        return {"level": level} if result.vmid else {}

    proved = prove(home, STAGE, results(), lambda result: result, told, host=box)
    tell_notes((*proved.notes, *(result.message for result in failures(proved.results))))
    code = show_verification(looked[0], as_json=as_json)
    return code or exit_code(proved.results)


@setup.command("box")
@click.argument("name")
@click.option(
    "--accept-hostkey", "accepted", default="", metavar="SHA256:KEY", help="The fingerprint of its ssh host key."
)
@common
def setup_box(name: str, accepted: str, config_path: Path, as_json: bool, verbose: bool) -> int:
    """Make the keys that archives in a storage box need, pin its host key, and try it out. Safe to repeat.

    A new age identity is shown once and kept nowhere: print it and put it in a safe. Without it no archive can ever
    be opened.
    """
    vault = vault_of(config_path, name)
    work = BoxSetup(box=vault.box, seal=vault.seal, accepted=accepted)
    try:
        work.keys()
        work.host_key()
        work.actions.append(try_out(vault))
    finally:  # the identity is nowhere else
        if as_json:
            terminal.print_json({**actions_json(work.actions), "identity": work.secret})
        else:
            terminal.print_table(actions_table(work.actions, commands=False))
            if work.secret:
                terminal.say("\nThe age identity. It is shown only now, and kept nowhere: print it, put it in a safe.")
                terminal.say(f"\n  {work.secret}\n")
    return ExitCode.OK


def show_verification(found: Verification, *, as_json: bool) -> int:
    if as_json:
        terminal.print_json(verification_json(found))
    else:
        terminal.print_table(verified_table(found.points))
        if found.part:
            terminal.say(f"part {found.part}")
        for problem in found.problems:
            terminal.note(problem)
        if not found.points:
            terminal.note("the box has no points")
    return ExitCode.OK if found.good else ExitCode.FAILED


def vault_of(config_path: Path, name: str) -> Vault:
    return _vault(load_config(config_path), config_path, name)


def _vault(config: Config, config_path: Path, name: str) -> Vault:
    if not config.boxes:
        raise ConfigError([f"{config_path} names no box"], hint="add one to `boxes`")
    return open_box(config, name, ProcessRunner(), ProcessPrograms())


def noting(verbose: bool) -> Any:
    return terminal.note if verbose else lambda _: None
