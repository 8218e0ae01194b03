"""The lab: two real hosts with OpenZFS under QEMU, `pve1` and `backup1`, on a virtual link of their own.

    with Lab() as lab:
        lab.pve1.run(("zpool", "list"))

Everything of a run lies in one directory that goes away with it; the logs stay in build/lab/<run>/.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from tests.lab import image, setup
from tests.lab.host import Host
from tests.lab.machine import Disk, LabError, Machine, Spec

TREE = Path(__file__).resolve().parents[2]
RUN_VARIABLE = "PZB_LAB_RUN"
RUN_PREFIX = "pzb-lab-"

PVE1 = Spec(name="pve1", number=1, disks=(Disk(name="rpool", gib=16), Disk(name="fast", gib=16)))
BACKUP1 = Spec(name="backup1", number=2, disks=(Disk(name="tank", gib=32), Disk(name="box", gib=4)))


@dataclass(slots=True, kw_only=True)
class Lab:
    """All hosts of one run. Use it as a context manager, or call stop() whatever happens."""

    specs: tuple[Spec, ...] = (PVE1, BACKUP1)
    hosts: dict[str, Host] = field(init=False, default_factory=dict)
    run: Path = field(init=False, default=Path())
    logs: Path = field(init=False, default=Path())
    _lock: IO[str] | None = field(init=False, default=None)

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pve1(self) -> Host:
        """The Proxmox VE node: pools `rpool` (with rpool/data) and `fast`."""
        return self.hosts["pve1"]

    @property
    def backup1(self) -> Host:
        """The secondary host: pool `tank`, and the SFTP-only account `box` on a file system of its own."""
        return self.hosts["backup1"]

    def start(self) -> None:
        """Boot all hosts side by side and make their pools. LabError (or ImageError) when that fails; none is left."""
        base = image.ensure()
        self._make_directories()
        (self.run / "image").symlink_to(base.directory)
        started = time.monotonic()
        image.say(f"lab: booting {' and '.join(s.name for s in self.specs)}; logs in {self.logs}")
        threads = ThreadPoolExecutor()
        try:
            for spec in self.specs:
                peers = tuple(other.name for other in self.specs if other is not spec)
                machine = Machine(spec=spec, image=base, run=self.run, logs=self.logs, peers=peers)
                self.hosts[spec.name] = Host(machine=machine)
                machine.start()
            list(threads.map(self._bring_up, self.hosts.values()))
        except BaseException:
            # Without their machines the threads end at once, also after Ctrl-C.
            for host in self.hosts.values():
                host.machine.kill()
            threads.shutdown(cancel_futures=True)
            self.stop()
            raise
        threads.shutdown()
        image.say(f"lab: ready after {time.monotonic() - started:.0f} s")

    def attach(self, run: Path) -> None:
        """Use the hosts of a lab that `make lab` left running, for developing tests; `stop` leaves them running."""
        base = image.Image(directory=(run / "image").resolve(strict=True))
        for spec in self.specs:
            machine = Machine(spec=spec, image=base, run=run, logs=run)
            machine.port = int((run / f"{spec.name}.port").read_text())
            machine.attached = True
            self.hosts[spec.name] = Host(machine=machine)

    @staticmethod
    def _bring_up(host: Host) -> None:
        host.wait_up()
        setup.prepare(host)

    def stop(self) -> None:
        """End every process of this run and remove its disks. Harmless when repeated."""
        for host in self.hosts.values():
            host.power_off()
        self.hosts.clear()
        if self._lock is not None:
            shutil.rmtree(self.run)
            self._lock.close()
            self._lock = None

    def provision(self) -> None:
        """Make pve1 a Proxmox VE node: simulated API, guests, agents (tests/lab/pve)."""
        if (Path(__file__).with_name("pve") / "provision.py").exists():
            importlib.import_module("tests.lab.pve.provision").provision(self)

    def _make_directories(self) -> None:
        parent = Path(os.environ.get(RUN_VARIABLE) or "/var/tmp")
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        self.run = Path(tempfile.mkdtemp(prefix=RUN_PREFIX, dir=parent))
        self._lock = (self.run / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.logs = TREE / "build" / "lab" / f"{stamp}-{os.getpid()}"
        self.logs.mkdir(parents=True, exist_ok=True)


@contextmanager
def borrowed() -> Iterator[Lab]:
    """A lab of our own; or, with PZB_LAB_ATTACH, one that `make lab` left running, and it goes on running."""
    if attached := os.environ.get("PZB_LAB_ATTACH"):
        lab = Lab()
        lab.attach(Path(attached))
        try:
            yield lab
        finally:
            lab.stop()
        return
    with Lab() as own:
        yield own


def _sweep(parent: Path) -> None:
    """Remove the disks of runs whose process is gone: a live one holds its lock, a young one may not yet."""
    for leftover in parent.glob(f"{RUN_PREFIX}*"):
        try:
            with (leftover / "lock").open("r+") as lock:
                if time.time() - os.fstat(lock.fileno()).st_mtime < 60:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            continue
        shutil.rmtree(leftover, ignore_errors=True)


__all__ = ["BACKUP1", "PVE1", "Disk", "Host", "Lab", "LabError", "Spec", "borrowed"]
