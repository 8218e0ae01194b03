"""Problems as they are told to people, and how long they last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that failed. `key` says what it is about: the same next hour is the same problem."""

    key: str
    stage: str = ""
    guest: str = ""  # vmid and name
    host: str = ""
    pool: str = ""
    message: str
    hint: str = ""
    good: str = ""  # the last good point there, as far as known


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A problem that lasts. Times are seconds since the epoch."""

    problem: Problem
    since: int
    seen: int
    told: int = 0  # when, last
    tellings: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """Messages that wait, by service, because it did not take them; and how many problems last."""

    waiting: Mapping[str, int]
    lasting: int
