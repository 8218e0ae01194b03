"""The way back on real ZFS: guests of this module's own, restored from source and target, rolled back, replicated on.

The tests go on from each other.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.matrix import guests
from tests.lab.product import ACCOUNT, Product, hashes, quick, walked

pytestmark = pytest.mark.long

ROOT = "tank/restore-lab"
CONFIG = "/root/restore-lab.yaml"
VM, CRYPT, CT, COPY = 310, 311, 320, 330
TEXT = f"""\
targets:
  backup1:
    host: backup1
    root: {ROOT}
jobs:
  all:
    guests: ["{VM}", "{CRYPT}", "{CT}", "{COPY}"]
    targets: [backup1]
"""
STORAGES = {"local-zfs": "rpool/data", "fast": "fast", "crypt": "rpool/crypt"}
# Everything that a container's file system has: owners, times, an ACL, an attribute.
_FILES = r"""
cd "/$1"; mkdir -p etc; echo "$2" > etc/hostname; chown 100000:100000 etc; touch -d 2020-01-02 etc/hostname
python3 - etc/hostname <<'END'
import os, struct, sys
entries = [(1, 6, -1), (2, 4, 100033), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
os.setxattr(sys.argv[1], "system.posix_acl_access", acl)
os.setxattr(sys.argv[1], "user.note", b"kept")
END
zpool sync rpool
"""
_CLEAN = r"""
for vmid; do
  rm -f "/etc/pve/qemu-server/$vmid.conf" "/etc/pve/lxc/$vmid.conf" "/run/lxc/$vmid.running"
done
for pool in rpool/data fast rpool/crypt; do
  for vmid; do
    zfs list -H -o name -t filesystem,volume -r "$pool" | grep -E "/(vm|subvol)-$vmid-disk" | sort -r |
      while read -r name; do zfs destroy -R "$name" 2> /dev/null || true; done
  done
  for place in pzb-restore pzb-aside; do zfs destroy -R "$pool/$place" 2> /dev/null || true; done
done
rm -rf /root/restore-lab.yaml /root/killer.py /var/lib/pve-zfsbackup/replaced
"""


class Way:
    """What the tests do, all with the module's own configuration."""

    def __init__(self, product: Product) -> None:
        self.product, self.pve1, self.backup1 = product, product.pve1, product.backup1

    def run(self, *arguments: str, check: bool = True) -> Any:
        done = self.product.run(*arguments, "--json", "--config", CONFIG, check=check)
        return json.loads(done.stdout)

    def points(self, vmid: int, host: str = "source") -> list[dict[str, Any]]:
        found = self.run("list", str(vmid), "--where", host)["points"]
        return [point for point in found if point["complete"]]

    def back(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--yes")
        assert done["done"], done
        return done

    def config(self, vmid: int) -> dict[str, str]:
        folder = "lxc" if vmid == CT else "qemu-server"
        text = self.pve1.read(f"/etc/pve/{folder}/{vmid}.conf")
        return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)

    def disks(self, vmid: int) -> dict[str, str]:
        """Dataset by key, as the guest's configuration says."""
        keys = {key: value for key, value in self.config(vmid).items() if re.match(r"(scsi\d|rootfs)", key)}
        volids = {key: value.partition(",")[0].partition(":") for key, value in keys.items()}
        return {key: f"{STORAGES[storage]}/{name}" for key, (storage, _, name) in volids.items()}

    def contents(self, vmid: int) -> dict[str, str]:
        """Hash of each disk as the guest would read it now; a container's file system is mounted, as at its start."""
        found = self.disks(vmid)
        for dataset in found.values():
            if "subvol" in dataset:
                self.pve1.run(("zfs", "mount", dataset), check=False)
        by_dataset = guests.contents(self.pve1, tuple(found.values()))
        return {key: by_dataset[dataset] for key, dataset in found.items()}

    def get(self, dataset: str, *names: str, host: Host | None = None) -> list[str]:
        return (host or self.pve1).run(("zfs", "get", "-Hp", "-o", "value", ",".join(names), dataset)).lines

    def replicated(self) -> None:
        """One more round goes on, and the newest point is the same on both sides, content and all."""
        report = self.run("run", "--stage", "snapshot", "--stage", "replicate", check=False)
        assert [r["message"] for r in report["results"] if r["outcome"] == "failed"] == []

    def nothing_left(self) -> None:
        names = self.pve1.run(("zfs", "list", "-H", "-o", "name")).lines
        assert [name for name in names if "pzb-restore" in name] == []


@pytest.fixture(scope="module")
def way(product: Product) -> Iterator[Way]:
    pve1, backup1 = product.pve1, product.backup1
    vmids = [str(vmid) for vmid in (VM, CRYPT, CT, COPY, COPY + 1)]
    pve1.script(_CLEAN, *vmids)
    backup1.script('zfs destroy -R "$1" 2> /dev/null || true', ROOT)
    backup1.script(ACCOUNT, pve1.read("/etc/pve-zfsbackup/id_ed25519.pub").strip(), ROOT)
    product.configure(TEXT, CONFIG)
    try:
        guests.make(pve1, VM, storages=("local-zfs", "fast"))
        guests.make(pve1, CRYPT, storages=("crypt",))
        guests.make_container(pve1, CT)
        pve1.script(
            'printf "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nonboot: 1\n" >> "$1"',
            f"/etc/pve/qemu-server/{VM}.conf",
        )
        pve1.script(_FILES, guests_dataset(CT), "one")
        made = Way(quick(product))
        # What nobody's stream carries, set on the disk itself: it comes back with it, whatever its storage has.
        pve1.run(("zfs", "set", "sync=always", "logbias=throughput", made.disks(VM)["scsi0"]))
        pve1.run(("zfs", "set", "primarycache=metadata", "reservation=1M", guests_dataset(CT)))
        yield made
    finally:
        pve1.script(_CLEAN, *vmids, timeout=600)
        backup1.script('zfs destroy -R "$1" 2> /dev/null || true', ROOT)


def guests_dataset(vmid: int) -> str:
    return f"rpool/data/subvol-{vmid}-disk-0"


@pytest.fixture(scope="module")
def history(way: Way) -> dict[int, list[dict[str, Any]]]:
    """Two points of each guest on both sides, with different content, and something written since."""
    for number in range(2):
        way.replicated()
        for vmid in (VM, CRYPT):
            for dataset in way.disks(vmid).values():
                guests.write(way.pve1, dataset, 2, at=4 + 2 * number)
        way.pve1.script(_FILES, guests_dataset(CT), f"written {number}")
    found = {vmid: way.points(vmid) for vmid in (VM, CRYPT, CT)}
    assert all(len(points) == 2 for points in found.values())
    return found


def expected(way: Way, point: dict[str, Any]) -> dict[str, str]:
    """Hash of each disk of a point, by key."""
    names = {disk["key"]: disk["snapshot"] for disk in point["disks"]}
    found = hashes(way.pve1, list(names.values()))
    return {key: found[name] for key, name in names.items()}


def test_a_copy_from_the_target_is_equal_and_tells_itself_apart(
    way: Way, history: dict[int, list[dict[str, Any]]]
) -> None:
    point = history[VM][-1]
    done = way.back("restore", str(VM), "--as", str(COPY), "--from", "backup1")
    assert done["point"] == point["point"]
    assert way.contents(COPY) == expected(way, point)
    made, was = way.config(COPY), way.config(VM)
    assert made["net0"] != was["net0"]
    assert "onboot" not in made
    for copy, original in zip(way.disks(COPY).values(), way.disks(VM).values(), strict=True):
        names = ("volsize", "volblocksize", "refreservation", "compression", "sync", "logbias")
        assert way.get(copy, *names) == way.get(original, *names)
        assert way.get(copy, "origin", "mountpoint") == ["-", "-"]
    snapshots = way.pve1.run(("zfs", "list", "-H", "-t", "snapshot", "-o", "name", *way.disks(COPY).values())).lines
    assert snapshots == []
    way.nothing_left()


def test_a_stopped_guest_is_replaced_from_the_source(way: Way, history: dict[int, list[dict[str, Any]]]) -> None:
    point = history[VM][0]
    wanted, before = expected(way, point), way.contents(VM)
    done = way.back("restore", str(VM), "--at", point["point"], "--replace", str(VM), "--from", "source")
    assert way.contents(VM) == wanted
    aside = [old["now"] for old in done["aside"]]
    assert sorted(guests.contents(way.pve1, tuple(aside)).values()) == sorted(before.values())
    assert way.config(VM)["net0"].startswith("virtio=BC:24:11:00:00:01")
    way.nothing_left()


def test_replication_goes_on_in_a_new_generation_and_keeps_the_old(
    way: Way, history: dict[int, list[dict[str, Any]]]
) -> None:
    before = {point["point"] for point in way.points(VM, "backup1")}
    way.replicated()
    after = {point["point"] for point in way.points(VM, "backup1")}
    assert before < after
    newest = way.points(VM, "backup1")[-1]
    assert newest["point"] == way.points(VM)[-1]["point"]
    names = [disk["snapshot"] for disk in newest["disks"]]
    there = hashes(way.backup1, names)
    assert sorted(there.values()) == sorted(way.contents(VM).values())


def test_a_container_comes_back_with_acl_quota_and_attributes(
    way: Way, history: dict[int, list[dict[str, Any]]]
) -> None:
    point = history[CT][0]
    wanted = expected(way, point)
    names = ("acltype", "xattr", "refquota", "recordsize", "primarycache", "reservation")
    was = way.get(guests_dataset(CT), *names)
    way.back("restore", str(CT), "--at", point["point"], "--replace", str(CT), "--from", "backup1")
    (dataset,) = way.disks(CT).values()
    assert way.contents(CT) == wanted
    assert way.get(dataset, *names) == was
    assert was[-2:] == ["metadata", "1048576"]
    assert way.pve1.run(("cat", f"/{dataset}/etc/hostname")).stdout == "one\n"
    code = "import os, sys; f = sys.argv[1]; print([(x, len(os.getxattr(f, x))) for x in sorted(os.listxattr(f))])"
    told = way.pve1.run(("python3", "-c", code, f"/{dataset}/etc/hostname")).stdout
    assert told == "[('system.posix_acl_access', 44), ('user.note', 4)]\n"


def test_an_encrypted_disk_comes_back_under_its_storages_key(
    way: Way, history: dict[int, list[dict[str, Any]]]
) -> None:
    wanted = expected(way, way.points(CRYPT)[-1])  # another than in `history`: a round went on since
    done = way.back("restore", str(CRYPT), "--replace", str(CRYPT), "--from", "backup1")
    assert done["disks"][0]["raw"]
    (dataset,) = way.disks(CRYPT).values()
    assert way.contents(CRYPT) == wanted
    assert way.get(dataset, "encryptionroot", "keystatus") == ["rpool/crypt", "available"]
    sent = way.run("run", "--stage", "snapshot", "--stage", "replicate")
    moved = [r["bytes"] for r in sent["results"] if r["stage"] == "replicate" and r["vmid"] == CRYPT]
    assert moved
    assert max(moved) < 1 << 20, "by an increment: the restored snapshot is the base"


def test_one_disk_is_laid_beside(way: Way, history: dict[int, list[dict[str, Any]]]) -> None:
    wanted = expected(way, way.points(VM)[-1])
    done = way.back("restore", str(VM), "--disk", "scsi1")
    (disk,) = done["disks"]
    found = guests.contents(way.pve1, (disk["dataset"],))
    assert list(found.values()) == [wanted["scsi1"]]
    assert disk["dataset"] not in way.disks(VM).values()


@pytest.mark.parametrize("vmid", [VM, CRYPT, CT])
def test_rolled_back_in_place_and_replicated_on(way: Way, vmid: int) -> None:
    way.replicated()
    point = way.points(vmid)[-1]
    wanted = expected(way, point)
    places = way.disks(vmid)
    if vmid == CT:
        way.pve1.script(_FILES, next(iter(places.values())), "to be rolled back")
    else:
        for dataset in places.values():
            guests.write(way.pve1, dataset, 2, at=10)
    way.replicated()
    before = way.contents(vmid)
    assert before != wanted
    there = {one["point"] for one in way.points(vmid, "backup1")}
    done = way.back("rollback", str(vmid), "--at", point["point"])
    assert way.disks(vmid) == places, "the names stay"
    assert way.contents(vmid) == wanted
    assert way.points(vmid)[-1]["point"] == point["point"]
    assert "lock" not in way.config(vmid)
    if vmid == CRYPT:
        assert way.get(places["scsi0"], "encryptionroot", "keystatus") == ["rpool/crypt", "available"]
    if vmid == VM:
        assert way.get(places["scsi0"], "sync", "logbias") == ["always", "throughput"]
    way.replicated()
    assert there <= {one["point"] for one in way.points(vmid, "backup1")}, "nothing is lost there"
    assert way.points(vmid, "backup1")[-1]["point"] == way.points(vmid)[-1]["point"]
    aside = {one["dataset"]: one["by"] for one in way.run("status", str(vmid))["aside"]}
    assert {disk["aside"]: "rollback" for disk in done["disks"]}.items() <= aside.items()
    back = way.back("restore", str(vmid), "--at", done["safety"], "--replace", str(vmid), "--from", "source")
    assert way.contents(vmid) == before, f"the safety point is how it was: {back}"
    way.nothing_left()


def test_killed_and_repeated_a_restore_converges(way: Way) -> None:
    way.replicated()
    point = way.points(VM, "backup1")[-1]
    wanted = expected(way, next(own for own in way.points(VM) if own["point"] == point["point"]))
    way.pve1.put(Path(__file__).with_name("killer.py"), "/root/killer.py")
    again = ("restore", str(VM), "--at", point["point"], "--as", str(COPY + 1), "--from", "backup1", "--yes")
    attempts, done = walked(way.pve1, "restore", *again, "--config", CONFIG, first=6, stride=5)
    killed = [attempt for attempt in attempts if attempt["code"] == -signal.SIGKILL]
    assert any(name.endswith("/scsi0") for attempt in killed for name in attempt["left"]), "killed with work begun"
    ended = attempts[-1]["code"] == 0 or f"guest {COPY + 1}: exists" in done.stdout + done.stderr
    assert ended, done  # killed after its last step, it finds the guest there
    assert way.contents(COPY + 1) == wanted
    way.nothing_left()
