"""`zfs send` and `zfs receive` of fake hosts: what flows is a list of packages, cut wherever a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pve_zfsbackup.host.runner import Completed
from tests.fakes.pools import Ds, Keys, Mark, Package, Partial, Pools, Snap, no, ok
from tests.fakes.zfs import usage

UNTOLD = Keys(keyformat="passphrase")  # of an encryption root that a test gave no key
OVERHEAD = 624  # bytes of a stream without data


@dataclass(frozen=True, slots=True)
class Stream:
    """Packages in order; of the first one `skip` bytes are not sent again."""

    packages: tuple[Package, ...]
    skip: int = 0

    @property
    def size(self) -> int:
        return sum(package.size for package in self.packages) - self.skip


class Sender:
    """`zfs send` on one host. `others` are the hosts whose resume tokens it can read (a token is plain data)."""

    def __init__(self, pools: Pools, others: Sequence[Pools]) -> None:
        self.pools = pools
        self.others = others

    def run(self, argv: Sequence[str]) -> tuple[Completed, Stream | None]:
        words = [word for word in argv[2:] if word != "--"]
        dry = "-nvP" in words
        if "-t" in words:
            return self._resume(argv, words[words.index("-t") + 1], dry=dry)
        flags = {word for word in words if word.startswith("-")}
        raw = "-w" in flags
        assert raw or {"-L", "-c"} <= flags, f"neither raw nor as it lies on disk: {argv}"
        assert flags <= {"-nvP", "-L", "-c", "-w", "-i", "-I"}, argv
        names = [word for word in words if not word.startswith("-")]
        goal = self.pools.find(names[-1])
        dataset = self.pools.datasets.get(names[-1].partition("@")[0])
        if dataset is None or goal is None:
            return no(argv, f"cannot open '{names[-1]}': dataset does not exist"), None
        assert raw == (dataset.crypt != "off"), f"encrypted data leaves raw, plain data not: {argv}"
        if len(names) == 1:
            packages = [self._package(dataset, goal, None, raw=raw)]
            return self._told(argv, Stream(tuple(packages)), dry=dry, head="full")
        base = self._base(names[0])
        if base is None:
            return no(argv, self._no_base(names[0], names[-1])), None
        if base.createtxg >= goal.createtxg:
            return no(argv, f"warning: cannot send '{names[-1]}': not an earlier snapshot from the same fs"), None
        steps: list[Snap] = [goal]
        if "-I" in flags:
            assert isinstance(base, Snap), "-I takes no bookmark"
            inner = [s for s in dataset.snaps.values() if base.createtxg < s.createtxg < goal.createtxg]
            steps = [*sorted(inner, key=lambda snap: snap.createtxg), goal]
        packages = []
        last: Snap | Mark = base
        for step in steps:
            packages.append(self._package(dataset, step, last, raw=raw))
            last = step
        told = base.name if "-I" in flags else names[0]
        return self._told(argv, Stream(tuple(packages)), dry=dry, head=f"incremental\t{told}")

    def _package(self, dataset: Ds, snap: Snap, base: Snap | Mark | None, *, raw: bool) -> Package:
        between = [s for s in dataset.snaps.values() if s.createtxg <= snap.createtxg]
        if base is not None:
            between = [s for s in between if s.createtxg > base.createtxg]
        return Package(
            origin=f"{dataset.name}@{snap.name}",
            guid=snap.guid,
            creation=snap.creation,
            content=snap.content,
            refer=snap.refer,
            base=base.guid if base else 0,
            size=OVERHEAD + (sum(s.written for s in between) if base else snap.refer),
            raw=raw,
            zvol=dataset.zvol,
            ivset=snap.ivset,
            keys=(root.keys or UNTOLD) if raw and (root := self.pools.encryption_root(dataset)) else None,
            volsize=dataset.props.get("volsize", ""),
        )

    def _base(self, name: str) -> Snap | Mark | None:
        if "#" in name:
            dataset, _, label = name.partition("#")
            return self.pools.datasets[dataset].marks.get(label) if dataset in self.pools.datasets else None
        return self.pools.find(name)

    def _no_base(self, base: str, goal: str) -> str:
        if "#" in base:
            return f"warning: cannot send '{goal}': incremental source ({base}) does not exist"
        return f"cannot open '{base}': dataset does not exist"

    def _told(self, argv: Sequence[str], stream: Stream, *, dry: bool, head: str) -> tuple[Completed, Stream | None]:
        if not dry:
            return ok(argv), stream
        lines = []
        for number, package in enumerate(stream.packages):
            start = head if number == 0 else f"incremental\t{stream.packages[number - 1].name}"
            lines.append(f"{start}\t{package.origin}\t{package.size}")
        return ok(argv, "\n".join([*lines, f"size\t{stream.size}"]) + "\n"), None

    def _resume(self, argv: Sequence[str], token: str, *, dry: bool) -> tuple[Completed, Stream | None]:
        partials = [ds.partial for pools in self.others for ds in pools.datasets.values() if ds.partial]
        found = next((partial for partial in partials if partial.token == token), None)
        if found is None:
            return no(argv, "cannot resume send: resume token is corrupt (invalid format)", status=255), None
        package = found.package
        assert package.raw or "-w" not in argv, f"the flags are joined: {argv}"
        dataset, _, _ = package.origin.partition("@")
        goal = self.pools.find(package.origin)
        head = found.contents() if dry else ""
        if goal is None:
            fault = f"cannot resume send: '{package.origin}' used in the initial send no longer exists"
            return no(argv, fault, status=255, stdout=head), None
        if goal.guid != package.guid:
            fault = f"cannot resume send: '{package.origin}' is no longer the same snapshot used in the initial send"
            return no(argv, fault, status=255, stdout=head), None
        owner = self.pools.datasets[dataset]
        if package.base and all(b.guid != package.base for b in (*owner.snaps.values(), *owner.marks.values())):
            fault = "cannot resume send: Invalid cross-device link"
            return no(argv, fault, status=255, stdout=head), None
        stream = Stream((package,), found.done)
        if not dry:
            return ok(argv), stream
        kind = "full" if not package.base else f"incremental\t{self._name_of(owner, package.base)}"
        return ok(argv, f"{head}{kind}\t{package.origin}\t{stream.size}\nsize\t{stream.size}\n"), None

    @staticmethod
    def _name_of(owner: Ds, guid: int) -> str:
        snaps = (f"{owner.name}@{snap.name}" for snap in owner.snaps.values() if snap.guid == guid)
        marks = (f"{owner.name}#{mark.name}" for mark in owner.marks.values() if mark.guid == guid)
        return next(iter((*snaps, *marks)))


class Receiver:
    """`zfs receive` on one host."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self._origin = ""  # the snapshot a new dataset is to be a clone of

    def abort(self, argv: Sequence[str]) -> Completed:
        name = argv[-1]
        dataset = self.pools.datasets.get(name)
        if dataset is None:
            return usage(argv, f"cannot open '{name}': dataset does not exist")
        if dataset.partial is None:
            return no(argv, f"'{name}' does not have any resumable receive state to abort")
        if dataset.snaps:  # what it was before stays; a dataset that the receive made goes, a clone as well
            dataset.partial = None
        else:
            del self.pools.datasets[name]
        return ok(argv)

    def run(self, argv: Sequence[str], stream: Stream | None, cut: int | None = None) -> Completed:
        """Take the stream, or its first `cut` bytes, and save what arrived."""
        assert argv[2:4] == ("-s", "-u"), f"received without -s -u: {argv}"
        name = argv[-1]
        self._origin = next((word.partition("=")[2] for word in argv if word.startswith("origin=")), "")
        if stream is None or cut == 0:
            return no(argv, "cannot receive: failed to read from stream")
        if name.partition("/")[0] in self.pools.sealed:
            kind = "incremental" if stream.packages[0].base else "new filesystem"
            return no(argv, f"cannot receive {kind} stream: pool is read-only")
        left = stream.size if cut is None else cut
        skip = stream.skip
        for package in stream.packages:
            if fault := self._refusal(name, package, resumed=bool(skip)):
                return no(argv, fault)
            if left < package.size - skip:
                return no(argv, self._save(name, package, skip + left, resumed=bool(skip)))
            if not self._has(name, package):
                self._store(name, package)
            left -= package.size - skip
            skip = 0
        return ok(argv)

    def _refusal(self, name: str, package: Package, *, resumed: bool) -> str:
        dataset = self.pools.datasets.get(name)
        if not self._has(name, package):
            news = ("snapshot",) if dataset else ("filesystem", "snapshot")
            if any(self.pools.exceeded(name, what) for what in news):
                return f"cannot receive: destination {name} space quota exceeded."
        if resumed:
            return "" if dataset and dataset.partial else "cannot receive resume stream: no state"
        if dataset is None:
            return self._no_place(name, package)
        if not package.base or self._origin:
            return (
                f"cannot receive new filesystem stream: destination '{name}' exists\n"
                "must specify -F to overwrite it"
            )
        if dataset.partial is not None:
            return (
                f"cannot receive incremental stream: destination {name} contains partially-complete state from"
                ' "zfs receive -s".'
            )
        if self._has(name, package):
            return ""
        if package.name in dataset.snaps:
            return f"cannot restore to {name}@{package.name}: destination already exists"
        start = next((snap for snap in dataset.snaps.values() if snap.guid == package.base), None)
        newer = [snap for snap in dataset.snaps.values() if start and snap.createtxg > start.createtxg]
        if start is None:
            return (
                f"cannot receive incremental stream: most recent snapshot of {name} does not\n"
                "match incremental source"
            )
        # A snapshot alone is no modification, but for raw streams.
        if dataset.dirty or any(snap.written or package.raw for snap in newer):
            return (
                f"cannot receive incremental stream: destination {name} has been modified\n"
                "since most recent snapshot"
            )
        return ""

    def _no_place(self, name: str, package: Package) -> str:
        parent = name.rpartition("/")[0]
        origin = self.pools.find(self._origin) if self._origin else None
        if self._origin and (origin is None or origin.guid != package.base):
            return f"cannot receive: local origin for clone {self._origin} does not exist"
        if package.base and origin is None:
            return f"cannot receive incremental stream: destination '{name}' does not exist"
        if parent in self.pools.datasets:
            return ""
        return (
            f"cannot open '{parent}': dataset does not exist\n"
            "cannot receive new filesystem stream: unable to restore to destination"
        )

    def _place(self, name: str, package: Package) -> Ds:
        dataset = self.pools.datasets.get(name)
        if dataset is None:
            above = self.pools.encryption(name.rpartition("/")[0])
            crypt = "aes-256-gcm" if package.raw else above.crypt if above else "off"
            dataset = self.pools.add(name, zvol=package.zvol, crypt=crypt)
            dataset.key, dataset.keys = not package.raw, package.keys  # raw: an encryption root of its own
            dataset.origin = self._origin
        if package.volsize:
            dataset.props["volsize"] = package.volsize
        return dataset

    def _has(self, name: str, package: Package) -> bool:
        """An increment that is there already is passed over in silence."""
        dataset = self.pools.datasets.get(name)
        known = dataset.snaps.get(package.name) if dataset else None
        return bool(package.base and known and known.guid == package.guid)

    def _save(self, name: str, package: Package, done: int, *, resumed: bool) -> str:
        dataset = self._place(name, package)
        dataset.partial = Partial(package=package, done=done)
        kind = "resume" if resumed else "incremental" if package.base else "new filesystem"
        return (
            f"cannot receive {kind} stream: checksum mismatch or incomplete stream.\n"
            "Partially received snapshot is saved.\n"
            "A resuming stream can be generated on the sending system by running:\n"
            f"    zfs send -t {dataset.partial.token}"
        )

    def _store(self, name: str, package: Package) -> None:
        dataset = self._place(name, package)
        dataset.partial = None
        dataset.content, dataset.refer, dataset.dirty = package.content, package.refer, package.size
        made = self.pools.freeze(dataset, package.name, self.pools.txg(name), {})
        made.guid, made.creation = package.guid, package.creation
        if package.raw:
            made.ivset = package.ivset
            dataset.keys = package.keys  # the wrapping of the stream takes the place of the old one

