"""Worker tasks: UPIDs, logs and exit states (pve-facts §g)."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fakepve.model import PveError


@dataclass
class Task:
    """One task. `endtime` and `exitstatus` are None while it runs."""

    upid: str
    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    who: str
    log: list[str] = field(default_factory=list)
    warnings: int = 0
    endtime: int | None = None
    exitstatus: str | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def base(self) -> dict[str, Any]:
        """The fields the list and the status share."""
        user, _, token = self.who.partition("!")
        out = {"upid": self.upid, "node": self.node, "pid": self.pid, "pstart": self.pstart,
               "starttime": self.starttime, "type": self.type, "id": self.id, "user": user}
        return {**out, "tokenid": token} if token else out

    def status(self) -> dict[str, Any]:
        """GET .../tasks/{upid}/status."""
        if self.exitstatus is None:
            return {**self.base(), "status": "running"}
        return {**self.base(), "status": "stopped", "exitstatus": self.exitstatus}

    def listed(self) -> dict[str, Any]:
        """The item of GET .../tasks, where `status` is the exit status."""
        if self.exitstatus is None:
            return {**self.base(), "status": "RUNNING"}
        return {**self.base(), "endtime": self.endtime, "status": self.exitstatus}

    def warn(self, text: str) -> None:
        """Log a warning; the task then ends with `WARNINGS: n`."""
        self.warnings += 1
        self.log.append(f"WARN: {text}")


class Tasks:
    """The tasks of this server process."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._tasks: dict[str, Task] = {}
        self._lock = threading.Lock()
        self._pid = 6000

    def start(self, kind: str, ident: str, who: str, body: Callable[[Task], None]) -> str:
        """Begin a task in a thread of its own; returns its UPID."""
        with self._lock:
            self._pid += 7
            pid, now = self._pid, int(time.time())
            pstart = int(time.monotonic() * 100)
            upid = f"UPID:{self.node}:{pid:08X}:{pstart:08X}:{now:08X}:{kind}:{ident}:{who}:"
            task = self._tasks[upid] = Task(upid, self.node, pid, pstart, now, kind, ident, who)
        threading.Thread(target=self._run, args=(task, body), daemon=True).start()
        return upid

    @staticmethod
    def _run(task: Task, body: Callable[[Task], None]) -> None:
        status = "unexpected status"
        try:
            body(task)
            status = f"WARNINGS: {task.warnings}" if task.warnings else "OK"
        except PveError as exc:
            status = exc.message
        finally:
            word = "TASK " if status == "OK" or status.startswith("WARNINGS:") else "TASK ERROR: "
            task.log.append(word + status)
            task.endtime = int(time.time())
            task.exitstatus = status
            task.done.set()

    def get(self, upid: str) -> Task:
        """The task, or PVE's 400."""
        if not upid.startswith("UPID:") or upid.count(":") < 8:
            raise PveError(400, "Parameter verification failed.", {"upid": "unable to parse worker upid"})
        if upid not in self._tasks:
            raise PveError(400, "Parameter verification failed.", {"upid": "no such task"})
        return self._tasks[upid]

    def newest_first(self) -> list[Task]:
        """Every task of this node."""
        return list(reversed(self._tasks.values()))
