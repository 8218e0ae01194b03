"""Storages and their volumes, from storage.cfg, `zfs list` and directories (pve-facts §c)."""

import re
import time
from pathlib import Path
from typing import Any

from fakepve.model import PveError

from .api_access import split
from .node import Node, Values, api
from .values import TRUE

_VOLUME = re.compile(r"^(vm|base|subvol|basevol)-(\d+)-\S+$")
_NUMBERS = ("sparse", "disable", "shared", "mkdir")


def seen(node: Node, who: str, sid: str) -> bool:
    """Whether the storage is listed for the caller."""
    return bool({"Datastore.Audit", "Datastore.AllocateSpace"} & set(node.access.held(who, f"/storage/{sid}")))


def _flag(keys: dict[str, str], name: str) -> bool:
    return keys.get(name, "0").lower() in TRUE


def _view(node: Node, sid: str, keys: dict[str, str]) -> dict[str, Any]:
    return {"storage": sid, "digest": node.etc.digest("storage.cfg"),
            **{k: int(v) if k in _NUMBERS else v for k, v in keys.items()}}


@api("GET", "/storage")
def storages(node: Node, v: Values, who: str) -> Any:
    """storage.cfg as the caller may see it."""
    return [_view(node, sid, keys) for sid, keys in node.etc.storages().items()
            if seen(node, who, sid) and v.get("type") in (None, keys["type"])]


@api("GET", "/storage/{storage}")
def storage(node: Node, v: Values, who: str) -> Any:
    """One section of storage.cfg."""
    return _view(node, v["storage"], _known(node, v["storage"]))


def _known(node: Node, sid: str) -> dict[str, str]:
    found = node.etc.storages()
    if sid not in found:
        raise PveError(500, f"storage '{sid}' does not exist")
    return found[sid]


def _usage(node: Node, keys: dict[str, str]) -> tuple[int, int] | None:
    """(used, available) bytes; None when the storage is not there."""
    try:
        if keys["type"] == "zfspool":
            avail, used = node.zfs("get", "-o", "value", "-Hp", "available,used", keys["pool"]).split()
            return int(used), int(avail)
        return node.disk_usage(keys["path"])
    except (OSError, PveError):
        return None


def status(node: Node, sid: str, keys: dict[str, str]) -> dict[str, Any]:
    """One item of GET /nodes/{node}/storage."""
    enabled = not _flag(keys, "disable")
    usage = _usage(node, keys) if enabled else None
    used, avail = usage or (0, 0)
    out = {"storage": sid, "type": keys["type"], "content": keys.get("content", "images,rootdir"),
           "enabled": int(enabled), "active": int(usage is not None), "shared": int(_flag(keys, "shared")),
           "used": used, "avail": avail, "total": used + avail}
    return {**out, "used_fraction": used / (used + avail)} if used + avail else out


@api("GET", "/nodes/{node}/storage")
def node_storages(node: Node, v: Values, who: str) -> Any:
    """The storages of the node with their usage."""
    wanted = split(v.get("content"))
    out = []
    for sid, keys in sorted(node.etc.storages().items()):
        here = node.name in split(keys.get("nodes")) if keys.get("nodes") else True
        kinds = split(keys.get("content"))
        if not here or not seen(node, who, sid) or v.get("storage") not in (None, sid):
            continue
        if (wanted and not set(wanted) & set(kinds)) or (v.get("enabled") and _flag(keys, "disable")):
            continue
        out.append(status(node, sid, keys))
    return out


def _zfs_volumes(node: Node, sid: str, keys: dict[str, str], containers: set[int]) -> list[dict[str, Any]]:
    argv = ("list", "-o", "name,volsize,origin,type,refquota", "-t", "volume,filesystem", "-d1", "-Hp",
            keys["pool"])
    out = []
    for line in node.zfs(*argv).splitlines():
        name, volsize, origin, kind, refquota = line.split("\t")
        last = name.rpartition("/")[2]
        match = _VOLUME.match(last)
        if name == keys["pool"] or match is None or (kind == "volume") == last.startswith(("subvol", "basevol")):
            continue
        number = volsize if kind == "volume" else refquota
        parent = None if origin == "-" else origin.removeprefix(keys["pool"] + "/")
        base = parent.partition("@")[0] + "/" if parent and parent.endswith("@__base__") else ""
        out.append({"volid": f"{sid}:{base}{last}", "name": last, "vmid": int(match[2]), "parent": parent,
                    "size": int(number) if number.isdigit() else 0,
                    "format": "raw" if kind == "volume" else "subvol",
                    "content": "rootdir" if int(match[2]) in containers else "images"})
    return out


def _virtual_size(path: Path) -> int:
    with path.open("rb") as image:
        head = image.read(32)
    return int.from_bytes(head[24:32], "big") if head[:4] == b"QFI\xfb" else path.stat().st_size


def _dir_volumes(sid: str, keys: dict[str, str], containers: set[int]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    base = Path(keys["path"])
    for path in sorted(base.glob("images/*/*")):
        if path.suffix in (".raw", ".qcow2", ".vmdk") and path.parent.name.isdigit():
            owner, stat = int(path.parent.name), path.stat()
            out.append({"volid": f"{sid}:{owner}/{path.name}", "vmid": owner, "size": _virtual_size(path),
                        "used": stat.st_blocks * 512, "format": path.suffix[1:], "parent": None,
                        "ctime": int(stat.st_ctime), "content": "rootdir" if owner in containers else "images"})
    out += [{"volid": f"{sid}:iso/{path.name}", "size": path.stat().st_size, "format": "iso", "content": "iso",
             "ctime": int(path.stat().st_ctime)} for path in sorted(base.glob("template/iso/*.iso"))]
    return out


@api("GET", "/nodes/{node}/storage/{storage}/content")
def content(node: Node, v: Values, who: str) -> Any:
    """Volumes; images only with Datastore.Allocate, or VM.Config.Disk on their owner (pve-facts §a)."""
    sid = v["storage"]
    keys = _known(node, sid)
    if _flag(keys, "disable"):
        raise PveError(500, f"storage '{sid}' is disabled")
    if keys.get("nodes") and node.name not in split(keys["nodes"]):
        raise PveError(500, f"storage '{sid}' is not available on node '{node.name}'")
    containers = {vmid for vmid, kind in node.etc.guests() if kind == "lxc"}
    found = (_zfs_volumes(node, sid, keys, containers) if keys["type"] == "zfspool"
             else _dir_volumes(sid, keys, containers))
    held = node.access.held(who, f"/storage/{sid}")
    out = []
    for item in found:
        if v.get("content") not in (None, item["content"]) or v.get("vmid") not in (None, item.get("vmid")):
            continue
        owner = item.get("vmid")
        if owner is None or "Datastore.Allocate" in held or (
                "Datastore.Audit" in held and node.access.allowed(who, f"/vms/{owner}", "VM.Config.Disk")):
            out.append(item)
    return out


@api("GET", "/nodes/{node}/disks/zfs")
def pools(node: Node, v: Values, who: str) -> Any:
    """The pools of the node."""
    fields = "name,size,allocated,free,fragmentation,dedupratio,health"
    out = []
    for line in node.runner("zpool", "list", "-Hp", "-o", fields).splitlines():
        name, total, alloc, free, frag, dedup, health = line.split("\t")
        out.append({"name": name, "size": int(total), "alloc": int(alloc), "free": int(free),
                    "frag": int(frag.rstrip("%")) if frag != "-" else 0, "dedup": float(dedup.rstrip("x")),
                    "health": health})
    return out


@api("DELETE", "/nodes/{node}/storage/{storage}/content/{volume}")
def free(node: Node, v: Values, who: str) -> Any:
    """Free a volume as PVE does: `zfs destroy -r`, which a hold or a clone stops."""
    sid = v["storage"]
    name = str(v["volume"]).removeprefix(f"{sid}:")
    keys = _known(node, sid)
    match = _VOLUME.match(name.rpartition("/")[2])
    if keys["type"] != "zfspool" or match is None:
        raise PveError(500, f"unable to parse volume ID '{v['volume']}'")
    dataset = f"{keys['pool']}/{name.rpartition('/')[2]}"
    deadline = time.monotonic() + 6

    def body(_task: Any) -> None:
        while True:
            try:
                node.zfs("destroy", "-r", dataset)
                return
            except PveError as exc:
                if "busy" not in exc.message or time.monotonic() > deadline:
                    raise
                time.sleep(1)
    return node.tasks.start("imgdel", f"{match[2]}@{sid}", who, body)
