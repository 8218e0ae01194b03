"""How tables, progress and errors reach a person: by rich on a terminal, as plain lines anywhere else."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pve_zfsbackup.errors import BackupError, ConfigError
from pve_zfsbackup.events import Event, Outcome, Progress, Result
from pve_zfsbackup.model import printable
from pve_zfsbackup.report.format import Table, size

if TYPE_CHECKING:
    from pve_zfsbackup.drawn import Bars


def open_streams() -> None:
    """Make standard streams usable that a caller closed (`>&-`) or whose encoding lacks a letter of a name."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest free number: its own
            setattr(sys, name, os.fdopen(handle, "w" if number else "r", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it


def say(text: str) -> None:
    """To standard output. A reader who went away (`| head`) has read enough: what was done decides the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor shall the interpreter stumble at its end


def settle_streams() -> None:
    """Give up what cannot be written (a full disk, a reader gone): else the interpreter's own flush at its end fails,
    and its exit status 120 takes the place of ours."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_watched() -> bool:
    """Whether a person looks, and not cron."""
    return sys.stdout.isatty()


def print_json(value: Mapping[str, Any]) -> None:
    say(json.dumps(value, indent=2, ensure_ascii=True))


def print_table(table: Table) -> None:
    """A drawn table on a terminal; elsewhere aligned columns that grep and awk can take."""
    if sys.stdout.isatty():
        from pve_zfsbackup.drawn import draw_table  # noqa: PLC0415 - see there

        draw_table(table)
        return
    rows = (table.columns, *table.rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    say("\n".join(line.rstrip() for line in lines))


def redraw(heading: str, table: Table | None, notes: Sequence[str]) -> None:
    """The screen anew. Only where a person looks."""
    from pve_zfsbackup.drawn import draw_screen  # noqa: PLC0415 - see there

    try:
        draw_screen(printable(heading), table, [printable(text) for text in notes])
    except BrokenPipeError:
        raise KeyboardInterrupt("the terminal is gone") from None


def print_error(error: BackupError) -> None:
    """What happened and what to do next, to stderr."""
    lines = error.problems if isinstance(error, ConfigError) else [error.message]
    for line in lines:
        print(f"error: {'; '.join(printable(part) for part in line.splitlines())}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)


def note(text: str) -> None:
    print(f"note: {printable(text)}", file=sys.stderr)


class Reporter:
    """Shows a run while it goes on: bars on a terminal, lines with -v, otherwise only what failed."""

    def __init__(self, *, verbose: bool, quiet: bool) -> None:
        self._verbose = verbose
        self._quiet = quiet  # stdout belongs to JSON
        self._bars = _bars() if sys.stderr.isatty() and not quiet else None
        self._lock = threading.Lock()

    def __enter__(self) -> Reporter:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def emit(self, event: Event) -> None:
        """Called from several threads. Nobody listening (a closed terminal, a full disk) stops no backup."""
        with self._lock, contextlib.suppress(OSError):
            if isinstance(event, Progress):
                self._progress(event)
            elif isinstance(event, Result):
                self._result(event)

    def _progress(self, event: Progress) -> None:
        if not self._bars:
            if event.done and event.moved and self._verbose:
                rate = event.moved / max(event.seconds, 0.001)
                print(f"{event.disk} -> {event.host}: {size(event.moved)}, {size(int(rate))}/s", file=sys.stderr)
            return
        self._bars.progress(event)

    def _result(self, result: Result) -> None:
        bad = result.outcome in (Outcome.FAILED, Outcome.WARNING)
        if not (bad or self._verbose or self._bars):
            return
        line = result_line(result)
        if self._bars:
            self._bars.line(line, result.outcome)
        else:
            print(line, file=sys.stderr)


def result_line(result: Result) -> str:
    """One line for one result: who, what, how it ended, what to do."""
    who = f"guest {result.vmid} ({result.guest})" if result.vmid else ""
    where = f"-> {result.host}" if result.host else ""
    parts = [result.stage, who, where, f"{result.outcome}:", result.message]
    if result.bytes:
        parts.append(f"({size(result.bytes)}, {result.seconds:.1f} s)")
    line = " ".join(part for part in parts if part)
    if result.outcome in (Outcome.FAILED, Outcome.WARNING):
        line += "".join(f"\n  {detail}" for detail in map(printable, result.details))
        line += f"\n  hint: {printable(result.hint)}" if result.hint else ""
    return "\n".join(printable(part) for part in line.split("\n"))


def _bars() -> Bars:
    from pve_zfsbackup.drawn import Bars  # noqa: PLC0415 - see there

    return Bars()
