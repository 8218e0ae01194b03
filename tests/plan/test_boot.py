"""With what configuration a guest of a drill is started."""

from __future__ import annotations

import re

import pytest

from pve_zfsbackup.model import PointId, Vmid
from pve_zfsbackup.model.boot import boot_mark, is_marked
from pve_zfsbackup.plan.boot import Bootable, bootable
from pve_zfsbackup.plan.guest_config import settings

POINT = PointId("100/20261126T110000Z-ab12")
CONF = """\
#a guest of ours
agent: 1,fstrim_cloned_disks=1
args: -device evil
audio0: device=ich9-intel-hda,driver=spice
bios: ovmf
boot: order=ide2;scsi0;net0
cicustom: user=local:snippets/x.yml
cores: 4
cpu: host
description: x
efidisk0: local-zfs:vm-100-disk-1,efitype=4m,pre-enrolled-keys=1,size=1M
hookscript: local:snippets/hook.pl
hostpci0: 0000:01:00,pcie=1
ide2: local-zfs:vm-100-cloudinit,media=cdrom
ivshmem: size=32,name=foo
lock: backup
machine: pc-q35-9.0
memory: 4096
name: web
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
onboot: 1
parallel0: /dev/parport0
protection: 1
scsi0: local-zfs:vm-100-disk-0,cache=unsafe,discard=on,iothread=1,size=32G,ssd=1,backup=1,replicate=0
scsihw: virtio-scsi-single
serial0: socket
serial1: /dev/ttyS0
smbios1: uuid=11111111-2222-3333-4444-555555555555,manufacturer=QQ==
startup: order=1
tags: prod
tpmstate0: local-zfs:vm-100-disk-2,size=4M,version=v2.0
unused0: local-zfs:vm-100-disk-9
usb0: host=1234:5678
virtiofs0: share
vmgenid: aaaaaaaa-2222-3333-4444-555555555555
watchdog: model=i6300esb,action=reset
[before]
net1: virtio=BC:24:11:00:00:02,bridge=vmbr0
scsi1: local-zfs:vm-100-disk-7
"""
DEVICES = {key: f"/dev/zvol/rpool/pve-zfsbackup-boot/x-{n}" for n, key in enumerate(("scsi0", "efidisk0", "tpmstate0"))}


def made(conf: str = CONF, devices: dict[str, str] = DEVICES) -> Bootable | str:
    return bootable(conf, vmid=Vmid(999_001), point=POINT, devices=devices, seed=b"s" * 16)


def test_nothing_of_it_reaches_beyond_the_guest() -> None:
    found = made()
    assert isinstance(found, Bootable)
    assert found.memory == 4 << 30
    own = settings(found.text)
    assert sorted(own) == sorted(
        ["agent", "bios", "boot", "cores", "cpu", "efidisk0", "machine", "memory", "name", "onboot", "scsi0", "scsihw",
         "serial0", "smbios1", "tags", "tpmstate0", "vmgenid"]
    )  # fmt: skip
    assert (own["name"], own["tags"], own["onboot"]) == ("drill-999001", "pve-zfsbackup-drill", "0")
    assert own["boot"] == "order=scsi0"
    assert "vmbr" not in found.text
    assert "local-zfs" not in found.text
    assert is_marked(found.text, Vmid(999_001))


def test_its_disks_are_the_clones_and_its_identity_is_new() -> None:
    found = made()
    assert isinstance(found, Bootable)
    own = settings(found.text)
    assert own["scsi0"] == f"{DEVICES['scsi0']},discard=on,iothread=1,size=32G,ssd=1"
    assert own["efidisk0"] == f"{DEVICES['efidisk0']},efitype=4m,pre-enrolled-keys=1,size=1M,format=raw"
    assert own["tpmstate0"] == f"{DEVICES['tpmstate0']},size=4M,version=v2.0"
    assert re.fullmatch(r"uuid=[0-9a-f-]{36},manufacturer=QQ==", own["smbios1"])
    assert "11111111" not in found.text
    assert "aaaaaaaa" not in found.text


@pytest.mark.parametrize(
    "value", ["local-zfs:x,file=/dev/sda", "file=/dev/sda", "volume=/dev/sda,size=1G", "/dev/sda,import-from=/dev/sdb"]
)
def test_a_point_cannot_name_a_device_of_the_host(value: str) -> None:
    """It comes from a source that may be anybody's by now."""
    found = made(re.sub(r"(?m)^scsi0: .*$", f"scsi0: {value}", CONF))
    assert isinstance(found, Bootable)
    assert "/dev/sd" not in found.text


def test_what_would_not_be_seen_to_come_up_is_not_started() -> None:
    for agent in ("agent: 0", "", "agent: enabled=0"):
        assert made(CONF.replace("agent: 1,fstrim_cloned_disks=1", agent)) == (
            "not booted: it has no guest agent, which would tell that it came up"
        )
    assert made(devices={**DEVICES, "scsi1": "/dev/x"}) == "not booted: its configuration does not have scsi1"
    assert made(CONF.replace("memory: 4096", "memory: much")) == "not booted: its memory is not understood: 'much'"
    assert made("") == "not booted: it has no guest agent, which would tell that it came up"


def test_only_a_guest_with_our_mark_and_its_own_vmid_is_ours() -> None:
    mark = boot_mark(Vmid(999_001), POINT)
    assert is_marked(f"{mark}\ncores: 1\n", Vmid(999_001))
    for text in (
        "", "cores: 1\n", f"cores: 1\n{mark}\n", f"#x{mark}\n", f"{mark}x\n", f" {mark}\n", mark.replace("as", "of")
    ):  # fmt: skip
        assert not is_marked(text, Vmid(999_001))
    assert not is_marked(f"{mark}\n", Vmid(999_002))  # a copy that somebody made of it
