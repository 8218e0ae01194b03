"""What the command line tools print."""

import json
import re
from dataclasses import dataclass
from typing import Any

from fakepve.model import PveError


@dataclass(frozen=True)
class Reply:
    """What a program leaves behind."""

    code: int
    out: str = ""
    err: str = ""


def pretty(data: Any) -> str:
    """JSON as Perl's `pretty` and `canonical` write it."""
    return json.dumps(data, indent=3, separators=(",", " : "), sort_keys=True, ensure_ascii=False) + "\n"


def compact(data: Any) -> str:
    """Sorted JSON on one line."""
    return json.dumps(data, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def exit_code(message: str) -> int:
    """The exit codes recorded: leftover errno values, so only zero or not means anything (pve-observed)."""
    return 2 if re.match(r"Configuration file '|VM \d+ is not running$", message) else 255


def error_reply(exc: PveError, usage: str = "") -> Reply:
    """A failed call on stderr."""
    if exc.errors:
        lines = "".join(f"{key}: {text}\n" for key, text in sorted(exc.errors.items()))
        return Reply(255, "", f"{exc.status} {exc.message}\n{lines}{usage}")
    return Reply(exit_code(exc.message), "", exc.message + "\n")


def rendered(data: Any, form: str) -> str:
    """A result in one of pvesh's formats."""
    if form == "json":
        return compact(data) + "\n"
    if form == "json-pretty":
        return pretty(data)
    if isinstance(data, dict):
        return table(["key", "value"], [[key, _cell(value)] for key, value in sorted(data.items())])
    if isinstance(data, list) and data and all(isinstance(item, dict) for item in data):
        columns = sorted({key for item in data for key in item})
        return table(columns, [[_cell(item.get(key, "")) for key in columns] for item in data])
    return "".join(_cell(item) + "\n" for item in data) if isinstance(data, list) else _cell(data) + "\n"


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else compact(value)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """The bordered table of the text format."""
    widths = [max(len(row[n]) for row in [columns, *rows]) for n in range(len(columns))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+\n"

    def line(cells: list[str]) -> str:
        return "|" + "|".join(f" {cell:<{width}} " for cell, width in zip(cells, widths, strict=True)) + "|\n"
    body = rule.join(line(row) for row in rows)
    return rule + line(columns) + rule.replace("-", "=") + body + rule
