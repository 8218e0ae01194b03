"""The pure part of the matrix: which rows there are, what became of each, and when that counts as passed.

A row is a function that breaks something and returns what it saw. It passes only when it saw something, nothing
contradicted it, and every criterion N1-N8 was looked at and held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

CRITERIA = ("n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8")
MEANING = {
    "n1": "source snapshots, properties, contents unchanged; nobody frozen",
    "n2": "every published point is still there and restores byte-equal",
    "n3": "the next run succeeds unaided, or says what to do; nothing silently full or overwritten",
    "n4": "a common guid on both ends",
    "n5": "no leaked hold, partial receive, clone, lock, timer, bookmark",
    "n6": "no foreign object touched",
    "n7": "what is called the newest point is true",
    "n8": "no secret in logs, arguments, outputs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault. `number` is that of reliability §4; a letter tells variants of one row apart (`32a`)."""

    number: str
    fault: str
    expected: str
    function: Callable[[Any], str]
    fast: bool = False  # part of `make test`
    conflict: bool = False  # the run after the fault must fail with an action, which the row then takes
    impossible: str = ""  # why no lab can do it


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one row. A criterion's complaints are in `broken`; one that was looked at is in `checked`."""

    row: Row
    seen: str = ""
    contradiction: str = ""
    seconds: float = 0.0
    checked: set[str] = field(default_factory=set)
    broken: dict[str, list[str]] = field(default_factory=dict)

    def complain(self, criterion: str, text: str) -> None:
        """A criterion does not hold."""
        if criterion not in CRITERIA:
            raise ValueError(f"no criterion {criterion}")
        self.checked.add(criterion)
        told = self.broken.setdefault(criterion, [])
        if text not in told:
            told.append(text)

    @property
    def result(self) -> str:
        """passed, failed, or impossible."""
        if self.row.impossible:
            return "impossible"
        good = self.seen.strip() and not self.contradiction and not self.broken and self.checked >= set(CRITERIA)
        return "passed" if good else "failed"

    def criterion(self, name: str) -> str:
        if name in self.broken:
            return "; ".join(self.broken[name])
        return "ok" if name in self.checked else "not checked"

    def json(self) -> dict[str, Any]:
        told = self.seen if not self.contradiction else f"{self.seen or 'nothing'} — BUT {self.contradiction}"
        return {
            "row": self.row.number,
            "fault": self.row.fault,
            "expected": self.row.expected,
            "seen": self.row.impossible or told,
            **{name: self.criterion(name) for name in CRITERIA},
            "result": self.result,
            "seconds": round(self.seconds, 1),
        }


class Registry:
    """All rows, in the order of their numbers. `row(...)` is the decorator that adds one."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def row(self, number: str, fault: str, expected: str, **more: Any) -> Callable[[Callable[[Any], str]], Any]:
        def add(function: Callable[[Any], str]) -> Callable[[Any], str]:
            if number in self.rows:
                raise ValueError(f"row {number} is there twice: {function.__name__}")
            if not fault.strip() or not expected.strip():
                raise ValueError(f"row {number} must say what it breaks and what is expected")
            self.rows[number] = Row(number=number, fault=fault, expected=expected, function=function, **more)
            return function

        return add

    def chosen(self, text: str = "", *, fast: bool = False) -> list[Row]:
        """`16,24-31,32a`; nothing means all. A range takes the variants of its rows along. Raises ValueError."""
        rows = sorted(self.rows.values(), key=lambda row: split(row.number))
        if text.strip():
            wanted = [part.strip() for part in text.replace(" ", ",").split(",") if part.strip()]
            rows = [row for row in rows if any(_fits(row.number, part) for part in wanted)]
            for part in wanted:
                if not any(_fits(row.number, part) for row in rows):
                    raise ValueError(f"no row {part}; there are {', '.join(sorted(self.rows, key=split))}")
        return [row for row in rows if row.fast or not fast]


def split(number: str) -> tuple[int, str]:
    digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits), number[len(digits) :]


def _fits(number: str, part: str) -> bool:
    low, dash, high = part.partition("-")
    if dash:
        return int(low) <= split(number)[0] <= int(high)
    return number == part or (part.isdigit() and split(number)[0] == int(part))


def table(outcomes: Iterable[Outcome]) -> str:
    """For a person: a line per row, what was seen below it, and what was broken."""
    lines = []
    for outcome in outcomes:
        marks = "".join(_mark(outcome, name) for name in CRITERIA)
        head = f"{outcome.row.number:>4}  {outcome.result:<10} N[{marks}] {outcome.seconds:6.1f} s  {outcome.row.fault}"
        lines.append(head)
        lines.append(f"      expected: {outcome.row.expected}")
        lines.append(f"      seen:     {outcome.json()['seen'].strip() or 'NOTHING'}")
        lines += [f"      {name.upper()}: {text}" for name, told in sorted(outcome.broken.items()) for text in told]
    return "\n".join(lines)


def _mark(outcome: Outcome, name: str) -> str:
    if name in outcome.broken:
        return name[1]
    return "." if name in outcome.checked else "?"


def summary(outcomes: Sequence[Outcome]) -> str:
    counts = {word: sum(o.result == word for o in outcomes) for word in ("passed", "failed", "impossible")}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no rows"
    return f"matrix: {told}, {sum(o.seconds for o in outcomes):.0f} s"
