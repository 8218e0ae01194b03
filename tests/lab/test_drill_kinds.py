"""Drills of disks with other file systems than a Linux server's usual ones, all real: btrfs is opened, NTFS and a pool
of the guest's own are recognised and left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.product import Product, quick
from tests.lab.test_drill import CLEAR, LEFT, MAKING

ROOT = "rpool/kinds"
BTRFS, BROKEN, WINDOWS, POOL = 921, 922, 923, 924
MAKE = rf"""{MAKING}
disk {BTRFS} 400M; part; mkfs.btrfs -q "$d-part2"; mount "$d-part2" "$at"; btrfs subvolume create "$at/@"
fill "$at/@"; echo top > "$at/top"; umount "$at"; point {BTRFS} scsi0 vm-{BTRFS}-disk-0
disk {BROKEN} 300M; mkfs.btrfs -q "$d"; mount "$d" "$at"; fill "$at"; umount "$at"
# All but its superblocks, at 64 KiB and 64 MiB.
dd if=/dev/urandom of="$d" bs=1M seek=20 count=43 conv=notrunc,fsync status=none
dd if=/dev/urandom of="$d" bs=1M seek=66 count=200 conv=notrunc,fsync status=none
point {BROKEN} scsi0 vm-{BROKEN}-disk-0
disk {WINDOWS} 200M; part; mkntfs -Q -q -F -L data "$d-part2"; point {WINDOWS} scsi0 vm-{WINDOWS}-disk-0
truncate -s 128M /var/tmp/inner.img; zpool create -O mountpoint=none inner /var/tmp/inner.img; zpool export inner
disk {POOL} 128M; dd if=/var/tmp/inner.img of="$d" bs=1M conv=fsync status=none; rm /var/tmp/inner.img
point {POOL} scsi0 vm-{POOL}-disk-0
"""


@pytest.fixture(scope="module")
def product(product: Product) -> Product:
    return quick(product)


@pytest.fixture(scope="module")
def guests(product: Product) -> Iterator[Host]:
    host = product.pve1
    host.script(CLEAR, ROOT, timeout=300)
    try:
        host.script(MAKE, ROOT, timeout=900)
        yield host
    finally:
        host.script("zpool export inner 2> /dev/null || :; rm -f /var/tmp/inner.img")
        host.script(CLEAR, ROOT, timeout=300)


def looks(end: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(look["place"], look["kind"], look["text"].partition(",")[0]) for look in end["looks"]}


def test_each_kind_is_opened_or_called_by_its_name(product: Product, guests: Host) -> None:
    found = product.json("verify", "drill", "--local", ROOT, check=False)
    assert found["failed"] == [], found
    ends = {end["vmid"]: end for end in found["drills"]}
    levels = {BTRFS: "files", BROKEN: "failed", WINDOWS: "recognised", POOL: "recognised"}
    assert {vmid: end["level"] for vmid, end in ends.items()} == levels, found
    assert (ends[BTRFS]["problems"], ends[BTRFS]["system"]) == ([], "Debian lab"), "its root is a subvolume"
    assert ("partition 2", "btrfs", "system: Debian lab") in looks(ends[BTRFS])
    assert not [note for note in ends[BTRFS]["notes"] if "not checked" in note], "by `btrfs check`"
    assert any("btrfs" in problem for problem in ends[BROKEN]["problems"])
    assert ("partition 2", "ntfs", "NTFS: recognised") in looks(ends[WINDOWS])
    assert ("", "zfs_member", "a ZFS pool of the guest's: never imported here") in looks(ends[POOL])
    assert guests.run(("zpool", "list", "-H", "-o", "name", "inner"), check=False).returncode, "nobody imported it"
    guests.script(LEFT)


def test_files_come_out_of_a_subvolume(product: Product, guests: Host) -> None:
    found = product.json("restore", str(BTRFS), "--files", "/srv/canary", "--local", ROOT)
    assert found["missing"] == []
    (shown,) = found["shown"]
    assert shown["path"].endswith("/srv/canary")
    guests.script(LEFT)
