"""Commands that prepare hosts."""

from __future__ import annotations

from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.setup_node import setup_node
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.report.setup import actions_json, actions_table, next_steps


@cli.group(invoke_without_command=True, subcommand_metavar="[COMMAND] [ARGS]...")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and the commands that would do it.")
@click.option("--remove", is_flag=True, help="Take back the token, and with the last one the user and the role.")
@common
@click.pass_context
def setup(
    context: click.Context, dry_run: bool, remove: bool, config_path: Path, as_json: bool, verbose: bool
) -> int:  # fmt: skip
    """Prepare this node: role, user and API token, an ssh key, a first configuration. Safe to repeat.

    With a command: prepare something else than this node.
    """
    if context.invoked_subcommand:
        given = click.core.ParameterSource.COMMANDLINE
        if any(context.get_parameter_source(name) is given for name in context.params):
            raise click.UsageError(f"put options behind {context.invoked_subcommand}")  # here they would do nothing
        return ExitCode.OK
    actions = setup_node(config_path, dry_run=dry_run, remove=remove)
    if as_json:
        terminal.print_json(actions_json(actions))
    else:
        terminal.print_table(actions_table(actions, commands=dry_run or verbose))
        if not (dry_run or remove):
            for line in next_steps(config_path):
                terminal.note(line)
    return ExitCode.OK
