"""The cluster in memory with a box: `zfs` is the fake one, age, zstd, ssh-keygen and the box's files are real."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pve_zfsbackup.app.archive_read import Reader
from pve_zfsbackup.app.archive_restore import Choice, Restored, Restorer, choose
from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.box import Vault, open_box
from pve_zfsbackup.app.catalog import Catalog, read_catalog
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.run import ALL_STAGES, Report, Stage, run
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.setup_box import BoxSetup
from pve_zfsbackup.config import load_config
from pve_zfsbackup.host.programs import Chain, ProcessPrograms
from pve_zfsbackup.host.runner import DEFAULT_TIMEOUT, Completed, ProcessRunner
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, Dataset, Vmid, parse_selector
from tests.archive.bench import noise
from tests.fakes.pools import Pools, ok
from tests.fakes.runner import HERE
from tests.fakes.streams import Receiver, Sender, Stream
from tests.fakes.world import World

BOXES = """\
boxes:
  box1:
    host: {place}/mnt
    path: root
    recipients-file: {place}/keys/recipients
    catalog-key-file: {place}/keys/catalog
    signing-key-file: {place}/keys/signing
    signers-file: {place}/keys/signers
    spool-dir: {place}/spool
    segment-mib: 1
    retry-hours: 0
    every-hours: 0
    keep: {boxkeep}
"""
REAL = ("age-keygen", "ssh-keygen")


@dataclass
class WorldRunner:
    """The fake cluster's runner, but for keys, which are real."""

    world: World
    keys: ProcessRunner = field(default_factory=ProcessRunner)

    def run(
        self, argv: Sequence[str], *, input: bytes | None = None, timeout: float = DEFAULT_TIMEOUT, check: bool = True
    ) -> Completed:
        if argv[0] in REAL:
            return self.keys.run(argv, input=input, timeout=timeout, check=check)
        if tuple(argv[:2]) == ("zfs", "version"):
            return ok(tuple(argv), "zfs-2.3.9-1\nzfs-kmod-2.3.9-1\n")
        if argv[1] == "get" and "ivsetguid" in argv:
            return ok(tuple(argv), "77\n")
        if argv[1] == "get" and "@" not in argv[-1] and "-s" in argv:
            return ok(tuple(argv), "volsize\t1073741824\n")
        return self.world.runner.run(argv, input=input, timeout=timeout, check=check)

    def __getattr__(self, name: str) -> object:
        return getattr(self.world.runner, name)


@dataclass
class _Ends:
    """A chain of the one program `zfs`, done in memory."""

    feed: IO[bytes]
    output: IO[bytes]
    end: object

    def finish(self) -> tuple[Completed, ...]:
        assert callable(self.end)
        return (self.end(),)

    def kill(self) -> None:
        raise AssertionError("nothing to kill")


@dataclass
class WorldPrograms(ProcessPrograms):
    """Streams of the fake pools as bytes: what a snapshot holds decides them."""

    pools: Pools
    known: dict[str, Stream] = field(default_factory=dict)
    sent: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def cancel(self) -> None:
        """The next attempt of a test is another process, with programs of its own."""
        super().cancel()
        self._cancelled = False

    @contextlib.contextmanager
    def opened(
        self, *argvs: Sequence[str], source: IO[bytes] | None = None, sink: IO[bytes] | None = None
    ) -> Iterator[Chain]:
        argv = tuple(argvs[0])
        if argv[0] != "zfs":
            with super().opened(*argvs, source=source, sink=sink) as chain:
                yield chain
            return
        with tempfile.TemporaryFile() as file, open("/dev/null", "rb") as nothing:
            if argv[1] == "send":
                self.sent.append(argv)
                done, stream = Sender(self.pools, [self.pools]).run(argv)
                if stream is not None:
                    file.write(self._bytes(stream))
                    file.seek(0)
                yield _Ends(file, file, lambda: done)
            else:
                yield _Ends(file, nothing, lambda: self._receive(argv, file))

    def _bytes(self, stream: Stream) -> bytes:
        seed = int(hashlib.sha256(repr(stream).encode()).hexdigest()[:8], 16)
        data = noise(seed, min(stream.size, 3 << 20))
        self.known[hashlib.sha256(data).hexdigest()] = stream
        return data

    def _receive(self, argv: tuple[str, ...], file: IO[bytes]) -> Completed:
        file.seek(0)
        stream = self.known.get(hashlib.sha256(file.read()).hexdigest())
        return Receiver(self.pools).run(argv, stream)


@dataclass
class Boxed:
    """A world whose job names a box."""

    world: World
    keep: str = "{keep-last: 3}"
    programs: WorldPrograms = field(init=False)
    identity: Path = field(init=False)

    def __post_init__(self) -> None:
        place = self.world.place
        (place / "mnt").mkdir()
        text = self.world.config.read_text()
        text = text.replace("    targets: [backup1]\n", "    targets: [backup1]\n    boxes: [box1]\n")
        self.world.config.write_text(text + BOXES.format(place=place, boxkeep=self.keep))
        self.programs = WorldPrograms(self.world.source)
        vault = self.vault
        setup = BoxSetup(box=vault.box, seal=vault.seal)
        setup.keys()
        self.identity = place / "safe"
        self.identity.write_text(setup.secret + "\n")

    @property
    def runner(self) -> WorldRunner:
        return WorldRunner(self.world)

    @property
    def vault(self) -> Vault:
        return open_box(load_config(self.world.config), "box1", self.runner, self.programs)

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        with self.world.session() as session:
            runner = self.runner
            hosts = {name: dataclasses.replace(host, runner=runner) for name, host in session.hosts.items()}
            yield dataclasses.replace(session, runner=runner, programs=self.programs, hosts=hosts)

    def run(self, *stages: Stage, guests: Sequence[str] = ()) -> Report:
        self.world.clock.now += 3600
        with self.session() as session:
            scope = Scope(guests=tuple(parse_selector(text) for text in guests))
            return run(session, scope, stages or ALL_STAGES)

    @property
    def catalog(self) -> Catalog:
        return read_catalog(self.vault, identity=self.identity)

    def points(self, vmid: int) -> list[str]:
        found = [a for shelf in self.catalog.shelves for a in shelf.archived if a.vmid == vmid]
        return [archived.point for archived in sorted(found, key=lambda archived: archived.creation)]

    def choose(self, vmid: int, point: str = "") -> Choice:
        return choose(self.catalog, Vmid(vmid), point)

    def restore(self, choice: Choice, root: str, pools: Pools | None = None) -> tuple[Restored, ...]:
        """Into the pools of the node, or other ones."""
        programs = WorldPrograms(pools or self.world.source, known=self.programs.known)
        vault = open_box(load_config(self.world.config), "box1", self.runner, programs)
        with vault.scratch() as spool:
            reader = Reader(vault=vault, spool=spool, stamina=Stamina(seconds=0))
            host = Host(name=SOURCE, runner=self.runner)
            restorer = Restorer(reader=reader, host=host, root=Dataset(root), identity=self.identity, note=print)
            return restorer.restore(choice)


__all__ = ["HERE", "Boxed", "Stage"]
