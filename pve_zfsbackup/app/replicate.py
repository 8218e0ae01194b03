"""The replicate stage: every disk's newest point to each of its targets."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

from pve_zfsbackup.app.gather import Assignment, Inventory, replication_policy, target_listing
from pve_zfsbackup.app.outcome import blocked, failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import VerificationError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.model import (
    CreateBookmark,
    Dataset,
    DestroyBookmark,
    Disk,
    Guest,
    Guid,
    Hold,
    Listing,
    Mark,
    Plan,
    Release,
    Resume,
    Send,
)
from pve_zfsbackup.plan.replication import ReplicationPolicy, Sides, compare, phases, plan_replication

STAGE = "replicate"
# One command for all disks of a guest where ZFS allows it. An old bookmark goes before a new one of its name.
_FINISH = (Mark, Hold, Release, DestroyBookmark, CreateBookmark)


@dataclass(slots=True, kw_only=True)
class _Work:
    """One guest on its way to one target. `faults` are those of single disks: the others go on."""

    guest: Guest
    plans: dict[Dataset, Plan] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    faults: dict[Dataset, Exception] = field(default_factory=dict)
    pending: int = 0
    moved: int = 0
    started: float = field(default_factory=time.monotonic)


def replicate(session: Session, found: Inventory, items: Iterable[Assignment]) -> Generator[Result, None, None]:
    """Bring the points to every target. A target that does not answer fails alone."""
    items = list(items)
    for target in session.config.targets:
        guests = [item.targets[target] for item in items if target in item.targets]
        if not guests:
            continue
        try:
            yield from _to_target(session, found, guests, target_listing(session, target))
        except Exception as error:  # also a bug of ours is this target's alone
            yield failed(STAGE, error, host=target)


def plan_target(session: Session, found: Inventory, guests: Sequence[Guest], listing: Listing) -> list[_Work]:
    """What would be done on one target, guest by guest."""
    sides = compare(found.listing, listing)
    policy = replication_policy(session, listing.host)
    return [_planned(guest, sides, policy) for guest in guests]


def _planned(guest: Guest, sides: Sides, policy: ReplicationPolicy) -> _Work:
    work = _Work(guest=guest)
    for disk in guest.protected_disks:
        try:
            plan = plan_replication(disk, sides, policy)
        except Exception as error:
            work.results.append(failed(STAGE, error, guest=guest, host=policy.host))
            continue
        work.plans[_dataset(disk)] = plan
        work.results += [blocked(STAGE, c, guest=guest, host=policy.host) for c in plan.conflicts]
        work.results += [
            _result(work, policy.host, Outcome.WARNING, f"{disk.key}: {warning}") for warning in plan.warnings
        ]
    return work


def _to_target(session: Session, found: Inventory, guests: Sequence[Guest], listing: Listing) -> Iterator[Result]:
    target = listing.host
    works = plan_target(session, found, guests, listing)
    parents = [step for work in works for plan in work.plans.values() for step in phases(plan)[0]]
    session.executor.execute(list(dict.fromkeys(parents)))
    with ThreadPoolExecutor(session.config.targets[target].parallel) as threads:
        try:
            for work in _transferred(session, works, threads):
                _finish(session, work, target)
                yield from work.results
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            session.runner.cancel()  # leaving the block waits for the threads, and a stream may take hours
            raise


def _transferred(session: Session, works: Sequence[_Work], threads: ThreadPoolExecutor) -> Iterator[_Work]:
    """Send disks in parallel; each guest comes out as soon as its last disk has arrived or failed."""
    futures: dict[Future[int], tuple[_Work, Dataset]] = {}
    for work in works:
        for dataset, plan in work.plans.items():
            _, streams, _ = phases(plan)
            if streams:
                work.pending += 1
                futures[threads.submit(session.executor.execute, streams)] = (work, dataset)
    yield from (work for work in works if not work.pending)
    for future in as_completed(futures):
        work, dataset = futures[future]
        try:
            work.moved += future.result()
        except Exception as error:
            work.faults[dataset] = error
        work.pending -= 1
        if not work.pending:
            yield work


def _finish(session: Session, work: _Work, target: str) -> None:
    """Read back what arrived, then make it a point there: properties, hold, bookmark. Report the guest."""
    try:
        _verify(session, work, target)
        alive = [phases(plan)[2] for dataset, plan in work.plans.items() if dataset not in work.faults]
        small = sorted((step for steps in alive for step in steps), key=lambda step: _FINISH.index(type(step)))
        session.executor.execute(small)
    except Exception as error:
        work.results.append(failed(STAGE, error, guest=work.guest, host=target))
        return
    for dataset, fault in work.faults.items():  # `zfs` does not always say which disk it speaks of
        told = failed(STAGE, fault, guest=work.guest, host=target)
        work.results.append(replace(told, message=f"{dataset}: {told.message}"))
    if not any(result.outcome is Outcome.FAILED for result in work.results):
        sent = sum(isinstance(step, Send | Resume) for plan in work.plans.values() for step in plan.steps)
        outcome = Outcome.OK if sent or small else Outcome.SKIPPED
        message = f"{sent} streams" if sent else "nothing new"
        work.results.append(_result(work, target, outcome, message))


def _verify(session: Session, work: _Work, target: str) -> None:
    expected: dict[Dataset, set[Guid]] = defaultdict(set)
    origin: dict[Dataset, Dataset] = {}
    for dataset, plan in work.plans.items():
        if dataset in work.faults:
            continue
        for step in plan.steps:
            if isinstance(step, Send | Resume):
                sent = (*step.through, step.snapshot) if isinstance(step, Send) else (step.snapshot,)
                expected[step.dataset] |= {snapshot.guid for snapshot in sent}
                origin[step.dataset] = dataset
    if not expected:
        return
    missing = session.executor.verify(target, {name: frozenset(guids) for name, guids in expected.items()})
    for name, guids in missing.items():
        work.faults[origin[name]] = VerificationError(
            f"{target}: {name} lacks {len(guids)} snapshots that were sent, although every command succeeded",
            hint="the next run plans anew from what is there",
        )


def _dataset(disk: Disk) -> Dataset:
    assert disk.dataset is not None
    return disk.dataset


def _result(work: _Work, target: str, outcome: Outcome, message: str) -> Result:
    newest = [step.source.point for plan in work.plans.values() for step in plan.steps if isinstance(step, Mark)]
    return Result(
        stage=STAGE,
        outcome=outcome,
        vmid=work.guest.vmid,
        guest=work.guest.name,
        host=target,
        message=message,
        point=max((point for point in newest if point), default=""),
        bytes=work.moved,
        seconds=time.monotonic() - work.started,
    )
