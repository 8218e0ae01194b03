"""Whose snapshot is it, and whom do we stand in the way of?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pve_zfsbackup.model import SOURCE, Bookmark, Dataset, Guid, PointId, Snapshot, Volume
from pve_zfsbackup.plan.foreign import blocked_rollbacks, owner_of
from tests.plan.worlds import DISK, GUEST, OTHER, OTHER_DISK, ZVOL, listing


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("pzb:20261118T101010Z-ab12", "pve-zfsbackup"),
        ("__replicate_100-0_1795000000__", "pvesr"),
        ("__migration__", "migration"),
        ("__base__", "template"),
        ("vzdump", "vzdump"),
        ("rep_default_2026-11-23_18:00:01", "pve-zsync"),
        ("autodaily261123180000", "cv4pve"),
        ("before-upgrade", "proxmox"),
        ("auto", "proxmox"),
        ("autopilot", "proxmox"),
        ("zfs-auto-snap_hourly-2026-11-23-1800", "proxmox"),
        ("syncoid_pve1_2026-11-23:18:00:00", "other"),
        ("1st", "other"),
        ("pzb:2026", "other"),
        ("__replicate_100-0_1795000000__x", "other"),
    ],
)
def test_owner(name: str, owner: str) -> None:
    assert owner_of(name) == owner


def snap(dataset: Dataset, name: str, txg: int) -> Snapshot:
    point = PointId(f"100/{name[4:]}") if name.startswith("pzb:") else None
    return Snapshot(dataset=dataset, name=name, guid=Guid(f"{txg}{dataset}"), createtxg=txg, creation=txg, point=point)


def mark(dataset: Dataset, txg: int) -> Bookmark:
    name = f"{OURS}:backup1"
    return Bookmark(dataset=dataset, name=name, guid=Guid(f"{txg}{dataset}"), createtxg=txg, creation=txg)


OURS, LATER = "pzb:20261118T101010Z-ab12", "pzb:20261118T111010Z-ab13"
TWO = replace(GUEST, disks=(DISK, OTHER_DISK))


def volume(name: Dataset, *snapshots: Snapshot, marks: tuple[Bookmark, ...] = ()) -> Volume:
    return Volume(name=name, guid=Guid(name), type="volume", snapshots=snapshots, bookmarks=marks)


def test_the_newest_snapshot_of_proxmox_is_blocked_by_what_is_newer() -> None:
    first = volume(ZVOL, snap(ZVOL, "old", 1), snap(ZVOL, "new", 3), snap(ZVOL, OURS, 5), snap(ZVOL, LATER, 6))
    assert blocked_rollbacks(TWO, listing(SOURCE, first)) == {"new": 2}, "to old Proxmox does not roll back anyway"


def test_one_disk_is_enough() -> None:
    first = volume(ZVOL, snap(ZVOL, OURS, 2), snap(ZVOL, "s1", 3))
    second = volume(OTHER, snap(OTHER, "s1", 3), snap(OTHER, LATER, 4))
    assert blocked_rollbacks(TWO, listing(SOURCE, first, second)) == {"s1": 1}


def test_a_disk_we_do_not_protect_counts() -> None:
    left_out = replace(TWO, disks=(DISK, replace(OTHER_DISK, reason="excluded by job x")))
    second = volume(OTHER, snap(OTHER, "s1", 3), snap(OTHER, LATER, 4))
    assert blocked_rollbacks(left_out, listing(SOURCE, second)) == {"s1": 1}


def test_a_bookmark_alone_blocks_and_one_of_the_snapshot_itself_does_not() -> None:
    """`zfs rollback` without -r refuses newer bookmarks, after Proxmox's own check let it pass (pve-facts §0.1)."""
    at = volume(ZVOL, snap(ZVOL, "s1", 3), marks=(mark(ZVOL, 3),))
    newer = volume(ZVOL, snap(ZVOL, "s1", 3), marks=(mark(ZVOL, 4),))
    assert blocked_rollbacks(GUEST, listing(SOURCE, at)) == {}
    assert blocked_rollbacks(GUEST, listing(SOURCE, newer)) == {"s1": 0}


def test_nobody_else_is_our_business() -> None:
    first = volume(ZVOL, snap(ZVOL, "s1", 1), snap(ZVOL, "__replicate_100-0_17__", 2), snap(ZVOL, "vzdump", 3))
    assert blocked_rollbacks(GUEST, listing(SOURCE, first)) == {}
