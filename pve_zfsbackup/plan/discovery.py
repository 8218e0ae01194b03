"""From what the API says about guests to what can be protected, disk by disk, with the reason where not.

Judged is what runs (the current configuration); what the next start changes becomes a note. The rules are
Proxmox's own, as far as it has any (pve-facts §b, §c).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from pve_zfsbackup.model import (
    Agent,
    Dataset,
    Disk,
    Guest,
    GuestKind,
    Listing,
    RawGuest,
    Storage,
    printable,
)
from pve_zfsbackup.plan.properties import parse_bool, parse_properties, parse_size
from pve_zfsbackup.plan.volumes import Volumes

_VM_KEY: Final = re.compile(r"(ide|sata|scsi|virtio|efidisk|tpmstate|unused)(0|[1-9][0-9]{0,2})\Z")
_CT_KEY: Final = re.compile(r"(mp|unused)(0|[1-9][0-9]{0,2})\Z")
_LAST: Final = {
    "ide": 3,
    "sata": 5,
    "scsi": 30,
    "virtio": 15,
    "efidisk": 0,
    "tpmstate": 0,
    "unused": 255,
    "mp": 255,
}
_CLOUD_INIT: Final = re.compile(r"[:/](?:vm-[0-9]+-)?cloudinit(?:\.(?:raw|qcow2|vmdk))?\Z")
_PASSED: Final = re.compile(r"(?:hostpci|usb)[0-9]{1,2}\Z")
_SPICE: Final = re.compile(r"(?:host=)?spice(?:,|\Z)", re.IGNORECASE)
_DRIVES: Final = re.compile(  # options of qemu-system(1) that bring a block device
    r"(?:\A|\s)--?(?:drive|blockdev|hd[a-d]|sd|mtdblock|pflash|device\s+\S*(?:drive=|-blk))"
)
_FREEZE_KEYS: Final = ("freeze-fs", "freeze-fs-on-backup", "guest-fsfreeze")


def discover(
    raw: Sequence[RawGuest], storages: Mapping[str, Storage], listing: Listing, node: str
) -> tuple[Guest, ...]:
    """The guests of this node by vmid, their disks judged. Guests of other nodes are left out: their disks are
    on those nodes, and the configuration there decides."""
    volumes = Volumes(storages=storages, listing=listing, node=node)
    own = sorted((guest for guest in raw if guest.node == node), key=lambda guest: guest.vmid)
    return tuple(_guest(guest, volumes) for guest in own)


def _guest(raw: RawGuest, volumes: Volumes) -> Guest:
    disks = _without_doubles([_disk(raw, key, volumes) for key in disk_keys(raw.kind, raw.config)])
    running = raw.status == "running"
    return Guest(
        vmid=raw.vmid,
        kind=raw.kind,
        node=raw.node,
        name=raw.name or raw.config.get("name", "") or raw.config.get("hostname", ""),
        running=running,
        # Whatever QEMU is doing instead of running, the guest cannot answer meanwhile.
        paused=running and raw.qmp_status not in {"", "running"},
        template=raw.template or parse_bool(raw.config.get("template", "")) is True,
        lock=raw.lock or raw.config.get("lock", ""),
        pool=raw.pool,
        tags=raw.tags or tuple(tag for tag in re.split(r"[;, ]+", raw.config.get("tags", "")) if tag),
        agent=parse_agent(raw.config.get("agent", "")) if raw.kind is GuestKind.VM else Agent(),
        disks=disks,
        digest=raw.digest or raw.config.get("digest", ""),
        notes=(*_notes(raw), *_clone_notes(disks, volumes), *_pending_notes(raw)),
        trouble=raw.trouble,
    )


def disk_keys(kind: GuestKind, keys: Mapping[str, object]) -> list[str]:
    """The keys of a guest's configuration that name disks, in the order people expect: scsi2 before scsi10."""
    found: list[tuple[bool, str, int]] = []
    for key in keys:
        match = (_VM_KEY if kind is GuestKind.VM else _CT_KEY).match(key)
        if match and int(match[2]) <= _LAST[match[1]]:
            found.append((match[1] == "unused", match[1], int(match[2])))
    root = ["rootfs"] if kind is GuestKind.CT and "rootfs" in keys else []
    return root + [f"{name}{number}" for _, name, number in sorted(found)]


def parse_agent(text: str) -> Agent:
    """The `agent` option. Not understood or switched off: no agent, as Proxmox has it."""
    try:
        values = parse_properties(text, default="enabled")
    except ValueError:
        return Agent()
    freeze = [parse_bool(values[key]) for key in _FREEZE_KEYS if key in values]
    if parse_bool(values.get("enabled", "")) is not True or None in freeze:
        return Agent()
    return Agent(enabled=True, freeze=False not in freeze)


def _disk(raw: RawGuest, key: str, volumes: Volumes) -> Disk:
    """One disk. The first reason that applies is told, an administrator's own decision before any other."""
    text = raw.config[key]
    vm = raw.kind is GuestKind.VM
    try:
        values = parse_properties(text, default="file" if vm else "volume", alias="volume" if vm else "")
        volid = values.get("file" if vm else "volume", "")
        if not volid:
            raise ValueError("no volume is named")
        backup = parse_bool(values["backup"]) if "backup" in values else not key.startswith("mp")
        if backup is None:
            raise ValueError("backup is neither 0 nor 1")
    except ValueError as error:
        return Disk(key=key, volid=printable(text), reason=f"not understood: {error}")
    disk = Disk(key=key, volid=printable(volid), size=parse_size(values.get("size", "")))
    reason = _not_a_volume(volid, values) if vm else _host_path(volid)
    if reason:
        return replace(disk, reason=reason)
    disk = volumes.locate(disk, raw.vmid)
    own = _unwanted(raw, key, backup=backup)
    return replace(disk, reason=own, lost=False) if own else disk


def _not_a_volume(volid: str, values: Mapping[str, str]) -> str:
    """Why a drive of a VM holds nothing to protect, or "" when it may."""
    if _CLOUD_INIT.search(volid):
        return "cloud-init drive, regenerated by Proxmox"
    if volid == "none":
        return "empty drive"
    if volid == "cdrom" or values.get("media") == "cdrom":
        return "CD-ROM"
    if volid.startswith("/dev/"):
        return f"device of the host passed through: {printable(volid)}"
    return f"file of the host, not on a storage: {printable(volid)}" if volid.startswith("/") else ""


def _host_path(volid: str) -> str:
    """Why a mount point of a container is not a volume, or ""."""
    if volid.startswith("/dev/"):
        return f"device of the host: {printable(volid)}"
    return f"bind mount of the host's directory {printable(volid)}" if volid.startswith("/") else ""


def _unwanted(raw: RawGuest, key: str, *, backup: bool) -> str:
    """Why a disk is left out by the guest's configuration, or ""."""
    if key.startswith("unused"):
        return "not attached"
    if not backup and key.startswith("mp"):
        return "backup=1 is not set on this mount point"
    if not backup:
        return "backup=0 is set on this disk"
    if key == "efidisk0" and raw.config.get("bios", "seabios") != "ovmf":
        return "EFI disk that is not used: bios is not ovmf"
    return ""


def _without_doubles(disks: Sequence[Disk]) -> tuple[Disk, ...]:
    """A volume that is there twice is one volume: `zfs snapshot` refuses the same name twice."""
    first: dict[Dataset, str] = {}
    result = []
    for disk in disks:
        if disk.protected and disk.dataset is not None:
            other = first.setdefault(disk.dataset, disk.key)
            result.append(disk if other == disk.key else replace(disk, reason=f"the same volume as {other}"))
        else:
            result.append(disk)
    return tuple(result)


def _notes(raw: RawGuest) -> list[str]:
    notes = []
    if raw.template or parse_bool(raw.config.get("template", "")):
        notes.append("template: its disks do not change")
    if raw.config.get("vmstate"):
        notes.append("the saved RAM state is not part of a point")
    for key in sorted(raw.config):
        if re.fullmatch(r"virtiofs[0-9]", key):
            notes.append(f"{key} shares a directory of the host, which is not protected")
        elif raw.kind is GuestKind.VM and _PASSED.match(key) and not _SPICE.match(raw.config[key]):
            notes.append(f"{key} passes a device of the host through: what is on its disks is not protected")
        elif raw.kind is GuestKind.VM and key == "args" and _DRIVES.search(raw.config[key]):
            notes.append("args gives QEMU drives that Proxmox does not know, and which are not protected")
        elif key == "lxc" and "lxc.mount.entry" in raw.config[key]:  # the raw lines come as one list
            notes.append("lxc.mount.entry mounts paths of the host, which are not protected")
    return notes


def _clone_notes(disks: Sequence[Disk], volumes: Volumes) -> list[str]:
    return [f"{disk.key} is a linked clone of {base}" for disk in disks if (base := volumes.base(disk))]


def _pending_notes(raw: RawGuest) -> list[str]:
    """What the next start changes about disks and freezing. Protection follows only then."""
    notes = []
    watched = [*disk_keys(raw.kind, {**raw.config, **raw.pending}), "agent", "bios"]
    for key in watched:
        if key not in raw.pending:
            continue
        new, old = raw.pending[key], raw.config.get(key)
        if new == old:
            continue
        if new is None:
            notes.append(f"{key} is removed at the next start")
        else:
            verb = "is added" if old is None else "changes"
            notes.append(f"{key} {verb} at the next start: {printable(new)}")
    return notes
