"""`discover --check`: is there anything that nobody decided to leave unprotected?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pve_zfsbackup.app.gather import Assignment, Scope, assign, inventory
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Job
from pve_zfsbackup.model import Guest, Point
from pve_zfsbackup.plan.audit import Finding, Standing, audit_guest, hidden
from pve_zfsbackup.plan.points import by_guest, points
from pve_zfsbackup.plan.selection import matches

__all__ = ["Audit", "Finding", "audit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found on this node. `open` are findings that nobody explained."""

    node: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def open(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.explained)


def audit(session: Session) -> Audit:
    """Look at every disk of every guest of the node. Changes nothing."""
    found = inventory(session)
    items, notes = assign(session, found, Scope())
    assigned = {item.guest.vmid: item for item in items}
    known = by_guest(points(found.listing))
    findings = [hidden(doubt) for doubt in found.doubts]
    for guest in found.guests:
        item = assigned.get(guest.vmid)
        standing = _standing(guest, item, list(session.config.jobs.values()), known.get(guest.vmid, ()))
        findings += audit_guest(item.guest if item else guest, standing)
    return Audit(node=session.node, findings=tuple(findings), notes=(*found.notes, *notes))


def _standing(guest: Guest, item: Assignment | None, jobs: Sequence[Job], known: Sequence[Point]) -> Standing:
    complete = [point for point in known if point.complete]
    newest = complete[-1] if complete else None
    if item is None:
        return Standing(excluded=excluded_by(guest, jobs), newest=newest)
    names = tuple(job.name for job in item.jobs)
    return Standing(jobs=names, disks=_left_out(guest, item.jobs), quiesce=item.quiesce, newest=newest)


def _left_out(guest: Guest, jobs: Sequence[Job]) -> dict[str, str]:
    """The disks that a job's `exclude-disks` names, also those that could not be protected anyway."""
    return {
        disk.key: f"job {job.name} excludes {pattern.text}"
        for job in jobs
        for pattern in job.exclude_disks
        for disk in guest.disks
        if pattern.vmid in {None, guest.vmid} and fnmatchcase(disk.key, pattern.key)
    }


def excluded_by(guest: Guest, jobs: Iterable[Job]) -> str:
    """The rule that leaves a guest out; empty when it is in no job because nobody thought of it."""
    for job in jobs:
        rules = (*job.exclude, *(selector for selector in job.guests if selector.negated))
        for selector in rules:
            if matches(selector, guest):
                return f"job {job.name} excludes {selector.text.lstrip('!')}"
    return ""

