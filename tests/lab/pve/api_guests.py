"""Guests: lists, status, configuration, pending changes, snapshots (pve-facts §a, §b; recordings https/, cli/)."""

import os
import time
from typing import Any

from fakepve.model import PveError

from .etc import GuestConf
from .node import Node, Values, api, parameter_error
from .values import agent_enabled, boot_disk, props, size, typed

# Options PVE changes on a running VM at once; others wait in [PENDING].
HOTPLUG = ("name", "description", "onboot", "tags", "protection", "hookscript", "startup", "agent", "lock")
PRESSURE = dict.fromkeys(("pressurecpufull", "pressurecpusome", "pressureiofull", "pressureiosome",
                          "pressurememoryfull", "pressurememorysome"), 0)


def _uptime(node: Node, vmid: int) -> int:
    return int(time.time() - (node.run_root / "qemu-server" / f"{vmid}.pid").stat().st_mtime)


def vm_status(node: Node, vmid: int, conf: GuestConf) -> dict[str, Any]:
    """The fields the VM list and status/current share."""
    main = conf.main
    disk = boot_disk(main)
    pid = node.pid(vmid)
    out: dict[str, Any] = {
        "vmid": vmid, "name": main.get("name", f"VM {vmid}"), "status": "running" if pid else "stopped",
        "cpu": 0, "cpus": int(main.get("sockets", 1)) * int(main.get("cores", 1)), "disk": 0,
        "maxdisk": size(props(main[disk]).get("size")) if disk else 0,
        "maxmem": int(props(main.get("memory", "512"), "current")["current"]) * 2**20,
        "mem": 0, "memhost": 0, "netin": 0, "netout": 0, "uptime": 0}
    if pid:
        out.update(PRESSURE, pid=pid, uptime=_uptime(node, vmid), mem=2**26, memhost=2**26)
    if main.get("template") == "1":
        out["template"] = 1
    return {**out, **{k: main[k] for k in ("lock", "tags") if k in main}}


def ct_status(node: Node, vmid: int, conf: GuestConf) -> dict[str, Any]:
    """The fields of the container list."""
    main = conf.main
    out: dict[str, Any] = {
        "vmid": vmid, "name": main.get("hostname", f"CT{vmid}"), "type": "lxc",
        "status": "running" if node.running("lxc", vmid) else "stopped",
        "cpu": 0, "cpus": int(main.get("cores") or os.cpu_count() or 1), "disk": 0, "diskread": 0, "diskwrite": 0,
        "maxdisk": size(props(main.get("rootfs", ""), "volume").get("size")),
        "maxmem": int(main.get("memory", 512)) * 2**20, "maxswap": int(main.get("swap", 512)) * 2**20,
        "mem": 0, "netin": 0, "netout": 0, "swap": 0, "uptime": 0}
    if main.get("template") == "1":
        out["template"] = 1
    return {**out, **{k: main[k] for k in ("lock", "tags") if k in main}}


def visible(node: Node, kind: str, who: str) -> list[tuple[int, GuestConf]]:
    """Guests of a kind whose VM.Audit the caller has."""
    out = []
    for vmid, found in node.etc.guests():
        if found == kind and node.access.allowed(who, f"/vms/{vmid}", "VM.Audit"):
            out.append((vmid, node.etc.conf(kind, vmid)))
    return out


@api("GET", "/nodes/{node}/qemu")
def vms(node: Node, v: Values, who: str) -> Any:
    """The VMs of the node."""
    out = [vm_status(node, vmid, conf) for vmid, conf in visible(node, "qemu", who)]
    if v.get("full"):
        for item in out:
            item["qmpstatus"] = node.qmpstatus(item["vmid"])
    return out


@api("GET", "/nodes/{node}/lxc")
def containers(node: Node, v: Values, who: str) -> Any:
    """The containers of the node."""
    return [ct_status(node, vmid, conf) for vmid, conf in visible(node, "lxc", who)]


@api("GET", "/nodes/{node}/qemu/{vmid}/status/current")
def vm_current(node: Node, v: Values, who: str) -> Any:
    """One VM's status."""
    vmid = int(v["vmid"])
    conf = node.etc.conf("qemu", vmid)
    out = {**vm_status(node, vmid, conf), "qmpstatus": node.qmpstatus(vmid), "ha": {"managed": 0}}
    return {**out, "agent": 1} if agent_enabled(conf.main.get("agent")) else out


@api("GET", "/nodes/{node}/lxc/{vmid}/status/current")
def ct_current(node: Node, v: Values, who: str) -> Any:
    """One container's status."""
    vmid = int(v["vmid"])
    return {**ct_status(node, vmid, node.etc.conf("lxc", vmid)), "ha": {"managed": 0}}


def _config(node: Node, kind: str, v: Values) -> Any:
    if v.get("current") and v.get("snapshot"):
        raise parameter_error(**dict.fromkeys(("current", "snapshot"),
                                              "cannot use 'snapshot' parameter with 'current'"))
    conf = node.etc.conf(kind, int(v["vmid"]))
    if name := v.get("snapshot"):
        if name not in conf.snapshots:
            raise PveError(500, f"snapshot '{name}' does not exist")
        keys = conf.snapshots[name]
    else:
        keys = conf.main if v.get("current") else conf.merged()
    return {**typed(kind, keys), "digest": conf.digest}


@api("GET", "/nodes/{node}/qemu/{vmid}/config")
def vm_config(node: Node, v: Values, who: str) -> Any:
    """The VM's configuration: pending changes merged unless `current`."""
    return _config(node, "qemu", v)


@api("GET", "/nodes/{node}/lxc/{vmid}/config")
def ct_config(node: Node, v: Values, who: str) -> Any:
    """The container's configuration: pending changes merged unless `current`."""
    return _config(node, "lxc", v)


def _pending(node: Node, kind: str, vmid: int) -> Any:
    conf = node.etc.conf(kind, vmid)
    main, pending, gone = typed(kind, conf.main), typed(kind, conf.pending), conf.deletions()
    out = []
    for key in sorted({*main, *pending} - {"delete"}):
        item: dict[str, Any] = {"key": key}
        item.update({"value": main[key]} if key in main else {})
        item.update({"pending": pending[key]} if key in pending else {})
        item.update({"delete": 1} if key in gone else {})
        out.append(item)
    return [*out, {"key": "digest", "value": conf.digest}]


@api("GET", "/nodes/{node}/qemu/{vmid}/pending")
def vm_pending(node: Node, v: Values, who: str) -> Any:
    """Each option with its current and its pending value."""
    return _pending(node, "qemu", int(v["vmid"]))


@api("GET", "/nodes/{node}/lxc/{vmid}/pending")
def ct_pending(node: Node, v: Values, who: str) -> Any:
    """Each option with its current and its pending value."""
    return _pending(node, "lxc", int(v["vmid"]))


def _snapshots(node: Node, kind: str, vmid: int) -> Any:
    conf = node.etc.conf(kind, vmid)
    out: list[dict[str, Any]] = []
    for name, keys in sorted(conf.snapshots.items()):
        item: dict[str, Any] = {"name": name, "snaptime": int(keys.get("snaptime", 0)),
                                "description": keys.get("description", "")}
        if kind == "qemu":
            item["vmstate"] = int("vmstate" in keys)
        out.append(item | {k: keys[k] for k in ("parent", "snapstate") if k in keys})
    here = {"name": "current", "description": "You are here!", "digest": conf.digest,
            "running": int(node.running(kind, vmid))}
    return [*out, here | {k: conf.main[k] for k in ("parent",) if k in conf.main}]


@api("GET", "/nodes/{node}/qemu/{vmid}/snapshot")
def vm_snapshots(node: Node, v: Values, who: str) -> Any:
    """The VM's snapshots and the pseudo-snapshot `current`."""
    return _snapshots(node, "qemu", int(v["vmid"]))


@api("GET", "/nodes/{node}/lxc/{vmid}/snapshot")
def ct_snapshots(node: Node, v: Values, who: str) -> Any:
    """The container's snapshots and the pseudo-snapshot `current`."""
    return _snapshots(node, "lxc", int(v["vmid"]))


def check_lock(conf: GuestConf) -> None:
    """PVE's refusal to touch a locked guest."""
    if lock := conf.main.get("lock"):
        raise PveError(500, f"{'VM' if conf.kind == 'qemu' else 'CT'} is locked ({lock})")


def _change(node: Node, kind: str, v: Values) -> None:
    vmid = int(v["vmid"])
    conf = node.etc.conf(kind, vmid)
    given = {k: x for k, x in v.items() if k not in ("node", "vmid", "digest", "delete", "revert", "skiplock")}
    if v.get("digest") and v["digest"] != conf.digest:
        raise PveError(500, "checksum mismatch (file change by other user?)")
    if not v.get("skiplock"):
        check_lock(conf)
    running = node.running(kind, vmid)
    for key in [k for k in str(v.get("delete") or "").split(",") if k]:
        if running and key not in HOTPLUG:
            conf.pending["delete"] = ",".join([*conf.deletions(), key])
        else:
            conf.main.pop(key, None)
    for key, value in given.items():
        place = conf.pending if running and key not in HOTPLUG else conf.main
        place[key] = str(int(value) if isinstance(value, bool) else value).rstrip()
    node.etc.save(vmid, conf)


@api("PUT", "/nodes/{node}/qemu/{vmid}/config")
def vm_change(node: Node, v: Values, who: str) -> None:
    """Change options; on a running VM most of them become pending."""
    _change(node, "qemu", v)


@api("PUT", "/nodes/{node}/lxc/{vmid}/config")
def ct_change(node: Node, v: Values, who: str) -> None:
    """Change options; on a running container most of them become pending."""
    _change(node, "lxc", v)
