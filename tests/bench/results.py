"""What was measured: runs, their medians and ratios to the floor, as JSON and as a table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

FLOOR = "floor"
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One command that was measured. Seconds, bytes; `void` says why the numbers do not count, empty when they do."""

    workload: str
    phase: str
    contender: str
    repetition: int
    seconds: float
    cpu: float
    processes: int
    here: Mapping[str, int]
    """Programs started on the source, by name; `processes` counts both hosts."""
    sessions: int
    """Command lines the target's sshd started, on whichever connection."""
    connections: int
    """Connections the target's sshd accepted."""
    largest: int
    """Resident memory of the largest process."""
    tree: int
    """Resident memory of all its processes together; what they share is counted for each."""
    load: float
    """Load average of the machine under the lab before the run: above 2 something else ran."""
    void: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender in one phase. Medians of the runs that count; `ratio` to the floor's median."""

    workload: str
    phase: str
    contender: str
    runs: int
    void: tuple[str, ...]
    seconds: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    ratio: float | None = None
    cpu: float | None = None
    processes: int | None = None
    sessions: int | None = None
    connections: int | None = None
    largest: int | None = None
    tree: int | None = None


def lines(runs: Sequence[Run]) -> list[Line]:
    """One line for each workload, phase and contender, in the order they first appear."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.workload, run.phase, run.contender), []).append(run)
    floors = {key[:2]: _median(own, "seconds") for key, own in groups.items() if key[2] == FLOOR}
    order = {key[:2]: number for number, key in reversed(list(enumerate(groups)))}
    ordered = sorted(groups.items(), key=lambda item: order[item[0][:2]])  # stable: contenders as they came
    return [_line(own, floors.get(key[:2])) for key, own in ordered]


def _median(runs: Iterable[Run], field: str) -> float | None:
    values = [getattr(run, field) for run in runs if not run.void]
    return median(values) if values else None


def _line(runs: Sequence[Run], floor: float | None) -> Line:
    first = runs[0]
    good = [run for run in runs if not run.void]
    line = Line(
        workload=first.workload,
        phase=first.phase,
        contender=first.contender,
        runs=len(good),
        void=tuple(run.void for run in runs if run.void),
    )
    if not good:
        return line
    seconds = [run.seconds for run in good]
    return replace(
        line,
        seconds=median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        ratio=median(seconds) / floor if floor else None,
        cpu=median(run.cpu for run in good),
        processes=int(median(run.processes for run in good)),
        sessions=int(median(run.sessions for run in good)),
        connections=int(median(run.connections for run in good)),
        largest=int(median(run.largest for run in good)),
        tree=int(median(run.tree for run in good)),
    )


def as_json(about: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    return {**about, "summary": [asdict(line) for line in lines(runs)], "runs": [asdict(run) for run in runs]}


COLUMNS = (
    *("workload", "phase", "", "seconds", "(min-max)", "x floor", "cpu s"),
    *("programs", "ssh", "conn", "MiB", "all MiB"),
)


def table(runs: Sequence[Run]) -> str:
    """For people: a block for each phase, the fastest first."""
    found = lines(runs)
    rows: list[Sequence[str]] = []
    for phase in dict.fromkeys((line.workload, line.phase) for line in found):
        own = [line for line in found if (line.workload, line.phase) == phase]
        rows += [_row(line) for line in sorted(own, key=lambda line: line.seconds or float("inf"))]
    widths = [max(len(row[column]) for row in (COLUMNS, *rows)) for column in range(len(COLUMNS))]
    text = []
    for number, row in enumerate((COLUMNS, *rows)):
        if number and row[:2] != (COLUMNS, *rows)[number - 1][:2]:
            text.append("")
        text.append("  ".join(_aligned(cell, widths[i], left=i < 3) for i, cell in enumerate(row)).rstrip())
    return "\n".join(text)


def _aligned(cell: str, width: int, *, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)


def _row(line: Line) -> tuple[str, ...]:
    head = (line.workload, line.phase, line.contender)
    if line.seconds is None or line.fastest is None or line.slowest is None:
        return (*head, "void", line.void[0][:60], *[""] * (len(COLUMNS) - 5))
    spread = f"({line.fastest:.1f}-{line.slowest:.1f})" + (f" {len(line.void)} void" if line.void else "")
    ratio = f"{line.ratio:.2f}" if line.ratio else "-"
    counts = (str(line.processes), str(line.sessions), str(line.connections))
    memory = (f"{(line.largest or 0) / MIB:.0f}", f"{(line.tree or 0) / MIB:.0f}")
    return (*head, f"{line.seconds:.1f}", spread, ratio, f"{line.cpu or 0:.1f}", *counts, *memory)
