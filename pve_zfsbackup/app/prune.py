"""The prune stage: history by policy on the source and on every target that answers."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from pve_zfsbackup.app.cost import costs
from pve_zfsbackup.app.gather import Assignment, Inventory, first_listing, target_listings
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import HostUnreachableError, InterruptedRunError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.execute import undestroyed
from pve_zfsbackup.host.destroying import AT_ONCE
from pve_zfsbackup.host.lock import being_read
from pve_zfsbackup.model import SOURCE, Bookmark, Dataset, Destroy, DestroyBookmark, Keep, Plan, Snapshot, Vmid, World
from pve_zfsbackup.plan.prune import PrunePlan, PrunePolicy, plan_prune, survey
from pve_zfsbackup.plan.takeover import takeovers

STAGE = "prune"
SHOWN = 2  # guests named where all have the same trouble
FEW = 16  # snapshots that are not worth a group of their own
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

    def going_on(self, host: str) -> list[Snapshot]:
        return [step.snapshot for step in self.going if step.host == host]

    @property
    def stale(self) -> list[Bookmark]:
        """The bookmarks here that nothing needs any more."""
        return [step.bookmark for step in self.plan.plan.steps if isinstance(step, DestroyBookmark)]


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
    """Carry it out, some guests at a time; who ends it early waits for the commands under way. While a restore is at
    work nothing goes: the point that it reads for hours may be the next."""
    ended, waiting = threading.Event(), False

    def halted() -> bool:
        return ended.is_set() or being_read(session.config.runtime_dir)

    threads = ThreadPoolExecutor(SIDE_BY_SIDE)
    try:
        groups = _groups([pruning for pruning in work.guests if pruning.fault is None])
        for whole, results in threads.map(lambda some: _together(session, some, halted), groups):
            waiting = waiting or not whole
            yield from results
    except BaseException:
        ended.set()
        session.runner.cancel()  # leaving waits for the threads, and a pool that hangs would let them wait for minutes
        raise
    finally:
        threads.shutdown(cancel_futures=True)
    if waiting:
        told = "the rest is left to the next run: a restore is at work, and what it reads must stay"
        yield Result(stage=STAGE, outcome=Outcome.SKIPPED, message=told)
    yield from swept(session, work.world)
    yield from work.silent
    if ahead := [pruning.item.guest.vmid for pruning in work.guests if pruning.plan.ahead]:
        yield _waiting(ahead)


def _groups(able: Sequence[Pruning]) -> Iterator[list[Pruning]]:
    """Guests of which as much goes as goes together: every command waits for a transaction group of the pool, or for
    the way to a target. Where there is enough for all, as many groups as can be at work."""
    sizes = [len(pruning.going) + len(pruning.stale) for pruning in able]
    most = min(AT_ONCE, max(FEW, -(-sum(sizes) // SIDE_BY_SIDE)))
    some: list[Pruning] = []
    count = 0
    for pruning, size in zip(able, sizes, strict=True):
        if some and count + size > most:
            yield some
            some, count = [], 0
        some.append(pruning)
        count += size
    if some:
        yield some


def swept(session: Session, world: World, *, dry: bool = False) -> Iterator[Result]:
    """Interrupted receives with which nobody will go on; `dry`: as it would be told, and nothing is remembered."""
    if any(volume.resume for host in world.keys() - {SOURCE} for volume in world[host].volumes.values()):
        from pve_zfsbackup.app.leftovers import sweep  # noqa: PLC0415 - only for this, and takes time to load

        yield from sweep(session, world, STAGE, dry=dry)


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


def _together(session: Session, some: Sequence[Pruning], halted: Callable[[], bool]) -> tuple[bool, list[Result]]:
    """Each host for itself: what one refuses the others do not wait for. Nor does one guest for another. Whether all
    was tried, and what came of it."""
    started = time.monotonic()
    trouble: dict[Vmid, list[Result]] = defaultdict(list)
    hosts = list(dict.fromkeys([SOURCE, *(step.host for pruning in some for step in pruning.going)]))
    done: set[str] = set()
    for host in hosts:
        if halted():
            break
        stay = _each([one for one in some if one.going_on(host)], partial(_destroyed, session, host))
        if host == SOURCE:
            marked = [one for one in some if one.stale and one.item.guest.vmid not in stay]
            stay |= _each(marked, partial(_forgotten, session))
        for vmid, error in stay.items():
            (guest,) = (one.item.guest for one in some if one.item.guest.vmid == vmid)
            trouble[vmid].append(failed(STAGE, error, guest=guest, host="" if host == SOURCE else host))
        done.add(host)
    seconds = (time.monotonic() - started) / len(some)
    results = []
    for one in some if done else ():
        results += trouble.get(one.item.guest.vmid) or [_told(one, done, seconds)]
    return len(done) == len(hosts), results


def _each(
    some: Sequence[Pruning], do: Callable[[Sequence[Pruning]], dict[Vmid, Exception]]
) -> dict[Vmid, Exception]:
    """Do it for all of them, and what goes wrong with all at once for each alone; why it is not done for whom. A host
    that is away is not asked for every guest."""
    if not some:
        return {}
    try:
        return do(some)
    except InterruptedRunError:
        raise
    except Exception as error:  # also a bug of ours is the one guest's alone that it is about
        if len(some) == 1:
            return {some[0].item.guest.vmid: error}
    stay: dict[Vmid, Exception] = {}
    away: Exception | None = None
    for one in some:
        alone = {one.item.guest.vmid: away} if away else _each([one], do)
        away = next((error for error in alone.values() if isinstance(error, HostUnreachableError)), away)
        stay |= alone
    return stay


def _destroyed(session: Session, host: str, some: Sequence[Pruning]) -> dict[Vmid, Exception]:
    """Destroy what goes of these guests on one host; why snapshots of whom stay. Raises as `destroying.destroy`."""
    owners = {snapshot.full_name: one.item.guest.vmid for one in some for snapshot in one.going_on(host)}
    trouble: dict[Vmid, list[tuple[Snapshot, Exception]]] = defaultdict(list)
    for snapshot, why in session.executor.destroy(host, [snapshot for one in some for snapshot in one.going_on(host)]):
        trouble[owners[snapshot.full_name]].append((snapshot, why))
    return {vmid: undestroyed(own) for vmid, own in trouble.items()}


def _forgotten(session: Session, some: Sequence[Pruning]) -> dict[Vmid, Exception]:
    """Destroy the bookmarks of these guests that nothing needs any more; why one of whom stays."""
    owners = {bookmark.full_name: one.item.guest.vmid for one in some for bookmark in one.stale}
    left = session.executor.forget([bookmark for one in some for bookmark in one.stale])
    return {owners[bookmark.full_name]: error for bookmark, error in left}


def _told(pruning: Pruning, done: Container[str], seconds: float) -> Result:
    guest, plan = pruning.item.guest, pruning.plan
    destroyed = sum(step.host in done for step in pruning.going)
    kept = Counter(verdict.host for verdict in plan.verdicts if verdict.keep)
    told = ", ".join(f"{count} on {host}" for host, count in kept.items()) or "none"
    return Result(
        stage=STAGE,
        outcome=Outcome.OK if plan.plan.steps else Outcome.SKIPPED,
        vmid=guest.vmid,
        guest=guest.name,
        message=f"{destroyed} snapshots destroyed, points kept: {told}",
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
