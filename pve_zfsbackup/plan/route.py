"""Where one disk goes on one target: on from a replica, into a resumed receive, or as a full stream."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pve_zfsbackup.model import (
    AbortReceive,
    Conflict,
    Dataset,
    Disk,
    Guid,
    Resume,
    ResumeToken,
    Snapshot,
    Step,
    Volume,
    decode_disks,
    printable,
)
from pve_zfsbackup.plan.pairing import (
    Base,
    Sides,
    bases,
    common_base,
    find_replica,
    foreign_owner,
    generation_paths,
    newer_than,
    same_ivset,
    turned_back,
)
from pve_zfsbackup.plan.points import bookmark_target, stamp_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationPolicy:
    """How disks go to one target.

    Without `hold_tag` nothing is held. An `append_only` target holds and releases by itself, with the same tag:
    there every snapshot of ours is held, and from here nothing is said about it.
    """

    host: str
    root: Dataset
    hold_tag: str
    minimal: bool = False  # never `-I`: one side is older than OpenZFS 2.2, or takes no packages
    append_only: bool = False
    owner: str = ""  # what the root is marked with when it is made
    adopt: bool = False  # the root exists, and is nobody's yet
    limited: bool = False  # the account there is bound by `snapshot_limit` and `filesystem_limit`, as root is not
    left_out: frozenset[Guid] = frozenset()  # guids of source datasets that do not go there, though points have them


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The way found. `snapshots` are on the replica after `steps`; without `base` a full stream follows.

    `common` is the base before `steps`: what stays so when they are cut off.
    """

    path: Dataset
    common: Base | None = None
    base: Base | None = None
    snapshots: tuple[Snapshot, ...] = ()
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()  # those of them that somebody is to be told of
    reasons: tuple[str, ...] = ()


def default_path(disk: Disk, policy: ReplicationPolicy) -> Dataset:
    """`<root>/<storage>/<volume>` (DESIGN §3.5)."""
    return Dataset(f"{policy.root}/{disk.storage}/{disk.volume}")


def route(disk: Disk, source: Volume, sides: Sides, policy: ReplicationPolicy) -> Route | Conflict:
    """Find the replica by guid, else a free path; judge resume tokens first. Divergence is a `Conflict`."""
    usual = default_path(disk, policy)
    replica = find_replica(source, sides, policy.root, usual)
    if replica is None:
        return _told_of_move(_settle(usual, source, sides, policy), disk, source, sides, policy)
    if turned_back(source, replica):
        why = "has points newer than the one {} was restored or rolled back to"
        return _settle(usual, source, sides, policy, why)
    return _follow(replica, source, sides, policy)


def _told_of_move(
    way: Route | Conflict, disk: Disk, source: Volume, sides: Sides, policy: ReplicationPolicy
) -> Route | Conflict:
    """A disk that was another volume in the guest's newest point there is sent in full: not without a word."""
    newest = max((s for s in source.snapshots if s.point), key=lambda s: s.createtxg, default=None)
    last = sides.last.get(str(newest.point).partition("/")[0]) if newest else None
    if isinstance(way, Conflict) or way.base is not None or way.alarms or last is None:
        return way
    former = {one.key: one.volid for one in decode_disks(last.disks)}.get(disk.key, disk.volid)
    if former == disk.volid:
        return way
    told = (
        f"{disk.key} is {disk.volid} now and was {printable(former[:200])} in the newest point on {policy.host}:"
        f" it is sent in full into {way.path}, the replica of before stays"
    )
    return replace(way, warnings=(*way.warnings, told), alarms=(told,), reasons=(*way.reasons, told))


def received(snapshot: Snapshot, dataset: Dataset) -> Snapshot:
    """What a receive makes of a source snapshot: same name and guid, no properties, a createtxg yet unknown."""
    blank = Snapshot(dataset=dataset, name=snapshot.name, guid=snapshot.guid, createtxg=0, creation=snapshot.creation)
    return replace(blank, refer=snapshot.refer)


def _follow(replica: Volume, source: Volume, sides: Sides, policy: ReplicationPolicy) -> Route | Conflict:
    base = common_base(source, replica)
    if base is None:
        raise AssertionError("a replica without a common base is not a replica")
    if obstacle := _mode_conflict(replica, source, sides, policy) or _divergence(replica, base, policy):
        return obstacle
    kind = "snapshot" if isinstance(base, Snapshot) else "bookmark, its snapshot is gone"
    why = f"base {base.full_name} ({kind}): the newest common guid, and the newest on {replica.name}"
    way = Route(path=replica.name, common=base, base=base, snapshots=replica.snapshots, reasons=(why,))
    if replica.resume is None:
        return way
    if fault := _unusable(replica.resume, source, replica):
        return _abort(way, replica, policy, fault)
    return _resume(way, replica.resume, source, policy)


def _settle(
    usual: Dataset, source: Volume, sides: Sides, policy: ReplicationPolicy, because: str = ""
) -> Route | Conflict:
    """No replica to go on with: go on with an interrupted full stream, or find a path for a new one. `because` says why
    what there is in common does not count."""
    paths = (usual, *generation_paths(usual, source))
    volumes = [volume for path in paths if (volume := sides.target.volumes.get(path))]
    nothing = f"no dataset under {policy.root} has anything in common with {source.name}"
    way = Route(path=usual, reasons=(f"the replica {because.format(source.name)}" if because else nothing,))
    freed = set()
    for volume in (volume for volume in volumes if volume.resume and not foreign_owner(source, volume, sides)):
        assert volume.resume is not None
        fault = _unusable(volume.resume, source, volume)
        if not fault:
            return _resume(replace(way, path=volume.name), volume.resume, source, policy)
        if not volume.snapshots:
            freed.add(volume.name)
        if not volume.snapshots or any(snapshot.point for snapshot in volume.snapshots):
            way = _abort(way, volume, policy, fault)
    taken = [volume.name for volume in volumes if volume.name not in freed]
    free = [path for path in paths if path not in taken]
    if not free:
        message = f"no free path for {source.name} on {policy.host}: all of them hold something else"
        command = f"zfs rename {shlex.quote(paths[1])} {shlex.quote(paths[1] + '-old')}"
        return Conflict(
            kind="path-taken",
            object=paths[1],
            message=message,
            evidence=tuple(_describe(volume) for volume in volumes),
            resolve=f"on {policy.host}: {command}",
        )
    if free[0] == usual and not any(bookmark_target(bookmark) == policy.host for bookmark in source.bookmarks):
        return replace(way, path=usual)
    if free[0] == usual:
        gone = f"{policy.host} has no replica of {source.name} although one was sent there: it is sent in full"
        return replace(way, path=usual, warnings=(*way.warnings, gone), alarms=(gone,), reasons=(*way.reasons, gone))
    why = because or "has nothing in common with {} (guest recreated, disk moved, or every common base lost)"
    if not because and _recrypted(source, volumes):
        why = "has snapshots of {} that were not received raw (same guid, another IV set): nothing goes on from them"
    warning = f"new generation {free[0]} on {policy.host}: {usual} {why.format(source.name)}; the old one stays"
    told = (*way.warnings, warning)
    return replace(way, path=free[0], warnings=told, alarms=(warning,), reasons=(*way.reasons, warning))


def _recrypted(source: Volume, volumes: list[Volume]) -> bool:
    guids = {base.guid for base in bases(source)}
    return any(snapshot.guid in guids for volume in volumes for snapshot in volume.snapshots)


def _unusable(token: ResumeToken, source: Volume, replica: Volume) -> str:
    """Why an interrupted receive cannot go on; empty when it can."""
    if not token.to_guid:
        return "its token is not understood"
    if token.raw != source.encrypted:
        return f"it is {_mode(token.raw)}, the source is sent {_mode(source.encrypted)}"
    goal = next((s for s in source.snapshots if s.guid == token.to_guid and s.point), None)
    if goal is None:
        return f"snapshot {token.to_guid} is not, or no longer, one of our points on {source.name}"
    if not replica.snapshots:
        return f"it needs {token.from_guid}, which is not there" if token.from_guid else ""
    newest = _newest(replica)
    if not token.from_guid or newest.guid != token.from_guid:
        return f"it does not continue {newest.full_name}, the newest on the replica"
    start = next((b for b in bases(source) if b.guid == token.from_guid), None)
    if start is None or start.createtxg >= goal.createtxg:
        return f"its base {token.from_guid} no longer exists on {source.name}"
    if not same_ivset(start.ivset, newest.ivset):
        return f"{newest.full_name} has another IV set than its base on {source.name}: it was not received raw"
    return ""


def _resume(way: Route, token: ResumeToken, source: Volume, policy: ReplicationPolicy) -> Route:
    goal = next(snapshot for snapshot in source.snapshots if snapshot.guid == token.to_guid)
    step = Resume(host=policy.host, token=token.token, snapshot=goal, dataset=way.path, raw=source.encrypted)
    return replace(
        way,
        base=goal,
        snapshots=(*way.snapshots, received(goal, way.path)),
        steps=(*way.steps, step),
        reasons=(*way.reasons, f"resume the interrupted receive of {goal.full_name} into {way.path}"),
    )


def _abort(way: Route, replica: Volume, policy: ReplicationPolicy, fault: str) -> Route:
    step = AbortReceive(host=policy.host, dataset=replica.name, reason=fault)
    note = f"interrupted receive into {replica.name} on {policy.host} is thrown away: {fault}"
    return replace(way, steps=(*way.steps, step), warnings=(*way.warnings, note), reasons=(*way.reasons, note))


def _divergence(replica: Volume, base: Base, policy: ReplicationPolicy) -> Conflict | None:
    """A receive needs the base to be the newest snapshot there; what is newer is never rolled back from here."""
    start = next(snapshot for snapshot in replica.snapshots if snapshot.guid == base.guid)
    newer = newer_than(replica, base)
    if not newer:
        return None
    foreign = [snapshot for snapshot in newer if stamp_of(snapshot) is None]
    what = f"{len(newer)} snapshots newer than the common base {start.full_name}"
    if foreign:
        kind, message = "foreign-snapshot", f"{policy.host} has {what}, {len(foreign)} of them not ours"
    else:
        kind, message = "diverged", f"{policy.host} has {what} that the source does not know"
    if len(foreign) == len(newer):
        names = ",".join(snapshot.name for snapshot in newer)
        commands = [f"zfs destroy {shlex.quote(f'{replica.name}@{names}')}"]
    else:
        held = [s for s in newer if s.userrefs and policy.hold_tag]
        commands = [f"zfs release {shlex.quote(policy.hold_tag)} {shlex.quote(s.full_name)}" for s in held]
        commands.append(f"zfs rollback -r {shlex.quote(start.full_name)}")
    return Conflict(
        kind=kind,
        object=replica.name,
        message=message,
        evidence=tuple(_evidence(snapshot) for snapshot in newer),
        resolve=f"on {policy.host}, destroys what is listed: {' && '.join(commands)}",
    )


def _mode_conflict(replica: Volume, source: Volume, sides: Sides, policy: ReplicationPolicy) -> Conflict | None:
    """Raw and non-raw streams must not meet in one replica (reliability §1): it is not readable any more."""
    if replica.encrypted == source.encrypted:
        return None
    parent = sides.target.volumes.get(Dataset(replica.name.rpartition("/")[0]))
    if replica.encrypted and parent is not None and parent.encrypted:
        return None  # plain streams, encrypted by the target with its own key
    was, now = _mode(replica.encrypted), _mode(source.encrypted)
    message = f"{replica.name} was received {was}, {source.name} is now sent {now}"
    pool, slash, _ = policy.root.partition("/")
    outside = f"{pool}/{replica.name.rpartition('/')[2]}-old"
    command = f"zfs rename {shlex.quote(replica.name)} {shlex.quote(outside)}"
    return Conflict(
        kind="mode",
        object=replica.name,
        message=message,
        resolve=f"to start anew on {policy.host}: {command if slash else 'use another root for this job'}",
    )


def _newest(volume: Volume) -> Snapshot:
    return max(volume.snapshots, key=lambda snapshot: snapshot.createtxg)


def _mode(raw: bool) -> str:
    return "raw" if raw else "not raw"


def _evidence(snapshot: Snapshot) -> str:
    when = datetime.fromtimestamp(snapshot.creation, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    mine = "ours" if stamp_of(snapshot) else "not ours"
    held = ", held" if snapshot.userrefs else ""
    return f"{snapshot.full_name} guid {snapshot.guid} of {when}, {mine}{held}"


def _describe(volume: Volume) -> str:
    state = "an interrupted receive" if volume.resume else "no interrupted receive"
    return f"{volume.name} guid {volume.guid}: {len(volume.snapshots)} snapshots, {state}"
