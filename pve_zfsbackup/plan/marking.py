"""How a snapshot that arrived becomes part of a point there: which ones, and what its mark says of the disks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pve_zfsbackup.model import Dataset, Guid, Mark, Snapshot, Volume, decode_disks, encode_disks
from pve_zfsbackup.plan.pairing import same_ivset
from pve_zfsbackup.plan.route import ReplicationPolicy, Route
from pve_zfsbackup.plan.unchanged import References


def mark(snapshot: Snapshot, source: Volume, path: Dataset, policy: ReplicationPolicy, spared: References) -> Mark:
    """With the disks of the point that go to this target: there it is complete with them, and with the older
    snapshots that stand for some."""
    disks = ""
    same = stand_ins(snapshot, spared)
    if policy.left_out or same:
        all_ = decode_disks(snapshot.disks)
        going = [replace(d, same=same.get(d.guid, d.same)) for d in all_ if d.guid not in policy.left_out]
        disks = encode_disks(going) if going != list(all_) else ""
    return Mark(host=policy.host, source=snapshot, dataset=path, volume=source.guid, disks=disks)


def stand_ins(snapshot: Snapshot, spared: References) -> Mapping[Guid, Guid]:
    """The disks of its point that an older snapshot stands for, by the guid of their dataset."""
    return spared.get(snapshot.point, {}) if snapshot.point else {}


def unmarked(source: Volume, way: Route) -> Iterator[Snapshot]:
    """Received, but a kill came before the mark: known by guid. A renamed one is no longer ours."""
    bare = [snapshot for snapshot in way.snapshots if snapshot.point is None]  # nearly always none
    ours = {snapshot.guid: snapshot for snapshot in source.snapshots if snapshot.point} if bare else {}
    for snapshot in sorted(bare, key=lambda snapshot: (snapshot.createtxg == 0, snapshot.createtxg)):
        origin = ours.get(snapshot.guid)
        if origin is None or origin.name != snapshot.name:
            continue
        if same_ivset(origin.ivset, snapshot.ivset):
            yield origin
