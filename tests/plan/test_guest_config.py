"""A point's configuration made to fit the guest that is made of it: what goes, what stays, what is new."""

from __future__ import annotations

import pytest

from pve_zfsbackup.model import GuestKind, Vmid
from pve_zfsbackup.plan.guest_config import Fresh, exchange, rewrite, settings, with_lock, with_volume, without_lock

VM_TEXT = """\
#what it is for%3A net0%3A no setting
boot: order=scsi0;net0
ide0: local:iso/debian.iso,media=cdrom,size=600M
ide2: local-zfs:vm-100-cloudinit,media=cdrom
lock: backup
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1
onboot: 1
parent: before
scsi0: local-zfs:base-100-disk-0/vm-100-disk-0,discard=on,size=32G
scsi1: cache=none,file=fast:vm-100-disk-0,size=8G
scsi2: local-zfs:vm-100-disk-7,backup=0,size=1G
smbios1: uuid=d9abdc5d-97db-4c1b-935b-c7bad4710de2,manufacturer=x
unused0: local-zfs:vm-100-disk-9
vmgenid: 4a05be89-55c4-41e4-9981-2ea867e934f3
"""
VOLIDS = {"scsi0": "local-zfs:vm-300-disk-0", "scsi1": "slow:vm-300-disk-0"}
SAME = Fresh(seed=b"1", copy=False)
COPY = Fresh(seed=b"1", copy=True)


def made(fresh: Fresh, kept: frozenset[str] = frozenset()) -> dict[str, str]:
    return settings(rewrite(GuestKind.VM, VM_TEXT, vmid=Vmid(300), volids=VOLIDS, kept=kept, fresh=fresh).text)


def test_disks_get_their_new_volumes_and_keep_their_options() -> None:
    found = made(SAME)
    assert found["scsi0"] == "local-zfs:vm-300-disk-0,discard=on,size=32G", "no linked clone any more"
    assert found["scsi1"] == "cache=none,file=slow:vm-300-disk-0,size=8G"


def test_what_proxmox_itself_strips_goes_and_the_rest_stays() -> None:
    found = made(SAME)
    assert not {"lock", "parent", "unused0"} & found.keys()
    assert found["boot"] == "order=scsi0;net0"
    assert found["ide0"].startswith("local:iso/debian.iso"), "a CD-ROM is no disk of the guest's"
    assert rewrite(GuestKind.VM, VM_TEXT, vmid=Vmid(300), volids=VOLIDS, kept=frozenset(), fresh=SAME).text.startswith(
        "#what it is for%3A net0%3A no setting\n"
    )


def test_volumes_that_were_not_restored_stay_only_where_the_guest_has_them() -> None:
    left = rewrite(GuestKind.VM, VM_TEXT, vmid=Vmid(300), volids=VOLIDS, kept=frozenset(), fresh=SAME)
    assert not {"scsi2", "ide2"} & settings(left.text).keys()
    assert [note.partition(":")[0] for note in left.notes] == ["ide2", "scsi2"]
    kept = made(SAME, frozenset({"local-zfs:vm-100-disk-7", "local-zfs:vm-100-cloudinit"}))
    assert {"scsi2", "ide2"} <= kept.keys()


def test_a_replacement_keeps_its_addresses_and_a_copy_gets_its_own() -> None:
    was, same, copy = settings(VM_TEXT), made(SAME), made(COPY)
    assert (same["net0"], same["smbios1"], same["onboot"]) == (was["net0"], was["smbios1"], "1")
    assert same["vmgenid"] != was["vmgenid"], "time was turned back for it, too"
    assert copy["net0"].startswith("virtio=BC:24:11:")
    assert copy["net0"].endswith(",bridge=vmbr0,firewall=1")
    assert copy["net0"] != was["net0"]
    assert copy["smbios1"] != was["smbios1"]
    assert copy["smbios1"].endswith(",manufacturer=x")
    assert "onboot" not in copy
    off = rewrite(GuestKind.VM, "vmgenid: 0\n", vmid=Vmid(300), volids={}, kept=frozenset(), fresh=COPY)
    assert settings(off.text) == {"vmgenid": "0"}, "switched off stays off"


def test_a_container_keeps_bind_mounts_and_gets_new_hardware_addresses() -> None:
    text = (
        "rootfs: local-zfs:subvol-200-disk-0,size=8G\nmp0: /srv/share,mp=/mnt\nmp1: local-zfs:subvol-200-disk-1,mp=/x\n"
        "net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:3D:11:40,ip=dhcp\nlxc.mount.entry: /a b none bind 0 0\n"
    )
    volids = {"rootfs": "local-zfs:subvol-300-disk-0"}
    found = rewrite(GuestKind.CT, text, vmid=Vmid(300), volids=volids, kept=frozenset(), fresh=COPY)
    lines = settings(found.text)
    assert lines["rootfs"] == "local-zfs:subvol-300-disk-0,size=8G"
    assert lines["mp0"] == "/srv/share,mp=/mnt"
    assert "mp1" not in lines
    assert "BC:24:11:3D:11:40" not in lines["net0"]
    assert lines["lxc.mount.entry"] == "/a b none bind 0 0"


def exchanged(text: str, volids: dict[str, str], origin: str = "") -> str:
    made = exchange(GuestKind.VM, text, volids, origin)
    assert made.notes == ()
    return made.text


def test_one_disk_is_exchanged_and_everything_else_left() -> None:
    assert exchanged("scsi0: a:b,size=1G\nname: x\n", {"scsi0": "c:d"}, "") == "scsi0: c:d,size=1G\nname: x\n"
    gone = exchanged("name: x\n", {"scsi1": "c:d"}, "scsi1: a:b,size=2G\n")
    assert gone == "name: x\nscsi1: c:d,size=2G\n"
    assert with_volume("", "c:d") == "c:d"


CURRENT = "name: x\nparent: b\nscsi0: a:vm-1-disk-0,size=1G\nscsi1: a:vm-1-disk-1,size=1G\n"
PENDING = "\n[PENDING]\nmemory: 512\n"
BEFORE = "\n[a]\nscsi0: a:vm-1-disk-0,size=1G\n\n[b]\n#[c]\nparent: a\nscsi0: a:vm-1-disk-0,size=1G\nsnaptime: 2\n"


def test_proxmoxs_snapshots_stay_where_none_is_of_the_disk_that_is_exchanged() -> None:
    made = exchanged(CURRENT + PENDING + BEFORE, {"scsi1": "a:vm-1-disk-2"})
    assert made == CURRENT.replace("vm-1-disk-1", "vm-1-disk-2") + PENDING + BEFORE


def test_with_a_disk_of_one_of_them_all_go_and_are_named() -> None:
    made = exchange(GuestKind.VM, CURRENT + PENDING + BEFORE, {"scsi0": "a:vm-1-disk-2"}, "")
    assert made.text == CURRENT.replace("vm-1-disk-0", "vm-1-disk-2").replace("parent: b\n", "") + PENDING
    (note,) = made.notes
    assert note.startswith("Proxmox's snapshots of the guest (a, b) are left out")


@pytest.mark.parametrize("change", ["scsi0: a:vm-1-disk-7", "delete: memory,!scsi0", "unused0: a:vm-1-disk-0"])
def test_a_pending_change_of_the_disk_would_undo_it_and_goes(change: str) -> None:
    made = exchange(GuestKind.VM, f"{CURRENT}\n[PENDING]\n{change}\n", {"scsi0": "a:vm-1-disk-2"}, "")
    assert made.text == CURRENT.replace("vm-1-disk-0", "vm-1-disk-2")
    assert made.notes == ("pending changes of the configuration ([PENDING]) are of a disk that is exchanged: left out",)


def test_a_lock_comes_into_the_current_section_and_goes_again() -> None:
    for text in ("name: x\n", "name: x\n\n[before]\nlock: none of ours\nname: y\n", "#lock: no\nname: x\n"):
        locked = with_lock(text, "rollback")
        assert settings(locked.partition("\n[")[0])["lock"] == "rollback"
        assert without_lock(locked) == text
        assert with_lock(locked, "rollback") == locked
