"""Interrupted receives of disks that are no more: one that is destroyed while it is sent leaves one behind.

A receive has no date. What tells that nobody goes on with it is its token: it changes with everything that arrives. So
tokens are remembered from one run to the next, with how long each stood still. A time in which nobody looked counts as
a day at most: nobody could go on with it, either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model import SNAPSHOT_NAME, Dataset, Guid, Listing, Vmid, Volume
from pve_zfsbackup.plan.pairing import usual_path
from pve_zfsbackup.plan.takeover import takeovers
from pve_zfsbackup.plan.volumes import owner_of_volume

DAY: Final = 86_400
TOLD_AFTER: Final = 2 * DAY  # seconds; as the receiver's `partial-warn-age`
KEPT: Final = 7 * DAY  # and its `stale-partials`


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """An interrupted receive of which runs saw the same token for so many seconds."""

    dataset: Dataset
    token: str
    stood: float


def leftovers(
    source: Listing,
    target: Listing,
    root: Dataset,
    memory: Mapping[str, object],
    *,
    now: float,
    defined: Callable[[str], bool],
) -> tuple[Leftover, ...]:
    """Those on a target of ours, with what was remembered of them: of a stream of ours, into the replica of a disk that
    is not `defined` on any node (by its volume), whose guest did not fail over, and of which the snapshot is not here
    either. A memory of the future, or that is not understood, is none."""
    here = {snapshot.guid for volume in source.volumes.values() for snapshot in volume.snapshots}
    taken = takeovers(target)
    found = []
    for name, volume in sorted(target.volumes.items()):
        vmid, disk = _vmid(volume, root), usual_path(name).rpartition("/")[2]
        if vmid is None or volume.resume is None or volume.resume.to_guid in here:
            continue
        if vmid in taken or defined(disk):
            continue
        stood = 0.0
        match memory.get(name):
            case [str(token), int(known) | float(known), int(seen) | float(seen)]:
                if token == volume.resume.token and known >= 0 and seen <= now:
                    stood = known + min(now - seen, DAY)
        found.append(Leftover(dataset=name, token=volume.resume.token, stood=stood))
    return tuple(found)


def _vmid(volume: Volume, root: Dataset) -> Vmid | None:
    """Whose replica it is, where what is under way into it is a stream of ours."""
    token, place = volume.resume, volume.name.removeprefix(f"{root}/").split("/")
    if token is None or token.to_guid == Guid("") or not volume.name.startswith(f"{root}/") or len(place) != 2:
        return None
    return owner_of_volume(":".join(place)) if SNAPSHOT_NAME.match(token.snapshot.partition("@")[2]) else None


def remembered(found: tuple[Leftover, ...], now: float) -> Mapping[str, object]:
    """What the next run needs of these, for JSON."""
    return {one.dataset: [one.token, one.stood, now] for one in found}
