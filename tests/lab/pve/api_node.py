"""The node and the cluster: version, nodes, status, resources, tasks, pools, replication (pve-facts §a, §g)."""

import os
import platform
import ssl
import time
from hashlib import sha256
from typing import Any

from fakepve.model import PveError

from . import api_guests, api_storage
from .api_access import split
from .node import Node, Paged, Values, api, parameter_error
from .tasks import Task


@api("GET", "/version")
def version(node: Node, v: Values, who: str) -> Any:
    """The release."""
    return {"version": node.version, "release": node.version.rpartition(".")[0], "repoid": node.repoid}


def _memory() -> tuple[int, int]:
    with open("/proc/meminfo") as lines:
        found = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}
    return found["MemTotal"], found["MemTotal"] - found["MemAvailable"]


def _stats(node: Node) -> dict[str, Any]:
    total, used = _memory()
    root = os.statvfs("/")
    return {"cpu": 0.05, "maxcpu": os.cpu_count(), "mem": used, "maxmem": total,
            "disk": (root.f_blocks - root.f_bfree) * root.f_frsize, "maxdisk": root.f_blocks * root.f_frsize,
            "uptime": int(time.time() - node.started)}


def fingerprint(node: Node) -> str:
    """The sha256 fingerprint of the certificate pveproxy serves."""
    text = node.etc.text(f"nodes/{node.name}/pveproxy-ssl.pem") or node.etc.text(f"nodes/{node.name}/pve-ssl.pem")
    first = text.partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    digest = sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest().upper() if text else "0" * 64
    return ":".join(digest[i:i + 2] for i in range(0, 64, 2))


def _nodes(node: Node, who: str) -> list[dict[str, Any]]:
    out = []
    for name in node.etc.nodes():
        item = {"node": name, "id": f"node/{name}", "type": "node", "level": "",
                "status": "online" if name == node.name else "offline"}
        if name == node.name and node.access.allowed(who, f"/nodes/{name}", "Sys.Audit"):
            item |= _stats(node)
        out.append(item)
    return out


@api("GET", "/nodes")
def nodes(node: Node, v: Values, who: str) -> Any:
    """The nodes; their load only with Sys.Audit."""
    return [{**item, "ssl_fingerprint": fingerprint(node)} for item in _nodes(node, who)]


@api("GET", "/nodes/{node}/status")
def node_status(node: Node, v: Values, who: str) -> Any:
    """The node's load and releases."""
    stats = _stats(node)
    uname = platform.uname()
    return {"uptime": stats["uptime"], "loadavg": [f"{load:.2f}" for load in os.getloadavg()], "cpu": stats["cpu"],
            "memory": {"total": stats["maxmem"], "used": stats["mem"], "free": stats["maxmem"] - stats["mem"]},
            "rootfs": {"total": stats["maxdisk"], "used": stats["disk"], "avail": stats["maxdisk"] - stats["disk"]},
            "pveversion": f"pve-manager/{node.version}/{node.repoid}", "kversion": f"Linux {uname.release}",
            "current-kernel": {"sysname": "Linux", "release": uname.release, "version": uname.version,
                               "machine": uname.machine}}


@api("GET", "/cluster/status")
def cluster_status(node: Node, v: Values, who: str) -> Any:
    """A standalone node: one entry and no cluster entry."""
    return [{"type": "node", "id": f"node/{node.name}", "name": node.name, "nodeid": 0, "ip": node.address,
             "local": 1, "online": 1, "level": ""}]


def _guest(node: Node, vmid: int, kind: str, who: str) -> dict[str, Any]:
    conf = node.etc.conf(kind, vmid)
    full = (api_guests.vm_status if kind == "qemu" else api_guests.ct_status)(node, vmid, conf)
    keep = ("name", "status", "cpu", "disk", "diskread", "diskwrite", "maxdisk", "maxmem", "mem", "memhost", "netin",
            "netout", "uptime", "vmid", "lock", "tags")
    out = {"id": f"{kind}/{vmid}", "type": kind, "node": node.name, "maxcpu": full["cpus"], "diskread": 0,
           "diskwrite": 0, "memhost": 0, "template": full.get("template", 0),
           **{k: full[k] for k in keep if k in full}}
    for name, pool in node.access.load().pools.items():
        if vmid in pool["vms"] and node.access.allowed(who, f"/pool/{name}", "Pool.Audit"):
            out["pool"] = name
    return out


@api("GET", "/cluster/resources")
def resources(node: Node, v: Values, who: str) -> Any:
    """Guests, nodes and storages the caller may see."""
    kind = v.get("type")
    out: list[dict[str, Any]] = []
    if kind in (None, "vm"):
        out += [_guest(node, vmid, guest, who) for vmid, guest in node.etc.guests()
                if node.access.allowed(who, f"/vms/{vmid}", "VM.Audit")]
    if kind in (None, "node"):
        out += [{**item, "cgroup-mode": 2} for item in _nodes(node, who)]
    if kind in (None, "storage"):
        for sid, keys in node.etc.storages().items():
            if api_storage.seen(node, who, sid):
                full = api_storage.status(node, sid, keys)
                out.append({"id": f"storage/{node.name}/{sid}", "type": "storage", "storage": sid,
                            "node": node.name, "plugintype": keys["type"], "content": full["content"],
                            "shared": full["shared"], "disk": full["used"], "maxdisk": full["total"],
                            "status": "available" if full["active"] else "unknown"})
    if kind in (None, "sdn") and node.access.allowed(who, "/sdn/zones/localnetwork", "SDN.Audit"):
        out.append({"id": f"network/{node.name}/zone/localnetwork", "type": "network", "network": "localnetwork",
                    "network-type": "zone", "node": node.name, "status": "ok"})
    return out


@api("GET", "/cluster/nextid")
def nextid(node: Node, v: Values, who: str) -> Any:
    """A free VMID, or whether the given one is free."""
    used = {vmid for vmid, _ in node.etc.guests()}
    if "vmid" in v:
        if int(v["vmid"]) in used:
            raise parameter_error(vmid=f"VM {v['vmid']} already exists")
        return str(v["vmid"])
    return str(next(n for n in range(100, 10**9) if n not in used))


@api("GET", "/cluster/replication")
def replication(node: Node, v: Values, who: str) -> Any:
    """The replication jobs of guests the caller may audit."""
    return [job for job in node.etc.replication() if node.access.allowed(who, f"/vms/{job['guest']}", "VM.Audit")]


@api("GET", "/nodes/{node}/replication")
def node_replication(node: Node, v: Values, who: str) -> Any:
    """The same jobs, with a state: none of them ever ran here."""
    jobs = replication(node, v, who)
    return [{**job, "fail_count": 0, "last_sync": 0, "last_try": 0, "next_sync": 0}
            for job in jobs if v.get("guest") in (None, job["guest"])]


@api("GET", "/pools")
def pools(node: Node, v: Values, who: str) -> Any:
    """Pools the caller may audit; members with `poolid`."""
    cfg = node.access.load()
    wanted = v.get("poolid")
    if wanted is not None:
        if wanted not in cfg.pools:
            raise PveError(500, f"pool '{wanted}' does not exist")
        node.access.require(who, f"/pool/{wanted}", "Pool.Audit")
        return [{"poolid": wanted, **_pool(node, wanted, who)}]
    return [{"poolid": name, **({"comment": pool["comment"]} if pool["comment"] else {})}
            for name, pool in sorted(cfg.pools.items()) if node.access.allowed(who, f"/pool/{name}", "Pool.Audit")]


@api("GET", "/pools/{poolid}")
def pool(node: Node, v: Values, who: str) -> Any:
    """The old form of one pool."""
    if v["poolid"] not in node.access.load().pools:
        raise PveError(500, f"pool '{v['poolid']}' does not exist")
    return _pool(node, v["poolid"], who)


def _pool(node: Node, name: str, who: str) -> dict[str, Any]:
    found = node.access.load().pools[name]
    kinds = dict(node.etc.guests())
    members: list[dict[str, Any]] = [_guest(node, vmid, kinds[vmid], who) for vmid in found["vms"] if vmid in kinds]
    members += [{"id": f"storage/{node.name}/{sid}", "type": "storage", "storage": sid, "node": node.name}
                for sid in found["storage"]]
    return {"members": members, **({"comment": found["comment"]} if found["comment"] else {})}


@api("POST", "/pools")
def pool_create(node: Node, v: Values, who: str) -> None:
    """Create a pool."""
    cfg = node.access.load()
    if v["poolid"] in cfg.pools:
        raise PveError(500, f"create pool failed: pool '{v['poolid']}' already exists")
    cfg.pools[v["poolid"]] = {"comment": str(v.get("comment", "")), "vms": [], "storage": []}
    node.access.save(cfg)


@api("PUT", "/pools")
def pool_update(node: Node, v: Values, who: str) -> None:
    """Add members to a pool, or take them out with `delete`."""
    cfg = node.access.load()
    if v["poolid"] not in cfg.pools:
        raise PveError(500, f"update pools failed: pool '{v['poolid']}' does not exist")
    entry = cfg.pools[v["poolid"]]
    entry["comment"] = str(v.get("comment", entry["comment"]))
    for key, given in (("vms", [int(x) for x in split(v.get("vms"))]), ("storage", split(v.get("storage")))):
        kept = [x for x in entry[key] if x not in given]
        entry[key] = kept if v.get("delete") else kept + given
    node.access.save(cfg)


def _mine(who: str, task: Task) -> bool:
    return who in (task.who, task.who.partition("!")[0])


@api("GET", "/nodes/{node}/tasks")
def tasks(node: Node, v: Values, who: str) -> Any:
    """Tasks, newest first; those of others only with Sys.Audit."""
    audit = node.access.allowed(who, f"/nodes/{node.name}", "Sys.Audit")
    found = [task for task in node.tasks.newest_first() if (audit or _mine(who, task))
             and v.get("vmid") in (None, int(task.id) if task.id.isdigit() else -1)
             and v.get("typefilter") in (None, task.type)
             and not (v.get("errors") and task.exitstatus in (None, "OK"))]
    start = v.get("start", 0)
    return Paged([t.listed() for t in found[start:start + v.get("limit", 50)]], len(found))


def _task(node: Node, v: Values, who: str) -> Task:
    task = node.tasks.get(v["upid"])
    if not _mine(who, task):
        node.access.require(who, f"/nodes/{node.name}", "Sys.Audit")
    return task


@api("GET", "/nodes/{node}/tasks/{upid}/status")
def task_status(node: Node, v: Values, who: str) -> Any:
    """One task's state."""
    return _task(node, v, who).status()


@api("GET", "/nodes/{node}/tasks/{upid}/log")
def task_log(node: Node, v: Values, who: str) -> Any:
    """One task's log lines; limit 0 means all."""
    lines = [{"n": n, "t": text} for n, text in enumerate(_task(node, v, who).log or ["no content"], 1)]
    start, limit = v.get("start", 0), v.get("limit", 50)
    return Paged(lines[start:start + limit] if limit else lines[start:], len(lines))
