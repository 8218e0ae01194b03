"""Files and answers that no recording shows but pve-facts describes; and what the simulated node refuses."""

import asyncio
import json
from pathlib import Path

import pytest
from served import ScriptedAgent, Served, Zfs

from tests.lab.pve import cli
from tests.lab.pve.etc import parse_guest
from tests.lab.pve.node import Node
from tests.lab.pve.server import SimPve

pytestmark = pytest.mark.loopback

CONFS = Path(__file__).resolve().parents[1] / "lab" / "pve" / "confs"
ODD = (CONFS / "104.conf").read_text()


@pytest.fixture
def odd(node: Served) -> Served:
    """The node with the lab's VM 104: pending changes, a snapshot, a special section."""
    node.node.etc.path("qemu", 104).write_text(ODD)
    return node


def config(node: Served, query: str = "") -> dict[str, object]:
    """GET config of VM 104."""
    data: dict[str, object] = node.request("GET", f"/nodes/pve1/qemu/104/config{query}").json["data"]
    return data


def test_config_merges_what_is_pending_unless_asked_for_the_current(odd: Served) -> None:
    merged, current = config(odd), config(odd, "?current=1")
    assert (merged["memory"], current["memory"]) == ("1024", "512")
    assert "onboot" not in merged
    assert current["onboot"] == 1
    assert merged["scsi2"] == "local-zfs:vm-104-disk-3,size=64M"
    assert "scsi2" not in current
    assert merged["digest"] == current["digest"]
    assert current["description"] == "Odd one: every special case at once"
    assert not {"snapshots", "pending", "delete", "foo"} & set(merged)


def test_config_of_a_snapshot(odd: Served) -> None:
    past = config(odd, "?snapshot=foo")
    assert (past["memory"], past["vmstate"]) == ("256", "local-zfs:vm-104-state-foo")
    both = odd.request("GET", "/nodes/pve1/qemu/104/config?snapshot=foo&current=1")
    assert (both.status, set(both.json["errors"])) == (400, {"current", "snapshot"})
    assert odd.request("GET", "/nodes/pve1/qemu/104/config?snapshot=no").reason == "snapshot 'no' does not exist"


def test_pending_lists_each_key_once(odd: Served) -> None:
    found = {item["key"]: item for item in odd.request("GET", "/nodes/pve1/qemu/104/pending").json["data"]}
    assert found["memory"] == {"key": "memory", "value": "512", "pending": "1024"}
    assert found["onboot"] == {"key": "onboot", "value": 1, "delete": 1}
    assert found["scsi2"] == {"key": "scsi2", "pending": "local-zfs:vm-104-disk-3,size=64M"}
    lines = odd.command("qm", "pending", "104").out.splitlines()
    assert {"cur memory: 512", "new memory: 1024", "del onboot: 1"} <= set(lines)


@pytest.mark.parametrize("path", sorted(CONFS.glob("*.conf")), ids=lambda path: path.stem)
def test_a_file_survives_being_read_and_written(path: Path) -> None:
    kind = "lxc" if int(path.stem) >= 200 else "qemu"
    assert parse_guest(kind, path.read_bytes()).dump() == path.read_text()


def test_changes_of_a_running_vm_wait(node: Served, agent: ScriptedAgent) -> None:
    assert node.request("PUT", "/nodes/pve1/qemu/100/config", payload="memory=2048&name=web2").status == 200
    conf = node.node.etc.conf("qemu", 100)
    assert (conf.main["memory"], conf.pending["memory"], conf.main["name"]) == ("512", "2048", "web2")


def test_vmlist_follows_the_files(node: Served) -> None:
    node.node.etc.refresh()
    found = json.loads((node.node.etc.root / ".vmlist").read_text())
    assert {vmid: item["type"] for vmid, item in found["ids"].items()} == {
        "100": "qemu", "101": "qemu", "102": "qemu", "200": "lxc"}
    node.node.etc.path("lxc", 200).unlink()
    node.node.etc.refresh()
    again = json.loads((node.node.etc.root / ".vmlist").read_text())
    assert "200" not in again["ids"]
    assert again["version"] > found["version"]


def test_the_usual_links_are_there(node: Served) -> None:
    etc = node.node.etc.root
    assert (etc / "qemu-server" / "100.conf").samefile(etc / "nodes" / "pve1" / "qemu-server" / "100.conf")
    assert (etc / "local").is_symlink()
    assert json.loads((etc / ".members").read_text()) == {"nodename": "pve1", "version": 0}


def test_replication_jobs_come_from_their_file(node: Served) -> None:
    (node.node.etc.root / "replication.cfg").write_text("local: 100-0\n\ttarget pve2\n\tschedule */15\n\n")
    assert node.request("GET", "/cluster/replication").json["data"] == [
        {"id": "100-0", "type": "local", "guest": 100, "jobnum": 0, "target": "pve2", "schedule": "*/15"}]
    assert node.request("GET", "/cluster/replication", "root@pam!t2").json["data"] == []


@pytest.mark.parametrize(("line", "reason"), [
    ("disable", "storage 'local-zfs' is disabled"),
    ("nodes pve7,pve8", "storage 'local-zfs' is not available on node 'pve1'"),
])
def test_storages_that_are_not_to_be_had(node: Served, line: str, reason: str) -> None:
    path = node.node.etc.root / "storage.cfg"
    path.write_text(path.read_text().replace("\tsparse 1\n", f"\tsparse 1\n\t{line}\n"))
    got = node.request("GET", "/nodes/pve1/storage/local-zfs/content")
    assert (got.status, got.reason) == (500, reason)
    listed = {item["storage"]: item["enabled"] for item in node.request("GET", "/nodes/pve1/storage").json["data"]}
    assert listed.get("local-zfs") == (0 if line == "disable" else None)


def test_another_node_is_out_of_reach(node: Served) -> None:
    (node.node.etc.root / "nodes" / "pve2").mkdir()
    got = node.request("GET", "/nodes/pve2/qemu")
    assert (got.status, got.reason, got.body) == (595, "No route to host", "")
    assert [n["status"] for n in node.request("GET", "/nodes").json["data"]] == ["online", "offline"]


def test_what_is_not_simulated_says_so(node: Served) -> None:
    got = node.request("GET", "/cluster/ceph/status")
    assert (got.status, got.reason) == (501, "the lab does not simulate GET /cluster/ceph/status")


def test_a_body_with_get_is_refused(node: Served) -> None:
    got = node.request("GET", "/version", payload="a=b")
    assert (got.status, got.reason) == (501, "Unexpected content for method 'GET'")


def test_the_agent_that_is_switched_off_is_not_asked(node: Served, agent: ScriptedAgent) -> None:
    path = node.node.etc.path("qemu", 100)
    path.write_text(path.read_text().replace("agent: 1", "agent: 0"))
    got = node.request("POST", "/nodes/pve1/qemu/100/agent/ping")
    assert (got.status, got.reason) == (500, "QEMU guest agent is not running")
    assert agent.heard == []


def test_release_8_asks_for_vm_monitor(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "run").mkdir()
    node = Node(etc_root=tmp_path / "etc", run_root=tmp_path / "run", version="8.4.21", runner=Zfs())
    node.etc.make()
    pve = SimPve(node)

    def run(*argv: str) -> tuple[int, str, str]:
        got = asyncio.run(cli.command(pve, ["pvesh", *argv]))
        return got.code, got.out, got.err
    assert json.loads(run("get", "/version", "--output-format", "json")[1])["release"] == "8.4"
    assert run("create", "/access/roles", "--roleid", "Nine", "--privs", "VM.GuestAgent.Audit") == (
        255, "", "create role failed: invalid privilege 'VM.GuestAgent.Audit'\n")
    assert run("create", "/access/roles", "--roleid", "Eight", "--privs", "VM.Monitor") == (0, "", "")
    with pytest.raises(Exception, match=r"Permission check failed \(/vms/100, VM.Monitor\)"):
        asyncio.run(pve.invoke("POST", "/nodes/pve1/qemu/100/agent/fsfreeze-freeze", {}, "nobody@pve"))
