"""`failover`: guests of a source that is gone, made from the replicas on this host, and started.

First the snapshots are held and the replicas marked, so that the source, when it comes back, sends nothing to them;
then the guests are made as `restore` makes them, and when all are, they start in Proxmox's order. One guest's failure
is its own. Interrupted anywhere and repeated, it goes on from the point it began with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pve_zfsbackup.app.gather import Inventory, inventory
from pve_zfsbackup.app.restore import Prepared, carry_out, plan_of
from pve_zfsbackup.app.restore_point import origin_of
from pve_zfsbackup.app.restore_receive import Pull, look
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, ConfigError, RoleError, VerificationError
from pve_zfsbackup.host import restoring, zfs
from pve_zfsbackup.host.answers import PORTS, signs_of_life
from pve_zfsbackup.host.guest_files import check_writable
from pve_zfsbackup.host.listing import list_host, require
from pve_zfsbackup.host.rows import SOURCE_COLUMNS
from pve_zfsbackup.model import PROPERTY, SOURCE, Conflict, Dataset, Guest, GuestKind, Listing, Point, Vmid
from pve_zfsbackup.model.restore import DiskRestore, Wish
from pve_zfsbackup.plan.choice import Choice, choose_sound
from pve_zfsbackup.plan.failover import (
    HOLD,
    Question,
    already,
    cloned,
    locked_disks,
    permitted,
    replicas_of,
    starting_order,
)
from pve_zfsbackup.plan.guest_config import settings
from pve_zfsbackup.plan.points import guest_points, points_of
from pve_zfsbackup.plan.takeover import FAILOVER, Takeover, mark_text, takeovers


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for; no guests means all whose points lie here."""

    guests: tuple[Vmid, ...] = ()
    at: str = ""
    storages: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    source: str = ""
    fenced: bool = False
    forced: bool = False
    reason: str = ""
    start: bool = True


@dataclass(slots=True, kw_only=True)
class Taking:
    """One guest: what is planned and what became of it. `age` is what was lost, `seconds` how long it took, `moved` the
    bytes of what is a copy."""

    vmid: Vmid
    choice: Choice | None = None
    prepared: Prepared | None = None
    replicas: tuple[Dataset, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()
    error: BackupError | None = None
    there: Guest | None = None  # it was taken over before
    age: int = 0
    seconds: float = 0.0
    moved: int = 0
    done: bool = False
    started: bool = False

    @property
    def point(self) -> Point | None:
        return self.choice.point if self.choice else None

    @property
    def good(self) -> bool:
        return not self.conflicts and self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """`refused` is why nothing at all is to be done; `begun` is when the look began, by the monotonic clock."""

    source: str
    guests: tuple[Taking, ...]
    refused: Conflict | None = None
    dry_run: bool = False
    begun: float = 0.0


def ask(session: Session, request: Request) -> Question:
    """Look for signs of life of the source."""
    settings_ = session.config.failover
    source = request.source or settings_.source or ""
    ports = sorted({settings_.port, *PORTS})
    signs = signs_of_life(session.runner, source, ports, settings_.timeout) if source else ()
    return Question(source=source, signs=signs, fenced=request.fenced, forced=request.forced, reason=request.reason)


def root_of(session: Session, root: str) -> Dataset:
    found = root or session.config.failover.root
    if not found:
        raise ConfigError(
            ["nobody says where the replicas lie"],
            hint="--root DATASET, or failover: {root: DATASET} in the configuration",
        )
    return Dataset(found)


def list_replicas(session: Session, root: Dataset) -> Listing:
    """The replicas of this host. Raises `DatasetNotFoundError` without the root."""
    listing = list_host(session.hosts[SOURCE], [root], columns=SOURCE_COLUMNS)
    require(listing, root)
    return listing


def plan_takeover(session: Session, request: Request, question: Question, *, dry_run: bool = False) -> Failover:
    """Every guest's point, or why there is none. Raises `RoleError` when nothing may be taken over, which a dry run
    only tells, and `ConfigError` for what does not exist."""
    refused = permitted(question)
    if refused and not dry_run:
        evidence = "".join(f"; {line}" for line in refused.evidence)
        raise RoleError(f"{refused.object} {refused.message}{evidence}", hint=refused.resolve)
    begun = time.monotonic()
    listing = list_replicas(session, root_of(session, request.root))
    found = inventory(session)
    everyone = guest_points(listing)
    vmids = request.guests or tuple(sorted(everyone.vmids))
    if unknown := [vmid for vmid in vmids if vmid not in set(everyone.vmids)]:
        there = ", ".join(map(str, sorted(everyone.vmids))) or "none"
        raise ConfigError([f"no point of guest {vmid} lies here" for vmid in unknown], hint=f"guests here: {there}")
    takings = tuple(_planned(session, request, found, listing, vmid) for vmid in vmids)
    return Failover(source=question.source, guests=takings, refused=refused, dry_run=dry_run, begun=begun)


def take_over(session: Session, found: Failover, question: Question, *, start: bool) -> Iterator[Taking]:
    """Make the guests, and start them when all are made; each as it comes to its end, well or not."""
    ready = []
    for taking in found.guests:
        if taking.good and not taking.there:
            _take(session, taking, question)
            taking.seconds = time.monotonic() - found.begun
        if start and taking.good and not _is_template(taking):
            ready.append(taking)
        else:
            yield taking
    yield from _started(session, ready, found.begun)


def _planned(session: Session, request: Request, found: Inventory, listing: Listing, vmid: Vmid) -> Taking:
    points = points_of(listing, vmid)
    taken = takeovers(listing).get(vmid)
    taking = Taking(vmid=vmid, replicas=replicas_of(points))
    try:
        if conflict := already(vmid, taken, session.node):
            taking.conflicts = (conflict,)
            return taking
        at = taken.point if taken else request.at
        choice = choose_sound(points, at, session.timezone, now=session.now().timestamp())
        if isinstance(choice, Conflict):
            taking.conflicts = (choice,)
            return taking
        chosen = choice.point
        taking.choice, taking.age = choice, int(session.now().timestamp()) - chosen.creation
        if locked := locked_disks(chosen, listing):
            taking.conflicts = (locked,)
            return taking
        origin = origin_of(session.hosts[SOURCE], listing, chosen)
        taking.prepared = plan_of(session, found, _wish(vmid, request), origin)
        if taken and not _unfinished(taking.prepared) and (guest := _there(found, taken)):
            taking.there = guest
            taking.notes = (f"was taken over at {taken.since}, from point {taken.point}",)
            return taking
        taking.conflicts = taking.prepared.plan.conflicts
        taking.notes = taking.prepared.plan.notes
    except BackupError as error:
        taking.error = error
    return taking


def _wish(vmid: Vmid, request: Request) -> Wish:
    return Wish(vmid=vmid, new=vmid, storages=request.storages, clones=True)


def _unfinished(prepared: Prepared) -> bool:
    return any(volume.work == prepared.plan.work for volume in prepared.state.work.volumes.values())


def _there(found: Inventory, taken: Takeover) -> Guest | None:
    """The guest, when all its disks are those of the point it was taken over from: an earlier try came to its end."""
    guest = next((guest for guest in found.guests if guest.vmid == taken.vmid), None)
    names = [disk.dataset for disk in guest.disks if disk.dataset] if guest else []
    volumes = [found.listing.volumes[name] for name in names if name in found.listing.volumes]
    made = [volume for volume in volumes if volume.restored.startswith(f"{taken.point},")]
    return guest if guest and made and len(made) == len(names) else None


def _take(session: Session, taking: Taking, question: Question) -> None:
    """Hold, mark, make. What goes wrong is this guest's alone; the mark stays, for half a guest is here."""
    assert taking.point is not None
    host, snapshots, prepared = session.hosts[SOURCE], tuple(taking.point.snapshots.values()), _prepared(taking)
    try:
        check_writable(session.pve_root)  # before the mark: it makes the source stop
        zfs.hold(host, HOLD, snapshots)
        mark = mark_text(session.now(), session.node, taking.point.id, question.reason)
        zfs.set_properties(host, taking.replicas, {FAILOVER: mark})
        _read_back(session, taking)
        done = carry_out(session, prepared, Near(session=session, work=prepared.plan.work))
        taking.notes, taking.moved, taking.done = done.notes, done.moved, True
    except BackupError as error:
        taking.error = error


def _read_back(session: Session, taking: Taking) -> None:
    found = list_host(session.hosts[SOURCE], taking.replicas, depth=0, columns=SOURCE_COLUMNS)
    lacking = [name for name in taking.replicas if name not in found.volumes or not found.volumes[name].failover]
    if lacking:
        raise VerificationError(f"{', '.join(lacking)}: the mark did not take: the source would go on sending")


def _started(session: Session, takings: Sequence[Taking], begun: float) -> Iterator[Taking]:
    """In Proxmox's order, with its waits in between."""
    ready = {taking.vmid: taking for taking in takings}
    texts = {vmid: _setting(taking, "startup") for vmid, taking in ready.items()}
    for vmid, wait in starting_order(texts):
        taking = ready[vmid]
        if taking.there and taking.there.running:
            taking.started = True
            yield taking
            continue
        kind = taking.there.kind if taking.there else _prepared(taking).plan.origin.kind
        try:
            session.runner.run(("qm" if kind is GuestKind.VM else "pct", "start", str(vmid)), timeout=600)
        except BackupError as error:
            taking.error = error
            yield taking
            continue
        taking.started, taking.seconds = True, time.monotonic() - begun
        yield taking
        time.sleep(wait)


def _prepared(taking: Taking) -> Prepared:
    assert taking.prepared is not None
    return taking.prepared


def _is_template(taking: Taking) -> bool:
    """Proxmox starts none."""
    return _setting(taking, "template") == "1"


def _setting(taking: Taking, key: str) -> str:
    return settings(_prepared(taking).plan.origin.texts["conf"]).get(key, "") if taking.prepared else ""


def how(disk: DiskRestore) -> str:
    """What a disk becomes of its replica."""
    return "clone" if cloned(disk.snapshot, disk.dataset) else "copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """Brings a disk from its replica on this host: a clone in the same pool, a copy in another."""

    session: Session
    work: str

    def __call__(self, disk: DiskRestore) -> int:
        host = self.session.hosts[SOURCE]
        if cloned(disk.snapshot, disk.staging):
            there = look(self.session, disk.staging)
            inplace = disk.staging == disk.dataset
            if there is None:
                mark = {f"{PROPERTY}restore": self.work} if inplace else {}
                restoring.clone(host, disk.snapshot, disk.staging, mark)
            elif inplace and there.work != self.work:
                raise VerificationError(f"{disk.dataset} was made by somebody else meanwhile: it is left alone")
            return 0
        moved = Pull(session=self.session, origin=SOURCE)(disk)
        volume = look(self.session, disk.staging)
        own = [s for s in volume.snapshots if s.guid == disk.snapshot.guid] if volume else []
        zfs.hold(host, HOLD, own)  # before it has its place: `failback` starts from it
        return moved
