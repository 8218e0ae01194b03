"""qm and pct: the commands a backup tool uses."""

import asyncio
import re
import urllib.parse
from typing import Any

from . import cli_files
from .cli_text import Reply, exit_code, pretty
from .usercfg import ROOT
from .values import props

_KIND = {"qm": "qemu", "pct": "lxc"}
_AGENT = ("fsfreeze-freeze, fsfreeze-status, fsfreeze-thaw, fstrim, get-fsinfo, get-host-name, "
          "get-memory-block-info, get-memory-blocks, get-osinfo, get-time, get-timezone, get-users, get-vcpus, info, "
          "network-get-interfaces, ping, shutdown, suspend-disk, suspend-hybrid, suspend-ram")
_TASKS = {"snapshot": ("POST", "snapshot"), "delsnapshot": ("DELETE", "snapshot/{0}"),
          "rollback": ("POST", "snapshot/{0}/rollback")}


async def follow(pve: Any, upid: str) -> tuple[str, str, int]:
    """Wait for a task: its log as stdout, its error or warning as stderr, and qm's exit code."""
    task = pve.node.tasks.get(upid)
    await asyncio.to_thread(task.done.wait)
    out = "".join(line + "\n" for line in task.log[:-1])
    if task.exitstatus == "OK":
        return out, "", 0
    if task.exitstatus.startswith("WARNINGS:"):
        return out, f"Task finished with {task.warnings} warning(s)!\n", 0
    return out, task.exitstatus + "\n", exit_code(task.exitstatus)


def _options(args: list[str]) -> tuple[list[str], dict[str, str]]:
    plain, options = [], {}
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            plain.append(word)
            continue
        key, sep, value = word.lstrip("-").partition("=")
        options[key] = value if sep else rest.pop(0) if rest and not rest[0].startswith("-") else "1"
    return plain, options


async def run(pve: Any, program: str, args: list[str]) -> Reply:
    """One qm or pct command line."""
    plain, options = _options(args)
    kind = _KIND[program]
    if plain[:2] == ["guest", "cmd"] or plain[:1] == ["agent"]:
        rest = plain[2:] if plain[0] == "guest" else plain[1:]
        if kind == "lxc" or len(rest) != 2:
            return Reply(255, "", "400 not enough arguments\nqm guest cmd <vmid> <command>\n")
        return await _agent(pve, *rest)
    if plain == ["list"]:
        return await _list(pve, program, kind)
    if plain in (["rescan"], ["disk", "rescan"]) and "vmid" in options:
        return await _rescan(pve, kind, options["vmid"])
    if len(plain) < 2:
        word = f"{program} {plain[0]} <vmid>" if plain else f"{program} <COMMAND> [ARGS] [OPTIONS]"
        return Reply(255, "", f"400 not enough arguments\n{word}\n")
    name, vmid, rest = plain[0], plain[1], plain[2:]
    base = f"/nodes/{pve.node.name}/{kind}/{vmid}"
    if name in _TASKS and len(rest) == 1:
        return await _task(pve, name, base, rest[0], options)
    if kind == "lxc" and name in ("push", "pull") and len(rest) == 2:
        copy = cli_files.push if name == "push" else cli_files.pull
        return await asyncio.to_thread(copy, pve, int(vmid), *rest, options)
    if name in ("start", "stop", "shutdown"):
        out, err, code = await follow(pve, await pve.invoke("POST", f"{base}/status/{name}", options, ROOT))
        return Reply(code, out, err)
    simple = {"config": _config, "pending": _pending, "status": _status, "unlock": _unlock, "set": _set}
    if name not in simple:
        return Reply(255, "", f"ERROR: unknown command '{program} {name}'\n")
    return await simple[name](pve, kind, base, options)


async def _agent(pve: Any, vmid: str, command: str) -> Reply:
    if command not in _AGENT.split(", "):
        why = f"command: value '{command}' does not have a value in the enumeration '{_AGENT}'"
        return Reply(255, "", f"400 Parameter verification failed.\n{why}\nqm guest cmd <vmid> <command>\n")
    method = "POST" if command in ("ping", "fstrim") or command.startswith(("fsfreeze", "suspend", "shut")) else "GET"
    data = await pve.invoke(method, f"/nodes/{pve.node.name}/qemu/{vmid}/agent/{command}", {}, ROOT)
    result = data["result"]
    if result is None or result == {}:
        return Reply(0)
    # A guest's refusal is printed like any other result, and the exit code is 0 (pve-facts §d).
    return Reply(0, pretty(result) if isinstance(result, dict | list) else f"{result}\n")


async def _list(pve: Any, program: str, kind: str) -> Reply:
    items = sorted(await pve.invoke("GET", f"/nodes/{pve.node.name}/{kind}", {}, ROOT), key=lambda i: i["vmid"])
    if not items:
        return Reply(0)
    if program == "pct":
        rows = [f"{'VMID':<10} {'Status':<10} {'Lock':<12} {'Name':<20}\n"]
        rows += [f"{i['vmid']:<10} {i['status']:<10} {i.get('lock', ''):<12} {i['name']:<20}\n" for i in items]
        return Reply(0, "".join(rows))
    rows = [f"{'VMID':>10} {'NAME':<20} {'STATUS':<10} {'MEM(MB)':<10} {'BOOTDISK(GB)':>12} {'PID':<10}\n"]
    rows += [f"{i['vmid']:>10} {i['name']:<20} {i['status']:<10} {i['maxmem'] // 2**20:<10} "
             f"{i['maxdisk'] / 2**30:>12.2f} {i.get('pid', 0):<10}\n" for i in items]
    return Reply(0, "".join(rows))


async def _config(pve: Any, kind: str, base: str, options: dict[str, str]) -> Reply:
    data = await pve.invoke("GET", f"{base}/config", options, ROOT)
    data.pop("digest")
    if "description" in data:
        data["description"] = urllib.parse.quote(data["description"], safe=" !\"#$&'()*+,-./;<=>?@[]^_`{|}~")
    return Reply(0, "".join(f"{key}: {value}\n" for key, value in sorted(data.items())))


async def _pending(pve: Any, kind: str, base: str, options: dict[str, str]) -> Reply:
    lines = []
    for item in await pve.invoke("GET", f"{base}/pending", {}, ROOT):
        if item["key"] == "digest":
            continue
        if "value" in item:
            lines.append(f"{'del' if item.get('delete') else 'cur'} {item['key']}: {item['value']}\n")
        if "pending" in item:
            lines.append(f"new {item['key']}: {item['pending']}\n")
    return Reply(0, "".join(lines))


async def _status(pve: Any, kind: str, base: str, options: dict[str, str]) -> Reply:
    data = await pve.invoke("GET", f"{base}/status/current", {}, ROOT)
    if "verbose" not in options:
        return Reply(0, f"status: {data['status']}\n")
    data = {key: value for key, value in data.items() if key not in ("agent", "ha")}
    return Reply(0, "".join(f"{key}: {value}\n" for key, value in sorted(data.items())))


async def _unlock(pve: Any, kind: str, base: str, options: dict[str, str]) -> Reply:
    vmid = int(base.rpartition("/")[2])
    conf = pve.node.etc.conf(kind, vmid)
    conf.main.pop("lock", None)
    pve.node.etc.save(vmid, conf)
    return Reply(0)


async def _set(pve: Any, kind: str, base: str, options: dict[str, str]) -> Reply:
    await pve.invoke("PUT", f"{base}/config", options, ROOT)
    told = " ".join(f"-{key} {value}" for key, value in options.items())
    return Reply(0, f"update VM {base.rpartition('/')[2]}: {told}\n" if kind == "qemu" else "")


async def _rescan(pve: Any, kind: str, vmid: str) -> Reply:
    """Sizes as the volumes have them; the guest's volumes that no section names become unusedN (pve-facts §c)."""
    conf = pve.node.etc.conf(kind, int(vmid))
    for storage, keys in pve.node.etc.storages().items():
        place = f"/nodes/{pve.node.name}/storage/{storage}/content"
        for item in await pve.invoke("GET", place, {"vmid": vmid}, ROOT) if keys["type"] == "zfspool" else ():
            for key, value in conf.main.items():
                if value.partition(",")[0] == item["volid"]:
                    conf.main[key] = re.sub(r"\bsize=\w+", f"size={_size(item['size'])}", value)
            sections = (conf.main, conf.pending, *conf.snapshots.values())
            if not any(item["volid"] in props(value).values() for keys in sections for value in keys.values()):
                free = next(n for n in range(256) if f"unused{n}" not in conf.main)
                conf.main[f"unused{free}"] = item["volid"]
    pve.node.etc.save(int(vmid), conf)
    return Reply(0, "rescan volumes...\n")


def _size(count: int) -> str:
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


async def _task(pve: Any, name: str, base: str, snapshot: str, options: dict[str, str]) -> Reply:
    method, tail = _TASKS[name]
    values = {**options, "snapname": snapshot} if name == "snapshot" else {}
    upid = await pve.invoke(method, f"{base}/{tail.format(snapshot)}", values, ROOT)
    out, err, code = await follow(pve, upid)
    return Reply(code, out, err)
