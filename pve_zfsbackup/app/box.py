"""A box with all that is needed to work with it: how it is reached, keys, and what is remembered of it."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

from pve_zfsbackup.archive.chain import Head, seen_of, series_id
from pve_zfsbackup.archive.names import NAMESPACE, writer_name
from pve_zfsbackup.config import Box, Config
from pve_zfsbackup.errors import BackupError, ConfigError
from pve_zfsbackup.host.notebook import changing, read_json, write_json
from pve_zfsbackup.host.programs import Programs
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.host.seal import Seal
from pve_zfsbackup.host.sftp import Server, Sftp
from pve_zfsbackup.host.spool import spooled
from pve_zfsbackup.host.store import Store
from pve_zfsbackup.host.store_dir import DirectoryStore
from pve_zfsbackup.host.store_rclone import RcloneStore
from pve_zfsbackup.host.store_sftp import SftpStore
from pve_zfsbackup.model import rate_at

HEADS = "heads.json"
PROVEN = "proven.json"
DAMAGED = "damaged.json"
ONLY_ADDS = "only-adds.json"
LEVELS = ("hashed", "opened", "received")  # how deep a whole point was read back


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How far a point was read back, and when (seconds since 1970)."""

    level: str  # one of LEVELS
    at: float

    def deeper_than(self, other: Proof) -> bool:
        return LEVELS.index(self.level) >= LEVELS.index(other.level)

    @classmethod
    def read(cls, members: object) -> Proof:
        """As it is remembered; before there were levels, a point was at least hashed."""
        match members:
            case [str(level), int(at) | float(at)] if level in LEVELS:
                return cls(level=level, at=float(at))
            case int(at) | float(at):
                return cls(level=LEVELS[0], at=float(at))
        raise BackupError(f"{PROVEN}: damaged", hint="remove it: the next `verify archive` makes it anew")


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What reading a point found, and when (seconds since 1970): only a look as deep as `level` takes it back."""

    level: str  # one of LEVELS
    at: float
    problem: str

    def passed_by(self, level: str) -> bool:
        return level in LEVELS and LEVELS.index(level) >= LEVELS.index(self.level)

    @classmethod
    def read(cls, members: object) -> Damage:
        match members:
            case [str(level), int(at) | float(at), str(problem)] if level in LEVELS:
                return cls(level=level, at=float(at), problem=problem)
        raise BackupError(f"{DAMAGED}: damaged", hint="remove it, and let `verify archive --level hashed` look again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vault:
    """One box. `state` is this node's memory of it, `writer` the name under which this node writes ("" if it has no
    signing key)."""

    box: Box
    store: Store
    seal: Seal
    state: Path
    writer: str

    @property
    def programs(self) -> Programs:
        return self.seal.programs

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory for files on their way, which is gone afterwards; see `spooled`."""
        with spooled(self.box.spool_dir) as place:
            yield place

    @property
    def only_adds(self) -> bool:
        """Whether the box was seen to let nothing be removed. `setup box` looks again."""
        return (self.state / ONLY_ADDS).exists()

    def note_only_adds(self, told: str) -> None:
        """Remember that, with its words; without any, that it lets go now."""
        if told:
            write_json(self.state / ONLY_ADDS, {"told": told.encode("ascii", "replace").decode("ascii")})
        else:
            (self.state / ONLY_ADDS).unlink(missing_ok=True)

    def heads(self) -> dict[str, Head]:
        """The newest manifest of each series that was seen here, by `series_name`. Raises `BackupError` when the memory
        is damaged."""
        found = read_json(self.state / HEADS) or {}
        try:
            return {name: Head(sequence=int(head[0]), sha256=str(head[1])) for name, head in found.items()}
        except (TypeError, ValueError, LookupError):
            raise BackupError(
                f"{self.state / HEADS}: damaged, so an older state of the box would not be noticed",
                hint="look at the box, then remove the file",
            ) from None

    def remember(self, name: str, head: Head) -> None:
        """Only ever forwards, also when another process looks at the box at the same time."""
        with changing(self.state / HEADS):
            heads = self.heads()
            known = seen_of(heads, name)
            newest = head if known is None or known.sequence < head.sequence else known
            others = {key: one for key, one in heads.items() if key != series_id(name)}
            if (now := {**others, name: newest}) != heads:
                write_json(self.state / HEADS, {key: [h.sequence, h.sha256] for key, h in sorted(now.items())})

    def proven(self) -> dict[str, Proof]:
        """Points that were read back whole, by their name in the box: to which level, and when."""
        found = read_json(self.state / PROVEN) or {}
        return {str(key): Proof.read(value) for key, value in found.items()}

    def damaged(self) -> dict[str, Damage]:
        """Points in which reading found damage that no listing shows, by their name in the box."""
        found = read_json(self.state / DAMAGED) or {}
        return {str(key): Damage.read(value) for key, value in found.items()}

    def note_damage(self, found: Mapping[str, Damage], over: Collection[str]) -> None:
        """What reading found, and the points that passed or are gone. A level is not lowered by a shallower look."""
        with changing(self.state / DAMAGED):
            known = self.damaged()
            for key, damage in found.items():
                before = known.get(key, damage)
                level = max(before.level, damage.level, key=LEVELS.index)
                known[key] = Damage(level=level, at=before.at, problem=damage.problem)
            left = {key: damage for key, damage in sorted(known.items()) if key not in over}
            write_json(self.state / DAMAGED, {key: [one.level, one.at, one.problem] for key, one in left.items()})

    def note_proven(self, good: Mapping[str, Proof], bad: Collection[str] = ()) -> None:
        """What was read back. A level is not lowered by a shallower look; what was found `bad` is proven no more."""
        with changing(self.state / PROVEN):
            known = self.proven()
            better = {key: proof for key, proof in good.items() if key not in known or proof.deeper_than(known[key])}
            left = {key: proof for key, proof in {**known, **better}.items() if key not in bad}
            write_json(self.state / PROVEN, {key: [proof.level, proof.at] for key, proof in sorted(left.items())})


def open_box(config: Config, name: str, runner: Runner, programs: Programs) -> Vault:
    """A box of the configuration; nothing is connected yet. Raises `ConfigError`."""
    box = config.boxes.get(name)
    if box is None:
        known = ", ".join(config.boxes) or "none"
        raise ConfigError([f"no box named {name}"], hint=f"boxes: {known}")
    return Vault(
        box=box,
        store=_store(box, programs, config.timezone),
        seal=Seal(runner=runner, programs=programs, namespace=NAMESPACE),
        state=config.state_dir / "boxes" / name,
        writer=own_writer(box),
    )


def own_writer(box: Box) -> str:
    try:
        return writer_name(public_key(box).read_text("ascii"))
    except (OSError, UnicodeDecodeError):
        return ""


def public_key(box: Box) -> Path:
    return box.signing_key_file.with_name(f"{box.signing_key_file.name}.pub")


def require_keys(vault: Vault) -> None:
    """Raise `ConfigError` naming every file without which this node can neither write nor read the box."""
    box = vault.box
    needed = (
        box.recipients_file, box.catalog_key_file, box.signing_key_file, public_key(box), box.signers_file,
        *((box.rclone_config_file,) if box.remote else ()),
        *(() if box.directory or box.remote else (box.identity_file, box.known_hosts_file)),
    )  # fmt: skip
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        raise ConfigError(
            [f"box {box.name}: {path} does not exist" for path in missing],
            hint=f"`pve-zfsbackup setup box {box.name}` makes what is missing",
        )


def _store(box: Box, programs: Programs, zone: tzinfo | None) -> Store:
    if box.directory is not None:
        return DirectoryStore(name=box.name, root=box.directory / box.path, mount=box.directory)

    def rate() -> int:
        return rate_at(box.rate_schedule, box.rate, datetime.now(zone).astimezone(zone)) // box.connections

    if box.remote:
        return RcloneStore(
            name=box.name, remote=box.remote, config=box.rclone_config_file, programs=programs, rate=rate
        )
    server = Server(
        host=box.host,
        user=box.user,
        port=box.port,
        path=box.path,
        identity=box.identity_file,
        known_hosts=box.known_hosts_file,
        connect_timeout=int(box.connect_timeout),
    )
    return SftpStore(client=Sftp(name=box.name, programs=programs, server=server, rate=rate))


def fresh(place: Path) -> Path:
    """A name in it that nothing has."""
    return place / secrets.token_hex(8)
