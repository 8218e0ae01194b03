"""Drills on real ZFS: what is whole passes, what is not is found, and nothing stays, also after SIGKILL (fault 66).
And the same disks opened for single files: `restore --files`.

The guests are made here, below a root of their own on pve1, and drilled there as root on a target would: --local.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pve_zfsbackup.model.boot import FIRST
from tests.lab.host import Host
from tests.lab.product import Product, quick

ROOT = "rpool/drilled"
CANARY = "/srv/canary"
# What makes disks of guests and points of them, in shell.
MAKING = r"""
root=$1
stamp=20261126T110000Z-ab12
disk() {
  zfs create -s -V "$2" "$root/vm-$1-disk-0"; d=/dev/zvol/$root/vm-$1-disk-0
  for i in $(seq 600); do [ -b "$d" ] && break; sleep 0.1; done; udevadm settle
}
part() {
  parted -s "$d" mklabel gpt mkpart a 1MiB 20MiB mkpart b 20MiB 100% 2> /dev/null
  for i in $(seq 600); do [ -b "$d-part2" ] && break; sleep 0.1; done; udevadm settle
}
fill() {
  mkdir -p "$1/etc" "$1/usr/lib" "$1/srv"
  printf 'ID=debian\nPRETTY_NAME="Debian lab"\n' > "$1/usr/lib/os-release"
  ln -s ../usr/lib/os-release "$1/etc/os-release"
  echo alive > "$1/srv/canary"; ln -s /etc/passwd "$1/srv/evil"
  install -o 1234 -g 5678 -m 4750 /dev/null "$1/srv/owned"
  python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.note", b"hello")' "$1/srv/owned"
  cp -a /usr/bin/[a-d]* "$1/srv/"; sync -f "$1"
}
point() {
  guid=$(zfs get -Hp -o value guid "$root/$3")
  zfs snapshot -o "pve-zfsbackup:point=$1/$stamp" -o "pve-zfsbackup:disks=$2=local-zfs:$3#$guid" \
    -o pve-zfsbackup:consistency=crash-consistent -o "pve-zfsbackup:volume=$guid" "$root/$3@pzb:$stamp"
}
at=$(mktemp -d)
zfs create -o mountpoint=none -o canmount=off "$root"
"""
# Disks of guests with real contents. The one of 901 and that of 903 are mounted while they are snapshotted, as those
# of running guests are.
MAKE = rf"""{MAKING}
disk 901 200M; part; mkfs.ext4 -q -F "$d-part2"; mount "$d-part2" "$at"; fill "$at"; rm "$at/srv/bash"; sync -f "$at"
point 901 scsi0 vm-901-disk-0; umount "$at"
disk 902 400M; mkfs.xfs -q "$d"; mount "$d" "$at"; fill "$at"; umount "$at"; point 902 scsi0 vm-902-disk-0
disk 903 300M; part; pvcreate -q "$d-part2"; vgcreate -q labvg "$d-part2"
lvcreate -q -Wn -y -L 100M -n root labvg; lvcreate -q -Wn -y -L 20M -n swap labvg; lvextend -q -L +40M labvg/root
mkfs.ext4 -q /dev/labvg/root; mkswap /dev/labvg/swap; mount /dev/labvg/root "$at"; fill "$at"; sync
point 903 scsi0 vm-903-disk-0; umount "$at"; vgchange -q -an labvg
disk 904 200M; mkfs.ext4 -q -F -b 1024 "$d"; mount "$d" "$at"; fill "$at"; umount "$at"
dd if=/dev/urandom of="$d" bs=1024 seek=300 count=400 conv=notrunc,fsync status=none; point 904 scsi0 vm-904-disk-0
disk 905 100M; mkfs.ext4 -q -F "$d"; mount "$d" "$at"; fill "$at"; rm "$at/srv/canary"; umount "$at"
point 905 scsi0 vm-905-disk-0
disk 906 100M; mkfs.ext4 -q -F "$d"; mount "$d" "$at"; fill "$at"; umount "$at"
dd if=/dev/zero of="$d" bs=1M count=4 conv=notrunc,fsync status=none; point 906 scsi0 vm-906-disk-0
disk 908 200M; part; mkfs.ext4 -q -F "$d-part1"; mkfs.ext4 -q -F "$d-part2"; mount "$d-part2" "$at"; fill "$at"
umount "$at"; dd if=/dev/zero of="$d-part2" bs=1M count=4 conv=notrunc,fsync status=none; point 908 scsi0 vm-908-disk-0
zfs create -o mountpoint="$at/ct" "$root/subvol-907-disk-0"; fill "$at/ct"; point 907 rootfs subvol-907-disk-0
"""
CLEAR = r"""
for map in $(dmsetup ls | grep -o '^labvg-[a-z]*' || true); do dmsetup remove "$map"; done
for i in $(seq 50); do ! zfs list "$1" > /dev/null 2>&1 || zfs destroy -r "$1" && break; sleep 0.2; done
"""
COMPARE = r"""
cd "$1"; stat -c '%a %u %g' srv/owned
python3 -c 'import os; print(os.getxattr("srv/owned", "user.note").decode())'
readlink srv/evil; sed -n 's/PRETTY_NAME="\(.*\)"/\1/p' usr/lib/os-release; cat srv/canary
for file in /usr/bin/[c-d]*; do [ -L "$file" ] || cmp "$file" "srv/${file##*/}"; done; echo same
"""
LEFT = r"""
gone() { if eval "$1" >&2; then echo "left: $1" >&2; exit 1; fi; }
gone "grep -E 'pve-zfsbackup(-drill|/drill|-files|/files|-boot|/boot)' /proc/mounts"
gone "dmsetup ls | grep -E 'pve-zfsbackup-(drill|files)'"
gone "zfs list -H -o name -t filesystem,volume | grep -E 'pve-zfsbackup-(drill|files|boot)'"
gone "losetup -a | grep ."
gone "vgs --noheadings -o lv_active labvg 2> /dev/null | grep -w active"
gone "ls /etc/pve/qemu-server | grep -E '^999...\.conf'"
gone "systemctl list-units --plain --no-legend 'pve-guest@999*' | grep -w active"
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
        host.script(CLEAR, ROOT, timeout=300)


def drill(product: Product, *guests: int) -> dict[int, dict[str, Any]]:
    words = ("verify", "drill", *map(str, guests), "--local", ROOT, "--expect", CANARY, "--json")
    done = product.run(*words, check=False)
    found = json.loads(done.stdout)
    assert found["failed"] == [], done.stdout
    failed = [end for end in found["drills"] if end["problems"]]
    assert done.returncode == (0 if not failed else 1 if len(failed) < len(found["drills"]) else 2)
    return {end["vmid"]: end for end in found["drills"]}


def nothing_is_left(host: Host) -> None:
    host.script(LEFT)


def test_what_is_whole_passes_and_what_is_not_is_found(product: Product, guests: Host) -> None:
    found = drill(product)
    nothing_is_left(guests)
    assert {vmid: end["level"] for vmid, end in found.items()} == {
        901: "files", 902: "files", 903: "files", 904: "failed", 905: "failed", 906: "failed", 907: "files",
        908: "failed",
    }  # fmt: skip
    for vmid in (901, 902, 903, 907):
        assert (found[vmid]["problems"], found[vmid]["system"]) == ([], "Debian lab")
    kinds = {(look["place"], look["kind"]) for look in found[903]["looks"]}
    assert {("LV labvg/root", "ext4"), ("LV labvg/swap", "swap")} <= kinds
    assert "e2fsck" in found[904]["problems"][0]
    assert found[905]["problems"] == [f"{CANARY}: not there"]
    assert "scsi0: neither a file system nor anything else is recognised there" in found[906]["problems"]
    assert any(told.startswith("scsi0 partition 2: nothing recognised in its ") for told in found[908]["problems"])
    proofs = guests.run(("zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "pve-zfsbackup:verified", ROOT)).lines
    assert sorted(proof.split(" ")[0] for proof in proofs) == ["failed"] * 4 + ["files"] * 4


def test_who_was_just_drilled_is_not_due(product: Product, guests: Host) -> None:
    assert drill(product) == {}


@pytest.mark.long
@pytest.mark.parametrize("seconds", [4, 9, 14])
def test_a_killed_drill_is_swept_by_the_next(product: Product, guests: Host, seconds: int) -> None:
    """Fault 66: SIGKILL to the drill and all it started, wherever it is then."""
    words = ("pve-zfsbackup", "verify", "drill", "903", "907", "--local", ROOT, "--expect", CANARY)
    guests.run(("systemd-run", "--quiet", "--collect", "--unit=drill-killed", *words))
    time.sleep(seconds)
    guests.run(("systemctl", "kill", "--signal=KILL", "drill-killed"), check=False)
    guests.run(("systemctl", "stop", "drill-killed"), check=False)
    found = drill(product, 903)
    assert (found[903]["level"], found[903]["problems"]) == ("files", [])
    nothing_is_left(guests)


def files(product: Product, guest: int, *words: str) -> tuple[int, dict[str, Any]]:
    done = product.run("restore", str(guest), "--files", *words, "--local", ROOT, "--json", check=False)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("guest", "system"),
    [
        pytest.param(901, "scsi0-part2", marks=pytest.mark.long),
        pytest.param(902, "scsi0", marks=pytest.mark.long),
        (903, "scsi0-labvg-root"),
        pytest.param(907, "rootfs", marks=pytest.mark.long),
    ],
)
def test_files_are_listed_and_copied_as_they_were(product: Product, guests: Host, guest: int, system: str) -> None:
    code, found = files(product, guest)
    assert (code, found["missing"]) == (0, [])
    tops = {shown["file_system"]: {entry["name"] for entry in shown["entries"]} for shown in found["shown"]}
    assert {"etc", "srv", "usr"} <= tops[system]
    code, found = files(product, guest, "/etc/os-release")
    assert (code, [shown["path"] for shown in found["shown"]]) == (0, ["/usr/lib/os-release"])
    code, found = files(product, guest, "/srv/evil")  # its aim is not in the guest: nothing of this host is shown
    assert (code, found["missing"]) == (2, ["/srv/evil"])
    try:
        code, found = files(product, guest, "/srv", "/etc/os-release", "--to", "/root/back")
        assert (code, found["copied"]["problems"]) == (0, [])
        assert not [text for text in found["copied"]["lost"] if "user.note" in text]
        told = guests.script(COMPARE, f"/root/back/{system}").lines
        assert told == ["4750 1234 5678", "hello", "/etc/passwd", "Debian lab", "alive", "same"]
        code, found = files(product, guest, "/srv/canary", "--to", "/root/back")
        assert (code, found["copied"]["files"]) == (2, 0)  # it is there already
        assert files(product, guest, "/srv/canary", "--to", "/root/back", "--overwrite")[0] == 0
    finally:
        guests.run(("rm", "-rf", "/root/back"))
    nothing_is_left(guests)


@pytest.mark.long
@pytest.mark.parametrize("seconds", [3, 5, 8])
def test_a_killed_look_for_files_is_swept_by_the_next(product: Product, guests: Host, seconds: int) -> None:
    """Fault 66."""
    words = ("pve-zfsbackup", "restore", "903", "--files", "/srv", "--to", "/root/back", "--local", ROOT)
    try:
        guests.run(("systemd-run", "--quiet", "--collect", "--unit=files-killed", *words))
        time.sleep(seconds)
        guests.run(("systemctl", "kill", "--signal=KILL", "files-killed"), check=False)
        guests.run(("systemctl", "stop", "files-killed"), check=False)
        code, found = files(product, 903, "/srv", "--to", "/root/back", "--overwrite")
        assert (code, found["copied"]["problems"]) == (0, [])
        assert guests.run(("find", "/root/back", "-name", "*.part")).lines == []
    finally:
        guests.run(("rm", "-rf", "/root/back"))
    nothing_is_left(guests)


@pytest.mark.long
def test_a_broken_chain_is_found(product: Product) -> None:
    """The base was destroyed on the target, and another snapshot bears its name."""
    product.run("run", "100")
    assert product.run("verify", "points", "100", check=False).returncode == 0
    (disk, *_) = product.points(100, "backup1")[-1]["disks"]
    name = disk["snapshot"]
    product.backup1.script(
        'zfs release pve-zfsbackup "$1"; zfs destroy "$1"; zfs snapshot "$1"; zfs set pve-zfsbackup:point="$2" "$1"',
        name, product.points(100)[-1]["point"],
    )  # fmt: skip
    try:
        found = product.json("verify", "points", "100", check=False)
        (guest,) = found["guests"]
        assert any("another snapshot of the same name" in problem for problem in guest["problems"]), guest
    finally:
        product.backup1.run(("zfs", "destroy", "-r", name.partition("@")[0]), check=False)


# -- started: VM 104, with a real qemu-ga on clones of its disk


def started(product: Product, *words: str) -> tuple[int, dict[str, Any]]:
    done = product.run("verify", "drill", "104", "--boot", *words, "--json", check=False)
    found = json.loads(done.stdout)
    assert found["failed"] == [], done.stdout
    (end,) = found["drills"]
    return done.returncode, end


@pytest.fixture(scope="module")
def point(product: Product) -> str:
    product.run("snapshot", "104")
    return str(product.points(104)[-1]["point"])


def test_what_is_good_is_started_beside_its_guest(product: Product, point: str) -> None:
    code, end = started(product)
    assert (code, end["point"], end["level"], end["problems"]) == (0, point, "booted", [])
    assert end["boot_seconds"] > 0
    (told,) = (note for note in end["notes"] if note.startswith("booted: "))
    assert "Debian" in told, "the guest's own word"
    nothing_is_left(product.pve1)
    assert product.pve1.run(("qm", "status", "104")).stdout == "status: running\n"
    assert product.pve1.run(("qm", "guest", "cmd", "104", "ping")).returncode == 0


@pytest.mark.long
def test_a_guest_whose_agent_is_silent_did_not_boot(product: Product, point: str) -> None:
    mode = f"/run/pvesim/{FIRST}.agent"
    product.pve1.write(mode, "dead\n")
    try:
        code, end = started(product, "--boot-wait", "20s")
        assert (code, end["level"]) == (2, "failed")
        (problem,) = end["problems"]
        assert problem.startswith("did not boot: its agent did not answer within 20 s")
    finally:
        product.pve1.run(("rm", "-f", mode))
    nothing_is_left(product.pve1)
    assert started(product)[1]["level"] == "booted", "and what failed is proven again"


def killed_boot(product: Product) -> None:
    """Killed while the guest runs: its configuration, its process and its clones are left."""
    mode, host = f"/run/pvesim/{FIRST}.agent", product.pve1
    host.write(mode, "dead\n")
    try:
        words = ("pve-zfsbackup", "verify", "drill", "104", "--boot", "--boot-wait", "10m")
        host.run(("systemd-run", "--quiet", "--collect", "--unit=boot-killed", *words))
        host.wait_for(("test", "-e", f"/run/qemu-server/{FIRST}.pid"), timeout=300)
        host.run(("systemctl", "kill", "--signal=KILL", "boot-killed"), check=False)
        host.run(("systemctl", "stop", "boot-killed"), check=False)
        assert host.run(("qm", "status", str(FIRST))).stdout == "status: running\n"
    finally:
        host.run(("rm", "-f", mode))


@pytest.mark.long
def test_a_killed_boot_is_swept_by_the_next(product: Product, point: str) -> None:
    killed_boot(product)
    code, end = started(product)
    assert (code, end["level"]) == (0, "booted")
    nothing_is_left(product.pve1)


@pytest.mark.long
def test_a_killed_boot_is_told_and_goes_with_the_next_run(product: Product, point: str) -> None:
    killed_boot(product)
    found = product.json("check", check=False)
    assert found["strays"] == [FIRST]
    assert any(f"guest {FIRST}" == one["about"] and "was killed" in one["text"] for one in found["findings"])
    report = product.json("run", "104", "--stage", "prune")
    told = [one["message"] for one in report["results"] if one["stage"] == "sweep"]
    assert f"a boot drill was killed: removed guest {FIRST}" in told
    nothing_is_left(product.pve1)
    assert product.json("check", check=False)["strays"] == []
