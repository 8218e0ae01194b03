"""Random points of a simulated month restored and compared with what their guests held: all equal.

A day is one run (snapshot, replicate, prune) by the clock of both hosts, with something written on a VM's disk and into
a container before it; how both are then is remembered by the point's name. After it, points that exist at that time, on
the node or on the target, are picked at random and restored by the product: most as a disk laid beside, one in five as
a whole guest with a vmid of its own; each is read, compared and removed again.

The issue asks for five a day. Under emulation, a restore with its comparison takes 10 to 20 s, so that 155 of them need
the better part of an hour: PZB_MONTH_RESTORES (two a day without) and PZB_MONTH_DAYS (31) say how many, PZB_MONTH_SEED
which. What was restored stands in build/month-restores.json. Five a day were 155 of 155 equal (2026-11-27, ad5bd8e).
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.lab import month
from tests.lab.lab import TREE
from tests.lab.matrix import guests
from tests.lab.matrix.context import _CLEAN as CLEAN
from tests.lab.product import ACCOUNT, Product, quick

pytestmark = pytest.mark.long

DAYS = int(os.environ.get("PZB_MONTH_DAYS", "31"))
RESTORES = int(os.environ.get("PZB_MONTH_RESTORES", "2"))
SEED = int(os.environ.get("PZB_MONTH_SEED", "20261126"))
WHOLE = 5  # every so-manieth is a guest of its own
ROOT = "tank/month-restores"
CONFIG = "/root/month-restores.yaml"
VM, CT, COPY = 340, 341, 342
DISKS = {VM: f"rpool/data/vm-{VM}-disk-0", CT: f"rpool/data/subvol-{CT}-disk-0"}
KEYS = {VM: "scsi0", CT: "rootfs"}
TEXT = f"""\
timezone: UTC
targets:
  backup1: {{host: backup1, root: {ROOT}, keep: {month.keep_text(month.TARGET_KEEP)}}}
jobs:
  month: {{guests: ["{VM}", "{CT}"], targets: [backup1], keep: {month.keep_text(month.KEEP)}}}
runtime-dir: /run/pzb-month-restores
state-dir: /run/pzb-month-restores/state
journal-dir: /run/pzb-month-restores/journal
"""
_DAY = r"""
head -c 512K /dev/urandom | dd of="/dev/zvol/$1" bs=64K seek="$3" conv=notrunc,fsync status=none
head -c 64K /dev/urandom > "/$2/day-$4"; ln -sf "day-$4" "/$2/today"; rm -f "/$2/day-$(($4 - 3))"
chown "$4:$4" "/$2/day-$4"; zpool sync rpool
"""
_REMOVE = r"""
for dataset; do
  for i in $(seq 100); do zfs destroy -r "$dataset" && break; sleep 0.2; done
  if zfs list "$dataset" > /dev/null 2>&1; then exit 1; fi
done
"""
# All of ours and of these guests that is anywhere, besides the guests themselves and their points.
_LEFT = r"""
zfs list -H -o name -t filesystem,volume | grep -E "pzb-|-(3[4][0-9])-disk" | grep -vxF -e "$1" -e "$2" || :
ls /etc/pve/qemu-server /etc/pve/lxc | grep -E "^34[2-9]" || :
"""


@dataclass
class Month:
    product: Product
    held: dict[str, str] = field(default_factory=dict)  # point -> hash of its guest's disk when it was made
    restored: list[dict[str, Any]] = field(default_factory=list)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.product.run(*arguments, "--json", "--config", CONFIG).stdout)

    def clocks(self, at: float) -> None:
        for host in (self.product.pve1, self.product.backup1):
            host.run(("date", "-u", "-s", f"@{int(at)}"))

    def day(self, number: int) -> list[dict[str, Any]]:
        """Something is written, a point is made and sent on; the points that exist then."""
        pve1 = self.product.pve1
        pve1.script(_DAY, DISKS[VM], DISKS[CT], str(number * 8 % 200), str(number))
        report = self.json("run", "--stage", "snapshot", "--stage", "replicate", "--stage", "prune")
        assert [one["message"] for one in report["results"] if one["outcome"] == "failed"] == []
        found = guests.contents(pve1, tuple(DISKS.values()))
        for one in report["results"]:
            if one["stage"] == "snapshot":
                self.held[one["point"]] = found[DISKS[one["vmid"]]]
        return [point for point in self.json("list")["points"] if point["complete"]]

    def restore(self, point: dict[str, Any], *, whole: bool) -> dict[str, Any]:
        """By the product; how long it took, and whether what came back is what was there. Removed again."""
        pve1, vmid = self.product.pve1, int(point["vmid"])
        how = ("--as", str(COPY)) if whole else ("--disk", KEYS[vmid])
        started = time.monotonic()
        words = ("restore", str(vmid), "--at", point["point"], "--from", point["host"], *how, "--yes")
        done = self.json(*words)
        seconds = time.monotonic() - started
        assert (done["done"], done["point"]) == (True, point["point"]), done
        (disk,) = (str(one["dataset"]) for one in done["disks"])
        assert disk not in DISKS.values()
        if vmid == CT:
            pve1.run(("zfs", "mount", disk), check=False)  # as at its start
        (found,) = guests.contents(pve1, (disk,)).values()
        if whole:
            folder = "lxc" if vmid == CT else "qemu-server"
            assert os.path.basename(disk) in pve1.read(f"/etc/pve/{folder}/{COPY}.conf")
            pve1.run(("rm", f"/etc/pve/{folder}/{COPY}.conf"))
        pve1.script(_REMOVE, disk)
        return {
            "point": point["point"], "from": point["host"], "how": " ".join(how), "seconds": round(seconds, 1),
            "equal": found == self.held[point["point"]],
        }  # fmt: skip


@pytest.fixture(scope="module")
def lived(product: Product) -> Iterator[Month]:
    pve1, backup1 = product.pve1, product.backup1
    seen = Month(quick(product))
    try:
        _clean(product)
        guests.make(pve1, VM, mib=16)
        guests.make_container(pve1, CT, mib=32)
        backup1.script(ACCOUNT, pve1.read("/etc/pve-zfsbackup/id_ed25519.pub").strip(), ROOT)
        product.configure(TEXT, CONFIG)
        _live(seen)
        yield seen
    finally:
        seen.clocks(time.time())
        _clean(product)


def _live(seen: Month) -> None:
    chance, began = random.Random(SEED), time.monotonic()
    start = (int(time.time()) // month.DAY + 1) * month.DAY + 6 * month.HOUR
    count = 0
    for number in range(DAYS):
        seen.clocks(start + number * month.DAY)
        there = seen.day(number)
        for point in chance.choices(there, k=RESTORES):
            seen.restored.append({"day": number, **seen.restore(point, whole=count % WHOLE == 0)})
            count += 1
        told = ", ".join(f"{one['point']} {one['equal']}" for one in seen.restored[-RESTORES:])
        print(f"{time.monotonic() - began:5.0f} s  day {number}: {len(there)} points; {told}", flush=True)


def _clean(product: Product) -> None:
    for vmid in (VM, CT, COPY):
        guests.remove(product.pve1, vmid)
    product.pve1.script('zfs destroy -r rpool/data/pzb-restore 2> /dev/null || :; rm -rf "$1" "$2"',
                        CONFIG, "/run/pzb-month-restores")  # fmt: skip
    product.backup1.script(CLEAN, ROOT)


def test_every_restored_point_is_what_its_guest_held(lived: Month) -> None:
    (TREE / "build").mkdir(exist_ok=True)
    told = {"days": DAYS, "a_day": RESTORES, "seed": SEED, "restored": lived.restored}
    (TREE / "build/month-restores.json").write_text(json.dumps(told, indent=1) + "\n")
    assert len(lived.restored) == DAYS * RESTORES
    assert [one for one in lived.restored if not one["equal"]] == []


def test_they_were_of_both_hosts_both_kinds_and_of_any_age(lived: Month) -> None:
    """The control: a choice that is always the newest of one disk would prove little."""
    assert len(lived.held) == 2 * DAYS
    assert len(set(lived.held.values())) == 2 * DAYS, "each point holds something else"
    if len(lived.restored) >= 20:
        assert {one["from"] for one in lived.restored} == {"source", "backup1"}
        assert {int(one["point"].split("/")[0]) for one in lived.restored} == {VM, CT}
        assert {one["how"].split()[0] for one in lived.restored} == {"--as", "--disk"}
        assert len({one["point"] for one in lived.restored}) > min(len(lived.restored), len(lived.held)) // 2


def test_nothing_is_left_of_restores(lived: Month) -> None:
    assert lived.product.pve1.script(_LEFT, *DISKS.values()).lines == []
