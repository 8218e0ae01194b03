"""Small pictures in SVG: when the points were made, how long a guest stood still, what was sent. They stretch with the
page, so there is no text in them; what they say stands beside them and in their label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log

from pve_zfsbackup.report.markup import Markup, tag

WIDTH = 1000  # of a drawing, in its own units
HEIGHT = 20
NEAREST, FARTHEST = 900.0, 3 * 365 * 86_400.0  # seconds: the ends of the axis of ages
TICKS = (  # what they are called, how long ago in seconds
    ("1 hour", 3600.0), ("6 hours", 21_600.0), ("1 day", 86_400.0), ("1 week", 604_800.0), ("1 month", 2_592_000.0),
    ("1 year", 31_536_000.0),
)  # fmt: skip


def place(age: float) -> float:
    """Where an age stands between old (0) and now (1): by its logarithm, so that hours and years are both seen."""
    inside = min(max(age, NEAREST), FARTHEST)
    return 1 - log(inside / NEAREST) / log(FARTHEST / NEAREST)


def strip(marks: Mapping[str, Iterable[float]], label: str) -> Markup:
    """A line of points by age: class -> ages in seconds. Points that would lie upon each other are one mark."""
    drawn: list[Markup] = [
        tag("path", class_="tick", d="".join(f"M{place(age) * WIDTH:.0f} 0v{HEIGHT}" for _, age in TICKS))
    ]
    for kind, ages in marks.items():
        places = sorted({round(place(age) * WIDTH / 3) * 3 for age in ages})
        if places:
            drawn.append(tag("path", class_=f"mark {kind}", d="".join(f"M{x} 3v{HEIGHT - 6}" for x in places)))
    return _svg(drawn, label, "strip")


def columns(values: Sequence[float], label: str, *, limit: float = 0.0, kinds: Sequence[str] = ()) -> Markup:
    """Columns from left to right, the highest as high as the drawing; `limit` draws a line across when it is near."""
    highest = max([*values, limit if limit and max(values, default=0) > limit / 4 else 0, 1e-9])
    step = WIDTH / max(len(values), 1)
    drawn = []
    for number, value in enumerate(values):
        if value > 0:
            height = max(value / highest * HEIGHT, 0.6)
            kind = kinds[number] if kinds else ""
            drawn.append(
                tag(
                    "rect", class_=f"column {kind}".strip(), x=round(number * step + step * 0.12, 2),
                    y=round(HEIGHT - height, 2), width=round(step * 0.76, 2), height=round(height, 2),
                )
            )  # fmt: skip
    if limit and highest >= limit:
        drawn.append(tag("path", class_="limit", d=f"M0 {HEIGHT - limit / highest * HEIGHT:.2f}h{WIDTH}"))
    return _svg(drawn, label, "columns")


def bar(shares: Sequence[tuple[str, float]], label: str) -> Markup:
    """Parts of a whole (0 to 1), one behind the other."""
    drawn, left = [], 0.0
    for kind, share in shares:
        width = max(min(share, 1 - left), 0.0)
        x, wide = round(left * WIDTH, 1), round(width * WIDTH, 1)
        drawn.append(tag("rect", class_=f"part {kind}", x=x, y=0, width=wide, height=HEIGHT))
        left += width
    return _svg(drawn, label, "bar")


def _svg(drawn: Sequence[Markup], label: str, kind: str) -> Markup:
    return tag(
        "svg", *drawn, class_=kind, viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none", role="img",
        aria_label=label,
    )  # fmt: skip
