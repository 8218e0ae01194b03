"""What the ZFS of a fake host remembers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pve_zfsbackup.host.runner import Completed
from tests.fakes.tokens import Item, token

KIB = 1024
FEATURES = {
    "feature@lz4_compress": "active", "feature@large_blocks": "enabled", "feature@large_dnode": "enabled",
    "feature@encryption": "active", "feature@bookmark_v2": "active", "feature@zstd_compress": "enabled",
}  # fmt: skip


@dataclass(slots=True)
class Clock:
    """Seconds since the epoch, the same for all fakes of a test; moved by hand."""

    now: int = 1_795_000_000  # 2026-11-18T11:06:40Z


@dataclass(slots=True, kw_only=True)
class Snap:
    name: str
    guid: int
    createtxg: int
    creation: int
    content: tuple[str, ...]
    refer: int
    written: int  # since the snapshot before it that is there
    unique: int = 0  # what only it has: an approximation, what was written into it when it was made
    ivset: int = 0
    props: dict[str, str] = field(default_factory=dict)
    holds: set[str] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class Mark:
    name: str
    guid: int
    createtxg: int
    creation: int
    ivset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """How the master key of a dataset is wrapped: `secret` is what opens it."""

    keyformat: str
    secret: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One snapshot on its way: a full stream without `base`. A stream has one or, of `-I`, several."""

    origin: str  # the snapshot's full name on the sending side
    guid: int
    creation: int
    content: tuple[str, ...]
    refer: int
    base: int = 0
    size: int = 0
    raw: bool = False
    zvol: bool = False
    ivset: int = 0
    keys: Keys | None = None  # of a raw one: how it is wrapped
    volsize: str = ""  # what a stream carries of the properties

    @property
    def name(self) -> str:
        return self.origin.partition("@")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """An interrupted receive: `done` bytes of `package` are there."""

    package: Package
    done: int

    @property
    def token(self) -> str:
        return token(self._items())

    def contents(self) -> str:
        told = ((name, hex(value) if type(value) is int else value) for name, value in self._items())
        lines = ["resume token contents:", "nvlist version: 0"]
        return "\n".join([*lines, *(f"\t{name} = {1 if value is True else value}" for name, value in told)]) + "\n"

    def _items(self) -> list[Item]:
        base: list[Item] = [("fromguid", self.package.base)] if self.package.base else []
        where: list[Item] = [("object", 2), ("offset", self.done), ("bytes", self.done)]
        what: list[Item] = [("toguid", self.package.guid), ("toname", self.package.origin), ("compressok", True)]
        return [*base, *where, *what, *([("rawok", True)] if self.package.raw else [])]


@dataclass(slots=True, kw_only=True)
class Ds:
    name: str
    guid: int
    createtxg: int
    creation: int
    zvol: bool = False
    props: dict[str, str] = field(default_factory=dict)
    snaps: dict[str, Snap] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
    content: tuple[str, ...] = ()
    refer: int = 96 * KIB
    dirty: int = 0  # bytes written since the newest snapshot
    crypt: str = "off"
    key: bool = True
    keys: Keys | None = None  # of an encryption root
    keylocation: str = "prompt"
    origin: str = ""
    partial: Partial | None = None

    @property
    def newest(self) -> Snap | None:
        return max(self.snaps.values(), key=lambda snap: snap.createtxg, default=None)


@dataclass(slots=True)
class Pools:
    """The datasets of one host, and how the rest of a test touches them: write, look, wreck."""

    seed: str
    clock: Clock
    datasets: dict[str, Ds] = field(default_factory=dict)
    txgs: dict[str, int] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)  # of pools that are not ONLINE
    sealed: set[str] = field(default_factory=set)  # pools that were imported read-only
    features: dict[str, str] = field(default_factory=lambda: dict(FEATURES))
    key_files: dict[str, bytes] = field(default_factory=dict)  # beside those of this machine
    scrubs: dict[str, str] = field(default_factory=dict)  # what `zpool status` says of the last one
    bad_sums: dict[str, int] = field(default_factory=dict)
    devices: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)  # state and why, where told
    errors: dict[str, str] = field(default_factory=dict)  # of a pool's data
    sizes: dict[str, tuple[int | str, int | str]] = field(default_factory=dict)  # of a pool, and what is free
    kstat: bool = True  # whether the states can be read
    version: str = "2.3.9"
    room: int = 1 << 40  # what is available everywhere, quotas apart
    bound: bool = False  # by `snapshot_limit` and `filesystem_limit`: whoever receives here is not root
    _made: int = 0

    def pool(self, name: str) -> None:
        self.txgs[name] = 4
        self.add(name)

    def add(self, name: str, *, zvol: bool = False, crypt: str = "off") -> Ds:
        made = Ds(
            name=name, guid=self.guid(), createtxg=self.txg(name), creation=self.clock.now, zvol=zvol, crypt=crypt
        )
        self.datasets[name] = made
        if zvol:
            made.props["volsize"] = str(1 << 30)
        return made

    def guid(self) -> int:
        """Looks random, as real ones: they do not grow with time."""
        self._made += 1
        return int.from_bytes(hashlib.sha256(f"{self.seed} {self._made}".encode()).digest()[:8], "big") | 1 << 40

    def txg(self, name: str) -> int:
        pool = name.partition("/")[0]
        self.txgs[pool] += 7
        return self.txgs[pool]

    def write(self, name: str, size: int = 64 * KIB) -> None:
        """The guest writes: content that is found again in every replica of a later snapshot."""
        dataset = self.datasets[name]
        self._made += 1
        dataset.content = (*dataset.content, f"{self.seed}:{self._made}")
        dataset.refer += size
        dataset.dirty += size

    def snap(self, name: str) -> Snap:
        """A snapshot somebody else takes."""
        dataset, _, label = name.partition("@")
        return self.freeze(self.datasets[dataset], label, self.txg(dataset), {})

    def freeze(self, dataset: Ds, label: str, txg: int, props: dict[str, str]) -> Snap:
        made = Snap(
            name=label,
            guid=self.guid(),
            createtxg=txg,
            creation=self.clock.now,
            content=dataset.content,
            refer=dataset.refer,
            written=dataset.dirty,
            unique=dataset.dirty,
            props=dict(props),
        )
        if dataset.crypt != "off":
            made.ivset = made.guid ^ 0xABCDEF  # told from the guid, and not it
        dataset.snaps[label] = made
        dataset.dirty = 0
        return made

    def state(self, argv: Sequence[str]) -> Completed:
        """`grep -vx SUSPENDED /proc/spl/kstat/zfs/<pool>/state`"""
        assert argv[1:3] == ("-vx", "SUSPENDED"), argv
        pool = argv[3].split("/")[5]
        if not self.kstat or pool not in self.txgs:
            return no(argv, f"grep: {argv[3]}: No such file or directory", status=2)
        state = self.states.get(pool, "ONLINE")
        return no(argv, "", status=1) if state == "SUSPENDED" else ok(argv, f"{state}\n")

    def status(self, argv: Sequence[str]) -> Completed:
        """`[env TZ=UTC] zpool status -p [--] POOL…` as OpenZFS 2.1 to 2.4 print it."""
        names = [word for word in argv[argv.index("-p") + 1 :] if word != "--"]
        known = [pool for pool in names if pool in self.txgs]
        lost = "".join(f"cannot open '{pool}': no such pool\n" for pool in names if pool not in self.txgs)
        text = "\n".join(self._status(pool) for pool in known)
        return Completed(argv=tuple(argv), returncode=int(bool(lost)), stdout=text, stderr=lost)

    def _status(self, pool: str) -> str:
        """Names are padded by their bytes, as `printf` does it."""
        devices = self.devices.get(pool, {"vda": ("ONLINE", "")})
        group = [("  mirror-0", "ONLINE", 0, "")] if len(devices) > 1 else []
        indent = "    " if group else "  "
        rows = [(pool, self.states.get(pool, "ONLINE"), 0, ""), *group]
        rows += [(indent + name, word, self.bad_sums.get(pool, 0), why) for name, (word, why) in devices.items()]
        width = max(10, *(len(name.encode()) for name, *_ in rows))
        lines = [f"  pool: {pool}", f" state: {rows[0][1]}", f"  scan: {self.scrubs.get(pool, 'none requested')}"]
        lines += ["config:", "", f"\t{'NAME':<{width}}  STATE     READ WRITE CKSUM"]
        for name, word, sums, why in rows:
            padding = " " * (width - len(name.encode()))
            lines += [f"\t{name}{padding}  {word:<8}     0     0 {sums:>5}" + (f"  {why}" if why else "")]
        return "\n".join([*lines, "", f"errors: {self.errors.get(pool, 'No known data errors')}", ""])

    def zpool(self, argv: Sequence[str]) -> Completed:
        if argv[1] == "scrub":
            self.scrubs[argv[2]] = (
                "scrub in progress since Wed Nov 18 11:06:40 2026\n\t1.50G / 4.00G scanned, 1.00G / 4.00G issued\n"
                "\t0B repaired, 25.00% done, 00:00:12 to go"
            )
            return ok(argv)
        if argv[1:] == ("list", "-Hp", "-o", "name,health,size,free"):
            half = (1 << 40, 1 << 39)
            rows = [(pool, self.states.get(pool, "ONLINE"), *self.sizes.get(pool, half)) for pool in sorted(self.txgs)]
            return ok(argv, "".join(f"{pool}\t{state}\t{size}\t{free}\n" for pool, state, size, free in rows))
        if argv[1:-1] == ("list", "-Hp", "-o", "size,free,health", "--"):
            size, free = self.sizes.get(argv[-1], (1 << 40, 1 << 39))
            return ok(argv, f"{size}\t{free}\t{self.states.get(argv[-1], 'ONLINE')}\n")
        if argv[1] == "status":
            return self.status(argv)
        assert argv[1:-1] == ("get", "-Hp", "-o", "property,value", "all", "--"), argv
        if argv[-1] not in self.txgs:
            return no(argv, f"cannot open '{argv[-1]}': no such pool")
        pairs = {"size": "1099511627776", "health": self.states.get(argv[-1], "ONLINE")}
        pairs["readonly"] = "on" if argv[-1] in self.sealed else "off"
        return ok(argv, "".join(f"{name}\t{value}\n" for name, value in (pairs | self.features).items()))

    def find(self, full: str) -> Snap | None:
        dataset, _, label = full.partition("@")
        return self.datasets[dataset].snaps.get(label) if dataset in self.datasets else None

    def get(self, full: str) -> Snap:
        found = self.find(full)
        assert found is not None, f"{full} does not exist"
        return found

    def drop(self, name: str) -> None:
        """`zfs destroy -r`, as Proxmox and administrators do it."""
        for other in [other for other in self.datasets if other == name or other.startswith(f"{name}/")]:
            del self.datasets[other]

    def rename(self, old: str, new: str) -> None:
        dataset = self.datasets.pop(old)
        dataset.name = new
        self.datasets[new] = dataset

    def clones(self, full: str) -> list[str]:
        return sorted(name for name, dataset in self.datasets.items() if dataset.origin == full)

    def below(self, name: str) -> Iterable[Ds]:
        """The dataset and its descendants, parents first, as `zfs list` orders them."""
        found = [other for other in self.datasets if other == name or other.startswith(f"{name}/")]
        return (self.datasets[other] for other in sorted(found, key=lambda other: other.split("/")))

    def inherited(self, name: str, prop: str) -> str | None:
        while name:
            dataset = self.datasets.get(name)
            if dataset and prop in dataset.props:
                return dataset.props[prop]
            name = name.rpartition("/")[0]
        return None

    def available(self, name: str) -> int:
        """What the pool has left, within the quotas on the way up."""
        left = self.room
        while name:
            dataset = self.datasets.get(name)
            if dataset and "quota" in dataset.props:
                left = min(left, int(dataset.props["quota"]) - sum(ds.refer for ds in self.below(name)))
            name = name.rpartition("/")[0]
        return max(0, left)

    def count(self, name: str, what: str) -> int:
        """Snapshots of a dataset and all below it, or how many filesystems and volumes are below it."""
        below = list(self.below(name))
        return sum(len(ds.snaps) for ds in below) if what == "snapshot" else len(below) - 1

    def exceeded(self, name: str, what: str) -> bool:
        """Whether one more would be more than a limit on the way up allows (`dsl_fs_ss_limit_check` of dsl_dir.c)."""
        while self.bound and name:
            dataset = self.datasets.get(name)
            if dataset and self.count(name, what) >= int(dataset.props.get(f"{what}_limit", 1 << 62)):
                return True
            name = name.rpartition("/")[0]
        return False

    def encryption_root(self, dataset: Ds) -> Ds | None:
        """Whose key opens it: the nearest that has one of its own, or whose parent is not encrypted. Of a clone: its
        origin's, wherever it lies."""
        while dataset.crypt != "off":
            mother = self.datasets.get(dataset.origin.partition("@")[0])
            if mother and mother.crypt != "off":
                dataset = mother
                continue
            parent = self.datasets.get(dataset.name.rpartition("/")[0])
            if dataset.keys or parent is None or parent.crypt == "off":
                return dataset
            dataset = parent
        return None

    def encryption(self, name: str) -> Ds | None:
        dataset = self.datasets.get(name)
        return dataset if dataset and dataset.crypt != "off" else None


def ok(argv: Iterable[str], stdout: str = "", stderr: str = "") -> Completed:
    return Completed(argv=tuple(argv), returncode=0, stdout=stdout, stderr=stderr)


def no(argv: Iterable[str], stderr: str, *, status: int = 1, stdout: str = "") -> Completed:
    return Completed(argv=tuple(argv), returncode=status, stdout=stdout, stderr=stderr.rstrip("\n") + "\n")
