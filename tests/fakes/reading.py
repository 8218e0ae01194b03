"""`zfs list` and `zfs get` of a fake host."""

from __future__ import annotations

from collections.abc import Sequence

from pve_zfsbackup.host.runner import Completed
from tests.fakes.pools import Ds, Mark, Pools, Snap, no, ok

NONE = (1 << 64) - 1  # what `-p` prints for no limit, and for a count that is not kept


class Reading:
    """What `pools` look like from outside."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools

    def list(self, argv: Sequence[str], words: list[str]) -> Completed:
        depth: int | None = 0
        kinds, columns = "filesystem,volume", "name"
        roots: list[str] = []
        while words:
            word = words.pop(0)
            if word == "-r":
                depth = None
            elif word == "-d":
                depth = int(words.pop(0))
            elif word == "-t":
                kinds = words.pop(0)
            elif word == "-o":
                columns = words.pop(0)
            elif word != "-Hp":
                roots.append(word)
        if not roots:  # everything there is
            roots, depth = list(self.pools.txgs), None
        lines: list[str] = []
        errors = []
        for root in sorted(roots, key=lambda name: name.split("/")):
            if root not in self.pools.datasets:
                errors.append(f"cannot open '{root}': dataset does not exist")
                continue
            lines += self._rows(root, depth, kinds.split(","), columns.split(","))
        out = "".join(f"{line}\n" for line in dict.fromkeys(lines))
        errors.sort(key=lambda line: roots.index(line.split("'")[1]))
        return no(argv, "\n".join(errors), stdout=out) if errors else ok(argv, out)

    def _rows(self, root: str, depth: int | None, kinds: list[str], columns: list[str]) -> list[str]:
        rows = []
        everything = "all" in kinds
        for dataset in self.pools.below(root):
            level = dataset.name.count("/") - root.count("/")
            if depth is not None and level > depth:
                continue
            kind = "volume" if dataset.zvol else "filesystem"
            if everything or kind in kinds:
                rows.append([self.cell(dataset, None, column) for column in columns])
            if depth is not None and level + 1 > depth:
                continue
            if everything or "snapshot" in kinds:
                snaps = sorted(dataset.snaps.values(), key=lambda snap: (snap.createtxg, snap.name))
                rows += [[self.cell(dataset, snap, column) for column in columns] for snap in snaps]
            if everything or "bookmark" in kinds:
                marks = sorted(dataset.marks.values(), key=lambda mark: (mark.createtxg, mark.name))
                rows += [[self.cell(dataset, mark, column) for column in columns] for mark in marks]
        return ["\t".join(row) for row in rows]

    def cell(self, dataset: Ds, part: Snap | Mark | None, column: str) -> str:
        """One property as `zfs list -p` prints it, `-` where it does not apply."""
        if ":" in column:
            if isinstance(part, Mark):
                return "-"
            own = part.props.get(column) if part else None
            return own or self.pools.inherited(dataset.name, column) or "-"
        root = self.pools.encryption_root(dataset)
        crypt = {
            "encryption": dataset.crypt,
            "keystatus": "-" if dataset.crypt == "off" else "available" if dataset.key else "unavailable",
            "encryptionroot": root.name if root else "-",
            "keyformat": (root.keys.keyformat if root.keys else "passphrase") if root else "none",
            "keylocation": dataset.keylocation if root is dataset else "none",
        }
        if isinstance(part, Snap):
            full = f"{dataset.name}@{part.name}"
            values = {
                "type": "snapshot", "name": full, "guid": part.guid, "createtxg": part.createtxg,
                "creation": part.creation, "used": self._used(dataset, part), "referenced": part.refer,
                "written": part.written, "ivsetguid": part.ivset or "-",
                "userrefs": len(part.holds), "clones": ",".join(self.pools.clones(full)) or "-", **crypt,
            }  # fmt: skip
        elif part:
            values = {
                "type": "bookmark", "name": f"{dataset.name}#{part.name}", "guid": part.guid,
                "createtxg": part.createtxg, "creation": part.creation, "referenced": dataset.refer,
                "ivsetguid": part.ivset or "-",
            }  # fmt: skip
        else:
            values = {
                "type": "volume" if dataset.zvol else "filesystem", "name": dataset.name, "guid": dataset.guid,
                "createtxg": dataset.createtxg, "creation": dataset.creation, "used": dataset.refer,
                "referenced": dataset.refer, "origin": dataset.origin or "-",
                "receive_resume_token": dataset.partial.token if dataset.partial else "-", **crypt,
                "written": dataset.dirty,
                "available": self.pools.available(dataset.name), **self._restored(dataset), **self._limits(dataset),
                "compressratio": dataset.props.get("compressratio", "1.00"),
            }  # fmt: skip
        return str(values.get(column, "-"))

    def _limits(self, dataset: Ds) -> dict[str, object]:
        """Counted where there is a limit, on the way up or here; a volume has nothing below it."""
        found: dict[str, object] = {}
        for what in ("snapshot",) if dataset.zvol else ("snapshot", "filesystem"):
            counted = self.pools.inherited(dataset.name, f"{what}_limit")
            found[f"{what}_limit"] = dataset.props.get(f"{what}_limit", NONE)
            found[f"{what}_count"] = self.pools.count(dataset.name, what) if counted else NONE
        return found

    @staticmethod
    def _restored(dataset: Ds) -> dict[str, str]:
        if dataset.zvol:
            plain = {"volblocksize": "16384", "refreservation": "0", "compression": "lz4"}
        else:
            plain = {
                "recordsize": "131072", "compression": "lz4", "acltype": "off", "xattr": "sa", "dnodesize": "legacy",
                "quota": "0", "refquota": "0", "refreservation": "0",
            }  # fmt: skip
        return plain | {key: value for key, value in dataset.props.items() if key in plain or key == "volsize"}

    @staticmethod
    def _used(dataset: Ds, snap: Snap) -> int:
        """Only an approximation: what was written into it, but for the newest."""
        return 0 if snap is dataset.newest else snap.unique

    def get(self, argv: Sequence[str], words: list[str]) -> Completed:
        columns, source, rest = ["name", "property", "value"], "", []
        while words:
            word = words.pop(0)
            if word == "-o":
                columns = words.pop(0).split(",")
            elif word == "-s":
                source = words.pop(0)
            elif word not in ("-Hp", "-H", "-p", "--"):
                rest.append(word)
        prop, *names = rest
        lines, errors = [], []
        for name in names:
            dataset = self.pools.datasets.get(name.partition("@")[0])
            snap = self.pools.find(name) if "@" in name else None
            if dataset is None or ("@" in name and snap is None):
                errors.append(f"cannot open '{name}': dataset does not exist")
                continue
            if prop == "all":
                assert source == "local"
                own = dict(snap.props if snap else dataset.props)
                if snap and dataset.zvol:
                    own["volsize"] = dataset.props["volsize"]  # a zvol's snapshot lists it as its own
                native = sorted(key for key in own if ":" not in key)
                pairs = [(key, own[key]) for key in (*native, *sorted(set(own) - set(native)))]
            elif source:
                assert source == "local,received"
                pairs = [(name, dataset.props[name]) for name in prop.split(",") if name in dataset.props]
            else:
                pairs = [(name, self.cell(dataset, snap, name)) for name in prop.split(",")]
            for key, value in pairs:
                cells = {"name": name, "property": key, "value": value, "source": "local"}
                lines.append("\t".join(cells[column] for column in columns))
        out = "".join(f"{line}\n" for line in lines)
        return no(argv, "\n".join(errors), stdout=out) if errors else ok(argv, out)
