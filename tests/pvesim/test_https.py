"""Replay recorded HTTPS requests: the simulated node must answer as the real one did, volatile fields aside."""

import time

import pytest
import recorded
from served import ScriptedAgent, Served

from tests.lab.pve import api_agent

pytestmark = pytest.mark.loopback

SAME = [
    "version", "noperm-version", "access-permissions-a1", "access-permissions-t2", "nodes", "noperm-nodes",
    "cluster-status", "noperm-cluster-status", "noperm-cluster-resources", "bk-cluster-resources", "lxc",
    "qemu-100-config", "qemu-101-config", "lxc-200-config", "qemu-100-current", "qemu-100-snapshot",
    "storage", "node-storage", "noperm-storage", "noperm-nodes-pve1-storage", "local-zfs-content",
    "local-zfs-content-100", "audit-nodes-pve1-storage-local-zfs-content", "noperm-storage-local-zfs",
    "noperm-nodes-pve1-storage-local-zfs-content", "noperm-nodes-pve1-qemu", "noperm-nodes-pve1-lxc",
    "noperm-nodes-pve1-qemu-100-config", "noperm-nodes-pve1-qemu-100-snapshot", "noperm-nodes-pve1-status",
    "noperm-nodes-pve1-tasks", "noperm-snapshot", "noperm-unknown-vm", "noperm-fsfreeze", "audit-fsfreeze",
    "bk-fsfreeze", "audit-nodes-pve1-qemu", "audit-cluster-resources", "err-agent-badcmd", "err-agent-old",
    "err-badnode", "err-badparam-value", "err-badparam", "err-badpath", "err-badstorage", "err-badvmid",
    "err-ct-as-vm", "err-fsfreeze-get", "err-fsfreeze-noagent", "err-fsfreeze-stopped", "err-method",
    "err-missing-param", "err-plain-http-body", "err-task-unknown", "err-unknown-vm-agent",
    "err-unknown-vm-current", "err-unknown-vm", "nonexist-task", "put-config", "put-config-bad-digest",
]


def same(node: Served, name: str) -> None:
    """Replay a recording and compare status line, body, type and whether the connection is closed."""
    wanted = recorded.https(name)
    got = node.replay(wanted)
    assert (got.status, got.reason) == (wanted.status, wanted.reason)
    assert recorded.plain(got.json) == recorded.plain(wanted.json)
    kind = [value for key, value in wanted.headers if key == "Content-Type"]
    assert [value for key, value in got.headers if key == "Content-Type"] == kind
    if wanted.status >= 400:
        assert ("Connection", "close") in got.headers
    assert ("Server", "pve-api-daemon/3.0") in got.headers


@pytest.mark.parametrize("name", SAME)
def test_answers_as_recorded(node: Served, name: str) -> None:
    same(node, name)


@pytest.mark.parametrize("name", ["no-auth", "bad-secret", "bad-tokenid", "bad-user", "malformed-token"])
def test_refused_login_has_no_body_and_comes_late(node: Served, name: str) -> None:
    node.pve.penalty = 0.4
    wanted = recorded.https(name)
    got = node.replay(wanted)
    assert (got.status, got.reason, got.body) == (wanted.status, wanted.reason, "")
    assert wanted.body is None
    assert got.seconds >= 0.4
    assert ("Connection", "close") in got.headers


def test_the_delay_is_three_seconds_where_nothing_is_changed(node: Served) -> None:
    assert type(node.pve)(node.node).penalty == 3.0
    assert type(node.pve)(node.node).limit == 30.0


def test_broken_json_gives_an_error_that_is_none(node: Served) -> None:
    wanted = recorded.https("err-badjson")
    got = node.replay(wanted)
    assert (got.status, got.reason) == (wanted.status, wanted.reason)
    assert got.body.strip() == wanted.body


def test_resources_differ_from_the_recorded_stale_ones_only_where_those_were_stale(node: Served) -> None:
    wanted = {item["id"]: item for item in recorded.https("cluster-resources").json["data"]}
    got = {item["id"]: item for item in node.replay(recorded.https("cluster-resources")).json["data"]}
    assert got.keys() == wanted.keys()
    stale = recorded.VOLATILE | {"name"}
    for ident, item in wanted.items():
        drop = stale if ident == "qemu/102" else recorded.VOLATILE
        assert recorded.plain(got[ident], drop) == recorded.plain(item, drop)
        assert got[ident].keys() == item.keys()


def test_a_held_volume_is_freed_by_a_task_that_fails(node: Served) -> None:
    wanted = recorded.https("post-free-held-status").json["data"]
    node.zfs.refuse["zfs destroy -r rpool/data/vm-100-disk-7"] = wanted["exitstatus"].removeprefix("zfs error: ")
    got = node.replay(recorded.https("post-free-held"))
    assert got.status == 200
    status = node.finished(got.json["data"])
    drop = recorded.VOLATILE | {"upid", "pid", "pstart", "starttime"}
    assert recorded.plain(status, drop) == recorded.plain(wanted, drop)
    assert status.keys() == wanted.keys()


def test_snapshots_and_a_blocked_rollback_run_as_tasks(node: Served) -> None:
    upids = []
    for name in ("task-post-snapshot", "task-post-json"):
        upids.append(node.replay(recorded.https(name)).json["data"])
        assert node.finished(upids[-1])["exitstatus"] == "OK"
    assert upids[0].split(":")[5:] == recorded.https("task-post-snapshot").json["data"].split(":")[5:]
    log = node.request("GET", f"/nodes/pve1/tasks/{upids[0]}/log")
    assert log.json == recorded.https("task-log").json
    drop = recorded.VOLATILE | {"upid", "pid", "pstart", "starttime", "snaptime", "digest"}
    wanted = recorded.https("task-status-late").json["data"]
    status = node.finished(upids[0])
    assert recorded.plain(status, drop) == recorded.plain(wanted, drop)
    listed = node.replay(recorded.https("snapshots-after")).json
    assert recorded.plain(listed, drop) == recorded.plain(recorded.https("snapshots-after").json, drop)
    # A foreign snapshot on the second disk blocks the whole rollback, and nothing is changed by it.
    node.zfs.snapshots["rpool/data/vm-102-disk-1"].remove("api2")
    before = node.node.etc.path("qemu", 102).read_bytes()
    upid = node.replay(recorded.https("task-post-rollback-blocked")).json["data"]
    wanted = recorded.https("task-rollback-status").json["data"]
    assert recorded.plain(node.finished(upid), drop) == recorded.plain(wanted, drop)
    assert node.request("GET", f"/nodes/pve1/tasks/{upid}/log").json == recorded.https("task-rollback-log").json
    assert node.node.etc.path("qemu", 102).read_bytes() == before


def test_a_locked_vm_shows_its_lock_in_the_list(node: Served) -> None:
    etc = node.node.etc
    etc.path("qemu", 100).write_bytes((recorded.HERE / "etc" / "100-locked.conf").read_bytes())
    etc.path("qemu", 102).unlink()
    same(node, "qemu")


def test_the_digest_is_the_sha1_of_the_file(node: Served) -> None:
    source = recorded.HERE / "etc" / "102-snapshots.conf"
    node.node.etc.path("qemu", 102).write_bytes(source.read_bytes())
    same(node, "get-config-after-put")


# -- the guest agent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["running-ping-ok", "running-fsfreeze-ok", "running-fsfreeze-status",
                                  "running-fsfreeze-status-get", "running-thaw-ok", "bk-running-fsfreeze-perm"])
def test_agent_answers_as_recorded(node: Served, agent: ScriptedAgent, name: str) -> None:
    same(node, name)


def test_a_running_vm_has_a_process_and_pressure(node: Served, agent: ScriptedAgent) -> None:
    wanted = recorded.https("running-status-100").json["data"]
    got = node.replay(recorded.https("running-status-100")).json["data"]
    assert got.keys() == wanted.keys() - {"nics"}
    assert recorded.plain(got) == recorded.plain(wanted)


@pytest.mark.parametrize(("name", "command"), [("running-agent-unsupported", "guest-get-osinfo"),
                                               ("running-fsfreeze-refused", "guest-fsfreeze-freeze")])
def test_a_guests_refusal_is_a_success_with_an_error_inside(
    node: Served, agent: ScriptedAgent, name: str, command: str
) -> None:
    error = recorded.https(name).json["data"]["result"]["error"]
    agent.refuse(command, error["class"], error["desc"])
    same(node, name)


@pytest.mark.parametrize("name", ["running-ping-agent-dead", "running-fsfreeze-agent-dead"])
def test_a_dead_agent_is_reported_after_the_ping_limit(
    node: Served, agent: ScriptedAgent, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_agent, "PING_LIMIT", 0.3)
    agent.say["guest-ping"] = lambda: time.sleep(1.0) or {"return": {}}  # type: ignore[func-returns-value]
    same(node, name)


def test_a_slow_freeze_is_cut_by_the_proxy_but_goes_on(
    node: Served, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_agent, "PING_LIMIT", 1.0)
    agent.say["guest-fsfreeze-freeze"] = lambda: time.sleep(4.5) or {"return": 2}  # type: ignore[func-returns-value]
    node.pve.limit = 1.3
    wanted = recorded.https("running-fsfreeze-slow45")
    got = node.replay(wanted)
    assert (got.status, got.reason, got.body) == (wanted.status, wanted.reason, "")
    # The guest is still busy with it: neither status nor thaw gets through.
    same(node, "running-after-slow-status")
    same(node, "running-after-slow-thaw")
    deadline = time.monotonic() + 10
    while (answer := node.request("POST", "/nodes/pve1/qemu/100/agent/fsfreeze-thaw")).status != 200:
        assert time.monotonic() < deadline
    assert answer.json == {"data": {"result": 2}}
    assert agent.heard.count("guest-fsfreeze-freeze") == 1
