"""Archives on real ZFS, real age and a real SFTP account in a chroot: a guest comes back from the box alone.

The tests go on from each other. The guest has a plain disk and an encrypted one. Before the restores it is destroyed,
and all that this node knows of its archives is out of reach: what is left is the box, and what lies in the safe.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lab import setup
from tests.lab.conftest import install
from tests.lab.host import Host, Result
from tests.lab.matrix import guests
from tests.lab.product import Product, hashes, quick, zfs
from tests.lab.pve.make_guests import MARKER

pytestmark = pytest.mark.long

VMID = 940
CONFIG = "/root/archive/config.yaml"
PLACE = "/root/archive"
BOX = "/srv/box/uploads/pzb"
FRESH = "/root/fresh"  # on backup1: all that is left of the source
SCRATCH = "fast/pzb-scratch"
INCREMENTS = 5
KILLER = Path(__file__).with_name("archive_killer.py")
# What a restored guest must be.
_CONFIG = f"""\
boxes:
  box1:
    host: {{host}}
    user: box
    path: uploads/pzb
    identity-file: {{place}}/id
    known-hosts-file: {{place}}/known_hosts
    recipients-file: {{place}}/recipients
    catalog-key-file: {{place}}/catalog.key
    signing-key-file: {{place}}/signing
    signers-file: {{place}}/signers
    spool-dir: {{place}}/spool
    segment-mib: 1
    retry-hours: 0.02
    every-hours: 0
    full-percent: 10000
    keep: {{{{keep-last: 100}}}}
jobs:
  archived:
    guests: [{VMID}]
    boxes: [box1]
state-dir: {{place}}/state
journal-dir: {{place}}/journal
runtime-dir: {{place}}/run
"""
# The marker, in the middle of random bytes, where the guest wrote it.
_MARK = r"""
for dataset; do
  yes "$MARKER" | head -c 300000 | dd of="/dev/zvol/$dataset" bs=1M seek=5 conv=notrunc,fsync status=none
  zpool sync "${dataset%%/*}"
done
"""
# Where the marker, or a name of ours, may not stand: contents and names in the box, and whatever was logged.
_SEARCH = r"""
text=$1; since=$2; shift 2
for place; do
  grep -rlaF -- "$text" "$place" 2> /dev/null || :
  find "$place" 2> /dev/null | grep -F -- "$text" || :
done
journalctl --no-pager -q --since "@$since" | grep -F -- "$text" | grep -vF 'sh -eu' | head -n 3 || :
"""


OPAQUE = re.compile(
    r"\./w-[0-9a-f]{16}(/[0-9a-f]{32}(/README\.txt|/restore\.sh|"
    r"/[0-9a-f]{32}(/seg-[0-9]{6}-[0-9a-f]{64}|/manifest\.(json|age)(\.sig)?)?)?)?\Z"
)


@dataclass
class Archived:
    """What was archived, and what each point must hold: hash by guid of the snapshot."""

    product: Product
    guest: guests.Guest
    since: dict[str, str] = field(default_factory=dict)  # host -> its clock before anything: other tests log, too
    identity: str = ""
    points: list[str] = field(default_factory=list)
    contents: dict[str, dict[str, str]] = field(default_factory=dict)  # point -> guid -> hash
    outputs: list[str] = field(default_factory=list)
    safe: list[str] = field(default_factory=list)  # what `key escrow` told to put there, and the identity
    lost: dict[str, Any] = field(default_factory=dict)  # what must come back

    def run(self, *arguments: str, check: bool = True) -> Result:
        done = self.product.run(*arguments, "--config", CONFIG, check=check)
        self.outputs += [done.stdout, done.stderr]
        return done

    def json(self, *arguments: str, check: bool = True) -> Any:
        return json.loads(self.run(*arguments, "--json", check=check).stdout)

    def found(self, host: Host, text: str, *places: str) -> list[str]:
        """Where the text stands, in content or names below these places, or in the journal."""
        return host.script(_SEARCH, text, self.since[host.name], *places).lines

    def archive(self, outcome: str = "ok") -> dict[str, Any]:
        """Take a point and archive it; the archive's result."""
        report = self.json("run", "--stage", "snapshot", "--stage", "archive")
        (result,) = [result for result in report["results"] if result["stage"] == "archive"]
        assert result["outcome"] == outcome, report
        return dict(result)

    def note(self) -> None:
        """Remember the newest point and what it holds."""
        listed = self.json("list", "--where", "source")["points"]
        point = [point for point in listed if point["point"].startswith(f"{VMID}/")][-1]  # other modules have guests
        snapshots = {disk["snapshot"]: disk["guid"] for disk in point["disks"]}
        found = hashes(self.product.pve1, list(snapshots))
        self.points.append(point["point"])
        self.contents[point["point"]] = {snapshots[name]: digest for name, digest in found.items()}

    @property
    def everything(self) -> dict[str, str]:
        return {guid: digest for content in self.contents.values() for guid, digest in content.items()}


def box_files(host: Host) -> list[str]:
    return host.script('cd "$1" && find . -type f | sort', BOX).lines


@pytest.fixture(scope="module")
def archived(product: Product) -> Iterator[Archived]:
    pve1, backup1 = product.pve1, product.backup1
    since = {host.name: host.run(("date", "+%s")).stdout.strip() for host in (pve1, backup1)}
    pve1.script('rm -rf "$1" "$1.lost"; mkdir -m 700 "$1"; zfs list -o name', PLACE)
    backup1.script('rm -rf "$1" "$2"', BOX, FRESH)
    guests.remove(pve1, VMID)
    guest = guests.make(pve1, VMID, storages=("local-zfs", "crypt"), mib=24)
    pve1.script(f"MARKER={shlex.quote(MARKER)}\n{_MARK}", *guest.disks)
    product.configure(_CONFIG.format(place=PLACE, host="backup1"), CONFIG)
    yield Archived(product=quick(product), guest=guest, since=since)
    guests.remove(pve1, VMID)
    pve1.script('rm -rf "$1" "$1.lost"', PLACE)
    backup1.script(
        'rm -rf "$1" "$2"; zfs list -H -o name -r tank | grep "^tank/back" | sort -r | while read -r name; do\n'
        '  zfs unload-key "$name" 2> /dev/null || :; zfs destroy -r "$name"; done\n'
        "! dpkg -s pve-zfsbackup > /dev/null 2>&1 || DEBIAN_FRONTEND=noninteractive dpkg -P pve-zfsbackup",
        BOX, FRESH,
    )  # fmt: skip


def test_the_box_is_set_up_with_a_pinned_key_and_tried_out(archived: Archived) -> None:
    product = archived.product
    told = archived.run("setup", "box", "box1", check=False)
    assert told.returncode == 3
    assert "none of these is known to be right" in told.stderr
    archived.identity = next(word for word in told.stdout.split() if word.startswith("AGE-SECRET-KEY-"))
    archived.outputs.clear()  # shown once, and meant to be
    shown = product.backup1.run(("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub")).stdout.split()[1]
    refused = archived.run("setup", "box", "box1", "--accept-hostkey", shown, check=False)
    assert refused.returncode == 2
    assert f"add {PLACE}/id.pub to the account's keys" in refused.stderr
    setup.authorize(product.backup1, product.pve1.read(f"{PLACE}/id.pub").strip(), "box")
    actions = archived.json("setup", "box", "box1")["actions"]
    assert {action["state"] for action in actions} == {"right"}
    assert "MiB free" in actions[-1]["detail"]
    assert box_files(product.backup1) == []


def test_a_full_archive_and_five_increments_arrive(archived: Archived) -> None:
    product = archived.product
    messages = [archived.archive()["message"]]
    archived.note()
    for number in range(INCREMENTS):
        for disk in archived.guest.disks:
            guests.write(product.pve1, disk, 2, at=8 + 2 * number)
        messages.append(archived.archive()["message"])
        archived.note()
    assert [message.split(",")[0] for message in messages] == ["full", *["increment"] * INCREMENTS]
    listed = archived.json("list", "--where", "box1")["archived"]
    assert [point["point"] for point in listed] == archived.points
    assert all(point["sound"] for point in listed)
    findings = archived.json("check", check=False)["findings"]
    assert [f for f in findings if f["about"].startswith("box ") or "box1" in f["text"]] == []


def test_nothing_readable_lies_in_the_box_or_in_a_log(archived: Archived) -> None:
    """What the guest wrote, and what things are called; the control sees both where they are in the clear."""
    product = archived.product
    for text in (MARKER, f"vm-{VMID}-disk", "rpool", "local-zfs"):
        assert archived.found(product.backup1, text, "/srv/box") == [], text
    for text in (MARKER, archived.identity):
        places = ("/var/log", f"{PLACE}/journal", f"{PLACE}/state", f"{PLACE}/spool", f"{PLACE}/run")
        assert archived.found(product.pve1, text, *places) == [], text
        assert not any(text in output for output in archived.outputs)
    names = product.backup1.script('cd "$1" && find . -mindepth 1', BOX).lines
    assert [name for name in names if not OPAQUE.match(name)] == []
    text = 'dd if="/dev/zvol/$1" bs=1M skip=5 count=1 status=none | grep -caF -- "$2"'
    assert int(product.pve1.script(text, archived.guest.disk, MARKER).stdout) > 0
    product.backup1.script('echo "x $1 x" > /srv/box/uploads/control', MARKER)
    assert archived.found(product.backup1, MARKER, "/srv/box") == ["/srv/box/uploads/control"]
    product.backup1.run(("rm", "/srv/box/uploads/control"))


def test_every_level_of_verifying_says_good_and_the_drill_opens_it(archived: Archived) -> None:
    product = archived.product
    product.pve1.write(f"{PLACE}/safe", archived.identity + "\n", mode=0o600)
    try:
        for level in ("listed", "sampled", "hashed"):
            assert archived.json("verify", "archive", "box1", "--level", level)["good"], level
        opened = archived.json("verify", "archive", "box1", "--level", "opened", "--identity", f"{PLACE}/safe")
        assert opened["good"]
        assert len(opened["points"]) == INCREMENTS + 1
        assert archived.json("key", "drill", "box1", "--identity", f"{PLACE}/safe")["good"]
        mark = "pve-zfsbackup:scratch=pzb-scratch-0123456789abcdef"  # as of a check that was killed
        product.pve1.script('zfs create -o "$1" "$2"; zfs create "$2/x"', mark, f"{SCRATCH}-0123456789abcdef")
        command = ("verify", "archive", "box1", "--level", "received", "--identity", f"{PLACE}/safe")
        received = archived.json(*command, "--scratch", "fast")
        assert received["good"], received
        assert [point["segments"] > 0 for point in received["points"]] == [True] * (INCREMENTS + 1)
        assert "scratch" not in product.pve1.run(("zfs", "list", "-H", "-o", "name", "-r", "fast")).stdout
        product.pve1.script('zfs create "$1"', f"{SCRATCH}-fedcba9876543210")  # of that name, and not ours
        refused = archived.run(*command, "--scratch", "fast", check=False)
        assert refused.returncode == 2
        assert "stays" in refused.stderr
        product.pve1.run(("zfs", "destroy", f"{SCRATCH}-fedcba9876543210"))
    finally:
        product.pve1.run(("rm", f"{PLACE}/safe"))
    listed = archived.json("list", "--where", "box1")["archived"]
    assert {point["read_back"]["level"] for point in listed} == {"received"}


def test_killed_between_any_two_steps_only_what_is_missing_is_sent(archived: Archived) -> None:
    """The killer kills before one step in four of the archive stage (PZB_LAB_KILLS=all: each)."""
    product = archived.product
    product.pve1.put(KILLER, "/root/archive_killer.py")
    product.pve1.put(KILLER.with_name("killer.py"), "/root/killer.py")
    stride = "1" if os.environ.get("PZB_LAB_KILLS") == "all" else "4"
    disks = [f"/dev/zvol/{disk}" for disk in archived.guest.disks]
    command = ("python3", "/root/archive_killer.py", stride, CONFIG, f"{PLACE}/state/boxes/box1/pending", *disks)
    done = product.pve1.run(command, check=False, timeout=3000)
    rows = [json.loads(line) for line in done.lines if line.startswith("{")]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert rows[-1].get("unreached"), "every step was reached"
    killed = rows[:-1]
    assert len(killed) >= 5
    for row in killed:
        assert row["again"] == 0, row
        if row["published"]:
            continue  # killed after the point was there: nothing was left to send
        assert row["skipped"] == row["there"], row
        assert row["sent"] == row["segments"] - row["there"], row
    assert any(row["there"] for row in killed), "at least one kill came between two segments"
    assert any(row["segments"] > row["there"] > 0 for row in killed if not row["published"])
    archived.note()
    assert archived.json("verify", "archive", "box1", "--level", "hashed")["good"]


def test_the_source_is_lost_and_the_safe_has_what_key_escrow_told(archived: Archived) -> None:
    """From here on nothing is taken from the node: its guest is destroyed, keys, state and configuration are away."""
    product, guest = archived.product, archived.guest
    archived.safe = [archived.identity, *archived.run("key", "escrow", "box1").lines]
    archived.safe += product.run("key", "escrow", "rpool/crypt").lines
    archived.lost["config"] = product.pve1.read(f"/etc/pve/qemu-server/{VMID}.conf")
    archived.lost["properties"] = _properties(archived, guest.disks)
    guests.remove(product.pve1, VMID)
    product.pve1.run(("mv", PLACE, f"{PLACE}.lost"))


def test_a_fresh_host_restores_it_with_nothing_but_the_script(archived: Archived) -> None:
    """restore.sh from the box, and what lies in the safe; before the package is on that host at all."""
    product = archived.product
    host = product.backup1
    assert host.run(("sh", "-c", "command -v pve-zfsbackup"), check=False).returncode != 0
    host.script('mkdir -m 700 "$1"; zfs create -o mountpoint=none tank/back-script', FRESH)
    host.write(f"{FRESH}/identity", archived.safe[0] + "\n", mode=0o600)
    signers = [line.strip() for line in archived.safe if 'namespaces="pve-zfsbackup-archive"' in line]
    host.write(f"{FRESH}/signers", "".join(f"{line}\n" for line in signers))
    (generation,) = host.script('echo "$1"/w-*/*/restore.sh', BOX).stdout.split()
    listed = host.run(("sh", generation, "list", f"{FRESH}/identity", f"{FRESH}/signers")).lines
    assert [point for line in listed if (point := line.split()[4]) in archived.contents] == archived.points
    name = listed[-1].split()[0]
    host.script('cd "$1"; sh "$2" restore identity signers "$3" tank/back-script', FRESH, generation, name, timeout=900)
    _equal(archived, ["tank/back-script/scsi0", "tank/back-script/scsi1"])
    config = json.loads(host.read(f"{FRESH}/guest-{name}.json"))
    assert config["conf"].strip() == archived.lost["config"].strip()


def test_a_fresh_host_restores_it_with_the_package(archived: Archived, debs: tuple[Path, ...]) -> None:
    """The box over its own SFTP account, the identity, the signers' file; no key of the source, no state."""
    product = archived.product
    host = product.backup1
    install(host, debs, "pve-zfsbackup")
    host.script('ssh-keygen -q -t ed25519 -N "" -f "$1/id"; zfs create -o mountpoint=none tank/back', FRESH)
    setup.authorize(host, host.read(f"{FRESH}/id.pub").strip(), "box")
    kind, key = host.read("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
    host.write(f"{FRESH}/known_hosts", f"backup1 {kind} {key}\n")
    host.write(f"{FRESH}/config.yaml", _CONFIG.format(place=FRESH, host="backup1"), mode=0o600)
    common = ("--from", "box1", "--identity", f"{FRESH}/identity", "--config", f"{FRESH}/config.yaml", "--json")
    arguments = ("pve-zfsbackup", "restore", str(VMID), "--config-dir", FRESH, *common)
    third = archived.points[2]
    shown = json.loads(host.run((*arguments, "--to", "tank/back", "--disk", "scsi1", "--dry-run"), timeout=900).stdout)
    assert [(disk["disk"], disk["received"]) for disk in shown["disks"]] == [("scsi1", 0)]
    assert host.run(("zfs", "list", "-H", "-r", "-o", "name", "tank/back")).lines == ["tank/back"]
    back = json.loads(host.run((*arguments, "--to", "tank/back", "--point", third), timeout=900).stdout)
    assert back["point"] == third
    assert [(disk["disk"], disk["streams"]) for disk in back["disks"]] == [("scsi0", 3), ("scsi1", 3)]
    host.run(("rm", f"{FRESH}/{VMID}.conf"))
    back = json.loads(host.run((*arguments, "--to", "tank/back"), timeout=900).stdout)  # goes on where it was
    assert {disk["streams"] - disk["received"] for disk in back["disks"]} == {3}
    _equal(archived, [f"tank/back/local-zfs/vm-{VMID}-disk-0", f"tank/back/crypt/vm-{VMID}-disk-1"])
    text = host.read(f"{FRESH}/{VMID}.conf")
    assert text.strip() == archived.lost["config"].strip()
    assert archived.found(product.backup1, archived.identity, "/var/log", f"{FRESH}/state") == []


def test_the_guest_that_was_destroyed_is_made_again_on_the_node(archived: Archived) -> None:
    """Nothing of it is left on the node but what its box has: disks, encrypted or not, properties, configuration."""
    pve1 = archived.product.pve1
    name = f"/etc/pve/qemu-server/{VMID}.conf"
    config, before = _keys(archived.lost["config"]), archived.lost["properties"]
    pve1.run(("mv", f"{PLACE}.lost", PLACE))
    pve1.write(f"{PLACE}/identity", archived.identity + "\n", mode=0o600)
    common = ("--from", "box1", "--identity", f"{PLACE}/identity", "--yes", "--at")
    for where, point in (((), archived.points[1]), (("--replace", str(VMID)), archived.points[-1])):
        done = archived.json("restore", str(VMID), *where, *common, point)
        assert done["done"], done
        assert done["point"] == point, done
        disks = [str(one["dataset"]) for one in done["disks"]]
        assert _keys(pve1.read(name)) == config
        assert set(guests.contents(pve1, tuple(disks)).values()) == set(archived.contents[point].values())
        assert _properties(archived, disks) == before
    report = archived.archive()  # and it is archived on
    assert report["outcome"] == "ok"


def test_a_disk_made_anew_comes_in_full_amid_a_chain_and_is_read_back_as_well(archived: Archived) -> None:
    """Removed and made again under its name: the chain goes on, and that disk in it begins anew."""
    pve1 = archived.product.pve1
    found = re.search(r"^scsi0: local-zfs:([^,]+)", pve1.read(f"/etc/pve/qemu-server/{VMID}.conf"), re.M)
    assert found
    disk = f"rpool/data/{found[1]}"
    size = pve1.run(("zfs", "get", "-Hp", "-o", "value", "volsize", disk)).stdout.strip()
    pve1.script('zfs destroy -r "$2"; zfs create -s -V "$1" "$2"; udevadm settle', size, disk)
    pve1.write(f"{PLACE}/identity", archived.identity + "\n", mode=0o600)
    archived.points.clear()
    for outcome in ("warning", "ok"):
        guests.write(pve1, disk, 2)
        report = archived.archive(outcome)
        assert report["message"].startswith("increment"), report
        archived.note()
    command = ("verify", "archive", "box1", "--level", "received", "--identity", f"{PLACE}/identity")
    received = archived.json(*command, "--scratch", "fast")
    assert received["good"], received
    assert [point["point"] for point in received["points"]][-2:] == archived.points
    done = archived.json(
        "restore", str(VMID), "--replace", str(VMID), "--yes", "--from", "box1", "--identity", f"{PLACE}/identity",
        "--at", archived.points[-1],
    )  # fmt: skip
    disks = tuple(str(one["dataset"]) for one in done["disks"])
    assert set(guests.contents(pve1, disks).values()) == set(archived.contents[archived.points[-1]].values())


def _keys(config: str) -> dict[str, str]:
    """Without the numbers of its volumes: a restored disk gets the next free one of its storage, as Proxmox counts."""
    lines = re.sub(r"-disk-\d+", "-disk-N", config).splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def _properties(archived: Archived, disks: Sequence[str]) -> list[list[list[str]]]:
    """What the disks are besides their content; an encrypted one is open, by the key of its storage."""
    names = "volsize,volblocksize,compression,encryptionroot,keystatus,refreservation"
    return [zfs(archived.product.pve1, "get", "-Hp", "-o", "property,value", names, disk) for disk in disks]


def _equal(archived: Archived, datasets: list[str]) -> None:
    """Every snapshot of every disk holds what it held on the source; the encrypted one stays closed until its key."""
    host = archived.product.backup1
    told = dict(zfs(host, "get", "-H", "-o", "name,value", "keystatus", *datasets))  # zfs sorts them by name
    assert [told[name] for name in datasets] == ["-", "unavailable"]
    typed = "\n".join(line for line in archived.safe if re.fullmatch(r"  (?:[0-9A-F]{4} ){7}[0-9A-F]{4}", line))
    text = (
        'printf "%s" "$1" | tr -d " \\n" | basenc --base16 -d > /dev/shm/key\n'
        'zfs load-key -L file:///dev/shm/key "$2"; rm /dev/shm/key'
    )
    host.script(text, typed, datasets[1])
    try:
        lines = host.run(("zfs", "list", "-Hp", "-d", "1", "-t", "snapshot", "-o", "guid,name", *datasets)).lines
        names = dict(line.split("\t") for line in lines)
        wanted = archived.everything
        assert names.keys() >= wanted.keys(), "every point is there"
        found = hashes(host, [names[guid] for guid in wanted])
        assert {guid: found[names[guid]] for guid in wanted} == wanted
    finally:
        host.run(("zfs", "unload-key", datasets[1]))
