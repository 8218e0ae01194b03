"""Which points of a guest drills proved, and which of them therefore must stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pve_zfsbackup.model import Guid, Point
from pve_zfsbackup.model.proof import Level, Proof

REASON: Final = "newest point proven by a drill"
EVIDENCE: Final = "the last drill failed on it"


def last_drill(points: Iterable[Point]) -> Proof | None:
    """The newest drill of a guest's points on one host, passed or failed."""
    point = _last_drilled(points)
    return point.proof if point else None


def _last_drilled(points: Iterable[Point]) -> Point | None:
    """Of several in one second, the newest point."""
    drilled = [(proof.at, point) for point in points if (proof := point.proof) and proof.level is not Level.POINTS]
    return max(reversed(drilled), key=lambda pair: pair[0])[1] if drilled else None


def newest_proven(points: Sequence[Point]) -> Point | None:
    """The newest point whose files a drill opened, or that it booted; where none is, the newest it recognised. It is
    never pruned: that a newer one is something does not make up for one that is known to be good."""
    passed = [point for point in reversed(points) if (proof := point.proof) and proof.level.drilled]
    opened = [point for point in passed if point.proof and point.proof.level.opened]
    return next(iter(opened or passed), None)


def proven_guids(points: Sequence[Point]) -> Mapping[Guid, str]:
    """Why the snapshots of that one must stay; and those of the point the last drill failed on: that it did is known by
    them alone, and would be forgotten with them before a drill passes."""
    known = [point for point in points if point.proof]  # nearly always none, of many
    last, passed = _last_drilled(known), newest_proven(known)
    failed = last if last and last.proof and last.proof.level is Level.FAILED else None
    reasons = ((failed, EVIDENCE), (passed, REASON))
    return {snapshot.guid: reason for point, reason in reasons if point for snapshot in point.own.values()}
