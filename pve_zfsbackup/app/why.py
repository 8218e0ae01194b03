"""`why replicate`: the plan a run would make for one guest, with what was weighed. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pve_zfsbackup.app.gather import Inventory, Scope, assign, inventory, target_listings
from pve_zfsbackup.app.prune import PruneWork, plan_all
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.targets import comparison, older_than_packages, remarks
from pve_zfsbackup.app.wire import ratios_of, wire_to
from pve_zfsbackup.app.works import STAGE, Work, works_to
from pve_zfsbackup.errors import BackupError, ConfigError, ZfsError
from pve_zfsbackup.host import zfs
from pve_zfsbackup.model import SOURCE, Conflict, Guest, Listing, Resume, Selector, Send
from pve_zfsbackup.model.reasons import Fit, Reasoning
from pve_zfsbackup.plan.fitting import crowded_out
from pve_zfsbackup.plan.replication import ReplicationPolicy, Sides
from pve_zfsbackup.plan.unchanged import NO_REFERENCES, references
from pve_zfsbackup.plan.why import explain


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A stream that would be sent, and why as this one stream; `bytes` as `zfs send -nvP` reckons, None where it
    cannot; `wire` whether it is compressed on its way, and why."""

    step: Send | Resume
    bytes: int | None
    manner: str
    wire: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One disk of a guest and one target."""

    guest: Guest
    host: str
    reasoning: Reasoning
    streams: tuple[Stream, ...]

    @property
    def room(self) -> Fit | None:
        """Whether they fit there: by the listing, as a run judges it, and no better than ZFS reckons."""
        fit = self.reasoning.fit
        return fit and replace(fit, needed=max(fit.needed, sum(stream.bytes or 0 for stream in self.streams)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowded:
    """A guest that a target has no room for."""

    guest: Guest
    host: str
    conflict: Conflict


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """`crowded`: what the disks of a guest need together on a target, where each of them alone would have room."""

    answers: tuple[Answer, ...]
    errors: Mapping[str, BackupError]
    notes: tuple[str, ...]
    crowded: tuple[Crowded, ...] = ()


def why_replicate(session: Session, guest: Selector, target: str = "") -> Why:
    """Explain every disk of the guests meant, for each of their targets or for the one named."""
    if target and target not in session.config.targets:
        known = ", ".join(session.config.targets) or "none"
        raise ConfigError([f"no target named {target}"], hint=f"targets: {known}")
    found = inventory(session)
    items, _ = assign(session, found, Scope(guests=(guest,)))
    names = [name for name in session.config.targets if target in ("", name)]
    wanted = [name for name in names if any(name in item.targets for item in items)]
    notes = [f"guest {i.guest.vmid} goes to no such target" for i in items if not set(i.targets) & set(names)]
    listings, errors = target_listings(session, wanted)
    answers: list[Answer] = []
    crowded: list[Crowded] = []
    for name, listing in listings.items():
        notes += [result.message for result in remarks(session, found, listing, STAGE)]
        own, full = _answers(session, found, works_to(name, items), listing)
        answers += own
        crowded += full
    return Why(answers=tuple(answers), errors=errors, notes=tuple(notes), crowded=tuple(crowded))


def why_prune(session: Session, guest: Selector) -> PruneWork:
    """The verdicts about all points of the guests meant."""
    found = inventory(session)
    items, _ = assign(session, found, Scope(guests=(guest,)))
    return plan_all(session, found, items)


def _answers(
    session: Session, found: Inventory, works: Sequence[Work], listing: Listing
) -> tuple[list[Answer], list[Crowded]]:
    """What a run would plan, also where it asks for OpenZFS' versions first, and whether each guest has room there."""
    sides, policy = comparison(session, found, [work.guest for work in works], listing)
    known = [(work, _reasonings(work, sides, policy)) for work in works]
    if any(_packaged(own) for _, own in known) and older_than_packages(session, listing.host):
        policy = replace(policy, minimal=True)
        known = [(work, _reasonings(work, sides, policy)) for work in works]
    told = _on_the_wire(session, listing.host, [reasoning for _, own in known for reasoning in own])
    answers = [
        Answer(guest=work.guest, host=listing.host, reasoning=reasoning, streams=_streams(session, reasoning, told))
        for work, own in known
        for reasoning in own
    ]
    crowded = [
        Crowded(guest=work.guest, host=listing.host, conflict=conflict)
        for work, own in known
        for conflict in crowded_out({work.guest.vmid: [r.plan for r in own]}, sides, policy).values()
    ]
    return answers, crowded


def _reasonings(work: Work, sides: Sides, policy: ReplicationPolicy) -> list[Reasoning]:
    disks = work.guest.protected_disks
    spared = references(disks, sides, policy) if work.sparing else NO_REFERENCES
    return [explain(disk, sides, policy, spared) for disk in disks]


def _packaged(reasonings: Sequence[Reasoning]) -> bool:
    return any(isinstance(step, Send) and step.through for own in reasonings for step in own.plan.steps)


def _on_the_wire(session: Session, target: str, reasonings: Sequence[Reasoning]) -> Callable[[Send | Resume], str]:
    """Whether a stream is compressed on its way there, and why."""
    wire = wire_to(session, target)
    steps = [step for own in reasonings for step in own.plan.steps if isinstance(step, Send | Resume) and not step.raw]
    ratios = ratios_of(session, wire, list(dict.fromkeys(step.snapshot.dataset for step in steps)))
    return lambda step: wire.told(raw=step.raw, ratio=ratios.get(step.snapshot.dataset, 1.0))


def _streams(session: Session, reasoning: Reasoning, told: Callable[[Send | Resume], str]) -> tuple[Stream, ...]:
    steps = [step for step in reasoning.plan.steps if isinstance(step, Send | Resume)]
    pairs = zip(steps, reasoning.manners, strict=True)
    return tuple(
        Stream(step=step, bytes=_bytes(session, step), manner=manner, wire=told(step)) for step, manner in pairs
    )


def _bytes(session: Session, step: Send | Resume) -> int | None:
    try:
        return zfs.estimate(session.hosts[SOURCE], step)
    except ZfsError:
        return None  # the snapshot went meanwhile, or it will be resumed from what nobody can read yet
