"""How much of a link replication may use: bytes per second, by the hour and the day of the week."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE: Final = re.compile(r"([0-9]{1,12})([KMG]?)\Z")
_RULE: Final = re.compile(
    r"(?:([a-z]{3})(?:-([a-z]{3}))?\s+)?([0-2][0-9]):([0-5][0-9])-([0-2][0-9]):([0-5][0-9]):\s*([0-9]+[KMG]?)\Z"
)
MINUTES: Final = 24 * 60

RATE_FORMS: Final = "bytes per second such as 500K, 20M or 1G, 0 for no limit"
RATE_RULE_FORMS: Final = "'08:00-18:00: 20M' or 'mon-fri 08:00-18:00: 20M'"


class Compress(StrEnum):
    """Whether streams are compressed on the wire."""

    OFF = "off"
    ZSTD = "zstd"
    AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRule:
    """A rate that holds from minute `start` of the day to `end`; over midnight where `end` is not later. The day is
    that on which it begins, Monday is 0."""

    days: frozenset[int]
    start: int
    end: int
    rate: int

    def holds(self, when: datetime) -> bool:
        minute, day = when.hour * 60 + when.minute, when.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return (day in self.days and minute >= self.start) or ((day - 1) % 7 in self.days and minute < self.end)


def rate_at(rules: Iterable[RateRule], otherwise: int, when: datetime) -> int:
    """Bytes per second that hold at this local time: the first rule that fits, else `otherwise`."""
    return next((rule.rate for rule in rules if rule.holds(when)), otherwise)


def parse_size(text: str) -> int:
    """Read `500K`, `20M`, `1G`: powers of 1024. Raises ValueError."""
    match = _SIZE.match(text)
    if not match:
        raise ValueError("expected a number of bytes such as 500K, 20M or 1G")
    return int(match[1]) * _UNITS[match[2]]


def parse_rate(text: str) -> int:
    """Read a rate. Less than 1 KiB/s would be a mistake. Raises ValueError naming the forms."""
    try:
        rate = parse_size(text)
    except ValueError:
        raise ValueError(f"expected {RATE_FORMS}") from None
    if 0 < rate < 1 << 10:
        raise ValueError(f"expected {RATE_FORMS}: at least 1K")
    return rate


def parse_rate_rule(text: str) -> RateRule:
    """Read `mon-fri 08:00-18:00: 20M`. Raises ValueError naming the forms."""
    match = _RULE.match(text.strip())
    if not match:
        raise ValueError(f"expected {RATE_RULE_FORMS}")
    first, last, *numbers, rate = match.groups()
    hours = [int(number) for number in numbers]
    start, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
    if start >= MINUTES or end > MINUTES:
        raise ValueError("expected times from 00:00 to 24:00")
    if start == end:
        raise ValueError("expected an end that differs from the beginning; 00:00-24:00 is the whole day")
    return RateRule(days=_days(first, last or first), start=start, end=end, rate=parse_rate(rate))


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None or last is None:
        return frozenset(range(7))
    if first not in _DAYS or last not in _DAYS:
        raise ValueError(f"expected days of {', '.join(_DAYS)}")
    start, end = _DAYS.index(first), _DAYS.index(last)
    return frozenset((start + offset) % 7 for offset in range((end - start) % 7 + 1))
