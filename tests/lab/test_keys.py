"""Keys on real ZFS: made, refused, tried, brought into the safe, changed; and what a change means for a replica.

The tests go on from each other, on a storage, a guest and a target's root of their own. ZFS itself is the judge: what
opens is what `zfs load-key -n` takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.host import Host, Result
from tests.lab.matrix import guests
from tests.lab.product import ACCOUNT, Product, forget_root, hashes, quick

pytestmark = pytest.mark.long

ROOT = "tank/keys-lab"
CONFIG = "/root/keys-lab.yaml"
DATASET, SPOKEN, GUIDE = "rpool/keys-lab", "rpool/keys-lab-spoken", "rpool/keys-lab-guide"
VM = 510
DISK, REPLICA = f"{DATASET}/vm-{VM}-disk-0", f"{ROOT}/keys/vm-{VM}-disk-0"
TEXT = f"""\
targets:
  backup1:
    host: backup1
    root: {ROOT}
jobs:
  all:
    guests: ["{VM}"]
    targets: [backup1]
"""
STORAGE = f"zfspool: keys\n\tpool {DATASET}\n\tcontent images\n\tmountpoint /{DATASET}\n\tsparse 1\n\n"
OLD, NEW, SAFE = "/root/keys-lab.old", "/root/keys-lab.new", "/root/keys-lab.safe"  # key files an administrator carries
MIB = 1 << 20
_CLEAN = r"""
conf=$1 vmid=$2; shift 2
rm -f "/etc/pve/qemu-server/$vmid.conf" "$conf" /root/keys-lab.*
for dataset; do
  for i in $(seq 50); do
    zfs list "$dataset" > /dev/null 2>&1 || break
    zfs destroy -r "$dataset" 2> /dev/null && break; sleep 0.2
  done
  rm -rf "/etc/pve-zfsbackup/keys/$dataset"
done
"""
_GUIDE = """
umask 077
head -c 64 /dev/urandom | base64 -w 64 > /root/keys-lab.guide
"""
_TYPED = 'umask 377; rm -f "$1"; tr -d \' \\n\' | basenc --base16 -d > "$1"'  # as `key escrow` says


class Keys:
    """What the tests do on both sides."""

    def __init__(self, product: Product) -> None:
        self.product, self.pve1, self.backup1 = product, product.pve1, product.backup1

    def key(self, *arguments: str, typed: str = "") -> Result:
        command = (*self.product.program, "key", *arguments, "--config", CONFIG)
        return self.pve1.run(command, input=typed, check=False, timeout=600)

    def done(self, *arguments: str) -> Any:
        told = self.key(*arguments, "--json")
        assert told.returncode == 0, told
        return json.loads(told.stdout)

    def files(self) -> list[str]:
        """The key files of the dataset, oldest first: their names are times."""
        return sorted(self.pve1.script('find "/etc/pve-zfsbackup/keys/$1" -type f', DATASET).lines)

    def escrowed(self) -> dict[str, tuple[str, str]]:
        """What `key escrow` prints: by file what it is, and its digits."""
        lines = self.done("escrow", DATASET)["lines"]
        at = {number: match for number, line in enumerate(lines) if (match := re.match(r"(/\S+): (.*)", line))}
        return {match[1]: (match[2], "\n".join(lines[number + 1 : number + 3])) for number, match in at.items()}

    def carried(self, source: str, to: str) -> None:
        """The same key file on both hosts."""
        digits = self.pve1.run(("basenc", "--base16", "-w0", source)).stdout
        for host in (self.pve1, self.backup1):
            self.typed(host, digits, to)

    def typed(self, host: Host, digits: str, to: str) -> None:
        host.run(("sh", "-c", _TYPED, "sh", to), input=digits)

    def opens(self, host: Host, key: str, dataset: str) -> bool:
        told = host.run(("zfs", "load-key", "-n", "-L", f"file://{key}", dataset), check=False)
        assert told.returncode == 0 or "Incorrect key" in told.stderr, told
        return told.returncode == 0

    def replicated(self) -> int:
        """One more point on both sides; the bytes that were sent."""
        command = ("run", "--stage", "snapshot", "--stage", "replicate", "--json", "--config", CONFIG)
        results = json.loads(self.product.run(*command, check=False).stdout)["results"]
        assert [result["message"] for result in results if result["outcome"] == "failed"] == []
        return sum(int(result["bytes"]) for result in results if result["stage"] == "replicate")

    def points(self) -> list[str]:
        """The guest's points on this node, oldest first."""
        told = self.product.run("list", str(VM), "--where", "source", "--json", "--config", CONFIG)
        return [str(point["point"]) for point in json.loads(told.stdout)["points"]]

    def refused(self, point: str, *options: str) -> list[str]:
        """Why a rollback to the point is not done: the kinds of conflicts, which come with a hint each."""
        command = ("rollback", str(VM), "--at", point, "--yes", "--json", "--config", CONFIG, *options)
        told = self.product.run(*command, check=False)
        found = json.loads(told.stdout)
        assert (told.returncode == 2) is bool(found["conflicts"]), told
        assert not found["done"], found
        for one in found["conflicts"]:
            assert one["kind"] != "own-key" or f"zfs change-key -i {DISK};" in one["resolve"], one
        return sorted(one["kind"] for one in found["conflicts"])

    def everything(self) -> tuple[str, str]:
        """The storage's datasets with all snapshots, and the guest's configuration, lock included."""
        names = self.pve1.run(("zfs", "list", "-H", "-t", "all", "-o", "name,guid,encryptionroot", "-r", DATASET))
        return names.stdout, self.pve1.read(f"/etc/pve/qemu-server/{VM}.conf")

    def get(self, host: Host, dataset: str, *names: str) -> list[str]:
        return host.run(("zfs", "get", "-H", "-o", "value", ",".join(names), dataset)).lines


@pytest.fixture(scope="module")
def keys(product: Product) -> Iterator[Keys]:
    pve1, backup1 = product.pve1, product.backup1
    ours = (CONFIG, str(VM), DATASET, SPOKEN, GUIDE)
    storages = pve1.read("/etc/pve/storage.cfg")
    pve1.script(_CLEAN, *ours, timeout=600)
    backup1.run(("sh", "-c", "rm -f /root/keys-lab.*"))
    forget_root(backup1, ROOT)
    backup1.script(ACCOUNT, pve1.read("/etc/pve-zfsbackup/id_ed25519.pub").strip(), ROOT)
    product.configure(TEXT, CONFIG)
    try:
        yield Keys(quick(product))
    finally:
        pve1.write("/etc/pve/storage.cfg", storages, mode=0o640)
        pve1.script(_CLEAN, *ours, timeout=600)
        backup1.run(("sh", "-c", "rm -f /root/keys-lab.*"))
        forget_root(backup1, ROOT)


def test_a_dataset_is_made_with_a_key_of_32_bytes_that_only_root_reads(keys: Keys) -> None:
    actions = keys.done("create", DATASET)["actions"]
    (file,) = keys.files()
    assert [(action["object"], action["state"]) for action in actions] == [(file, "created"), (DATASET, "created")]
    assert keys.pve1.run(("stat", "-c", "%s %a %U", file)).stdout == "32 400 root\n"
    names = ("encryption", "keyformat", "keylocation", "encryptionroot", "keystatus")
    assert keys.get(keys.pve1, DATASET, *names) == ["aes-256-gcm", "raw", f"file://{file}", DATASET, "available"]
    (again,) = keys.done("create", DATASET)["actions"]
    assert (again["object"], again["state"]) == (DATASET, "right"), "made again it is as it was"
    assert keys.files() == [file]


def test_the_base64_file_of_the_guides_is_refused_as_zfs_would_and_with_the_reason(keys: Keys) -> None:
    keys.pve1.script(_GUIDE)
    told = keys.key("create", GUIDE, "--key-file", "/root/keys-lab.guide")
    assert told.returncode == 3, told
    assert "it is base64 text of 64 bytes (90 bytes as it lies there)" in told.stderr
    assert "openssl rand -base64 64" in told.stderr
    options = ("encryption=on", "keyformat=raw", "keylocation=file:///root/keys-lab.guide")
    by_hand = keys.pve1.run(("zfs", "create", *(part for o in options for part in ("-o", o)), GUIDE), check=False)
    assert "Raw key too long" in by_hand.stderr, by_hand
    assert keys.pve1.run(("zfs", "list", GUIDE), check=False).returncode == 1


def test_the_keys_of_this_host_are_tried_and_a_wrong_one_is_told(keys: Keys) -> None:
    everything = json.loads(keys.key("test", "--json").stdout)["actions"]  # other modules' datasets among them
    (mine,) = (action for action in everything if action["object"] == DATASET)
    assert (mine["state"], mine["detail"]) == ("right", f"opens with {keys.files()[0]}")
    keys.pve1.script("umask 077; head -c 32 /dev/urandom > /root/keys-lab.wrong")
    told = keys.key("test", "--key-file", "/root/keys-lab.wrong", DATASET, "--json")
    assert told.returncode == 2, told
    assert "it is the key of something else" in json.loads(told.stdout)["actions"][0]["detail"]
    assert keys.key("test", DATASET).returncode == 0


def test_a_passphrase_is_read_from_standard_input(keys: Keys) -> None:
    assert keys.key("create", SPOKEN, "--passphrase", typed="correct horse battery\n").returncode == 0
    assert keys.get(keys.pve1, SPOKEN, "keyformat", "keylocation") == ["passphrase", "prompt"]
    assert keys.key("test", SPOKEN, typed="correct horse battery\n").returncode == 0
    assert keys.key("test", SPOKEN, typed="wrong horse battery\n").returncode == 2


def test_a_replica_of_it_is_encrypted_and_closed(keys: Keys) -> None:
    storages = keys.pve1.read("/etc/pve/storage.cfg").rstrip("\n")
    keys.pve1.write("/etc/pve/storage.cfg", f"{storages}\n\n{STORAGE}", mode=0o640)
    guests.make(keys.pve1, VM, storages=("keys",))
    guests.write(keys.pve1, DISK, 8, at=4)
    assert keys.replicated() > 8 * MIB
    assert keys.get(keys.backup1, REPLICA, "encryption", "encryptionroot", "keystatus") == [
        "aes-256-gcm", REPLICA, "unavailable",
    ]  # fmt: skip


def test_what_was_printed_for_the_safe_opens_source_and_replica(keys: Keys) -> None:
    (file,) = keys.files()
    printed = keys.escrowed()
    assert {name: meaning for name, (meaning, _) in printed.items()} == {file: "the present key"}
    for host in (keys.pve1, keys.backup1):
        keys.typed(host, printed[file][1], SAFE)
    assert keys.key("test", "--key-file", SAFE, DATASET).returncode == 0
    assert keys.opens(keys.backup1, SAFE, REPLICA)


def test_after_a_change_the_replica_opens_with_the_old_key_still(keys: Keys) -> None:
    (old,) = keys.files()
    told = keys.done("change", DATASET)
    assert any("the next raw increment of a disk brings the new key along" in note for note in told["notes"])
    assert [file for file in keys.files() if file != old], "a new one, beside the old"
    _, new = keys.files()
    keys.carried(old, OLD)
    keys.carried(new, NEW)
    assert keys.get(keys.pve1, DATASET, "keylocation", "keystatus") == [f"file://{new}", "available"]
    assert (keys.opens(keys.pve1, NEW, DATASET), keys.opens(keys.pve1, OLD, DATASET)) == (True, False)
    assert (keys.opens(keys.backup1, NEW, REPLICA), keys.opens(keys.backup1, OLD, REPLICA)) == (False, True)
    assert keys.key("test", DATASET).returncode == 0
    meanings = {name: meaning.partition(":")[0] for name, (meaning, _) in keys.escrowed().items()}
    assert meanings == {new: "the present key", old: "an older key"}


def test_the_next_raw_increment_brings_the_new_key_and_all_points_open_with_it(keys: Keys) -> None:
    guests.write(keys.pve1, DISK, 1, at=20)
    sent = keys.replicated()
    assert MIB <= sent < 4 * MIB, "an increment, and raw: its bytes do not compress"
    assert (keys.opens(keys.backup1, NEW, REPLICA), keys.opens(keys.backup1, OLD, REPLICA)) == (True, False)
    keys.backup1.run(("zfs", "load-key", "-L", f"file://{NEW}", REPLICA))
    there = keys.backup1.run(("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-s", "createtxg", REPLICA)).lines
    assert len(there) == 2, "also the point from before the change"
    here = [f"{DISK}@{name.partition('@')[2]}" for name in there]
    ours, theirs = hashes(keys.pve1, here), hashes(keys.backup1, there)
    assert [theirs[name] for name in there] == [ours[name] for name in here]
    assert len(set(ours.values())) == 2, "they differ"


def test_a_disk_with_a_key_of_its_own_is_refused_a_rollback_before_anything_is_changed(keys: Keys) -> None:
    """Halfway ZFS would not go on: no safety point, no lock, and the guest runs on; the hint then leads on."""
    pve1, point = keys.pve1, keys.points()[-1]
    pve1.script("umask 077; head -c 32 /dev/urandom > /root/keys-lab.own")
    pve1.run(("zfs", "change-key", "-o", "keyformat=raw", "-o", "keylocation=file:///root/keys-lab.own", DISK))
    pve1.run(("qm", "start", str(VM)))
    try:
        before = keys.everything()
        assert keys.refused(point) == ["own-key", "running"]
        assert keys.everything() == before
        assert pve1.run(("qm", "status", str(VM))).stdout == "status: running\n"
    finally:
        pve1.run(("qm", "stop", str(VM)))
    assert keys.refused(point) == ["own-key"]
    assert keys.everything() == before
    pve1.run(("zfs", "change-key", "-i", DISK))
    assert keys.refused(point, "--dry-run") == []
