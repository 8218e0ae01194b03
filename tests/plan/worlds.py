"""Small worlds for the planners' tests, written as one word per instant.

The first letter is the source: `o` ours, `O` ours with a bookmark for the target, `b` the bookmark alone,
`i` ours but of a point that is not complete, `f` foreign, `-` nothing. The second is the target: `m` marked,
`h` marked and held, `u` received but unmarked, `f` the same foreign one, `x` one the target made, `-` nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from pve_zfsbackup.model import (
    SOURCE,
    Bookmark,
    Dataset,
    Disk,
    Guest,
    GuestKind,
    Guid,
    Listing,
    Plan,
    PointDisk,
    PointId,
    ResumeToken,
    Snapshot,
    Vmid,
    Volume,
    World,
    encode_disks,
)
from pve_zfsbackup.plan.replication import ReplicationPolicy, compare, plan_replication

HOST = "backup1"
ROOT = Dataset("tank/backups")
ZVOL = Dataset("rpool/data/vm-100-disk-0")
OTHER = Dataset("fast/vm-100-disk-0")
REPLICA = Dataset(f"{ROOT}/local-zfs/vm-100-disk-0")
GENERATION = Dataset(f"{REPLICA}-g00000000")  # guid 1011 has no high digits
SOURCE_GUID = Guid("1011")
OTHER_GUID = Guid("1099")
TAG = "pve-zfsbackup:nightly"
DISK = Disk(key="scsi0", volid="local-zfs:vm-100-disk-0", storage="local-zfs", volume="vm-100-disk-0", dataset=ZVOL)
OTHER_DISK = Disk(key="scsi1", volid="fast:vm-100-disk-0", storage="fast", volume="vm-100-disk-0", dataset=OTHER)
GUEST = Guest(vmid=Vmid(100), kind=GuestKind.VM, node="pve1", name="web", running=True, disks=(DISK,))
POLICY = ReplicationPolicy(host=HOST, root=ROOT, hold_tag=TAG)
DAY0 = 1_795_000_000  # 2026-11-18T10:26:40Z

KINDS = ("--", "o-", "O-", "om", "ou", "oh", "Om", "Oh", "bm", "bh", "b-", "-m", "-x", "f-", "ff", "i-")
ONE = encode_disks([PointDisk(key="scsi0", volid=DISK.volid, guid=SOURCE_GUID)])
TWO = encode_disks(
    [
        PointDisk(key="scsi0", volid=DISK.volid, guid=SOURCE_GUID),
        PointDisk(key="scsi1", volid=OTHER_DISK.volid, guid=OTHER_GUID),
    ]
)


def stamp(number: int) -> str:
    return f"20261118T10{26 + number:02d}40Z-{number:04x}"


def guid(number: int) -> Guid:
    return Guid(str(2000 + (number * 7919) % 1000))  # guids do not grow with time


def snapshot(number: int, dataset: Dataset, *, ours: bool = True, disks: str = ONE) -> Snapshot:
    """The snapshot of instant `number` (from 1), an hour after the one before."""
    return Snapshot(
        dataset=dataset,
        name=f"pzb:{stamp(number)}" if ours else f"manual{9 - number}",
        guid=guid(number),
        createtxg=100 * number,
        creation=DAY0 + 3600 * number,
        point=PointId(f"100/{stamp(number)}") if ours else None,
        disks=disks if ours else "",
        consistency="quiesced" if ours else "",
    )


def bookmark(number: int, host: str = HOST, dataset: Dataset = ZVOL) -> Bookmark:
    made = snapshot(number, dataset)
    return Bookmark(
        dataset=dataset,
        name=f"{made.name}:{host}",
        guid=made.guid,
        createtxg=made.createtxg,
        creation=made.creation,
    )


def source_volume(history: Sequence[str], *, raw: bool = False) -> Volume:
    snapshots = []
    bookmarks = []
    for number, kind in enumerate(history, 1):
        if kind[0] in "oOi":
            snapshots.append(snapshot(number, ZVOL, disks=TWO if kind[0] == "i" else ONE))
        if kind[0] == "f":
            snapshots.append(snapshot(number, ZVOL, ours=False))
        if kind[0] in "Ob":
            bookmarks.append(bookmark(number))
    return Volume(
        name=ZVOL,
        guid=SOURCE_GUID,
        type="volume",
        encrypted=raw,
        snapshots=tuple(snapshots),
        bookmarks=tuple(bookmarks),
    )


def replica_volume(history: Sequence[str], *, raw: bool = False, name: Dataset = REPLICA) -> Volume:
    snapshots = []
    for number, kind in enumerate(history, 1):
        there = snapshot(number, name, ours=kind[1] != "f")
        there = replace(there, createtxg=7 * number)
        if kind[1] in "mh":
            snapshots.append(replace(there, volume=SOURCE_GUID, userrefs=int(kind[1] == "h")))
        if kind[1] == "u":
            snapshots.append(replace(there, point=None, disks="", consistency=""))
        if kind[1] == "f":
            snapshots.append(there)
        if kind[1] == "x":
            foreign = replace(there, name=f"admin{number}", guid=Guid(str(9000 + number)))
            snapshots.append(replace(foreign, point=None, disks="", consistency=""))
    return Volume(name=name, guid=Guid("77"), type="volume", encrypted=raw, snapshots=tuple(snapshots))


def parent(name: str) -> Volume:
    return Volume(name=Dataset(name), guid=Guid(str(len(name))), type="filesystem")


def listing(host: str, *volumes: Volume) -> Listing:
    return Listing(host=host, volumes={volume.name: volume for volume in volumes})


def build(history: Sequence[str], *, raw: bool = False, token: ResumeToken | None = None) -> World:
    """Source with one disk (and a second volume that no complete point has), and one target with its replica."""
    replica = replace(replica_volume(history, raw=raw), resume=token)
    other = Volume(name=OTHER, guid=OTHER_GUID, type="volume")
    target = [parent(ROOT), parent(f"{ROOT}/local-zfs")]
    if replica.snapshots or token:
        target.append(replica)
    return {SOURCE: listing(SOURCE, source_volume(history, raw=raw), other), HOST: listing(HOST, *target)}


def replicate(world: World, policy: ReplicationPolicy = POLICY, disk: Disk = DISK) -> Plan:
    return plan_replication(disk, compare(world[SOURCE], world[policy.host]), policy)


def shuffled(world: World, seed: int = 1) -> World:
    """The same facts in another order."""
    order = random.Random(seed)
    mixed = {}
    for host in reversed(list(world)):
        volumes = list(world[host].volumes.values())
        order.shuffle(volumes)
        for number, volume in enumerate(volumes):
            snapshots, bookmarks = list(volume.snapshots), list(volume.bookmarks)
            order.shuffle(snapshots)
            order.shuffle(bookmarks)
            volumes[number] = replace(volume, snapshots=tuple(snapshots), bookmarks=tuple(bookmarks))
        mixed[host] = replace(world[host], volumes={volume.name: volume for volume in volumes})
    return mixed


def guids(volume: Volume | None) -> set[Guid]:
    return {found.guid for found in volume.snapshots} if volume else set()
