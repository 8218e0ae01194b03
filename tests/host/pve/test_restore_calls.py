"""What a restore asks of Proxmox and leaves there, against the schema of its API: each call is answered by fakepve, and
each configuration that was written is one that the API would take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakepve import FakePve
from fakepve.lxc import FakeCt
from fakepve.model import FakeVm
from fakepve.schema import load, validate

from pve_zfsbackup.app.restore import Request, Restored, carry_out, prepare, restoring_alone, tell_elsewhere
from pve_zfsbackup.errors import PveError
from pve_zfsbackup.host.pve import HttpsApi
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.model import Vmid
from tests.fakes.node import FakeNode
from tests.fakes.pools import no, ok
from tests.fakes.world import CT, STORAGES, WEB, World

METHODS = {"get": "GET", "create": "POST", "set": "PUT", "delete": "DELETE"}
DISKS = ("rpool/data/vm-100-disk-0", "fast/vm-100-disk-0")


@dataclass(slots=True)
class ServedNode(FakeNode):
    """A node whose `pvesh` is answered by fakepve, from the files there are below /etc/pve now."""

    pve: FakePve = None
    api: HttpsApi | None = None
    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def pvesh(self, argv: Sequence[str]) -> Completed:
        assert argv[-2:] == ("--output-format", "json")
        method, path, words = METHODS[argv[1]], argv[2], argv[3:-2]
        given = zip(words[::2], words[1::2], strict=True)
        params = {name.removeprefix("--"): value for name, value in given}
        self._publish()
        schema_of(method, path, params)
        self.calls.append((method, path, params))
        assert self.api
        try:
            answer = self.api.request(method, path, params)
        except PveError as error:
            return no(argv, f"{error.status} {error.message}", status=255)
        return ok(argv, "" if answer is None else json.dumps(answer) + "\n")

    def _publish(self) -> None:
        self.pve.vms[:] = [self._made(FakeVm, path) for path in sorted(self.etc.glob("qemu-server/*.conf"))]
        self.pve.cts[:] = [self._made(FakeCt, path, defaults=False) for path in sorted(self.etc.glob("lxc/*.conf"))]
        self.pve._sync_pools()

    def _made(self, kind: type[Any], path: Path, **more: Any) -> Any:
        config = self._config(int(path.stem))
        config["digest"] = hashlib.sha1(path.read_bytes()).hexdigest()
        name = config.get("name") or config.get("hostname")
        status = "running" if self._state(int(path.stem)).running else "stopped"
        return kind(int(path.stem), name, node=self.name, status=status, config=config, **more)

    def member_of(self, vmid: int) -> list[str]:
        return [name for name, members in self.pve.pools.items() if vmid in members]


def schema_of(method: str, path: str, params: Mapping[str, Any]) -> None:
    """Fails where the API has no such call, or would not take what it is given."""
    match = load().match(path)
    assert match, f"{path}: no such path"
    assert method in match.methods, f"{method} {path}: no such method"
    _, errors = validate(match.methods[method].get("parameters"), {**match.params, **params})
    assert errors == {}, f"{method} {path} {params}: {errors}"


def settings_fit(world: World, vmid: int) -> dict[str, str]:
    """The guest's configuration, which the API would take as it is."""
    (path,) = world.node.etc.glob(f"*/{vmid}.conf")
    config = dict(line.split(": ", 1) for line in path.read_text().splitlines() if ": " in line)
    config.pop("parent", None)
    if path.parent.name == "lxc":
        schema_of("POST", "/nodes/pve1/lxc", {**config, "vmid": str(vmid), "ostemplate": "local:vztmpl/x.tar.gz"})
    else:
        schema_of("POST", "/nodes/pve1/qemu", {**config, "vmid": str(vmid)})
    return config


@pytest.fixture
def world(tmp_path: Path, fakepve: FakePve, fake_api: HttpsApi) -> World:
    """Guests in the pool `production`, with points here and on the target."""
    made = World(tmp_path)
    served = ServedNode(etc=made.node.etc, storages=made.node.storages, guests=made.node.guests)
    served.pve, served.api = fakepve, fake_api
    fakepve.storages.clear()
    for entry in STORAGES:
        fakepve.storages[entry["storage"]] = {"active": 1, "files": set(), **entry}
    fakepve.pools["production"] = {WEB, CT}
    fakepve.pools["scratch"] = set()
    made.node = made.runner.node = served
    conf = made.node.etc / f"qemu-server/{WEB}.conf"
    identity = "smbios1: uuid=0d3c0f9e-aaaa-4222-8333-444455556666\nvmgenid: 0d3c0f9e-1111-4222-8333-444455556666\n"
    conf.write_text(conf.read_text() + identity + "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nonboot: 1\n")
    limits = {"acltype": "posix", "refquota": "1073741824", "quota": "2147483648"}
    made.source.datasets["rpool/data/subvol-200-disk-0"].props.update(limits)
    for _ in range(2):
        made.run()
        made.write()
    made.runner.revive()
    served.calls.clear()
    return made


def served(world: World) -> ServedNode:
    assert isinstance(world.node, ServedNode)
    return world.node


def restore(world: World, vmid: int, **options: Any) -> Restored:
    with world.session() as session, restoring_alone(session):
        found = prepare(session, Request(vmid=Vmid(vmid), **options))
        assert found.plan.conflicts == ()
        return carry_out(session, found, start=True)


def lost(world: World, vmid: int) -> None:
    for name in [name for name in world.source.datasets if f"-{vmid}-disk" in name]:
        world.source.drop(name)
    world.node.remove(vmid)


def changes(world: World) -> list[tuple[str, str, dict[str, Any]]]:
    return [call for call in served(world).calls if call[0] != "GET"]


def differing(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


JOIN = ("PUT", "/pools")


def test_a_machine_that_is_gone(world: World) -> None:
    """Proxmox takes a guest out of its pools when it destroys it."""
    before = settings_fit(world, WEB)
    lost(world, WEB)
    served(world).pve.pools["production"].discard(WEB)
    assert restore(world, WEB).notes == ()
    assert differing(before, settings_fit(world, WEB)) == {"vmgenid"}, "Proxmox renews it whenever it restores"
    assert changes(world) == [(*JOIN, {"poolid": "production", "vms": "100", "allow-move": "1"})]
    assert served(world).member_of(WEB) == ["production"]


def test_a_machine_that_is_gone_and_still_in_its_pool(world: World) -> None:
    """Its file was lost, not destroyed by Proxmox: user.cfg still has it."""
    lost(world, WEB)
    assert restore(world, WEB).notes == ()
    assert served(world).member_of(WEB) == ["production"]


def test_a_machine_in_place_of_what_it_is_now(world: World) -> None:
    """It was moved to another pool since: as the point says, it comes back to the one it was in."""
    world.guest(WEB).running = False
    served(world).pve.pools.update(production={CT}, scratch={WEB})
    before = settings_fit(world, WEB)
    assert restore(world, WEB, replace=WEB).notes == ()
    after = settings_fit(world, WEB)
    assert differing(before, after) == {"scsi0", "scsi1", "vmgenid"}
    assert after["net0"] == before["net0"], "a replacement keeps its addresses"
    assert served(world).member_of(WEB) == ["production"]


def test_a_machine_under_a_new_vmid(world: World) -> None:
    before = settings_fit(world, WEB)
    assert restore(world, WEB, new=300).notes == (
        "onboot is left out: a copy does not start by itself beside its original",
    )
    made = settings_fit(world, 300)
    assert made["scsi0"].startswith("local-zfs:vm-300-disk-0")
    assert all(made[key] != before[key] for key in ("net0", "smbios1", "vmgenid"))
    assert (served(world).member_of(300), served(world).member_of(WEB)) == (["production"], ["production"])
    assert world.guest(300).running


def test_a_single_disk(world: World) -> None:
    with world.session() as session, restoring_alone(session):
        carry_out(session, prepare(session, Request(vmid=Vmid(WEB), disks=frozenset({"scsi1"}))))
    assert changes(world) == [], "of the guest nothing changes"
    world.guest(WEB).running = False
    restore(world, WEB, disks=frozenset({"scsi1"}), replace=WEB)
    made = settings_fit(world, WEB)
    assert (made["scsi0"], made["scsi1"]) == ("local-zfs:vm-100-disk-0,size=1G", "fast:vm-100-disk-2,size=1G")
    assert changes(world) == []


def test_a_container_with_its_quota(world: World) -> None:
    before = settings_fit(world, CT)
    lost(world, CT)
    served(world).pve.pools["production"].discard(CT)
    assert restore(world, CT).notes == ()
    assert settings_fit(world, CT) == before
    made = world.source.datasets["rpool/data/subvol-200-disk-0"].props
    assert (made["acltype"], made["refquota"], made["quota"]) == ("posix", "1073741824", "2147483648")
    assert served(world).member_of(CT) == ["production"]
    restore(world, CT, new=300)
    assert settings_fit(world, 300)["rootfs"].startswith("local-zfs:subvol-300-disk-0")


def test_a_pool_that_is_no_more_costs_no_guest(world: World) -> None:
    lost(world, WEB)
    del served(world).pve.pools["production"]
    (note,) = restore(world, WEB).notes
    assert note.startswith("guest 100 could not be put into the pool production: ")
    assert "does not exist" in note
    assert world.guest(WEB).running


def test_what_is_asked_for_another_node(world: World) -> None:
    served(world).pve.add_node("pve2")
    with world.session() as session:
        told = tell_elsewhere(session, Request(vmid=Vmid(WEB), new=Vmid(300)), "pve2")
    assert told.plan.conflicts == ()
    assert told.plan.command[-2:] == ("--as", "300")
    assert ("GET", "/nodes", {}) in served(world).calls
    assert changes(world) == []
