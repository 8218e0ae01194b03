"""Replay recorded command lines of pvesh, qm and pct: output, complaints and exit codes."""

import json

import pytest
import recorded
from served import ScriptedAgent, Served

pytestmark = pytest.mark.loopback

SAME = [
    "pvesh-err-badnode", "pvesh-err-badparam-value", "pvesh-err-badparam", "pvesh-err-badpath",
    "pvesh-err-badstorage", "pvesh-err-badvmid", "pvesh-err-fsfreeze-get", "pvesh-err-fsfreeze-noagent",
    "pvesh-err-fsfreeze-stopped", "pvesh-err-method", "pvesh-err-unknown-vm-json", "pvesh-err-unknown-vm",
    "qm-config-101", "qm-config-unknown", "qm-guest-fsfreeze-stopped", "qm-agent-noagent", "qm-list",
    "qm-snapshot-dup", "qm-unlock", "pct-config-200", "pct-config-unknown",
]
SAME_JSON = [
    "pvesh-version", "pvesh-lxc", "pvesh-qemu-full", "pvesh-qemu-100-config", "pvesh-qemu-102-config",
    "pvesh-cluster-status", "pvesh-qemu-100-current", "pvesh-storage", "pvesh-cluster-resources-vm",
]


@pytest.mark.parametrize("name", SAME)
def test_prints_as_recorded(node: Served, name: str) -> None:
    wanted = recorded.cli(name)
    got = node.command(*wanted.argv)
    assert (got.out, got.err, got.code) == (wanted.out, wanted.err, wanted.code)


@pytest.mark.parametrize("name", SAME_JSON)
def test_prints_the_same_bare_sorted_json(node: Served, name: str) -> None:
    wanted = recorded.cli(name)
    got = node.command(*wanted.argv)
    assert (got.err, got.code) == ("", 0)
    assert recorded.plain(json.loads(got.out)) == recorded.plain(json.loads(wanted.out))
    assert got.out == json.dumps(json.loads(got.out), sort_keys=True, separators=(",", ":")) + "\n"


def test_current_and_description(node: Served) -> None:
    source = recorded.HERE / "etc" / "102-snapshots.conf"
    node.node.etc.path("qemu", 102).write_bytes(source.read_bytes())
    wanted = recorded.cli("pvesh-qemu-config-current")
    assert node.command(*wanted.argv).out == wanted.out


def test_a_refused_freeze_exits_zero(node: Served, agent: ScriptedAgent) -> None:
    agent.refuse("guest-fsfreeze-freeze", "GenericError", "Command guest-fsfreeze-freeze has been disabled")
    wanted = recorded.cli("pvesh-fsfreeze-refused")
    got = node.command(*wanted.argv)
    assert (got.out, got.err, got.code) == (wanted.out, wanted.err, wanted.code)
    got = node.command("qm", "guest", "cmd", "100", "fsfreeze-freeze")
    assert got.code == 0
    assert json.loads(got.out) == {"error": {"class": "GenericError",
                                             "desc": "Command guest-fsfreeze-freeze has been disabled"}}


def test_a_freeze_prints_a_number(node: Served, agent: ScriptedAgent) -> None:
    assert node.command("qm", "guest", "cmd", "100", "fsfreeze-freeze").out == "2\n"
    assert node.command("qm", "guest", "cmd", "100", "ping") == type(node.command("qm", "list"))(0)


@pytest.mark.parametrize(("name", "argv"), [
    ("pvesh-locked-snapshot", ("qm", "snapshot", "100", "zz")),
    ("pvesh-rollback-foreign", ("qm", "rollback", "100", "before-x")),
])
def test_pvesh_exits_zero_when_its_task_failed_and_qm_does_not(node: Served, name: str, argv: tuple[str, ...]) -> None:
    base = (recorded.HERE / "etc" / "100-plain.conf").read_text()
    if name == "pvesh-locked-snapshot":
        node.node.etc.path("qemu", 100).write_bytes((recorded.HERE / "etc" / "100-locked.conf").read_bytes())
    else:
        node.node.etc.path("qemu", 100).write_text(recorded.snapshotted(base, "before-x", 1))
        node.zfs.snapshots["rpool/data/vm-100-disk-0"] = ["before-x", "foreign"]
    wanted = recorded.cli(name)
    got = node.command(*wanted.argv)
    assert (got.code, got.err, wanted.code) == (0, wanted.err, 0)
    assert got.out.split(":")[5:] == wanted.out.split(":")[5:]
    failed = node.command(*argv)
    assert failed.code == 255
    assert failed.err == wanted.err


def test_a_hold_leaves_the_vm_locked(node: Served) -> None:
    base = (recorded.HERE / "etc" / "100-plain.conf").read_text()
    node.node.etc.path("qemu", 100).write_text(recorded.snapshotted(base, "before-x", 1795391090))
    wanted = recorded.cli("qm-delsnapshot-held")
    node.zfs.refuse["zfs destroy"] = wanted.err.strip().removeprefix("zfs error: ")
    got = node.command(*wanted.argv)
    assert (got.out, got.err, got.code) == (wanted.out, wanted.err, wanted.code)
    conf = node.node.etc.conf("qemu", 100)
    assert conf.main["lock"] == "snapshot-delete"
    assert conf.snapshots["before-x"]["snapstate"] == "delete"


def test_nothing_is_printed_for_null(node: Served) -> None:
    got = node.command("pvesh", "set", "/nodes/pve1/qemu/102/config", "--description", "x", "--output-format", "json")
    assert (got.out, got.err, got.code) == ("", "", 0)


def test_json_formats(node: Served) -> None:
    pretty = node.command("pvesh", "get", "/version", "--output-format", "json-pretty").out
    assert pretty.startswith('{\n   "release" : "9.2",\n')
    assert "too many arguments" in node.command("pvesh", "get", "/version", "more").err


def test_a_rescan_finds_what_no_section_names_and_the_size_of_what_it_does(node: Served) -> None:
    path = node.node.etc.path("qemu", 100)
    path.write_text(path.read_text().replace("vm-100-disk-0,", "vm-100-disk-0,size=7M,", 1))
    assert node.command("qm", "disk", "rescan", "--vmid", "100").code == 0
    main = node.node.etc.conf("qemu", 100).main
    assert "local-zfs:vm-100-disk-7" in main.values()
    assert any(value.startswith("local-zfs:vm-100-disk-0,") and "size=1G" in value for value in main.values())
    before = path.read_text()
    assert node.command("qm", "rescan", "--vmid", "100").code == 0
    assert path.read_text() == before
    assert node.command("pct", "rescan", "--vmid", "200").code == 0


def test_options_are_set_and_a_container_obeys(node: Served) -> None:
    assert node.command("qm", "set", "101", "--onboot", "0").out == "update VM 101: -onboot 0\n"
    assert node.node.etc.conf("qemu", 101).main["onboot"] == "0"
    assert node.command("qm", "set", "101", "--nonsense", "1").code == 255
    assert node.command("qm", "set", "101", "--lock", "rollback").code == 0
    assert "lock: rollback\n" in node.command("qm", "config", "101").out
    for words in (("start", "101"), ("set", "101", "--lock", "rollback"), ("set", "101", "--onboot", "1")):
        locked = node.command("qm", *words)
        assert (locked.code, "VM is locked (rollback)" in locked.err) == (255, True), words
    assert node.command("qm", "unlock", "101").code == 0
    assert "lock" not in node.node.etc.conf("qemu", 101).main
    assert node.command("pct", "set", "200", "--lock", "rollback").code == 0
    assert "CT is locked (rollback)" in node.command("pct", "start", "200").err
    assert node.command("pct", "unlock", "200").code == 0
    assert node.command("pct", "start", "200").code == 0
    assert node.node.running("lxc", 200)
    assert node.command("pct", "shutdown", "200", "--timeout", "5").code == 0
    assert not node.node.running("lxc", 200)
