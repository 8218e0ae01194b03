"""The files of /etc/pve: guest configurations, storage.cfg, replication.cfg (formats: pve-facts §b, §c, §h)."""

import hashlib
import re
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from fakepve.model import PveError

KINDS = {"qemu": "qemu-server", "lxc": "lxc"}
PENDING = {"qemu": "PENDING", "lxc": "pve:pending"}
_SECTION = re.compile(r"^\[([^\]]+)\]\s*$")
_LINE = re.compile(r"^([A-Za-z][\w.-]*):\s*(.*?)\s*$")


@dataclass
class GuestConf:
    """One guest's configuration file, section by section; `digest` is the sha1 of the file as it is."""

    kind: str
    main: dict[str, str] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)
    special: dict[str, dict[str, str]] = field(default_factory=dict)
    snapshots: dict[str, dict[str, str]] = field(default_factory=dict)
    digest: str = ""

    def merged(self) -> dict[str, str]:
        """What the next start will use: the configuration with the pending section applied."""
        out = dict(self.main)
        out.update((k, v) for k, v in self.pending.items() if k != "delete")
        for key in self.deletions():
            out.pop(key, None)
        return out

    def deletions(self) -> list[str]:
        """Keys the pending section removes (`delete: a,!b`; the mark `!` means "forced")."""
        return [k.lstrip("!") for k in re.split(r"[\s,;]+", self.pending.get("delete", "")) if k]

    def dump(self) -> str:
        """The file's text, in the order PVE writes it."""
        parts = [_dump_section(self.main)]
        if self.pending:
            parts.append(f"[{PENDING[self.kind]}]\n" + _dump_section(self.pending))
        parts += [f"[{name}]\n" + _dump_section(keys) for name, keys in sorted(self.special.items())]
        parts += [f"[{name}]\n" + _dump_section(keys) for name, keys in sorted(self.snapshots.items())]
        return "\n".join(parts)


def _dump_section(keys: dict[str, str]) -> str:
    lines = []
    if keys.get("description"):
        lines = ["#" + urllib.parse.quote(line, safe=" !\"#$&'()*+,-./;<=>?@[]^_`{|}~")
                 for line in keys["description"].split("\n")]
    lines += [f"{key}: {value}" for key, value in sorted(keys.items()) if key != "description"]
    return "".join(line + "\n" for line in lines)


def parse_guest(kind: str, raw: bytes) -> GuestConf:
    """Read one configuration file (pve-facts §b "File layout")."""
    conf = GuestConf(kind, digest=hashlib.sha1(raw).hexdigest())
    keys = conf.main
    for line in raw.decode("utf-8", "replace").splitlines():
        if section := _SECTION.match(line):
            keys = _section(conf, section[1])
        elif line.startswith("#"):
            text = urllib.parse.unquote(line[1:])
            keys["description"] = keys["description"] + "\n" + text if "description" in keys else text
        elif item := _LINE.match(line):
            keys[item[1]] = item[2]
    return conf


def _section(conf: GuestConf, name: str) -> dict[str, str]:
    if name == PENDING[conf.kind]:
        return conf.pending
    place = conf.special if name.startswith("special:") else conf.snapshots
    return place.setdefault(name, {})


def parse_sections(text: str) -> dict[str, dict[str, str]]:
    """A section file such as storage.cfg: {id: {"type": T, key: value}}; a bare key counts as 1."""
    out: dict[str, dict[str, str]] = {}
    keys: dict[str, str] = {}
    for line in text.splitlines():
        if head := re.match(r"^([a-z]+):\s*(\S+)\s*$", line):
            keys = out.setdefault(head[2], {"type": head[1]})
        elif item := re.match(r"^\s+(\S+)(?:\s+(.*?))?\s*$", line):
            keys[item[1]] = item[2] or "1"
    return out


class Etc:
    """/etc/pve of one node, read anew at every question, as a client that edits the files expects."""

    def __init__(self, root: Path, node: str) -> None:
        self.root = root
        self.node = node
        self._listed: object = None
        self._version = 0

    def make(self) -> None:
        """Create the directories and links a node has; leaves what exists."""
        here = self.root / "nodes" / self.node
        for path in (here / "qemu-server", here / "lxc", here / "priv", self.root / "priv" / "lock",
                     self.root / "firewall"):
            path.mkdir(parents=True, exist_ok=True)
        for link, target in (("local", f"nodes/{self.node}"), ("qemu-server", f"nodes/{self.node}/qemu-server"),
                             ("lxc", f"nodes/{self.node}/lxc")):
            if not (self.root / link).is_symlink():
                (self.root / link).symlink_to(target)
        (self.root / ".members").write_text(f'{{\n"nodename": "{self.node}",\n"version": 0\n}}\n')
        self.refresh()

    def refresh(self) -> None:
        """Write `.vmlist` when the set of guests has changed, as pmxcfs does at once."""
        ids = self.guests()
        if ids == self._listed:
            return
        self._listed = ids
        self._version += 1
        entries = ",\n".join(f'"{vmid}": {{ "node": "{self.node}", "type": "{kind}", "version": {n} }}'
                             for n, (vmid, kind) in enumerate(ids, 1))
        body = f',\n"ids": {{\n{entries}}}\n\n' if ids else "\n"
        self.replace(self.root / ".vmlist", f'{{\n"version": {self._version}{body}}}\n', 0o640)

    def guests(self) -> list[tuple[int, str]]:
        """Every (vmid, kind) of this node, by vmid."""
        found = []
        for kind, folder in KINDS.items():
            paths = (self.root / "nodes" / self.node / folder).glob("*.conf")
            found += [(int(p.stem), kind) for p in paths if re.fullmatch(r"[1-9][0-9]{2,8}", p.stem)]
        return sorted(found)

    def path(self, kind: str, vmid: int) -> Path:
        """The guest's configuration file."""
        return self.root / "nodes" / self.node / KINDS[kind] / f"{vmid}.conf"

    def conf(self, kind: str, vmid: int) -> GuestConf:
        """The guest's configuration; PveError 500 with PVE's text when it is not on this node."""
        try:
            raw = self.path(kind, vmid).read_bytes()
        except FileNotFoundError:
            name = f"nodes/{self.node}/{KINDS[kind]}/{vmid}.conf"
            raise PveError(500, f"Configuration file '{name}' does not exist") from None
        return parse_guest(kind, raw)

    def save(self, vmid: int, conf: GuestConf) -> None:
        """Write the guest's configuration back, replacing the file in one step."""
        self.replace(self.path(conf.kind, vmid), conf.dump(), 0o640)

    @staticmethod
    def replace(path: Path, text: str, mode: int) -> None:
        """Write a file through a temporary one beside it."""
        tmp = path.with_name(f"{path.name}.tmp.{id(text):x}")
        tmp.touch(mode)
        tmp.write_text(text)
        tmp.replace(path)

    def storages(self) -> dict[str, dict[str, str]]:
        """storage.cfg; `local` exists even when the file does not name it."""
        found = parse_sections(self.text("storage.cfg"))
        found.setdefault("local", {"type": "dir", "path": "/var/lib/vz", "content": "iso,vztmpl,backup"})
        return found

    def replication(self) -> list[dict[str, object]]:
        """replication.cfg as `GET /cluster/replication` shows it (pve-facts §j)."""
        jobs: list[dict[str, object]] = []
        for name, keys in sorted(parse_sections(self.text("replication.cfg")).items()):
            guest, _, number = name.partition("-")
            jobs.append({"id": name, "guest": int(guest), "jobnum": int(number),
                         **{k: int(v) if k == "disable" else v for k, v in keys.items()}})
        return jobs

    def text(self, name: str) -> str:
        """A file's text, empty when it is not there."""
        path = self.root / name
        return path.read_text() if path.exists() else ""

    def digest(self, name: str) -> str:
        """The sha1 of a file as it is."""
        return hashlib.sha1(self.text(name).encode()).hexdigest()

    def nodes(self) -> list[str]:
        """Node names: the folders under nodes/."""
        return sorted(p.name for p in (self.root / "nodes").iterdir() if p.is_dir())
