"""Files of guests: through the agent of a VM, and by pct into a container. The product plants its canaries so."""

import json
import os
from pathlib import Path

import pytest
from served import ScriptedAgent, Served

from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.names import PointId
from pve_zfsbackup.plan.boot import Bootable, bootable
from tests.lab.pve import api_agent, guestd

pytestmark = pytest.mark.loopback

PLACE = "/nodes/pve1/qemu/100/agent"
TEXT = "pve-zfsbackup canary 1\nguest 100\n" + "nonce 0123456789abcdef\n" * 9


# -- by the agent


def test_a_file_is_written_and_read_back(node: Served, agent: ScriptedAgent) -> None:
    wrote = node.command("pvesh", "create", f"{PLACE}/file-write", "--file", "/var/lib/x", "--content", TEXT)
    assert (wrote.code, wrote.out, wrote.err) == (0, "", "")
    assert agent.files == {"/var/lib/x": bytearray(TEXT.encode())}
    read = node.command("pvesh", "get", f"{PLACE}/file-read", "--file", "/var/lib/x", "--output-format", "json")
    assert json.loads(read.out) == {"content": TEXT, "bytes-read": len(TEXT)}
    assert [name for name in agent.heard if name != "guest-ping"] == [
        "guest-file-open", "guest-file-write", "guest-file-close",
        "guest-file-open", "guest-file-read", "guest-file-close"]


def test_a_file_that_is_not_there_is_the_agents_error_and_not_a_result(node: Served, agent: ScriptedAgent) -> None:
    read = node.command("pvesh", "get", f"{PLACE}/file-read", "--file", "/no")
    assert (read.code, read.out) == (255, "")
    assert read.err == "Agent error: failed to open file '/no' (mode: 'r'): No such file or directory\n"


def test_a_long_file_is_cut(node: Served, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_agent, "READ_LIMIT", 2 << 20)
    agent.files["/long"] = bytearray(b"\xe9") * (3 << 20)
    got = node.request("GET", f"{PLACE}/file-read?file=/long")
    assert got.status == 200, (got.reason, got.body[:300])
    found = got.json["data"]
    assert (found["truncated"], found["bytes-read"]) == (1, 2 << 20)
    assert found["content"] == "é" * (2 << 20)


def test_an_agent_that_is_frozen_opens_nothing(node: Served, agent: ScriptedAgent) -> None:
    agent.refuse("guest-file-open", "CommandNotFound", "Command guest-file-open has been disabled")
    wrote = node.request("POST", f"{PLACE}/file-write", payload="file=/x&content=y")
    assert (wrote.status, wrote.reason) == (500, "Agent error: Command guest-file-open has been disabled")
    assert agent.files == {}


def test_content_has_a_limit(node: Served, agent: ScriptedAgent) -> None:
    assert node.request("POST", f"{PLACE}/file-write", payload="file=/x&content=" + "y" * 61441).status == 400


# -- by pct


@pytest.fixture
def container(node: Served, tmp_path: Path) -> Path:
    """Container 200 running, with its root file system in a directory."""
    path = node.node.etc.root / "storage.cfg"
    path.write_text(path.read_text().replace("/rpool/data", str(tmp_path / "data")))
    rootfs = node.node.etc.conf("lxc", 200).main["rootfs"].partition(",")[0].partition(":")[2]
    root = tmp_path / "data" / rootfs
    (root / "var/lib").mkdir(parents=True)
    (node.node.run_root / "lxc" / "200.running").touch()
    return root


def test_a_file_goes_into_a_container_and_out_of_it(node: Served, container: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(TEXT)
    pushed = node.command("pct", "push", "200", str(tmp_path / "mine"), "/var/lib/x", "--perms", "0640",
                          "--user", str(os.getuid()), "--group", str(os.getgid()))
    assert (pushed.code, pushed.out, pushed.err) == (0, "", "")
    assert (container / "var/lib/x").read_text() == TEXT
    assert (container / "var/lib/x").stat().st_mode & 0o7777 == 0o640
    assert node.command("pct", "pull", "200", "/var/lib/x", str(tmp_path / "back")).err == ""
    assert (tmp_path / "back").read_text() == TEXT


def test_a_link_in_a_container_leads_nowhere_else(node: Served, container: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the host's")
    (container / "var/lib/x").symlink_to(tmp_path / "secret")
    pulled = node.command("pct", "pull", "200", "/var/lib/x", str(tmp_path / "back"))
    assert (pulled.code, pulled.err) == (0, "failed to open /var/lib/x: No such file or directory\n")
    assert (tmp_path / "back").read_bytes() == b""
    pushed = node.command("pct", "push", "200", str(tmp_path / "secret"), "/none/x")
    assert (pushed.code, pushed.err) == (0, "failed to create file: /none/x\n")


def test_a_container_that_is_off_gets_nothing(node: Served, container: Path, tmp_path: Path) -> None:
    (node.node.run_root / "lxc" / "200.running").unlink()
    pushed = node.command("pct", "push", "200", "/etc/hostname", "/var/lib/x")
    assert (pushed.code, pushed.err) == (255, "can only push files to a running CT\n")


# -- what a boot drill starts


def test_a_running_vm_of_a_boot_drill_has_the_clones(tmp_path: Path) -> None:
    (tmp_path / "qemu-server").mkdir()
    (tmp_path / "storage.cfg").write_text("zfspool: local-zfs\n\tpool rpool/data\n")
    conf = (Path(guestd.__file__).parent / "confs" / "104.conf").read_text()
    made = bootable(conf, vmid=Vmid(999_000), point=PointId("104/20261126T110000Z-ab12"),
                    devices={"scsi0": "/dev/zvol/rpool/pve-zfsbackup-boot/ab-0"}, seed=b"x" * 16)
    assert isinstance(made, Bootable)
    (tmp_path / "qemu-server/999000.conf").write_text(made.text)
    assert guestd.disks(999_000, tmp_path) == {"scsi0": "/dev/zvol/rpool/pve-zfsbackup-boot/ab-0"}
    (tmp_path / "qemu-server/104.conf").write_text(conf)
    assert guestd.disks(104, tmp_path) == {
        "scsi0": "/dev/zvol/rpool/data/vm-104-disk-0", "scsi1": "/dev/zvol/rpool/data/vm-104-disk-1"}
