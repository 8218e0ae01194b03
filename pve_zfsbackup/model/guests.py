"""Guests and their disks, as Proxmox configures them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pve_zfsbackup.model.names import Dataset, Vmid


class GuestKind(StrEnum):
    VM = "qemu"
    CT = "lxc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The `agent:` option of a VM (pve-facts §b); containers have none."""

    enabled: bool = False
    freeze: bool = True  # freeze-fs, freeze-fs-on-backup and guest-fsfreeze are all honoured


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One volume of a guest's configuration and whether we can protect it.

    `dataset` is set only when the volume lies on a ZFS storage of this node and exists there.
    `reason` says why it is not protected; empty when it is. `lost`: the reason is no decision of an administrator
    and no property of the disk, but something that should be there and is not seen: a pool that is not imported, a
    storage that the API's token may not see. `excluded`: a job leaves it out.
    """

    key: str
    volid: str
    storage: str = ""
    volume: str = ""  # vm-100-disk-0, the last part of the volid
    dataset: Dataset | None = None
    size: int = 0
    reason: str = ""
    lost: bool = False
    excluded: bool = False

    @property
    def protected(self) -> bool:
        return self.dataset is not None and not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A virtual machine or container as configured now on the node that owns it."""

    vmid: Vmid
    kind: GuestKind
    node: str
    name: str
    running: bool
    paused: bool = False
    template: bool = False
    lock: str = ""
    pool: str = ""
    tags: tuple[str, ...] = ()
    agent: Agent = Agent()
    disks: tuple[Disk, ...] = ()
    digest: str = ""  # sha1 of the config file, as PVE computes it
    notes: tuple[str, ...] = ()  # what an administrator should know, e.g. pending changes
    trouble: str = ""  # why nothing is known of its disks: its configuration could not be read

    @property
    def hibernated(self) -> bool:
        """Suspended to disk: nothing runs, but what it had in memory lies in a volume of its own (pve-facts §b)."""
        return self.lock == "suspended"

    @property
    def protected_disks(self) -> tuple[Disk, ...]:
        return tuple(disk for disk in self.disks if disk.protected)

    @property
    def to_protect(self) -> bool:
        """Whether points of it are expected: also where nobody could read which disks it has."""
        return bool(self.protected_disks or self.trouble)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawGuest:
    """A guest as the Proxmox API answers, before anybody judged its disks (`plan.discovery` does).

    `config` is what runs (`current=1`), every value as text; `pending` holds what the next start changes:
    key -> new value, or None where the key is deleted (pve-facts §a).
    """

    vmid: Vmid
    kind: GuestKind
    node: str
    name: str = ""
    status: str = "stopped"
    config: Mapping[str, str] = field(default_factory=dict)
    pending: Mapping[str, str | None] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    pool: str = ""
    lock: str = ""
    template: bool = False
    qmp_status: str = ""  # "" when unknown; a paused VM has the status "running"
    digest: str = ""
    trouble: str = ""  # the error that came instead of `config`


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """An entry of storage.cfg (pve-facts §c). `nodes` empty means every node; `pool` only for zfspool."""

    id: str
    type: str
    pool: str = ""
    nodes: frozenset[str] = frozenset()
    disabled: bool = False
    mountpoint: str = ""
    content: frozenset[str] = frozenset()
