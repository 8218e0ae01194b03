"""What is drawn on a terminal, by rich: tables, bars, colours. Imported only where there is one: a run that cron
starts, with nothing new, would spend a tenth of its time on importing rich."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table as RichTable
from rich.text import Text

from pve_zfsbackup.events import Outcome, Progress
from pve_zfsbackup.report.format import Table, Tone, size

_COLOURS = {Outcome.OK: "green", Outcome.SKIPPED: "dim", Outcome.WARNING: "yellow", Outcome.FAILED: "red"}


READABLE = 6  # letters of a cell in one line, at the least
_TONES = {Tone.LATE: "yellow", Tone.BAD: "bold red"}


def draw_table(table: Table) -> None:
    """On standard output, as wide as the terminal; markup in a cell stays text."""
    console = Console()
    console.print(_drawn(table, console.width))


def draw_screen(heading: str, table: Table | None, notes: Sequence[str]) -> None:
    """The whole screen anew, written at once so that it does not flicker; cut where the screen ends, told how much."""
    console = Console()
    with console.capture() as captured:
        console.print(Text(heading, style="bold"))
        console.print()
        if table is not None:
            console.print(_drawn(table, console.width))
        for note in notes:
            console.print(Text(note))
    lines = captured.get().splitlines()
    room = max(console.height - 1, 2)  # the last one is the cursor's
    if len(lines) > room:
        lines = [*lines[: room - 1], f"… and {len(lines) - room + 1} more lines: make the window larger"]
    with console.capture() as cleared:
        console.clear()
    sys.stdout.write(cleared.get() + "\n".join(lines) + "\n")
    sys.stdout.flush()


def _drawn(table: Table, width: int) -> RenderableType:
    natural = [max(len(row[i]) for row in (table.columns, *table.rows)) for i in range(len(table.columns))]
    if not table.last_below or _total(natural) <= width:
        grid = _grid(table, dict.fromkeys(table.columns), header=True)
        for number in range(len(table.rows)):
            grid.add_row(*_cells(table, number))
        return grid
    rows = (table.columns, *table.rows)
    words = [max(len(word) for row in rows for word in row[i].split(" ")) for i in range(len(natural))]
    widths = dict(zip(table.columns[:-1], _narrowed(natural[:-1], words[:-1], width), strict=True))
    parts: list[RenderableType] = [_grid(table, widths, header=True)]
    for number, row in enumerate(table.rows):
        grid = _grid(table, widths, header=False)
        *cells, last = _cells(table, number)
        grid.add_row(*cells)
        parts += [grid, *([Padding(last, (0, 0, 0, 4))] if row[-1] else [])]
    return Group(*parts)


def _grid(table: Table, widths: Mapping[str, int | None], *, header: bool) -> RichTable:
    grid = RichTable(box=None, pad_edge=False, header_style="bold", show_header=header)
    for column, width in widths.items():
        grid.add_column(column, justify="right" if column in table.right else "left", overflow="fold", width=width)
    return grid


def _cells(table: Table, number: int) -> list[Text]:
    tones = (table.tones.get((number, column)) for column in table.columns)
    return [Text(cell, _TONES[tone] if tone else "") for cell, tone in zip(table.rows[number], tones, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _narrowed(widths: Sequence[int], words: Sequence[int], width: int) -> list[int]:
    """The widest columns give way: first down to their longest words, then as far as they can be read."""
    found = list(widths)
    for floors in (words, [0] * len(found)):
        while _total(found) > width:
            able = [column for column, floor in enumerate(floors) if found[column] > max(floor, READABLE)]
            if not able:
                break
            found[max(able, key=lambda column: found[column])] -= 1
    return found


class _Rate(ProgressColumn):
    """In the units of everything else: rich's own is decimal beside binary sizes."""

    def render(self, task: Task) -> Text:
        return Text(f"{size(int(task.speed))}/s" if task.speed else "", "progress.data.total")  # rich's own is red


class Bars:
    """A bar for each stream on standard error, results above them."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )

    def start(self) -> None:
        self._bars.start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._bars.stop()

    def progress(self, event: Progress) -> None:
        key = (event.host, event.disk)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(escape(f"{event.disk} → {event.host}"), total=event.total)
        self._bars.update(self._tasks[key], completed=event.moved, total=event.total)
        if event.done:
            self._bars.remove_task(self._tasks.pop(key))

    def line(self, text: str, outcome: Outcome) -> None:
        colour = _COLOURS[outcome]
        self._console.print(f"[{colour}]{escape(text)}[/{colour}]", highlight=False)
