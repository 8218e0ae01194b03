"""What backup1 received is drilled on backup1: the package beside the replicas, `verify: local`, and nothing else.

The guests are real ones of pve1, with a target root of their own. No node has a part in the drill.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import install
from tests.lab.host import Host
from tests.lab.lab import TREE
from tests.lab.matrix import guests
from tests.lab.product import ACCOUNT, CONFIG, Product, forget_root, quick, zfs

ROOT = "tank/pzb-received"
NODE = "/root/received.yaml"
GOOD, BAD = 961, 962
NODE_TEXT = f"""\
targets:
  backup1:
    host: backup1
    root: {ROOT}
jobs:
  received:
    guests: [{GOOD}-{BAD}]
    targets: [backup1]
runtime-dir: /run/pzb-received
state-dir: /run/pzb-received/state
journal-dir: /run/pzb-received/journal
"""
TARGET_TEXT = f"""\
verify:
  local: [{ROOT}]
"""
FILL = r"""
mkfs.ext4 -q -F -b 1024 "/dev/zvol/$1"; at=$(mktemp -d); mount "/dev/zvol/$1" "$at"
mkdir -p "$at/usr/lib" "$at/srv"; cp -a /usr/bin/[a-b]* "$at/srv/"
printf 'ID=debian\nPRETTY_NAME="Debian lab"\n' > "$at/usr/lib/os-release"
umount "$at"; rmdir "$at"
"""
# An inode is zeroed on the disk: to ZFS a block like any other, whose sum is right.
BREAK = 'debugfs -w -R "clri /srv/base64" "/dev/zvol/$1"; sync; zpool sync "${1%%/*}"'
LEFT = r"""
gone() { if eval "$1" >&2; then echo "left: $1" >&2; exit 1; fi; }
gone "grep 'pve-zfsbackup[-/]drill' /proc/mounts"
gone "dmsetup ls | grep pve-zfsbackup-drill"
gone "zfs list -H -o name -t filesystem,volume | grep pve-zfsbackup-drill"
"""


@pytest.fixture(scope="module")
def node(product: Product) -> Product:
    return quick(product)


@pytest.fixture(scope="module")
def backup1(node: Product, debs: tuple[Path, ...]) -> Iterator[Host]:
    """With both replicas and the package. Its timers are not enabled, and cron's lines find no job."""
    host, public = node.backup1, node.pve1.read("/etc/pve-zfsbackup/id_ed25519.pub").strip()
    forget_root(host, ROOT)
    try:
        host.script(ACCOUNT, public, ROOT)
        node.configure(NODE_TEXT, NODE)
        for vmid in (GOOD, BAD):
            made = guests.make(node.pve1, vmid, mib=64)
            node.pve1.script(FILL, made.disk)
            if vmid == BAD:
                node.pve1.script(BREAK, made.disk)
        replicate(node)
        install(host, debs, "pve-zfsbackup")
        host.write(CONFIG, TARGET_TEXT, mode=0o600)
        yield host
    finally:
        for vmid in (GOOD, BAD):
            guests.remove(node.pve1, vmid)
        node.pve1.run(("rm", "-rf", "/run/pzb-received", NODE))
        host.run(("dpkg", "--purge", "pve-zfsbackup"), check=False, timeout=600)
        host.run(("rm", "-f", CONFIG))
        forget_root(host, ROOT)


def replicate(node: Product) -> list[dict[str, Any]]:
    stages = ("--stage", "snapshot", "--stage", "replicate")
    done = node.run("run", *stages, "--config", NODE, "--json", check=False)
    assert done.returncode == 0, done
    return [result for result in json.loads(done.stdout)["results"] if result["stage"] == "replicate"]


def drill(host: Host, *words: str) -> tuple[int, dict[str, Any]]:
    done = host.run(("pve-zfsbackup", "verify", "drill", *words, "--json"), check=False, timeout=900)
    assert done.stdout, done
    return done.returncode, json.loads(done.stdout)


def verified(host: Host) -> dict[int, set[str]]:
    """The levels that stand on the snapshots of each guest's replica."""
    found: dict[int, set[str]] = {GOOD: set(), BAD: set()}
    asked = ("-H", "-r", "-t", "snapshot", "-o", "name,value", "pve-zfsbackup:verified")
    for name, proof in zfs(host, "get", *asked, ROOT):
        vmid = next(vmid for vmid in found if f"/vm-{vmid}-" in name)
        found[vmid].add(proof.partition(" ")[0])
    return found


def test_what_was_received_is_drilled_where_it_lies(node: Product, backup1: Host) -> None:
    code, found = drill(backup1)
    assert found["failed"] == []
    ends = {end["vmid"]: end for end in found["drills"]}
    assert {vmid: end["level"] for vmid, end in ends.items()} == {GOOD: "files", BAD: "failed"}
    assert (ends[GOOD]["problems"], ends[GOOD]["system"]) == ([], "Debian lab")
    assert "e2fsck" in ends[BAD]["problems"][0]
    assert code == 1
    backup1.script(LEFT)
    assert verified(backup1) == {GOOD: {"files"}, BAD: {"failed"}}
    assert drill(backup1) == (0, {**found, "drills": []}), "who was just drilled is not due"


def test_an_increment_goes_on_from_what_was_drilled(node: Product, backup1: Host) -> None:
    """Nothing was written to the replicas: the next run is no conflict, and sends no more than what is new."""
    before = {row[0] for row in zfs(backup1, "list", "-H", "-o", "guid", "-r", "-t", "filesystem,volume", ROOT)}
    guests.write(node.pve1, f"rpool/data/vm-{GOOD}-disk-0", 1, at=60)
    sent = {result["vmid"]: result["bytes"] for result in replicate(node)}
    assert 1 << 20 <= sent[GOOD] < 4 << 20
    after = {row[0] for row in zfs(backup1, "list", "-H", "-o", "guid", "-r", "-t", "filesystem,volume", ROOT)}
    assert after == before, "and there is no new generation"


def killed(host: Host) -> list[str]:
    """A drill of the good replica, killed as soon as it has a clone, which is left."""
    words = ("pve-zfsbackup", "verify", "drill", str(GOOD), "--local", ROOT)
    host.run(("systemd-run", "--quiet", "--collect", "--unit=received-killed", *words))
    host.wait_for(("sh", "-c", "zfs list -H -o name -t volume | grep -q pve-zfsbackup-drill"), timeout=120)
    host.run(("systemctl", "kill", "--signal=KILL", "received-killed"), check=False)
    host.run(("systemctl", "stop", "received-killed"), check=False)
    return [row[0] for row in zfs(host, "list", "-H", "-o", "name", "-t", "volume", "-r", "tank/pve-zfsbackup-drill")]


@pytest.mark.long
def test_a_killed_drill_of_a_replica_is_swept_by_the_next(node: Product, backup1: Host) -> None:
    assert killed(backup1)
    code, found = drill(backup1, str(GOOD), "--local", ROOT)
    assert (code, [end["level"] for end in found["drills"]]) == (0, ["files"])
    backup1.script(LEFT)


def maintain(host: Host, *later: str) -> dict[str, Any]:
    """The receiver's, as of later: it goes by its own clock, and clones by the kernel's."""
    words = ("python3", "-IS", "/root/receiver.py", "maintain", "--config", "/root/receiver.toml")
    done = host.run((*later, *words, "--state", "/root/receiver", "--json"), check=False, timeout=300)
    assert done.returncode == 0, done
    (report,) = json.loads(done.stdout)["roots"]
    return dict(report)


def test_where_no_drill_follows_the_target_sweeps_after_a_day(node: Product, backup1: Host) -> None:
    backup1.put(TREE / "pve_zfsbackup/receiver.py", "/root/receiver.py")
    backup1.write("/root/receiver.toml", f'[roots."{ROOT}"]\n', mode=0o600)
    backup1.run(("install", "-d", "-m", "700", "/root/receiver"))
    left = killed(backup1)
    try:
        backup1.script("grep 'pve-zfsbackup/drill' /proc/mounts | cut -d ' ' -f 2 | xargs -r umount")
        mine = f"{left[0].rpartition('/')[0]}/mine"
        origin = zfs(backup1, "get", "-H", "-o", "value", "origin", left[0])[0][0]
        backup1.run(("zfs", "clone", origin, mine))
        assert maintain(backup1)["swept"] == [], "it is not a day old"
        assert maintain(backup1, "faketime", "-f", "+25h")["swept"] == left
        names = {row[0] for row in zfs(backup1, "list", "-H", "-o", "name", "-t", "volume")}
        assert mine in names, "somebody's own is left alone"
        assert not names & set(left)
        backup1.script('for i in $(seq 50); do zfs destroy "$1" && exit 0; sleep 0.2; done; exit 1', mine)
        assert drill(backup1, str(GOOD), "--local", ROOT)[0] == 0
        backup1.script(LEFT)
    finally:
        backup1.script("rm -rf /root/receiver /root/receiver.py /root/receiver.toml")
