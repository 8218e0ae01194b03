"""Dry runs: plans in words."""

from __future__ import annotations

from typing import Any, assert_never

from pve_zfsbackup.app.preview import DryRun
from pve_zfsbackup.model import (
    AbortReceive,
    Adopt,
    CreateBookmark,
    CreateParent,
    Destroy,
    DestroyBookmark,
    Hold,
    Mark,
    Plan,
    Release,
    Resume,
    Send,
    SnapshotGuest,
    Step,
)
from pve_zfsbackup.report.format import FORMAT, Table, clean

_BOOKKEEPING = (Mark, Hold, Release, CreateBookmark, DestroyBookmark)  # in the JSON; a person looks for the rest


def preview_table(shown: DryRun) -> Table:
    rows = [
        (item.stage.value, str(item.guest.vmid), item.guest.name, item.host, what, why)
        for item in shown.previews
        for what, why in _plan_lines(item.plan, item.would)
    ]
    rows += [("", "", "", host, "no answer", error.message) for host, error in shown.errors.items()]
    columns = ("stage", "vmid", "guest", "where", "would", "why")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid"}))


def preview_json(shown: DryRun) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "plans": [
            {
                "stage": item.stage.value,
                "vmid": item.guest.vmid,
                "host": item.host,
                "steps": [describe(step) for step in item.plan.steps],
                "conflicts": [f"{c.kind}: {c.object}: {c.message}" for c in item.plan.conflicts],
                "warnings": list(item.plan.warnings),
                "reasons": list(item.plan.reasons),
            }
            for item in shown.previews
        ],
        "partials": [f"{result.host}: {result.message}" for result in shown.partials],
        "unreachable": {host: error.message for host, error in shown.errors.items()},
    }


def _plan_lines(plan: Plan, would: str) -> list[tuple[str, str]]:
    lines = [(f"nothing: {c.kind}", f"{c.object}: {c.message}") for c in plan.conflicts]
    lines += [(describe(step), "") for step in plan.steps if not isinstance(step, _BOOKKEEPING)]
    if not lines:
        lines = [(would or "nothing", "")]
    why = "; ".join((*plan.warnings, *plan.reasons))
    return [(lines[0][0], lines[0][1] or why), *lines[1:]]


def describe(step: Step) -> str:
    """A step in words."""
    match step:
        case SnapshotGuest():
            how = "freeze and snapshot" if step.freeze else "snapshot"
            return f"{how} {', '.join(name for names in step.pools for name in names)}"
        case CreateParent():
            return f"create {step.dataset}"
        case Adopt():
            return f"mark {step.dataset} as belonging to {step.owner}"
        case Send():
            base = f"from {step.base.full_name} " if step.base else "in full "
            return f"send {step.snapshot.full_name} {base}to {step.dataset}"
        case Resume():
            return f"resume sending {step.snapshot.full_name} to {step.dataset}"
        case AbortReceive():
            return f"abort the interrupted receive of {step.dataset}: {step.reason}"
        case Mark():
            return f"mark {step.dataset}@{step.source.name}"
        case Hold() | Release() | Destroy():
            return f"{type(step).__name__.lower()} {step.snapshot.full_name}"
        case CreateBookmark():
            return f"bookmark {step.snapshot.full_name}"
        case DestroyBookmark():
            return f"destroy bookmark {step.bookmark.full_name}"
        case unknown:
            assert_never(unknown)
