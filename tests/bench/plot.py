"""The plot of the results: bars of seconds as multiples of the floor, logarithmic, one group for each phase. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from tests.bench.results import Line

COLOURS = {
    "floor": "#8c8c8c", "pve-zfsbackup": "#1f77b4", "bzfs": "#e8963a", "zfs-autobackup": "#7a5195", "sanoid": "#4c9a5f",
}  # fmt: skip
OTHER = "#bbbbbb"
LEFT, WIDTH, BAR, GAP, TOP = 190, 620, 15, 16, 64
FONT = 'font-family="sans-serif" font-size="12"'


def svg(lines: Sequence[Line], title: str) -> str:
    """A complete SVG document; phases without a floor are left out."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line.ratio is not None:
            groups.setdefault((line.workload, line.phase), []).append(line)
    most = max((line.ratio or 1.0 for own in groups.values() for line in own), default=1.0)
    least = min((line.ratio or 1.0 for own in groups.values() for line in own), default=1.0)
    scale = _Scale(min(least, 1.0) / 1.15, max(most, 2.0) * 1.15)
    height = TOP + sum(len(own) * BAR + GAP for own in groups.values()) + 20
    body = [*_axis(scale, height), *_groups(groups, scale)]
    size = f'width="{LEFT + WIDTH + 120}" height="{height}"'
    heading = f'<text x="12" y="22" {FONT} font-weight="bold">{escape(title)}</text>'
    white = f'<rect {size} fill="white"/>'
    return "\n".join((f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', white, heading, *body, "</svg>", ""))


class _Scale:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def x(self, ratio: float) -> float:
        return LEFT + WIDTH * math.log(ratio / self.low) / math.log(self.high / self.low)

    def ticks(self) -> Iterator[float]:
        steps = (base * 10**power for power in range(-2, 4) for base in (1, 2, 5))
        return (step for step in steps if self.low <= step <= self.high)


def _axis(scale: _Scale, height: int) -> Iterator[str]:
    for tick in scale.ticks():
        x = scale.x(tick)
        colour = "#555555" if tick == 1 else "#dddddd"
        yield f'<line x1="{x:.1f}" y1="{TOP - 10}" x2="{x:.1f}" y2="{height - 14}" stroke="{colour}"/>'
        yield f'<text x="{x:.1f}" y="{TOP - 16}" text-anchor="middle" {FONT}>{tick:g}×</text>'


def _groups(groups: dict[tuple[str, str], list[Line]], scale: _Scale) -> Iterator[str]:
    y = TOP
    for (workload, phase), own in groups.items():
        label = f"{workload} {phase}".strip()
        yield f'<text x="12" y="{y + 12}" {FONT}>{escape(label)}</text>'
        for line in sorted(own, key=lambda line: line.ratio or 0.0):
            yield from _bar(line, y, scale)
            y += BAR
        y += GAP


def _bar(line: Line, y: int, scale: _Scale) -> Iterator[str]:
    start, end = sorted((scale.x(scale.low), scale.x(line.ratio or 1.0)))
    colour = COLOURS.get(line.contender, OTHER)
    yield f'<rect x="{start:.1f}" y="{y}" width="{end - start:.1f}" height="{BAR - 2}" fill="{colour}"/>'
    told = f"{line.contender} {line.seconds:.1f} s, {line.ratio:.2f}×"
    yield f'<text x="{end + 4:.1f}" y="{y + 11}" {FONT}>{escape(told)}</text>'
