"""What Proxmox's hooks call, thawing by hand, and making way for a rollback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from pve_zfsbackup import terminal
from pve_zfsbackup.app.proxmox_hooks import GUEST_PHASES, VZDUMP_PHASES, Answer, guest_hook, vzdump_hook
from pve_zfsbackup.app.thaw import thaw as thaw_guests
from pve_zfsbackup.app.unblock import unblock
from pve_zfsbackup.cli.commands import cli
from pve_zfsbackup.cli.options import common, config_option, session_of
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.model import Vmid, printable
from pve_zfsbackup.report.unblock import unblock_json, unblock_lines

VMID = click.IntRange(100, 999_999_999)
_config = config_option("Configuration file.")


@cli.command()
@click.argument("vmids", nargs=-1, type=VMID, metavar="[VMID]...")
@common
def thaw(vmids: Sequence[int], config_path: Path, as_json: bool, verbose: bool) -> int:
    """Thaw guests that an interrupted run left frozen, or those named here, whoever froze them."""
    with session_of(config_path) as session:
        results = thaw_guests(session, [Vmid(vmid) for vmid in vmids])
    if as_json:
        told = [{"vmid": r.vmid, "outcome": r.outcome.value, "message": r.message, "hint": r.hint} for r in results]
        terminal.print_json({"format": 1, "results": told})
    else:
        for result in results:
            terminal.say(terminal.result_line(result))
        if not results:
            terminal.say("no guest was left frozen")
    return ExitCode.FAILED if any(result.outcome is Outcome.FAILED for result in results) else ExitCode.OK


@cli.command("unblock-rollback")
@click.argument("vmid", type=VMID)
@click.argument("snapname", default="")
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and what that costs.")
@common
def unblock_rollback(
    vmid: int, snapname: str, dry_run: bool, config_path: Path, as_json: bool, verbose: bool
) -> int:  # fmt: skip
    """Remove what keeps Proxmox from rolling a guest back to its snapshot SNAPNAME (without: its newest).

    Points made after that snapshot are lost on this node. What is older stays, and targets go on from there where
    they can; the answer says where a full send is due.
    """
    with session_of(config_path) as session:
        shown = unblock(session, Vmid(vmid), snapname, dry_run=dry_run)
    if as_json:
        terminal.print_json(unblock_json(shown))
    else:
        for line in unblock_lines(shown):
            terminal.say(printable(line))
    return ExitCode.FAILED if shown.plan.conflicts else ExitCode.OK


@cli.group()
def hook() -> None:
    """For the scripts in /usr/share/pve-zfsbackup that Proxmox calls (docs/hooks.md)."""


@hook.command("vzdump")
@click.argument("phase", type=click.Choice(VZDUMP_PHASES), metavar="PHASE")
@click.argument("mode", default="")
@click.argument("vmid", type=VMID, required=False)
@_config
def vzdump_(phase: str, mode: str, vmid: int | None, config_path: Path) -> int:
    """A phase of a vzdump job: at backup-end the guest gets a point, which is replicated."""
    return _answered(vzdump_hook(lambda: session_of(config_path), phase, Vmid(vmid) if vmid else None))


@hook.command("guest")
@click.argument("vmid", type=VMID)
@click.argument("phase", type=click.Choice(GUEST_PHASES), metavar="PHASE")
@_config
def guest_(vmid: int, phase: str, config_path: Path) -> int:
    """A phase in a guest's life: before its start and after its stop it gets a point."""
    return _answered(guest_hook(lambda: session_of(config_path), Vmid(vmid), phase))


def _answered(answer: Answer) -> int:
    for line in answer.lines:
        terminal.say(f"pve-zfsbackup: {printable(line)}")
    return answer.code
