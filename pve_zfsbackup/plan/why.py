"""Why a disk is sent as it is: what could have been the base on one target, and what became of each candidate."""

from __future__ import annotations

from collections.abc import Iterator

from pve_zfsbackup.model import Bookmark, Dataset, Disk, Guid, Plan, Resume, Send, Snapshot, Volume
from pve_zfsbackup.model.reasons import Candidate, Fate, Reasoning
from pve_zfsbackup.plan.obstacles import fit
from pve_zfsbackup.plan.pairing import (
    Base,
    Sides,
    bases,
    common_base,
    find_replica,
    foreign_owner,
    same_ivset,
)
from pve_zfsbackup.plan.replication import ReplicationPolicy, plan_replication
from pve_zfsbackup.plan.route import default_path
from pve_zfsbackup.plan.unchanged import NO_REFERENCES, References


def explain(disk: Disk, sides: Sides, policy: ReplicationPolicy, spared: References = NO_REFERENCES) -> Reasoning:
    """Plan the disk as a run would, and tell what was weighed."""
    plan = plan_replication(disk, sides, policy, spared)
    source = sides.source.volumes.get(disk.dataset) if disk.dataset else None
    if source is None:
        return Reasoning(disk=disk, plan=plan)
    replica = find_replica(source, sides, policy.root, default_path(disk, policy))
    chosen = common_base(source, replica) if replica else None
    streams = [step for step in plan.steps if isinstance(step, Send | Resume)]
    ordered = sorted(bases(source), key=lambda base: (base.createtxg, isinstance(base, Snapshot)), reverse=True)
    return Reasoning(
        disk=disk,
        plan=plan,
        candidates=tuple(
            Candidate(base=base, fate=fate, why=why)
            for base in ordered
            for fate, why in _judged(base, chosen, (source, replica), sides, plan)
        ),
        replica=replica.name if replica else None,
        token=_token(source, replica or sides.target.volumes.get(default_path(disk, policy))),
        manners=tuple(_manner(stream, source, policy, alone=len(streams) == 1) for stream in streams),
        fit=fit(source, streams, sides.target),
    )


def _manner(stream: Send | Resume, source: Volume, policy: ReplicationPolicy, *, alone: bool) -> str:
    """Why `-I` or why not: it takes along every snapshot between its base and its goal, and no bookmark for a base."""
    if isinstance(stream, Resume):
        return "goes on where it was interrupted"
    base = stream.base
    if base is None:
        return "full: the newest point alone"
    between = [s for s in source.snapshots if base.createtxg < s.createtxg < stream.snapshot.createtxg]
    if stream.through:
        return f"-I: all {len(between)} in between are to be sent too"
    if between:
        names = ", ".join(f"@{snapshot.name}" for snapshot in between[:3]) + (" and others" if between[3:] else "")
        return f"-i: -I would take along what is not to be sent: {names}"
    if alone:
        return "-i: nothing lies in between"
    if policy.minimal and policy.append_only:
        return "-i: the target's receiver takes no packages, as -I makes them: those can change properties"
    if policy.minimal:
        return "-i: OpenZFS here or there is older than 2.2, where -I may skip a snapshot"
    if isinstance(base, Bookmark):
        return "-i: from a bookmark, which -I does not take"
    return "-i: nothing lies in between"


def _judged(
    base: Base, chosen: Base | None, pair: tuple[Volume, Volume | None], sides: Sides, plan: Plan
) -> Iterator[tuple[Fate, str]]:
    """Exactly one verdict."""
    source, replica = pair
    twin = next((s for s in replica.snapshots if s.guid == base.guid), None) if replica else None
    places = sides.holders.get(base.guid, ())
    if replica is None or twin is None:
        if places:
            yield Fate.ELSEWHERE, "; ".join(_elsewhere(name, base, source, sides) for name in places)
        else:
            yield Fate.ABSENT, f"no dataset of {sides.target.host} has guid {base.guid}"
    elif not same_ivset(base.ivset, twin.ivset):
        yield Fate.OTHER_IVSET, _ivsets(twin.ivset, base.ivset, replica.name)
    elif chosen is None or base == chosen:
        fate = Fate.BLOCKED if plan.conflicts else Fate.CHOSEN
        yield fate, f"the newest that {replica.name} has, by guid {base.guid}"
    elif base.guid == chosen.guid:
        yield Fate.BESIDE, f"stands in for {chosen.full_name} when that is gone"
    else:
        yield Fate.OLDER, f"{replica.name} has it too, but {chosen.full_name} is newer"


def _elsewhere(name: Dataset, base: Base, source: Volume, sides: Sides) -> str:
    volume = sides.target.volumes[name]
    if foreign_owner(source, volume, sides):
        return f"only {name} has it, which is the replica of another disk"
    twin = next(snapshot for snapshot in volume.snapshots if snapshot.guid == base.guid)
    if not same_ivset(base.ivset, twin.ivset):
        return _ivsets(twin.ivset, base.ivset, name)
    return f"only {name} has it, and newer ones are common elsewhere"


def _ivsets(there: Guid, here: Guid, name: Dataset) -> str:
    return f"{name} has the guid with IV set {there}, here it is {here}: it was not received raw"


def _token(source: Volume, replica: Volume | None) -> str:
    if replica is None or replica.resume is None:
        return ""
    token = replica.resume
    goal = next((s.full_name for s in source.snapshots if s.guid == token.to_guid), "")
    return f"{replica.name} holds an interrupted receive of {goal or 'guid ' + (token.to_guid or 'unknown')}"
