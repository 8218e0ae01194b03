"""The simulated node inside the lab: a freeze really freezes, the commands speak as recorded, the guests are there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.lab.host import Host
from tests.lab.pve import provision as pve
from tests.lab.pve.make_guests import MARKER


@pytest.fixture
def vm100(pve1: Host) -> Iterator[Host]:
    """pve1 with VM 100 thawed and its agent well, before and after."""
    yield pve1
    pve.set_slow_freeze(pve1, 100, 0)
    pve.thaw(pve1, 100)


def curl(host: Host, method: str, path: str, token: str) -> tuple[int, str]:
    """One request from the node to itself, verified by its CA: status and body."""
    command = ("curl", "-sS", "--cacert", "/etc/pve/pve-root-ca.pem", "-X", method, "-w", "\n%{http_code}", "-H", "@-",
               f"https://{host.name}:8006/api2/json{path}", "--resolve", f"{host.name}:8006:127.0.0.1")
    body, _, status = host.run(command, input=f"Authorization: PVEAPIToken={token}\n").stdout.rpartition("\n")
    return int(status), body


@pytest.fixture(scope="module")
def token(pve1: Host) -> Iterator[str]:
    """A token that may freeze, made as the product's setup makes it."""
    pve.pvesh(pve1, "create", "/access/users", "--userid", "sim@pve")
    made = pve.pvesh(pve1, "create", "/access/users/sim@pve/token/sim", "--privsep", "0")
    assert isinstance(made, dict)
    pve.pvesh(pve1, "set", "/access/acl", "--path", "/vms", "--roles", "PVEVMUser", "--users", "sim@pve")
    yield f"sim@pve!sim={made['value']}"
    pve.pvesh(pve1, "delete", "/access/users/sim@pve")


def test_the_guests_are_as_described(pve1: Host) -> None:
    guests = pve.pvesh(pve1, "get", "/cluster/resources", "--type", "vm")
    assert isinstance(guests, list)
    found = {g["vmid"]: (g["type"], g["status"], g["template"]) for g in guests}
    assert found == {
        100: ("qemu", "running", 0), 101: ("qemu", "running", 0), 102: ("qemu", "stopped", 1),
        103: ("qemu", "stopped", 0), 104: ("qemu", "running", 0), 105: ("qemu", "stopped", 0),
        106: ("qemu", "running", 0), 200: ("lxc", "running", 0)}
    assert next(g for g in guests if g["vmid"] == 100)["pool"] == "production"
    assert pve1.run(("zfs", "get", "-Ho", "value", "origin", "rpool/data/vm-103-disk-0")).lines == [
        "rpool/data/base-102-disk-0@__base__"]
    assert pve1.run(("zfs", "get", "-Ho", "value", "encryption", "rpool/crypt/vm-101-disk-0")).lines == ["aes-256-gcm"]
    assert MARKER in pve.guest_read(pve1, 101, "marker.txt")


def test_each_volume_of_a_configuration_exists(pve1: Host) -> None:
    for storage, expected in {"local-zfs": 16, "fast": 1, "crypt": 1}.items():
        content = pve.pvesh(pve1, "get", f"/nodes/{pve1.name}/storage/{storage}/content")
        assert isinstance(content, list)
        ours = [item for item in content if item["vmid"] <= 106 or item["vmid"] == 200]
        assert len(ours) == expected, sorted(item["volid"] for item in ours)
    local = pve.pvesh(pve1, "get", f"/nodes/{pve1.name}/storage/local/content")
    assert isinstance(local, list)
    image = next(item for item in local if item["volid"] == "local:106/vm-106-disk-0.qcow2")
    assert (image["format"], image["size"]) == ("qcow2", 32 * 2**20)


def test_no_guest_sees_the_hosts_disk(pve1: Host) -> None:
    root = pve1.run(("findmnt", "-no", "MAJ:MIN", "/")).stdout.strip()
    for vmid in pve.RUNNING:
        mounts = pve1.read(f"/proc/{pve1.read(f'/run/qemu-server/{vmid}.pid').strip()}/mountinfo").splitlines()
        devices = {line.split()[2] for line in mounts}
        assert root not in devices
        points = [line.split()[4] for line in mounts if not line.split()[2].startswith("0:")]
        assert points
        assert all(point.startswith("/guest/") for point in points)


def test_a_freeze_blocks_the_writers_and_a_thaw_lets_them_go(vm100: Host, token: str) -> None:
    assert pve.freeze_state(vm100, 100) == pve.FreezeState(agent="thawed", blocked=False)
    status, body = curl(vm100, "POST", f"/nodes/{vm100.name}/qemu/100/agent/fsfreeze-freeze", token)
    assert (status, json.loads(body)) == (200, {"data": {"result": 2}})
    assert pve.freeze_state(vm100, 100) == pve.FreezeState(agent="frozen", blocked=True)
    # The other guests and the host's own root go on.
    assert pve.freeze_state(vm100, 101) == pve.FreezeState(agent="thawed", blocked=False)
    vm100.run(("sh", "-c", "echo alive > /root/alive && sync /root/alive"), timeout=20)
    status, body = curl(vm100, "POST", f"/nodes/{vm100.name}/qemu/100/agent/fsfreeze-thaw", token)
    assert (status, json.loads(body)) == (200, {"data": {"result": 2}})
    assert pve.freeze_state(vm100, 100) == pve.FreezeState(agent="thawed", blocked=False)


def test_a_snapshot_of_a_frozen_guest_needs_no_recovery(vm100: Host) -> None:
    def recovery(name: str) -> bool:
        device = f"/dev/zvol/rpool/sim-{name}"
        vm100.run(("zfs", "snapshot", f"rpool/data/vm-100-disk-0@sim-{name}"))
        vm100.run(("zfs", "clone", f"rpool/data/vm-100-disk-0@sim-{name}", f"rpool/sim-{name}"))
        vm100.wait_for(("test", "-e", device))
        try:
            return "needs_recovery" in vm100.run(("dumpe2fs", "-h", device)).stdout
        finally:
            vm100.run(("sh", "-c", 'udevadm settle; zfs destroy -R "$1"', "sh",
                       f"rpool/data/vm-100-disk-0@sim-{name}"))
    assert recovery("live")
    vm100.run(("qm", "guest", "cmd", "100", "fsfreeze-freeze"))
    assert not recovery("frozen")


def test_a_frozen_guest_can_be_stopped_and_started(vm100: Host) -> None:
    vm100.run(("qm", "guest", "cmd", "100", "fsfreeze-freeze"))
    pve.stop_guest(vm100, 100)
    assert vm100.run(("qm", "status", "100")).stdout == "status: stopped\n"
    refused = vm100.run(("qm", "guest", "cmd", "100", "fsfreeze-freeze"), check=False)
    assert (refused.returncode, refused.stderr) == (2, "VM 100 is not running\n")
    pve.start_guest(vm100, 100)
    assert pve.freeze_state(vm100, 100) == pve.FreezeState(agent="thawed", blocked=False)


def test_a_slow_freeze_outlives_the_proxy(vm100: Host, token: str) -> None:
    pve.set_slow_freeze(vm100, 100, 40)
    begun = time.monotonic()
    status, body = curl(vm100, "POST", f"/nodes/{vm100.name}/qemu/100/agent/fsfreeze-freeze", token)
    assert (status, body) == (596, "")
    assert 29 < time.monotonic() - begun < 39
    thaw = ("qm", "guest", "cmd", "100", "fsfreeze-thaw")
    early = vm100.run(thaw, check=False)
    assert (early.returncode, early.stderr) == (255, "QEMU guest agent is not running\n")
    vm100.wait_for(("sh", "-c", 'test "$(qm guest cmd 100 fsfreeze-status)" = frozen'))
    assert pve.freeze_state(vm100, 100).blocked
    assert vm100.run(thaw).stdout == "2\n"


@pytest.mark.parametrize("mode", ["hang", "dead"])
def test_an_agent_that_does_not_answer(vm100: Host, mode: str) -> None:
    pve.set_agent(vm100, 100, mode)
    got = vm100.run(("qm", "guest", "cmd", "100", "fsfreeze-freeze"), check=False)
    assert (got.returncode, got.stdout, got.stderr) == (255, "", "QEMU guest agent is not running\n")
    assert not pve.freeze_state(vm100, 100).blocked


def test_an_agent_that_refuses_to_freeze(vm100: Host) -> None:
    pve.set_agent(vm100, 100, "refuse")
    got = vm100.run(("qm", "guest", "cmd", "100", "fsfreeze-freeze"))
    assert set(json.loads(got.stdout)["error"]) == {"class", "desc"}
    assert pve.freeze_state(vm100, 100) == pve.FreezeState(agent="thawed", blocked=False)


def test_guests_without_an_agent(pve1: Host) -> None:
    got = pve1.run(("pvesh", "create", f"/nodes/{pve1.name}/qemu/106/agent/ping"), check=False)
    assert (got.returncode, got.stderr) == (255, "No QEMU guest agent configured\n")


def test_commands_and_exit_codes(pve1: Host) -> None:
    assert pve.pvesh(pve1, "get", "/version") == {"version": "9.2.11", "release": "9.2", "repoid": "14a22df35955d97d"}
    unknown = pve1.run(("pvesh", "get", f"/nodes/{pve1.name}/qemu/999/config"), check=False)
    assert (unknown.returncode, unknown.stderr) == (
        2, f"Configuration file 'nodes/{pve1.name}/qemu-server/999.conf' does not exist\n")
    nothing = pve1.run(("pvesh", "get", "/nosuch"), check=False)
    assert (nothing.returncode, nothing.stderr) == (1, "No 'get' handler defined for '/nosuch'\n")
    assert "files" in pve1.run(("pct", "list")).stdout
    assert pve1.run(("qm", "config", "105")).lines[0] == "bios: ovmf"


def test_locks_and_tasks(pve1: Host) -> None:
    path = "/etc/pve/qemu-server/103.conf"
    before = pve1.read(path)
    pve.set_lock(pve1, 103, "backup")
    failed = pve1.run(("pvesh", "create", f"/nodes/{pve1.name}/qemu/103/snapshot", "--snapname", "zz"))
    assert failed.stdout.startswith(f"UPID:{pve1.name}:")
    assert failed.stderr == "VM is locked (backup)\n"
    assert pve1.run(("qm", "snapshot", "103", "zz"), check=False).returncode == 255
    pve.set_lock(pve1, 103, None)
    assert pve1.read(path) == before


def test_a_proxmox_snapshot_blocked_by_a_foreign_one(pve1: Host) -> None:
    foreign = "rpool/data/vm-103-disk-0@foreign.1"
    pve1.run(("qm", "snapshot", "103", "mine"))
    pve1.run(("zfs", "snapshot", foreign))
    blocked = pve1.run(("qm", "rollback", "103", "mine"), check=False)
    assert blocked.stderr == (
        "can't rollback, 'mine' is not most recent snapshot on 'local-zfs:base-102-disk-0/vm-103-disk-0'\n")
    pve1.run(("zfs", "destroy", foreign))
    assert pve1.run(("qm", "rollback", "103", "mine")).stderr == ""
    pve1.run(("qm", "delsnapshot", "103", "mine"))
    assert "mine" not in pve1.read("/etc/pve/qemu-server/103.conf")


def test_a_disk_can_be_recreated(pve1: Host) -> None:
    guid = ("zfs", "get", "-Hpo", "value", "guid", "rpool/data/vm-106-disk-0")
    before = pve1.run(guid).stdout
    pve.recreate_disk(pve1, 106, "rpool/data/vm-106-disk-0", 64)
    assert pve1.run(guid).stdout != before
    pve.guest_write(pve1, 106, "note", b"fresh", disk="scsi1")
    assert pve.guest_read(pve1, 106, "note", disk="scsi1") == "fresh"


def test_provision_again_changes_nothing(pve1: Host) -> None:
    names = ("zfs", "list", "-Hpo", "name,guid", "-t", "volume,filesystem", "-r", "rpool", "fast")
    before = pve1.run(names).stdout
    files = ("sh", "-c", "sha1sum /etc/pve/qemu-server/*.conf /etc/pve/storage.cfg /etc/pve/pve-root-ca.pem")
    config = pve1.run(files).stdout
    pve1.run(("python3", "-I", f"{pve.TARGET}/make_guests.py"))
    pve1.run(("systemctl", "restart", "pvesim"))
    pve.wait_ready(pve1)
    assert pve1.run(names).stdout == before
    assert pve1.run(files).stdout == config
