"""How far guests are proven, and what recovery was measured to take and to lose. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pve_zfsbackup.app.history import Coverage, History
from pve_zfsbackup.config import Config
from pve_zfsbackup.host.journal import read_journal
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.health import Verification
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.model.proof import Level, Proven
from pve_zfsbackup.model.runs import PastProof
from pve_zfsbackup.model.stages import BOOT, DRILL, PROOFS, RESTORE
from pve_zfsbackup.plan.past import arrivals, past_proofs, worst_gaps

DAY: Final = 86_400
GRACE: Final = 14  # days: drills that are due come with the weekly cron job, which may fail once
RPO_SECONDS: Final = 7 * DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the journal knows. `rpo`: seconds of work that would have been lost in the worst moment of the last week, by
    guest and place. `rto`: the newest drill and the newest restore of each guest that went well, and its newest coming
    up in a drill (`BOOT`), which is the nearest to having it back."""

    rpo: Mapping[tuple[int, str], float] = field(default_factory=dict)
    rto: Mapping[int, tuple[PastProof, ...]] = field(default_factory=dict)


def measured(config: Config, now: float) -> Recovery:
    """Raises `BackupError` when the journal is there and cannot be read."""
    since = now - RPO_SECONDS
    lines = read_journal(config.journal_dir, since, events=["result"], stages=("snapshot", "replicate", "archive"))
    recent = [arrival for arrival in arrivals(lines) if arrival.at >= since]
    back = now - (config.verify.every + GRACE) * DAY
    proofs = past_proofs(read_journal(config.journal_dir, back, events=["result"], stages=(DRILL, RESTORE)))
    known = [proof for proof in proofs if proof.at <= now + SKEW]
    return Recovery(rpo=worst_gaps(recent, now=now), rto=_durations(known))


def proofs_between(config: Config, since: float, now: float) -> tuple[PastProof, ...]:
    """Every drill, comparison, look into a box, restore, rollback, failover and failback from then to now, oldest
    first. Raises `BackupError` as above."""
    lines = read_journal(config.journal_dir, since, events=["result"], stages=PROOFS)
    return tuple(proof for proof in past_proofs(lines) if since <= proof.at <= now + SKEW)


def _durations(proofs: Sequence[PastProof]) -> dict[int, tuple[PastProof, ...]]:
    newest: dict[tuple[int, str], PastProof] = {}
    for proof in proofs:
        if proof.passed and proof.whole:
            newest[proof.vmid, proof.stage] = proof
            if proof.boot:
                newest[proof.vmid, BOOT] = replace(proof, stage=BOOT, seconds=proof.boot)
    found: dict[int, tuple[PastProof, ...]] = {}
    for (vmid, _), proof in sorted(newest.items()):
        found[vmid] = (*found.get(vmid, ()), proof)
    return found


def drills_begun(found: History) -> bool:
    """Whether anybody drills here: any guest was."""
    return any(True for entry in found.coverage for _ in _drills(found, entry.guest.vmid))


def verification_of(found: History, entry: Coverage, config: Config, *, begun: bool) -> Verification:
    """When a guest's drill passed last, on any host, and when that is too long ago. `begun`: `drills_begun`."""
    vmid = entry.guest.vmid
    last = last_passed(found, vmid)
    drilled = any(True for _ in _drills(found, vmid)) or (begun and _since(found, vmid) < found.now - _period(config))
    if any(host in found.errors for host in found.targets.get(vmid, ())):  # it may have been drilled there
        return Verification(vmid=vmid, guest=entry.guest.name, last=last, limit=None)
    return Verification(vmid=vmid, guest=entry.guest.name, last=last, limit=_limit(entry, config, drilled=drilled))


def _limit(entry: Coverage, config: Config, *, drilled: bool) -> float | None:
    """The strictest of a guest's jobs that say something; where none does, drills that were once begun go on,
    and leave nobody out."""
    said = [within for name in entry.jobs if (within := config.jobs[name].verify_within) is not None]
    if said:
        return min((within * DAY for within in said if within), default=None)
    return _period(config) if drilled else None


def _period(config: Config) -> float:
    """Seconds in which each guest has its turn."""
    return (config.verify.every + GRACE) * DAY


def _since(found: History, vmid: Vmid) -> float:
    """When the oldest point was made that there is of a guest anywhere: it is as old at least."""
    points = (point.creation for host in found.hosts for point in found.points[host].get(vmid, ()))
    boxes = (kept.archived.creation for box in found.archived.values() for kept in box.points.get(vmid, ()))
    return min((*points, *boxes), default=found.now)


def newest_proof(found: History, vmid: Vmid) -> Proven | None:
    """The newest drill on any host, passed or failed; without one, what was read back last in a box; without that, the
    last comparison of the chain on a target. What claims to be from the future proves nothing."""
    for kind in (_drills, _read_back, _chains):
        told = [proven for proven in kind(found, vmid) if proven.at <= found.now + SKEW]
        if told:
            return max(told, key=lambda proven: proven.at)
    return None


def last_passed(found: History, vmid: Vmid) -> Proven | None:
    """The newest drill that passed, on any host."""
    told = (proven for proven in _drills(found, vmid) if proven.passed and proven.at <= found.now + SKEW)
    return max(told, key=lambda proven: proven.at, default=None)


def _drills(found: History, vmid: Vmid) -> Iterator[Proven]:
    return (proven for proven in _on_hosts(found, vmid) if proven.level != Level.POINTS)


def _chains(found: History, vmid: Vmid) -> Iterator[Proven]:
    return (proven for proven in _on_hosts(found, vmid) if proven.level == Level.POINTS)


def _on_hosts(found: History, vmid: Vmid) -> Iterator[Proven]:
    for host in found.hosts:
        for point in found.points[host].get(vmid, ()):
            if proof := point.proof:
                yield Proven(level=proof.level.value, at=proof.at, place=host, point=point.id)


def _read_back(found: History, vmid: Vmid) -> Iterator[Proven]:
    for name, box in found.archived.items():
        for kept in box.points.get(vmid, ()):
            if kept.proof:
                yield Proven(level=kept.proof.level, at=int(kept.proof.at), place=name, point=kept.archived.point)
