"""What is drawn on a terminal, by rich: tables, bars, colours. Imported only where there is one: a run that cron
starts, with nothing new, would spend a tenth of its time on importing rich."""

from __future__ import annotations

import contextlib

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table as RichTable

from pve_zfsbackup.events import Outcome, Progress
from pve_zfsbackup.report.format import Table

_COLOURS = {Outcome.OK: "green", Outcome.SKIPPED: "dim", Outcome.WARNING: "yellow", Outcome.FAILED: "red"}


def draw_table(table: Table) -> None:
    """On standard output, as wide as the terminal; markup in a cell stays text."""
    drawn = RichTable(box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        drawn.add_column(column, justify="right" if column in table.right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(cell) for cell in row))
    Console().print(drawn)


class Bars:
    """A bar for each stream on standard error, results above them."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
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
