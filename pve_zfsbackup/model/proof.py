"""How far a recovery point is proven, and how much is read for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from pve_zfsbackup.model.names import PROPERTY, PointId

VERIFIED: Final = f"{PROPERTY}verified"
_TIME: Final = "%Y%m%dT%H%M%SZ"
_FORM: Final = re.compile(r"([a-z]+) (\d{8}T\d{6}Z)\Z", re.ASCII)


class Level(StrEnum):
    """What was proven. Each says more than the one before; `FAILED` says that the last drill found something wrong."""

    FAILED = "failed"
    POINTS = "points"  # complete, the chain of guids whole, held, marked; what it says of the guest can be read
    RECOGNISED = "recognised"  # its disks could be read and are what they should be, but nothing there can be opened
    FILES = "files"  # file systems without errors, mounted, the expected files there
    BOOTED = "booted"  # started as a guest, its agent answered

    @property
    def rank(self) -> int:
        return list(Level).index(self)

    @property
    def opened(self) -> bool:
        """Whether something of the guest's was there to be opened, and was."""
        return self.rank >= Level.FILES.rank

    @property
    def drilled(self) -> bool:
        """Whether somebody looked into the disks, and found them good."""
        return self.rank >= Level.RECOGNISED.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A level and when it was reached, in seconds since the epoch."""

    level: Level
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """How far a guest is proven somewhere: one of `Level`'s words on a host, one of a box's in a box."""

    level: str
    at: int
    place: str
    point: PointId

    @property
    def passed(self) -> bool:
        """Whether a drill looked into it, and found it good. Reading back an archive is none."""
        return self.level in {level.value for level in Level if level.drilled}


def encode_proof(proof: Proof) -> str:
    """The value of the property `verified`: `files 20261126T111516Z`."""
    return f"{proof.level.value} {datetime.fromtimestamp(proof.at, UTC).strftime(_TIME)}"


def decode_proof(text: str) -> Proof | None:
    """What `encode_proof` made; None for anything else: a target is not trusted."""
    match = _FORM.match(text)
    if match is None or match[1] not in {level.value for level in Level}:
        return None
    try:
        at = datetime.strptime(match[2], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return Proof(level=Level(match[1]), at=int(at.timestamp()))


class Reading(StrEnum):
    """How much of the data is read: ZFS and the file systems check the sums of what they hand out."""

    NONE = "none"
    SAMPLE = "sample"
    ALL = "all"
