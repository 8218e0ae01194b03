"""Which dataset of a target is the replica of which source volume, and what both have in common.

Identity is the snapshot guid, never a name (DESIGN §2): renamed datasets and generations are followed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from pve_zfsbackup.model import Bookmark, Dataset, Guid, Listing, PointId, Snapshot, Volume
from pve_zfsbackup.plan.drafts import GENERATION
from pve_zfsbackup.plan.features import PoolProps
from pve_zfsbackup.plan.points import complete_points, stamp_of

Base = Snapshot | Bookmark
_CREATETXG: Final = attrgetter("createtxg")
GENERATIONS = 4  # of one dataset beside its first replica; whoever needs more has trouble that no copy mends


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Source and one target, indexed once for all disks; see `compare`."""

    source: Listing
    target: Listing
    complete: frozenset[PointId]  # on the source
    alive: frozenset[Guid]  # guids of the datasets on the source
    holders: Mapping[Guid, tuple[Dataset, ...]]  # snapshot guid -> datasets of the target that have it
    owned: Mapping[Guid, tuple[Dataset, ...]]  # source dataset guid -> datasets of the target received from it
    siblings: Mapping[Dataset, tuple[Dataset, ...]]  # path without generation -> all generations there
    last: Mapping[str, Snapshot]  # vmid -> a snapshot of its newest point on the target
    pools: PoolProps | None = None  # asked for only where a full stream is to be expected


def compare(source: Listing, target: Listing) -> Sides:
    """Index both listings, in one pass over each."""
    owned: dict[Guid, list[Dataset]] = defaultdict(list)
    siblings: dict[Dataset, list[Dataset]] = defaultdict(list)
    last: dict[str, Snapshot] = {}
    for name in sorted(target.volumes):
        volume = target.volumes[name]
        if newest := max((s for s in volume.snapshots if s.point), key=_CREATETXG, default=None):
            vmid = str(newest.point).partition("/")[0]
            if vmid not in last or last[vmid].creation < newest.creation:
                last[vmid] = newest
        owned[owner(volume)].append(name)
        siblings[usual_path(name)].append(name)
    return Sides(
        source=source,
        target=target,
        complete=complete_points(source),
        alive=frozenset(volume.guid for volume in source.volumes.values()),
        holders=holders(target),
        owned={guid: tuple(names) for guid, names in owned.items() if guid},
        siblings={path: tuple(names) for path, names in siblings.items()},
        last=last,
    )


def holders(target: Listing) -> Mapping[Guid, tuple[Dataset, ...]]:
    """Which datasets have the snapshot with this guid; nearly always one."""
    found: dict[Guid, tuple[Dataset, ...]] = {}
    for name in sorted(target.volumes):
        alone = (name,)  # one for all of them: a listing may have a million
        for snapshot in target.volumes[name].snapshots:
            known = found.get(snapshot.guid)
            found[snapshot.guid] = (*known, name) if known else alone
    return found


def owner(replica: Volume) -> Guid:
    """Guid of the source dataset the newest marked snapshot was taken of; empty when none is marked."""
    marked = (snapshot for snapshot in replica.snapshots if snapshot.volume)
    newest = max(marked, key=_CREATETXG, default=None)
    return newest.volume if newest else Guid("")


def bases(source: Volume) -> tuple[Base, ...]:
    """All a send of this volume may start from."""
    return source.snapshots + source.bookmarks


def common_base(source: Volume, replica: Volume) -> Base | None:
    """The newest of the source, by its createtxg, that the replica has; a snapshot rather than its bookmark."""
    there = {snapshot.guid: snapshot.ivset for snapshot in replica.snapshots}
    common = [base for base in bases(source) if base.guid in there and same_ivset(base.ivset, there[base.guid])]
    return max(common, key=lambda base: (base.createtxg, isinstance(base, Snapshot), base.name), default=None)


def same_ivset(one: Guid, other: Guid) -> bool:
    """A raw stream goes on only from the very same encrypted blocks: a receive that was not raw kept the guid and
    made others (reliability §0.5). Unknown (not encrypted, or an old bookmark) rules nothing out."""
    return not one or not other or one == other


def full_due(source: Volume, sides: Sides, root: Dataset) -> bool:
    """Whether a full stream is due: something is to be sent, and nothing below `root` that it may go on from."""
    if not any(snapshot.point in sides.complete for snapshot in source.snapshots):
        return False
    replica = find_replica(source, sides, root, root)
    return replica is None or turned_back(source, replica)


def turned_back(source: Volume, replica: Volume) -> bool:
    """Whether the source was put back by us to an older state than the replica's: what is newer there is history to be
    kept, and no conflict. It goes on in a new generation."""
    base = common_base(source, replica) if source.restored else None
    if base is None:
        return False
    since = newer_than(replica, base)
    return bool(since) and all(stamp_of(snapshot) for snapshot in since)


def newer_than(replica: Volume, base: Base) -> list[Snapshot]:
    """What the replica has since a base that it has, oldest first."""
    start = next(snapshot for snapshot in replica.snapshots if snapshot.guid == base.guid)
    return sorted((s for s in replica.snapshots if s.createtxg > start.createtxg), key=_CREATETXG)


def find_replica(source: Volume, sides: Sides, root: Dataset, prefer: Dataset) -> Volume | None:
    """The volume under `root` with the newest common base; among equals `prefer`, then by name.

    One that was received from another dataset which still exists is that one's, even when guids are shared
    (a disk copied with its snapshots): two sources must never feed one replica.
    """
    places = {sides.holders.get(base.guid, ()) for base in bases(source)}
    names = {name for place in places for name in place if name.startswith(f"{root}/")}
    found = []
    for name in names:
        replica = sides.target.volumes[name]
        base = common_base(source, replica)
        if base is not None and not foreign_owner(source, replica, sides):
            found.append((base.createtxg, owner(replica) == source.guid, name == prefer, name))
    return sides.target.volumes[max(found)[-1]] if found else None


def foreign_owner(source: Volume, replica: Volume, sides: Sides) -> bool:
    """Whether the replica belongs to another dataset that still exists on the source."""
    other = owner(replica)
    return bool(other) and other != source.guid and other in sides.alive


def generation_paths(default: Dataset, source: Volume) -> tuple[Dataset, ...]:
    """Where a dataset with a new identity goes when its replica's usual path is taken (DESIGN §3.5), and where the same
    one goes when it lost its base once more. All look alike: receivers know generations by their form."""
    again = (hashlib.sha256(f"{source.guid} {number}".encode()).hexdigest() for number in range(2, GENERATIONS + 1))
    return tuple(Dataset(f"{default}-g{digits[:8]}") for digits in (f"{int(source.guid):016x}", *again))


def usual_path(path: Dataset) -> Dataset:
    """The path without the mark of a generation."""
    return Dataset(GENERATION.sub("", path))
