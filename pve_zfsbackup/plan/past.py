"""The lines of the journal, put together to runs. A line that is not understood is left out: it feeds reports only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pve_zfsbackup.model import SOURCE, Dataset
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.model.room import Room
from pve_zfsbackup.model.runs import Arrival, PastProof, PastRun, StageTold, Trouble
from pve_zfsbackup.model.stages import PROOFS

WORTH_TELLING = ("failed", "warning")
_ARRIVED = {  # stage -> outcomes with which the point they name is there
    "snapshot": ("ok", "warning"),
    "archive": ("ok", "warning"),
    "replicate": ("ok",),  # a warning is told beside the result, and may name a point that was only planned
}


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


def past_proofs(lines: Iterable[Mapping[str, Any]]) -> tuple[PastProof, ...]:
    """Drills, comparisons, what was read back, restores, rollbacks and changes of role of guests, oldest
    first."""
    found = []
    for line in lines:
        if line.get("event") != "result" or line.get("stage") not in PROOFS:
            continue
        try:
            proof = PastProof(
                stage=str(line["stage"]),
                at=datetime.fromisoformat(line["time"]).timestamp(),
                vmid=int(line["vmid"]),
                place=str(line.get("host", "")) or SOURCE,
                point=str(line.get("point", "")),
                outcome=str(line["outcome"]),
                level=str(line.get("level", "")),
                seconds=float(line.get("seconds", 0)),
                message=str(line.get("message", "")),
                whole=not line.get("disks"),
                boot=float(line.get("boot_seconds", 0)),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(proof.seconds) and math.isfinite(proof.boot):
            found.append(proof)
    return tuple(sorted(found, key=lambda proof: proof.at))


def arrivals(lines: Iterable[Mapping[str, Any]]) -> tuple[Arrival, ...]:
    """When points came to be here, on targets and in boxes, oldest first."""
    found = []
    for line in lines:
        if line.get("event") != "result" or line.get("outcome") not in _ARRIVED.get(str(line.get("stage")), ()):
            continue
        try:
            stamp = str(line["point"]).partition("/")[2].partition("-")[0]
            made = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
            at = datetime.fromisoformat(line["time"]).timestamp()
            place = str(line.get("host", "")) or SOURCE
            found.append(Arrival(vmid=int(line["vmid"]), place=place, at=at, made=made))
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return tuple(sorted(found, key=lambda arrival: arrival.at))


def worst_gaps(found: Iterable[Arrival], *, now: float) -> dict[tuple[int, str], float]:
    """The measured recovery point objective of each guest in each place, in seconds: how much of its work would have
    been lost at the worst moment, had only that place been left. Such moments are right before a point arrives, and
    now. What seems to have arrived in the future (a clock was set back) is left out."""
    last: dict[tuple[int, str], Arrival] = {}
    worst: dict[tuple[int, str], float] = {}
    for arrival in found:
        if arrival.at > now + SKEW:
            continue
        key = (arrival.vmid, arrival.place)
        if before := last.get(key):
            worst[key] = max(worst.get(key, 0.0), arrival.at - before.made)
        last[key] = arrival
    return {key: max(worst.get(key, 0.0), now - arrival.made, 0.0) for key, arrival in last.items()}


def last_done(runs: Iterable[PastRun]) -> dict[str, float]:
    """When each stage was last done by a run of which not everything failed, in seconds since the epoch."""
    over = (run for run in runs if run.ended is not None and run.exit_code in (0, 1) and not run.broken_off)
    return {stage: run.ended or 0.0 for run in sorted(over, key=lambda run: run.ended or 0) for stage in run.stages}


def last_of_each_stage(runs: Iterable[PastRun], *, good: bool = False) -> dict[str, PastRun]:
    """The newest run that is over and had this stage to do; with `good`, in which nothing of it failed."""
    found: dict[str, PastRun] = {}
    for run in sorted(runs, key=lambda run: run.ended or 0):
        if run.ended is not None:
            found.update((stage, run) for stage in run.stages if not (good and run.failed(stage)))
    return found
