"""`why`: candidates, streams and obstacles in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo
from typing import Any

from pve_zfsbackup.app.why import Answer, Stream, Why
from pve_zfsbackup.model import Resume
from pve_zfsbackup.model.reasons import Candidate, Fate
from pve_zfsbackup.report.format import FORMAT, Table, clean, moment, size
from pve_zfsbackup.report.steps import describe

_SHOWN = 8  # candidates; all are in the JSON


def why_table(told: Why, tz: tzinfo) -> Table:
    rows: list[tuple[str, ...]] = []
    for answer in told.answers:
        head = (str(answer.guest.vmid), answer.host, answer.reasoning.disk.key)
        for what, which, why in _lines(answer, tz):
            rows.append((*head, what, which, why))
            head = ("", "", "")
    for full in told.crowded:
        rows.append((str(full.guest.vmid), full.host, "", "conflict", full.conflict.object, full.conflict.message))
        rows += [("", "", "", "", "", evidence) for evidence in full.conflict.evidence]
        rows.append(("", "", "", "resolve", "", full.conflict.resolve))
    rows += [("", host, "", "no answer", "", error.message) for host, error in told.errors.items()]
    columns = ("vmid", "target", "disk", "what", "which", "why")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid"}))


def _lines(answer: Answer, tz: tzinfo) -> Iterator[tuple[str, str, str]]:
    own = answer.reasoning
    goes = own.replica or next((stream.step.dataset for stream in answer.streams), "")
    yield "disk", own.disk.dataset or own.disk.volid, f"to {goes}" if goes else ""
    for conflict in own.conflicts:
        yield "conflict", conflict.object, conflict.message
        yield from (("", "", evidence) for evidence in conflict.evidence)
        if conflict.resolve:
            yield "resolve", "", conflict.resolve
    if own.token:
        yield "token", "", own.token
    yield from (("warning", "", warning) for warning in own.plan.warnings)
    for stream in answer.streams:
        much = "size unknown" if stream.bytes is None else f"about {size(stream.bytes)}"
        yield "would", describe(stream.step), f"{much}; {stream.manner}; {stream.wire}"
    if room := answer.room:
        told = "fits" if room.fits else "does not fit"
        yield "room", f"{size(room.available)} left in {room.place}", f"about {size(room.needed)} needed: {told}"
    if not answer.streams and not own.conflicts:
        yield "would", "send nothing", "; ".join(own.plan.reasons)
    newest, rest = own.candidates[:_SHOWN], own.candidates[_SHOWN:]
    chosen = [candidate for candidate in rest if candidate.fate in (Fate.CHOSEN, Fate.BLOCKED)]
    for candidate in (*newest, *chosen):
        when = moment(candidate.base.creation, tz)
        yield str(candidate.fate), f"{candidate.base.full_name} of {when}", candidate.why
    if left := len(rest) - len(chosen):
        yield "", f"and {left} older candidates", "all of them with --json"


def why_json(told: Why) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "disks": [_answer_json(answer) for answer in told.answers],
        "crowded": [
            {
                "vmid": full.guest.vmid,
                "host": full.host,
                "message": full.conflict.message,
                "evidence": list(full.conflict.evidence),
                "resolve": full.conflict.resolve,
            }
            for full in told.crowded
        ],
        "unreachable": {host: error.message for host, error in told.errors.items()},
        "notes": list(told.notes),
    }


def _answer_json(answer: Answer) -> dict[str, Any]:
    own, room = answer.reasoning, answer.room
    return {
        "vmid": answer.guest.vmid,
        "guest": answer.guest.name,
        "host": answer.host,
        "disk": own.disk.key,
        "volid": own.disk.volid,
        "dataset": own.disk.dataset,
        "replica": own.replica,
        "interrupted": own.token,
        "candidates": [_candidate_json(candidate) for candidate in own.candidates],
        "streams": [_stream_json(stream) for stream in answer.streams],
        "room": room and {"needed": room.needed, "available": room.available, "dataset": room.place},
        "conflicts": [
            {
                "kind": conflict.kind,
                "object": conflict.object,
                "message": conflict.message,
                "evidence": list(conflict.evidence),
                "resolve": conflict.resolve,
            }
            for conflict in own.conflicts
        ],
        "warnings": list(own.plan.warnings),
        "reasons": list(own.plan.reasons),
    }


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    base = candidate.base
    return {
        "kind": candidate.kind,
        "name": base.full_name,
        "guid": base.guid,
        "ivset": base.ivset,
        "createtxg": base.createtxg,
        "creation": base.creation,
        "fate": candidate.fate.value,
        "why": candidate.why,
    }


def _stream_json(stream: Stream) -> dict[str, Any]:
    step = stream.step
    base = None if isinstance(step, Resume) or step.base is None else step.base.full_name
    return {
        "kind": "resume" if isinstance(step, Resume) else "full" if base is None else "incremental",
        "snapshot": step.snapshot.full_name,
        "base": base,
        "between": [] if isinstance(step, Resume) else [snapshot.full_name for snapshot in step.through],
        "dataset": step.dataset,
        "raw": step.raw,
        "bytes": stream.bytes,
        "manner": stream.manner,
        "wire": stream.wire,
    }
