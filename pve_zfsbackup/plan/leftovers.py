"""Interrupted receives that nobody goes on with: a guest that is destroyed while it is sent leaves one behind.

A receive has no date. What tells that nobody goes on is its token: it changes with everything that arrives. So
tokens are remembered from one run to the next, and only the one that stood for long is thrown away: a guest that was
moved to another node is resumed from there, and one whose link is down gets its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model import Dataset, Listing

TOLD_AFTER: Final = 2 * 86_400  # seconds; as the receiver's `partial-warn-age`
KEPT: Final = 7 * 86_400  # and its `stale-partials`


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """An interrupted receive of which a run saw the same token at `since`, seconds since the epoch, and now."""

    dataset: Dataset
    token: str
    since: float

    def stood(self, now: float) -> float:
        """Seconds."""
        return now - self.since


def leftovers(listing: Listing, memory: Mapping[str, object], now: float) -> tuple[Leftover, ...]:
    """Those of a target, with what was remembered of them; what is of the future, or not understood, is forgotten."""
    found = []
    for name, volume in sorted(listing.volumes.items()):
        if volume.resume is None:
            continue
        since = now
        match memory.get(name):
            case [str(token), int(known) | float(known)] if token == volume.resume.token and known <= now:
                since = known
        found.append(Leftover(dataset=name, token=volume.resume.token, since=since))
    return tuple(found)


def remembered(found: tuple[Leftover, ...]) -> Mapping[str, object]:
    """What the next run needs of these, for JSON."""
    return {one.dataset: [one.token, one.since] for one in found}
