"""`zfs` of a fake host: the commands the product issues, with OpenZFS 2.3's texts (tests/conformance shows that)."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pve_zfsbackup.host.destroying import DESTROY
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.zfs import BOOKMARKS
from tests.fakes.pools import Ds, Keys, Mark, Pools, Snap, no, ok
from tests.fakes.reading import Reading

NO_POOL_OF_ITS = """\
Channel program execution failed:
[string "channel program"]:4: dataset '{name}' is not in the target pool
stack traceback:
\t[C]: in function 'exists'
\t[string "channel program"]:4: in main chunk"""


class FakeZfs:
    """Runs `zfs …` on `pools`. Streams are in `streams.py`."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self.reading = Reading(pools)

    def run(self, argv: Sequence[str], input: bytes | None = None) -> Completed:
        if argv[1] in ("load-key", "change-key") or any(word.startswith("keyformat=") for word in argv):
            return FakeKeys(self, input or b"").run(argv)
        if argv[1] == "program":
            programs = {BOOKMARKS: self.bookmarks, DESTROY: self.destroys}
            assert input in programs, "the product has two channel programs"
            return programs[input](argv)
        verb, words = argv[1], [word for word in argv[2:] if word != "--"]
        commands: dict[str, Callable[[Sequence[str], list[str]], Completed]] = {
            "list": self.reading.list,
            "get": self.reading.get,
            "set": self.set,
            "create": self.create,
            "clone": self.clone,
            "mount": self.mount,
            "snapshot": self.snapshot,
            "bookmark": self.bookmark,
            "hold": self.hold,
            "release": self.release,
            "destroy": self.destroy,
            "rename": self.rename,
            "promote": self.promote,
            "version": self.version,
            "inherit": self.inherit,
        }
        assert verb in commands, f"the product never issues {argv}"
        return commands[verb](argv, words)

    def version(self, argv: Sequence[str], words: list[str]) -> Completed:
        return ok(argv, f"zfs-{self.pools.version}-1\nzfs-kmod-{self.pools.version}-1\n")

    # -- changing

    def set(self, argv: Sequence[str], words: list[str]) -> Completed:
        pairs = [word for word in words if "=" in word]
        names = [word for word in words if "=" not in word]
        for name in names:  # not atomic: those before a missing one are set
            found: Ds | Snap | None = self.pools.find(name) if "@" in name else self.pools.datasets.get(name)
            if found is None:
                return no(argv, f"cannot open '{name}': dataset does not exist")
            pairs_of = dict(pair.split("=", 1) for pair in pairs)
            found.props.update({k: "0" if v == "none" and k in SIZES else v for k, v in pairs_of.items()})
        return ok(argv)

    def inherit(self, argv: Sequence[str], words: list[str]) -> Completed:
        prop, name = words
        if name not in self.pools.datasets:
            return no(argv, f"cannot open '{name}': dataset does not exist")
        self.pools.datasets[name].props.pop(prop, None)
        return ok(argv)

    def create(self, argv: Sequence[str], words: list[str]) -> Completed:
        *_, name = words
        options = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-o")
        if fault := self.refuses("create", name):
            return no(argv, fault)
        parent = name.rpartition("/")[0]
        encryption = self.pools.encryption(parent)
        made = self.pools.add(name, zvol="-V" in words, crypt=encryption.crypt if encryption else "off")
        if made.zvol:
            made.props["volsize"] = str(int(words[words.index("-V") + 1].rstrip("M")) << 20)
        made.props.update(options)
        return ok(argv)

    def refuses(self, verb: str, name: str) -> str:
        """Why a dataset of this name cannot be made."""
        pool, parent = name.partition("/")[0], name.rpartition("/")[0]
        if pool not in self.pools.txgs:
            return f"cannot {verb} '{name}': no such pool '{pool}'"
        if name in self.pools.datasets:
            return f"cannot {verb} '{name}': dataset already exists"
        return "" if parent in self.pools.datasets else f"cannot {verb} '{name}': parent does not exist"

    def clone(self, argv: Sequence[str], words: list[str]) -> Completed:
        *_, origin, name = words
        options = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-o")
        snap = self.pools.find(origin)
        if snap is None:
            return no(argv, f"cannot open '{origin}': dataset does not exist")
        if fault := self.refuses("create", name):
            return no(argv, fault)
        mother = self.pools.datasets[origin.partition("@")[0]]
        made = self.pools.add(name, zvol=mother.zvol, crypt=mother.crypt)
        made.origin, made.content, made.refer = origin, snap.content, snap.refer
        if made.zvol:
            made.props["volsize"] = mother.props["volsize"]
        made.props.update(options)
        return ok(argv)

    def mount(self, argv: Sequence[str], words: list[str]) -> Completed:
        """Only of a clone that has a place of its own."""
        dataset = self.pools.datasets[words[-1]]
        assert dataset.origin, f"the product never mounts what is no clone: {argv}"
        assert dataset.props["mountpoint"].startswith("/"), argv
        return ok(argv)

    def promote(self, argv: Sequence[str], words: list[str]) -> Completed:
        """The clone takes its origin's snapshot and all before it; bookmarks stay where they are."""
        (name,) = words
        clone = self.pools.datasets[name]
        if not clone.origin:
            return no(argv, f"cannot promote '{name}': not a cloned filesystem")
        old_name, _, label = clone.origin.partition("@")
        old = self.pools.datasets[old_name]
        limit = old.snaps[label].createtxg
        moving = [snap for snap in old.snaps.values() if snap.createtxg <= limit]
        for snap in moving:
            clone.snaps[snap.name] = old.snaps.pop(snap.name)
            for other in self.pools.datasets.values():
                if other.origin == f"{old_name}@{snap.name}":
                    other.origin = f"{name}@{snap.name}"
        clone.origin, old.origin = old.origin, f"{name}@{label}"
        clone.keys, old.keys = old.keys, None
        return ok(argv)

    def rename(self, argv: Sequence[str], words: list[str]) -> Completed:
        old, new = words
        if old not in self.pools.datasets:
            return no(argv, f"cannot open '{old}': dataset does not exist")
        if fault := self.refuses("rename", new).replace(f"cannot rename '{new}'", f"cannot rename '{old}'"):
            return no(argv, fault)
        moved, parent = self.pools.datasets[old], self.pools.datasets[new.rpartition("/")[0]]
        root = self.pools.encryption_root(moved)
        if root not in (None, moved, self.pools.encryption_root(parent)):  # dsl_dir_rename_crypt_check
            return no(argv, f"cannot rename '{old}': cannot move encrypted child outside of its encryption root")
        for dataset in list(self.pools.below(old)):
            was, now = dataset.name, new + dataset.name.removeprefix(old)
            self.pools.rename(was, now)
            for other in self.pools.datasets.values():
                if other.origin.partition("@")[0] == was:
                    other.origin = f"{now}@{other.origin.partition('@')[2]}"
        return ok(argv)

    def snapshot(self, argv: Sequence[str], words: list[str]) -> Completed:
        options = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-o")
        taken = {at + 1 for at, word in enumerate(words) if word == "-o"}
        names = [word for at, word in enumerate(words) if word != "-o" and at not in taken]
        for name in names:
            if (dataset := name.partition("@")[0]) not in self.pools.datasets:
                return usage(argv, f"cannot open '{dataset}': dataset does not exist")
        if len({name.partition("/")[0] for name in names}) > 1:
            return no(argv, f"cannot create snapshots : invalid cross-device request\n{NO_SNAPSHOTS}")
        taken_names = [name for name in names if self.pools.find(name)]
        if taken_names:
            told = [f"cannot create snapshot '{name}': dataset already exists" for name in taken_names]
            return no(argv, "\n".join([*told, *([NO_SNAPSHOTS] if len(names) > 1 else [])]))
        txg = self.pools.txg(names[0])
        for name in names:
            dataset, _, label = name.partition("@")
            self.pools.freeze(self.pools.datasets[dataset], label, txg, options)
        return ok(argv)

    def bookmarks(self, argv: Sequence[str]) -> Completed:
        """The channel program: each by itself, and errno of those that failed."""
        assert argv[2] == "-j"
        assert argv[4] == "-"
        failed: dict[str, int] = {}
        for origin, name in zip(argv[5::2], argv[6::2], strict=True):
            if {text.partition("/")[0] for text in (origin, name)} != {argv[3]}:
                failed[name] = errno.EXDEV
            elif self.pools.find(origin) is None:
                failed[name] = errno.ENOENT
            elif self.bookmark(argv, [origin, name]).returncode:
                failed[name] = errno.EEXIST
        return ok(argv, json.dumps({"return": failed}, separators=(",", ":")))

    def bookmark(self, argv: Sequence[str], words: list[str]) -> Completed:
        origin, name = words
        dataset, _, label = name.partition("#")
        snap = self.pools.find(origin)
        if snap is None:
            return usage(argv, f"cannot open '{origin}': dataset does not exist")
        marks = self.pools.datasets[dataset].marks
        if label in marks:
            return no(argv, f"cannot create bookmark '{name}': bookmark exists")
        marks[label] = Mark(
            name=label, guid=snap.guid, createtxg=snap.createtxg, creation=snap.creation, ivset=snap.ivset
        )
        return ok(argv)

    def hold(self, argv: Sequence[str], words: list[str]) -> Completed:
        tag, *names = words
        errors = []
        for name in names:  # those that can be held are, whatever the others do
            snap = self.pools.find(name)
            if snap is None:
                errors.append(f"cannot hold snapshot '{name}': dataset does not exist")
            elif tag in snap.holds:
                errors.append(f"cannot hold snapshot '{name}': tag already exists on this dataset")
            else:
                snap.holds.add(tag)
        return no(argv, "\n".join(errors)) if errors else ok(argv)

    def release(self, argv: Sequence[str], words: list[str]) -> Completed:
        tag, *names = words
        found = {name: self.pools.find(name) for name in names}
        had = [name for name, snap in found.items() if snap and tag in snap.holds]
        for snap in found.values():
            if snap:
                snap.holds.discard(tag)
        gone = [name for name, snap in found.items() if snap is None]
        if had and not gone:  # one that had it makes it a success
            return ok(argv)
        told = [f"cannot release hold from snapshot '{name}': dataset does not exist" for name in gone]
        if not had:
            lacking = (name for name, snap in found.items() if snap)
            told += [f"cannot release hold from snapshot '{name}': no such tag on this dataset" for name in lacking]
        return no(argv, "\n".join(told))

    # -- destroying

    def destroy(self, argv: Sequence[str], words: list[str]) -> Completed:
        *flags, name = words
        assert set(flags) <= {"-nvp"}, f"the product never issues {argv}"
        if "#" in name:
            return self._destroy_bookmark(argv, name)
        dataset, _, labels = name.partition("@")
        if not labels:
            return self._destroy_place(argv, name)
        if dataset not in self.pools.datasets:
            return no(argv, f"cannot open '{dataset}': dataset does not exist")
        names = [f"{dataset}@{label}" for label in self._spec(dataset, labels)]
        there = [name for name in names if self.pools.find(name)]
        if not there:
            return no(argv, "could not find any snapshots to destroy; check snapshot names.")
        if flags:
            freed = sum(self.pools.get(name).unique for name in there)
            lines = [*(f"destroy\t{name}" for name in there), f"reclaim\t{freed}"]
            return ok(argv, "\n".join(lines) + "\n")
        if fault := "\n".join(filter(None, map(self._pinned, there))):
            return no(argv, fault)
        for name in there:
            self._drop(self.pools.datasets[dataset], name.partition("@")[2])
        return ok(argv)

    def destroys(self, argv: Sequence[str]) -> Completed:
        """The channel program: each by itself and only with its guid; the names of those that are left."""
        assert argv[2] == "-j"
        assert argv[4] == "-"
        left: dict[str, int] = {}
        for name, guid in zip(argv[5::2], argv[6::2], strict=True):
            if name.partition("/")[0] != argv[3]:
                return no(argv, NO_POOL_OF_ITS.format(name=name))
            snap = self.pools.find(name)
            if snap is None:
                continue
            same = int(snap.guid) == int(guid.removeprefix("=")) % (1 << 64)
            if not same or self._pinned(name):
                left[name] = 1
            else:
                dataset, _, label = name.partition("@")
                self._drop(self.pools.datasets[dataset], label)
        return ok(argv, json.dumps({"return": left}, separators=(",", ":")))

    def _spec(self, dataset: str, labels: str) -> list[str]:
        """`a,b%d`: names, and ranges of whatever lies between, both ends included."""
        snaps = self.pools.datasets[dataset].snaps
        known = sorted(snaps, key=lambda label: snaps[label].createtxg)
        found: list[str] = []
        for part in labels.split(","):
            first, ranged, last = part.partition("%")
            if ranged and first in known and last in known:
                found += known[known.index(first) : known.index(last) + 1]
            elif not ranged:
                found.append(part)
        return found

    @staticmethod
    def _drop(dataset: Ds, label: str) -> None:
        """What was written into it counts for the next one from now on."""
        gone = dataset.snaps.pop(label)
        later = [snap for snap in dataset.snaps.values() if snap.createtxg > gone.createtxg]
        if later:
            min(later, key=lambda snap: snap.createtxg).written += gone.written
        else:
            dataset.dirty += gone.written

    def _pinned(self, name: str) -> str:
        dataset = name.partition("@")[0]
        snap = self.pools.get(name)
        partial = self.pools.datasets[dataset].partial
        if snap.holds:
            return f"cannot destroy snapshot {name}: it's being held. Run 'zfs holds -r {name}' to see holders."
        clones = self.pools.clones(name)
        if partial and partial.package.base == snap.guid:
            clones = [*clones, f"{dataset}/%recv"]
        if not clones:
            return ""
        told = "\n".join(clones)
        return (
            f"cannot destroy '{name}': snapshot has dependent clones\n"
            f"use '-R' to destroy the following datasets:\n{told}"
        )

    def _destroy_place(self, argv: Sequence[str], name: str) -> Completed:
        """Of datasets the product destroys only its own empty places, and clones."""
        dataset = self.pools.datasets.get(name)
        if dataset is None:
            return no(argv, f"cannot open '{name}': dataset does not exist")
        bench = name.count("/") == 1 and "/pve-zfsbackup-" in name
        ours = dataset.origin or bench or "pve-zfsbackup:restore" in dataset.props
        assert ours, f"the product never destroys {argv}"
        below = [f"{ds.name}" for ds in self.pools.below(name) if ds is not dataset]
        below += [f"{name}@{label}" for label in dataset.snaps]
        if below:
            told = "\n".join(below)
            return no(
                argv,
                f"cannot destroy '{name}': filesystem has children\n"
                f"use '-r' to destroy the following datasets:\n{told}",
            )
        del self.pools.datasets[name]
        return ok(argv)

    def _destroy_bookmark(self, argv: Sequence[str], name: str) -> Completed:
        dataset, _, label = name.partition("#")
        marks = self.pools.datasets[dataset].marks if dataset in self.pools.datasets else {}
        if label not in marks:
            return no(argv, f"bookmark '{name}' does not exist.")
        del marks[label]
        return ok(argv)


class FakeKeys:
    """The commands that take a key, from the file it lies in or from standard input."""

    def __init__(self, zfs: FakeZfs, input: bytes) -> None:
        self.pools = zfs.pools
        self.zfs = zfs
        self.input = input

    def run(self, argv: Sequence[str]) -> Completed:
        options, location, at = {}, "", 2
        while argv[at].startswith("-"):
            if argv[at] == "-o":
                key, _, options[key] = argv[at + 1].partition("=")
            elif argv[at] == "-L":
                location = argv[at + 1]
            at += 1 if argv[at] in ("-n", "-i", "--") else 2
            if argv[at - 1] == "--":
                break
        (name,) = argv[at:]
        if argv[1] == "create":
            return self.create(argv, name, options)
        dataset = self.pools.datasets.get(name)
        if dataset is None:
            return no(argv, f"cannot open '{name}': dataset does not exist")
        if self.pools.encryption_root(dataset) is not dataset:
            root = self.pools.encryption_root(dataset)
            what = f"Keys must be loaded for encryption root of '{name}' ({root.name})." if root else ""
            what = what or f"'{name}' is not encrypted."
            return no(argv, f"Key load error: {what}", status=255)
        if argv[1] == "change-key":
            return self.inherit(argv, dataset) if "-i" in argv else self.change(argv, dataset, options)
        done = self.load(argv, dataset, location or dataset.keylocation)
        if "-n" not in argv and done.returncode == 0:
            dataset.key = True
        return done

    def inherit(self, argv: Sequence[str], dataset: Ds) -> Completed:
        parent = self.pools.datasets[dataset.name.rpartition("/")[0]]
        fault = "" if dataset.key and parent.key else "Key must be loaded."
        fault = fault or ("" if parent.crypt != "off" else "Parent must be encrypted.")
        if fault:
            return no(argv, f"Key change error: {fault}", status=255)
        dataset.keys = None
        return ok(argv)

    def create(self, argv: Sequence[str], name: str, options: dict[str, str]) -> Completed:
        fault, secret = self.secret(options["keyformat"], options["keylocation"])
        if fault := self.zfs.refuses("create", name) or (fault and f"cannot create '{name}': {fault}"):
            return no(argv, fault)
        made = self.pools.add(name, crypt=options["encryption"])
        made.keys, made.keylocation = Keys(keyformat=options["keyformat"], secret=secret), options["keylocation"]
        return ok(argv)

    def change(self, argv: Sequence[str], dataset: Ds, options: dict[str, str]) -> Completed:
        fault, secret = self.secret(options["keyformat"], options["keylocation"])
        if not dataset.key:
            fault = "Key must be loaded."
        if dataset.origin:
            fault = "Keys cannot be changed on clones."
        if fault:
            return no(argv, f"Key change error: {fault}", status=255)
        dataset.keys = Keys(keyformat=options["keyformat"], secret=secret)
        dataset.keylocation = options["keylocation"]
        return ok(argv)

    def load(self, argv: Sequence[str], dataset: Ds, location: str) -> Completed:
        assert dataset.keys, f"a test that tries keys gives {dataset.name} one"
        fault, secret = self.secret(dataset.keys.keyformat, location)
        if not fault and secret != dataset.keys.secret:
            fault = f"Incorrect key provided for '{dataset.name}'."
        return no(argv, f"Key load error: {fault}", status=255) if fault else ok(argv)

    def secret(self, keyformat: str, location: str) -> tuple[str, bytes]:
        """What is wrong with the key, and the key."""
        material = self.input
        if location != "prompt":
            path = location.removeprefix("file://")
            try:
                material = self.pools.key_files.get(path) or Path(path).read_bytes()
            except OSError:
                return "Failed to open key material file", b""
        if keyformat == "raw":
            size = len(material)
            fault = f"Raw key too {'short' if size < 32 else 'long'} (expected 32)."
            return ("" if size == 32 else fault), material
        material = material.partition(b"\n")[0]
        if len(material) < 8:
            return "Passphrase too short (min 8).", b""
        return "", material


def usage(argv: Sequence[str], fault: str) -> Completed:
    """What `zfs` prints where it takes a missing dataset for a wrong argument."""
    hints = (
        "For the property list, run: zfs set|get",
        "For the delegated permission list, run: zfs allow|unallow",
        "For further help on a command or topic, run: zfs help [<topic>]",
    )
    return no(argv, "\n".join((fault, "usage:", f"\t{argv[1]} …", *(f"\n{hint}" for hint in hints))), status=2)


SIZES = frozenset({"quota", "refquota", "refreservation", "reservation"})  # `-p` prints none as 0
NO_SNAPSHOTS = "no snapshots were created"
