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


def findings_table(actions: Sequence[Action], *, commands: bool) -> Table:
    """As `actions_table`; what is not right has with it how to mend it, asked for or not."""
    rows: list[tuple[str, str, str]] = []
    for action in actions:
        rows.append((action.object, action.state, action.detail))
        if commands or action.state in ("failed", "warning"):
            rows += [("", "", f"# {line}") for line in action.command.splitlines()]
    return Table(columns=("what", "state", "detail"), rows=clean(rows))


def script_json(text: str) -> dict[str, Any]:
    return {"format": FORMAT, "script": text}


def actions_json(actions: Sequence[Action]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "actions": [{"object": a.object, "state": a.state, "detail": a.detail, "command": a.command} for a in actions],
    }


def next_steps(config: Path) -> tuple[str, ...]:
    return (
        f"next: look at `pve-zfsbackup discover`, and name your jobs in {config}",
        "prepare each target: `pve-zfsbackup setup target NAME --host HOST --root POOL/DATASET --admin root@HOST`",
    )
