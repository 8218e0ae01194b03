"""The prune stage: history by policy on the source and on every target that answers."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from pve_zfsbackup.app.cost import costs
from pve_zfsbackup.app.gather import Assignment, Inventory, first_listing, target_listings
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.lock import being_read
from pve_zfsbackup.model import SOURCE, Dataset, Destroy, DestroyBookmark, Keep, Plan, Snapshot, Vmid, World
from pve_zfsbackup.plan.prune import PrunePlan, PrunePolicy, plan_prune, survey
from pve_zfsbackup.plan.takeover import takeovers

STAGE = "prune"
SHOWN = 2  # guests named where all have the same trouble
AT_ONCE = 4  # guests: each destroy waits for the pool, and they can wait for the same transaction group


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What prune decided about one guest."""

    item: Assignment
    plan: PrunePlan
    fault: Exception | None = None  # nothing could be decided


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
    threads, waiting = ThreadPoolExecutor(AT_ONCE), False
    try:
        able = (pruning for pruning in work.guests if pruning.fault is None)
        for results in threads.map(lambda pruning: _unless_read(session, pruning), able):
            waiting = waiting or results is None
            yield from results or ()
    finally:
        threads.shutdown(cancel_futures=True)
    if waiting:
        told = "the rest is left to the next run: a restore is at work, and what it reads must stay"
        yield Result(stage=STAGE, outcome=Outcome.SKIPPED, message=told)
    yield from swept(session, work)
    yield from work.silent
    if ahead := [pruning.item.guest.vmid for pruning in work.guests if pruning.plan.ahead]:
        yield _waiting(ahead)


def swept(session: Session, work: PruneWork, *, dry: bool = False) -> Iterator[Result]:
    """Interrupted receives with which nobody will go on; `dry`: as it would be told, and nothing is remembered."""
    if any(volume.resume for host in work.world.keys() - {SOURCE} for volume in work.world[host].volumes.values()):
        from pve_zfsbackup.app.leftovers import sweep  # noqa: PLC0415 - only for this, and takes time to load

        yield from sweep(session, work.world, STAGE, dry=dry)


def _unless_read(session: Session, pruning: Pruning) -> list[Result] | None:
    return None if being_read(session.config.runtime_dir) else list(_one(session, pruning))


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


def _one(session: Session, pruning: Pruning) -> Generator[Result, None, None]:
    """Each host for itself: what one refuses the others do not wait for."""
    guest = pruning.item.guest
    started = time.monotonic()
    steps = [step for step in pruning.plan.plan.steps if isinstance(step, Destroy | DestroyBookmark)]
    destroyed = [step for step in steps if isinstance(step, Destroy)]
    trouble = []
    for host, own in groupby(steps, key=lambda step: step.host if isinstance(step, Destroy) else SOURCE):
        try:
            session.executor.execute(list(own))
        except Exception as error:  # also a bug of ours is this guest's alone
            trouble.append(failed(STAGE, error, guest=guest, host="" if host == SOURCE else host))
    if trouble:
        yield from trouble
        return
    kept = Counter(verdict.host for verdict in pruning.plan.verdicts if verdict.keep)
    told = ", ".join(f"{count} on {host}" for host, count in kept.items()) or "none"
    yield Result(
        stage=STAGE,
        outcome=Outcome.OK if steps else Outcome.SKIPPED,
        vmid=guest.vmid,
        guest=guest.name,
        message=f"{len(destroyed)} snapshots destroyed, points kept: {told}",
        seconds=time.monotonic() - started,
        details=pruning.plan.plan.warnings,
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
