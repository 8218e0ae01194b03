"""The guest agent: QMP over the agent's unix socket, with PVE's checks, limits and texts (pve-facts §d)."""

import asyncio
import base64
import json
import random
from typing import Any

from fakepve.model import PveError

from .node import Node, Values, api, parameter_error
from .values import agent_enabled

# Seconds, from QS/QMPClient.pm (pve-facts §d): freeze 1 h, thaw 3 min, others 5 s, the ping before each 3 s.
LIMITS = {"guest-fsfreeze-freeze": 3600.0, "guest-fsfreeze-thaw": 180.0, "guest-fstrim": 600.0}
PING_LIMIT = 3.0
PLAIN_LIMIT = 5.0
POSTS = ("ping", "fsfreeze-freeze", "fsfreeze-status", "fsfreeze-thaw", "fstrim")
GETS = ("info", "get-fsinfo", "get-osinfo", "get-host-name", "get-time", "get-timezone", "get-users", "get-vcpus",
        "network-get-interfaces")
# pvedaemon has three workers and each serves one request at a time (pve-facts §a).
WORKERS = 3
# file-read: in pieces of 1 MiB, 16 MiB at most (QS API2/Qemu/Agent.pm).
READ_LIMIT = 16 << 20
READ_SIZE = 1 << 20
_workers: dict[int, asyncio.Semaphore] = {}


def _daemon() -> asyncio.Semaphore:
    loop = id(asyncio.get_running_loop())
    return _workers.setdefault(loop, asyncio.Semaphore(WORKERS))


async def _exchange(node: Node, vmid: int, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One connection: synchronise, send one command, read its answer."""
    reader, writer = await node.open_agent(node.qga(vmid))
    try:
        token = random.randrange(2**31)
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        writer.write(b"\xff" + json.dumps(sync).encode() + b"\n")
        answer: dict[str, Any] = {}
        while answer.get("return") != token:
            # The agent marks its answer with 0xFF: everything before is left over from an earlier client.
            line = await reader.readline()
            if not line:
                raise ConnectionResetError("the agent closed the connection")
            answer = json.loads(line.rpartition(b"\xff")[2])
        writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        line = await reader.readline()
        if not line:
            raise ConnectionResetError("the agent closed the connection")
        found: dict[str, Any] = json.loads(line)
        return found
    finally:
        writer.close()


async def _ping(node: Node, vmid: int) -> bool:
    try:
        await asyncio.wait_for(_exchange(node, vmid, "guest-ping", {}), PING_LIMIT)
    except TimeoutError:
        return False
    except (OSError, ValueError):
        await asyncio.sleep(PING_LIMIT)  # PVE goes on trying to connect for as long
        return False
    return True


async def _available(node: Node, vmid: int) -> None:
    """PVE's checks before a command: agent configured, VM running, ping answered."""
    conf = node.etc.conf("qemu", vmid)
    if "agent" not in conf.main:
        raise PveError(500, "No QEMU guest agent configured")
    if node.pid(vmid) is None:
        raise PveError(500, f"VM {vmid} is not running")
    if not agent_enabled(conf.main["agent"]) or not await _ping(node, vmid):
        raise PveError(500, "QEMU guest agent is not running")


async def _monitor(node: Node, vmid: int, command: str, **arguments: Any) -> Any:
    """One command within its limit: what the agent returns, its own error as `{"error": ...}`."""
    name = f"guest-{command}"
    try:
        answer = await asyncio.wait_for(_exchange(node, vmid, name, arguments), LIMITS.get(name, PLAIN_LIMIT))
    except TimeoutError:
        word = "qga" if node.major >= 9 else "qmp"
        raise PveError(500, f"VM {vmid} {word} command '{name}' failed - got timeout") from None
    except (OSError, ValueError):
        raise PveError(500, f"VM {vmid} qga command '{name}' failed - client closed connection") from None
    return answer["return"] if "return" in answer else {"error": answer["error"]}


async def call(node: Node, vmid: int, command: str) -> dict[str, Any]:
    """One agent command with PVE's checks before it; returns `{"result": R}`."""
    await _available(node, vmid)
    return {"result": await _monitor(node, vmid, command)}


def _register(method: str, command: str) -> None:
    @api(method, f"/nodes/{{node}}/qemu/{{vmid}}/agent/{command}")
    async def agent(node: Node, v: Values, who: str) -> Any:
        async with _daemon():
            return await call(node, int(v["vmid"]), command)


for _command in POSTS:
    _register("POST", _command)
for _command in GETS:
    _register("GET", _command)


@api("POST", "/nodes/{node}/qemu/{vmid}/agent")
async def agent_by_name(node: Node, v: Values, who: str) -> Any:
    """The old form: the command as a parameter."""
    if v["command"] not in POSTS + GETS:
        raise parameter_error(command=f"value '{v['command']}' does not have a value in the enumeration "
                                      f"'{', '.join(sorted(POSTS + GETS))}'")
    async with _daemon():
        return await call(node, int(v["vmid"]), v["command"])


# -- files: these two have no `result`, and the guest's own error is the call's (QS API2/Qemu/Agent.pm)


def _good(answer: Any) -> Any:
    if isinstance(answer, dict) and "error" in answer:
        raise PveError(500, f"Agent error: {answer['error']['desc']}")
    return answer


async def _checked(node: Node, vmid: int, command: str, **arguments: Any) -> Any:
    await _available(node, vmid)
    return _good(await _monitor(node, vmid, command, **arguments))


@api("GET", "/nodes/{node}/qemu/{vmid}/agent/file-read")
async def file_read(node: Node, v: Values, who: str) -> Any:
    """A file of the guest; bytes that are no text come as Perl prints them, one character each."""
    if {"count", "offset", "decode"} & {key for key, value in v.items() if value is not None}:
        raise PveError(501, "the lab simulates file-read of whole files alone")
    vmid, content, left, end = int(v["vmid"]), b"", READ_LIMIT, False
    async with _daemon():
        handle = await _checked(node, vmid, "file-open", path=v["file"])
        while left > 0 and not end:
            part = _good(await _monitor(node, vmid, "file-read", handle=handle, count=READ_SIZE))
            content += base64.b64decode(part["buf-b64"])
            left, end = left - part["count"], part["eof"]
        await _monitor(node, vmid, "file-close", handle=handle)
    found = {"content": content.decode("latin-1"), "bytes-read": READ_LIMIT - left}
    return found if end else {**found, "truncated": 1}


@api("POST", "/nodes/{node}/qemu/{vmid}/agent/file-write")
async def file_write(node: Node, v: Values, who: str) -> None:
    """Write a file in the guest, in place of what is there. `encode=0`: the content is base64 already."""
    vmid, data = int(v["vmid"]), str(v["content"])
    if v.get("encode", True):
        try:
            data = base64.encodebytes(data.encode("latin-1")).decode()
        except UnicodeEncodeError:
            raise PveError(500, "Wide character in subroutine entry") from None
    async with _daemon():
        handle = await _checked(node, vmid, "file-open", path=v["file"], mode="wb")
        await _checked(node, vmid, "file-write", handle=handle, **{"buf-b64": data})
        await _checked(node, vmid, "file-close", handle=handle)
