"""`status`: how each guest stands, everywhere at once. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import ages_of
from pve_zfsbackup.app.history import Coverage, History, history
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Config
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.health import SKEW, Age
from pve_zfsbackup.model.proof import Level, Proven


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """When a guest is late, if nothing new arrives in that place until then; in seconds since the epoch. The
    configuration knows no schedule (cron has it), only what age is too old."""

    at: int
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStatus:
    """One guest. `ages` are those of its newest points, in each place where its jobs want one and that answered."""

    entry: Coverage
    ages: tuple[Age, ...] = ()
    proven: Proven | None = None
    due: Due | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    history: History
    guests: tuple[GuestStatus, ...]


def status(session: Session, scope: Scope) -> Status:
    """Ask everything once. Raises what keeps it from knowing the guests; what did not answer is in the history."""
    return status_of(history(session, scope), session.config)


def status_of(found: History, config: Config) -> Status:
    guests = []
    for entry in found.coverage:
        ages = tuple(ages_of(found, entry, config)) if entry.jobs else ()
        proven = newest_proof(found, entry.guest.vmid)
        guests.append(GuestStatus(entry=entry, ages=ages, proven=proven, due=_due(found, ages)))
    return Status(history=found, guests=tuple(guests))


def _due(found: History, ages: tuple[Age, ...]) -> Due | None:
    """The earliest of all places; without a point, now."""
    times = [
        Due(at=found.now if age.seconds is None else found.now - age.seconds + int(age.warn), place=age.host)
        for age in ages
    ]
    return min(times, key=lambda due: due.at, default=None)


def newest_proof(found: History, vmid: Vmid) -> Proven | None:
    """The newest drill on any host, passed or failed; without one, what was read back last in a box; without that, the
    last comparison of the chain on a target. What claims to be from the future proves nothing."""
    for kind in (_drills, _read_back, _chains):
        told = [proven for proven in kind(found, vmid) if proven.at <= found.now + SKEW]
        if told:
            return max(told, key=lambda proven: proven.at)
    return None


def last_passed(found: History, vmid: Vmid) -> Proven | None:
    """The newest drill that passed, on any host."""
    told = (proven for proven in _drills(found, vmid) if proven.passed and proven.at <= found.now + SKEW)
    return max(told, key=lambda proven: proven.at, default=None)


def _drills(found: History, vmid: Vmid) -> Iterator[Proven]:
    return (proven for proven in _on_hosts(found, vmid) if proven.level != Level.POINTS)


def _chains(found: History, vmid: Vmid) -> Iterator[Proven]:
    return (proven for proven in _on_hosts(found, vmid) if proven.level == Level.POINTS)


def _on_hosts(found: History, vmid: Vmid) -> Iterator[Proven]:
    for host in found.hosts:
        for point in found.points[host].get(vmid, ()):
            if proof := point.proof:
                yield Proven(level=proof.level.value, at=proof.at, place=host, point=point.id)


def _read_back(found: History, vmid: Vmid) -> Iterator[Proven]:
    for name, box in found.archived.items():
        for kept in box.points.get(vmid, ()):
            if kept.proof:
                yield Proven(level=kept.proof.level, at=int(kept.proof.at), place=name, point=kept.archived.point)
