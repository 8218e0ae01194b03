"""Damage that only reading finds: a shallower look does not see it, so it is remembered until one as deep passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from pve_zfsbackup.app.box import LEVELS, Damage
from pve_zfsbackup.app.catalog import Catalog, Content, Shelf

_OTHERS = ("no identity matched", "builds on ")  # the wrong key, or another point's trouble: nothing is broken there


def read_damage(content: Content, problems: Sequence[str]) -> str:
    """The first of the problems of a point that reading it found; "" where all of them are seen by every look."""
    names = [name for problem in content.problems if (name := problem.partition(" ")[0]).startswith("seg-")]
    for problem in problems:
        listed = any(words in problem for words in (*content.problems, *names))
        if not listed and not any(words in problem for words in _OTHERS):
            return problem
    return ""


def damage_of(level: str, at: float, problem: str) -> Damage:
    """After a sample only a whole look passes: the next sample reads other segments."""
    return Damage(level=level if level in LEVELS else LEVELS[0], at=at, problem=problem)


def told_again(damage: Damage) -> str:
    day = datetime.fromtimestamp(damage.at, UTC).strftime("%Y-%m-%d")
    return f"{damage.problem} (found on {day} by --level {damage.level}, which has not passed since)"


def with_damage(catalog: Catalog, damaged: Mapping[str, Damage]) -> Catalog:
    """The same catalog, in which what is remembered of its points is wrong with them."""
    catalog.shelves = [_shelf(shelf, damaged) for shelf in catalog.shelves] if damaged else catalog.shelves
    return catalog


def _shelf(shelf: Shelf, damaged: Mapping[str, Damage]) -> Shelf:
    return replace(shelf, contents=tuple(_content(content, damaged) for content in shelf.contents))


def _content(content: Content, damaged: Mapping[str, Damage]) -> Content:
    damage = damaged.get(content.signed.outer.point)
    return replace(content, problems=(*content.problems, told_again(damage))) if damage else content
