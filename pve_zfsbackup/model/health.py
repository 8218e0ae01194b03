"""How well everything is, in the words of monitoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from pve_zfsbackup.model.aside import PutAside
from pve_zfsbackup.model.names import Vmid
from pve_zfsbackup.model.proof import Proven
from pve_zfsbackup.model.room import Outlook

SHOWN: Final = 5  # devices of a pool that are named


class Level(IntEnum):
    """As monitoring plugins exit."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be or, with OK, only to be known. `about` names the object: `guest 100 web`,
    `pool rpool`."""

    level: Level
    about: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool of this node, as `zpool list` tells. `size` and `free` are bytes."""

    name: str
    health: str
    size: int
    free: int

    @property
    def used_share(self) -> float:
        """From 0 to 1; an empty answer counts as full."""
        return 1 - self.free / self.size if self.size else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device of a pool, or a group of several, as `zpool status` tells: `why` is what ZFS says beside it, the
    counters are of errors since the pool was imported or cleared."""

    name: str
    state: str
    why: str = ""
    read: int = 0
    write: int = 0
    checksum: int = 0

    @property
    def there(self) -> bool:
        """A spare that is not needed, or stands in for another, is as it should be."""
        return self.state in ("ONLINE", "AVAIL", "INUSE")

    @property
    def errors(self) -> int:
        return self.read + self.write + self.checksum

    def __str__(self) -> str:
        told = self.name if self.there else f"{self.name} {self.state}"
        if self.why and not self.there:
            told += f" ({self.why})"
        return f"{told}: {self.read} read, {self.write} write, {self.checksum} checksum errors" if self.errors else told


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What `zpool status` says of a pool: `errors` of its data, and the devices that are not as they should be. Both
    are empty while there are none. OpenZFS (seen: 2.3.9) may say ONLINE of a pool whose mirror has lost a device. Not
    `known` where only the kernel told the state."""

    state: str
    known: bool = True
    errors: str = ""
    devices: tuple[Device, ...] = ()

    @property
    def told(self) -> str:
        """The devices in words: of many, the first."""
        more = len(self.devices) - SHOWN
        return "; ".join([*map(str, self.devices[:SHOWN]), *([f"{more} more devices"] if more > 0 else ())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan(Condition):
    """The same with the last scrub: `ended` is when it did, in seconds since the epoch, `found` its errors, `done` how
    much of one that runs is done, in percent."""

    ended: int | None = None
    found: int = 0
    running: bool = False
    done: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Age:
    """Age of a guest's newest complete point on one host, in seconds, and when that is too much."""

    vmid: Vmid
    guest: str
    host: str
    seconds: int | None  # None: there is no point
    warn: float
    critical: float
    consistency: str = ""
    points: int = 0  # complete ones
    ahead: int = 0  # of the points, those from the future
    bytes: int = 0  # what the newest refers to: as much is written when it is restored


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The newest drill of a guest that passed, None for never. `limit`: seconds after which that is too long ago; None
    where nobody expects drills."""

    vmid: Vmid
    guest: str
    last: Proven | None
    limit: float | None

    def late(self, now: int) -> bool:
        return self.limit is not None and (self.last is None or now - self.last.at > self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A stage that has to come again: the end of the last run that did some of it, None where the journal knows of none
    since `since`, and the seconds after which that is too long ago."""

    stage: str
    last: float | None
    since: float
    limit: float

    def late(self, now: int) -> bool:
        return now - self.since > self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Disks:
    """How many disks of a guest are protected, how many are not though nobody decided so, how many are left out."""

    guest: str
    protected: int
    open: int
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """All there is to say. `levels` and texts come from `findings`, the rest is for graphs."""

    findings: tuple[Finding, ...]
    ages: tuple[Age, ...]
    pools: tuple[Pool, ...]
    disks: Mapping[Vmid, Disks]
    answers: Mapping[str, bool]  # whether this node and each target could be asked
    outlooks: tuple[Outlook, ...]
    now: int  # when it was judged, in seconds since the epoch
    verified: tuple[Verification, ...] = ()  # of the guests that have points to be proven
    failed: frozenset[tuple[Vmid, str]] = frozenset()  # guests whose last drill failed, and where
    conditions: Mapping[tuple[str, str], Condition] = field(default_factory=dict)  # by host and pool
    aside: tuple[PutAside, ...] = ()
    strays: tuple[Vmid, ...] = ()  # guests of killed boot drills
    stages: tuple[Due, ...] = ()

    @property
    def level(self) -> Level:
        """The worst; critical beats unknown, as in every monitoring system."""
        levels = {finding.level for finding in self.findings}
        order = (Level.CRITICAL, Level.UNKNOWN, Level.WARNING)
        return next((level for level in order if level in levels), Level.OK)
