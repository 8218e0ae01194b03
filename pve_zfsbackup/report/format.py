"""Tables, sizes, ages: the alphabet of every report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from enum import StrEnum

from pve_zfsbackup.model import printable

FORMAT = 1  # of the JSON; grows when a key changes its meaning or goes


class Tone(StrEnum):
    """What colour says of a cell on a terminal, and only repeats."""

    LATE = "late"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns and rows of text, every cell free of control characters. `tones` by row and column. With `last_below`,
    the last column, which tells in words, stands below its row where a screen is too narrow."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()  # columns of numbers
    tones: Mapping[tuple[int, str], Tone] = field(default_factory=dict)
    last_below: bool = False


def size(count: int) -> str:
    """Bytes for people: 1.5 GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def cost(count: int | None) -> str:
    """Bytes that would be freed, where that is known."""
    return "unknown" if count is None else size(count)


def age(seconds: int) -> str:
    """A span for people: 42 s, 7 min, 5 h, 3 d; -5 h of what is from the future."""
    if seconds < 0:
        return f"-{age(-seconds)}"
    for limit, unit, divisor in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds // divisor} {unit}"
    return f"{seconds // 86400} d"


def moment(epoch: int, tz: tzinfo) -> str:
    """A time for people. What no calendar has is no time, whoever says so: a target is not trusted."""
    try:
        return datetime.fromtimestamp(epoch, tz).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{'(no such time)':<19}"  # as wide as one: some cut the seconds off


def clean(rows: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(printable(cell) for cell in row) for row in rows)
