"""What would make a receive fail half-way: a replica that was written to, no room, a pool that lacks a feature. Told
before anything is sent, from what is listed anyway."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from pve_zfsbackup.model import Conflict, Dataset, Listing, Resume, Send, Snapshot, Volume
from pve_zfsbackup.model.reasons import Fit
from pve_zfsbackup.plan.features import missing, read_only
from pve_zfsbackup.plan.pairing import Base, Sides, bases
from pve_zfsbackup.plan.points import bookmark_target
from pve_zfsbackup.plan.route import ReplicationPolicy

MARGIN = 10  # percent, for what the estimate does not know (reliability §1, "Full/quota")
UNMINDED = 32 << 10  # bytes that a changed log header alone may show as written; a receive does not mind that


def spoilt(source: Volume, replica: Volume, base: Base, policy: ReplicationPolicy) -> Conflict | None:
    """Whether the replica is not as the base, its newest snapshot, left it: a receive into it is refused
    (`dsl_dataset_modified_since_snap` of dsl_dataset.c).

    It was written to, or its newest snapshot was destroyed, which leaves what that one had in the dataset itself. Which
    of them a listing cannot tell. A receive looks more closely: what is overlooked here it refuses.
    """
    if replica.written <= UNMINDED:
        return None
    start = next(snapshot for snapshot in replica.snapshots if snapshot.guid == base.guid)
    known = {snapshot.guid for snapshot in replica.snapshots}
    gone = [
        f"{mark.full_name}: if that arrived there, it was destroyed since"
        for mark in source.bookmarks
        if bookmark_target(mark) == policy.host and mark.createtxg > base.createtxg and mark.guid not in known
    ]
    return Conflict(
        kind="target-written",
        object=replica.name,
        message=f"{replica.name} on {policy.host} has {readable(replica.written)} that none of its snapshots has: "
        "it was written to, or its newest snapshot was destroyed; nothing can be received into it",
        evidence=(f"newest there: {start.full_name} guid {start.guid}", *gone),
        resolve=f"on {policy.host}, throws away what was written since: zfs rollback {shlex.quote(start.full_name)}",
    )


def obstacle(source: Volume, sends: Sequence[Send], sides: Sides, policy: ReplicationPolicy) -> Conflict | None:
    """Why these streams cannot be received, if that is known."""
    if not sends:
        return None
    if sends[0].base is None and sides.pools is not None:
        pool = policy.root.partition("/")[0]
        if read_only(sides.pools):
            return Conflict(
                kind="target-readonly",
                object=pool,
                message=f"pool {pool} of {policy.host} is imported read-only: nothing can be received",
                resolve=f"on {policy.host}: zpool export {shlex.quote(pool)} && zpool import {shlex.quote(pool)}",
            )
        if lacking := missing(source, sides.pools):
            commands = " && ".join(f"zpool set feature@{name}=enabled {shlex.quote(pool)}" for name in lacking)
            return Conflict(
                kind="feature-missing",
                object=source.name,
                message=f"pool {pool} of {policy.host} lacks {', '.join(lacking)}, which the stream needs",
                resolve=f"on {policy.host}, if its OpenZFS knows the feature (there is no way back): {commands}",
            )
    return _no_room(source, sends, sides, policy)


def needed(source: Volume, streams: Sequence[Send | Resume], target: Listing) -> int:
    """Bytes of room for these streams of one disk, with a margin. Of an interrupted one that goes on, the part that
    is there does not count."""
    size = 0
    for stream in streams:
        if isinstance(stream, Send):
            size += estimated(source, [stream])
            continue
        volume = target.volumes.get(stream.dataset)
        token = volume.resume if volume else None
        base = next((b for b in bases(source) if token and b.guid == token.from_guid), None)
        whole = Send(host=stream.host, snapshot=stream.snapshot, base=base, dataset=stream.dataset, raw=stream.raw)
        size += max(0, estimated(source, [whole]) - (token.received if token else 0))
    return size + size * MARGIN // 100


def estimated(source: Volume, sends: Iterable[Send]) -> int:
    """Bytes these streams may have, as far as the listing tells: no more than what each snapshot refers to, and no
    more than what was written since its base. Compressed data leaves as it lies on disk, so the figures are near."""
    total = 0
    for send in sends:
        base = send.base
        for snapshot in (*send.through, send.snapshot):
            total += snapshot.refer if base is None else min(snapshot.refer, _written(source, base, snapshot))
            base = snapshot
    return total


def _written(source: Volume, base: Base, snapshot: Snapshot) -> int:
    """Since the base. Where only its bookmark is left, the first snapshot after it tells of a longer time: it is left
    out, for nothing that would fit shall be refused."""
    since = [s for s in source.snapshots if base.createtxg < s.createtxg <= snapshot.createtxg]
    if all(s.guid != base.guid for s in source.snapshots):
        since.remove(min(since, key=lambda s: s.createtxg))
    return sum(s.written for s in since)


def fit(source: Volume, streams: Sequence[Send | Resume], target: Listing) -> Fit | None:
    """The room that these streams of one disk need, and what is left for them; None where that is not told."""
    place = _place(streams[0].dataset, target) if streams else None
    if place is None or place.available is None:
        return None
    return Fit(needed=needed(source, streams, target), available=place.available, place=place.name)


def _no_room(source: Volume, sends: Sequence[Send], sides: Sides, policy: ReplicationPolicy) -> Conflict | None:
    room = fit(source, sends, sides.target)
    if room is None or room.fits:
        return None
    return Conflict(
        kind="target-full",
        object=sends[0].dataset,
        message=f"about {readable(room.needed)} are needed on {policy.host}, {room.place} has "
        f"{readable(room.available)} left",
        evidence=(f"{len(sends)} streams of about {room.needed} bytes, {MARGIN} % on top; available {room.available}",),
        resolve=f"on {policy.host}: free space, or raise the quota (zfs get -r quota,refquota,available "
        f"{shlex.quote(policy.root)}); nothing is deleted from here to make room",
    )


def _place(path: Dataset, target: Listing) -> Volume | None:
    """The replica, or the nearest dataset above it that exists."""
    name: str = path
    while name:
        volume = target.volumes.get(Dataset(name))
        if volume is not None:
            return volume
        name = name.rpartition("/")[0]
    return None


def readable(count: int) -> str:
    """A size for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
