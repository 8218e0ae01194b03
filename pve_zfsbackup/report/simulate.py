"""`simulate`: how many points there would be, how far back they reach, and which they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import datetime, tzinfo
from typing import Any

from pve_zfsbackup.app.simulate import Simulated
from pve_zfsbackup.model import Keep
from pve_zfsbackup.report.format import FORMAT, Table, age, clean, moment

_SHOWN = 4  # times of one day; all are in the JSON


def simulated_table(rows: Sequence[Simulated], tz: tzinfo) -> Table:
    looks = next((row.future.looks for row in rows if row.future), ())
    names = [f"after {age(look.days * 86_400) if look.days > 2 else f'{look.days * 24} h'}" for look in looks]
    cells = [(row.job, row.where, policy(row.keep), *_future(row, len(names), tz)) for row in rows]
    columns = ("job", "where", "policy", *names, "at most", "oldest then", "of the last day")
    return Table(columns=columns, rows=clean(cells), right=frozenset({*names, "at most"}))


def _future(row: Simulated, looks: int, tz: tzinfo) -> Iterator[str]:
    if row.future is None:
        yield from [""] * (looks + 3)
        return
    yield from (str(look.points) for look in row.future.looks)
    yield str(row.future.most)
    yield age(row.future.looks[-1].age)
    times = [datetime.fromtimestamp(creation, tz).strftime("%H:%M") for creation in row.future.last_day]
    yield ", ".join(times) if len(times) <= _SHOWN else f"{times[0]} … {times[-1]} ({len(times)})"


def simulated_points(rows: Sequence[Simulated], tz: tzinfo) -> Table:
    """Every point that would be there at the end, and the rule that keeps it."""
    cells = [
        (row.job, row.where, moment(creation, tz), why)
        for row in rows
        if row.future
        for creation, why in row.future.kept
    ]
    return Table(columns=("job", "where", "creation", "why"), rows=clean(cells))


def simulated_json(rows: Sequence[Simulated], every: int) -> dict[str, Any]:
    return {"format": FORMAT, "every": every, "policies": [_row_json(row) for row in rows]}


def _row_json(row: Simulated) -> dict[str, Any]:
    future = row.future
    return {
        "job": row.job,
        "host": row.where,
        "kind": row.kind,
        "keep": {f"keep-{entry.name}": getattr(row.keep, entry.name) for entry in fields(Keep)} if row.keep else None,
        "after": [{"days": look.days, "points": look.points, "oldest": look.age} for look in future.looks]
        if future
        else None,
        "most": future.most if future else None,
        "end": future.end if future else None,
        "last-day": list(future.last_day) if future else None,
        "kept": [{"creation": creation, "why": why} for creation, why in future.kept] if future else None,
    }


def policy(keep: Keep | None) -> str:
    """A keep rule for people: 24 hourly, 7 daily."""
    if keep is None:
        return "its own, on the target"
    told = [f"{getattr(keep, entry.name)} {entry.name}" for entry in fields(Keep) if getattr(keep, entry.name)]
    return ", ".join(told) or "everything"
