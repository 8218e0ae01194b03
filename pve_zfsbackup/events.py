"""What happens while a command runs, as values: for progress on a terminal, for the journal, for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.room import Room


class Outcome(StrEnum):
    OK = "ok"
    WARNING = "warning"  # done, but somebody should look
    SKIPPED = "skipped"  # nothing was to be done
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one stage ended for one guest (and target). `hint` says what to do next. `alarm`: whoever is told of failures
    is told of this as well. `jobs` are those that have the guest, as far as the stage knows the configuration.
    `pool` is which of the host's it is about, where that tells results apart."""

    stage: str
    outcome: Outcome
    vmid: Vmid | None = None
    guest: str = ""
    host: str = ""
    pool: str = ""
    message: str = ""
    hint: str = ""
    point: str = ""
    bytes: int = 0
    seconds: float = 0.0
    details: tuple[str, ...] = ()
    alarm: bool = False
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A stream under way: bytes moved of those estimated, for one disk on its way to one target."""

    host: str
    disk: str
    moved: int
    total: int
    seconds: float
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A root was listed: how much room there is, for the journal."""

    room: Room


Event = Result | Progress | Seen
Emit = Callable[[Event], None]
