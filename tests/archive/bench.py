"""A vault over a directory with real keys and real programs; only `zfs` is not real: what it sends are bytes of the
test's choice, what it receives is kept."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.archive_write import Order, Writer, Written, unfinished
from pve_zfsbackup.app.box import Vault, own_writer
from pve_zfsbackup.app.catalog import Catalog, Shelf, read_catalog
from pve_zfsbackup.app.setup_box import BoxSetup
from pve_zfsbackup.archive.inner import StreamFacts
from pve_zfsbackup.archive.names import NAMESPACE
from pve_zfsbackup.config import Box
from pve_zfsbackup.host.programs import Chain, ProcessPrograms
from pve_zfsbackup.host.runner import ProcessRunner
from pve_zfsbackup.host.seal import Seal
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.store import Space, Store, Upload
from pve_zfsbackup.host.store_dir import DirectoryStore
from pve_zfsbackup.model import SOURCE, Bookmark, Dataset, Guid, PointId, Snapshot, Vmid
from pve_zfsbackup.model.archive import Archived, ArchiveStream, ArchiveTask

MARKER = b"THE-GUESTS-OWN-SECRET-TEXT"
HOUR = 3600
_COPY = "import shutil,sys; shutil.copyfileobj(open(sys.argv[1],'rb'), sys.stdout.buffer)"
_TAKE = "import shutil,sys; shutil.copyfileobj(sys.stdin.buffer, open(sys.argv[1],'wb'))"


@dataclass
class FakeZfsPrograms(ProcessPrograms):
    """`zfs send` gives the bytes of `streams` (by its last words), `zfs receive` keeps them in `received`."""

    place: Path
    streams: dict[str, bytes] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)  # stderr of sends that break at their end
    ran: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.place.mkdir(parents=True, exist_ok=True)

    def cancel(self) -> None:
        """The next attempt of a test is another process, with programs of its own."""
        super().cancel()
        self._cancelled = False

    def received(self, dataset: str) -> list[bytes]:
        found = sorted(self.place.glob(f"received-{dataset.replace('/', '_')}-*"))
        return [path.read_bytes() for path in found]

    @contextlib.contextmanager
    def opened(
        self, *argvs: Sequence[str], source: IO[bytes] | None = None, sink: IO[bytes] | None = None
    ) -> Iterator[Chain]:
        self.ran += [tuple(argv) for argv in argvs]
        changed = [self._argv(tuple(argv)) for argv in argvs]
        with super().opened(*changed, source=source, sink=sink) as chain:
            yield chain

    def _argv(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        if argv[:2] == ("zfs", "send"):
            name = argv[-1]
            file = self.place / f"send-{len(self.ran)}"
            file.write_bytes(self.streams[name])
            if name in self.fails:
                text = f"{_COPY}; sys.exit({self.fails[name]!r})"
                return (sys.executable, "-c", text, str(file))
            return (sys.executable, "-c", _COPY, str(file))
        if argv[:2] == ("zfs", "receive"):
            number = len(self.received(argv[-1]))
            return (
                sys.executable,
                "-c",
                _TAKE,
                str(self.place / f"received-{argv[-1].replace('/', '_')}-{number:03d}"),
            )
        return argv


@dataclass
class FaultyStore:
    """A store that goes through `before` first, which may raise; counts what was put."""

    inner: Store
    before: Callable[[str, str], None] = lambda verb, path: None
    puts: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.inner.name

    def kept(self):  # type: ignore[no-untyped-def]
        return self.inner.kept()

    def list(self, directories):  # type: ignore[no-untyped-def]
        return self.inner.list(directories)

    def put(self, uploads: Sequence[Upload]) -> None:
        for upload in uploads:
            self.before("put", upload.path)
            self.inner.put([upload])
            with self.lock:
                self.puts.append(upload.path)
            self.before("after put", upload.path)

    def get(self, path: str, file: Path, size: int) -> None:
        self.before("get", path)
        self.gets.append(path)
        self.inner.get(path, file, size)

    def get_many(self, pairs, size):  # type: ignore[no-untyped-def]
        self.gets += [path for path, _ in pairs]
        self.inner.get_many(pairs, size)

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.before("remove", path)
            self.inner.remove([path])
            self.removed.append(path)

    def remove_directory(self, path: str) -> None:
        self.before("rmdir", path)
        self.inner.remove_directory(path)

    def space(self) -> Space | None:
        return self.inner.space()

    def free(self) -> int | None:
        return self.inner.free()

    @property
    def segments(self) -> list[str]:
        return [path.rpartition("/")[2][:10] for path in self.puts if "/seg-" in path]


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def text(seed: int, size: int) -> bytes:
    """Bytes that compress well, with the marker in them."""
    return (MARKER + str(seed).encode() * 20) * (size // 40) if size else b""


@dataclass
class Bench:
    """Everything for one guest, 100, with disks of the test's choice."""

    place: Path
    segment_mib: int = 1
    clock: int = 1_800_000_000
    store: FaultyStore = field(init=False)
    programs: FakeZfsPrograms = field(init=False)
    vault: Vault = field(init=False)
    identity: Path = field(init=False)
    naps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        mount = self.place / "mnt"
        mount.mkdir(parents=True)
        keys = self.place / "etc"
        box = Box(
            name="box1",
            host=str(mount),
            path="root",
            recipients_file=keys / "recipients",
            catalog_key_file=keys / "catalog.key",
            signing_key_file=keys / "signing",
            signers_file=keys / "signers",
            segment_mib=self.segment_mib,
            spool_dir=self.place / "spool",
            retry_hours=1.0,
        )
        self.programs = FakeZfsPrograms(self.place / "zfs")
        seal = Seal(runner=ProcessRunner(), programs=self.programs, namespace=NAMESPACE)
        setup = BoxSetup(box=box, seal=seal)
        setup.keys()
        self.identity = self.place / "safe"
        self.identity.write_text(setup.secret + "\n")
        self.store = FaultyStore(DirectoryStore(name="box1", root=mount / "root", mount=mount))
        state = self.place / "state"
        self.vault = Vault(box=box, store=self.store, seal=seal, state=state, writer=own_writer(box))
        recipient = self.place / "catalog.recipient"
        recipient.write_text(seal.recipient(box.catalog_key_file) + "\n")

    @property
    def files(self) -> dict[str, bytes]:
        """Everything in the box."""
        root = self.place / "mnt/root"
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    def file(self, ending: str) -> Path:
        """The one file in the box whose path has this in it."""
        root = self.place / "mnt/root"
        (found,) = [p for p in root.rglob("*") if p.is_file() and ending in str(p)]
        return found

    @property
    def writer(self) -> Writer:
        def nap(stop: threading.Event, seconds: float) -> bool:
            self.naps.append(seconds)
            return stop.is_set()

        return Writer(
            vault=self.vault,
            source=Host(name=SOURCE, runner=ProcessRunner()),
            stamina=Stamina(seconds=3600, clock=lambda: sum(self.naps), pause=nap),
            now=lambda: datetime.fromtimestamp(self.clock, UTC),
            catalog_recipient=(self.place / "catalog.recipient",),
        )

    def catalog(self, *, own: bool = False, identity: Path | None = None) -> Catalog:
        key = identity or self.identity
        return read_catalog(self.vault, identity=key, own=own, unfinished=unfinished(self.vault) if own else ())

    @property
    def shelf(self) -> Shelf | None:
        shelves = self.catalog(own=True, identity=self.vault.box.catalog_key_file).shelves
        return shelves[0] if shelves else None

    def order(self, number: int, disks: dict[str, bytes], *, parent: bool = True, raw: bool = False) -> Order:
        """Point `number` of the guest; each disk sends these bytes."""
        shelf = self.shelf
        last: Archived | None = shelf.archived[-1] if shelf and parent and shelf.archived else None
        streams = []
        facts = []
        for index, (key, data) in enumerate(sorted(disks.items()), 1):
            name = f"pzb:20270115T08{number:02d}00Z-0001"
            dataset = Dataset(f"rpool/data/vm-100-{key}")
            snapshot = Snapshot(
                dataset=dataset, name=name, guid=Guid(str(1000 * index + number)), createtxg=number, creation=self.clock
            )
            before = last.disks.get(key) if last else None
            base = None
            if before is not None:
                mark = f"pzb:{before.guid}:box1"
                base = Bookmark(dataset=dataset, name=mark, guid=before.guid, createtxg=1, creation=1)
            self.programs.streams[snapshot.full_name] = data
            volid = f"local-zfs:vm-100-{key}"
            streams.append(
                ArchiveStream(
                    key=key,
                    volid=volid,
                    volume=Guid(str(index)),
                    dataset=dataset,
                    snapshot=snapshot,
                    base=base,
                    raw=raw,
                )
            )
            facts.append(
                StreamFacts(
                    number=index,
                    key=key,
                    volid=volid,
                    dataset=dataset,
                    volume=Guid(str(index)),
                    type="volume",
                    snapshot=name,
                    to_guid=snapshot.guid,
                    from_guid=base.guid if base else Guid(""),
                    to_ivset=Guid(""),
                    from_ivset=Guid(""),
                    raw=raw,
                    flags=("-L", "-c"),
                )
            )
        task = ArchiveTask(
            point=PointId(f"100/20270115T08{number:02d}00Z-0001"),
            vmid=Vmid(100),
            creation=self.clock + number * HOUR,
            consistency="quiesced",
            parent=last,
            streams=tuple(streams),
        )
        config = {"conf": "name: web\n# \u00e4 secret note\n", "firewall": "[OPTIONS]\n"}
        return Order(task=task, shelf=shelf, facts=tuple(facts), config=config, zfs_version="zfs-2.3.9-1")

    def write(self, number: int, disks: dict[str, bytes], *, parent: bool = True, raw: bool = False) -> Written:
        return self.writer.write(self.order(number, disks, parent=parent, raw=raw), lambda *told: None)

    def boxed(self, **changes: object) -> None:
        """The same vault with other settings of the box."""
        self.vault = replace(self.vault, box=replace(self.vault.box, **changes))  # type: ignore[arg-type]
