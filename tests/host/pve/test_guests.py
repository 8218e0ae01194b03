"""`host.guests`: what the API tells of guests and storages, and the configuration a point carries."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import socket
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.errors import GuestMissingError, PveError, PveUnreachableError, VerificationError
from pve_zfsbackup.host.guests import (
    CHUNK,
    MAX_CHUNKS,
    MAX_UNPACKED,
    current_section,
    fitting,
    node_name,
    pack_config,
    read_config_file,
    read_guests,
    read_storages,
    read_version,
    unpack_config,
)
from pve_zfsbackup.host.pve import HttpsApi
from pve_zfsbackup.host.pvesh import PveshApi
from pve_zfsbackup.model import GuestKind, RawGuest, Storage, Vmid

from .conftest import RECORDINGS, RecordedRunner, Replay, recording


def pending_of(name: str) -> str:
    """A recorded configuration as `/pending` tells it: both come from one hash in Proxmox, digest included."""
    config = json.loads(recording(name).answer.partition(b"\r\n\r\n")[2])["data"]
    return json.dumps({"data": [{"key": key, "value": value} for key, value in config.items()]})


@pytest.fixture
def node(replay: Replay) -> Replay:
    """pve1 as recorded: VMs 100 and 101, container 200, VM 102 with pool membership of an old entry."""
    replay.add("qemu")
    replay.add("lxc")
    replay.add("audit-access-permissions")
    replay.add_json(
        "GET", "/cluster/resources", '{"data":[{"vmid":100,"pool":"gold"},{"vmid":999,"pool":"old"},{"id":"x"}]}'
    )
    replay.add_json("GET", "/nodes/pve1/qemu/100/pending", pending_of("qemu-100-config"))
    replay.add_json("GET", "/nodes/pve1/qemu/101/pending", pending_of("get-config-after-put"))
    replay.add_json("GET", "/nodes/pve1/lxc/200/pending", pending_of("lxc-200-config"))
    return replay


def by_vmid(guests: tuple[RawGuest, ...]) -> dict[int, RawGuest]:
    return {guest.vmid: guest for guest in guests}


def test_recorded_guests(node: Replay, api: HttpsApi) -> None:
    guests = read_guests(api, "pve1")
    assert [guest.vmid for guest in guests] == [100, 101, 200]
    web = guests[0]
    assert (web.kind, web.node, web.name, web.status) == (GuestKind.VM, "pve1", "web", "stopped")
    assert web.lock == "snapshot-delete"
    assert web.pool == "gold"
    assert web.digest == "eb0001d42d4bf575e968b934798464e50fff2a71"
    assert web.config["scsi0"] == "local-zfs:vm-100-disk-0,size=1G"
    assert web.config["memory"] == "512"
    assert "digest" not in web.config
    assert web.pending == {}
    assert not web.template
    assert guests[1].tags == ("prod", "zfs")
    container = guests[2]
    assert (container.kind, container.name) == (GuestKind.CT, "ct1")
    assert container.config["memory"] == "64"  # a number for containers, a string for VMs (pve-facts §a)
    assert container.config["mp0"] == "local-zfs:subvol-200-disk-1,mp=/data,backup=1,size=1G"
    assert container.pool == ""


def test_one_call_per_guest(node: Replay, api: HttpsApi) -> None:
    read_guests(api, "pve1")
    assert sorted(path for _, path, _ in node.requests) == [
        "/access/permissions",
        "/cluster/resources?type=vm",
        "/nodes/pve1/lxc",
        "/nodes/pve1/lxc/200/pending",
        "/nodes/pve1/qemu/100/pending",
        "/nodes/pve1/qemu/101/pending",
        "/nodes/pve1/qemu?full=1",
    ]


def test_pending_and_current_are_kept_apart(replay: Replay, api: HttpsApi) -> None:
    replay.add_json("GET", "/nodes/n/qemu", '{"data":[{"vmid":"100","status":"running","qmpstatus":"paused"}]}')
    replay.add_json("GET", "/nodes/n/lxc", '{"data":[]}')
    replay.add("audit-access-permissions")
    replay.add_json("GET", "/cluster/resources", '{"data":[]}')
    replay.add_json(
        "GET",
        "/nodes/n/qemu/100/pending",
        json.dumps(
            {
                "data": [
                    {"key": "scsi0", "value": "a:vm-100-disk-0"},
                    {"key": "scsi1", "value": "a:vm-100-disk-1", "delete": 1},
                    {"key": "scsi2", "pending": "a:vm-100-disk-2"},
                    {"key": "agent", "value": 0, "pending": "1"},
                    {"key": "lock", "value": "backup"},
                    {"key": "template", "value": 1},
                    {"key": "net0", "delete": 2},
                    {"key": "digest", "value": "d"},
                ]
            }
        ),
    )
    (guest,) = read_guests(api, "n")
    assert guest.config == {
        "scsi0": "a:vm-100-disk-0",
        "scsi1": "a:vm-100-disk-1",
        "agent": "0",
        "lock": "backup",
        "template": "1",
    }
    assert guest.pending == {"scsi1": None, "scsi2": "a:vm-100-disk-2", "agent": "1", "net0": None}
    assert guest.lock == "backup"
    assert guest.template
    assert guest.qmp_status == "paused"
    assert guest.digest == "d"


def test_digest_is_asked_for_where_pending_lacks_it(replay: Replay, api: HttpsApi) -> None:
    replay.add_json("GET", "/nodes/n/qemu", '{"data":[{"vmid":100,"status":"running"}]}')
    replay.add_json("GET", "/nodes/n/lxc", '{"data":[]}')
    replay.add("audit-access-permissions")
    replay.add_json("GET", "/cluster/resources", '{"data":[]}')
    replay.add_json("GET", "/nodes/n/qemu/100/pending", '{"data":[{"key":"name","value":"x"}]}')
    replay.add_json("GET", "/nodes/n/qemu/100/config", '{"data":{"name":"x","digest":"abc"}}')
    (guest,) = read_guests(api, "n")
    assert guest.digest == "abc"
    assert ("GET", "/nodes/n/qemu/100/config?current=1", b"") in node_requests(replay)


def node_requests(replay: Replay) -> list[tuple[str, str, bytes]]:
    return replay.requests


def test_guest_that_vanishes_meanwhile_is_left_out_with_a_note(node: Replay, api: HttpsApi) -> None:
    gone = recording("err-unknown-vm").answer
    node.answers["GET", "/nodes/pve1/qemu/101/pending"] = [gone]
    notes: list[str] = []
    guests = read_guests(api, "pve1", note=notes.append)
    assert [guest.vmid for guest in guests] == [100, 200]
    assert notes == ["qemu 101: left the node while its guests were read"]


def test_one_guests_trouble_is_its_own(node: Replay, api: HttpsApi) -> None:
    node.add_json(
        "GET", "/nodes/pve1/qemu/100/pending", "{}", status="403 Permission check failed (/vms/100, VM.Audit)"
    )
    node.answers["GET", "/nodes/pve1/qemu/100/pending"].pop(0)
    notes: list[str] = []
    web, *others = read_guests(api, "pve1", note=notes.append)
    assert web.trouble.startswith("403 Permission check failed") or "Permission check failed" in web.trouble
    assert (web.vmid, web.name, web.config, web.pool) == (100, "web", {}, "gold")
    assert [(guest.vmid, guest.trouble) for guest in others] == [(101, ""), (200, "")]
    assert notes[0].startswith("qemu 100: its configuration cannot be read: ")


def test_the_trouble_of_all_is_the_apis(node: Replay, api: HttpsApi) -> None:
    for path in ("qemu/100", "qemu/101", "lxc/200"):
        node.answers["GET", f"/nodes/pve1/{path}/pending"].clear()
        node.add_json("GET", f"/nodes/pve1/{path}/pending", "{}", status="596 Connection timed out")
    with pytest.raises(PveUnreachableError, match="596"):
        read_guests(api, "pve1")


def test_one_guest_alone(node: Replay, api: HttpsApi) -> None:
    assert [guest.vmid for guest in read_guests(api, "pve1", only=Vmid(101))] == [101]
    assert [path for _, path, _ in node.requests if "pending" in path] == ["/nodes/pve1/qemu/101/pending"]
    assert read_guests(api, "pve1", only=Vmid(999)) == ()


def test_token_without_permissions_is_not_an_empty_node(replay: Replay, api: HttpsApi) -> None:
    """Proxmox answers it 200 and empty lists (pve-observed 4)."""
    for name in (
        "noperm-nodes-pve1-qemu",
        "noperm-nodes-pve1-lxc",
        "noperm-cluster-resources",
        "access-permissions-t2",
    ):
        replay.add(name)
    with pytest.raises(PveError, match="no permissions at all") as caught:
        read_guests(api, "pve1")
    assert caught.value.hint == "run pve-zfsbackup setup"


@pytest.mark.parametrize(
    "permissions", ['{"/vms/100":{"VM.Audit":1}}', '{"/":{"Sys.Audit":1}}', '{"/vms":{"VM.Audit":0}}']
)
def test_token_that_sees_only_some_guests_is_told_of(node: Replay, api: HttpsApi, permissions: str) -> None:
    """Hidden guests are not in the lists, and nothing else tells that there are any."""
    node.answers["GET", "/access/permissions"].clear()
    node.add_json("GET", "/access/permissions", f'{{"data":{permissions}}}')
    notes: list[str] = []
    assert len(read_guests(api, "pve1", doubt=notes.append)) == 3
    assert len(notes) == 1
    assert "lacks VM.Audit on /vms" in notes[0]


def test_full_view_needs_no_note(node: Replay, api: HttpsApi) -> None:
    notes: list[str] = []
    read_guests(api, "pve1", note=notes.append, doubt=notes.append)
    assert notes == []


def test_node_without_guests(replay: Replay, api: HttpsApi) -> None:
    for name in (
        "noperm-nodes-pve1-qemu",
        "noperm-nodes-pve1-lxc",
        "noperm-cluster-resources",
        "audit-access-permissions",
    ):
        replay.add(name)
    assert read_guests(api, "pve1") == ()


def test_unknown_node(replay: Replay, api: HttpsApi) -> None:
    for path in ("/nodes/nosuch/qemu", "/nodes/nosuch/lxc"):
        replay.answers["GET", path].append(recording("err-badnode").answer)
    replay.add_json("GET", "/cluster/resources", '{"data":[]}')
    replay.add("audit-access-permissions")
    with pytest.raises(PveError, match="hostname lookup 'nosuch' failed"):
        read_guests(api, "nosuch")


def test_by_pvesh(runner: RecordedRunner) -> None:
    form = ("--output-format", "json")
    runner.add_recording("pvesh-qemu-full", argv=("pvesh", "get", "/nodes/pve1/qemu", "--full", "1", *form))
    runner.add_recording("pvesh-lxc", argv=("pvesh", "get", "/nodes/pve1/lxc", *form))
    runner.add_recording(
        "pvesh-cluster-resources-vm", argv=("pvesh", "get", "/cluster/resources", "--type", "vm", *form)
    )
    runner.add(("pvesh", "get", "/access/permissions", *form), stdout='{"/":{"VM.Audit":1}}')
    for vmid in (100, 101, 102, 200):
        runner.add(
            ("pvesh", "get", f"/nodes/pve1/{'lxc' if vmid == 200 else 'qemu'}/{vmid}/pending", *form),
            stdout=f'[{{"key":"name","value":"guest{vmid}"}},{{"key":"digest","value":"d{vmid}"}}]',
        )
    guests = by_vmid(read_guests(PveshApi(runner), "pve1"))
    assert sorted(guests) == [100, 101, 102, 200]
    assert guests[102].digest == "d102"
    assert guests[100].qmp_status == "stopped"
    assert len(runner.argvs) == 8


def test_version(replay: Replay, api: HttpsApi) -> None:
    replay.add("version")
    assert read_version(api) == (9, "9.2.11")


# Storages


def test_recorded_storages(replay: Replay, api: HttpsApi) -> None:
    replay.add("storage")
    storages = read_storages(api)
    assert storages["local-zfs"] == Storage(
        id="local-zfs",
        type="zfspool",
        pool="rpool/data",
        mountpoint="/rpool/data",
        content=frozenset({"images", "rootdir"}),
    )
    assert storages["bk"].type == "dir"
    assert storages["bk"].pool == ""


@pytest.mark.parametrize("disable", ["1", '"1"'])
def test_storage_of_some_nodes_and_disabled(replay: Replay, api: HttpsApi, disable: str) -> None:
    replay.add_json(
        "GET",
        "/storage",
        f'{{"data":[{{"storage":"z","type":"zfspool","pool":"tank","nodes":"b,a","disable":{disable}}},'
        '{"storage":"r","type":"rbd","pool":"rbd"}]}',
    )
    storages = read_storages(api)
    assert storages["z"].nodes == {"a", "b"}
    assert storages["z"].disabled
    assert storages["r"].pool == ""  # a Ceph pool is no dataset


# fakepve


def test_fakepve_guests(fakepve: Any, fake_api: HttpsApi) -> None:
    fakepve.add_vm(100, "web", status="running", config={"scsi0": "local-lvm:vm-100-disk-0", "tags": "prod;db"})
    fakepve.vm(100).pending["scsi1"] = "local-lvm:vm-100-disk-1"
    fakepve.add_vm(101, "gone")
    missing = "Configuration file 'nodes/pve1/qemu-server/101.conf' does not exist"
    fakepve.fail("GET", "/qemu/101/pending", 500, missing)
    notes: list[str] = []
    guests = by_vmid(read_guests(fake_api, "pve1", note=notes.append))
    assert sorted(guests) == [100]
    assert guests[100].pending == {"scsi1": "local-lvm:vm-100-disk-1"}
    assert guests[100].tags == ("prod", "db")
    assert len(notes) == 1


def test_fakepve_many_guests(fakepve: Any, fake_api: HttpsApi) -> None:
    for vmid in range(100, 160):
        fakepve.add_vm(vmid, f"vm{vmid}", config={"scsi0": f"local-lvm:vm-{vmid}-disk-0"})
    guests = read_guests(fake_api, "pve1")
    assert [guest.vmid for guest in guests] == list(range(100, 160))
    assert all(guest.digest for guest in guests)


def test_fakepve_token_without_acl(fakepve: Any, fake_api: HttpsApi) -> None:
    fakepve.add_vm(100, "web")
    fakepve.grant("somebody@pve", "/", "VM.Audit")
    with pytest.raises(PveError, match="no permissions at all"):
        read_guests(fake_api, "pve1")


def test_guests_are_read_concurrently(replay: Replay, api: HttpsApi) -> None:
    """40 guests of 100 ms each in much less than the 4 s that one after the other takes."""
    replay.add_json("GET", "/nodes/n/qemu", json.dumps({"data": [{"vmid": 100 + n} for n in range(40)]}))
    replay.add_json("GET", "/nodes/n/lxc", '{"data":[]}')
    replay.add("audit-access-permissions")
    replay.add_json("GET", "/cluster/resources", '{"data":[]}')
    for n in range(40):
        replay.add_json("GET", f"/nodes/n/qemu/{100 + n}/pending", '{"data":[{"key":"digest","value":"d"}]}')
    replay.latency = 0.1
    begin = time.monotonic()
    assert len(read_guests(api, "n")) == 40
    assert time.monotonic() - begin < 2.5
    assert replay.connections <= api.parallel


# Node names


def test_node_name_as_configured(tmp_path: Path) -> None:
    assert node_name("pve7", root=tmp_path) == "pve7"


def test_node_name_of_pmxcfs(tmp_path: Path) -> None:
    (tmp_path / "local").symlink_to("nodes/pve1")
    assert node_name(root=tmp_path) == "pve1"


def test_node_name_of_the_host(tmp_path: Path) -> None:
    assert node_name(root=tmp_path) == socket.gethostname().partition(".")[0]


# Configuration files


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    for name in ("qemu-server", "lxc", "firewall"):
        (tmp_path / name).mkdir()
    shutil.copy(RECORDINGS / "cli/etc-102.conf", tmp_path / "qemu-server/102.conf")
    shutil.copy(RECORDINGS / "cli/conf-200-snap.txt", tmp_path / "lxc/200.conf")
    return tmp_path


def test_digest_is_the_files_sha1(etc: Path) -> None:
    """The recorded file and the digest that the recorded API told of it."""
    config = json.loads(recording("get-config-after-put").answer.partition(b"\r\n\r\n")[2])["data"]
    texts = read_config_file(Vmid(102), GuestKind.VM, digest=config["digest"], root=etc)
    assert texts["conf"].startswith("#x\n#line2\n")
    assert "\nscsi1: local-zfs:vm-102-disk-2,backup=0,size=2G\n" in texts["conf"]
    assert "[" not in texts["conf"]
    assert "firewall" not in texts


def test_changed_file_is_refused(etc: Path) -> None:
    with pytest.raises(PveError, match="changed since it was read"):
        read_config_file(Vmid(102), GuestKind.VM, digest="0" * 40, root=etc)


def test_container_with_snapshot_and_firewall(etc: Path) -> None:
    (etc / "firewall/200.fw").write_text("[OPTIONS]\nenable: 1\n")
    texts = read_config_file(Vmid(200), GuestKind.CT, root=etc)
    assert texts["conf"].endswith("unprivileged: 1\n")
    assert "snaptime" not in texts["conf"]
    assert texts["firewall"] == "[OPTIONS]\nenable: 1\n"


def test_missing_file(etc: Path) -> None:
    with pytest.raises(PveError, match="is not mounted"):
        read_config_file(Vmid(102), GuestKind.CT, root=etc)
    (etc / "local").symlink_to("nodes/pve1")
    with pytest.raises(GuestMissingError):
        read_config_file(Vmid(102), GuestKind.CT, root=etc)


def test_unreadable_file(etc: Path) -> None:
    (etc / "lxc/201.conf").mkdir()
    with pytest.raises(PveError, match="cannot be read"):
        read_config_file(Vmid(201), GuestKind.CT, root=etc)


def test_bytes_that_are_no_text_come_back(etc: Path) -> None:
    raw = b"name: \xff\xfe\n\xc2\x85[x]: 1\n"
    (etc / "qemu-server/103.conf").write_bytes(raw)
    texts = unpack_config(pack_config(read_config_file(Vmid(103), GuestKind.VM, root=etc)))
    assert texts["conf"].encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize("section", ["PENDING", "pve:pending", "special:cloudinit", "snap1"])
def test_current_section_only(section: str) -> None:
    text = f"#a [{section}]\nname: x\n\n[{section}]\nname: y\n"
    assert current_section(text) == f"#a [{section}]\nname: x\n"


# Packing

HOSTILE = [
    {},
    {"conf": ""},
    {"conf": "a: b\n", "firewall": "[OPTIONS]\n"},
    {"conf": "name: \"'`$(reboot)\\\n\t\x00\x1b[31m", "pool": "ü/€/\U0001f4a9", "tags": "=,;\n"},
    {"conf": "\udcff\ud800", "": "empty key"},
    {"conf": "x" * 200_000},
]


@pytest.mark.parametrize("texts", HOSTILE, ids=range(len(HOSTILE)))
def test_round_trip(texts: dict[str, str]) -> None:
    chunks = pack_config(texts)
    assert unpack_config(chunks) == texts
    for chunk in chunks:
        assert 0 < len(chunk) <= CHUNK
        assert chunk.isascii()
        assert not set(chunk) & set(" \t\n\r'\"\\$`;&|<>*?,@#%!")


def test_a_usual_configuration_is_one_small_property() -> None:
    text = (RECORDINGS / "cli/etc-102.conf").read_text()
    (chunk,) = pack_config({"conf": text})
    assert len(chunk) < 800


def random_text(length: int, seed: int = 1) -> str:
    return random.Random(seed).randbytes(length // 2).hex()


def test_long_configuration_takes_several_properties() -> None:
    texts = {"conf": random_text(20_000), "firewall": random_text(10_000, 2)}
    chunks = pack_config(texts)
    assert 2 <= len(chunks) <= MAX_CHUNKS
    assert unpack_config(chunks) == texts


def test_a_huge_firewall_file_is_left_out_and_said_so() -> None:
    texts = {"conf": "name: x\n", "pool": "p", "firewall": random_text(200_000)}
    assert fitting(texts) == {"conf": "name: x\n", "pool": "p", "left-out": "firewall"}
    assert unpack_config(pack_config(fitting(texts))) == fitting(texts)
    small = {**texts, "firewall": "[OPTIONS]\n"}
    assert fitting(small) == small


def test_a_huge_configuration_is_refused() -> None:
    with pytest.raises(PveError, match="too large"):
        pack_config({"conf": random_text(200_000)})


def encoded(data: bytes) -> list[str]:
    return [base64.urlsafe_b64encode(zlib.compress(data)).decode()]


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [""],
        ["-"],
        ["no base64!"],
        ["ü"],
        pack_config({"conf": random_text(20_000)})[:1],  # a property is missing
        pack_config({"conf": random_text(20_000)})[::-1],
        [base64.urlsafe_b64encode(zlib.compress(b'{"conf":""}')[:-4]).decode()],  # no checksum
        encoded(b"[]"),
        encoded(b'{"conf":1}'),
        encoded(b"not json"),
        encoded(b"\xff"),
        encoded(json.dumps({"conf": "x" * (MAX_UNPACKED + 1)}).encode()),  # a bomb
        encoded(b"[" * 200_000),  # more deeply nested than Python reads
    ],
    ids=range(14),
)
def test_damage_is_noticed(chunks: list[str]) -> None:
    with pytest.raises(VerificationError):
        unpack_config(chunks)


def test_link_of_pmxcfs_is_followed(etc: Path) -> None:
    """`/etc/pve/qemu-server` is itself a link into `nodes/<me>`."""
    (etc / "nodes/pve1").mkdir(parents=True)
    (etc / "qemu-server").rename(etc / "nodes/pve1/qemu-server")
    os.symlink("nodes/pve1/qemu-server", etc / "qemu-server")
    assert "conf" in read_config_file(Vmid(102), GuestKind.VM, root=etc)
