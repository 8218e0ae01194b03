"""Answers of two ZFS made comparable: what differs by nature (guids, sizes, times, places) becomes a label."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

SIZES = {"creation", "used", "referenced"}


class Labels:
    """The same number in one case is the same label: order of appearance decides, not the value."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._known: dict[str, str] = {}

    def clean(self, step: Sequence[Any], text: str) -> str:
        text = text.replace(self._base, "{b}")
        text = re.sub(r"\b1-[0-9a-f]{8,}-[0-9a-f]+-[0-9a-f]{32,}", "TOKEN", text)
        text = re.sub(r"(\b(?:object|offset|bytes) = )0x[0-9a-f]+", r"\1#", text)
        text = re.sub(r"0x[0-9a-f]{9,}", lambda match: self._label("guid", str(int(match[0], 16))), text)
        text = re.sub(r"(?m)^(full|incremental|size|reclaim)(\t.*)?\t\d+$", r"\1\2\t#", text)
        text = re.sub(r"(?s)\n?usage:\n.*", "\nusage\n", text)
        if step[:2] == ("zfs", "list"):
            return self._table(step[step.index("-o") + 1].split(","), text)
        if step[0] == "fed" and text.startswith("{"):  # a table of Lua has no order
            text = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
        if step[:2] == ("zfs", "get"):
            text = "".join(f"{line}\n" for line in sorted(text.splitlines()))
        return re.sub(r"\b\d{11,}\b", lambda match: self._label("guid", match[0]), text)

    def _table(self, columns: Sequence[str], text: str) -> str:
        lines = []
        for line in text.splitlines():
            cells = line.split("\t")
            if len(cells) == len(columns):
                pairs = zip(columns, cells, strict=True)
                cells = [self._cell(column, cell) for column, cell in pairs]
            lines.append("\t".join(cells) + "\n")
        return "".join(lines)

    def _cell(self, column: str, cell: str) -> str:
        if column in SIZES:
            return re.sub(r"\d+", "#", cell)
        return self._label(column, cell) if column in ("guid", "createtxg") and cell != "-" else cell

    def _label(self, kind: str, value: str) -> str:
        count = sum(label.startswith(kind) for label in self._known.values())
        return self._known.setdefault(f"{kind} {value}", f"{kind}{count + 1}")


def comparable(steps: Sequence[Sequence[Any]], answers: Sequence[Mapping[str, Any]], base: str) -> list[dict[str, Any]]:
    """The answers of one case, with the step each belongs to."""
    labels = Labels(base)
    told = []
    for step, answer in zip([step for step in steps if step[0] != "write"], answers, strict=True):
        entry: dict[str, Any] = {"step": describe(step), "status": answer["status"]}
        if "sent" in answer:
            entry["sent"] = _sent(answer)
        entry |= {key: labels.clean(step, answer[key]) for key in ("stdout", "stderr") if answer[key]}
        told.append(entry)
    return told


def _sent(answer: Mapping[str, Any]) -> str:
    """How the sender ended. Whether a short stream breaks its pipe or fits into it is a race: both are `ok`."""
    return "ok" if answer["sent"] in (0, -13) else f"status {answer['sent']}"


def describe(step: Sequence[Any]) -> str:
    if step[0] == "fed":
        return " ".join(step[1])
    if step[0] == "pack":
        streams = " + ".join(" ".join(words) for words in step[1])
        cut = f" | cut {step[3][0]} after {step[3][1]} KiB" if len(step) > 3 else ""
        return f"{streams}{cut} | {' && '.join(' '.join(words) for words in step[2])}"
    if step[0] != "pipe":
        return " ".join(step)
    cut = f" | cut {step[3]} KiB" if len(step) > 3 else ""
    return f"{' '.join(step[1])}{cut} | {' '.join(step[2])}"
