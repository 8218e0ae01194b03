"""The prune stage: history by policy on the source and on every target that answers."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import groupby

from pve_zfsbackup.app.gather import Assignment, Inventory, target_listings
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import zfs
from pve_zfsbackup.model import SOURCE, Dataset, Destroy, DestroyBookmark, Keep, Snapshot, World
from pve_zfsbackup.plan.prune import PrunePlan, PrunePolicy, plan_prune, survey

STAGE = "prune"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What prune decided about one guest. `freed` are bytes by host, empty unless they were asked for."""

    item: Assignment
    plan: PrunePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneWork:
    """All guests, and the targets that could not be asked."""

    guests: tuple[Pruning, ...]
    silent: tuple[Result, ...]


def plan_all(session: Session, found: Inventory, items: Sequence[Assignment]) -> PruneWork:
    """Decide for every guest, with one listing per target."""
    names = [name for name in session.config.targets if any(name in item.targets for item in items)]
    listings, errors = target_listings(session, names)
    guests = decide(session, {SOURCE: found.listing, **listings}, items, silent=frozenset(errors))
    return PruneWork(guests=guests, silent=tuple(failed(STAGE, error, host=name) for name, error in errors.items()))


def decide(
    session: Session, world: World, items: Sequence[Assignment], *, silent: frozenset[str]
) -> tuple[Pruning, ...]:
    """Verdicts and steps for every guest in this world; `silent` are targets that did not answer."""
    seen = survey(world)
    now = int(session.now().timestamp())
    append_only = frozenset(name for name, target in session.config.targets.items() if target.append_only)
    boxes = frozenset(session.config.boxes)
    guests = []
    for item in items:
        keep: dict[str, Sequence[Keep]] = {SOURCE: [job.keep for job in item.jobs]}
        keep |= {name: [session.config.targets[name].keep] for name in item.targets if name in world}
        policy = PrunePolicy(
            keep=keep, silent=silent & item.targets.keys(), unasked=item.unasked, boxes=boxes, append_only=append_only
        )
        decided = plan_prune(item.guest.vmid, seen, policy, tz=session.timezone, now=now)
        guests.append(Pruning(item=item, plan=decided))
    return tuple(guests)


def prune(session: Session, work: PruneWork) -> Generator[Result, None, None]:
    """Carry it out, guest by guest."""
    for pruning in work.guests:
        yield from _one(session, pruning)
    yield from work.silent


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


def freed(session: Session, pruning: Pruning) -> dict[str, int]:
    """Bytes that pruning this guest would free, by host: exact for each dataset (`zfs destroy -nvp`)."""
    groups: dict[tuple[str, Dataset], list[Snapshot]] = defaultdict(list)
    for step in pruning.plan.plan.steps:
        if isinstance(step, Destroy):
            groups[step.host, step.snapshot.dataset].append(step.snapshot)
    bytes_by_host: dict[str, int] = defaultdict(int)
    for (host, _), snapshots in groups.items():
        bytes_by_host[host] += zfs.freed(session.hosts[host], snapshots)
    return dict(bytes_by_host)
