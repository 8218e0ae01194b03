"""The configuration with which a point's guest is started for a drill: what it needs to come up, and nothing that
reaches beyond it. Made of what is known to be harmless: a point on a target is as its source wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model import GuestKind, PointId, Vmid
from pve_zfsbackup.model.boot import TAG, boot_mark
from pve_zfsbackup.plan.discovery import disk_keys, parse_agent
from pve_zfsbackup.plan.guest_config import Fresh, settings

# No net, usb, hostpci, virtiofs, parallel, audio, args, hookscript, cloud-init, cdrom, startup, lock, snapshots.
_KEPT: Final = frozenset(
    ["acpi", "agent", "arch", "balloon", "bios", "bootdisk", "cores", "cpu", "kvm", "localtime", "machine", "memory",
     "ostype", "scsihw", "sockets", "tablet", "vcpus", "vga"]
)  # fmt: skip
_OF_DISKS: Final = frozenset(
    ["discard", "efitype", "iothread", "ms-cert", "pre-enrolled-keys", "product", "queues", "serial", "size", "ssd",
     "vendor", "version", "wwn"]
)  # fmt: skip
_UUID: Final = re.compile(r"uuid=([0-9a-fA-F-]{36})")
DEFAULT_MEMORY: Final = 512  # MiB (qm.conf(5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootable:
    """What is started. `memory` in bytes."""

    text: str
    memory: int


def bootable(conf: str, *, vmid: Vmid, point: PointId, devices: Mapping[str, str], seed: bytes) -> Bootable | str:
    """The configuration of a VM's point for the guest `vmid`, with clones for its disks (key to device); a string says
    why it cannot be seen to come up."""
    known = settings(conf.partition("\n[")[0])
    if not parse_agent(known.get("agent", "")).enabled:
        return "not booted: it has no guest agent, which would tell that it came up"
    disks = [key for key in disk_keys(GuestKind.VM, known) if key in devices]
    if lost := sorted(devices.keys() - set(disks)):
        return f"not booted: its configuration does not have {', '.join(lost)}"
    memory = re.fullmatch(r"(?:current=)?(\d{1,9})", known.get("memory", str(DEFAULT_MEMORY)).partition(",")[0])
    if memory is None:
        return f"not booted: its memory is not understood: {known['memory']!r}"
    fresh = Fresh(seed=seed, copy=True)
    lines = [boot_mark(vmid, point), f"name: drill-{vmid}", f"tags: {TAG}", "onboot: 0"]
    lines += [f"{key}: {known[key]}" for key in sorted(_KEPT & known.keys())]
    lines += _identity(known, fresh)
    lines += [f"boot: {order}" for order in _order(known.get("boot", ""), disks)]
    lines += [f"{key}: {value}" for key, value in known.items() if re.fullmatch(r"serial\d", key) and value == "socket"]
    lines += [f"{key}: {_drive(key, known[key], devices[key])}" for key in disks]
    return Bootable(text="\n".join(lines) + "\n", memory=int(memory[1]) << 20)


def _identity(known: Mapping[str, str], fresh: Fresh) -> Iterator[str]:
    if "smbios1" in known:
        yield "smbios1: " + _UUID.sub(f"uuid={fresh.uuid('smbios1')}", known["smbios1"])
    if known.get("vmgenid", "0") != "0":
        yield f"vmgenid: {fresh.uuid('vmgenid')}"


def _order(value: str, disks: list[str]) -> Iterator[str]:
    """Only of disks that are there."""
    if value.startswith("order="):
        left = [key for key in value.removeprefix("order=").split(";") if key in disks]
        yield "order=" + ";".join(left) if left else f"order={disks[0]}"


def _drive(key: str, value: str, device: str) -> str:
    """A drive with the clone in place of its volume. Proxmox takes the path of a device, and asks its format only of
    efidisk0 (OVMF.pm)."""
    options = [part for part in value.split(",") if part.partition("=")[0] in _OF_DISKS]
    options += ["format=raw"] if key.startswith("efidisk") else []
    return ",".join([device, *options])
