"""The lines of the journal, put together to runs. A line that is not understood is left out: it feeds reports only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pve_zfsbackup.model import Dataset
from pve_zfsbackup.model.room import Room
from pve_zfsbackup.model.runs import PastRun, StageTold, Trouble

WORTH_TELLING = ("failed", "warning")


@dataclass(slots=True)
class _Open:
    """A run while its lines are read."""

    started: float
    planned: list[str] = field(default_factory=list)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    troubles: list[Trouble] = field(default_factory=list)
    ended: float | None = None
    exit_code: int | None = None
    seconds: float = 0.0
    broken_off: str = ""

    def take(self, when: float, line: Mapping[str, Any]) -> None:
        match line.get("event"):
            case "start":
                self.planned = [str(stage) for stage in line.get("stages", ())]
            case "result":
                self._result(line)
            case "deferred":  # another run was at it
                for stage in map(str, line["stages"]):
                    self.planned = [name for name in self.planned if name != stage]
                    self.outcomes.pop(stage, None)
            case "end":
                self.ended, self.exit_code = when, int(line["exit_code"])
                self.seconds = float(line.get("seconds", when - self.started))
            case "broken-off":
                self.ended, self.exit_code, self.seconds = when, 2, when - self.started
                self.broken_off = str(line.get("error", ""))

    def _result(self, line: Mapping[str, Any]) -> None:
        stage, outcome = str(line["stage"]), str(line["outcome"])
        count = int(line.get("bytes", 0))
        guest = f"{line.get('vmid', '')} {line.get('guest', '')}".strip()
        self.outcomes.setdefault(stage, Counter())[outcome] += 1
        self.sent[stage] += count
        if outcome in WORTH_TELLING:
            host, message = str(line.get("host", "")), str(line.get("message", ""))
            self.troubles.append(Trouble(stage=stage, outcome=outcome, guest=guest, host=host, message=message))

    def closed(self, name: str) -> PastRun:
        stages = dict.fromkeys((*self.planned, *self.outcomes))
        return PastRun(
            name=name,
            started=self.started,
            ended=self.ended,
            exit_code=self.exit_code,
            seconds=self.seconds,
            stages={
                stage: StageTold(outcomes=dict(self.outcomes.get(stage, {})), bytes=self.sent[stage])
                for stage in stages
            },
            troubles=tuple(self.troubles),
            broken_off=self.broken_off,
        )


def past_runs(lines: Iterable[Mapping[str, Any]]) -> tuple[PastRun, ...]:
    """The runs these lines tell of, oldest first. Lines of runs that overlap may be mixed."""
    found: dict[str, _Open] = {}
    for line in lines:
        try:
            when = datetime.fromisoformat(line["time"]).timestamp()
            name = str(line["run"])
            found.setdefault(name, _Open(started=when)).take(when, line)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            continue
    return tuple(run.closed(name) for name, run in found.items())


def past_rooms(lines: Iterable[Mapping[str, Any]]) -> tuple[Room, ...]:
    """The room there was at each root as runs saw it."""
    found = []
    for line in lines:
        try:
            at = datetime.fromisoformat(line["time"]).timestamp()
            used, available = int(line["used"]), int(line["available"])
            host, dataset = str(line["host"]), Dataset(str(line["dataset"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        found.append(Room(host=host, dataset=dataset, used=used, available=available, at=at))
    return tuple(found)


def last_of_each_stage(runs: Iterable[PastRun], *, good: bool = False) -> dict[str, PastRun]:
    """The newest run that is over and had this stage to do; with `good`, in which nothing of it failed."""
    found: dict[str, PastRun] = {}
    for run in sorted(runs, key=lambda run: run.ended or 0):
        if run.ended is not None:
            found.update((stage, run) for stage in run.stages if not (good and run.failed(stage)))
    return found
