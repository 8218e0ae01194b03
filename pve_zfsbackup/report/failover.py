"""`failover` and `failback`: what was taken over and given back, and what a person has to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pve_zfsbackup.app.failback import Given
from pve_zfsbackup.app.failover import Failover, Taking, how
from pve_zfsbackup.model import Conflict
from pve_zfsbackup.report.format import FORMAT, age, size


def failover_lines(found: Failover) -> Iterator[str]:
    """One guest after another, for people."""
    if found.refused:
        yield f"would be refused: {found.refused.object} {found.refused.message}"
        yield from (f"  {line}" for line in found.refused.evidence)
        yield f"  {found.refused.resolve}"
    for taking in found.guests:
        yield from _guest(taking, dry_run=found.dry_run)
    taken = [taking for taking in found.guests if taking.done]
    if taken:
        yield f"{found.source}, when it is back, sends nothing for these guests, until `pve-zfsbackup failback`"


def _guest(taking: Taking, *, dry_run: bool) -> Iterator[str]:
    label = f"guest {taking.vmid}"
    for conflict in taking.conflicts:
        yield from conflict_lines(conflict)
    if taking.error:
        yield f"{label}: failed: {taking.error.message}" + (f" ({taking.error.hint})" if taking.error.hint else "")
    elif taking.good and taking.there:
        yield f"{label}: is here already" + (", and runs" if taking.started or taking.there.running else "")
    elif taking.good and taking.point and taking.prepared:
        word = "would be taken over" if dry_run else "taken over"
        yield f"{label}: {word} from point {taking.point.id}, {age(taking.age)} old ({taking.point.consistency})"
        for disk in taking.prepared.plan.disks:
            yield f"  {disk.key}: {disk.dataset}, {how(disk)} of {disk.snapshot.full_name}"
        if taking.done:
            yield f"  {'runs' if taking.started else 'is stopped'} after {taking.seconds:.1f} s"
    yield from (f"  {note}" for note in taking.notes)


def conflict_lines(conflict: Conflict) -> Iterator[str]:
    yield f"{conflict.object}: {conflict.message}"
    yield from (f"  {line}" for line in conflict.evidence)
    if conflict.resolve:
        yield f"  {conflict.resolve}"


def failover_json(found: Failover) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "source": found.source,
        "dry-run": found.dry_run,
        "refused": _conflict(found.refused) if found.refused else None,
        "guests": [
            {
                "vmid": taking.vmid,
                "point": taking.point.id if taking.point else "",
                "age": taking.age,
                "done": taking.done or taking.there is not None,
                "started": taking.started,
                "seconds": round(taking.seconds, 1),
                "disks": [
                    {
                        "key": disk.key,
                        "dataset": disk.dataset,
                        "from": disk.snapshot.full_name,
                        "how": how(disk),
                    }
                    for disk in (taking.prepared.plan.disks if taking.prepared else ())
                ],
                "conflicts": [_conflict(conflict) for conflict in taking.conflicts],
                "error": taking.error.message if taking.error else "",
                "notes": list(taking.notes),
            }
            for taking in found.guests
        ],
    }


def _conflict(conflict: Conflict) -> dict[str, Any]:
    return {
        "kind": conflict.kind,
        "object": conflict.object,
        "message": conflict.message,
        "evidence": list(conflict.evidence),
        "resolve": conflict.resolve,
    }


def failback_lines(done: Given) -> Iterator[str]:
    plan = done.plan
    for conflict in plan.conflicts:
        yield from conflict_lines(conflict)
    if plan.conflicts:
        return
    word = "went home" if done.done else "would go home"
    for disk in plan.disks:
        how = f"from {disk.base.full_name}" if disk.base else "on from what is there" if not disk.raw else "in full"
        yield f"guest {plan.vmid} {disk.key}: {disk.here} {word} as {disk.name}, {how}"
    if done.done:
        yield f"{size(done.moved)} were sent; the disks have {size(done.full)}"
        yield f"guest {plan.vmid} {'runs' if done.started else 'can be started'} on the source, and is replicated again"
        yield "the copy here is stopped and stays: remove it when all is well"
    yield from done.notes or plan.notes


def failback_json(done: Given) -> dict[str, Any]:
    plan = done.plan
    return {
        "format": FORMAT,
        "vmid": plan.vmid,
        "done": done.done,
        "started": done.started,
        "bytes": done.moved,
        "size": done.full,
        "disks": [
            {
                "key": disk.key,
                "here": disk.here,
                "there": disk.name,
                "base": disk.base.full_name if disk.base else "",
                "aside": disk.aside,
            }
            for disk in plan.disks
        ],
        "conflicts": [_conflict(conflict) for conflict in plan.conflicts],
        "notes": list(done.notes or plan.notes),
    }
