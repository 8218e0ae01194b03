"""What is there now: guests from the API, datasets from one `zfs list` per host, and who belongs to which job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Config, Job
from pve_zfsbackup.errors import BackupError, ConfigError, ForeignRootError
from pve_zfsbackup.events import Seen
from pve_zfsbackup.host import guests as pve_guests
from pve_zfsbackup.host.api import Api
from pve_zfsbackup.host.health import KSTAT, pool_of, told
from pve_zfsbackup.host.identity import owner_id
from pve_zfsbackup.host.listing import list_source, list_target, tuned
from pve_zfsbackup.host.quiesce import FreezeRules
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, SUSPENDED, Dataset, Disk, Guest, Listing, Quiesce, Selector, Storage, Vmid
from pve_zfsbackup.model.room import rooms
from pve_zfsbackup.plan.discovery import discover
from pve_zfsbackup.plan.ownership import foreign_root
from pve_zfsbackup.plan.selection import select

_STRICTEST = (Quiesce.REQUIRE, Quiesce.PREFER, Quiesce.OFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The node as it is now. `doubts` say why there may be more guests, which are not seen; they are notes as well."""

    guests: tuple[Guest, ...]
    listing: Listing
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    asked: dict[str, Future[Listing]] = field(default_factory=dict)
    """Targets whose listing was asked for meanwhile: each answer is for whoever takes it out first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A guest with all jobs that have it. `guest` has the disks of all of them, `targets` those of each target,
    `boxes` those of each box.

    Named jobs on the command line narrow down guests and targets, never the rules: what another job of the guest
    wants kept stays, and so does the base on its targets, the `unasked`.
    """

    guest: Guest
    jobs: tuple[Job, ...]
    targets: Mapping[str, Guest]
    unasked: frozenset[str] = frozenset()
    boxes: Mapping[str, Guest] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its jobs."""
        return tuple(job.name for job in self.jobs)

    @property
    def quiesce(self) -> Quiesce:
        """The strictest of its jobs."""
        return next(level for level in _STRICTEST if any(job.quiesce is level for job in self.jobs))

    @property
    def freeze_rules(self) -> FreezeRules:
        """The shortest freeze any of its jobs asks for, with the commands of all of them."""
        return FreezeRules(
            limit=min(job.freeze_limit for job in self.jobs),
            before=tuple(dict.fromkeys(job.before_freeze for job in self.jobs if job.before_freeze)),
            after=tuple(dict.fromkeys(job.after_thaw for job in self.jobs if job.after_thaw)),
        )

    @property
    def container_freeze(self) -> bool:
        return any(job.container_freeze for job in self.jobs)

    def skips_unchanged(self, target: str) -> bool:
        """Whether all jobs that bring it to this target say so."""
        return all(job.skip_unchanged for job in self.jobs if target in job.targets)

    @property
    def lock_wait(self) -> float:
        return max(job.lock_wait for job in self.jobs)


def inventory(session: Session, *, only: Vmid | None = None, targets: Iterable[str] = ()) -> Inventory:
    """Ask the API for the guests and ZFS for the datasets of the node's storages: one listing. `only` asks for one
    guest. `targets` are asked at the same time, and not waited for."""
    names = list(targets)
    threads = ThreadPoolExecutor(max(1, len(names)))
    asked = {name: threads.submit(target_listing, session, name) for name in names}
    threads.shutdown(wait=False)
    found = inventory_of(session.api, session.node, session.hosts[SOURCE], session.kstat, only=only)
    return replace(found, asked=asked)


def inventory_of(api: Api, node: str, host: Host, kstat: Path = KSTAT, *, only: Vmid | None = None) -> Inventory:
    """The same without a session, which `setup` cannot have yet. ZFS lists while the API tells of the guests."""
    notes: list[str] = []
    doubts: list[str] = []
    with ThreadPoolExecutor(1) as beside:
        listed = beside.submit(_listed, api, node, host, kstat)
        try:
            raw = pve_guests.read_guests(api, node, only=only, note=notes.append, doubt=doubts.append)
            storages, roots, listing = listed.result()
        except Exception:
            raise
        except BaseException:
            host.runner.cancel()  # leaving the block waits for the listing, and a large pool takes minutes
            raise
    guests = discover(raw, storages, listing, node)
    if any(disk.lost for guest in guests for disk in guest.disks):  # or made since it was listed
        listing = list_source(host, roots, kstat=kstat)
        guests = discover(raw, storages, listing, node)
    notes += doubts
    asked = (root for root in roots if listing.health.get(pool_of(root)) != SUSPENDED)
    notes += told(listing.health)
    notes += [f"{root}: dataset of a Proxmox storage does not exist" for root in asked if root not in listing.roots]
    return Inventory(guests=guests, listing=listing, notes=tuple(notes), doubts=tuple(doubts))


def _listed(api: Api, node: str, host: Host, kstat: Path) -> tuple[Mapping[str, Storage], list[Dataset], Listing]:
    storages = pve_guests.read_storages(api)
    roots = _roots(storages, node)
    return storages, roots, list_source(host, roots, kstat=kstat)


def _roots(storages: Mapping[str, Storage], node: str) -> list[Dataset]:
    here = (s for s in storages.values() if s.pool and not s.disabled and (not s.nodes or node in s.nodes))
    return sorted({Dataset(storage.pool) for storage in here})


def visible_listing(session: Session, name: str) -> Listing:
    """What the target's root shows, whosoever it is: only to be looked at. Raises when it cannot be asked."""
    return list_target(session.hosts[name], session.config.targets[name].root)


def first_listing(session: Session, found: Inventory, name: str) -> Listing:
    """The answer that was asked for with the inventory, else one asked for now. Raises as `target_listing` does."""
    asked = found.asked.pop(name, None)
    return asked.result() if asked else target_listing(session, name)


def target_listing(session: Session, name: str) -> Listing:
    """One listing of the target's root. Raises when the target cannot be asked, and `ForeignRootError` when the root
    belongs to somebody else."""
    listing = visible_listing(session, name)
    if conflict := foreign_root(listing, session.config.targets[name].root, owner_id(session.pve_root)):
        raise ForeignRootError(f"{conflict.message}: {'; '.join(conflict.evidence)}", hint=conflict.resolve)
    return listing


def show_rooms(session: Session, listing: Listing) -> None:
    """Tell what room there is at the roots of a listing: forecasts are made from it, weeks later."""
    for room in rooms(listing, at=session.now().timestamp()):
        session.emit(Seen(room=room))


Look = Callable[[Session, str], Listing]


def target_listings(
    session: Session, names: Sequence[str], look: Look = target_listing
) -> tuple[dict[str, Listing], dict[str, BackupError]]:
    """The listings of those targets that answered, and the errors of those that did not."""
    listings: dict[str, Listing] = {}
    errors: dict[str, BackupError] = {}
    for name in names:
        try:
            listings[name] = look(session, name)
        except BackupError as error:
            errors[name] = error
    return listings, errors


def with_tuned(session: Session, found: Inventory, guests: Iterable[Guest]) -> Inventory:
    """What was found, with what somebody set on the disks of these guests themselves, for their points to carry: asked
    in a process of its own, for a column of the listing has what is inherited as well. Raises what keeps it from being
    read."""
    volumes = dict(found.listing.volumes)
    disks = {disk.dataset for guest in guests for disk in guest.protected_disks if disk.dataset}
    for name, own in tuned(session.hosts[SOURCE], disks & volumes.keys()).items():
        volumes[name] = replace(volumes[name], props={**volumes[name].props, **own})
    return replace(found, listing=replace(found.listing, volumes=volumes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What the command line narrows down: jobs by name, guests by selector. Empty means all."""

    jobs: tuple[str, ...] = ()
    guests: tuple[Selector, ...] = ()


def assign(session: Session, found: Inventory, scope: Scope) -> tuple[tuple[Assignment, ...], tuple[str, ...]]:
    """The guests to work on, and remarks: selectors that fit nothing. Raises `ConfigError` for an unknown job."""
    jobs = session.config.jobs
    unknown = sorted(set(scope.jobs) - jobs.keys())
    if unknown:
        raise ConfigError([f"no job named {', '.join(unknown)}"], hint=f"jobs: {', '.join(sorted(jobs)) or 'none'}")
    members: dict[Vmid, list[tuple[Job, Guest]]] = {}
    notes: list[str] = []
    for name, job in jobs.items():
        chosen = select(
            found.guests,
            include=job.guests,
            exclude=job.exclude,
            exclude_disks=job.exclude_disks,
            by=f"job {name}",
        )
        if not scope.jobs or name in scope.jobs:
            notes += [f"job {name}: no guest here is {text}" for text in (*chosen.unknown, *chosen.unmatched)]
        for guest in chosen.guests:
            members.setdefault(guest.vmid, []).append((job, guest))
    named = frozenset(scope.jobs or jobs)
    merged = (_merged(pairs, named) for _, pairs in sorted(members.items()))
    assignments = [item for item in merged if any(job.name in named for job in item.jobs)]
    if scope.guests:
        meant = select([a.guest for a in assignments], include=scope.guests)
        wanted = {guest.vmid for guest in meant.guests}
        assignments = [a for a in assignments if a.guest.vmid in wanted]
        missing = (*meant.unknown, *meant.unmatched)
        if missing:
            raise ConfigError(
                [f"{text}: no such guest in any job of this node" for text in missing],
                hint="see `pve-zfsbackup discover`",
            )
    return tuple(assignments), tuple(notes)


def job_names(config: Config, guest: Guest | None) -> tuple[str, ...]:
    """The jobs that have a guest, which may be gone."""
    guests = [guest] if guest else []
    return tuple(
        name for name, job in config.jobs.items() if select(guests, include=job.guests, exclude=job.exclude).guests
    )


def _merged(pairs: Sequence[tuple[Job, Guest]], named: frozenset[str]) -> Assignment:
    targets: dict[str, Guest] = {}
    boxes: dict[str, Guest] = {}
    for job, guest in pairs:
        for found, names in ((targets, job.targets), (boxes, job.boxes)):
            for name in names if job.name in named else ():
                found[name] = _union(found[name], guest) if name in found else guest
    whole = pairs[0][1]
    for _, guest in pairs[1:]:
        whole = _union(whole, guest)
    jobs = tuple(job for job, _ in pairs)
    unasked = frozenset(target for job in jobs for target in job.targets) - targets.keys()
    return Assignment(guest=whole, jobs=jobs, targets=targets, unasked=unasked, boxes=boxes)


def _union(one: Guest, other: Guest) -> Guest:
    """A disk is in when either has it in."""

    def better(a: Disk, b: Disk) -> Disk:
        return a if a.protected or (a.lost and not b.protected) else b

    return replace(one, disks=tuple(better(a, b) for a, b in zip(one.disks, other.disks, strict=True)))
