"""Interrupted receives of guests that are no more: one that is destroyed while it is sent leaves one behind.

A receive has no date. What tells that nobody goes on with it is its token: it changes with everything that arrives. So
tokens are remembered from one run to the next, and counted are only days on which the target was looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model import SNAPSHOT_NAME, Dataset, Guid, Listing, Vmid, Volume
from pve_zfsbackup.plan.takeover import takeovers

TOLD_AFTER: Final = 2 * 86_400  # seconds; as the receiver's `partial-warn-age`
KEPT: Final = 7 * 86_400  # and its `stale-partials`
GAP: Final = 2 * 86_400  # not looked at for longer, it ages anew: nobody could go on with it meanwhile, either
_REPLICA: Final = re.compile(r"[^/]+/(?:vm|subvol|base)-([1-9][0-9]{0,8})-[^/]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """An interrupted receive of which runs saw the same token since then, in seconds of the epoch."""

    dataset: Dataset
    token: str
    since: float

    def stood(self, now: float) -> float:
        """Seconds."""
        return now - self.since


def leftovers(
    source: Listing,
    target: Listing,
    root: Dataset,
    memory: Mapping[str, object],
    *,
    now: float,
    defined: Callable[[Vmid], bool],
) -> tuple[Leftover, ...]:
    """Those on a target of ours, with what was remembered of them: of a stream of ours, into a replica of a guest that
    is not `defined` on any node, did not fail over, and of which the snapshot is not here either. A memory of the
    future, or that is not understood, is none."""
    here = {snapshot.guid for volume in source.volumes.values() for snapshot in volume.snapshots}
    taken = takeovers(target)
    found = []
    for name, volume in sorted(target.volumes.items()):
        vmid = _vmid(volume, root)
        if vmid is None or volume.resume is None or volume.resume.to_guid in here or vmid in taken or defined(vmid):
            continue
        since = now
        match memory.get(name):
            case [str(token), int(first) | float(first), int(seen) | float(seen)]:
                known = token == volume.resume.token and first <= seen <= now and now - seen <= GAP
                since = first if known else now
        found.append(Leftover(dataset=name, token=volume.resume.token, since=since))
    return tuple(found)


def _vmid(volume: Volume, root: Dataset) -> Vmid | None:
    """Whose replica it is, where what is under way into it is a stream of ours."""
    token = volume.resume
    place = _REPLICA.match(volume.name.removeprefix(f"{root}/")) if volume.name.startswith(f"{root}/") else None
    if place is None or token is None or token.to_guid == Guid(""):
        return None
    return Vmid(int(place[1])) if SNAPSHOT_NAME.match(token.snapshot.partition("@")[2]) else None


def remembered(found: tuple[Leftover, ...], now: float) -> Mapping[str, object]:
    """What the next run needs of these, for JSON."""
    return {one.dataset: [one.token, one.since, now] for one in found}
