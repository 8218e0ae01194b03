"""Which streams travel together: many small ones in one session, each big one in its own, and each suspect."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pve_zfsbackup.model import Dataset, Resume, Send, Snapshot, Step, Vmid

BIG = 64 << 20  # a stream of that size gains nothing from company
FULL = 256 << 20  # of small streams in one session: guests shall be finished along the way
MANY = 20  # guests are finished while others are sent: the target waits for its disks then, this node for its processor
LINE = 96 << 10  # bytes of the command line of a session: Linux takes 128 KiB in one argument
STREAMS = 200  # of one disk beside others: more are cut into several sessions, which can be done with a disk alone
COST = 1 << 20  # what any stream costs besides its bytes
EQUAL = 3600  # seconds: guests of one run have waited equally long


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one disk has to send: its steps up to the last stream, and the bytes to expect.

    `since` when its guest waits, see `Plan.since`. `suspect`: it was under way when a session broke, and shall not
    break that of others again. `compress`: on the wire; a session does that with all of its streams or with none.
    """

    vmid: Vmid
    dataset: Dataset
    steps: tuple[Step, ...]
    size: int
    since: int = 0
    suspect: bool = False
    compress: bool = False

    @property
    def raw(self) -> bool:
        return any(step.raw for step in self.steps if isinstance(step, Send | Resume))

    @property
    def turn(self) -> int:
        """Who waits longest comes first."""
        return self.since // EQUAL

    @property
    def weight(self) -> int:
        return self.size + COST * len(self.streams)

    @property
    def streams(self) -> list[Send | Resume]:
        return [step for step in self.steps if isinstance(step, Send | Resume)]

    @property
    def line(self) -> int:
        """Bytes its part of a command line may have: `zfs receive` for each stream, and what reads back."""
        names = [step.dataset for step in self.streams]
        names += [Dataset(step.origin) for step in self.streams if isinstance(step, Send)]
        return sum(len(name) + 24 for name in (*names, *names[:1]))


def expected(steps: Iterable[Step]) -> int:
    """Bytes these streams may have, as far as the listing tells: it orders and packs, nothing depends on it.

    What changed since a snapshot is at least what grew, and what only that snapshot still has was overwritten since.
    """
    size = 0
    for step in steps:
        if isinstance(step, Resume):
            size += step.snapshot.refer
        elif isinstance(step, Send) and isinstance(step.base, Snapshot):
            overwritten = sum(snapshot.used for snapshot in (step.base, *step.through))
            size += max(0, step.snapshot.refer - step.base.refer) + overwritten
        elif isinstance(step, Send):
            size += step.snapshot.refer if step.base is None else step.snapshot.refer // 8
    return size


def pack(loads: Sequence[Load], lanes: int) -> tuple[tuple[Load, ...], ...]:
    """Sessions in the order in which `lanes` of them at a time should begin.

    The small disks of a guest stay together, so that it is finished in one go. Big streams begin first, but one lane
    takes the small ones before: they shall not wait for hours. Of either kind the guest that has waited longest comes
    first: a run that is cut off day after day shall not leave the same ones behind. Where all have waited equally long
    the largest do, so that the lanes end together.
    """
    big = sorted((load for load in loads if load.size >= BIG), key=lambda load: (load.turn, -load.size))
    small = [load for load in loads if load.size < BIG and not load.suspect]
    packed = [
        session
        for compress in (False, True)
        for session in _packed([load for load in small if load.compress is compress], lanes)
    ]
    packed.sort(key=lambda session: min(load.turn for load in session))
    suspects = [(load,) for load in loads if load.size < BIG and load.suspect]
    first = max(0, lanes - 1)
    alone = [(load,) for load in big]
    return (*alone[:first], *packed, *suspects, *alone[first:])


def _packed(small: Sequence[Load], lanes: int) -> list[tuple[Load, ...]]:
    """Guests spread evenly: who waits longest, and of those the heaviest, first to the session that has least."""
    guests: dict[Vmid, list[Load]] = defaultdict(list)
    for load in small:
        guests[load.vmid].append(load)
    units = sorted(guests.values(), key=lambda unit: (unit[0].turn, -sum(load.weight for load in unit)))
    count = max(lanes, -(-len(small) // MANY), -(-sum(load.size for load in small) // FULL))
    sessions: list[list[Load]] = [[] for _ in range(min(count, len(units)))]
    free = [(0, number) for number in range(len(sessions))]
    for unit in units:
        weight, number = heapq.heappop(free)
        sessions[number] += unit
        heapq.heappush(free, (weight + sum(load.weight for load in unit), number))
    return [part for session in sessions for part in _cut(session)]


def _cut(session: Sequence[Load]) -> Iterator[tuple[Load, ...]]:
    """Parts whose command lines are not too long. A disk that was not sent for long has many streams."""
    part: list[Load] = []
    for load in session:
        alone = len(load.streams) > STREAMS
        if part and (alone or sum(other.line for other in (*part, load)) > LINE):
            yield tuple(part)
            part = []
        part.append(load)
        if alone:
            yield tuple(part)
            part = []
    if part:
        yield tuple(part)
