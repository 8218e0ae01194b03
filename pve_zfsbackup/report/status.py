"""`status`: one line for each guest, with what somebody should look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import tzinfo
from typing import Any, Final

from pve_zfsbackup.app.health import unexplained
from pve_zfsbackup.app.history import Coverage, History
from pve_zfsbackup.app.status import GuestStatus, Status
from pve_zfsbackup.model import SOURCE
from pve_zfsbackup.model.health import Age
from pve_zfsbackup.model.health import Level as Badness
from pve_zfsbackup.model.proof import Level, Proven
from pve_zfsbackup.model.stages import DRILL
from pve_zfsbackup.report.coverage import reason
from pve_zfsbackup.report.format import FORMAT, Table, Tone, age, clean, moment
from pve_zfsbackup.report.leavings import aside_json

_TONES: Final[Mapping[Badness, Tone]] = {Badness.WARNING: Tone.LATE, Badness.CRITICAL: Tone.BAD}
Problem = tuple[Badness, str]


def status_table(found: Status, tz: tzinfo) -> Table:
    """The ages of the newest points in all places, and everything that is not as it should be."""
    places = _places(found.history)
    rows = []
    tones: dict[tuple[int, str], Tone] = {}
    for number, guest in enumerate(found.guests):
        cells = _cells(found.history, guest, places, tz)
        rows.append(tuple(text for text, _ in cells.values()))
        tones.update(((number, name), _TONES[bad]) for name, (_, bad) in cells.items() if bad in _TONES)
    columns = ("vmid", "guest", "newest", *places, "consistency", "verified", "due", "problems")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid"}), tones=tones, last_below=True)


def _cells(
    found: History, guest: GuestStatus, places: tuple[str, ...], tz: tzinfo
) -> dict[str, tuple[str, Badness]]:  # fmt: skip
    """Each cell with how bad it is, by its column."""
    vmid = guest.entry.guest.vmid
    ages = {one.host: one for one in guest.ages}
    told = list(judged_problems(found, guest))
    newest = max((point.creation for place in places if (point := found.newest(place, vmid))), default=None)
    here = found.newest(SOURCE, vmid)
    return {
        "vmid": (str(vmid), max((bad for bad, _ in told), default=Badness.OK)),
        "guest": (guest.entry.guest.name, Badness.OK),
        "newest": (moment(newest, tz)[:-3] if newest is not None else "-", Badness.OK),
        **{place: _age_cell(found, guest, place, ages.get(place)) for place in places},
        "consistency": (here.consistency.partition(":")[0] if here else "", Badness.OK),
        "verified": _proof_cell(found, guest),
        "due": _due_cell(found, guest),
        "problems": ("; ".join(text for _, text in told), max((bad for bad, _ in told), default=Badness.OK)),
    }


def _places(found: History) -> tuple[str, ...]:
    targets, boxes = ({name for names in where.values() for name in names} for where in (found.targets, found.boxes))
    return (SOURCE, *sorted(targets), *sorted(boxes))


def _age_cell(found: History, guest: GuestStatus, place: str, judged: Age | None) -> tuple[str, Badness]:
    meant = place == SOURCE or place in _meant(found, guest.entry)
    if place in found.errors:
        return ("no answer", Badness.CRITICAL) if meant else ("-", Badness.OK)
    if judged is not None:
        return (age(judged.seconds) if judged.seconds is not None else "none"), _badness(judged)
    point = found.newest(place, guest.entry.guest.vmid)
    return (age(found.now - point.creation) if point else "-"), Badness.OK


def _badness(one: Age) -> Badness:
    if one.seconds is None or one.seconds > one.critical:
        return Badness.CRITICAL
    return Badness.WARNING if one.seconds > one.warn or one.ahead else Badness.OK


def _proof_cell(found: History, guest: GuestStatus) -> tuple[str, Badness]:
    if guest.proven is None:
        return ("never" if guest.ages else "-"), Badness.OK
    where = "" if guest.proven.place == SOURCE else f" on {guest.proven.place}"
    bad = Badness.CRITICAL if guest.proven.level == Level.FAILED else Badness.OK
    return f"{guest.proven.level} {age(max(found.now - guest.proven.at, 0))}{where}", bad


def _due_cell(found: History, guest: GuestStatus) -> tuple[str, Badness]:
    if guest.due is None:
        return "-", Badness.OK
    left = guest.due.at - found.now
    if any(one.seconds is None for one in guest.ages):
        return "now", Badness.CRITICAL
    return (f"in {age(left)}", Badness.OK) if left >= 0 else (f"{age(-left)} ago", Badness.WARNING)


def problems(found: History, entry: Coverage) -> list[str]:
    """What an administrator should look at, for one guest, besides the age of its points."""
    return [text for _, text in _of_entry(found, entry)]


def judged_problems(found: History, guest: GuestStatus) -> Iterator[Problem]:
    """The same with how bad each is, and what is too old."""
    yield from _of_entry(found, guest.entry)
    for one in guest.ages:
        bad, where = _badness(one), "" if one.host == SOURCE else f" on {one.host}"
        if one.seconds is not None and one.seconds > one.warn:
            limit = one.critical if bad is Badness.CRITICAL else one.warn
            yield bad, f"newest point{where} is older than {age(int(limit))}"
        if one.ahead:
            some = f"{one.ahead} points{where} are" if one.ahead > 1 else f"1 point{where} is"
            yield Badness.WARNING, f"{some} from the future: was the clock set back?"


def _of_entry(found: History, entry: Coverage) -> Iterator[Problem]:
    vmid = entry.guest.vmid
    yield from ((Badness.CRITICAL, conflict.message) for conflict in found.taken.get(vmid, ()))
    if entry.guest.trouble:
        yield Badness.CRITICAL, f"its configuration cannot be read: {entry.guest.trouble}"
    if not entry.jobs:
        if not (entry.guest.template or entry.guest.trouble):
            yield (Badness.OK, entry.excluded) if entry.excluded else (Badness.WARNING, "in no job")
        return
    for host in (SOURCE, *_meant(found, entry)):
        where = f" on {host}" if host != SOURCE else ""
        if host in found.errors:
            yield Badness.CRITICAL, f"{host} does not answer"
        elif conflict := found.foreign.get(host):
            yield Badness.CRITICAL, f"{host}: {conflict.message}"
        elif host in found.places and entry.guest.to_protect and not found.newest(host, vmid):
            yield Badness.CRITICAL, f"no point{where}"
        elif (proof := found.last_drill(host, vmid)) and proof.level is Level.FAILED:
            yield Badness.CRITICAL, f"the last drill{where} failed"
    for disk in unexplained(entry):
        yield Badness.WARNING, f"{disk.key} not protected: {reason(entry, disk)}"
    yield from ((Badness.WARNING, f"Proxmox cannot roll back to {name} (unblock-rollback)") for name in entry.blocked)
    yield from ((Badness.OK, f"pvesr replicates it to {node} as well") for node in entry.replicated)


def _meant(found: History, entry: Coverage) -> tuple[str, ...]:
    """Where the jobs of a guest want its points, besides here."""
    return (*found.targets.get(entry.guest.vmid, ()), *found.boxes.get(entry.guest.vmid, ()))


def status_json(found: Status) -> dict[str, Any]:
    history = found.history
    return {
        "format": FORMAT,
        "now": history.now,
        "guests": [_guest_json(found, guest) for guest in found.guests],
        "unreachable": {host: error.message for host, error in history.errors.items()},
        "aside": aside_json(history.aside),
        "strays": list(history.strays),
    }


def _guest_json(told: Status, guest: GuestStatus) -> dict[str, Any]:
    entry, vmid, found = guest.entry, guest.entry.guest.vmid, told.history
    return {
        "vmid": vmid,
        "guest": entry.guest.name,
        "jobs": list(entry.jobs),
        "newest": {
            host: {
                "point": point.id,
                "creation": point.creation,
                "age": found.now - point.creation,
                "consistency": point.consistency,
            }
            for host in found.places
            if (point := found.newest(host, vmid))
        },
        "level": max((bad for bad, _ in judged_problems(found, guest)), default=Badness.OK).name.lower(),
        "limits": {one.host: {"warn": int(one.warn), "critical": int(one.critical)} for one in guest.ages},
        "due": {"at": guest.due.at, "where": guest.due.place} if guest.due else None,
        "verified": _proven_json(found, guest.proven) if guest.proven else None,
        "drilled": {
            host: {"level": proof.level.value, "at": proof.at}
            for host in found.hosts
            if (proof := found.last_drill(host, vmid))
        },
        "rpo": {
            one.host: round(max(worst, one.seconds or 0))
            for one in guest.ages
            if (worst := told.recovery.rpo.get((vmid, one.host))) is not None
        },
        "rto": {
            "drill" if proof.stage == DRILL else proof.stage: {
                "seconds": round(proof.seconds, 3),
                "at": int(proof.at),
                "where": proof.place,
            }
            for proof in told.recovery.rto.get(vmid, ())
        },
        "unprotected": {disk.key: reason(entry, disk) for disk in entry.unprotected},
        "problems": [text for _, text in judged_problems(found, guest)],
    }


def _proven_json(found: History, proven: Proven) -> dict[str, Any]:
    return {
        "level": proven.level,
        "at": proven.at,
        "age": found.now - proven.at,
        "where": proven.place,
        "point": proven.point,
    }
