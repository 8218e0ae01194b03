"""A sanoid.conf, read as sanoid reads it (its `init`, version 2.3): sections, templates, recursion, defaults.

Lines keep their numbers, so that what became of each can be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import Keep, printable

PERIODS: Final = ("hourly", "daily", "weekly", "monthly", "yearly")
TEMPLATE: Final = "template_"
MOST: Final = 100_000  # what our own options take
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_SPAN: Final = {"y": 31_536_000, "w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
# Of a threshold without a unit, by the period it is about.
_UNIT: Final = {
    "frequently": 1, "hourly": 60, "daily": 3600, "weekly": 86_400, "monthly": 604_800, "yearly": 2_678_400,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A setting and where it stands; 0 where it is sanoid's default."""

    number: int
    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One `[name]` with its settings. Of a key that stands there twice, the first counts."""

    number: int
    name: str
    lines: tuple[Line, ...]

    @property
    def settings(self) -> dict[str, Line]:
        return {line.key: line for line in reversed(self.lines)}

    def value(self, key: str) -> str:
        return self.settings[key].value if key in self.settings else ""

    @property
    def is_template(self) -> bool:
        return self.name.startswith(TEMPLATE)

    @property
    def path(self) -> str:
        return self.value("path") or self.name

    @property
    def templates(self) -> tuple[str, ...]:
        return tuple(filter(None, (name.strip() for name in self.value("use_template").split(","))))

    @property
    def recursive(self) -> bool:
        return is_true(self.value("recursive")) or "zfs" in self.value("recursive").lower()

    @property
    def leaves_children(self) -> bool:
        return is_true(self.value("skip_children"))

    @property
    def children_only(self) -> bool:
        return is_true(self.value("process_children_only"))


Settings = Mapping[str, Line]
DEFAULTS: Final[Settings] = {
    key: Line(number=0, key=key, value=value)
    for key, value in {
        "autosnap": "1", "autoprune": "yes", "frequently": "0", "hourly": "48", "daily": "90", "weekly": "0",
        "monthly": "6", "yearly": "0",
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What sanoid does with a dataset, in our words. `keep` is None where it takes no snapshots.

    `warn` and `critical` in hours, None where the file sets nothing that `check` could use.
    """

    keep: Keep | None
    warn: float | None = None
    critical: float | None = None


def is_true(text: str) -> bool:
    return text.strip().lower() in _TRUE


def parse_sanoid(text: str, filename: str) -> tuple[Section, ...]:
    """The sections in their order. Raises `ConfigError` with every line that is neither section, setting nor comment,
    and for numbers that are none."""
    problems: list[str] = []
    sections: list[Section] = []
    found: list[Line] = []
    head: tuple[int, str] | None = None

    def end() -> None:
        if head is not None:
            sections.append(Section(number=head[0], name=head[1], lines=tuple(found)))
        found.clear()

    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip().lstrip("\ufeff")
        if not line or line[0] in "#;":
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if line[0] == "[" and line[-1] == "]":
            end()
            head = (number, line[1:-1].strip())
        elif not equals or head is None:
            problems.append(f"{printable(filename)}:{number}: expected [a section] or key = value")
        elif key in (*PERIODS, "frequently") and not re.fullmatch(r"[0-9]{1,6}", value):
            problems.append(f"{printable(filename)}:{number}: {key}: expected a number")
        else:
            found.append(Line(number=number, key=key, value=value))
    end()
    if problems:
        raise ConfigError(problems, hint="is this a sanoid.conf?")
    return tuple(sections)


def apply(sections: Sequence[Section], datasets: Iterable[str]) -> dict[str, tuple[Section, Settings]]:
    """For each of the datasets that sanoid would handle: the last section that speaks of it, and its settings.

    As sanoid does it: sections in their order, children of a recursive one take its settings, and what a later
    section says of them comes on top.
    """
    known = sorted(datasets)
    found: dict[str, tuple[Section, Settings]] = {}
    for section in sections:
        if section.is_template or section.name == "version":
            continue
        before = found.get(section.path)
        settings = effective(section, sections, before[1] if before else None)
        below = [name for name in known if name.startswith(f"{section.path}/")]
        if section.path in known:
            found[section.path] = (section, settings)
        if section.leaves_children:
            for name in below:
                found.pop(name, None)
        elif section.recursive:
            found |= dict.fromkeys(below, (section, settings))
        if section.children_only:
            found.pop(section.path, None)
    return found


def effective(section: Section, sections: Sequence[Section], inherited: Settings | None = None) -> dict[str, Line]:
    """The settings of a section: defaults or what it inherits, then its templates, then its own."""
    templates = {one.name.removeprefix(TEMPLATE): one.settings for one in sections if one.is_template}
    settings = dict(inherited) if inherited is not None else {**DEFAULTS, **templates.get("default", {})}
    for name in section.templates:
        settings |= templates.get(name, {})
    return settings | section.settings


def policy_of(settings: Settings) -> Policy:
    """What the settings come to. Zeros keep nothing there, and everything here: so they are no policy."""
    counts = {period: _count(settings, period) for period in PERIODS}
    last = 0 if any(counts.values()) else _count(settings, "frequently")
    keep = Keep(last=last, **counts)
    if not is_on(settings, "autosnap") or keep.everything:
        return Policy(keep=None)
    warn, critical = _age(settings, "warn"), _age(settings, "crit")
    if warn is not None and critical is not None and warn > critical:
        warn = critical
    return Policy(keep=keep if is_on(settings, "autoprune") else Keep(), warn=warn, critical=critical)


def is_on(settings: Settings, key: str) -> bool:
    return key in settings and is_true(settings[key].value)


def _count(settings: Settings, period: str) -> int:
    return min(int(settings[period].value), MOST) if period in settings else 0


def _age(settings: Settings, level: str) -> float | None:
    """Of the shortest period that is kept and watched: how old its newest snapshot may be, in hours."""
    for period in ("frequently", *PERIODS):
        line = settings.get(f"{period}_{level}")
        if line and _count(settings, period):
            return hours(line.value, period)
    return None


def hours(text: str, period: str) -> float | None:
    """A threshold of sanoid's monitoring in hours: `90m`, or a number of the period's own unit; None for 0."""
    match = re.fullmatch(r"(\d{1,6})\s*([ywdhms]?)", text.strip().lower())
    if not match or not int(match[1]):
        return None
    span = int(match[1]) * (_SPAN[match[2]] if match[2] else _UNIT[period]) / 3600
    return min(max(round(span, 2), 0.01), float(MOST))
