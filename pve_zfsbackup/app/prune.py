"""The prune stage: history by policy on the source and on every target that answers."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pve_zfsbackup.app.cost import costs
from pve_zfsbackup.app.gather import Assignment, Inventory, first_listing, target_listings
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import HostUnreachableError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.execute import undestroyed
from pve_zfsbackup.host.destroying import AT_ONCE
from pve_zfsbackup.host.lock import being_read
from pve_zfsbackup.model import SOURCE, Dataset, Destroy, DestroyBookmark, Keep, Plan, Snapshot, Vmid, World
from pve_zfsbackup.plan.prune import PrunePlan, PrunePolicy, plan_prune, survey
from pve_zfsbackup.plan.takeover import takeovers

STAGE = "prune"
SHOWN = 2  # guests named where all have the same trouble
SIDE_BY_SIDE = 4  # groups of guests: each waits for the pool, and they can wait for the same transaction group


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What prune decided about one guest."""

    item: Assignment
    plan: PrunePlan
    fault: Exception | None = None  # nothing could be decided

    @property
    def going(self) -> list[Destroy]:
        """The snapshots that are not kept, on any host."""
        return [step for step in self.plan.plan.steps if isinstance(step, Destroy)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneWork:
    """All guests; what could not be asked, or not be decided; and the listings it was decided by."""

    guests: tuple[Pruning, ...]
    silent: tuple[Result, ...]
    world: World


def plan_all(session: Session, found: Inventory, items: Sequence[Assignment]) -> PruneWork:
    """Decide for every guest, with one listing per target."""
    names = [name for name in session.config.targets if any(name in item.targets for item in items)]
    listings, errors = target_listings(session, names, lambda _, name: first_listing(session, found, name))
    world = {SOURCE: found.listing, **listings}
    guests = decide(session, world, items, silent=frozenset(errors))
    silent = [failed(STAGE, error, host=name) for name, error in errors.items()]
    silent += [failed(STAGE, one.fault, guest=one.item.guest) for one in guests if one.fault]
    return PruneWork(guests=guests, silent=tuple(silent), world=world)


def decide(
    session: Session, world: World, items: Sequence[Assignment], *, silent: frozenset[str]
) -> tuple[Pruning, ...]:
    """Verdicts and steps for every guest in this world; `silent` are targets that did not answer."""
    seen = survey(world)
    now = int(session.now().timestamp())
    append_only = frozenset(name for name, target in session.config.targets.items() if target.append_only)
    boxes = frozenset(session.config.boxes)
    elsewhere = {host: takeovers(world[host]) for host in sorted(world.keys() - {SOURCE})}
    guests = []
    for item in items:
        vmid = item.guest.vmid
        still = [f"taken over by {found[vmid].host}" for found in elsewhere.values() if vmid in found]
        # Its snapshots may be there all the same: half a point would pass for whole without them, and age others out.
        still += [f"{disk.key} is not seen here: {disk.reason}" for disk in item.guest.disks if disk.lost]
        keep: dict[str, Sequence[Keep]] = {SOURCE: [job.keep for job in item.jobs]}
        keep |= {name: [session.config.targets[name].keep] for name in item.targets if name in world}
        policy = PrunePolicy(
            keep=keep,
            silent=silent & item.targets.keys(),
            unasked=item.unasked,
            boxes=boxes,
            append_only=append_only,
            still="; ".join(still),
        )
        try:
            decided = plan_prune(item.guest.vmid, seen, policy, tz=session.timezone, now=now)
            guests.append(Pruning(item=item, plan=decided))
        except Exception as error:  # also a bug of ours is this guest's alone
            nothing = Plan(warnings=(f"nothing can be decided: {error}",))
            guests.append(Pruning(item=item, plan=PrunePlan(verdicts=(), plan=nothing), fault=error))
    return tuple(guests)


def prune(session: Session, work: PruneWork) -> Generator[Result, None, None]:
    """Carry it out, some guests at a time; who ends it early waits for those under way. While a restore is at work
    nothing goes: the point that it reads for hours may be the next."""
    threads, waiting = ThreadPoolExecutor(SIDE_BY_SIDE), False
    try:
        able = (pruning for pruning in work.guests if pruning.fault is None)
        for results in threads.map(lambda some: _unless_read(session, some), _groups(able)):
            waiting = waiting or results is None
            yield from results or ()
    finally:
        threads.shutdown(cancel_futures=True)
    if waiting:
        told = "the rest is left to the next run: a restore is at work, and what it reads must stay"
        yield Result(stage=STAGE, outcome=Outcome.SKIPPED, message=told)
    yield from swept(session, work.world)
    yield from work.silent
    if ahead := [pruning.item.guest.vmid for pruning in work.guests if pruning.plan.ahead]:
        yield _waiting(ahead)


def _groups(able: Iterable[Pruning]) -> Iterator[list[Pruning]]:
    """Guests of which as many snapshots go as go together: every command waits for a transaction group of the pool, or
    for the way to a target."""
    some: list[Pruning] = []
    count = 0
    for pruning in able:
        own = len(pruning.going)
        if some and count + own > AT_ONCE:
            yield some
            some, count = [], 0
        some.append(pruning)
        count += own
    if some:
        yield some


def swept(session: Session, world: World, *, dry: bool = False) -> Iterator[Result]:
    """Interrupted receives with which nobody will go on; `dry`: as it would be told, and nothing is remembered."""
    if any(volume.resume for host in world.keys() - {SOURCE} for volume in world[host].volumes.values()):
        from pve_zfsbackup.app.leftovers import sweep  # noqa: PLC0415 - only for this, and takes time to load

        yield from sweep(session, world, STAGE, dry=dry)


def _unless_read(session: Session, some: Sequence[Pruning]) -> list[Result] | None:
    return None if being_read(session.config.runtime_dir) else list(_together(session, some))


def _waiting(ahead: Sequence[Vmid]) -> Result:
    """Told once for all guests: it is one clock that is, or was, wrong."""
    more = f" and {len(ahead) - SHOWN} more" if len(ahead) > SHOWN else ""
    guests = ", ".join(str(vmid) for vmid in ahead[:SHOWN])
    return Result(
        stage=STAGE,
        outcome=Outcome.WARNING,
        message=f"the newest points of {guests}{more} are from the future: nothing of theirs is pruned until then",
        hint="is the clock right? `timedatectl` tells; if it is, it was wrong when they were made: see `list`",
        alarm=True,
    )


def _together(session: Session, some: Sequence[Pruning]) -> Iterator[Result]:
    """Each host for itself: what one refuses the others do not wait for. Nor does one guest for another."""
    started = time.monotonic()
    trouble: dict[Vmid, list[Result]] = defaultdict(list)
    for host in dict.fromkeys([SOURCE, *(step.host for pruning in some for step in pruning.going)]):
        stay = _destroyed(session, host, some)
        for pruning in some:
            error = stay.get(pruning.item.guest.vmid) or (_forgotten(session, pruning) if host == SOURCE else None)
            if error:
                told = failed(STAGE, error, guest=pruning.item.guest, host="" if host == SOURCE else host)
                trouble[pruning.item.guest.vmid].append(told)
    seconds = (time.monotonic() - started) / len(some)
    for pruning in some:
        yield from trouble.get(pruning.item.guest.vmid) or [_told(pruning, seconds)]


def _destroyed(session: Session, host: str, some: Sequence[Pruning]) -> dict[Vmid, Exception]:
    """Why snapshots of which guests stay on this host. What goes wrong with all at once is tried for each alone."""
    going = {one.item.guest.vmid: [step.snapshot for step in one.going if step.host == host] for one in some}
    owners = {snapshot.full_name: vmid for vmid, own in going.items() for snapshot in own}
    if not owners:
        return {}
    try:
        stay = session.executor.destroy(host, [snapshot for own in going.values() for snapshot in own])
    except Exception as error:  # also a bug of ours is the one guest's alone whose snapshots it is about
        if len(some) == 1 or isinstance(error, HostUnreachableError):
            return dict.fromkeys(owners.values(), error)
        return {vmid: told for one in some for vmid, told in _destroyed(session, host, [one]).items()}
    trouble: dict[Vmid, list[tuple[Snapshot, Exception]]] = defaultdict(list)
    for snapshot, why in stay:
        trouble[owners[snapshot.full_name]].append((snapshot, why))
    return {vmid: undestroyed(own) for vmid, own in trouble.items()}


def _forgotten(session: Session, pruning: Pruning) -> Exception | None:
    """Destroy the bookmarks nothing needs any more; returns why they stay."""
    try:
        session.executor.execute([step for step in pruning.plan.plan.steps if isinstance(step, DestroyBookmark)])
    except Exception as error:  # the same
        return error
    return None


def _told(pruning: Pruning, seconds: float) -> Result:
    guest, plan = pruning.item.guest, pruning.plan
    kept = Counter(verdict.host for verdict in plan.verdicts if verdict.keep)
    told = ", ".join(f"{count} on {host}" for host, count in kept.items()) or "none"
    return Result(
        stage=STAGE,
        outcome=Outcome.OK if plan.plan.steps else Outcome.SKIPPED,
        vmid=guest.vmid,
        guest=guest.name,
        message=f"{len(pruning.going)} snapshots destroyed, points kept: {told}",
        seconds=seconds,
        details=plan.plan.warnings,
    )


def freed(session: Session, work: PruneWork) -> dict[str, int | None]:
    """Bytes that pruning would free, by host; None where a host does not say. Exact for each dataset."""
    sets: dict[tuple[str, Dataset], list[Snapshot]] = defaultdict(list)
    for step in (step for pruning in work.guests for step in pruning.plan.plan.steps):
        if isinstance(step, Destroy):
            sets[step.host, step.snapshot.dataset].append(step.snapshot)
    counts = costs(session, work.world, sets)
    totals: dict[str, int | None] = {}
    for (host, _), count in counts.items():
        before = totals.get(host, 0)
        totals[host] = None if count is None or before is None else before + count
    return totals
