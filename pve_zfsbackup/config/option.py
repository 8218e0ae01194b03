"""What is known about an option besides its type and default, carried by the dataclass field it is."""

from __future__ import annotations

import typing
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Final

from pve_zfsbackup.config.kinds import Kind
from pve_zfsbackup.model import Keep

DEFAULT_KEEP: Final = Keep(hourly=24, daily=7, weekly=4, monthly=12)
KEEP_HELP: Final = (
    "Without this section: 24 hourly, 7 daily, 4 weekly, 12 monthly. With it, only what it names counts; "
    "an empty one ({}) or only zeros keeps everything."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What is known about one option besides its type and default. `kind` is that of the value, of each item
    of a list, or (for a mapping) of each key."""

    help: str
    kind: Kind | None = None
    example: str = ""  # YAML, where the default would not be one
    prefix: str = ""  # put before the keys of the section below
    refers: str = ""  # the top-level section whose names the values must be


def option(text: str, kind: Kind | None = None, *, default: object = MISSING, **about: str) -> Any:
    """A dataclass field that carries its `Option`. Without a default the key is required; `dict` makes an empty
    one."""
    metadata = {"option": Option(help=text, kind=kind, **about)}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def option_of(entry: Field[Any]) -> Option | None:
    """The option behind a dataclass field; `Keep` has plain help texts, as it is part of the model."""
    if "option" in entry.metadata:
        return typing.cast(Option, entry.metadata["option"])
    return Option(help=entry.metadata["help"]) if "help" in entry.metadata else None


def option_fields(section: type) -> tuple[tuple[Field[Any], Option], ...]:
    """Fields of a section that are options, in order."""
    return tuple((entry, about) for entry in fields(section) if (about := option_of(entry)))


def key_of(entry: Field[Any], prefix: str) -> str:
    return prefix + entry.name.replace("_", "-")


@cache
def type_hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section)


def is_section(wanted: object) -> bool:
    return isinstance(wanted, type) and is_dataclass(wanted)


def is_required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING
