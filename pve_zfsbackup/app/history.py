"""What is protected and how far: the questions `discover`, `list` and `status` answer. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pve_zfsbackup.app.gather import Assignment, Inventory, Scope, assign, inventory, target_listings
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.model import SOURCE, Disk, Guest, Listing, Point, Vmid
from pve_zfsbackup.plan.points import by_guest, points


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """A guest as found, its disks judged by Proxmox's configuration and by our jobs."""

    guest: Guest
    jobs: tuple[str, ...]

    @property
    def unprotected(self) -> tuple[Disk, ...]:
        return tuple(disk for disk in self.guest.disks if not disk.protected or not self.jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    node: str
    guests: tuple[Coverage, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All points of the guests in scope, by host, oldest first; and the hosts that could not be asked."""

    coverage: tuple[Coverage, ...]
    points: Mapping[str, Mapping[Vmid, tuple[Point, ...]]]
    errors: Mapping[str, BackupError]
    targets: Mapping[Vmid, tuple[str, ...]]
    notes: tuple[str, ...]
    now: int

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted(self.points, key=lambda host: (host != SOURCE, host)))


def discover(session: Session) -> Discovery:
    """Every guest of the node with every disk: protected, or why not."""
    found = inventory(session)
    items, notes = assign(session, found, Scope())
    return Discovery(node=session.node, guests=_coverage(found, items), notes=(*found.notes, *notes))


def history(session: Session, scope: Scope, *, only: str = "") -> History:
    """The points of the guests in scope, here and on every target that answers; `only` names one host."""
    found = inventory(session)
    items, notes = assign(session, found, scope)
    names = [name for name in session.config.targets if only in ("", name)]
    listings, errors = target_listings(session, names)
    if only in ("", SOURCE):
        listings = {SOURCE: found.listing, **listings}
    coverage = _coverage(found, items)
    if scope.guests or scope.jobs:
        coverage = tuple(entry for entry in coverage if entry.jobs)
    return History(
        coverage=coverage,
        points={host: _points(listing) for host, listing in listings.items()},
        errors=errors,
        targets={item.guest.vmid: tuple(item.targets) for item in items},
        notes=(*found.notes, *notes),
        now=int(session.now().timestamp()),
    )


def _points(listing: Listing) -> Mapping[Vmid, tuple[Point, ...]]:
    return by_guest(points(listing))


def _coverage(found: Inventory, items: Sequence[Assignment]) -> tuple[Coverage, ...]:
    assigned = {item.guest.vmid: item for item in items}
    entries = []
    for guest in found.guests:
        item = assigned.get(guest.vmid)
        jobs = tuple(job.name for job in item.jobs) if item else ()
        entries.append(Coverage(guest=item.guest if item else guest, jobs=jobs))
    return tuple(entries)
