"""Who has the role of a guest: the mark a failover leaves on its replicas, and what the source makes of it.

The property `failover` of a replica says since when, where and from which point the guest runs elsewhere, and why. It
is set before the guest starts there and taken away by `failback`. The source sees it in the listing it makes anyway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from pve_zfsbackup.model import PROPERTY, Conflict, Dataset, Guest, Listing, Vmid, printable
from pve_zfsbackup.plan.points import guest_points

FAILOVER: Final = f"{PROPERTY}failover"
_MARK: Final = re.compile(r"(\d{8}T\d{6}Z) (\S+) (([1-9]\d{2,8})/\S+) (.*)\Z", re.DOTALL)
REASON_LIMIT: Final = 2000  # characters; a property's value ends at 8,192 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """A guest runs on `host` since `since` (as `20261126T113000Z`), from `point`. `datasets` carry the mark."""

    vmid: Vmid
    since: str
    host: str
    point: str
    reason: str
    datasets: tuple[Dataset, ...] = ()


def mark_text(now: datetime, host: str, point: str, reason: str) -> str:
    """The value of the property. The reason is somebody's words: one line, cut where it would not fit."""
    words = printable(" ".join(reason.split()))[:REASON_LIMIT]
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ} {host} {point} {words or 'the source was gone'}"


def takeovers(target: Listing) -> Mapping[Vmid, Takeover]:
    """The guests of a target that run elsewhere. A mark that cannot be read counts for every guest whose points lie
    there: better to send nothing than to two masters."""
    found: dict[Vmid, Takeover] = {}
    unread: set[Dataset] = set()
    for name, volume in sorted(target.volumes.items()):
        if not volume.failover:
            continue
        match = _MARK.match(volume.failover)
        if match is None:
            unread.add(name)
            continue
        since, host, point, vmid, reason = match.groups()
        known = found.get(Vmid(int(vmid)))
        datasets = (*known.datasets, name) if known else (name,)
        found[Vmid(int(vmid))] = Takeover(
            vmid=Vmid(int(vmid)), since=since, host=host, point=point, reason=reason, datasets=datasets
        )
    if unread:
        everyone = guest_points(target)
        for vmid in everyone.vmids:
            inside = {snapshot.dataset for point in everyone.of(vmid) for snapshot in point.snapshots.values()}
            if inside & unread and vmid not in found:
                told = Takeover(vmid=vmid, since="?", host=target.host, point="?", reason="the mark cannot be read")
                found[vmid] = replace(told, datasets=tuple(sorted(inside & unread)))
    return found


def conflict_of(taken: Takeover, guest: Guest, target: str) -> Conflict:
    """Nothing is sent to, marked or released on a target where the guest's role was taken over."""
    twice = "; it runs here as well: STOP ONE OF THEM, both are written to" if guest.running else ""
    evidence = tuple(f"{name}: {FAILOVER}={taken.since} {taken.host} {taken.point}" for name in taken.datasets)
    return Conflict(
        kind="taken-over",
        object=f"guest {guest.vmid}",
        message=f"its role was taken over by {taken.host} at {taken.since}, from point {taken.point} "
        f"({taken.reason}){twice}",
        evidence=evidence,
        resolve=f"bring it back with `pve-zfsbackup failback {guest.vmid}` on {taken.host}; or, if what runs there is "
        f"not wanted: zfs inherit {FAILOVER} DATASET on {target}, for each of these datasets",
    )
