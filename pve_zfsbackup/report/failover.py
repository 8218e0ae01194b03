"""`failover` and `failback`: what was taken over and given back, and what a person has to know."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from typing import Any

from pve_zfsbackup.app.failback import Given
from pve_zfsbackup.app.failover import Failover, Taking, how
from pve_zfsbackup.model import Conflict, Point
from pve_zfsbackup.model.proof import Level, Proof
from pve_zfsbackup.report.format import FORMAT, age, moment, size
from pve_zfsbackup.report.points import proof_json


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
        yield from _choice_lines(taking)
        for disk in taking.prepared.plan.disks:
            yield f"  {disk.key}: {disk.dataset}, {how(disk)} of {disk.snapshot.full_name}"
        if taking.done:
            yield f"  {'runs' if taking.started else 'is stopped'} after {taking.seconds:.1f} s"
    yield from (f"  {note}" for note in taking.notes)


def _choice_lines(taking: Taking) -> Iterator[str]:
    """What is known of the point, and of those that could be taken instead."""
    choice = taking.choice
    assert choice is not None
    point, proven = choice.point, choice.proven
    if point.proof and point.proof.level is Level.FAILED:
        yield f"  ITS LAST DRILL FAILED ({_when(point.proof)})"
    elif point.proof and proven is point:
        yield f"  a drill opened it here: {point.proof.level.value} ({_when(point.proof)})"
    else:
        yield "  no drill has opened it here"
    if proven and proven.proof and proven is not point:
        older, level = age(point.creation - proven.creation), proven.proof.level.value
        yield f"  the newest that a drill opened is {older} older: {level} ({_when(proven.proof)}), --at {proven.id}"
    elif proven is None:
        yield "  nor an older one"
    for bad in choice.passed:
        assert bad.proof is not None
        yield f"  passed over: {bad.id}, its drill failed ({_when(bad.proof)})"
    if choice.passed:
        newest = choice.passed[0]
        lost = age(newest.creation - point.creation)
        yield f"  with that the {lost} before {newest.id} are lost as well; --at {newest.id} takes it all the same"


def _when(proof: Proof) -> str:
    return f"{moment(proof.at, UTC)}Z"


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
                "verified": proof_json(taking.point.proof) if taking.point else None,
                "newest-verified": _point(taking.choice.proven) if taking.choice else None,
                "passed-over": [_point(point) for point in taking.choice.passed] if taking.choice else [],
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


def _point(point: Point | None) -> dict[str, Any] | None:
    return {"point": point.id, "creation": point.creation, "verified": proof_json(point.proof)} if point else None


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
        if done.error:
            yield f"guest {plan.vmid} {done.error}; the same command tries again"
        yield "the copy here is stopped and stays: remove it when all is well"
    yield from done.notes or plan.notes


def failback_json(done: Given) -> dict[str, Any]:
    plan = done.plan
    return {
        "format": FORMAT,
        "vmid": plan.vmid,
        "done": done.done,
        "started": done.started,
        "error": done.error,
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
