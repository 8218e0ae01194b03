"""Discovery: what can be protected and why not, on recordings of a real node and on tables of every form."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.model import (
    Agent,
    Dataset,
    Disk,
    Guest,
    GuestKind,
    Guid,
    Listing,
    RawGuest,
    Storage,
    Vmid,
    Volume,
)
from pve_zfsbackup.plan.discovery import discover, disk_keys, parse_agent

RECORDINGS = Path(__file__).parent.parent / "recordings/discovery"
STORAGES = {
    "local-zfs": Storage(id="local-zfs", type="zfspool", pool="rpool/data"),
    "fast": Storage(id="fast", type="zfspool", pool="fast", nodes=frozenset({"pve1", "pve2"})),
    "local": Storage(id="local", type="dir"),
    "lvm": Storage(id="lvm", type="lvmthin"),
    "iscsi": Storage(id="iscsi", type="zfs", pool="tank"),
    "off": Storage(id="off", type="zfspool", pool="fast", disabled=True),
    "elsewhere": Storage(id="elsewhere", type="zfspool", pool="fast", nodes=frozenset({"pve2"})),
    "poolless": Storage(id="poolless", type="zfspool"),
}


def listing(*names: str, origins: Mapping[str, str] | None = None) -> Listing:
    """Volumes with the type their name says, unless the name begins with `other:`."""
    volumes = {}
    for name in names:
        plain = name.removeprefix("other:")
        subvol = "subvol-" in plain or "basevol-" in plain
        is_volume = subvol == (plain != name)
        volumes[Dataset(plain)] = Volume(
            name=Dataset(plain),
            guid=Guid("1"),
            type="volume" if is_volume else "filesystem",
            origin=(origins or {}).get(plain, ""),
        )
    return Listing(host="source", volumes=volumes)


def vm(config: Mapping[str, str], **kwargs: Any) -> RawGuest:
    return RawGuest(
        vmid=Vmid(100),
        kind=GuestKind.VM,
        node="pve1",
        **{"name": "web", "status": "running", "config": config} | kwargs,
    )


def ct(config: Mapping[str, str], **kwargs: Any) -> RawGuest:
    return replace(vm(config, **kwargs), kind=GuestKind.CT)


def found(raw: RawGuest, on_zfs: Listing) -> Guest:
    (guest,) = discover([raw], STORAGES, on_zfs, "pve1")
    return guest


def one(raw: RawGuest, *datasets: str) -> Disk:
    (disk,) = found(raw, listing(*datasets)).disks
    return disk


# --- recordings of a real node


def body(name: str) -> Any:
    text = (RECORDINGS / name).read_text()
    return json.loads(text.split("\n\n", 1)[1].splitlines()[0])["data"]


def recorded(vmid: int, kind: GuestKind) -> RawGuest:
    config = {key: str(value) for key, value in body(f"{kind}-{vmid}-config.txt").items()}
    (entry,) = (
        item
        for item in json.loads((RECORDINGS / "pvesh-cluster-resources-vm.json").read_text())
        if item["vmid"] == vmid
    )
    return RawGuest(
        vmid=Vmid(vmid), kind=kind, node=entry["node"], name=entry["name"], status=entry["status"], config=config
    )


@pytest.fixture
def node() -> dict[int, Guest]:
    volumes = re.findall(r"^local-zfs:(\S+)", (RECORDINGS / "pvesm-list-2.txt").read_text(), re.MULTILINE)
    storages = {
        item["storage"]: Storage(id=item["storage"], type=item["type"], pool=item.get("pool", ""))
        for item in body("storage.txt")
    }
    raw = [recorded(200, GuestKind.CT), *(recorded(vmid, GuestKind.VM) for vmid in (102, 101, 100))]
    guests = discover(raw, storages, listing(*(f"rpool/data/{name}" for name in volumes)), "pve1")
    return {guest.vmid: guest for guest in guests}


def test_recorded_guests_are_all_found_in_order(node: dict[int, Guest]) -> None:
    assert [(vmid, guest.name, guest.kind) for vmid, guest in node.items()] == [
        (100, "web", GuestKind.VM),
        (101, "db", GuestKind.VM),
        (102, "multi", GuestKind.VM),
        (200, "ct1", GuestKind.CT),
    ]


def test_recorded_plain_vm(node: dict[int, Guest]) -> None:
    assert node[100] == Guest(
        vmid=Vmid(100),
        kind=GuestKind.VM,
        node="pve1",
        name="web",
        running=False,
        agent=Agent(enabled=True),
        digest="eb0001d42d4bf575e968b934798464e50fff2a71",
        disks=(
            Disk(
                key="scsi0",
                volid="local-zfs:vm-100-disk-0",
                storage="local-zfs",
                volume="vm-100-disk-0",
                dataset=Dataset("rpool/data/vm-100-disk-0"),
                size=1 << 30,
            ),
        ),
    )


def test_recorded_uefi_vm_has_its_small_disks_protected(node: dict[int, Guest]) -> None:
    disks = {disk.key: (disk.volume, disk.size) for disk in node[101].protected_disks}
    assert disks == {
        "efidisk0": ("vm-101-disk-0", 1 << 20),
        "tpmstate0": ("vm-101-disk-1", 4 << 20),
        "virtio0": ("vm-101-disk-2", 1 << 30),
    }
    assert node[101].agent == Agent()


def test_recorded_vm_with_all_sorts_of_drives(node: dict[int, Guest]) -> None:
    guest = node[102]
    assert {disk.key: disk.reason for disk in guest.disks} == {
        "ide2": "cloud-init drive, regenerated by Proxmox",
        "scsi0": "",
        "scsi1": "backup=0 is set on this disk",
        "unused0": "not attached",
    }
    assert [disk.dataset for disk in guest.disks] == [
        None,
        "rpool/data/vm-102-disk-1",
        "rpool/data/vm-102-disk-2",
        "rpool/data/vm-102-disk-0",
    ]
    assert guest.tags == ("prod", "zfs")
    assert guest.agent == Agent(enabled=True, freeze=False)


def test_recorded_container(node: dict[int, Guest]) -> None:
    assert [(disk.key, disk.dataset, disk.reason) for disk in node[200].disks] == [
        ("rootfs", "rpool/data/subvol-200-disk-0", ""),
        ("mp0", "rpool/data/subvol-200-disk-1", ""),
        ("mp1", "rpool/data/subvol-200-disk-2", "backup=1 is not set on this mount point"),
    ]


# --- tables

DISK0 = "rpool/data/vm-100-disk-0"
VM_DRIVES = [
    ("scsi0", "local-zfs:vm-100-disk-0", ""),
    ("scsi0", "local-zfs:vm-100-disk-0,size=32G,iothread=1", ""),
    ("scsi0", "size=32G,local-zfs:vm-100-disk-0", ""),
    ("scsi0", "file=local-zfs:vm-100-disk-0,size=32G", ""),
    ("scsi0", "volume=local-zfs:vm-100-disk-0", ""),
    ("scsi0", "local-zfs:vm-100-disk-0,,discard=on,", ""),
    ("scsi0", "local-zfs:vm-100-disk-0,backup=1", ""),
    ("scsi0", "local-zfs:vm-100-disk-0,backup=YES", ""),
    ("scsi0", "local-zfs:vm-100-disk-0,replicate=0,shared=1,ro=1", ""),
    ("scsi30", "local-zfs:vm-100-disk-0", ""),
    ("ide3", "local-zfs:vm-100-disk-0", ""),
    ("sata5", "local-zfs:vm-100-disk-0", ""),
    ("virtio15", "local-zfs:vm-100-disk-0", ""),
    ("tpmstate0", "local-zfs:vm-100-disk-0,version=v2.0", ""),
    ("scsi0", "local-zfs:vm-100-disk-0,media=disk", ""),
    ("scsi0", "local-zfs:base-100-disk-0/vm-100-disk-0", ""),
    ("scsi0", "local-zfs:vm-100-disk-0,backup=0", "backup=0 is set on this disk"),
    ("scsi0", "local-zfs:vm-100-disk-0,backup=off", "backup=0 is set on this disk"),
    ("scsi0", "local-zfs:vm-100-disk-0,backup=No", "backup=0 is set on this disk"),
    ("scsi0", "local-zfs:vm-100-disk-0,backup=maybe", "not understood: backup is neither 0 nor 1"),
    ("scsi0", "local-zfs:vm-100-disk-0,backup=", "not understood: 'backup=' is not key=value"),
    ("scsi0", "local-zfs:vm-100-disk-0,backup=1,backup=0", "not understood: 'backup' is given twice"),
    ("scsi0", "local-zfs:vm-100-disk-0,local-zfs:vm-100-disk-1", "not understood: 'file' is given twice"),
    ("scsi0", "file=local-zfs:vm-100-disk-0,volume=x", "not understood: 'file' is given twice"),
    ("scsi0", "", "not understood: no volume is named"),
    ("scsi0", "size=32G", "not understood: no volume is named"),
    ("scsi0", "=x", "not understood: '=x' is not key=value"),
    ("scsi0", "vm-100-disk-0", "not understood: not a volume id"),
    ("scsi0", ":vm-100-disk-0", "not understood: not a volume id"),
    ("scsi0", "local-zfs:", "not understood: not a volume id"),
    ("scsi0", "-x:vm-100-disk-0", "not understood: not a volume id"),
    ("ide2", "none,media=cdrom", "empty drive"),
    ("ide2", "none", "empty drive"),
    ("ide2", "cdrom", "CD-ROM"),
    ("ide2", "cdrom,media=cdrom", "CD-ROM"),
    ("ide2", "local:iso/debian.iso,media=cdrom,size=600M", "CD-ROM"),
    ("ide2", "/mnt/x.iso,media=cdrom", "CD-ROM"),
    ("ide2", "local:iso/cloudinit.iso,media=cdrom", "CD-ROM"),
    ("ide2", "local-zfs:vm-100-cloudinit,media=cdrom", "cloud-init drive, regenerated by Proxmox"),
    ("scsi1", "local-zfs:vm-100-cloudinit", "cloud-init drive, regenerated by Proxmox"),
    ("ide2", "local-zfs:cloudinit", "cloud-init drive, regenerated by Proxmox"),
    ("ide2", "local:100/vm-100-cloudinit.qcow2,media=cdrom", "cloud-init drive, regenerated by Proxmox"),
    ("scsi1", "/dev/disk/by-id/ata-X,size=1T", "device of the host passed through: /dev/disk/by-id/ata-X"),
    ("scsi1", "/srv/x.raw", "file of the host, not on a storage: /srv/x.raw"),
    ("scsi1", "local:100/vm-100-disk-0.qcow2,size=32G", "storage local is of type dir, not ZFS"),
    ("scsi1", "lvm:vm-100-disk-0", "storage lvm is of type lvmthin, not ZFS"),
    ("scsi1", "iscsi:vm-100-disk-0", "storage iscsi is of type zfs, not ZFS on this node"),
    ("scsi1", "off:vm-100-disk-0", "storage off is disabled"),
    ("scsi1", "elsewhere:vm-100-disk-0", "storage elsewhere is not available on node pve1"),
    ("scsi1", "poolless:vm-100-disk-0", "storage poolless names no pool"),
    ("scsi1", "what:vm-100-disk-0", "storage what is not known, or may not be seen"),
    ("scsi1", "local-zfs:vm-100-disk-9", "dataset rpool/data/vm-100-disk-9 does not exist"),
    ("scsi1", "local-zfs:tool-vol", "not a volume name of Proxmox: tool-vol"),
    ("scsi1", "local-zfs:vm-100-disk-0@snap", "not a volume name of Proxmox: vm-100-disk-0@snap"),
    ("scsi1", "local-zfs:vm-100-disk-0 -r", "not a volume name of Proxmox: vm-100-disk-0 -r"),
    ("scsi1", "local-zfs:../vm-100-disk-0/..", "not a volume name of Proxmox: .."),
    ("scsi1", "local-zfs:vm-101-disk-0", "belongs to guest 101 by its name"),
    ("scsi1", "local-zfs:vm-1000-disk-0", "belongs to guest 1000 by its name"),
    ("scsi1", "local-zfs:vm-100-state-snap1", "RAM state of a snapshot, not a disk"),
    ("scsi1", "local-zfs:vm-100-fleece-0", "temporary fleecing image of a backup"),
    ("scsi1", "fast:vm-100-disk-3", "fast/vm-100-disk-3 is a filesystem, which its name does not say"),
    ("unused0", "local-zfs:vm-100-disk-0", "not attached"),
    ("unused255", "local-zfs:vm-100-state-snap1", "not attached"),
    ("unused0", "local:100/vm-100-disk-0.raw", "not attached"),
    ("efidisk0", "local-zfs:vm-100-disk-0,efitype=4m", "EFI disk that is not used: bios is not ovmf"),
]
ON_ZFS = (
    DISK0,
    "rpool/data/vm-100-cloudinit",
    "rpool/data/vm-101-disk-0",
    "rpool/data/vm-1000-disk-0",
    "rpool/data/vm-100-state-snap1",
    "rpool/data/vm-100-fleece-0",
    "other:fast/vm-100-disk-3",
    "fast/vm-100-disk-0",
    "rpool/data/tool-vol",
)


@pytest.mark.parametrize(("key", "text", "reason"), VM_DRIVES)
def test_vm_drive(key: str, text: str, reason: str) -> None:
    disk = one(vm({key: text, "name": "web"}), *ON_ZFS)
    assert (disk.key, disk.reason) == (key, reason)
    assert disk.protected == (reason == "")
    assert (disk.dataset == DISK0) >= disk.protected


@pytest.mark.parametrize(
    ("storage", "lost"),
    [("off", True), ("elsewhere", True), ("what", True), ("poolless", False), ("lvm", False), ("iscsi", False)],
)
def test_a_disk_whose_storage_is_switched_off_is_lost_and_not_left_out(storage: str, lost: bool) -> None:
    """Points without it would pass for whole, and in time replace those that have it."""
    disk = one(vm({"scsi1": f"{storage}:vm-100-disk-0"}))
    assert disk.lost is lost
    assert not one(vm({"scsi1": f"{storage}:vm-100-disk-0,backup=0"})).lost
    assert not one(vm({"unused0": f"{storage}:vm-100-disk-0"})).lost


CT_MOUNTS = [
    ("rootfs", "local-zfs:subvol-100-disk-0,size=8G", ""),
    ("rootfs", "volume=local-zfs:subvol-100-disk-0", ""),
    ("rootfs", "local-zfs:basevol-100-disk-0", ""),
    ("rootfs", "local-zfs:basevol-900-disk-0/subvol-100-disk-0", ""),
    ("mp0", "local-zfs:subvol-100-disk-1,mp=/data,backup=1", ""),
    ("mp255", "mp=/data,backup=on,volume=local-zfs:subvol-100-disk-1", ""),
    ("mp0", "local-zfs:subvol-100-disk-1,mp=/data", "backup=1 is not set on this mount point"),
    ("mp0", "local-zfs:subvol-100-disk-1,mp=/data,backup=0", "backup=1 is not set on this mount point"),
    ("mp0", "local:100/vm-100-disk-0.raw,mp=/data", "backup=1 is not set on this mount point"),
    ("mp0", "local-zfs:subvol-100-disk-1,mp=/data,backup=x", "not understood: backup is neither 0 nor 1"),
    ("mp0", "mp=/data,backup=1", "not understood: no volume is named"),
    ("mp0", "/srv/share,mp=/share,backup=1", "bind mount of the host's directory /srv/share"),
    ("mp0", "/dev/sdb1,mp=/share,backup=1", "device of the host: /dev/sdb1"),
    ("mp0", "local:100/vm-100-disk-0.raw,mp=/data,backup=1", "storage local is of type dir, not ZFS"),
    ("mp0", "local-zfs:subvol-100-disk-7,mp=/d,backup=1", "dataset rpool/data/subvol-100-disk-7 does not exist"),
    ("mp0", "local-zfs:subvol-101-disk-0,mp=/data,backup=1", "belongs to guest 101 by its name"),
    ("mp0", "fast:subvol-100-disk-9,mp=/d,backup=1", "fast/subvol-100-disk-9 is a volume, which its name does not say"),
    ("rootfs", "/srv/root", "bind mount of the host's directory /srv/root"),
    ("unused1", "local-zfs:subvol-100-disk-0", "not attached"),
]
SUBVOLS = (
    "rpool/data/subvol-100-disk-0",
    "rpool/data/subvol-100-disk-1",
    "rpool/data/subvol-101-disk-0",
    "rpool/data/basevol-100-disk-0",
    "other:fast/subvol-100-disk-9",
)


@pytest.mark.parametrize(("key", "text", "reason"), CT_MOUNTS)
def test_container_volume(key: str, text: str, reason: str) -> None:
    disk = one(ct({key: text, "hostname": "x"}), *SUBVOLS)
    assert (disk.key, disk.reason) == (key, reason)
    assert disk.protected == (reason == "")


def test_efi_disk_is_protected_when_the_firmware_uses_it() -> None:
    config = {"efidisk0": "local-zfs:vm-100-disk-0,efitype=4m,size=1M", "bios": "ovmf"}
    assert one(vm(config), DISK0).protected


@pytest.mark.parametrize(
    ("storage", "media", "backup", "exists"),
    list(itertools.product(["local-zfs", "local", "off", "what"], [False, True], ["", "0", "1"], [False, True])),
)
def test_protected_only_when_everything_agrees(storage: str, media: bool, backup: str, exists: bool) -> None:
    text = f"{storage}:vm-100-disk-0" + ",media=cdrom" * media + (f",backup={backup}" if backup else "")
    disk = one(vm({"scsi0": text}), *([DISK0] if exists else []))
    assert disk.protected == (storage == "local-zfs" and not media and backup != "0" and exists)
    assert bool(disk.reason) != disk.protected


def test_keys_in_the_order_people_expect_and_only_real_ones() -> None:
    vm_keys = ["scsi10", "scsi2", "scsi0", "ide0", "efidisk0", "tpmstate0", "unused0"]
    ct_keys = ["rootfs", "mp0"]
    neither = ["scsi31", "scsi01", "scsi", "sata6", "virtio16", "ide4", "unused256", "mp256", "efidisk1", "net0"]
    keys = dict.fromkeys([*vm_keys, *ct_keys, *neither, "scsihw", "boot", "vmstate", "scsi0x", "scsi0\n"])
    assert disk_keys(GuestKind.VM, keys) == [
        "efidisk0",
        "ide0",
        "scsi0",
        "scsi2",
        "scsi10",
        "tpmstate0",
        "unused0",
    ]
    assert disk_keys(GuestKind.CT, keys) == ["rootfs", "mp0", "unused0"]


def test_one_volume_is_protected_once() -> None:
    config = {"scsi0": "local-zfs:vm-100-disk-0", "virtio0": "local-zfs:vm-100-disk-0"}
    disks = found(vm(config), listing(DISK0)).disks
    assert [(disk.key, disk.reason) for disk in disks] == [("scsi0", ""), ("virtio0", "the same volume as scsi0")]


@pytest.mark.parametrize(
    ("text", "agent"),
    [
        ("", Agent()),
        ("1", Agent(enabled=True)),
        ("0", Agent()),
        ("yes", Agent(enabled=True)),
        ("TRUE", Agent(enabled=True)),
        ("2", Agent()),
        ("enabled=1", Agent(enabled=True)),
        ("enabled=0,freeze-fs=1", Agent()),
        ("freeze-fs=0", Agent()),
        ("freeze-fs=1,1", Agent(enabled=True)),
        ("1,fstrim_cloned_disks=1,type=isa", Agent(enabled=True)),
        ("1,freeze-fs=0", Agent(enabled=True, freeze=False)),
        ("1,freeze-fs=off", Agent(enabled=True, freeze=False)),
        ("1,freeze-fs-on-backup=0", Agent(enabled=True, freeze=False)),
        ("1,guest-fsfreeze=no", Agent(enabled=True, freeze=False)),
        ("1,freeze-fs-on-backup=1", Agent(enabled=True)),
        ("1,freeze-fs=1,guest-fsfreeze=0", Agent(enabled=True, freeze=False)),
        ("1,freeze-fs=perhaps", Agent()),
        ("1,freeze-fs=", Agent()),
        ("1,enabled=1", Agent()),
        ("1,1", Agent()),
        ("=", Agent()),
    ],
)
def test_agent_option(text: str, agent: Agent) -> None:
    assert parse_agent(text) == agent
    assert found(vm({"agent": text}), listing()).agent == agent


def test_container_has_no_agent() -> None:
    assert found(ct({"agent": "1"}), listing()).agent == Agent()


@pytest.mark.parametrize(
    ("status", "qmp", "running", "paused"),
    [
        ("running", "running", True, False),
        ("running", "", True, False),
        ("running", "paused", True, True),
        ("running", "prelaunch", True, True),
        ("running", "suspended", True, True),
        ("running", "io-error", True, True),
        ("stopped", "stopped", False, False),
        ("unknown", "", False, False),
    ],
)
def test_running_and_paused(status: str, qmp: str, running: bool, paused: bool) -> None:
    guest = found(vm({}, status=status, qmp_status=qmp), listing())
    assert (guest.running, guest.paused) == (running, paused)


def test_guests_of_other_nodes_are_left_out() -> None:
    raw = [replace(vm({}), vmid=Vmid(vmid), node=node) for vmid, node in ((102, "pve1"), (101, "pve2"), (100, "pve1"))]
    assert [guest.vmid for guest in discover(raw, STORAGES, listing(), "pve1")] == [100, 102]
    assert [guest.vmid for guest in discover(raw, STORAGES, listing(), "pve2")] == [101]
    assert discover(raw, STORAGES, listing(), "pve3") == ()


def test_storage_of_some_nodes_is_there_on_those() -> None:
    raw = vm({"scsi0": "fast:vm-100-disk-0"})
    assert one(raw, "fast/vm-100-disk-0").protected
    (other,) = discover([replace(raw, node="pve3")], STORAGES, listing("fast/vm-100-disk-0"), "pve3")
    assert other.disks[0].reason == "storage fast is not available on node pve3"


# --- what runs, and what the next start changes


def test_protection_follows_what_runs_and_pending_changes_are_told() -> None:
    raw = vm(
        {
            "scsi0": "local-zfs:vm-100-disk-0,size=1G",
            "scsi1": "local-zfs:vm-100-disk-1",
            "scsi3": "local-zfs:vm-100-disk-3",
            "memory": "512",
            "agent": "1",
        },
        pending={
            "scsi0": "local-zfs:vm-100-disk-0,backup=0,size=1G",
            "scsi1": None,
            "scsi2": "fast:vm-100-disk-0",
            "scsi3": "local-zfs:vm-100-disk-3",
            "memory": "1024",
            "agent": "0",
            "bios": "ovmf",
        },
    )
    names = [DISK0, "rpool/data/vm-100-disk-1", "rpool/data/vm-100-disk-3", "fast/vm-100-disk-0"]
    guest = found(raw, listing(*names))
    assert [disk.key for disk in guest.protected_disks] == ["scsi0", "scsi1", "scsi3"]
    assert guest.agent.enabled
    assert guest.notes == (
        "scsi0 changes at the next start: local-zfs:vm-100-disk-0,backup=0,size=1G",
        "scsi1 is removed at the next start",
        "scsi2 is added at the next start: fast:vm-100-disk-0",
        "agent changes at the next start: 0",
        "bios is added at the next start: ovmf",
    )


def test_pending_deletion_of_what_is_not_there_is_not_told() -> None:
    assert found(vm({}, pending={"scsi5": None, "agent": None}), listing()).notes == ()


def test_template_and_linked_clone_are_noted() -> None:
    base = "rpool/data/base-900-disk-0"
    template = replace(vm({"scsi0": "local-zfs:base-900-disk-0"}, template=True), vmid=Vmid(900))
    clone = vm({"scsi0": "local-zfs:base-900-disk-0/vm-100-disk-0"})
    on_zfs = listing(base, DISK0, origins={DISK0: f"{base}@__base__"})
    by_vmid = {guest.vmid: guest for guest in discover([template, clone], STORAGES, on_zfs, "pve1")}
    assert by_vmid[Vmid(900)].template
    assert by_vmid[Vmid(900)].notes == ("template: its disks do not change",)
    assert by_vmid[Vmid(900)].disks[0].protected
    assert by_vmid[Vmid(100)].notes == (f"scsi0 is a linked clone of {base}@__base__",)
    assert by_vmid[Vmid(100)].disks[0].dataset == DISK0


@pytest.mark.parametrize("text", ["1", "yes"])
def test_template_is_known_from_the_configuration_too(text: str) -> None:
    assert found(vm({"template": text}), listing()).template


def test_notes_on_what_no_snapshot_holds() -> None:
    assert found(vm({"virtiofs0": "share", "vmstate": "local-zfs:vm-100-state-suspend"}), listing()).notes == (
        "the saved RAM state is not part of a point",
        "virtiofs0 shares a directory of the host, which is not protected",
    )
    lxc = {"lxc": "[['lxc.mount.entry', '/srv srv none bind 0 0']]"}
    assert found(ct(lxc), listing()).notes == ("lxc.mount.entry mounts paths of the host, which are not protected",)


@pytest.mark.parametrize("value", ["0000:01:00.0", "mapping=hba,pcie=1", "host=0000:01:00"])
def test_a_pci_device_passed_through_may_hold_disks(value: str) -> None:
    assert found(vm({"hostpci0": value, "hostpci15": value}), listing()).notes == (
        "hostpci0 passes a device of the host through: what is on its disks is not protected",
        "hostpci15 passes a device of the host through: what is on its disks is not protected",
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("host=0951:1666", True), ("host=1-1.2,usb3=1", True), ("0951:1666", True), ("mapping=stick", True),
        ("spice", False), ("host=spice,usb3=1", False), ("SPICE", False),
    ],
)  # fmt: skip
def test_a_usb_device_passed_through_may_be_a_disk(value: str, told: bool) -> None:
    note = "usb3 passes a device of the host through: what is on its disks is not protected"
    assert found(vm({"usb3": value}), listing()).notes == ((note,) if told else ())


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("-drive file=/dev/sdb,if=virtio", True), ("-machine q35 -blockdev driver=raw", True), ("-hdb /x.img", True),
        ("-device nvme,drive=x", True), ("--drive file=/x", True), ("-device vhost-user-blk-pci,chardev=c", True),
        ("-cpu host,-drive", False), ("-device intel-iommu", False), ("", False),
    ],
)  # fmt: skip
def test_drives_that_args_gives_to_qemu_are_noted(value: str, told: bool) -> None:
    note = "args gives QEMU drives that Proxmox does not know, and which are not protected"
    assert found(vm({"args": value}), listing()).notes == ((note,) if told else ())


def test_what_containers_have_under_those_names_is_nothing_of_ours() -> None:
    assert found(ct({"usb0": "host=1:2", "args": "-drive x", "hostpci0": "1"}), listing()).notes == ()


def test_name_lock_tags_and_digest_come_from_the_configuration_when_missing() -> None:
    config = {"name": "n", "lock": "backup", "tags": "a;b, c", "digest": "d"}
    guest = found(vm(config, name=""), listing())
    assert (guest.name, guest.lock, guest.tags, guest.digest) == ("n", "backup", ("a", "b", "c"), "d")
    assert found(ct({"hostname": "h"}, name=""), listing()).name == "h"
    told = vm(config, name="x", lock="migrate", tags=("z",), digest="e", pool="p")
    guest = found(told, listing())
    assert (guest.name, guest.lock, guest.tags, guest.digest, guest.pool) == ("x", "migrate", ("z",), "e", "p")


HOSTILE = [
    "\n",
    "local-zfs:vm-100-disk-0\n",
    "local-zfs:vm-100-disk-0\x1b[2J",
    "/dev/sd\u202ea",
    "local-zfs:vm-100-disk-0,size=1\nG",
    "a\udc80:b",
    "local-zfs:-r",
    "local-zfs:vm-100--r",
    "none\n",
    "=" * 1000,
    "," * 1000,
    "local-zfs:" + "x/" * 1000,
    "local-zfs:vm-100-disk-0,\x00=1",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(("kind", "key"), [("vm", "scsi0"), ("ct", "mp0"), ("ct", "rootfs")])
def test_hostile_values_neither_crash_nor_reach_zfs_nor_break_lines(text: str, kind: str, key: str) -> None:
    make = vm if kind == "vm" else ct
    guest = found(make({key: text}, pending={key: text + "x"}), listing(DISK0))
    for disk in guest.disks:
        assert disk.volid.isprintable()
        assert disk.reason.isprintable()
        assert disk.dataset in {None, DISK0}
    assert all(note.isprintable() for note in guest.notes)
