"""`restore` and `rollback`: the plan before, and what was done after."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from pve_zfsbackup.app.restore import Restored
from pve_zfsbackup.app.rollback import RolledBack
from pve_zfsbackup.model import Conflict
from pve_zfsbackup.model.proof import Level
from pve_zfsbackup.model.restore import DiskRestore
from pve_zfsbackup.report.format import FORMAT, moment, size
from pve_zfsbackup.report.points import proof_json


def restore_lines(shown: Restored) -> tuple[str, ...]:
    """For people: one thing per line."""
    return tuple(_conflict_lines(shown.plan.conflicts) if shown.plan.conflicts else _lines(shown))


def _conflict_lines(conflicts: Iterable[Conflict]) -> Iterator[str]:
    for conflict in conflicts:
        yield f"{conflict.object}: {conflict.message}"
        yield from (f"  {line}" for line in conflict.evidence)
        if conflict.resolve:
            yield f"  {conflict.resolve}"


def _lines(shown: Restored) -> Iterator[str]:
    plan, point = shown.plan, shown.plan.origin.point
    would = "" if shown.done else "would "
    when = datetime.fromtimestamp(point.creation, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    yield f"point {point.id} of {when}, {point.consistency}, from {plan.origin.host}"
    if point.proof and point.proof.level is Level.FAILED:
        told = moment(point.proof.at, UTC)
        yield f"ITS LAST DRILL FAILED ({told}Z): `pve-zfsbackup list {point.vmid}` shows others, --at takes one"
    if plan.command:
        yield f"node {plan.node} restores it, whose pools no other node reaches. Nothing was done here; there, as root:"
        yield f"  {shlex.join(plan.command)}"
    yield from (f"{would}{_disk_line(disk)}" for disk in plan.disks)
    if plan.config:
        what = f"replace guest {plan.wish.new}" if plan.wish.replace else f"make guest {plan.wish.new}"
        copy = ", a copy: new addresses and identity" if plan.copy else ""
        yield f"{would}{what} ({plan.origin.kind.value}{copy})"
    yield from (f"{would}keep {old.dataset} aside as {old.to}" for old in plan.aside)
    yield from (f"kept: {path}, the configuration it had" for path in shown.saved)
    if shown.error:
        yield f"guest {plan.wish.new} is restored, and {shown.error}"
    if shown.done:
        yield from (f"to give up what was put aside: zfs destroy -r {old.to}" for old in plan.aside)
    yield from (f"note: {note}" for note in (shown.notes if shown.done else plan.notes))


def _disk_line(disk: DiskRestore) -> str:
    how = "as it is encrypted, " if disk.raw else ""
    state = "there already" if disk.placed else f"{how}{size(disk.size)}"
    state = "; ".join((state, *(f"{name}={value}" for name, value in disk.tuned.items())))
    return f"restore {disk.key} to {disk.dataset} ({state})"


def rollback_lines(shown: RolledBack) -> tuple[str, ...]:
    """For people: one thing per line."""
    return tuple(_conflict_lines(shown.plan.conflicts) if shown.plan.conflicts else _rollback_lines(shown))


def _rollback_lines(shown: RolledBack) -> Iterator[str]:
    plan, would = shown.plan, "" if shown.done else "would "
    when = datetime.fromtimestamp(plan.point.creation, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    yield f"guest {plan.guest.vmid} to point {plan.point.id} of {when}, {plan.point.consistency}"
    if plan.begun:
        yield "an earlier try was cut off: it is finished"
    for disk in plan.disks:
        aside = f", what is there goes aside as {disk.aside}" if disk.aside else ""
        yield f"{would}roll back {disk.key} {disk.dataset}{aside}"
    yield from (f"newer point, {would}go aside: {point}" for point in plan.newer)
    yield from (f"newer snapshot of others, {would}go aside: {name}" for name in plan.others)
    yield from (f"not in the point, left as it is: {key}" for key in plan.untouched)
    if not shown.done:
        return
    if shown.safety:
        yield f"how it was before: point {shown.safety}"
    asides = [disk.aside for disk in plan.disks if disk.aside]
    if asides:
        yield f"it can be restored: pve-zfsbackup restore {plan.guest.vmid} --at … --from source"
    yield from (f"to give up what was put aside: zfs destroy -r {name}" for name in asides)
    yield from (f"note: {note}" for note in shown.notes)


def rollback_json(shown: RolledBack) -> dict[str, Any]:
    plan = shown.plan
    return {
        "format": FORMAT,
        "done": shown.done,
        "vmid": plan.guest.vmid,
        "point": plan.point.id,
        "safety": shown.safety or "",
        "disks": [
            {"key": disk.key, "dataset": disk.dataset, "guid": disk.snapshot.guid, "aside": disk.aside or ""}
            for disk in plan.disks
        ],
        "newer": list(plan.newer),
        "others": list(plan.others),
        "untouched": list(plan.untouched),
        "conflicts": [_told(conflict) for conflict in plan.conflicts],
        "notes": list(shown.notes),
    }


def restore_json(shown: Restored) -> dict[str, Any]:
    plan = shown.plan
    return {
        "format": FORMAT,
        "done": shown.done,
        "point": plan.origin.point.id,
        "verified": proof_json(plan.origin.point.proof),
        "from": plan.origin.host,
        "vmid": plan.wish.new,
        "kind": plan.origin.kind.value,
        "copy": plan.copy,
        "node": plan.node,
        "command": list(plan.command),
        "disks": [
            {
                "key": disk.key,
                "snapshot": disk.snapshot.full_name,
                "guid": disk.snapshot.guid,
                "dataset": disk.dataset,
                "volid": disk.volid,
                "raw": disk.raw,
                "bytes": disk.size,
                "tuned": disk.tuned,
            }
            for disk in plan.disks
        ],
        "aside": [{"dataset": old.dataset, "guid": old.guid, "now": old.to} for old in plan.aside],
        "saved": list(shown.saved),
        "moved": shown.moved,
        "error": shown.error,
        "conflicts": [_told(conflict) for conflict in plan.conflicts],
        "notes": list(shown.notes if shown.done else plan.notes),
    }


def _told(conflict: Conflict) -> dict[str, Any]:
    return {
        "kind": conflict.kind,
        "object": conflict.object,
        "message": conflict.message,
        "evidence": list(conflict.evidence),
        "resolve": conflict.resolve,
    }
