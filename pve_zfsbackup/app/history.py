"""What is protected and how far: the questions `discover`, `list` and `status` answer. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pve_zfsbackup.app.aside import put_aside
from pve_zfsbackup.app.audit import excluded_by
from pve_zfsbackup.app.boxes import BoxContent, box_contents
from pve_zfsbackup.app.gather import Assignment, Inventory, Scope, assign, inventory, target_listings, visible_listing
from pve_zfsbackup.app.leavings import strays
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Config
from pve_zfsbackup.errors import BackupError, ConfigError, PveError
from pve_zfsbackup.host.guests import read_replications
from pve_zfsbackup.host.identity import owner_id
from pve_zfsbackup.model import SOURCE, Conflict, Disk, Guest, Listing, Point, PointId, Vmid, World
from pve_zfsbackup.model.archive import Archived
from pve_zfsbackup.model.aside import PutAside
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.model.proof import Proof
from pve_zfsbackup.plan.foreign import blocked_rollbacks
from pve_zfsbackup.plan.ownership import foreign_root
from pve_zfsbackup.plan.points import by_guest, points
from pve_zfsbackup.plan.proven import last_drill
from pve_zfsbackup.plan.takeover import conflict_of, takeovers


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """A guest as found, its disks judged by Proxmox's configuration and by our jobs; in none, by which rule if any."""

    guest: Guest
    jobs: tuple[str, ...]
    excluded: str = ""
    blocked: Mapping[str, int] = field(default_factory=dict)  # Proxmox's snapshots our points stand in the way of
    replicated: tuple[str, ...] = ()  # nodes Proxmox's own replication sends it to

    @property
    def notes(self) -> tuple[str, ...]:
        """What an administrator should know."""
        ways = f"unblock-rollback {self.guest.vmid}"
        told = [
            f"Proxmox cannot roll back to {name}: {count} newer points of ours; `pve-zfsbackup {ways} {name}` makes way"
            for name, count in self.blocked.items()
        ]
        told += [
            f"pvesr replicates it to {node}, our snapshots with it: never send to that copy's dataset"
            for node in self.replicated
        ]
        return (*self.guest.notes, *told)

    @property
    def unprotected(self) -> tuple[Disk, ...]:
        return tuple(disk for disk in self.guest.disks if not disk.protected or not self.jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    node: str
    guests: tuple[Coverage, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """What a place would give back: `creation` in seconds since 1970, `bytes` as referred to by the snapshots, or as
    stored in a box; `points` are all of the guest there that could be given back. `ahead` of them are from the future:
    a clock was set back, and they are not the newest, unless there is nothing else."""

    id: PointId
    creation: int
    consistency: str
    bytes: int
    points: int
    ahead: int = 0


AnyPoint = TypeVar("AnyPoint", Point, Archived)


def _newest(points: Sequence[AnyPoint], now: int, about: Callable[[AnyPoint], tuple[PointId, int]]) -> Newest | None:
    """Of points that could be given back, oldest first; `about` tells name and size of one."""
    past = [point for point in points if point.creation <= now + SKEW]
    for last in (past or points)[-1:]:
        name, size = about(last)
        return Newest(
            id=name,
            creation=last.creation,
            consistency=last.consistency,
            bytes=size,
            points=len(points),
            ahead=len(points) - len(past),
        )
    return None


def _whole_point(point: Point) -> tuple[PointId, int]:
    return point.id, sum(snapshot.refer for snapshot in point.snapshots.values())


def _stored(point: Archived) -> tuple[PointId, int]:
    return point.point, point.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All points of the guests in scope, by host, oldest first; and the hosts that could not be asked.

    `archived` is what lies in each box that answered, `boxes` says into which ones a guest goes. `errors` has hosts and
    boxes. `orphans` have points but are no guests of this node any more: what one looks for after a loss.
    """

    coverage: tuple[Coverage, ...]
    points: Mapping[str, Mapping[Vmid, tuple[Point, ...]]]
    errors: Mapping[str, BackupError]
    targets: Mapping[Vmid, tuple[str, ...]]
    notes: tuple[str, ...]
    now: int
    orphans: tuple[Vmid, ...] = ()
    taken: Mapping[Vmid, tuple[Conflict, ...]] = field(default_factory=dict)  # guests whose role another host has
    listings: World = field(default_factory=dict)
    archived: Mapping[str, BoxContent] = field(default_factory=dict)
    boxes: Mapping[Vmid, tuple[str, ...]] = field(default_factory=dict)
    foreign: Mapping[str, Conflict] = field(default_factory=dict)  # targets whose root is somebody else's
    aside: tuple[PutAside, ...] = ()  # what restores and their kind put aside here, and nobody gave up yet
    strays: tuple[Vmid, ...] = ()  # guests here that a killed boot drill left
    scope: Scope = field(default_factory=Scope)  # what was asked for
    doubts: tuple[str, ...] = ()  # why there may be more guests here, which are not seen

    @property
    def vmids(self) -> tuple[Vmid, ...]:
        """The guests in scope, those that are gone last."""
        return (*(entry.guest.vmid for entry in self.coverage), *self.orphans)

    def last_drill(self, host: str, vmid: Vmid) -> Proof | None:
        """When a point of the guest was last drilled on that host, and whether it passed."""
        return last_drill(self.points.get(host, {}).get(vmid, ()))

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted(self.points, key=lambda host: (host != SOURCE, host)))

    @property
    def places(self) -> tuple[str, ...]:
        """Hosts and boxes that answered."""
        return (*self.hosts, *sorted(self.archived))

    def newest(self, place: str, vmid: Vmid) -> Newest | None:
        """The newest point of a guest on a host that is complete, or in a box that is sound."""
        if place in self.archived:
            kept = [point.archived for point in self.archived[place].points.get(vmid, ()) if point.sound]
            return _newest(kept, self.now, _stored)
        whole = [point for point in self.points.get(place, {}).get(vmid, ()) if point.complete]
        return _newest(whole, self.now, _whole_point)


def discover(session: Session) -> Discovery:
    """Every guest of the node with every disk: protected, or why not."""
    found = inventory(session)
    items, notes = assign(session, found, Scope())
    replications, doubts = _replications(session)
    coverage = _coverage(session.config, found, items, replications)
    return Discovery(node=session.node, guests=coverage, notes=(*found.notes, *notes, *doubts))


def history(session: Session, scope: Scope, *, only: str = "") -> History:
    """The points of the guests in scope, here, on every target and in every box that answers; `only` names one."""
    everywhere = (SOURCE, *session.config.targets, *session.config.boxes)
    if only not in ("", *everywhere):
        raise ConfigError([f"no host or box named {only}"], hint=f"there are: {', '.join(everywhere)}")
    found = inventory(session)
    names = [name for name in session.config.targets if only in ("", name)]
    listings, errors = target_listings(session, names, visible_listing)
    if only in ("", SOURCE):
        listings = {SOURCE: found.listing, **listings}
    points_by_host = {host: _points(listing) for host, listing in listings.items()}
    used = {box for job in session.config.jobs.values() for box in job.boxes}
    archived, away = box_contents(
        session, [name for name in session.config.boxes if only == name or (not only and name in used)]
    )
    here = {guest.vmid for guest in found.guests}
    known = (*points_by_host.values(), *(box.points for box in archived.values()))
    gone = {vmid for guests in known for vmid in guests} - here
    orphans, rest, meant = _orphans(gone, scope)
    items, notes = assign(session, found, rest) if meant else ((), ())
    if scope.guests:
        notes = (*notes, *(f"{vmid} is no guest of this node any more: its points stay" for vmid in orphans))
    replications, doubts = _replications(session)
    coverage = _coverage(session.config, found, items, replications)
    aside, unknown = put_aside(session, found.listing)
    left, unsure = strays(session)
    if scope.guests or scope.jobs:
        coverage = tuple(entry for entry in coverage if entry.jobs)
        shown = {*orphans, *(entry.guest.vmid for entry in coverage)}
        aside = tuple(one for one in aside if one.vmid in shown)
    return History(
        coverage=coverage,
        points=points_by_host,
        errors={**errors, **away},
        targets={item.guest.vmid: tuple(item.targets) for item in items},
        notes=(*found.notes, *notes, *doubts, *unknown, *unsure, *_self_pruning(session, names), *_damage(archived)),
        now=int(session.now().timestamp()),
        orphans=orphans,
        listings=listings,
        taken=_taken(found, listings),
        archived=archived,
        boxes={item.guest.vmid: tuple(item.boxes) for item in items},
        foreign=_foreign(session, listings),
        aside=aside,
        strays=left,
        scope=scope,
        doubts=found.doubts,
    )


def _foreign(session: Session, listings: Mapping[str, Listing]) -> dict[str, Conflict]:
    """Another one's guests have the same vmids: their points are not ours, however fresh."""
    owner = owner_id(session.pve_root)
    told = {
        host: foreign_root(listing, session.config.targets[host].root, owner)
        for host, listing in listings.items()
        if host != SOURCE
    }
    return {host: conflict for host, conflict in told.items() if conflict}


def _taken(found: Inventory, listings: Mapping[str, Listing]) -> Mapping[Vmid, tuple[Conflict, ...]]:
    guests = {guest.vmid: guest for guest in found.guests}
    told: dict[Vmid, tuple[Conflict, ...]] = {}
    for host, listing in sorted(listings.items()):
        for vmid, taken in takeovers(listing).items() if host != SOURCE else ():
            if vmid in guests:
                told[vmid] = (*told.get(vmid, ()), conflict_of(taken, guests[vmid], host))
    return told


def between(found: History, since: float, until: float) -> History:
    """The same with only the points created from `since` to `until`, in seconds since the epoch."""
    points = {
        host: {vmid: tuple(p for p in own if since <= p.creation <= until) for vmid, own in guests.items()}
        for host, guests in found.points.items()
    }
    archived = {name: box.between(since, until) for name, box in found.archived.items()}
    return replace(found, points=points, archived=archived)


def _self_pruning(session: Session, names: Sequence[str]) -> tuple[str, ...]:
    own = (name for name in names if session.config.targets[name].append_only)
    return tuple(f"{name} is append-only: it prunes its points itself, by its own policy" for name in own)


def _damage(archived: Mapping[str, BoxContent]) -> tuple[str, ...]:
    return tuple(f"box {name}: {problem}" for name, box in archived.items() for problem in box.problems)


def _orphans(gone: Set[Vmid], scope: Scope) -> tuple[tuple[Vmid, ...], Scope, bool]:
    """Which of those that are gone are meant, the scope without them, and whether anything else is meant."""
    wanted = [selector for selector in scope.guests if selector.explicit and not selector.negated]
    named = [selector for selector in wanted if selector.low in gone]
    rest = tuple(selector for selector in scope.guests if selector not in named)
    if scope.guests:
        return tuple(Vmid(selector.low) for selector in named), replace(scope, guests=rest), bool(rest)
    return () if scope.jobs else tuple(sorted(gone)), scope, True


def _points(listing: Listing) -> Mapping[Vmid, tuple[Point, ...]]:
    return by_guest(points(listing))


Replications = Mapping[Vmid, tuple[str, ...]]


def _replications(session: Session) -> tuple[Replications, tuple[str, ...]]:
    """Proxmox's own replication jobs; a note when they cannot be read, which is no reason to answer nothing."""
    try:
        return read_replications(session.api), ()
    except PveError as error:
        return {}, (f"jobs of pvesr cannot be read: {error.message}",)


def _coverage(
    config: Config, found: Inventory, items: Sequence[Assignment], replications: Replications
) -> tuple[Coverage, ...]:
    assigned = {item.guest.vmid: item for item in items}
    entries = []
    for guest in found.guests:
        item = assigned.get(guest.vmid)
        entries.append(
            Coverage(
                guest=item.guest if item else guest,
                jobs=item.names if item else (),
                excluded="" if item else excluded_by(guest, config.jobs.values()),
                blocked=blocked_rollbacks(guest, found.listing),
                replicated=replications.get(guest.vmid, ()),
            )
        )
    return tuple(entries)
