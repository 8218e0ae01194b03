"""fakepve's schema, checks and faults over the simulated node; corrected to the recordings of PVE 9.2.11.

Run on the lab host: `python -m pve.server --node pve1 --address ADDR`. A method of the schema that the node does
not model answers 501 and says so: nothing here pretends to have done a thing.
"""

import argparse
import asyncio
import inspect
import os
import signal
import time
import urllib.parse
from pathlib import Path
from typing import Any

from aiohttp import web
from fakepve import FakePve
from fakepve import schema as pve_schema
from fakepve.model import PveError
from fakepve.server import API, USER

from . import (
    api_access,
    api_acl,
    api_agent,
    api_guests,
    api_node,
    api_power,
    api_snapshots,
    api_storage,
    certs,
    cli,
    wire,
)
from .node import TABLE, Node, Paged, Values
from .usercfg import ROOT

MODULES = (api_access, api_acl, api_agent, api_guests, api_node, api_power, api_snapshots, api_storage)
"""Importing them fills the table of methods."""


class _Call:
    """What GenericApi.answer wants to know of a request."""

    def __init__(self, method: str, path: str) -> None:
        self.method = method
        self.path = path


class SimPve(FakePve):  # type: ignore[misc]  # fakepve has no types
    """The server. `limit` is pveproxy's patience in seconds, `penalty` the delay of a 401 (pve-facts §a)."""

    def __init__(self, node: Node, host: str = "127.0.0.1", port: int = 8006) -> None:
        super().__init__(host=host, port=port)
        self.node = node
        self.limit = 30.0
        self.penalty = 3.0
        self.nodes = {node.name: {"online": True}}
        self.client_max_size = 512 * 1024

    def _build_app(self) -> web.Application:
        app: web.Application = super()._build_app()
        app.middlewares.insert(0, wire.middleware(self))
        return app

    # ------------------------------------------------------------ who may do what

    def _authenticate(self, request: web.Request) -> str:
        header = request.headers.get("Authorization", "")
        if not header.startswith("PVEAPIToken="):
            raise PveError(401, "No ticket")
        token, _, secret = header.removeprefix("PVEAPIToken=").partition("=")
        return self.node.access.check_token(token, secret)

    def allowed(self, user: str, path: str, priv: str) -> bool:
        """True if the user or token holds the privilege: from user.cfg, for root's tokens too."""
        return self.node.access.allowed(user, path, priv)

    def check_permissions(self, user: str | None, perms: Any, values: Values, declared: Any = None) -> None:
        """The schema's rule; a token of root, unlike root, has to satisfy it."""
        if user is None or user == ROOT or (perms and perms.get("user") in ("all", "world")):
            return
        ok, why = False, "user != root@pam"
        if perms and "check" in perms:
            ok, why = self._check(user, self._rule(perms["check"]), values, declared)
        if not ok:
            raise PveError(403, f"Permission check failed ({why})" if why else "Permission check failed")

    def _rule(self, rule: Any) -> Any:
        """PVE 8 asks VM.Monitor where 9 asks one of VM.GuestAgent.* (pve-facts §m)."""
        if self.node.major < 9 and rule[0] == "perm" and rule[2][0].startswith("VM.GuestAgent."):
            return [rule[0], rule[1], ["VM.Monitor"]]
        return rule

    # ------------------------------------------------------------ answering

    async def invoke(self, method: str, path: str, values: Values, user: str) -> Any:
        """One API call: data, or Paged, or PveError. `path` is unquoted and without /api2/json."""
        match = pve_schema.load().match(path)
        if match is None or method not in match.methods:
            raise PveError(501, f"Method '{method} {path}' not implemented")
        handler = TABLE.get((method, match.template))

        async def call(_match: Any, checked: Values) -> Any:
            if handler is None:
                raise PveError(501, f"the lab does not simulate {method} {match.template}")
            if inspect.iscoroutinefunction(handler):
                return await handler(self.node, checked, user)
            return await asyncio.to_thread(handler, self.node, checked, user)
        known = self.node.etc.nodes()
        self.nodes = {name: {"online": name == self.node.name} for name in known}
        if (name := match.params.get("node")) in known and name != self.node.name:
            raise PveError(595, "No route to host")
        return await self.answer(_Call(method, path), match, values, user, call)

    async def _answer(self, request: web.Request, handler: Any, generic: Any, path_node: Any) -> Any:
        async def own(request: web.Request) -> web.Response:
            path = "/".join(urllib.parse.unquote(seg) for seg in request.rel_url.raw_path[len(API):].split("/"))
            data = await self.invoke(request.method, path, await wire.parameters(request), request[USER])
            body = {"data": data}
            if isinstance(data, Paged):
                body = {"data": data.data, **({"total": data.total} if data.total else {})}
            return web.json_response(body)
        return await super()._answer(request, own if request.path.startswith(API + "/") else handler, generic, None)


async def serve(pve: SimPve, sockets: Path) -> None:
    """Listen on TLS and on the command line's socket until SIGTERM; keep .vmlist current."""
    node = pve.node
    node.etc.make()
    cert, key = certs.ensure(node)
    await pve.start(str(cert), str(key))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sockets.mkdir(mode=0o700, exist_ok=True)
    listener = await cli.listen(pve, sockets / "cli.sock")
    print("pvesim: ready", flush=True)
    while not stop.is_set():
        node.etc.refresh()
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
        except TimeoutError:
            continue
    listener.close()
    await pve.stop()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="pve.server")
    parser.add_argument("--node", default="pve1")
    parser.add_argument("--bind", default="0.0.0.0")
    parser.add_argument("--address", default="127.0.0.1", help="the node's address in /cluster/status and the SANs")
    parser.add_argument("--port", type=int, default=8006)
    parser.add_argument("--version", default="9.2.11", help="the release to be, such as 9.2.11 or 8.4.21")
    parser.add_argument("--etc", type=Path, default=Path("/etc/pve"))
    parser.add_argument("--run", type=Path, default=Path("/run"))
    args = parser.parse_args()
    node = Node(name=args.node, etc_root=args.etc, run_root=args.run, version=args.version, address=args.address,
                started=time.time())
    asyncio.run(serve(SimPve(node, args.bind, args.port), args.run / "pvesim"))
    os._exit(0)  # an unanswered freeze may still sit in a worker


if __name__ == "__main__":
    main()
