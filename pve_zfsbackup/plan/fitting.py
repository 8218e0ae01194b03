"""Whether all that one run is to send to a target has room there together: streams go side by side.

Room is bytes, and for an account that is not root also what `snapshot_limit` and `filesystem_limit` leave.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model import Conflict, Dataset, Listing, Plan, Resume, Send, Vmid, Volume
from pve_zfsbackup.plan.obstacles import needed, readable
from pve_zfsbackup.plan.pairing import Sides
from pve_zfsbackup.plan.points import guest_points
from pve_zfsbackup.plan.route import ReplicationPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demand:
    """What one guest's streams may need of something, by replica."""

    vmid: Vmid
    needs: Mapping[Dataset, int]

    @property
    def total(self) -> int:
        return sum(self.needs.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Supply:
    """Something of which a target has only so much. `left` is by dataset, for all below it together."""

    kind: str  # of the conflict
    needs: Callable[[Sequence[Plan], Sides], Iterator[tuple[Dataset, int]]]
    left: Callable[[Listing], dict[Dataset, int]]
    told: str
    shown: Callable[[int], str]
    unit: str
    resolve: str


def crowded_out(
    plans: Mapping[Vmid, Sequence[Plan]], sides: Sides, policy: ReplicationPolicy
) -> Mapping[Vmid, Conflict]:
    """The guests for which nothing is left, each as a whole: half a guest is no point."""
    out: dict[Vmid, Conflict] = {}
    for supply in _SUPPLIES if policy.limited else _SUPPLIES[:1]:
        still = {vmid: own for vmid, own in plans.items() if vmid not in out}
        out |= _crowded_out(still, supply, sides, policy)
    return out


def _crowded_out(
    plans: Mapping[Vmid, Sequence[Plan]], supply: _Supply, sides: Sides, policy: ReplicationPolicy
) -> Mapping[Vmid, Conflict]:
    """Those for which there is too little of this.

    Those that are on the target already go first, the one that has waited longest before the others; then the new
    ones, the largest first. Whoever fits into what is left is sent, whatever became of those before.
    """
    demands = [_Demand(vmid=vmid, needs=dict(supply.needs(own, sides))) for vmid, own in plans.items()]
    left = supply.left(sides.target)
    if _short(_Demand(vmid=Vmid(0), needs=_sum(demands)), left) is None:
        return {}
    found = guest_points(sides.target)
    newest = {d.vmid: max((p.creation for p in found.of(d.vmid) if p.complete), default=0) for d in demands}
    ordered = sorted(demands, key=lambda d: (not newest[d.vmid], newest[d.vmid], -d.total, d.vmid))
    out: dict[Vmid, Conflict] = {}
    taken: dict[Dataset, list[_Demand]] = defaultdict(list)
    for demand in ordered:
        place = _short(demand, left)
        if place is not None:
            out[demand.vmid] = _conflict(demand, place, (left[place], taken[place]), supply, policy)
            continue
        for name in {name for replica in demand.needs for name in _upwards(replica, left)}:
            left[name] -= _below(demand, name)
            taken[name].append(demand)
    return out


def _streams(plans: Sequence[Plan]) -> Iterator[list[Send | Resume]]:
    """Those of each disk that has some."""
    found = ([step for step in plan.steps if isinstance(step, Send | Resume)] for plan in plans)
    return (streams for streams in found if streams)


def _bytes(plans: Sequence[Plan], sides: Sides) -> Iterator[tuple[Dataset, int]]:
    for streams in _streams(plans):
        source = sides.source.volumes[streams[0].snapshot.dataset]
        yield streams[0].dataset, needed(source, streams, sides.target)


def _snapshots(plans: Sequence[Plan], sides: Sides) -> Iterator[tuple[Dataset, int]]:
    for streams in _streams(plans):
        yield streams[0].dataset, sum(1 + len(s.through) if isinstance(s, Send) else 1 for s in streams)


def _filesystems(plans: Sequence[Plan], sides: Sides) -> Iterator[tuple[Dataset, int]]:
    """Replicas that are not there yet. What they lie in is left out: disks share it, and it is made but once."""
    for streams in _streams(plans):
        if streams[0].dataset not in sides.target.volumes:
            yield streams[0].dataset, 1


def _sum(demands: Sequence[_Demand]) -> Mapping[Dataset, int]:
    found: dict[Dataset, int] = defaultdict(int)
    for demand in demands:
        for replica, size in demand.needs.items():
            found[replica] += size
    return found


def _room(target: Listing) -> dict[Dataset, int]:
    """Bytes that all below a dataset may take together. A refquota limits the dataset alone and a reservation is
    more for the one that has it, so that one below may have more left than one above shows: then that counts."""
    left = {name: volume.available for name, volume in target.volumes.items() if volume.available is not None}
    found = dict(left)
    for name, available in left.items():
        for above in _upwards(name, left):
            found[above] = max(found[above], available)
    return found


def _upwards(name: Dataset, known: Mapping[Dataset, int]) -> Iterator[Dataset]:
    """The dataset and those above it, as far as they are known."""
    text: str = name
    while text:
        if text in known:
            yield Dataset(text)
        text = text.rpartition("/")[0]


def _below(demand: _Demand, name: Dataset) -> int:
    return sum(size for replica, size in demand.needs.items() if replica == name or replica.startswith(f"{name}/"))


def _short(demand: _Demand, left: Mapping[Dataset, int]) -> Dataset | None:
    """The first dataset, from above, that has too little left for this."""
    wanted: dict[Dataset, int] = defaultdict(int)
    for replica, size in demand.needs.items():
        for name in _upwards(replica, left):
            wanted[name] += size
    return next((name for name in sorted(wanted) if wanted[name] > left[name]), None)


def _conflict(
    demand: _Demand, place: Dataset, budget: tuple[int, Sequence[_Demand]], supply: _Supply, policy: ReplicationPolicy
) -> Conflict:
    left, others = budget
    guests = ", ".join(str(other.vmid) for other in others[:5]) + (" and others" if len(others) > 5 else "")
    after = f" when guests {guests} have been sent" if others else ""
    return Conflict(
        kind=supply.kind,
        object=f"guest {demand.vmid}",
        message=supply.told.format(
            need=supply.shown(_below(demand, place)),
            left=supply.shown(left),
            place=place,
            host=policy.host,
            after=after,
        ),
        evidence=tuple(f"{replica}: {supply.unit.format(size)}" for replica, size in sorted(demand.needs.items())),
        resolve=f"on {policy.host}: {supply.resolve.format(root=shlex.quote(policy.root), place=shlex.quote(place))}",
    )


def _limits(own: Callable[[Volume], int | None]) -> Callable[[Listing], dict[Dataset, int]]:
    return lambda target: {n: left for n, volume in target.volumes.items() if (left := own(volume)) is not None}


_SUPPLIES: Final = (
    _Supply(
        kind="target-full",
        needs=_bytes,
        left=_room,
        told="about {need} are needed on {host}, {place} has {left} left{after}",
        shown=readable,
        unit="about {} bytes",
        resolve="free space, or raise the quota (zfs get -r quota,refquota,available {root}); nothing is deleted from "
        "here to make room",
    ),
    _Supply(
        kind="target-limit",
        needs=_snapshots,
        left=_limits(lambda volume: volume.snapshots_left),
        told="snapshot_limit of {place} on {host} leaves {left}{after}, and {need} would be made",
        shown=str,
        unit="{} snapshots",
        resolve="raise it (zfs get snapshot_limit,snapshot_count {place}), or keep a shorter history there",
    ),
    _Supply(
        kind="target-limit",
        needs=_filesystems,
        left=_limits(lambda volume: volume.filesystems_left),
        told="filesystem_limit of {place} on {host} leaves {left}{after}, and {need} would be made",
        shown=str,
        unit="{} datasets",
        resolve="raise it (zfs get filesystem_limit,filesystem_count {place})",
    ),
)
