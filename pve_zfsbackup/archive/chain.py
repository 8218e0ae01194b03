"""What a series is, judged from its signed manifests: its head, what must be there, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pve_zfsbackup.archive.outer import POINT, Alive, Outer


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """An outer manifest whose signature is good. `sha256` is of its text."""

    outer: Outer
    sha256: str

    @property
    def alive(self) -> Alive:
        outer = self.outer
        return Alive(sequence=outer.sequence, generation=outer.generation, point=outer.point, sha256=self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest manifest of a series that was ever seen here."""

    sequence: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """All of one guest of one node. `points` are those alive and there, oldest first.

    `problems` are what somebody or something did to the box, `stale` that its newest state is older than what was
    seen before: then nothing in it is to be believed. `damaged` are generations with something missing. `leftover`
    are manifests that are no longer alive: a removal was cut short.
    """

    id: str
    writer: str  # with the id its name: another writer may use the same id, by mistake or not
    head: Head
    points: tuple[Signed, ...]
    problems: tuple[str, ...] = ()
    stale: bool = False
    damaged: frozenset[str] = frozenset()
    forks: tuple[str, ...] = ()  # those of the problems that are: more than one history
    leftover: tuple[Signed, ...] = ()

    @property
    def name(self) -> str:
        return series_name(self.writer, self.id)


def series_name(writer: str, series: str) -> str:
    """By which it is known and remembered: whoever signs for one writer says nothing of another's."""
    return f"{writer}/{series}"


def series_id(name: str) -> str:
    """A series was known by this alone at first: what is remembered under it counts until its writer was seen."""
    return name.rpartition("/")[2]


def seen_of(heads: Mapping[str, Head], name: str) -> Head | None:
    """What is remembered of the series of this name."""
    return heads.get(name) or heads.get(series_id(name))


def assemble(found: Sequence[Signed], seen: Head | None) -> Series:
    """Judge one series. `found` are its genuine manifests, at least one; `seen` is what is remembered of it."""
    ordered = sorted(found, key=lambda signed: signed.outer.sequence)
    newest = ordered[-1]
    outer = newest.outer
    forks = (*_forks(ordered), *_links(ordered))
    problems = [*forks]
    stale = _stale(newest, seen)
    there = {(signed.outer.generation, signed.outer.point): signed for signed in ordered}
    alive: list[Signed] = []
    damaged: set[str] = set()
    for entry in (*outer.alive, *([newest.alive] if outer.what == POINT else [])):
        signed = there.get((entry.generation, entry.point))
        name = f"point {entry.generation}/{entry.point} (sequence {entry.sequence})"
        if signed is None:
            problems.append(f"{name} is gone, although manifest {outer.sequence} says it is alive")
        elif signed.sha256 != entry.sha256:
            problems.append(f"{name} was replaced by another one")
        else:
            alive.append(signed)
            continue
        damaged.add(entry.generation)
    hashes = {signed.sha256: signed for signed in alive}
    for signed in alive:
        parent = hashes.get(signed.outer.parent)
        if signed.outer.parent and (parent is None or parent.outer.point != signed.outer.parent_point):
            problems.append(f"point {signed.outer.path} builds on one that is not there")
            damaged.add(signed.outer.generation)
    names = {signed.outer.point for signed in alive}
    return Series(
        id=outer.series,
        writer=outer.writer,
        head=Head(sequence=outer.sequence, sha256=newest.sha256),
        points=tuple(alive),
        problems=(*([stale] if stale else []), *problems),
        stale=bool(stale),
        damaged=frozenset(damaged),
        forks=forks,
        leftover=tuple(s for s in ordered if s is not newest and s.outer.point not in names),
    )


def _stale(newest: Signed, seen: Head | None) -> str:
    number = newest.outer.sequence
    if seen and number < seen.sequence:
        return (
            f"its newest manifest has sequence {number}, but {seen.sequence} was seen before: newer ones were removed"
        )
    if seen and number == seen.sequence and newest.sha256 != seen.sha256:
        return f"its newest manifest, sequence {number}, is not the one that was seen before"
    return ""


def _forks(ordered: Sequence[Signed]) -> list[str]:
    numbers = [signed.outer.sequence for signed in ordered]
    return [f"two manifests have sequence {number}" for number in sorted({n for n in numbers if numbers.count(n) > 1})]


def _links(ordered: Sequence[Signed]) -> list[str]:
    by_number: Mapping[int, Signed] = {signed.outer.sequence: signed for signed in ordered}
    found = []
    for signed in ordered:
        before = by_number.get(signed.outer.sequence - 1)
        if before is not None and before.sha256 != signed.outer.previous:
            found.append(
                f"manifest {signed.outer.sequence} does not follow the manifest {before.outer.sequence} that is there"
            )
    return found


def lineage(series: Series, point: str) -> tuple[Signed, ...]:
    """The point and all it builds on, the full one first; empty when one of them is missing."""
    named = {signed.outer.point: signed for signed in series.points}
    found: list[Signed] = []
    name = point
    while name:
        signed = named.get(name)
        if signed is None or signed in found:
            return ()
        found.insert(0, signed)
        name = signed.outer.parent_point
    return tuple(found)
