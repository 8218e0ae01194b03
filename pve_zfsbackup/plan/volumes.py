"""From a volume id (`local-zfs:base-100-disk-0/vm-101-disk-0`) to the dataset behind it (pve-facts §b, §c)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from pve_zfsbackup.model import SUSPENDED, Dataset, Disk, Listing, Storage, Vmid

_VOLID: Final = re.compile(r"([a-z][a-z0-9\-_.]*[a-z0-9]):(.+)\Z", re.IGNORECASE)
_VOLUME: Final = re.compile(r"(vm|base|subvol|basevol)-([1-9][0-9]{2,8})-([A-Za-z0-9][A-Za-z0-9_.:-]*)\Z")
_ZVOLS: Final = frozenset({"vm", "base"})


def owner_of_volume(volid: str) -> Vmid | None:
    """The guest a volume belongs to by its name; None for what is no volume of a guest (a path, an ISO image)."""
    parts = _VOLUME.match(volid.rpartition("/")[2].rpartition(":")[2])
    return Vmid(int(parts[2])) if parts and ":" in volid else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """What is known about storages and datasets of one node."""

    storages: Mapping[str, Storage]
    listing: Listing
    node: str

    def locate(self, disk: Disk, owner: Vmid) -> Disk:
        """The disk with storage, volume and dataset, or with the reason why there is none to protect."""
        match = _VOLID.match(disk.volid)
        if not match:
            return replace(disk, reason="not understood: not a volume id")
        storage_id, path = match[1], match[2]
        name = path.rpartition("/")[2]
        disk = replace(disk, storage=storage_id, volume=name)
        storage = self.storages.get(storage_id)
        reason = self._storage_reason(storage_id, storage)
        if reason or storage is None:  # a ZFS storage that is switched off for a while has the disk still
            there = storage is None or (storage.type == "zfspool" and bool(storage.pool))
            return replace(disk, reason=reason, lost=there)
        parts = _VOLUME.match(name)
        if not parts:
            return replace(disk, reason=f"not a volume name of Proxmox: {name}")
        return self._on_zfs(disk, Dataset(f"{storage.pool}/{name}"), parts, owner)

    def base(self, disk: Disk) -> str:
        """What a linked clone was made from, as ZFS says; "" for any other disk."""
        volume = self.listing.volumes.get(disk.dataset) if disk.dataset is not None else None
        return volume.origin if volume is not None and volume.origin != "-" else ""

    def _storage_reason(self, name: str, storage: Storage | None) -> str:
        if storage is None:
            return f"storage {name} is not known, or may not be seen"
        if storage.type != "zfspool":
            local = " on this node" if storage.type == "zfs" else ""  # that one is ZFS over iSCSI
            return f"storage {name} is of type {storage.type}, not ZFS{local}"
        if storage.disabled:
            return f"storage {name} is disabled"
        if storage.nodes and self.node not in storage.nodes:
            return f"storage {name} is not available on node {self.node}"
        return "" if storage.pool else f"storage {name} names no pool"

    def _on_zfs(self, disk: Disk, dataset: Dataset, parts: re.Match[str], owner: Vmid) -> Disk:
        volume = self.listing.volumes.get(dataset)
        if volume is None and self.listing.health.get(dataset.partition("/")[0]) == SUSPENDED:
            return replace(disk, reason=f"pool {dataset.partition('/')[0]} is suspended", lost=True)
        if volume is None:
            return replace(disk, reason=f"dataset {dataset} does not exist", lost=True)
        disk = replace(disk, dataset=dataset)
        if int(parts[2]) != owner:
            return replace(disk, reason=f"belongs to guest {parts[2]} by its name")
        if parts[3].startswith("state-"):
            return replace(disk, reason="RAM state of a snapshot, not a disk")
        if parts[3].startswith("fleece-"):
            return replace(disk, reason="temporary fleecing image of a backup")
        if (volume.type == "volume") != (parts[1] in _ZVOLS):
            return replace(disk, reason=f"{dataset} is a {volume.type}, which its name does not say")
        return disk
