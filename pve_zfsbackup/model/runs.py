"""Runs that are over, as the journal tells of them. Times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTold:
    """What one stage of a run did: how many results of each outcome, bytes sent."""

    outcomes: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0

    @property
    def failed(self) -> bool:
        return self.outcomes.get("failed", 0) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A result that somebody should look at."""

    stage: str
    outcome: str
    guest: str  # vmid and name
    host: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """One run. `exit_code` is None for one that is still at work, or died without a word."""

    name: str
    started: float
    ended: float | None = None
    exit_code: int | None = None
    seconds: float = 0.0
    stages: Mapping[str, StageTold] = field(default_factory=dict)
    troubles: tuple[Trouble, ...] = ()
    broken_off: str = ""  # what ended it before its end

    def failed(self, stage: str) -> bool:
        """Whether anything of a stage failed. Where a run broke off, nothing it had to do is taken for done."""
        return bool(self.broken_off) or stage not in self.stages or self.stages[stage].failed

    @property
    def bytes(self) -> int:
        return sum(stage.bytes for stage in self.stages.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PastProof:
    """A drill, a comparison with the source, a look into a box, a restore, a rollback, a failover or a failback of one
    guest. `place` is where the point lay; `boot` the seconds from the first clone to the agent's answer, 0 where the
    guest was not started."""

    stage: str
    at: float
    vmid: int
    place: str
    point: str
    outcome: str
    level: str
    seconds: float
    message: str
    whole: bool = True  # all disks of the guest
    boot: float = 0.0

    @property
    def passed(self) -> bool:
        return self.outcome in ("ok", "warning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A point that came to be in a place: taken here, or received there. `made` is when it was taken."""

    vmid: int
    place: str
    at: float
    made: float
