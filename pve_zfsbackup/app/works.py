"""One guest on its way to one target: what is planned, what became of it, what is told in the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pve_zfsbackup.app.gather import Assignment, Inventory
from pve_zfsbackup.app.outcome import blocked, failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.targets import comparison, older_than_packages
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.model import Dataset, Disk, Guest, Guid, Listing, Mark, Plan, Send
from pve_zfsbackup.plan.fitting import crowded_out
from pve_zfsbackup.plan.replication import ReplicationPolicy, Sides, plan_replication
from pve_zfsbackup.plan.takeover import conflict_of, takeovers
from pve_zfsbackup.plan.unchanged import NO_REFERENCES, References, references

STAGE = "replicate"


@dataclass(slots=True, kw_only=True)
class Work:
    """`plans` are those of the attempt under way. A disk in `faults` is given up, one in `broken` is tried again;
    the others go on. `error` is that of the guest as a whole."""

    guest: Guest
    host: str
    sparing: bool = False  # `skip-unchanged`
    plans: dict[Dataset, Plan] = field(default_factory=dict)
    faults: dict[Dataset, Exception] = field(default_factory=dict)
    broken: dict[Dataset, Exception] = field(default_factory=dict)
    parked: set[Dataset] = field(default_factory=set)  # wait for something the target does itself
    gone: bool = False  # one of its disks is being taken away
    error: Exception | None = None
    said: list[Result] = field(default_factory=list)
    point: str = ""
    pending: int = 0  # disks on their way
    spared: int = 0  # disks with nothing new in them
    streams: int = 0  # that arrived
    read: dict[Dataset, frozenset[Guid]] = field(default_factory=dict)  # of replicas, as their sessions saw them
    changed: bool = False
    moved: int = 0
    started: float = field(default_factory=time.monotonic)

    def blame(self, dataset: Dataset, error: Exception) -> None:
        """A disk could not be sent: for now, or for good."""
        (self.broken if is_transient(error) else self.faults)[dataset] = error

    def park(self, dataset: Dataset, error: BackupError) -> None:
        """The disk waits for something that the target does itself: somebody is told, because nothing of it is sent."""
        self.parked.add(dataset)
        told = self.result(Outcome.WARNING, f"{dataset}: {error.message}; nothing of it is sent until then", error.hint)
        self.say(replace(told, alarm=True))

    def leave(self, dataset: Dataset, error: BackupError) -> None:
        """The disk is being taken away: no failure of ours, and nothing to try again."""
        self.parked.add(dataset)
        self.gone = True
        self.say(self.result(Outcome.WARNING, f"{dataset}: {error.message}", error.hint))

    @property
    def again(self) -> bool:
        """Whether another attempt may help."""
        return bool(self.broken) or (self.error is not None and is_transient(self.error))

    @property
    def alive(self) -> Iterator[tuple[Dataset, Plan]]:
        return ((name, plan) for name, plan in self.plans.items() if name not in self.given_up)

    @property
    def given_up(self) -> set[Dataset]:
        return {*self.faults, *self.broken, *self.parked}

    def say(self, result: Result) -> None:
        """Once, however often it is planned."""
        if not any((said.outcome, said.message) == (result.outcome, result.message) for said in self.said):
            self.said.append(result)

    def results(self) -> Iterator[Result]:
        """How it ended. A disk's fault names the disk: `zfs` does not always."""
        yield from self.said
        if self.error is not None:
            yield failed(STAGE, self.error, guest=self.guest, host=self.host)
            return
        faults = self.faults | self.broken
        for dataset, fault in faults.items():
            told = failed(STAGE, fault, guest=self.guest, host=self.host)
            yield replace(told, message=f"{dataset}: {told.message}")
        if not faults and not self.parked and not any(result.outcome is Outcome.FAILED for result in self.said):
            outcome = Outcome.OK if self.streams or self.changed else Outcome.SKIPPED
            unchanged = f", {self.spared} disks unchanged" if self.spared else ""
            yield self.result(outcome, f"{_streams(self.streams)}{unchanged}" if self.streams else "nothing new")

    def result(self, outcome: Outcome, message: str, hint: str = "") -> Result:
        return Result(
            stage=STAGE,
            outcome=outcome,
            vmid=self.guest.vmid,
            guest=self.guest.name,
            host=self.host,
            message=message,
            hint=hint,
            point=self.point,
            bytes=self.moved,
            seconds=time.monotonic() - self.started,
        )


def is_transient(error: Exception) -> bool:
    return isinstance(error, BackupError) and error.transient


def works_to(target: str, items: Iterable[Assignment]) -> list[Work]:
    """The guests that go to this target."""
    return [
        Work(guest=item.targets[target], host=target, sparing=item.skips_unchanged(target))
        for item in items
        if target in item.targets
    ]


def plan_target(session: Session, found: Inventory, items: Iterable[Assignment], listing: Listing) -> list[Work]:
    """What would be done on one target, guest by guest."""
    works = works_to(listing.host, items)
    plan_works(session, found, works, listing)
    return works


def plan_works(session: Session, found: Inventory, works: Sequence[Work], listing: Listing) -> None:
    """Plan these guests, again or for the first time, on what the target has now. Disks given up stay so."""
    sides, policy = comparison(session, found, [work.guest for work in works], listing)
    _plan_all(works, sides, policy)
    if any(_packaged(work) for work in works) and older_than_packages(session, listing.host):
        _plan_all(works, sides, replace(policy, minimal=True))
    for vmid, conflict in crowded_out({w.guest.vmid: tuple(w.plans.values()) for w in works}, sides, policy).items():
        work = next(work for work in works if work.guest.vmid == vmid)
        work.plans.clear()
        work.say(blocked(STAGE, conflict, guest=work.guest, host=listing.host))


def _packaged(work: Work) -> bool:
    return any(isinstance(step, Send) and step.through for plan in work.plans.values() for step in plan.steps)


def _plan_all(works: Sequence[Work], sides: Sides, policy: ReplicationPolicy) -> None:
    elsewhere = takeovers(sides.target)
    for work in works:
        work.plans, work.broken, work.error, work.pending = {}, {}, None, 0
        if taken := elsewhere.get(work.guest.vmid):
            conflict = conflict_of(taken, work.guest, policy.host)
            work.say(blocked(STAGE, conflict, guest=work.guest, host=policy.host))
            continue
        spared = references(work.guest.protected_disks, sides, policy) if work.sparing else NO_REFERENCES
        work.spared = len({volume for volumes in spared.values() for volume in volumes})
        for disk in work.guest.protected_disks:
            if _dataset(disk) not in work.given_up:
                _plan(work, disk, (sides, spared), policy)


def _plan(work: Work, disk: Disk, seen: tuple[Sides, References], policy: ReplicationPolicy) -> None:
    sides, spared = seen
    try:
        plan = plan_replication(disk, sides, policy, spared)
    except Exception as error:
        work.say(failed(STAGE, error, guest=work.guest, host=policy.host))
        return
    work.plans[_dataset(disk)] = plan
    marked = (step.source.point for step in plan.steps if isinstance(step, Mark))
    work.point = max((work.point, *(point for point in marked if point)))
    for conflict in plan.conflicts:
        work.say(blocked(STAGE, conflict, guest=work.guest, host=policy.host))
    for warning in plan.warnings:
        told = work.result(Outcome.WARNING, f"{disk.key}: {warning}")
        work.say(replace(told, alarm=warning in plan.alarms))


def _dataset(disk: Disk) -> Dataset:
    assert disk.dataset is not None
    return disk.dataset


def _streams(count: int) -> str:
    return f"{count} stream{'' if count == 1 else 's'}"
