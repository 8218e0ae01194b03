"""Whether all that one run is to send to a target has room there together: streams go side by side."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pve_zfsbackup.model import Conflict, Dataset, Listing, Plan, Resume, Send, Vmid
from pve_zfsbackup.plan.obstacles import needed, readable
from pve_zfsbackup.plan.pairing import Sides
from pve_zfsbackup.plan.points import guest_points
from pve_zfsbackup.plan.route import ReplicationPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demand:
    """Bytes that one guest's streams may need, by replica."""

    vmid: Vmid
    needs: Mapping[Dataset, int]

    @property
    def total(self) -> int:
        return sum(self.needs.values())


def crowded_out(
    plans: Mapping[Vmid, Sequence[Plan]], sides: Sides, policy: ReplicationPolicy
) -> Mapping[Vmid, Conflict]:
    """The guests for which nothing is left, each as a whole: half a guest is no point.

    Those that are on the target already go first, the one that has waited longest before the others; then the new
    ones, the largest first. Whoever fits into what is left is sent, whatever became of those before.
    """
    demands = [_Demand(vmid=vmid, needs=dict(_needs(own, sides))) for vmid, own in plans.items()]
    left = _budgets(sides.target)
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
            out[demand.vmid] = _conflict(demand, place, (left[place], taken[place]), policy)
            continue
        for name in {name for replica in demand.needs for name in _upwards(replica, left)}:
            left[name] -= _below(demand, name)
            taken[name].append(demand)
    return out


def _needs(plans: Sequence[Plan], sides: Sides) -> Iterator[tuple[Dataset, int]]:
    for plan in plans:
        streams = [step for step in plan.steps if isinstance(step, Send | Resume)]
        if streams:
            source = sides.source.volumes[streams[0].snapshot.dataset]
            yield streams[0].dataset, needed(source, streams, sides.target)


def _sum(demands: Sequence[_Demand]) -> Mapping[Dataset, int]:
    found: dict[Dataset, int] = defaultdict(int)
    for demand in demands:
        for replica, size in demand.needs.items():
            found[replica] += size
    return found


def _budgets(target: Listing) -> dict[Dataset, int]:
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
    places = {name for replica in demand.needs for name in _upwards(replica, left)}
    return next((name for name in sorted(places) if _below(demand, name) > left[name]), None)


def _conflict(
    demand: _Demand, place: Dataset, budget: tuple[int, Sequence[_Demand]], policy: ReplicationPolicy
) -> Conflict:
    left, others = budget
    guests = ", ".join(str(other.vmid) for other in others[:5]) + (" and others" if len(others) > 5 else "")
    after = f" when guests {guests} have been sent" if others else ""
    return Conflict(
        kind="target-full",
        object=f"guest {demand.vmid}",
        message=f"about {readable(_below(demand, place))} are needed on {policy.host}, {place} has "
        f"{readable(left)} left{after}",
        evidence=tuple(f"{replica}: about {size} bytes" for replica, size in sorted(demand.needs.items())),
        resolve=f"on {policy.host}: free space, or raise the quota (zfs get -r quota,refquota,available "
        f"{shlex.quote(policy.root)}); nothing is deleted from here to make room",
    )
