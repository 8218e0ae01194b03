"""Proxmox's own snapshots: create, delete, roll back, with real `zfs` (pve-facts §c; pve-observed "Holds")."""

import re
import time
from typing import Any

from fakepve.model import PveError

from .api_guests import check_lock
from .etc import GuestConf
from .node import Node, Values, api
from .tasks import Task
from .values import DRIVE, props

_LEFT_OUT = ("parent", "lock", "digest", "description", "vmstate", "snapstate", "snaptime")


def _volumes(node: Node, conf: GuestConf) -> list[tuple[str, str, str]]:
    """(key, volid, dataset) of what Proxmox snapshots: no CD-ROM, no unusedN, `backup=0` included."""
    out = []
    stores = node.etc.storages()
    for key, text in sorted(conf.main.items()):
        drive = conf.kind == "qemu" and DRIVE.match(key)
        mount = conf.kind == "lxc" and re.fullmatch(r"rootfs|mp\d+", key)
        if not (drive or mount) or "media=cdrom" in text:
            continue
        volid = props(text, "file" if drive else "volume").get("file" if drive else "volume", "")
        sid, _, name = volid.partition(":")
        if sid not in stores:
            continue
        if stores[sid]["type"] != "zfspool":
            raise PveError(500, "snapshot feature is not available")
        out.append((key, volid, f"{stores[sid]['pool']}/{name.rpartition('/')[2]}"))
    return out


def _types(kind: str) -> str:
    return "qm" if kind == "qemu" else "vz"


def _create(node: Node, kind: str, v: Values, who: str) -> Any:
    vmid, name = int(v["vmid"]), v["snapname"]
    node.etc.conf(kind, vmid)
    if name == "current":
        raise PveError(500, "unable to use snapshot name 'current' (reserved name)")

    def body(task: Task) -> None:
        conf = node.etc.conf(kind, vmid)
        check_lock(conf)
        if name in conf.snapshots:
            raise PveError(500, f"snapshot name '{name}' already used")
        volumes = _volumes(node, conf)
        section = {k: x for k, x in conf.main.items() if k not in _LEFT_OUT and not k.startswith("unused")}
        section["snaptime"] = str(int(time.time()))
        section |= {"description": v["description"]} if v.get("description") else {}
        section |= {"parent": conf.main["parent"]} if "parent" in conf.main else {}
        for key, volid, dataset in volumes:
            if kind == "qemu":
                task.log.append(f"snapshotting 'drive-{key}' ({volid})")
            node.zfs("snapshot", f"{dataset}@{name}")
        conf = node.etc.conf(kind, vmid)
        conf.snapshots[name] = section
        conf.main["parent"] = name
        node.etc.save(vmid, conf)
    return node.tasks.start(f"{_types(kind)}snapshot", str(vmid), who, body)


def _delete(node: Node, kind: str, v: Values, who: str) -> Any:
    vmid, name = int(v["vmid"]), v["snapname"]

    def body(task: Task) -> None:
        conf = node.etc.conf(kind, vmid)
        check_lock(conf)
        if name not in conf.snapshots:
            raise PveError(500, f"snapshot '{name}' does not exist")
        conf.main["lock"] = "snapshot-delete"
        conf.snapshots[name]["snapstate"] = "delete"
        node.etc.save(vmid, conf)
        # A refusal (a hold) leaves lock and snapstate behind, as pve-observed saw.
        for _key, _volid, dataset in _volumes(node, conf):
            node.zfs("destroy", f"{dataset}@{name}")
        parent = conf.snapshots.pop(name).get("parent")
        for keys in (conf.main, *conf.snapshots.values()):
            if keys.get("parent") == name:
                keys.pop("parent")
                keys.update({"parent": parent} if parent else {})
        conf.main.pop("lock")
        node.etc.save(vmid, conf)
    return node.tasks.start(f"{_types(kind)}delsnapshot", str(vmid), who, body)


def _newest(node: Node, dataset: str) -> list[str]:
    lines = node.zfs("list", "-H", "-o", "name", "-s", "createtxg", "-t", "snapshot", "-r", dataset).splitlines()
    return [line.partition("@")[2] for line in lines]


def _rollback(node: Node, kind: str, v: Values, who: str) -> Any:
    vmid, name = int(v["vmid"]), v["snapname"]

    def body(task: Task) -> None:
        conf = node.etc.conf(kind, vmid)
        if name not in conf.snapshots:
            raise PveError(500, f"snapshot '{name}' does not exist")
        volumes = _volumes(node, conf)
        for _key, volid, dataset in volumes:
            present = _newest(node, dataset)
            if name not in present:
                raise PveError(500, f"can't rollback, snapshot '{name}' does not exist on '{volid}'")
            if present[-1] != name:
                raise PveError(500, f"can't rollback, '{name}' is not most recent snapshot on '{volid}'")
        check_lock(conf)
        if node.running(kind, vmid):
            raise PveError(500, "the lab rolls back stopped guests only")
        conf.main["lock"] = "rollback"
        node.etc.save(vmid, conf)
        # A newer bookmark passes the check above and makes this fail: the lock stays (pve-facts §0.1).
        for _key, _volid, dataset in volumes:
            node.zfs("rollback", f"{dataset}@{name}")
        keep = {k: x for k, x in conf.main.items() if k.startswith("unused")}
        section = {k: x for k, x in conf.snapshots[name].items() if k not in _LEFT_OUT}
        conf.main = {**section, **keep, "parent": name}
        conf.pending = {}
        node.etc.save(vmid, conf)
    return node.tasks.start(f"{_types(kind)}rollback", str(vmid), who, body)


@api("POST", "/nodes/{node}/qemu/{vmid}/snapshot")
def vm_create(node: Node, v: Values, who: str) -> Any:
    """Snapshot a VM, one `zfs snapshot` per disk."""
    return _create(node, "qemu", v, who)


@api("POST", "/nodes/{node}/lxc/{vmid}/snapshot")
def ct_create(node: Node, v: Values, who: str) -> Any:
    """Snapshot a container."""
    return _create(node, "lxc", v, who)


@api("DELETE", "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}")
def vm_delete(node: Node, v: Values, who: str) -> Any:
    """Delete a VM's snapshot."""
    return _delete(node, "qemu", v, who)


@api("DELETE", "/nodes/{node}/lxc/{vmid}/snapshot/{snapname}")
def ct_delete(node: Node, v: Values, who: str) -> Any:
    """Delete a container's snapshot."""
    return _delete(node, "lxc", v, who)


@api("POST", "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback")
def vm_rollback(node: Node, v: Values, who: str) -> Any:
    """Roll a stopped VM back."""
    return _rollback(node, "qemu", v, who)


@api("POST", "/nodes/{node}/lxc/{vmid}/snapshot/{snapname}/rollback")
def ct_rollback(node: Node, v: Values, who: str) -> Any:
    """Roll a stopped container back."""
    return _rollback(node, "lxc", v, who)
