"""What has to be done to bring one disk's newest complete point to one target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from operator import attrgetter

from pve_zfsbackup.model import (
    AbortReceive,
    Adopt,
    Conflict,
    CreateBookmark,
    CreateParent,
    Dataset,
    DestroyBookmark,
    Disk,
    Hold,
    Mark,
    Plan,
    PointId,
    Release,
    Resume,
    Send,
    Snapshot,
    Step,
    Volume,
)
from pve_zfsbackup.plan.marking import mark, stand_ins, unmarked
from pve_zfsbackup.plan.obstacles import obstacle, spoilt
from pve_zfsbackup.plan.pairing import (
    Base,
    Sides,
    common_base,
    compare,
    find_replica,
    foreign_owner,
    usual_path,
)
from pve_zfsbackup.plan.points import bookmark_name, bookmark_target, stamp_of
from pve_zfsbackup.plan.route import ReplicationPolicy, Route, default_path, received, route
from pve_zfsbackup.plan.unchanged import NO_REFERENCES, References

__all__ = [
    "ReplicationPolicy",
    "Sides",
    "common_base",
    "compare",
    "default_path",
    "find_replica",
    "phases",
    "plan_replication",
]


def plan_replication(disk: Disk, sides: Sides, policy: ReplicationPolicy, spared: References = NO_REFERENCES) -> Plan:
    """Bring the newest complete point of one disk, and ours since the common base, to the target.

    `spared` are the points of the guest that refer to an older snapshot instead of getting a new one.
    `CreateParent` steps of several disks may name the same dataset: the caller drops repetitions.
    The bookmark of what will be the base is made before it is sent: cut off anywhere, the base lies between the
    bookmarks of this target. The new hold comes before the old release (DESIGN §3.3).
    """
    source = sides.source.volumes.get(disk.dataset) if disk.dataset else None
    if source is None:
        message = f"{disk.dataset or disk.volid} does not exist on the source"
        return _blocked(Conflict(kind="missing-dataset", object=disk.volid, message=message))
    ordered = sorted(source.snapshots, key=attrgetter("createtxg"))
    wanted = [snapshot for snapshot in ordered if snapshot.point in sides.complete]
    if not wanted:
        return Plan(reasons=(f"{source.name} has no snapshot of a complete recovery point",))
    way = route(disk, source, sides, policy)
    if isinstance(way, Conflict):
        return _blocked(way)
    since = (way.common or wanted[0]).creation
    if spared:
        wanted = [snapshot for snapshot in wanted if source.guid not in stand_ins(snapshot, spared)]
    wanted, forged = _namesakes(wanted, way)
    sends = _sends(source, ordered, wanted, way, policy)
    if blocked := _spoilt(source, sends, way, sides, policy) or obstacle(source, sends, sides, policy):
        return _blocked(blocked)
    top = sends[-1].snapshot if sends else way.base
    assert top is not None  # there is something wanted: it is sent, or there is a base
    there = (*way.snapshots, *(received(sent, way.path) for send in sends for sent in _sent(send)))
    adoption = Adopt(host=policy.host, dataset=policy.root, owner=policy.owner)
    steps: list[Step] = [adoption] if policy.adopt else []
    if way.base is None:
        steps += _parents(way.path, sides, policy)
    before, after = _bookmarks(source, top, way, policy)
    steps += [*before, *way.steps]
    steps += (mark(s, source, way.path, policy, spared) for s in unmarked(source, way))
    for send in sends:
        steps += [send, *(mark(s, source, way.path, policy, spared) for s in _sent(send))]
    steps += _holds(source, top, there, way.path, sides, policy)
    steps += after
    warnings = (*way.warnings, *forged, *(_overtaken(wanted[-1], top, there, policy) if wanted else ()))
    resting: Set[PointId | None] = {point for point, volumes in spared.items() if source.guid in volumes}
    reasons = (*way.reasons, *_explain(ordered, sends, top, policy, resting))
    return Plan(steps=tuple(steps), warnings=warnings, alarms=way.alarms, reasons=reasons, since=since)


def phases(plan: Plan) -> tuple[tuple[Step, ...], tuple[Step, ...], tuple[Step, ...]]:
    """The steps of one disk cut in three, each in the order of the plan: parents, streams, and what follows.

    Parents are shared by disks, streams run in parallel, and what follows (marks, holds, old bookmarks) waits until
    the received guids were read back. The new bookmark belongs to the streams: it is made before them.
    """
    moving = [index for index, step in enumerate(plan.steps) if isinstance(step, Send | Resume | AbortReceive)]
    end = moving[-1] + 1 if moving else 0
    parents = tuple(step for step in plan.steps if isinstance(step, CreateParent | Adopt))
    streams = tuple(step for step in plan.steps[:end] if not isinstance(step, CreateParent | Adopt | Mark))
    marks = tuple(step for step in plan.steps[:end] if isinstance(step, Mark))
    rest = (step for step in plan.steps[end:] if not isinstance(step, CreateParent | Adopt))
    return parents, streams, (*marks, *rest)


def _spoilt(
    source: Volume, sends: list[Send], way: Route, sides: Sides, policy: ReplicationPolicy
) -> Conflict | None:
    """Only where something is to be received: with nothing new, the replica is as good as its snapshots."""
    if way.common is None or not (sends or any(isinstance(step, Resume) for step in way.steps)):
        return None
    return spoilt(source, sides.target.volumes[way.path], way.common, policy)


def _namesakes(wanted: list[Snapshot], way: Route) -> tuple[list[Snapshot], tuple[str, ...]]:
    """What can be sent, and a warning for each that cannot: the replica has another snapshot under its name.

    Somebody destroyed a snapshot of ours and made one like it. The replica keeps the old one, as it must.
    """
    held = {snapshot.name: snapshot.guid for snapshot in way.snapshots}
    bad = [snapshot for snapshot in wanted if held.get(snapshot.name, snapshot.guid) != snapshot.guid]
    if not bad:
        return wanted, ()
    good = [snapshot for snapshot in wanted if held.get(snapshot.name, snapshot.guid) == snapshot.guid]
    told = (f"{snapshot.full_name} was made anew by somebody; the replica keeps the one it has" for snapshot in bad)
    return good, tuple(told)


def _sends(
    source: Volume, ordered: list[Snapshot], wanted: list[Snapshot], way: Route, policy: ReplicationPolicy
) -> list[Send]:
    """A full stream of the newest alone; or all wanted since the base, together where nothing else is between."""
    base = way.base
    groups = [[wanted[-1]]] if base is None else _groups(ordered, wanted, base, minimal=policy.minimal)
    sends = []
    for group in groups:
        *through, goal = group
        sends.append(
            Send(
                host=policy.host,
                snapshot=goal,
                base=base,
                dataset=way.path,
                raw=source.encrypted,
                through=tuple(through),
            )
        )
        base = goal
    return sends


def _groups(ordered: list[Snapshot], wanted: list[Snapshot], base: Base, *, minimal: bool) -> list[list[Snapshot]]:
    """Runs of wanted snapshots after the base that one `-I` can send: it takes everything in between along.

    A run may grow only when its base is a snapshot (`-I` takes no bookmark) and nothing unwanted follows it.
    """
    groups: list[list[Snapshot]] = []
    growing = False
    adjacent = isinstance(base, Snapshot)  # nothing unwanted since the last one, or since the base
    guids = {snapshot.guid for snapshot in wanted}
    for snapshot in (snapshot for snapshot in ordered if snapshot.createtxg > base.createtxg):
        if snapshot.guid not in guids:
            adjacent = False
            continue
        if growing and adjacent:
            groups[-1].append(snapshot)
        else:
            groups.append([snapshot])
            growing = adjacent and not minimal
        adjacent = True
    return groups


def _sent(send: Send) -> tuple[Snapshot, ...]:
    return (*send.through, send.snapshot)


def _parents(path: Dataset, sides: Sides, policy: ReplicationPolicy) -> Iterator[Step]:
    """The root and what lies between it and the replica, where missing, outermost first."""
    between = path.rpartition("/")[0].removeprefix(policy.root).split("/")
    name: str = policy.root
    for part in between:
        name = f"{name}/{part}" if part else name
        if name not in sides.target.volumes and name not in sides.target.roots:
            owner = policy.owner if name == policy.root and not policy.append_only else ""
            yield CreateParent(host=policy.host, dataset=Dataset(name), owner=owner)


def _holds(
    source: Volume,
    top: Base,
    there: Iterable[Snapshot],
    path: Dataset,
    sides: Sides,
    policy: ReplicationPolicy,
) -> Iterator[Step]:
    """Hold the newest common snapshot, then release what our tag may still hold.

    A listing counts holds but does not name them: a count on the newest is taken to be ours, and one on
    any older snapshot of ours may be. `execute` takes the release of a tag that is not there for done.
    """
    newest = next(snapshot for snapshot in there if snapshot.guid == top.guid)
    if not policy.hold_tag or policy.append_only or stamp_of(newest) is None:
        return
    if newest.userrefs == 0:
        yield Hold(host=policy.host, snapshot=newest, tag=policy.hold_tag)
    others = [snapshot for snapshot in there if snapshot.guid != top.guid]
    for name in _old_generations(source, path, sides):
        others += sides.target.volumes[name].snapshots
    for snapshot in others:
        if snapshot.userrefs and stamp_of(snapshot) is not None:
            yield Release(host=policy.host, snapshot=snapshot, tag=policy.hold_tag)


def _old_generations(source: Volume, path: Dataset, sides: Sides) -> list[Dataset]:
    """Other datasets received from this source, or lying where this replica's earlier generations do.

    Their newest need no hold any more: they age out by policy.
    """
    names = {*sides.owned.get(source.guid, ()), *sides.siblings.get(usual_path(path), ())}
    volumes = (sides.target.volumes[name] for name in sorted(names - {path}))
    return [volume.name for volume in volumes if not foreign_owner(source, volume, sides)]


def _bookmarks(source: Volume, top: Base, way: Route, policy: ReplicationPolicy) -> tuple[list[Step], list[Step]]:
    """What is done before and after the streams so that a bookmark stands beside the newest common snapshot.

    Those that earlier runs made for what never arrived go before: two stand at any time, no more. Without a common base
    those stay, until the full stream has arrived, that may yet show up again: the two oldest, between which the base
    was when a replica was last seen; the newest, as its receive may go on still; and what an interrupted one is to
    become. Full streams that fail again and again leave no more, and hold up no pruning (`plan/prune.py`, `_unseen`).
    """
    if isinstance(top, Snapshot) and top.point is None:
        return [], []  # a foreign one has none of ours beside it
    ours = [bookmark for bookmark in source.bookmarks if bookmark_target(bookmark) == policy.host]
    ours.sort(key=lambda bookmark: (bookmark.createtxg, bookmark.name))
    name = bookmark_name(top, policy.host) if isinstance(top, Snapshot) else ""
    before: list[Step] = []
    after: list[Step] = []
    others = [bookmark for bookmark in ours if bookmark.guid != top.guid]
    bases = (way.common,) if way.common else (*others[:2], *others[-1:], way.base)
    needed = {base.guid for base in bases if base is not None}
    for bookmark in others:
        # A name is used again only after a snapshot was destroyed and made anew by hand.
        stays = bookmark.guid in needed and bookmark.name != name
        (after if stays else before).append(DestroyBookmark(bookmark=bookmark))
    if isinstance(top, Snapshot) and all(bookmark.guid != top.guid for bookmark in ours):
        before.append(CreateBookmark(snapshot=top, name=name))
    return before, after


def _overtaken(goal: Snapshot, top: Base, there: Iterable[Snapshot], policy: ReplicationPolicy) -> Iterator[str]:
    if top.createtxg > goal.createtxg and all(snapshot.guid != goal.guid for snapshot in there):
        yield (
            f"{goal.full_name} cannot be sent: {policy.host} already has {top.full_name}, which is newer; "
            "the next point will be"
        )


def _explain(
    ordered: list[Snapshot], sends: list[Send], top: Base, policy: ReplicationPolicy, resting: Set[PointId | None]
) -> Iterator[str]:
    if not sends:
        yield f"nothing to send: {policy.host} has {top.full_name}"
    start = sends[0].base if sends else top
    for send in sends:
        how = "full" if send.base is None else f"from {send.base.full_name}"
        with_ = f", with {len(send.through)} in between" if send.through else ""
        yield f"send {send.snapshot.full_name} {how}{with_}"
    if start is None:
        return
    guids = {snapshot.guid for send in sends for snapshot in _sent(send)}
    since = [s for s in ordered if s.createtxg > start.createtxg and s.guid not in guids]
    for snapshot in since:
        if snapshot.point in resting:
            yield f"{snapshot.full_name} is not sent: nothing was written since {start.full_name}, which stands for it"
        elif sends:
            why = "its point is not complete here" if snapshot.point else "it is not ours"
            yield f"{snapshot.full_name} is not sent: {why}"


def _blocked(conflict: Conflict) -> Plan:
    return Plan(conflicts=(conflict,), reasons=(conflict.message,))
