"""Which target is meant: by the configuration, the command line, or both where they agree. Hostile words end here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from pve_zfsbackup.config import Config, Target, kinds, parse_config
from pve_zfsbackup.config.example import example_config
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import Dataset, printable

_PLACE: Final = re.compile(r"(?:([^@]*)@)?(\[[^\]]*\]|[^:\[\]]*)(?::([^:]*))?\Z")
_CLIENT: Final = r"!?[A-Za-z0-9.:*?_-]+(?:/[0-9]{1,3})?"
_CLIENTS: Final = re.compile(rf"{_CLIENT}(?:,{_CLIENT})*\Z")
_GUESTS: Final = ("    # Guests found on this node", "    # * ", "    #   - ")
_DEFAULTS: Final = Target(host="localhost", root=Dataset("tank/replicas"))
_NO_TARGETS: Final = "#    targets: [backup1]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The words of the command line; empty ones were not given."""

    name: str
    host: str = ""  # [user@]host[:port]
    root: str = ""
    plain: bool = False
    clients: str = ""
    admin: str = ""  # [user@]host[:port], for root's ssh


@dataclass(frozen=True, slots=True)
class Place:
    """[user@]host[:port]; what was not given is empty or 0."""

    user: str
    host: str
    port: int


def place(text: str, option: str) -> Place:
    """Raises `ConfigError` for what is no place, or could be taken for something else."""
    match = _PLACE.match(text)
    if match is None or (match[1] is None and "@" in text):
        raise _wrong(option, text, "expected [USER@]HOST[:PORT], an IPv6 address in brackets")
    user, host, port = match[1], match[2], match[3]
    host = host[1:-1] if host.startswith("[") else host
    return Place(
        user=_parsed(kinds.USER, user, option) if user is not None else "",
        host=_parsed(kinds.HOST, host, option),
        port=_parsed(kinds.whole(1, 65535), port, option) if port is not None else 0,
    )


def choose(config: Config, asked: Asked) -> Target:
    """The target that is meant. Raises `ConfigError` when words are missing, hostile, or against the configuration."""
    name = _parsed(kinds.TARGET_NAME, asked.name, "NAME")
    if asked.clients and not _CLIENTS.match(asked.clients):
        raise _wrong("--from", asked.clients, "expected addresses or host names, with commas between (sshd(8), from=)")
    if asked.admin:
        place(asked.admin, "--admin")
    known = config.targets.get(name)
    target = _agreed(known, asked) if known else _new(name, asked)
    if target.user == "root":
        raise ConfigError(["the account root cannot be held to anything"], hint="name another: --host USER@HOST")
    spot = (target.host.lower(), target.port, target.root)
    for other in config.targets.values():
        if other.name != name and (other.host.lower(), other.port, other.root) == spot:
            raise ConfigError([f"target {other.name} is the same place: one root takes one target"])
    return target


def _new(name: str, asked: Asked) -> Target:
    if not asked.host or not asked.root:
        raise ConfigError(
            [f"there is no target {name} in the configuration"],
            hint="say where it is to be: --host [USER@]HOST[:PORT] --root POOL/DATASET",
        )
    where = place(asked.host, "--host")
    given: dict[str, Any] = {key: value for key, value in (("user", where.user), ("port", where.port)) if value}
    root = _parsed(kinds.ROOT, asked.root, "--root")
    return Target(name=name, host=where.host, root=root, append_only=not asked.plain, **given)


def _agreed(known: Target, asked: Asked) -> Target:
    against: list[str] = []
    if asked.host:
        where = place(asked.host, "--host")
        pairs = (("user", where.user, known.user), ("host", where.host, known.host), ("port", where.port, known.port))
        against += [f"{key} is {has}, not {given}" for key, given, has in pairs if given and given != has]
    if asked.root and _parsed(kinds.ROOT, asked.root, "--root") != known.root:
        against.append(f"root is {known.root}, not {asked.root}")
    if asked.plain and known.append_only:
        against.append("it is append-only, not plain")
    if against:
        raise ConfigError(
            [f"target {known.name} in the configuration: {text}" for text in against],
            hint="change it there first, or leave these options out",
        )
    return known


def _parsed(kind: kinds.Kind, text: str, option: str) -> Any:
    try:
        return kind.parse(text)
    except ValueError as error:
        raise _wrong(option, text, str(error)) from None


def _wrong(option: str, text: str, why: str) -> ConfigError:
    return ConfigError([f"{option} {printable(text)[:120]!r}: {why}"])


def section(target: Target) -> str:
    """The target as it stands in the configuration, below `targets:`."""
    lines = [f"  {target.name}:", f"    host: {_scalar(target.host)}", f"    root: {target.root}"]
    if target.append_only:
        lines.append("    append-only: true")
    if target.user != _DEFAULTS.user:
        lines.append(f"    user: {_scalar(target.user)}")
    if target.port != _DEFAULTS.port:
        lines.append(f"    port: {target.port}")
    return "\n".join(lines)


def _scalar(text: str) -> str:
    """Quoted where YAML could take it for something else than text."""
    return f"'{text}'" if ":" in text or re.fullmatch(r"[0-9._]+|[A-Za-z]{1,5}", text) else text


def added(text: str, target: Target, file: str) -> str | None:
    """The configuration with the target, and its job sent there; None unless it is still as `setup` wrote it."""
    if _bare(text) != _bare(example_config()):
        return None
    more = text.replace("\ntargets:\n", f"\ntargets:\n{section(target)}\n", 1)
    more = more.replace(f"\n{_NO_TARGETS}\n", f"\n    targets: [{target.name}]\n", 1)
    config = parse_config(more, file)
    good = config.targets.get(target.name) == target and all(target.name in job.targets for job in config.jobs.values())
    return more if good else None


def _bare(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(_GUESTS)]
