"""The simulated node as a server thread on loopback, and a scripted guest agent."""

import asyncio
import base64
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recorded
from fakepve.model import PveError

from tests.lab.pve import certs
from tests.lab.pve import cli as pve_cli
from tests.lab.pve.cli_text import Reply
from tests.lab.pve.node import Node, Streams
from tests.lab.pve.server import SimPve


@dataclass(frozen=True)
class Answer:
    """A response as it came over the wire."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: str
    seconds: float

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Zfs:
    """What the node's `zfs` answers; `refuse` makes the commands that start so fail as zfs does."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, ...]] = []
        self.snapshots: dict[str, list[str]] = {}
        self.refuse: dict[str, str] = {}

    def __call__(self, *argv: str) -> str:
        self.ran.append(argv)
        for start, complaint in self.refuse.items():
            if " ".join(argv).startswith(start):
                raise PveError(500, f"zfs error: {complaint}")
        dataset, _, name = argv[-1].partition("@")
        if argv[1] == "list" and "snapshot" in argv:
            return "".join(f"{dataset}@{item}\n" for item in self.snapshots.get(dataset, []))
        if argv[1] == "snapshot":
            self.snapshots.setdefault(dataset, []).append(name)
        if argv[1] == "get":
            return "11960344576\n1024000\n"
        return recorded.zfs_list() if argv[1] == "list" else ""


class Served:
    """One node and its HTTPS server in a thread."""

    def __init__(self, node: Node, zfs: Zfs) -> None:
        self.node = node
        self.zfs = zfs
        self.pve = SimPve(node, "127.0.0.1", 0)
        self.pve.penalty = 0.0
        self._loop = asyncio.new_event_loop()
        cert, key = certs.ensure(node)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.submit(self.pve.start(str(cert), str(key)))

    @classmethod
    def rebuilt(cls, base: Path) -> "Served":
        """The node of the recordings, with its files below `base`."""
        etc, run = base / "etc", base / "run"
        (run / "qemu-server").mkdir(parents=True)
        (run / "lxc").mkdir()
        etc.mkdir()
        zfs = Zfs()
        node = Node(etc_root=etc, run_root=run, runner=zfs, started=time.time(),
                    disk_usage=lambda _path: (2**20, 2**30))
        node.etc.make()
        recorded.rebuild(etc)
        return cls(node, zfs)

    def submit(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def stop(self) -> None:
        """Stop serving."""
        self.submit(self.pve.stop())
        self.submit(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def request(self, method: str, path: str, token: str | None = "root@pam!t1", **more: str | None) -> Answer:
        """One HTTPS request, verified against the node's CA. `authorization` overrides the token."""
        context = ssl.create_default_context(cafile=str(self.node.etc.root / "pve-root-ca.pem"))
        link = http.client.HTTPSConnection("127.0.0.1", self.pve.port, timeout=30, context=context)
        given = more.get("authorization") or (f"PVEAPIToken={token}={recorded.secret(token)}" if token else None)
        headers = {"Authorization": given} if given else {}
        payload = more.get("payload")
        if payload is not None:
            headers["Content-Type"] = more.get("content_type") or "application/x-www-form-urlencoded"
        begun = time.monotonic()
        link.request(method, "/api2/json" + path, payload.encode() if payload is not None else None, headers)
        response = link.getresponse()
        body = response.read().decode()
        seconds = time.monotonic() - begun
        link.close()
        return Answer(response.status, response.reason, tuple(response.getheaders()), body, seconds)

    def replay(self, exchange: recorded.Exchange) -> Answer:
        """Send a recorded request."""
        return self.request(exchange.method, exchange.path, None, authorization=exchange.authorization,
                            payload=exchange.payload, content_type=exchange.content_type)

    def command(self, *argv: str) -> Reply:
        """Run pvesh, qm or pct."""
        reply: Reply = self.submit(pve_cli.command(self.pve, list(argv)))
        return reply

    def finished(self, upid: str) -> dict[str, Any]:
        """Wait for a task and return its status as the API shows it."""
        assert self.node.tasks.get(upid).done.wait(20)
        status: dict[str, Any] = self.request("GET", f"/nodes/pve1/tasks/{upid}/status").json["data"]
        return status


class ScriptedAgent:
    """A guest agent, one client at a time, that answers from `say`. On loopback: unit tests reach nothing else."""

    def __init__(self) -> None:
        self.say: dict[str, Callable[[], dict[str, Any]]] = {
            "guest-ping": lambda: {"return": {}}, "guest-fsfreeze-freeze": lambda: {"return": 2},
            "guest-fsfreeze-thaw": lambda: {"return": 2}, "guest-fsfreeze-status": lambda: {"return": "frozen"}}
        self.files: dict[str, bytearray] = {}
        self._opened: dict[int, tuple[str, int]] = {}
        self.heard: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    async def connect(self, _path: Path) -> Streams:
        """What the node opens instead of the unix socket."""
        return await asyncio.open_connection("127.0.0.1", self._listener.getsockname()[1], limit=2**22)

    def refuse(self, command: str, kind: str, text: str) -> None:
        """Let the guest refuse a command."""
        self.say[command] = lambda: {"error": {"class": kind, "desc": text}}

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                self._talk(client, lines)

    def _talk(self, client: socket.socket, lines: Any) -> None:
        try:
            for line in lines:
                asked = json.loads(line.rpartition(b"\xff")[2])
                name = asked["execute"]
                if name == "guest-sync-delimited":
                    client.sendall(b"\xff" + json.dumps({"return": asked["arguments"]["id"]}).encode() + b"\n")
                else:
                    self.heard.append(name)
                    client.sendall(json.dumps(self._answer(name, asked["arguments"])).encode() + b"\n")
        except OSError:
            return  # the caller lost patience

    def _answer(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        if name in self.say or not name.startswith("guest-file-"):
            return self.say[name]()
        try:
            return {"return": self._file(name.removeprefix("guest-file-"), given)}
        except LookupError as refused:
            return {"error": {"class": "GenericError", "desc": str(refused.args[0])}}

    def _file(self, name: str, given: dict[str, Any]) -> Any:
        """As qga/commands-posix.c: handles outlive connections; the file's own directory is always there."""
        if name == "open":
            path, mode = given["path"], given.get("mode", "r")
            if mode == "r" and path not in self.files:
                raise LookupError(f"failed to open file '{path}' (mode: '{mode}'): No such file or directory")
            if mode == "wb":
                self.files[path] = bytearray()
            number = 1000 + len(self._opened)
            self._opened[number] = (path, 0)
            return number
        if given["handle"] not in self._opened:
            raise LookupError(f"handle '{given['handle']}' has not been found")
        path, place = self._opened[given["handle"]]
        if name == "close":
            del self._opened[given["handle"]]
            return {}
        if name == "write":
            data = base64.b64decode(given["buf-b64"])
            self.files[path] += data
            return {"count": len(data), "eof": False}
        part = bytes(self.files[path][place:place + given["count"]])
        self._opened[given["handle"]] = (path, place + len(part))
        return {"count": len(part), "buf-b64": base64.b64encode(part).decode(), "eof": len(part) < given["count"]}

    def stop(self) -> None:
        """Close the socket; a stopped agent is a dead one."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
