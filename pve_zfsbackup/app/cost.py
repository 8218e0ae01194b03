"""What history costs: the space that would come back if points were destroyed. Nothing is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.cost import Group, freed
from pve_zfsbackup.model import SOURCE, Dataset, Point, Snapshot, Vmid, World

if TYPE_CHECKING:  # it looks into boxes, too, and `prune` does not
    from pve_zfsbackup.app.history import History

Sets = Mapping[tuple[str, Dataset], Sequence[Snapshot]]  # by host and dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """All points of one guest on one host that were looked at, oldest first, and what destroying them together would
    free in bytes: None where that is not known, with the reason."""

    vmid: Vmid
    host: str
    points: tuple[Point, ...]
    freed: int | None
    reason: str = ""


def costs(session: Session, world: World, sets: Sets) -> dict[tuple[str, Dataset], int | None]:
    """What destroying these snapshots would free, dataset by dataset; None where it is not known.

    An append-only target takes no `destroy`, not even one that only asks.
    """
    found: dict[tuple[str, Dataset], int | None] = dict.fromkeys(sets)
    for host in sorted({host for host, _ in sets}):
        own = [key for key in sets if key[0] == host]
        if not _append_only(session, host):
            groups = [(world[host].volumes[dataset], sets[host, dataset]) for _, dataset in own]
            found |= zip(own, _asked(session, host, groups), strict=True)
    return found


def history_costs(session: Session, found: History) -> tuple[Cost, ...]:
    """The cost of the points of each guest on each host that was seen, together."""
    ranges = [
        (vmid, host, points)
        for host in found.hosts
        for vmid, points in sorted(found.points[host].items())
        if points and vmid in found.vmids
    ]
    sets: dict[tuple[str, Dataset], list[Snapshot]] = defaultdict(list)
    for _, host, points in ranges:
        for snapshot in (snapshot for point in points for snapshot in point.own.values()):
            sets[host, snapshot.dataset].append(snapshot)
    known = costs(session, found.listings, sets)
    out = []
    for vmid, host, points in ranges:
        datasets = {snapshot.dataset for point in points for snapshot in point.own.values()}
        counts = [known[host, dataset] for dataset in datasets]
        total = None if None in counts else sum(count for count in counts if count is not None)
        reason = ""
        if total is None:
            reason = "append-only: it takes no destroy" if _append_only(session, host) else "zfs does not say"
        out.append(Cost(vmid=vmid, host=host, points=points, freed=total, reason=reason))
    return tuple(out)


def _append_only(session: Session, host: str) -> bool:
    return host != SOURCE and session.config.targets[host].append_only


def _asked(session: Session, host: str, groups: Sequence[Group]) -> list[int | None]:
    """A host that went away meanwhile says nothing; the listing was told all the same."""
    try:
        return freed(session.hosts[host], groups)
    except BackupError:
        return [None] * len(groups)
