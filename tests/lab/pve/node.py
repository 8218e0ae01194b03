"""The simulated node's state and the table of its API methods."""

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakepve.model import PveError

from .etc import Etc
from .tasks import Tasks
from .usercfg import Access

Values = dict[str, Any]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[["Node", Values, str], Any]
TABLE: dict[tuple[str, str], Handler] = {}


def api(method: str, template: str) -> Callable[[Handler], Handler]:
    """Register the decorated function as the answer to a method of the API schema."""
    def register(handler: Handler) -> Handler:
        TABLE[method, template] = handler
        return handler
    return register


@dataclass(frozen=True)
class Paged:
    """An answer that carries PVE's `total` beside the data."""

    data: list[Any]
    total: int


def parameter_error(**fields: str) -> PveError:
    """PVE's 400 with a message per parameter."""
    return PveError(400, "Parameter verification failed.", fields)


def run(*argv: str) -> str:
    """Run a program and return its output; PveError 500 with the last line of its complaint."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PveError(500, f"{'zfs' if argv[0] == 'zfs' else 'command'} error: {complaint}")
    return done.stdout


async def open_agent(path: Path) -> Streams:
    """Connect to a guest agent's unix socket; it serves one client at a time."""
    return await asyncio.open_unix_connection(str(path), limit=2**22)


def disk_usage(path: str) -> tuple[int, int]:
    """(used, available) bytes of the file system at a path; OSError when there is none."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_bavail * found.f_frsize


@dataclass
class Node:
    """One node: where its files are, which version it says it has, and how it runs `zfs`."""

    name: str = "pve1"
    etc_root: Path = Path("/etc/pve")
    run_root: Path = Path("/run")
    version: str = "9.2.11"
    repoid: str = "14a22df35955d97d"
    address: str = "127.0.0.1"
    runner: Callable[..., str] = run
    disk_usage: Callable[[str], tuple[int, int]] = disk_usage
    open_agent: Callable[[Path], Awaitable[Streams]] = open_agent
    started: float = 0.0
    etc: Etc = field(init=False)
    access: Access = field(init=False)
    tasks: Tasks = field(init=False)

    def __post_init__(self) -> None:
        self.etc = Etc(self.etc_root, self.name)
        self.access = Access(self.etc, self.major)
        self.tasks = Tasks(self.name)

    @property
    def major(self) -> int:
        """8 or 9."""
        return int(self.version.partition(".")[0])

    def zfs(self, *argv: str) -> str:
        """Run one `zfs` command and return its output."""
        return self.runner("zfs", *argv)

    def pid(self, vmid: int) -> int | None:
        """The process that stands for a running VM, None when it is off."""
        try:
            pid = int((self.run_root / "qemu-server" / f"{vmid}.pid").read_text())
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid

    def running(self, kind: str, vmid: int) -> bool:
        """True for a VM with a living process and for a container with its marker file."""
        if kind == "lxc":
            return (self.run_root / "lxc" / f"{vmid}.running").exists()
        return self.pid(vmid) is not None

    def qga(self, vmid: int) -> Path:
        """The guest agent's socket."""
        return self.run_root / "qemu-server" / f"{vmid}.qga"

    def qmpstatus(self, vmid: int) -> str:
        """`running`, or what the marker file says (`paused`, `prelaunch`); `stopped` when off."""
        if not self.running("qemu", vmid):
            return "stopped"
        marker = self.run_root / "qemu-server" / f"{vmid}.qmpstatus"
        return marker.read_text().strip() if marker.exists() else "running"
