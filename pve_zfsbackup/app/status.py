"""`status`: how each guest stands, everywhere at once. Nothing is changed here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import ages_of
from pve_zfsbackup.app.history import Coverage, History, history
from pve_zfsbackup.app.proofs import Recovery, measured, newest_proof
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Config
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.model.health import Age
from pve_zfsbackup.model.proof import Proven


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
    """`notes` say what could not be known."""

    history: History
    guests: tuple[GuestStatus, ...]
    recovery: Recovery = field(default_factory=Recovery)
    notes: tuple[str, ...] = ()


def status(session: Session, scope: Scope) -> Status:
    """Ask everything once. Raises what keeps it from knowing the guests; what did not answer is in the history."""
    found = history(session, scope)
    told = status_of(found, session.config)
    try:
        return replace(told, recovery=measured(session.config, found.now))
    except BackupError as error:
        return replace(told, notes=(*told.notes, f"nothing was measured: {error.message}"))


def status_of(found: History, config: Config) -> Status:
    """What the points alone say."""
    guests = []
    for entry in found.coverage:
        ages = tuple(ages_of(found, entry, config)) if entry.jobs else ()
        proven = newest_proof(found, entry.guest.vmid)
        guests.append(GuestStatus(entry=entry, ages=ages, proven=proven, due=_due(found, ages)))
    return Status(history=found, guests=tuple(guests), notes=found.notes)


def _due(found: History, ages: tuple[Age, ...]) -> Due | None:
    """The earliest of all places; without a point, now."""
    times = [
        Due(at=found.now if age.seconds is None else found.now - age.seconds + int(age.warn), place=age.host)
        for age in ages
    ]
    return min(times, key=lambda due: due.at, default=None)
