"""`unblock-rollback`: what goes, and what it costs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from pve_zfsbackup.app.unblock import NextSend, Unblocked
from pve_zfsbackup.model import GuestKind
from pve_zfsbackup.report.format import FORMAT
from pve_zfsbackup.report.steps import describe


def unblock_lines(shown: Unblocked) -> Iterator[str]:
    """For people: one thing per line."""
    plan, vmid = shown.plan, shown.guest.vmid
    for conflict in plan.conflicts:
        yield f"{conflict.object}: {conflict.message}"
        yield from (f"  {line}" for line in conflict.evidence)
        if conflict.resolve:
            yield f"  {conflict.resolve}"
    if plan.conflicts:
        return
    if not plan.steps:
        yield f"guest {vmid}: nothing of pve-zfsbackup is newer than {plan.snapshot}"
    word = "lost" if shown.done else "would be lost"
    for point in plan.points:
        yield f"{word} on this node: recovery point {point}{', which a drill found good' * (point in plan.proven)}"
    for step in plan.steps:
        yield f"{'' if shown.done else 'would '}{describe(step)}"
    yield from (_send_line(send) for send in plan.sends)
    for send in plan.sends:
        if send.surplus:
            rollback = f"zfs rollback -r {shlex.quote(f'{send.replica}@{_name(send.base)}')}"
            yield f"  on {send.target}, which loses its newer points with it: {rollback}"
    for archive in plan.archives:
        disks = ", ".join(archive.disks)
        yield f"{archive.box}: the next archive of guest {vmid} is a full one: it has no older base of {disks}"
    for target in plan.unknown:
        error = shown.errors.get(target)
        yield f"{target}: not known, it did not answer: {error.message if error else ''}".rstrip(": ")
    yield from (f"still in the way, and not ours: {name}" for name in plan.remaining)
    if shown.done and not plan.remaining:
        tool = "qm" if shown.guest.kind is GuestKind.VM else "pct"
        yield f"now: {tool} rollback {vmid} {plan.snapshot}"


def _send_line(send: NextSend) -> str:
    if not send.base:
        return f"{send.target}: {send.disk} has no older base: the next send is a full one, beside {send.replica}"
    return f"{send.target}: {send.disk} goes on from {send.base}" + (
        f", once the {len(send.surplus)} newer snapshots of {send.replica} are gone" if send.surplus else ""
    )


def _name(base: str) -> str:
    """Of a snapshot or a bookmark of ours: both carry the point's name, the bookmark its target behind it."""
    if "@" in base:
        return base.partition("@")[2]
    return base.partition("#")[2].rpartition(":")[0]


def unblock_json(shown: Unblocked) -> dict[str, Any]:
    plan = shown.plan
    return {
        "format": FORMAT,
        "vmid": shown.guest.vmid,
        "snapshot": plan.snapshot,
        "done": shown.done,
        "lost": list(plan.points),
        "steps": [describe(step) for step in plan.steps],
        "conflicts": [f"{c.kind}: {c.object}: {c.message}" for c in plan.conflicts],
        "next-sends": [
            {
                "target": send.target,
                "disk": send.disk,
                "replica": send.replica,
                "full": not send.base,
                "base": send.base,
                "surplus": list(send.surplus),
            }
            for send in plan.sends
        ],
        "next-archives": [{"box": archive.box, "full": list(archive.disks)} for archive in plan.archives],
        "unreachable": {host: error.message for host, error in shown.errors.items()},
        "remaining": list(plan.remaining),
    }
