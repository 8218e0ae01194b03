"""`setup target`: a host that receives replicas."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.setup_target import Preparation, check, setup_target, target_script
from pve_zfsbackup.app.target_choice import Asked
from pve_zfsbackup.cli.options import common
from pve_zfsbackup.cli.prepare import setup
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.report.setup import actions_json, findings_table, script_json


@setup.command("target")
@click.argument("name")
@click.option("--host", default="", metavar="[USER@]HOST[:PORT]", help="Where it is, when it is not configured yet.")
@click.option("--root", default="", metavar="DATASET", help="Below which the replicas are kept; made when missing.")
@click.option(
    "--plain", is_flag=True, help="An account that may also destroy. Without: append-only, by pve-zfsbackup-receiver."
)
@click.option("--from", "clients", default="", metavar="ADDRESSES", help="Take this node's key from there only.")
@click.option("--admin", default="", metavar="[USER@]HOST[:PORT]", help="Prepare the target as root (or sudo) there.")
@click.option("--print", "as_script", is_flag=True, help="Print the script that does it, to run it there by hand.")
@click.option("--check", "only_check", is_flag=True, help="Change nothing: say what is wrong, and how to mend it.")
@click.option(
    "--accept-hostkey", "accepted", default="", metavar="SHA256:KEY", help="The fingerprint of its ssh host key."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@common
def target(
    name: str, host: str, root: str, plain: bool, clients: str, admin: str, as_script: bool, only_check: bool,
    accepted: str, dry_run: bool, config_path: Path, as_json: bool, verbose: bool,
) -> int:  # fmt: skip
    """Prepare a host that receives replicas: account, dataset, permissions, keys. Safe to repeat.

    As root of the target by --admin, with your own ssh; or run there what --print prints, then this without either.
    """
    if sum((bool(admin), as_script, only_check)) > 1:
        raise click.UsageError("--admin, --print and --check exclude each other")
    preparation = Preparation(
        asked=Asked(name=name, host=host, root=root, plain=plain, clients=clients, admin=admin),
        config_file=config_path,
        accepted=accepted,
        dry_run=dry_run,
        confirm=_ask,
    )
    if as_script:
        text = target_script(preparation)
        if as_json:
            terminal.print_json(script_json(text))
        else:
            terminal.say(text.rstrip("\n"))
        return ExitCode.OK
    actions = check(preparation) if only_check else setup_target(preparation)
    if as_json:
        terminal.print_json(actions_json(actions))
    else:
        terminal.print_table(findings_table(actions, commands=dry_run or verbose))
    return ExitCode.PARTIAL if any(action.state == "failed" for action in actions) else ExitCode.OK


def _ask(question: str) -> bool:
    """A person's yes; where nobody sits, no."""
    return sys.stdin.isatty() and click.confirm(question, default=False, err=True)
