"""The vmid is a guest's already: what stands in the way of a restore, and the ways around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pve_zfsbackup.model import Conflict, GuestKind, Vmid
from pve_zfsbackup.model.restore import Wish

AS: Final = "--as makes a copy: name a vmid"
_FOLDERS: Final = {GuestKind.VM: "qemu-server", GuestKind.CT: "lxc"}  # below /etc/pve/nodes/NODE


def guest_exists(vmid: Vmid, message: str, owners: Mapping[Vmid, str]) -> Conflict:
    """Here, and nobody said that it may be replaced."""
    free = next(other for other in range(vmid + 1, vmid + len(owners) + 2) if other not in owners)
    hint = f"--as {free} makes a copy beside it; --replace {vmid} takes its place and keeps its disks aside"
    return Conflict(kind="guest-exists", object=f"guest {vmid}", message=message, resolve=hint)


def guest_elsewhere(wish: Wish, kind: GuestKind, owner: str, wanted: str, *, offline: bool) -> Conflict:
    """On another node than the one that is to have it. Of one that is lost the cluster keeps the configurations; to
    move such a file is how Proxmox takes a guest over (pve-facts §h), and only a person knows that it does not run."""
    vmid, message = wish.new, f"is on node {owner}"
    if offline:
        places = [f"/etc/pve/nodes/{node}/{_FOLDERS[kind]}/" for node in (owner, wanted)]
        message += ", which is offline"
        way = f"if {owner} is off for certain: `mv {places[0]}{vmid}.conf {places[1]}`, then --replace {vmid}"
        hint = f"{way}; {AS}" if vmid == wish.vmid else AS
    else:
        hint = f"--node {owner} tells how it is restored there; {AS}"
    return Conflict(kind="guest-elsewhere", object=f"guest {vmid}", message=message, resolve=hint)
