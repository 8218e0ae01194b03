"""What lies in a box: every manifest fetched, its signature checked, its series judged, its inside read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.app.box import Vault, fresh
from pve_zfsbackup.app.catalog_memory import Memory, manifest_sizes, memory_of, too_large
from pve_zfsbackup.archive.chain import Head, Series, Signed, assemble, seen_of, series_id, series_name
from pve_zfsbackup.archive.inner import Inner
from pve_zfsbackup.archive.names import INNER, INNER_SIGNATURE, OPAQUE, OUTER, OUTER_SIGNATURE, WRITER, segment_name
from pve_zfsbackup.archive.outer import POINT, Outer, digest
from pve_zfsbackup.errors import BackupError, SealError, VerificationError
from pve_zfsbackup.host.store import Entry
from pve_zfsbackup.model.archive import Archived

BATCH = 200  # small files per connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A published point: its manifests, what lies beside them, and what is wrong with its files."""

    signed: Signed
    files: Mapping[str, Entry]
    inner: Inner | None = None
    problems: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"{self.signed.outer.writer}/{self.signed.outer.path}"

    @property
    def archived(self) -> Archived | None:
        return self.inner.archived(self.signed.outer) if self.inner else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """One series with the content of its points, oldest first."""

    series: Series
    contents: tuple[Content, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        inside = (f"{c.path}: {problem}" for c in self.contents for problem in c.problems)
        return (*(f"series {self.series.id}: {problem}" for problem in self.series.problems), *inside)

    @property
    def unusable(self) -> frozenset[str]:
        """Generations nothing is added to: something in them is damaged, missing, or not to be believed."""
        if self.series.stale:
            return frozenset(content.signed.outer.generation for content in self.contents)
        bad = (content.signed.outer.generation for content in self.contents if content.problems or not content.inner)
        return self.series.damaged.union(bad)

    @property
    def archived(self) -> tuple[Archived, ...]:
        return tuple(archived for content in self.contents if (archived := content.archived))


@dataclass(slots=True, kw_only=True)
class Catalog:
    """All that was asked for. `problems` belong to no series; `strays` are directories no manifest speaks of."""

    shelves: list[Shelf] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    strays: dict[str, Mapping[str, Entry]] = field(default_factory=dict)
    generations: dict[str, Mapping[str, Entry]] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()  # what is remembered of guests of which nothing is left; see `told`

    @property
    def box_problems(self) -> tuple[str, ...]:
        """Those of the box and of its series, not of single points."""
        series = (f"series {shelf.series.id}: {told}" for shelf in self.shelves for told in shelf.series.problems)
        return (*self.problems, *series)

    @property
    def all_problems(self) -> tuple[str, ...]:
        return (*self.problems, *(problem for shelf in self.shelves for problem in shelf.problems))


def read_catalog(
    vault: Vault, *, identity: Path | None, own: bool = False, unfinished: Collection[str] = ()
) -> Catalog:
    """Read the box; with `own` only what this node wrote. `identity` opens the inner manifests, without it they stay
    closed. `unfinished` are directories of points this node is still at work on.

    What is wrong is part of the catalog; raised is only what keeps it from being read, and with `own` `BackupError`
    where nothing is left of what was there: a share that is not mounted.
    """
    with vault.store.kept():
        return _read(vault, identity, own, unfinished)


def _read(vault: Vault, identity: Path | None, own: bool, unfinished: Collection[str]) -> Catalog:
    catalog = Catalog()
    memory = memory_of(vault) if own else None
    places = _places(vault, catalog, [vault.writer] if own else None)
    if memory and memory.any() and not catalog.generations:
        raise BackupError(
            f"box {vault.box.name} is empty, although this node archived to it before",
            hint=f"is the right thing mounted there? To begin anew, remove {memory.directory}",
        )
    signed: dict[str, list[Signed]] = defaultdict(list)
    heads = vault.heads()
    wanted = [path for path, files in places.items() if OUTER in files]
    large = {path for path in wanted if too_large(places[path])}
    catalog.problems += (f"{path}: its manifests are larger than any of ours" for path in sorted(large))
    wanted = [path for path in wanted if path not in large]
    catalog.strays = {path: files for path, files in places.items() if OUTER not in files}
    catalog.problems += (
        f"{path}: its manifest.json is gone, and the rest stays: put it back from a copy, or remove the directory"
        for path in sorted(catalog.strays)
        if memory and memory.knows(path)
    )
    known = {path: found for path in wanted if memory and (found := memory.recall(path, places[path]))}
    with vault.scratch() as scratch:
        unknown = {path: manifest_sizes(places[path]) for path in wanted if path not in known}
        sizes = {f"{path}/{name}": size for path, found in unknown.items() for name, size in found.items()}
        fetched = _fetch(vault, sizes, scratch)
        for path in wanted:
            try:
                genuine = known[path][0] if path in known else _genuine(vault, path, fetched)
                signed[series_name(genuine.outer.writer, genuine.outer.series)].append(genuine)
            except VerificationError as error:
                if path in unfinished:  # a server that renames nothing: cut while it was put there
                    catalog.strays[path] = places[path]
                else:
                    catalog.problems.append(error.message)
        for name, members in sorted(signed.items()):
            series = assemble(members, seen_of(heads, name))
            contents = []
            for one in series.points:
                path = f"{one.outer.writer}/{one.outer.path}"
                content = _content(vault, one, places[path], (known, fetched, identity))
                contents.append(content)
                if memory and path not in known and content.inner:
                    memory.note(path, places[path], one, content.inner)
            catalog.shelves.append(Shelf(series=series, contents=tuple(contents)))
            if not series.stale:
                vault.remember(name, series.head)
    catalog.problems += _lost(catalog, memory, places) if memory else _vanished(signed.keys(), heads)
    return catalog


def _lost(catalog: Catalog, memory: Memory, places: Collection[str]) -> list[str]:
    """Guests of which nothing is left; told until a run told it, or archived them anew. What is gone besides is
    forgotten."""
    guests = {archived.vmid for shelf in catalog.shelves for archived in shelf.archived}
    series = {shelf.series.id for shelf in catalog.shelves}
    lost = memory.lost(places)
    gone = {name: inner for name, inner in lost.items() if inner.series not in series and inner.vmid not in guests}
    memory.forget(places, spare=gone)
    catalog.lost = frozenset(gone)
    named = sorted({(inner.vmid, inner.series) for inner in gone.values()})
    return [f"everything of guest {vmid} is gone: series {name}, which was there before" for vmid, name in named]


def told(vault: Vault, catalog: Catalog) -> None:
    """Somebody heard that all of a guest is gone: it may have been meant."""
    memory_of(vault).drop(catalog.lost)


def _vanished(found: Collection[str], heads: Mapping[str, Head]) -> Iterator[str]:
    """A whole series that was seen before, whoever wrote it."""
    for name in sorted(heads.keys() - {*found, *map(series_id, found)}):
        yield f"series {name} is gone: {heads[name].sequence} manifests were seen before"


def _places(vault: Vault, catalog: Catalog, writers: Sequence[str] | None) -> dict[str, Mapping[str, Entry]]:
    """The files of every directory that may be a point."""
    if writers is None:
        writers = sorted(_directories(vault.store.list(["."]).get(".", {}), WRITER.match))
    tops = vault.store.list(list(writers))
    generations = [f"{writer}/{name}" for writer, found in tops.items() for name in _directories(found, OPAQUE.match)]
    catalog.generations = dict(vault.store.list(generations))
    points = [f"{path}/{n}" for path, found in catalog.generations.items() for n in _directories(found, OPAQUE.match)]
    return dict(vault.store.list(points))


def _directories(found: Mapping[str, Entry], match: object) -> list[str]:
    assert callable(match)
    return sorted(name for name, entry in found.items() if entry.directory and match(name))


def _fetch(vault: Vault, sizes: Mapping[str, int], scratch: Path) -> dict[str, Path]:
    """Small files of these sizes, as listed."""
    files = {path: fresh(scratch) for path in sizes}
    paths = list(files)
    for some in (paths[start : start + BATCH] for start in range(0, len(paths), BATCH)):
        vault.store.get_many([(path, files[path]) for path in some], sum(sizes[path] for path in some))
    return {path: file for path, file in files.items() if file.exists()}


def _genuine(vault: Vault, path: str, fetched: Mapping[str, Path]) -> Signed:
    """The outer manifest, signed by the node in whose directory it lies, about the place where it lies."""
    writer, generation, point = path.split("/")
    try:
        data = fetched[f"{path}/{OUTER}"].read_bytes()
        signature = fetched[f"{path}/{OUTER_SIGNATURE}"].read_bytes()
    except KeyError:
        raise VerificationError(f"{path}: its manifest has no signature") from None
    try:
        vault.seal.verify(data, signature, vault.box.signers_file, writer)
    except VerificationError as error:
        raise VerificationError(f"{path}/{OUTER}: {error.message}") from None
    outer = Outer.decode(data, f"{path}/{OUTER}")
    if (outer.writer, outer.generation, outer.point) != (writer, generation, point):
        raise VerificationError(f"{path}/{OUTER}: belongs to {outer.writer}/{outer.path}")
    return Signed(outer=outer, sha256=digest(data))


def _content(
    vault: Vault,
    signed: Signed,
    files: Mapping[str, Entry],
    reading: tuple[Mapping[str, tuple[Signed, Inner | None]], Mapping[str, Path], Path | None],
) -> Content:
    known, fetched, identity = reading
    outer = signed.outer
    path = f"{outer.writer}/{outer.path}"
    problems = list(_segments(outer, files))
    if path in known:
        return Content(signed=signed, files=files, inner=known[path][1], problems=tuple(problems))
    inner = None
    try:
        inner = _inner(
            vault, signed, {name: fetched.get(f"{path}/{name}") for name in (INNER, INNER_SIGNATURE)}, identity
        )
    except (VerificationError, SealError) as error:
        problems.append(error.message)
    return Content(signed=signed, files=files, inner=inner, problems=tuple(problems))


def _segments(outer: Outer, files: Mapping[str, Entry]) -> Iterator[str]:
    for segment in outer.segments:
        name = segment_name(segment.number, segment.sha256)
        entry = files.get(name)
        if entry is None or entry.directory:
            yield f"{name} is missing"
        elif entry.bytes != segment.bytes:
            yield f"{name} has {entry.bytes} bytes instead of {segment.bytes}"


def _inner(vault: Vault, signed: Signed, files: Mapping[str, Path | None], identity: Path | None) -> Inner | None:
    outer = signed.outer
    stored, signature = files[INNER], files[INNER_SIGNATURE]
    if outer.what != POINT:
        return None
    if stored is None or signature is None:
        raise VerificationError(f"{INNER} or its signature is missing")
    data = stored.read_bytes()
    if (len(data), hashlib.sha256(data).hexdigest()) != (outer.manifest_bytes, outer.manifest_sha256):
        raise VerificationError(f"{INNER} is not the one {OUTER} speaks of")
    try:
        vault.seal.verify(data, signature.read_bytes(), vault.box.signers_file, outer.writer)
    except VerificationError as error:
        raise VerificationError(f"{INNER}: {error.message}") from None
    if identity is None:
        return None
    try:
        inner = Inner.decode(vault.seal.decrypt(stored, identity), INNER)
    except SealError as error:
        raise SealError(f"{INNER} cannot be opened: {error.message}", hint=error.hint) from None
    inner.check(outer, INNER)
    return inner


def require_sound(shelf: Shelf) -> None:
    """Raise `VerificationError` when the series is older than what was seen, or has more than one history."""
    if shelf.series.stale:
        raise VerificationError(
            f"series {shelf.series.id}: {shelf.series.problems[0]}",
            hint="somebody put an older state in place, or damaged the newest: look at the provider's snapshots and at "
            "other copies; --older takes what there is",
        )
    if shelf.series.forks:
        raise VerificationError(
            f"series {shelf.series.id}: {shelf.series.forks[0]}",
            hint="has another node this signing key, or were older states of node and box put in place? See what "
            "`verify archive` tells, and other copies; --older takes what there is",
        )
