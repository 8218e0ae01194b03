"""Taking over guests from their replicas: whether it may be, from which point, in which order they start.

A disk in the pool of its replica becomes a clone of the held snapshot: in an instant, without room, and the replica
stays as it is, so that others keep receiving and `failback` has the common snapshot. It is never promoted: that would
take the history away from the replica. In another pool it is a copy, with the same snapshot and guid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model import Conflict, Dataset, Listing, Point, Snapshot, Vmid
from pve_zfsbackup.plan.takeover import Takeover

HOLD: Final = "pve-zfsbackup-failover"  # keeps what a guest runs from; not the tag of replication, which moves on
_ORDER: Final = re.compile(r"(?:\A|,)(?:order=)?(\d+)(?=,|\Z)")
_UP: Final = re.compile(r"(?:\A|,)up=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is known of the source before anything is taken over. `signs` are its answers, none when it is silent."""

    source: str
    signs: tuple[str, ...]
    fenced: bool = False
    forced: bool = False
    reason: str = ""


def permitted(question: Question) -> Conflict | None:
    """Why nothing may be taken over: two guests that write under one name are worse than none."""
    if not question.source:
        message = "nobody says whose guests these are, so it cannot be known whether they still run there"
        hint = "name the host: --source HOST, or failover: {source: HOST} in the configuration"
        return Conflict(kind="no-source", object="failover", message=message, resolve=hint)
    if question.forced and not question.reason.strip():
        return Conflict(
            kind="no-reason", object="failover", message="--force needs --reason TEXT", resolve="it is recorded"
        )
    if question.signs and not question.forced:
        return Conflict(
            kind="source-alive",
            object=question.source,
            message="answers: its guests may be running",
            evidence=question.signs,
            resolve="shut it down, or take it from power and network; if its guests are known to be stopped: "
            "--force --reason TEXT",
        )
    if not question.fenced:
        return Conflict(
            kind="not-fenced",
            object=question.source,
            message="is silent, which does not prove that its guests are stopped"
            if not question.signs
            else "answers, and is to be overruled",
            resolve="make sure that it cannot run them (power off, unplug, remote management), then say so: --fenced",
        )
    return None


def already(vmid: Vmid, taken: Takeover | None, node: str) -> Conflict | None:
    """Another host has the role."""
    if taken is None or taken.host == node:
        return None
    return Conflict(
        kind="taken-over",
        object=f"guest {vmid}",
        message=f"{taken.host} took over its role at {taken.since}, from point {taken.point} ({taken.reason})",
        evidence=taken.datasets,
        resolve=f"if {taken.host} does not have it any more: zfs inherit pve-zfsbackup:failover on these datasets",
    )


def locked_disks(point: Point, listing: Listing) -> Conflict | None:
    """Encrypted replicas whose key is not here: nothing can start from them."""
    locked = [
        snapshot.dataset
        for snapshot in point.snapshots.values()
        if (volume := listing.volumes[snapshot.dataset]).encrypted and volume.keystatus != "available"
    ]
    if not locked:
        return None
    return Conflict(
        kind="key-not-loaded",
        object=point.id,
        message="encrypted disks need their key, which is in the safe",
        evidence=tuple(sorted(locked)),
        resolve=" ; ".join(f"zfs load-key -L file:///PATH/OF/KEY {name}" for name in sorted(locked)),
    )


def replicas_of(points: Sequence[Point]) -> tuple[Dataset, ...]:
    """All datasets that hold something of the guest: those that are marked."""
    return tuple(sorted({snapshot.dataset for point in points for snapshot in point.snapshots.values()}))


def cloned(snapshot: Snapshot, to: Dataset) -> bool:
    """Whether a disk can be a clone: in the same pool."""
    return snapshot.dataset.partition("/")[0] == to.partition("/")[0]


def starting_order(startups: Mapping[Vmid, str]) -> tuple[tuple[Vmid, int], ...]:
    """Guests in the order Proxmox starts them, each with the seconds to wait after it. Those without an order come
    last, as there (`startup: order=N,up=S`; PVE::API2::Nodes, get_start_stop_list)."""
    orders = {vmid: int(match[1]) if (match := _ORDER.search(text)) else None for vmid, text in startups.items()}
    ordered = sorted(orders, key=lambda vmid: (orders[vmid] is None, orders[vmid] or 0, vmid))
    waits = {vmid: int(match[1]) if (match := _UP.search(startups[vmid])) else 0 for vmid in ordered}
    return tuple((vmid, waits[vmid]) for vmid in ordered)
