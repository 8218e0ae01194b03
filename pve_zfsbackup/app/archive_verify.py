"""How sure one may be of what lies in a box, by levels: each costs more and says more (reliability §5)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pve_zfsbackup.app.archive_damage import damage_of, read_damage, told_again
from pve_zfsbackup.app.archive_read import Reader, require_inner
from pve_zfsbackup.app.archive_received import Receiver
from pve_zfsbackup.app.archive_upload import Waning
from pve_zfsbackup.app.box import LEVELS, Damage, Proof, Vault
from pve_zfsbackup.app.catalog import Catalog, Content, Shelf, read_catalog
from pve_zfsbackup.archive.outer import Stored
from pve_zfsbackup.errors import BackupError, ConfigError, SealError, StoreError, VerificationError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.notebook import changing, read_json, write_json
from pve_zfsbackup.host.scratch import sweep
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, Dataset, Vmid
from pve_zfsbackup.model.stages import READ_BACK

STAGE = READ_BACK
CYCLE = "cycle.json"


class Level(StrEnum):
    LISTED = "listed"  # signatures, chain, every file there with its size
    SAMPLED = "sampled"  # and a part of the segments hashed, the whole over a cycle of calls
    HASHED = "hashed"  # and all segments downloaded and hashed
    OPENED = "opened"  # and decrypted, decompressed, the plaintext hashed
    RECEIVED = "received"  # and received by ZFS into a scratch dataset, the guids read back


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One point and what is wrong with it. `segments` were read back, of `bytes` stored bytes."""

    path: str
    point: str
    level: Level
    segments: int
    bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """`problems` are of the box as a whole and of its series. `part` tells which sample it was."""

    points: tuple[Verified, ...]
    problems: tuple[str, ...]
    part: str = ""

    @property
    def good(self) -> bool:
        return not self.problems and not any(point.problems for point in self.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How deep, at which guests (all without), and with what. `identity` is needed to open segments; without one, inner
    manifests are opened by this node's catalog key, if it has one. `parent` is where the scratch is made."""

    level: Level
    identity: Path | None = None
    parts: int = 20
    guests: frozenset[int] = frozenset()
    parent: Dataset | None = None

    def require(self) -> None:
        """Raise `ConfigError` when something is missing."""
        if self.level in (Level.OPENED, Level.RECEIVED) and self.identity is None:
            raise ConfigError(["to open segments, the identity from the safe is needed"], hint="give it by --identity")
        if self.level is Level.RECEIVED and self.parent is None:
            raise ConfigError(["to receive, a dataset is needed for the scratch"], hint="name one by --scratch")

    @property
    def round(self) -> str:
        """Each choice of guests goes round by itself."""
        return f"guests {','.join(map(str, sorted(self.guests)))}" if self.guests else "all"

    def at(self, content: Content) -> bool:
        """Whether the point is one of these guests'. One whose manifest is broken may be anybody's."""
        archived = content.archived
        return not self.guests or (archived.vmid in self.guests if archived else bool(content.problems))


def verify_box(
    vault: Vault, level: Level, *, identity: Path | None = None, parts: int = 20, note: Callable[[str], None]
) -> Verification:
    """Check everything every node wrote there, without receiving it."""
    return look_at(vault, Look(level=level, identity=identity, parts=parts), note=note)


def look_at(vault: Vault, look: Look, *, note: Callable[[str], None]) -> Verification:
    """Check what every node wrote there. Raises what keeps it from being read; what is wrong is told, by name."""
    look.require()
    level, identity, parts = look.level, look.identity, look.parts
    key = identity or (vault.box.catalog_key_file if vault.box.catalog_key_file.exists() else None)
    catalog = read_catalog(vault, identity=key)
    turn = _turn(vault, look) if level is Level.SAMPLED else 0
    points = []
    good: dict[str, Proof] = {}
    bad: set[str] = set()
    damaged, found, names = vault.damaged(), dict[str, Damage](), _names(vault, catalog)
    with vault.store.kept(), vault.scratch() as spool:
        reader = Reader(vault=vault, spool=spool, stamina=Waning(seconds=vault.box.retry_hours * 3600))
        for shelf in catalog.shelves:
            wanted = [content for content in shelf.contents if look.at(content)]
            for seen, content in _each(reader, shelf, wanted, look, turn):
                note(content.path)
                name, now = names[content.path], time.time()
                lasting: tuple[str, ...] = ()
                if problem := read_damage(content, seen.problems):
                    found[name] = damage_of(level.value, now, problem)
                elif name in damaged and not damaged[name].passed_by(level.value):
                    lasting = (told_again(damaged[name]),)
                checked = replace(seen, problems=(*seen.problems, *lasting))
                points.append(checked)
                if checked.problems:
                    bad.add(name)
                elif level in LEVELS:
                    good[name] = Proof(level=level.value, at=now)
    there = {*names.values()}
    bad |= vault.proven().keys() - there
    if good or bad:
        vault.note_proven(good, bad)
    over = damaged.keys() & good.keys() | damaged.keys() - there
    if found or over:
        vault.note_damage(found, over)
    if level is Level.SAMPLED:
        with changing(vault.state / CYCLE):
            write_json(vault.state / CYCLE, {**_cycles(vault), look.round: [turn, parts]})
    absent = look.guests - {a.vmid for shelf in catalog.shelves for a in shelf.archived}
    return Verification(
        points=tuple(points),
        problems=(
            *catalog.box_problems,
            *((f"no point of {_named(absent)} is among those that can be opened",) if absent else ()),
        ),
        part=f"{turn + 1} of {parts}" if level is Level.SAMPLED else "",
    )


def _names(vault: Vault, catalog: Catalog) -> dict[str, str]:
    """By which each point is remembered, by its path: its own. Where another writer calls one of his as one of ours is
    called, by mistake or not, it is the whole path: what he wrote says nothing of ours."""
    found = {content.path: content.signed.outer for shelf in catalog.shelves for content in shelf.contents}
    ours = {outer.point for outer in found.values() if outer.writer == vault.writer}
    return {
        path: path if outer.point in ours and outer.writer != vault.writer else outer.point
        for path, outer in found.items()
    }


def as_results(box: str, found: Verification) -> Iterator[Result]:
    """As a run has it: the box as a whole with what belongs to no guest, then guest by guest."""
    guests: dict[Vmid, list[Verified]] = defaultdict(list)
    problems = list(found.problems)
    for point in found.points:
        if point.point:
            guests[Vmid(int(point.point.partition("/")[0]))].append(point)
        else:  # closed: no key opens its inner manifest here
            problems += [f"{point.path}: {problem}" for problem in point.problems]
    yield _result(box, problems, f"{_points(len(found.points))} looked at")
    for vmid, points in sorted(guests.items()):
        wrong = [f"{point.path}: {problem}" for point in points for problem in point.problems]
        bad = sum(bool(point.problems) for point in points)
        told = f"{_points(len(points))} {'are' if len(points) > 1 else 'is'}"
        if bad:
            wrong[0] = f"{bad} of {told} damaged: {wrong[0]}"
        newest = points[-1]
        yield replace(_result(box, wrong, f"{told} {_seen(newest.level, found.part)}"), vmid=vmid, point=newest.point)


def _seen(level: Level, part: str) -> str:
    """Nothing is told to be whole that was not read."""
    seen = {Level.LISTED: "listed, not read", Level.SAMPLED: f"listed, part {part} read"}
    return seen.get(level, "whole")


def _named(guests: Collection[int]) -> str:
    return f"guest{'s' if len(guests) > 1 else ''} {', '.join(map(str, sorted(guests)))}"


def _points(count: int) -> str:
    return f"{count} point{'s' if count != 1 else ''}"


def _result(box: str, problems: Sequence[str], good: str) -> Result:
    hint = f"`verify archive {box}` names everything; nothing is built upon it; told until a look as deep passes"
    return Result(
        stage=STAGE,
        outcome=Outcome.FAILED if problems else Outcome.OK,
        host=box,
        message=problems[0] if problems else good,
        hint=hint if problems else "",
        details=tuple(problems[1:]),
    )


def _each(
    reader: Reader, shelf: Shelf, wanted: Sequence[Content], look: Look, turn: int
) -> Iterator[tuple[Verified, Content]]:
    if look.level is not Level.RECEIVED or look.identity is None or look.parent is None:
        for content in wanted:
            yield _point(reader, content, look.level, (look.identity, lambda s: _due(s, turn, look.parts))), content
        return
    host = Host(name=SOURCE, runner=reader.vault.seal.runner)
    receiver = Receiver(reader=reader, host=host, parent=look.parent, identity=look.identity)
    with changing(reader.vault.state.parent / "received"):  # a scratch that is there now was left by one that is gone
        sweep(host, look.parent)
        yield from _received(receiver, shelf, wanted)


def _received(receiver: Receiver, shelf: Shelf, wanted: Sequence[Content]) -> Iterator[tuple[Verified, Content]]:
    for content, problem in receiver.look(shelf, wanted):
        outer, archived = content.signed.outer, content.archived
        yield Verified(
            path=content.path,
            point=archived.point if archived else "",
            level=Level.RECEIVED,
            segments=0 if problem else len(outer.segments),
            bytes=0 if problem else outer.size,
            problems=tuple(dict.fromkeys((*content.problems, *([problem] if problem else ())))),
        ), content


def _turn(vault: Vault, look: Look) -> int:
    """Which part is next."""
    match _cycles(vault).get(look.round):
        case [int(turn), look.parts]:
            return (turn + 1) % look.parts
    return 0


def _cycles(vault: Vault) -> dict[str, Any]:
    """The last part of each round and how many it has, by `Look.round`."""
    return {key: last for key, last in (read_json(vault.state / CYCLE) or {}).items() if isinstance(last, list)}


def _due(segment: Stored, turn: int, parts: int) -> bool:
    """Each segment belongs to one part, for ever: its own hash says to which."""
    return int(segment.sha256[:12], 16) % parts == turn


def _point(
    reader: Reader, content: Content, level: Level, how: tuple[Path | None, Callable[[Stored], bool]]
) -> Verified:
    identity, due = how
    problems = list(content.problems)
    outer = content.signed.outer
    wanted: Sequence[Stored] = ()
    if level is Level.SAMPLED:
        wanted = [segment for segment in outer.segments if due(segment)]
    elif level is not Level.LISTED:
        wanted = outer.segments
    read = 0
    for segment in wanted:
        if any(f"seg-{segment.number:06d}-" in problem for problem in content.problems):
            continue  # the listing told that it is not there, or not of its size
        try:
            if level is Level.OPENED and identity:
                sealed = next(s for s in require_inner(content).segments if s.number == segment.number)
                reader.open(content, sealed, identity).unlink()
            else:
                reader.fetch(content, segment).unlink()
            read += segment.bytes
        except BackupError as error:
            if not isinstance(error, VerificationError | SealError) and not _withheld(reader, content, error):
                raise
            problems.append(error.message)
    archived = content.archived
    return Verified(
        path=content.path,
        point=archived.point if archived else "",
        level=level,
        segments=len(wanted),
        bytes=read,
        problems=tuple(dict.fromkeys(problems)),
    )


def _withheld(reader: Reader, content: Content, error: BackupError) -> bool:
    """Whether the box answers, and still did not give what it shows, for as long as it was asked: a bad sector there
    must not keep all else from being looked at."""
    try:
        return isinstance(error, StoreError) and bool(reader.vault.store.list([content.path]))
    except StoreError:
        return False
