"""What the sections of the report are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pve_zfsbackup.model import SOURCE
from pve_zfsbackup.report.markup import Child, Markup, tag


def section(title: str, lead: str, *content: Child) -> Markup:
    name = re.sub(r"\W+", "-", title.lower())
    return tag("section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, *content, id=name)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Child]], *, numbers: Iterable[str] = (), kind: str = ""
) -> Markup:
    """A table whose rows become cards on a phone: each cell carries the name of its column. A cell that is None is
    not there, and on a phone takes no line."""
    right = set(numbers)
    style = {name: "number" if name in right else None for name in columns}
    head = tag("tr", [tag("th", name, scope="col", class_=style[name]) for name in columns])
    body = [
        tag(
            "tr",
            [
                tag(
                    "td" if number else "th",
                    cell,
                    data_label=name,
                    class_=_cell(style[name], cell),
                    scope=None if number else "row",
                )
                for number, (name, cell) in enumerate(zip(columns, row, strict=True))
            ],
        )
        for row in rows
    ]
    return tag("table", tag("thead", head), tag("tbody", body), class_=f"cards {kind}".strip())


def _cell(style: str | None, cell: Child) -> str | None:
    return " ".join(filter(None, (style, "empty" if cell is None else None))) or None


def pill(kind: str, text: str) -> Markup:
    """A state in a word; the colour only repeats it."""
    return tag("span", text, class_=f"pill {kind}")


def here(host: str) -> str:
    return "here" if host == SOURCE else f"on {host}"


def guest_cell(vmid: int, name: str) -> Markup:
    return tag("span", tag("span", str(vmid), class_="vmid"), " ", tag("span", name, class_="name"), class_="guest")
