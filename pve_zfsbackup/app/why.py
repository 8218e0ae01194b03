"""`why replicate`: the plan a run would make for one guest, with what was weighed. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pve_zfsbackup.app.gather import Inventory, Scope, assign, inventory, target_listings
from pve_zfsbackup.app.prune import PruneWork, plan_all
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.targets import comparison, remarks
from pve_zfsbackup.app.works import STAGE, Work, works_to
from pve_zfsbackup.errors import BackupError, ConfigError, ZfsError
from pve_zfsbackup.host import zfs
from pve_zfsbackup.model import SOURCE, Guest, Listing, Reasoning, Resume, Selector, Send
from pve_zfsbackup.plan.unchanged import NO_REFERENCES, references
from pve_zfsbackup.plan.why import explain


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A stream that would be sent; `bytes` as `zfs send -nvP` reckons, None where it cannot."""

    step: Send | Resume
    bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One disk of a guest and one target."""

    guest: Guest
    host: str
    reasoning: Reasoning
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    answers: tuple[Answer, ...]
    errors: Mapping[str, BackupError]
    notes: tuple[str, ...]


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
    for name, listing in listings.items():
        notes += [result.message for result in remarks(session, found, listing, STAGE)]
        answers += _answers(session, found, works_to(name, items), listing)
    return Why(answers=tuple(answers), errors=errors, notes=tuple(notes))


def why_prune(session: Session, guest: Selector) -> PruneWork:
    """The verdicts about all points of the guests meant."""
    found = inventory(session)
    items, _ = assign(session, found, Scope(guests=(guest,)))
    return plan_all(session, found, items)


def _answers(session: Session, found: Inventory, works: Sequence[Work], listing: Listing) -> Iterator[Answer]:
    sides, policy = comparison(session, found, [work.guest for work in works], listing)
    for work in works:
        guest = work.guest
        spared = references(guest.protected_disks, sides, policy) if work.sparing else NO_REFERENCES
        for disk in guest.protected_disks:
            reasoning = explain(disk, sides, policy, spared)
            steps = [step for step in reasoning.plan.steps if isinstance(step, Send | Resume)]
            streams = tuple(Stream(step=step, bytes=_bytes(session, step)) for step in steps)
            yield Answer(guest=guest, host=listing.host, reasoning=reasoning, streams=streams)


def _bytes(session: Session, step: Send | Resume) -> int | None:
    try:
        return zfs.estimate(session.hosts[SOURCE], step)
    except ZfsError:
        return None  # the snapshot went meanwhile, or it will be resumed from what nobody can read yet
