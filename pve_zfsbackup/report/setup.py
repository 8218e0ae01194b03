"""What `setup` did, and what is left to a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.report.format import FORMAT, Table, clean


def actions_table(actions: Sequence[Action], *, commands: bool) -> Table:
    rows: list[tuple[str, str, str]] = []
    for action in actions:
        rows.append((action.object, action.state, action.detail))
        if commands:
            rows += [("", "", f"# {line}") for line in action.command.splitlines()]
    return Table(columns=("what", "state", "detail"), rows=clean(rows))


def actions_json(actions: Sequence[Action]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "actions": [
            {"object": a.object, "state": a.state, "detail": a.detail, "command": a.command} for a in actions
        ],
    }


def next_steps(config: Path) -> tuple[str, ...]:
    return (
        f"next: name your targets and jobs in {config}, then look at `pve-zfsbackup discover`",
        "on each target: add /etc/pve-zfsbackup/id_ed25519.pub to the account's authorized_keys (README, \"A target\")",
        "pin its host key: `ssh-keyscan HOST >> /etc/pve-zfsbackup/known_hosts`, and compare it by hand",
    )
