"""A disaster day on real ZFS: pve1 loses its power, backup1 takes over, pve1 comes back, everything goes home.

backup1 is a Proxmox node of its own for this module. The tests go on from each other. In a lab that is attached
(PZB_LAB_ATTACH) nobody may switch pve1 off: there it only loses its link and its guests; backup1 cannot tell the two
apart.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import setup
from tests.lab.conftest import install
from tests.lab.host import Host, Result
from tests.lab.lab import Lab
from tests.lab.matrix import guests, inject
from tests.lab.product import ACCOUNT, FORKED, Product, hashes, quick, walked
from tests.lab.pve import provision as pve

pytestmark = pytest.mark.long

ROOT = "tank/failover-lab"
CONFIG = "/root/failover-lab.yaml"
VM, CRYPT, OTHER, CT = 410, 411, 412, 420
AWAY = (VM, CRYPT, CT)
TEXT = f"""\
targets:
  backup1:
    host: backup1
    root: {ROOT}
jobs:
  all:
    guests: ["{VM}", "{CRYPT}", "{OTHER}", "{CT}"]
    targets: [backup1]
"""
SECOND = f"""\
failover:
  root: {ROOT}
  source: pve1
  identity-file: /root/.ssh/id_ed25519
  known-hosts-file: /root/.ssh/known_hosts
  timeout: 3
"""
STORAGES = {
    "pve1": {"local-zfs": "rpool/data", "fast": "fast", "crypt": "rpool/crypt"},
    "backup1": {"local-zfs": "tank/data", "fast": "ssd"},
}
KEY = "/etc/pve/priv/crypt.key"
MIB = 1 << 20
_CLEAN_SOURCE = r"""
ip link set eth1 up
for vmid; do
  systemctl stop "pve-guest@$vmid"
  rm -f "/etc/pve/qemu-server/$vmid.conf" "/etc/pve/lxc/$vmid.conf" "/run/lxc/$vmid.running"
done
for pool in rpool/data fast rpool/crypt; do
  for place in pzb-restore pzb-aside; do zfs destroy -R "$pool/$place" 2> /dev/null || :; done
  for vmid; do
    zfs list -H -o name -t filesystem,volume -r "$pool" | grep -E "/(vm|subvol)-$vmid-disk" | sort -r |
      while read -r name; do zfs destroy -R "$name" 2> /dev/null || :; done
  done
done
rm -rf /root/failover-lab.yaml
"""
_CLEAN_SECOND = r"""
root=$1; zfs list -H -o name -t snapshot | grep -e "^$root/" -e '^tank/data/' -e '^ssd/' | xargs -r zfs holds -H |
  cut -f1,2 | while read -r name tag; do zfs release "$tag" "$name"; done
for name in tank/data "$root"; do
  for i in $(seq 50); do
    zfs list "$name" > /dev/null 2>&1 || break
    zfs destroy -R "$name" 2> /dev/null && break; sleep 0.2
  done
done
if zpool list ssd > /dev/null 2>&1; then zpool destroy ssd; fi
rm -rf /root/ssd.img /root/failover-lab.yaml /root/crypt.key /root/killer.py
"""


class Sites:
    """Both sites, each with its own configuration, and what is known of the guests."""

    def __init__(self, product: Product) -> None:
        self.product, self.pve1, self.backup1 = product, product.pve1, product.backup1
        self.wanted: dict[int, dict[str, str]] = {}  # hash of each disk of the newest point that arrived
        self.lost: dict[str, str] = {}  # hash of what was written after it, by dataset of pve1
        self.safe = b""  # the key of the encrypted disks

    def source(self, *arguments: str, check: bool = True) -> Any:
        return json.loads(self.product.run(*arguments, "--json", "--config", CONFIG, check=check).stdout)

    def second(self, *arguments: str) -> Result:
        command = (*FORKED, *arguments, "--json", "--config", CONFIG)
        return self.backup1.run(command, check=False, timeout=900)

    def refused(self, *arguments: str) -> str:
        """What the second site says when it refuses."""
        done = self.second(*arguments)
        assert done.returncode == 2, done
        return done.stderr + done.stdout

    def done(self, *arguments: str, code: int = 0) -> Any:
        done = self.second(*arguments)
        assert done.returncode == code, done
        return json.loads(done.stdout)

    def taken(self, *arguments: str, code: int = 0) -> dict[int, dict[str, Any]]:
        """Fail over, told by vmid."""
        found = self.done("failover", "--fenced", "--storage", "crypt:local-zfs", *arguments, code=code)
        return {guest["vmid"]: guest for guest in found["guests"]}

    def walked(self, *arguments: str, first: int, stride: int) -> None:
        """Killed again and again, until it comes to its end; or finds, killed after its last step, nothing to do."""
        command = (*arguments, "--config", CONFIG)
        attempts, done = walked(self.backup1, "roles", *command, first=first, stride=stride)
        assert attempts[-1]["code"] == 0 or "nobody took it over" in done.stderr, done

    def killed_in_a_stream(self, mib: int, *arguments: str) -> None:
        """Killed when so much of the first stream has been sent."""
        inject.lay(self.backup1, "send", "gate", mib * MIB, once=True)
        try:
            with self.backup1.spawn((*FORKED, *arguments, "--config", CONFIG)) as attempt:
                inject.reached(self.backup1, timeout=300)
                self.backup1.script('kill -9 "$(cat /run/matrix/product.pid)"')
                told = attempt.communicate(timeout=120)
                assert attempt.returncode == 137, told
        finally:
            inject.unlay(self.backup1)

    def config(self, host: Host, vmid: int) -> dict[str, str]:
        folder = "lxc" if vmid == CT else "qemu-server"
        text = host.read(f"/etc/pve/{folder}/{vmid}.conf")
        return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)

    def disks(self, host: Host, vmid: int) -> dict[str, str]:
        """Dataset by key, as the guest's configuration there says."""
        keys = {key: value for key, value in self.config(host, vmid).items() if re.match(r"(scsi\d|rootfs)", key)}
        volids = {key: value.partition(",")[0].partition(":") for key, value in keys.items()}
        return {key: f"{STORAGES[host.name][storage]}/{name}" for key, (storage, _, name) in volids.items()}

    def contents(self, host: Host, vmid: int) -> dict[str, str]:
        """Hash of each disk as the guest there would read it now; a container's is mounted, as at its start."""
        found = self.disks(host, vmid)
        for dataset in found.values():
            if "subvol" in dataset:
                host.run(("zfs", "mount", dataset), check=False)
        by_dataset = guests.contents(host, tuple(found.values()))
        return {key: by_dataset[dataset] for key, dataset in found.items()}

    def replicas(self, vmid: int) -> list[str]:
        """Snapshots of the guest's replicas."""
        names = self.backup1.run(("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-r", ROOT)).lines
        return [name for name in names if f"-{vmid}-disk" in name]

    def marks(self) -> dict[str, str]:
        argv = ("zfs", "get", "-H", "-s", "local", "-r", "-o", "name,value", "pve-zfsbackup:failover", ROOT)
        return dict(line.split("\t", 1) for line in self.backup1.run(argv).lines)

    def held(self) -> list[str]:
        """Snapshots that a failover keeps."""
        text = "zfs list -H -o name -t snapshot -r tank ssd | xargs -r zfs holds -H"
        return [line for line in self.backup1.script(text).lines if "pve-zfsbackup-failover" in line]

    def get(self, host: Host, dataset: str, *names: str) -> list[str]:
        return host.run(("zfs", "get", "-Hp", "-o", "value", ",".join(names), dataset)).lines

    def off(self) -> None:
        if self.pve1.machine.attached:
            pve.stop_guest(self.pve1, VM)
            self.pve1.run(("ip", "link", "set", "eth1", "down"))
        else:
            self.pve1.run(("sync", "-f", "/root"))  # the lab's own files, not the pools
            self.pve1.power_off()

    def on(self) -> None:
        if self.pve1.machine.attached:
            self.pve1.run(("ip", "link", "set", "eth1", "up"))
        else:
            self.pve1.boot()
            inject.prepare(self.pve1)
            pve.wait_ready(self.pve1)
        self.backup1.wait_for(("ping", "-c", "1", "-W", "1", "pve1"))


@pytest.fixture(scope="module")
def sites(lab: Lab, product: Product, debs: tuple[Path, ...]) -> Iterator[Sites]:
    pve1, backup1 = lab.pve1, lab.backup1
    vmids = [str(vmid) for vmid in (*AWAY, OTHER)]
    pve1.script(_CLEAN_SOURCE, *vmids, timeout=600)
    backup1.script(_CLEAN_SECOND, ROOT, timeout=600)
    try:
        install(backup1, debs, "pve-zfsbackup")
        inject.prepare(backup1)
        inject.serve(backup1)
        backup1.script("truncate -s 2G /root/ssd.img; zpool create -f -O compression=on ssd /root/ssd.img")
        pve.make_node(backup1, STORAGES["backup1"])
        backup1.put(Path(__file__).with_name("killer.py"), "/root/killer.py")
        backup1.write(CONFIG, SECOND, mode=0o600)
        backup1.script(ACCOUNT, pve1.read("/etc/pve-zfsbackup/id_ed25519.pub").strip(), ROOT)
        setup.trust(backup1, pve1)
        product.configure(TEXT, CONFIG)
        guests.make(pve1, VM, storages=("local-zfs", "fast"), mib=64)
        guests.make(pve1, CRYPT, storages=("crypt",))
        guests.make(pve1, OTHER)
        guests.make_container(pve1, CT)
        pve1.script('printf "onboot: 1\nstartup: order=2\n" >> "$1"', f"/etc/pve/qemu-server/{VM}.conf")
        pve1.script('mkfs.ext4 -q -E nodiscard "/dev/zvol/$1"', f"rpool/data/vm-{VM}-disk-0")
        yield Sites(quick(product))
    finally:
        if not pve1.machine.running:
            pve1.boot()
            inject.prepare(pve1)
            pve.wait_ready(pve1)
        key = setup.public_key(backup1)
        pve1.script(
            'cd /root/.ssh; grep -vxF "$1" authorized_keys > keys; chmod 600 keys; mv keys authorized_keys', key
        )
        inject.unlay(backup1)
        backup1.run(("systemctl", "stop", "matrix-fork"), check=False)
        backup1.run(("dpkg", "--purge", "pve-zfsbackup"), timeout=600)
        pve.unmake_node(backup1)
        backup1.script(_CLEAN_SECOND, ROOT, timeout=600)
        pve1.script(_CLEAN_SOURCE, *vmids, timeout=600)


def test_two_points_of_every_guest_and_what_is_lost(sites: Sites) -> None:
    pve1 = sites.pve1
    sites.safe = base64.b64decode(pve1.run(("base64", KEY)).stdout)
    pve1.run(("qm", "start", str(VM)))
    pve.guest_write(pve1, VM, "before", os.urandom(12 * MIB))
    guests.write(pve1, f"fast/vm-{VM}-disk-1", 40)
    guests.write(pve1, f"rpool/data/subvol-{CT}-disk-0", 12)
    guests.write(pve1, f"rpool/crypt/vm-{CRYPT}-disk-0", 12, at=2)
    for number in range(2):
        guests.write(pve1, f"fast/vm-{VM}-disk-1", 1, at=number)
        report = sites.source("run", "--stage", "snapshot", "--stage", "replicate", check=False)
        assert [r["message"] for r in report["results"] if r["outcome"] == "failed"] == []
    for vmid in (*AWAY, OTHER):
        complete = [point for point in sites.source("list", str(vmid))["points"] if point["complete"]]
        assert len([point for point in complete if point["host"] == "backup1"]) == 2
        newest = [point for point in complete if point["host"] == "source"][-1]
        names = {disk["key"]: disk["snapshot"] for disk in newest["disks"]}
        found = hashes(pve1, list(names.values()))
        sites.wanted[vmid] = {key: found[name] for key, name in names.items()}
    guests.write(pve1, f"fast/vm-{VM}-disk-1", 1, at=45)
    guests.write(pve1, f"rpool/data/subvol-{CT}-disk-0", 1, at=45)
    pve.guest_write(pve1, VM, "lost", b"written after the last point\n")


def test_nothing_is_taken_over_while_the_source_answers(sites: Sites) -> None:
    told = sites.refused("failover", "--all", "--fenced")
    assert "pve1 answers on ssh" in told
    assert "answers ping" in told
    words = ("failover", str(VM), "--force", "--reason", "exercise in a separate network", "--dry-run")
    assert sites.done(*words)["guests"][0]["disks"], "a person who insists is shown what would be done"
    assert sites.marks() == {}
    assert sites.backup1.run(("qm", "list")).stdout == ""


def test_silence_is_no_proof_and_a_dry_run_shows_the_plan(sites: Sites) -> None:
    sites.off()
    assert "is silent, which does not prove" in sites.refused("failover", "--all")
    plan = sites.done("failover", str(VM), "--fenced", "--dry-run")
    how = {disk["key"]: (disk["dataset"], disk["how"]) for disk in plan["guests"][0]["disks"]}
    assert how == {"scsi0": (f"tank/data/vm-{VM}-disk-0", "clone"), "scsi1": (f"ssd/vm-{VM}-disk-0", "copy")}
    words = ("--at", plan["guests"][0]["point"], "--storage", "crypt:local-zfs", "--no-start", "--dry-run")
    assert sites.done("failover", str(VM), "--fenced", *words)["guests"][0]["point"] == plan["guests"][0]["point"]
    assert sites.marks() == {}


def test_killed_and_repeated_a_failover_makes_the_newest_points_disks(sites: Sites) -> None:
    start = ("failover", str(VM), "--fenced", "--no-start")
    sites.killed_in_a_stream(8, *start)
    assert [name for name in sites.marks() if f"-{VM}-" in name], "marked before anything is made"
    sites.walked(*start, first=8, stride=10)
    found = sites.taken(str(VM), str(CT), str(CRYPT), "--no-start", code=1)
    assert (found[VM]["done"], found[CT]["done"]) == (True, True), found
    assert [conflict["kind"] for conflict in found[CRYPT]["conflicts"]] == ["key-not-loaded"]
    for vmid in (VM, CT):
        assert sites.contents(sites.backup1, vmid) == sites.wanted[vmid]
    assert not [name for name in sites.marks() if f"-{CRYPT}-" in name], "nothing was taken over"
    assert len(sites.marks()) == 3
    assert len(sites.held()) == 4, "three of the replicas, and that of the copy"
    names = sites.backup1.run(("zfs", "list", "-H", "-o", "name")).lines
    assert [name for name in names if "pzb-restore/" in name] == []


def test_with_its_key_the_encrypted_guest_follows_and_all_start(sites: Sites) -> None:
    backup1 = sites.backup1
    replica = f"{ROOT}/crypt/vm-{CRYPT}-disk-0"
    backup1.write("/root/crypt.key", sites.safe, mode=0o600)
    backup1.run(("zfs", "load-key", "-L", "file:///root/crypt.key", replica))
    found = sites.taken(str(VM), str(CT), str(CRYPT))
    assert {vmid: (guest["done"], guest["started"]) for vmid, guest in found.items()} == {
        VM: (True, True), CT: (True, True), CRYPT: (True, True)
    }  # fmt: skip
    assert backup1.run(("pct", "status", str(CT))).stdout == "status: running\n"
    assert sites.contents(backup1, CRYPT) == sites.wanted[CRYPT]
    place = pve.guest_root(backup1, VM)
    assert backup1.run(("stat", "-c", "%s", f"{place}/before")).stdout == f"{12 * MIB}\n"
    assert backup1.run(("test", "-e", f"{place}/lost"), check=False).returncode == 1


def test_they_write_where_they_run_now(sites: Sites) -> None:
    backup1 = sites.backup1
    pve.guest_write(backup1, VM, "new", b"written on backup1\n")
    guests.write(backup1, sites.disks(backup1, VM)["scsi1"], 1, at=50)
    guests.write(backup1, sites.disks(backup1, CRYPT)["scsi0"], 1, at=20)
    guests.write(backup1, sites.disks(backup1, CT)["rootfs"], 1, at=50)
    for vmid in (CRYPT, CT):
        assert sites.contents(backup1, vmid) != sites.wanted[vmid]


def test_the_source_that_comes_back_sends_nothing_for_them_and_says_so(sites: Sites) -> None:
    sites.on()
    before = {vmid: sites.replicas(vmid) for vmid in (*AWAY, OTHER)}
    done = sites.product.run("run", "--json", "--config", CONFIG, check=False)
    assert done.returncode == 1
    results = json.loads(done.stdout)["results"]
    failed = {r["vmid"]: r for r in results if r["outcome"] == "failed"}
    assert set(failed) == set(AWAY)
    assert all("taken over by backup1" in r["message"] for r in failed.values())
    assert sum(r["bytes"] for r in results if r["vmid"] in AWAY) == 0
    assert {vmid: sites.replicas(vmid) for vmid in AWAY} == {vmid: before[vmid] for vmid in AWAY}
    assert set(sites.replicas(OTHER)) - set(before[OTHER]), "replicas of other guests go on"
    check = sites.product.run("check", "--config", CONFIG, check=False)
    assert check.returncode == 2
    assert all(f"guest {vmid}" in check.stdout for vmid in AWAY), check.stdout
    assert "runs here as well" not in check.stdout
    status = sites.product.run("status", "--json", "--config", CONFIG, check=False).stdout
    assert status.count("taken over by backup1") >= len(AWAY), status


def test_nobody_is_master_twice(sites: Sites) -> None:
    told = sites.refused("failover", str(VM), "--fenced")
    assert "pve1 answers on ssh" in told
    sites.pve1.run(("qm", "start", str(VM)))
    assert "STOP ONE OF THEM" in sites.product.run("check", "--config", CONFIG, check=False).stdout
    assert "runs on pve1 as well" in sites.refused("failback", str(VM))
    sites.pve1.run(("qm", "stop", str(VM)))
    sites.lost = {name: digest for vmid in AWAY for name, digest in lost(sites, vmid).items()}


def lost(sites: Sites, vmid: int) -> dict[str, str]:
    """Hash of what the source has, by dataset: it was never sent, and must not go away."""
    found = sites.contents(sites.pve1, vmid)
    return {dataset: found[key] for key, dataset in sites.disks(sites.pve1, vmid).items()}


def went_home(sites: Sites, vmid: int) -> None:
    """Both sides have the same; what the source had lies aside; the role and all that served it are gone."""
    pve1, backup1 = sites.pve1, sites.backup1
    assert sites.contents(pve1, vmid) == sites.contents(backup1, vmid)
    names = pve1.run(("zfs", "list", "-H", "-o", "name", "-t", "filesystem,volume")).lines
    aside = [name for name in names if f"pzb-aside/{vmid}/" in name]
    for name in aside:  # a file system that lies aside has no place where it would be mounted
        if "subvol" in name:
            pve1.script('mkdir -p "/$1"; mount -t zfs -o zfsutil "$1" "/$1"', name)
    had = sorted(sites.lost[dataset] for dataset in sites.disks(pve1, vmid).values())
    assert sorted(guests.contents(pve1, tuple(aside)).values()) == had
    for name in aside:
        if "subvol" in name:
            pve1.script('umount "/$1"; rmdir -p "/$1" 2> /dev/null || :', name)
    assert [name for name in names if "pzb-restore/" in name] == []
    assert not [name for name in sites.marks() if f"-{vmid}-" in name]
    assert not [line for line in sites.held() if f"-{vmid}-" in line]
    for host in (pve1, backup1):
        snapshots = host.run(("zfs", "list", "-H", "-o", "name", "-t", "snapshot")).lines
        assert [name for name in snapshots if "pzb-failback" in name and f"-{vmid}-" in name] == []
        assert [key for key in sites.config(host, vmid) if key.startswith("unused")] == []
    assert sites.config(backup1, vmid)["onboot"] == "0"
    assert "lock" not in sites.config(pve1, vmid), "it was locked while its disks changed places"


def test_killed_in_the_middle_and_repeated_a_running_guest_goes_home(sites: Sites) -> None:
    pve.guest_write(sites.backup1, VM, "more", os.urandom(4 * MIB))
    sites.killed_in_a_stream(2, "failback", str(VM))
    assert sites.backup1.run(("qm", "status", str(VM))).stdout == "status: running\n"
    sites.walked("failback", str(VM), first=12, stride=14)
    assert sites.backup1.run(("qm", "status", str(VM))).stdout == "status: stopped\n"
    went_home(sites, VM)
    assert sites.config(sites.pve1, VM)["onboot"] == "1"
    sites.pve1.run(("qm", "start", str(VM)))
    assert pve.guest_read(sites.pve1, VM, "new") == "written on backup1\n"
    sites.pve1.run(("qm", "stop", str(VM)))


def test_only_what_changed_travels(sites: Sites) -> None:
    sites.pve1.run(("pct", "snapshot", str(CT), "before-repair"))
    plan = sites.done("failback", str(CT), "--dry-run")
    assert not plan["done"], plan
    assert [note for note in plan["notes"] if "snapshot before-repair on the source goes aside" in note], plan
    sites.pve1.run(("pct", "delsnapshot", str(CT), "before-repair"))
    done = sites.done("failback", str(CT))
    assert done["done"], done
    assert 0 < done["bytes"] < 3 * MIB < 12 * MIB < done["size"], done
    went_home(sites, CT)


def test_an_encrypted_disk_goes_home_in_full(sites: Sites) -> None:
    done = sites.done("failback", str(CRYPT), "--start")
    assert done["started"], done
    assert done["bytes"] > 12 * MIB, done
    sites.pve1.run(("qm", "stop", str(CRYPT)))
    went_home(sites, CRYPT)
    (dataset,) = sites.disks(sites.pve1, CRYPT).values()
    assert sites.get(sites.pve1, dataset, "encryptionroot", "keystatus") == ["rpool/crypt", "available"]


def test_replication_goes_on_from_the_same_base(sites: Sites) -> None:
    assert sites.marks() == {}
    assert sites.held() == []
    aside = {(one["vmid"], one["by"]) for one in sites.source("status")["aside"]}
    assert {(vmid, "failback") for vmid in AWAY} <= aside, "what the disks at home had is told until it is given up"
    before = {vmid: sites.replicas(vmid) for vmid in AWAY}
    report = sites.source("run", "--stage", "snapshot", "--stage", "replicate", check=False)
    assert [r["message"] for r in report["results"] if r["outcome"] == "failed"] == []
    sent = {r["vmid"]: r["bytes"] for r in report["results"] if r["stage"] == "replicate"}
    assert 0 < sent[VM] < 24 * MIB, "of 50: what was written on backup1, and while it was started here"
    assert 0 < sent[CT] < 4 * MIB, "of 13"
    assert sent[CRYPT] > 12 * MIB, "a new dataset: in full"
    for vmid in (VM, CT):
        after = sites.replicas(vmid)
        assert set(before[vmid]) <= set(after), "nothing is lost there"
        assert {name.partition("@")[0] for name in after} == {name.partition("@")[0] for name in before[vmid]}
    for vmid in AWAY:
        points = [point for point in sites.source("list", str(vmid))["points"] if point["complete"]]
        here, there = (
            next(point for point in reversed(points) if point["host"] == host) for host in ("source", "backup1")
        )
        assert here["point"] == there["point"]
        if vmid == CRYPT:
            (replica,) = (disk["snapshot"].partition("@")[0] for disk in there["disks"])
            sites.backup1.run(("zfs", "load-key", "-L", "file:///root/crypt.key", replica))
        ours, theirs = ({disk["key"]: disk["snapshot"] for disk in point["disks"]} for point in (here, there))
        found = {**hashes(sites.pve1, list(ours.values())), **hashes(sites.backup1, list(theirs.values()))}
        assert {key: found[name] for key, name in ours.items()} == {key: found[name] for key, name in theirs.items()}
