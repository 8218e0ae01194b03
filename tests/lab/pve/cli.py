"""pvesh, qm and pct: one answer (exit code, stdout, stderr) per command line, as in recordings cli/ and pve-facts §f.

The programs on the lab host are `thin.py` under three names: they send their arguments to this server's root-only
unix socket and print what comes back. They act as root@pam and know no 30 s limit, like the real ones.
"""

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakepve import schema as pve_schema
from fakepve.model import PveError

from . import cli_qm
from .cli_text import Reply, error_reply, rendered
from .node import Paged
from .usercfg import ROOT

VERBS = {"get": "GET", "create": "POST", "set": "PUT", "delete": "DELETE"}
FORMATS = ("json", "json-pretty", "text")
_UPID = re.compile(r"UPID:[^\s\"]+:")


@dataclass
class Line:
    """A parsed pvesh command line."""

    path: str
    values: dict[str, Any]
    format: str = "text"
    quiet: bool = False


async def listen(pve: Any, path: Path) -> asyncio.Server:
    """Serve the command line's socket; only root can open it."""
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            argv = json.loads(await reader.readline())
            reply = await command(pve, argv)
            writer.write(json.dumps([reply.code, reply.out, reply.err]).encode())
            await writer.drain()
        except ConnectionError:
            return  # the caller was killed; what it began goes on, as on a real node
        finally:
            writer.close()
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(client, str(path), limit=2**20)
    path.chmod(0o600)
    return server


async def command(pve: Any, argv: list[str]) -> Reply:
    """Run one command line; argv[0] is the program's name."""
    program, *args = argv
    try:
        if program == "pvesh":
            return await pvesh(pve, args)
        return await cli_qm.run(pve, program, args)
    except PveError as exc:
        return error_reply(exc)


async def pvesh(pve: Any, args: list[str]) -> Reply:
    """pvesh get|create|set|delete|ls PATH [--key value]."""
    if not args or args[0] not in (*VERBS, "ls"):
        word = f"unknown command 'pvesh {args[0]}'" if args else "no command specified"
        return Reply(255, "", f"ERROR: {word}\nUSAGE: pvesh <COMMAND> [ARGS] [OPTIONS]\n")
    verb = args[0]
    usage = f"pvesh {verb} <api_path> [OPTIONS] [FORMAT_OPTIONS]\n"
    if len(args) < 2:
        return Reply(255, "", f"400 not enough arguments\n{usage}")
    path = "/" + "/".join(part for part in args[1].split("/") if part)
    if verb == "ls":
        return await _ls(pve, path)
    match = pve_schema.load().match(path)
    info = match and match.methods.get(VERBS[verb])
    if not info:
        return Reply(1, "", f"No '{verb}' handler defined for '{path}'\n")
    spec = (info.get("parameters") or {}).get("properties") or {}
    line = _parse(path, args[2:], spec)
    if isinstance(line, str):
        return Reply(255, "", f"{line}\n400 unable to parse option\n{usage}")
    try:
        data = await pve.invoke(VERBS[verb], path, line.values, ROOT)
    except PveError as exc:
        return error_reply(exc, usage)
    return await _show(pve, line, data.data if isinstance(data, Paged) else data)


def _parse(path: str, args: list[str], spec: dict[str, Any]) -> Line | str:
    """The options, or the complaint about the first unknown one."""
    line = Line(path, {})
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            return "too many arguments"
        key, sep, value = word.lstrip("-").partition("=")
        if not sep:
            bare = not rest or re.match(r"--?[a-zA-Z]", rest[0])
            value = "1" if bare else rest.pop(0)
        if key in ("quiet", "noproxy", "human-readable"):
            line.quiet = line.quiet or key == "quiet"
        elif key == "output-format":
            if value not in FORMATS:
                return f"Unknown value for option output-format: {value}"
            line.format = value
        elif (known := pve_schema._prop(spec, key)) is None:
            return f"Unknown option: {key}"
        elif key in line.values:
            old = line.values[key]
            line.values[key] = [*old, value] if isinstance(old, list) else f"{old},{value}"
        else:
            line.values[key] = [value] if known.get("type") == "array" else value
    return line


async def _show(pve: Any, line: Line, data: Any) -> Reply:
    out, err = "", ""
    if isinstance(data, str) and data.startswith("UPID:") and _UPID.fullmatch(data):
        # A task runs to its end here; its log comes before its UPID and its error changes no exit code.
        out, err, _code = await cli_qm.follow(pve, data)
    if data is None or line.quiet:
        return Reply(0, out, err)
    return Reply(0, out + rendered(data, line.format), err)


async def _ls(pve: Any, path: str) -> Reply:
    schema = pve_schema.load()
    match = schema.match(path) if path != "/" else None
    if match is None and path != "/":
        return Reply(1, "", f"no such resource '{path}'\n")
    names = list(schema.children(match.template if match else "/"))
    if not names and match is not None:
        info = match.methods.get("GET") or {}
        links = (info.get("returns") or {}).get("links") or [{}]
        key = str(links[0].get("href", "")).strip("{}")
        data = await pve.invoke("GET", path, {}, ROOT)
        names = [str(item[key]) for item in data if key in item] if isinstance(data, list) else []
    return Reply(0, "".join(f"Dr---        {name}\n" for name in sorted(names)), "")
