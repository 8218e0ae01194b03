"""The commands, and which modules define each: only those of the command that is called are imported.

All of them together take a second of a slow node's time, which cron and every hook would pay each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

import click

from pve_zfsbackup import __version__

MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "alert-test": ("watch",),
    "archive": ("archive",),
    "check": ("watch",),
    "discover": ("look",),
    "failback": ("roles",),
    "failover": ("roles",),
    "hook": ("hooks",),
    "import": ("foreign",),
    "key": ("keys",),
    "list": ("look",),
    "metrics": ("watch",),
    "prune": ("work",),
    "replicate": ("work",),
    "report": ("overview",),
    "restore": ("restore",),
    "rollback": ("restore",),
    "run": ("work",),
    "setup": ("prepare", "archive", "prepare_target"),
    "simulate": ("simulate",),
    "snapshot": ("work",),
    "status": ("look",),
    "thaw": ("hooks",),
    "unblock-rollback": ("hooks",),
    "verify": ("verify", "archive"),
    "why": ("why",),
}


class Commands(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for module in MODULES.get(cmd_name, ()):
            import_module(f"{__package__}.{module}")
        command = super().get_command(ctx, cmd_name)
        if command and ctx.resilient_parsing:  # TAB was pressed
            import_module(f"{__package__}.completion").complete(command, (cmd_name,))
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pve-zfsbackup")
def cli() -> None:
    """Guest-consistent ZFS snapshots, replication and retention for Proxmox VE.

    GUESTS are vmids (100), ranges (100-199), or name:web*, tag:prod, pool:production, storage:fast.
    Exit codes: 0 all well, 1 some guests or targets failed, 2 failed, 3 configuration or usage, 4 locked.
    """
