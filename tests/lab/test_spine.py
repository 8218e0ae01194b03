"""The main job on real ZFS: install, set up, run, and look behind every claim. The tests go on from each other."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.product import CONFIG_TEXT, ROOT, Product, forget, hashes, quick, zfs
from tests.lab.pve.make_guests import MARKER
from tests.lab.pve.provision import freeze_state, guest_write, recreate_disk, set_agent, thaw

KILLER = Path(__file__).with_name("killer.py")
PROTECTED = {
    100: ["local-zfs/vm-100-disk-0", "fast/vm-100-disk-0"],
    101: ["crypt/vm-101-disk-0"],
    102: ["local-zfs/base-102-disk-0"],
    103: ["local-zfs/vm-103-disk-0"],
    104: ["local-zfs/vm-104-disk-0"],
    105: ["local-zfs/vm-105-disk-0", "local-zfs/vm-105-disk-1", "local-zfs/vm-105-disk-2"],
    106: ["local-zfs/vm-106-disk-0"],
    200: ["local-zfs/subvol-200-disk-0", "local-zfs/subvol-200-disk-1"],
}


@pytest.fixture(scope="module")
def first_run(product: Product) -> Product:
    """One complete run over all guests, the first there ever was."""
    forget(product)
    done = product.run("run")
    assert (done.stdout, done.stderr) == ("", ""), "cron must not send mail when all is well"
    return quick(product)


def test_setup_changes_nothing_that_is_right(product: Product) -> None:
    states = {action["state"] for action in product.json("setup")["actions"]}
    assert states == {"right"}
    modes = product.pve1.run(("stat", "-c", "%a %U", "/etc/pve-zfsbackup/api.token", "/etc/pve-zfsbackup/id_ed25519"))
    assert modes.lines == ["600 root", "600 root"]


def test_discover_says_of_every_disk_whether_and_why_not(product: Product) -> None:
    found = {guest["vmid"]: guest for guest in product.json("discover")["guests"]}
    assert set(found) == set(PROTECTED)
    for vmid, expected in PROTECTED.items():
        protected = [disk for disk in found[vmid]["disks"] if disk["protected"]]
        assert len(protected) == len(expected), found[vmid]
    reasons = {disk["key"]: disk["reason"] for disk in found[104]["disks"] + found[200]["disks"] if disk["reason"]}
    assert "cloud-init" in reasons["ide2"]
    assert "CD-ROM" in reasons["ide0"]
    assert "backup=0" in reasons["scsi1"]
    assert "not attached" in reasons["unused0"]
    assert "backup=1 is not set" in reasons["mp1"]
    assert "bind mount" in reasons["mp2"]
    assert "not ZFS" in next(disk["reason"] for disk in found[106]["disks"] if disk["key"] == "scsi0")
    assert any("scsi2 is added at the next start" in note for note in found[104]["notes"]), "pending, not current"


def test_both_transports_see_the_same(product: Product) -> None:
    by_token = product.json("discover")
    text = CONFIG_TEXT + "api:\n  token-file: /etc/pve-zfsbackup/no.token\n"
    product.configure(text, "/root/pvesh.yaml")
    by_pvesh = product.json("discover", "--config", "/root/pvesh.yaml")
    assert by_pvesh == by_token


def test_every_guest_has_a_complete_point_here_and_there(first_run: Product) -> None:
    listed = first_run.json("list")
    assert listed["unreachable"] == {}
    found = {(point["vmid"], point["host"]) for point in listed["points"] if point["complete"]}
    assert found == {(vmid, host) for vmid in PROTECTED for host in ("source", "backup1")}
    for point in listed["points"]:
        expected = {100: "quiesced", 101: "quiesced", 102: "offline", 103: "offline", 105: "offline"}
        assert point["consistency"].split(":")[0] == expected.get(point["vmid"], "crash-consistent")
    status = first_run.json("status")
    problems = {guest["vmid"]: guest["problems"] for guest in status["guests"] if guest["problems"]}
    assert set(problems) == {104, 106, 200}
    assert problems[104] == ["Proxmox cannot roll back to foo (unblock-rollback)"]


def test_all_disks_of_a_guest_carry_the_point_at_one_instant(first_run: Product) -> None:
    newest = first_run.newest()
    for vmid in (100, 105, 200):
        point = newest[vmid, "source"]
        snapshots = [disk["snapshot"] for disk in point["disks"]]
        rows = zfs(first_run.pve1, "get", "-Hp", "-o", "name,value", "createtxg", *snapshots)
        by_pool: dict[str, set[str]] = {}
        for name, txg in rows:
            by_pool.setdefault(name.split("/")[0], set()).add(txg)
        assert all(len(txgs) == 1 for txgs in by_pool.values()), rows
        names = {snapshot.partition("@")[2] for snapshot in snapshots}
        assert len(names) == 1
        assert len(by_pool) == (2 if vmid == 100 else 1)


def test_a_point_carries_the_guest_configuration(first_run: Product) -> None:
    (point,) = first_run.points(100, "backup1")
    name = point["disks"][0]["snapshot"]
    packed = first_run.backup1.run(("zfs", "get", "-H", "-o", "value", "pve-zfsbackup:conf", name)).stdout.strip()
    code = "import sys; from pve_zfsbackup.host import guests; print(guests.unpack_config([sys.argv[1]])['conf'])"
    text = first_run.pve1.run(("python3", "-c", code, packed)).stdout
    current = first_run.pve1.read("/etc/pve/qemu-server/100.conf").split("\n[", maxsplit=1)[0]
    assert text.strip() == current.strip()


def test_replicas_equal_the_source_and_the_encrypted_one_stays_closed(first_run: Product) -> None:
    product = first_run
    newest = product.newest()
    pairs = [
        (here["snapshot"], there["snapshot"])
        for vmid in PROTECTED
        for here, there in zip(newest[vmid, "source"]["disks"], newest[vmid, "backup1"]["disks"], strict=True)
    ]
    assert len(pairs) == sum(map(len, PROTECTED.values()))
    crypt = f"{ROOT}/crypt/vm-101-disk-0"
    assert zfs(product.backup1, "get", "-H", "-o", "value", "keystatus", crypt) == [["unavailable"]]
    assert _count_on_disk(product.backup1, MARKER) == 0
    source = hashes(product.pve1, [a for a, _ in pairs])
    replica = hashes(product.backup1, [b for _, b in pairs if not b.startswith(crypt)])
    for one, other in pairs:
        if other in replica:
            assert replica[other] == source[one], f"{other} differs from {one}"
    # The key never was on backup1; with it the replica opens and is equal, too.
    ((location,),) = zfs(product.pve1, "get", "-H", "-o", "value", "keylocation", "rpool/crypt")
    key = product.pve1.run(("base64", "-w0", location.removeprefix("file://"))).stdout
    product.backup1.script('echo "$1" | base64 -d > /dev/shm/key; zfs load-key -L file:///dev/shm/key "$2"', key, crypt)
    try:
        (pair,) = [pair for pair in pairs if pair[1].startswith(crypt)]
        assert hashes(product.backup1, [pair[1]])[pair[1]] == source[pair[0]]
    finally:
        product.backup1.script('rm /dev/shm/key; zfs unload-key "$1"', crypt)


def test_the_search_for_the_marker_can_find_it(first_run: Product) -> None:
    """The control of the test above: the same text written plainly on the same pool is seen."""
    first_run.backup1.script(
        'zfs create -o compression=off tank/control; yes "$1" | head -n 2000 > /tank/control/x; sync', MARKER
    )
    try:
        assert _count_on_disk(first_run.backup1, MARKER) > 0
    finally:
        first_run.backup1.run(("zfs", "destroy", "tank/control"))


def test_a_quiesced_file_system_needs_no_recovery(first_run: Product) -> None:
    """And the same guest under the same writer without a freeze does: the freeze is real."""
    product = first_run
    quiesced = product.points(100)[-1]["disks"][0]["snapshot"]
    product.configure(CONFIG_TEXT + "    quiesce: off\n", "/root/off.yaml")
    product.run("snapshot", "100", "--config", "/root/off.yaml")
    raw = product.points(100)[-1]
    assert raw["consistency"] == "crash-consistent: quiesce is off"
    verdicts = {}
    for name in (quiesced, raw["disks"][0]["snapshot"]):
        text = """
        clone=rpool/lab-fsck-$$
        zfs clone "$1" $clone
        for i in $(seq 600); do [ -b /dev/zvol/$clone ] && break; sleep 0.1; done
        dumpe2fs -h /dev/zvol/$clone 2> /dev/null | grep '^Filesystem features'
        e2fsck -fn /dev/zvol/$clone > /dev/null 2>&1 && echo clean || echo dirty
        for i in $(seq 100); do zfs destroy $clone 2> /dev/null && break; sleep 0.2; done
        """
        verdicts[name] = product.pve1.script(text, name).stdout
    features, state = verdicts[quiesced].splitlines()
    assert "needs_recovery" not in features
    assert state == "clean"
    assert "needs_recovery" in verdicts[raw["disks"][0]["snapshot"]]


def test_an_agent_that_refuses_makes_a_crash_consistent_point_or_none(first_run: Product) -> None:
    product = first_run
    set_agent(product.pve1, 101, "refuse")
    try:
        product.run("snapshot", "101")
        assert product.points(101)[-1]["consistency"].startswith("crash-consistent: ")
        product.configure(CONFIG_TEXT + "    quiesce: require\n", "/root/require.yaml")
        count = len(product.points(101))
        done = product.run("snapshot", "101", "--config", "/root/require.yaml", check=False)
        assert done.returncode == 2
        assert "quiescing is required" in done.stderr
        assert len(product.points(101)) == count
    finally:
        thaw(product.pve1, 101)


def test_the_second_run_is_incremental_and_readable(first_run: Product) -> None:
    product = first_run
    replicas = [f"{ROOT}/{name}" for name in PROTECTED[100]]
    before = zfs(product.backup1, "get", "-Hp", "-o", "name,value", "guid", *replicas)
    guest_write(product.pve1, 100, "new", os.urandom(1 << 20))
    report = product.json("run", "100")
    sent = sum(result["bytes"] for result in report["results"] if result["stage"] == "replicate")
    assert sent > 1 << 20
    after = zfs(product.backup1, "get", "-Hp", "-o", "name,value", "guid", *replicas)
    assert after == before, "the same replicas go on"
    here, there = product.points(100), product.points(100, "backup1")
    assert here[-1]["point"] == there[-1]["point"]
    assert [disk["guid"] for disk in here[-1]["disks"]] == [disk["guid"] for disk in there[-1]["disks"]]
    names = [disk["snapshot"] for disk in there[-1]["disks"]]
    assert all(disk["held"] for disk in there[-1]["disks"])
    holds = zfs(product.backup1, "holds", "-H", "-r", *names)
    assert {row[1] for row in holds} == {"pve-zfsbackup"}
    marks = zfs(product.pve1, "list", "-H", "-t", "bookmark", "-o", "name", "-r", "rpool/data/vm-100-disk-0")
    assert len(marks) == 1, "one bookmark for one target"
    assert here[-1]["point"].partition("/")[2] in marks[0][0]


def test_nothing_new_costs_two_lists_one_connection_and_nothing_else(first_run: Product) -> None:
    product = first_run
    product.run("replicate")
    count = "iptables -w -{} OUTPUT -p tcp --dport 8006 --syn -m comment --comment lab-count"
    product.pve1.run(count.format("I").split())
    try:
        with product.pve1.executed() as here, product.backup1.executed() as there:
            product.run("replicate")
        rows = product.pve1.run(("iptables", "-w", "-nvxL", "OUTPUT")).lines
    finally:
        product.pve1.run(count.format("D").split())
    assert here.count("zfs") == 1, here.names
    assert there.count("zfs") == 1, there.names
    assert there.count("sshd-session") == here.count("sshd-session") + 1, (there.names, here.names)
    assert not {"pvesh", "qm", "systemctl", "systemd-run"} & set(here.names)
    connections = int(next(row for row in rows if "lab-count" in row).split()[0])
    assert 1 <= connections <= 8, "one session with its pool"


def test_prune_shows_what_would_go_and_then_does_it(first_run: Product) -> None:
    product = first_run
    text = CONFIG_TEXT.replace("jobs:", "    keep: {keep-last: 2}\njobs:") + "    keep: {keep-last: 1}\n"
    product.configure(text, "/root/keep.yaml")
    for _ in range(2):
        guest_write(product.pve1, 100, "churn", os.urandom(1 << 20))
        product.run("run", "100", "--stage", "snapshot", "--stage", "replicate", "--config", "/root/keep.yaml")
    before = {host: [point["point"] for point in product.points(100, host)] for host in ("source", "backup1")}
    foreign = "rpool/data/vm-100-disk-0@an-administrators-own"
    product.pve1.run(("zfs", "snapshot", foreign))
    dry = product.json("prune", "100", "--dry-run", "--config", "/root/keep.yaml")
    assert all(verdict["reasons"] for verdict in dry["verdicts"])
    assert sum(dry["freed"].values()) > 0
    assert {host: [p["point"] for p in product.points(100, host)] for host in before} == before
    product.run("prune", "100", "--config", "/root/keep.yaml")
    for host in before:
        kept = [verdict["point"] for verdict in dry["verdicts"] if verdict["keep"] and verdict["host"] == host]
        assert [point["point"] for point in product.points(100, host)] == kept
        assert before[host][-1] in kept
    assert zfs(product.pve1, "list", "-H", "-o", "name", foreign) == [[foreign]]
    product.pve1.run(("zfs", "destroy", foreign))
    guest_write(product.pve1, 100, "after", b"x")
    report = product.json("run", "100")
    assert report["exit_code"] == 0
    sent = [result for result in report["results"] if result["stage"] == "replicate"]
    assert sent[0]["outcome"] == "ok", "still incremental"


def test_a_snapshot_recreated_under_its_name_is_not_taken_for_the_old_one(first_run: Product) -> None:
    product = first_run
    newest = product.points(106)[-1]["disks"][0]
    there = product.points(106, "backup1")[-1]["disks"][0]
    before = hashes(product.backup1, [there["snapshot"]])
    rows = zfs(product.pve1, "get", "-H", "-s", "local", "-o", "property,value", "all", newest["snapshot"])
    properties = [part for key, value in rows if key.startswith("pve-zfsbackup:") for part in ("-o", f"{key}={value}")]
    product.pve1.run(("zfs", "destroy", newest["snapshot"]))
    product.pve1.run(("zfs", "snapshot", *properties, newest["snapshot"]))
    done = product.run("run", "106", "--stage", "snapshot", "--stage", "replicate")
    assert "made anew" in done.stderr, "somebody is told"
    assert zfs(product.backup1, "get", "-H", "-p", "-o", "value", "guid", there["snapshot"]) == [[there["guid"]]]
    assert hashes(product.backup1, [there["snapshot"]]) == before
    assert product.points(106)[-1]["disks"][0]["guid"] == product.points(106, "backup1")[-1]["disks"][0]["guid"]


def test_names_shuffled_against_time_do_not_confuse_the_base(first_run: Product) -> None:
    """The order is createtxg: two of our snapshots trade their names on both sides of time."""
    product = first_run
    dataset = "rpool/data/vm-106-disk-0"
    product.run("run", "106", "--stage", "snapshot", "--stage", "replicate")
    one, two = (point["disks"][0]["snapshot"].partition("@")[2] for point in product.points(106)[-2:])
    product.pve1.script(
        'zfs rename "$1@$2" "$1@swap"; zfs rename "$1@$3" "$1@$2"; zfs rename "$1@swap" "$1@$3"', dataset, one, two
    )
    before = {row[0]: row[1] for row in zfs(product.backup1, "get", "-Hp", "-r", "-t", "snapshot", "-o", "name,value",
                                             "guid", f"{ROOT}/local-zfs/vm-106-disk-0")}  # fmt: skip
    product.run("run", "106", "--stage", "snapshot", "--stage", "replicate")
    after = {row[0]: row[1] for row in zfs(product.backup1, "get", "-Hp", "-r", "-t", "snapshot", "-o", "name,value",
                                            "guid", f"{ROOT}/local-zfs/vm-106-disk-0")}  # fmt: skip
    assert before.items() <= after.items(), "nothing old was overwritten"
    assert len(after) == len(before) + 1
    assert product.points(106)[-1]["disks"][0]["guid"] in after.values()


def test_a_recreated_disk_starts_a_generation_beside_the_old_one(first_run: Product) -> None:
    product = first_run
    replica = f"{ROOT}/local-zfs/vm-100-disk-0"
    old = zfs(product.backup1, "list", "-Hp", "-t", "snapshot", "-o", "name,guid", "-r", replica)
    contents = hashes(product.backup1, [row[0] for row in old[-1:]])
    recreate_disk(product.pve1, 100, "rpool/data/vm-100-disk-0", 128)
    done = product.run("run", "100", "--stage", "snapshot", "--stage", "replicate")
    assert "generation" in done.stderr, "somebody is told"
    assert zfs(product.backup1, "list", "-Hp", "-t", "snapshot", "-o", "name,guid", "-r", replica) == old
    assert hashes(product.backup1, list(contents)) == contents
    newest = product.points(100, "backup1")[-1]
    assert newest["point"] == product.points(100)[-1]["point"]
    assert re.search(rf"{replica}-g[0-9a-f]{{8}}@", newest["disks"][0]["snapshot"])
    again = product.json("run", "100")
    assert again["exit_code"] == 0


@pytest.fixture
def killer(product: Product) -> Iterator[Host]:
    product.pve1.put(KILLER, "/root/killer.py")
    yield product.pve1
    product.run("run", "100")


@pytest.mark.parametrize(
    ("which", "least"),
    [
        pytest.param(("19", "21", "24"), 4, id="some"),  # in the freeze, and after it
        pytest.param(("13", "27", "6"), 17, id="most", marks=pytest.mark.long),  # all those around the freeze
    ],
)
def test_killed_between_any_two_steps_it_converges_and_the_guest_is_thawed(
    product: Product, killer: Host, which: tuple[str, ...], least: int
) -> None:
    """First action, last one before strides, stride; a dozen reads of the API come before the freeze.
    PZB_LAB_KILLS=all takes every one. The unit tests kill at every command, too (tests/app/test_killed.py)."""
    which = ("1", "1", "1") if os.environ.get("PZB_LAB_KILLS") == "all" else which
    command = ("python3", "/root/killer.py", *which, "100", "run", "100")
    done = killer.run(command, check=False, timeout=3000)
    rows = [json.loads(line) for line in done.lines]
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows[-1].get("unreached"), "every step was reached"
    assert rows[-1]["code"] == 0, "and the last run was whole"
    killed = rows[:-1]
    assert len(killed) >= least
    frozen = [row for row in killed if row["thawed"] > 1.0]
    assert frozen, "at least one kill left the guest frozen, and the watchdog thawed it"
    assert all(row["again"] == 0 for row in killed)
    state = freeze_state(product.pve1, 100)
    assert (state.agent, state.blocked) == ("thawed", False)
    newest = product.points(100)[-1]
    assert product.points(100, "backup1")[-1]["point"] == newest["point"]
    assert zfs(product.backup1, "list", "-H", "-t", "all", "-o", "receive_resume_token", "-r", ROOT)
    tokens = {row[0] for row in zfs(product.backup1, "get", "-H", "-r", "-o", "value", "receive_resume_token", ROOT)}
    assert tokens == {"-"}
    holds = zfs(product.backup1, "list", "-H", "-t", "snapshot", "-o", "userrefs", "-r", f"{ROOT}/fast/vm-100-disk-0")
    assert sum(int(row[0]) for row in holds) == 1
    leftovers = product.pve1.run(("systemctl", "list-units", "--all", "--no-legend", "pve-zfsbackup-thaw-*")).stdout
    assert leftovers.strip() == ""


def _count_on_disk(host: Host, text: str) -> int:
    """How often a text stands on the raw disk of tank, seen from outside; holes of the sparse file are skipped."""
    host.run(("zpool", "sync", "tank"))
    needle = text.encode()
    found = 0
    path = host.machine.disk_file("tank")
    with path.open("rb") as disk, mmap.mmap(disk.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = os.fstat(disk.fileno()).st_size
        position = 0
        while position < end:
            try:
                start = os.lseek(disk.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(disk.fileno(), start, os.SEEK_HOLE)
            at = data.find(needle, start, position)
            while at != -1:
                found += 1
                at = data.find(needle, at + 1, position)
    return found
