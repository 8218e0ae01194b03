"""One `zfs list` per host: everything the planners need, in one process and one round trip."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pve_zfsbackup.errors import DatasetNotFoundError, ZfsError
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import (
    PROPERTY,
    SNAPSHOT_NAME,
    Bookmark,
    Dataset,
    Guid,
    Listing,
    PointId,
    ResumeToken,
    Snapshot,
    Volume,
)

LIST_TIMEOUT = 900.0
# A bookmark's `ivsetguid` and a snapshot's are listed like any property (seen on OpenZFS 2.3.9).
_NATIVE = (
    "type", "name", "guid", "createtxg", "creation", "used", "referenced", "userrefs", "clones",
    "encryption", "keystatus", "origin", "receive_resume_token",
)  # fmt: skip
_OURS = tuple(PROPERTY + name for name in ("point", "disks", "consistency", "volume"))
_MISSING = re.compile(r"cannot open '([^']+)': dataset does not exist")


def list_host(host: Host, roots: Sequence[Dataset], *, depth: int | None = None) -> Listing:
    """List the roots with all below them: `depth` as in `zfs list -d`, None for everything.

    A root that does not exist is left out of `Listing.roots`; every other trouble raises, because only
    "dataset does not exist" means absence (reliability §1).
    """
    if not roots:
        return Listing(host=host.name)
    reach = ("-r",) if depth is None else ("-d", str(depth))
    argv = ("zfs", "list", "-Hp", *reach, "-t", "all", "-o", ",".join(_NATIVE + _OURS), "--", *roots)
    done = host.run(argv, check=False, timeout=LIST_TIMEOUT)
    missing = set(_MISSING.findall(done.stderr))
    if done.returncode:
        unexplained = [line for line in done.stderr.splitlines() if line.strip() and not _MISSING.search(line)]
        if unexplained or not missing or done.returncode != 1:  # a killed one answers half
            raise classified(done)
    with _readable(host):
        volumes = _volumes(done.stdout.splitlines())
    return Listing(host=host.name, volumes=volumes, roots=frozenset(r for r in roots if r not in missing))


def with_tokens(listing: Listing, source: Host) -> Listing:
    """The listing with its resume tokens decoded by the sending side; unreadable ones stay undecoded."""
    decoded = {
        name: replace(volume, resume=decode_token(source, volume.resume.token))
        for name, volume in listing.volumes.items()
        if volume.resume
    }
    return replace(listing, volumes={**listing.volumes, **decoded}) if decoded else listing


def decode_token(source: Host, token: str) -> ResumeToken:
    """What a token would send: guids and raw mode (`zfs send -nvP -t`)."""
    done = source.run(("zfs", "send", "-nvP", "-t", token), check=False)
    # Seen on 2.3.9: the contents are printed even when the snapshot to send is gone and the command fails.
    text = done.stdout + done.stderr
    fields = dict(re.findall(r"^\s*(\w+) = (\S+)$", text, re.MULTILINE))
    return ResumeToken(
        token=token,
        to_guid=_hex(fields.get("toguid")),
        from_guid=_hex(fields.get("fromguid")),
        raw=fields.get("rawok") == "1",
        received=int(fields.get("bytes", "0"), 16),
    )


def read_guids(host: Host, datasets: Iterable[Dataset]) -> dict[Dataset, frozenset[Guid]]:
    """The guids of all snapshots of these datasets, read now; none for one that does not exist."""
    names = sorted(set(datasets))
    if not names:
        return {}
    done = host.run(
        ("zfs", "list", "-Hp", "-d", "1", "-t", "snapshot", "-o", "name,guid", "--", *names),
        check=False,
        timeout=LIST_TIMEOUT,
    )
    told = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode and (done.returncode != 1 or not told or not all(map(_MISSING.search, told))):
        raise classified(done)
    found: dict[Dataset, set[Guid]] = {name: set() for name in names}
    with _readable(host):
        for line in done.stdout.splitlines():
            name, guid = line.split("\t")
            found.setdefault(Dataset(name.partition("@")[0]), set()).add(Guid(guid))
    return {name: frozenset(guids) for name, guids in found.items()}


def point_properties(host: Host, snapshots: Sequence[Snapshot]) -> dict[str, dict[str, str]]:
    """All of our properties of each snapshot, by its full name."""
    if not snapshots:
        return {}
    names = [snapshot.full_name for snapshot in snapshots]
    argv = ("zfs", "get", "-Hp", "-s", "local", "-o", "name,property,value", "all", "--", *names)
    done = host.run(argv, check=False)
    if done.returncode:
        raise classified(done)
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    with _readable(host):
        for line in done.stdout.splitlines():
            name, key, value = line.split("\t", 2)
            if key.startswith(PROPERTY):
                found[name][key] = value
    return found


@contextlib.contextmanager
def _readable(host: Host) -> Iterator[None]:
    """A host whose answer is garbage has failed like one that says an error: that host, and no other."""
    try:
        yield
    except (ValueError, KeyError) as error:
        raise ZfsError(f"{host.name}: the answer of zfs is not understood: {str(error)[:200]}") from None


@dataclass(slots=True)
class _Draft:
    volume: Volume
    snapshots: list[Snapshot] = field(default_factory=list)
    bookmarks: list[Bookmark] = field(default_factory=list)


def _volumes(lines: Iterable[str]) -> Mapping[Dataset, Volume]:
    drafts: dict[str, _Draft] = {}
    rows = [_row(line) for line in lines]
    for row in rows:
        if row["type"] in ("filesystem", "volume"):
            drafts[row["name"]] = _Draft(_volume(row))
    for row in rows:
        if row["type"] == "snapshot":
            snapshot = _snapshot(row)
            if owner := drafts.get(snapshot.dataset):
                owner.snapshots.append(snapshot)
        elif row["type"] == "bookmark":
            bookmark = _bookmark(row)
            if owner := drafts.get(bookmark.dataset):
                owner.bookmarks.append(bookmark)
    return {draft.volume.name: _finished(draft) for draft in drafts.values()}


def _finished(draft: _Draft) -> Volume:
    unique = {snapshot.full_name: snapshot for snapshot in draft.snapshots}  # nested roots list twice
    marks = {bookmark.full_name: bookmark for bookmark in draft.bookmarks}
    return replace(
        draft.volume,
        snapshots=tuple(sorted(unique.values(), key=lambda s: (s.createtxg, s.name))),
        bookmarks=tuple(sorted(marks.values(), key=lambda b: (b.createtxg, b.name))),
    )


def _row(line: str) -> dict[str, str]:
    keys = _NATIVE + _OURS
    cells = line.split("\t")
    if len(cells) != len(keys):
        raise ZfsError(f"zfs list: {len(cells)} columns instead of {len(keys)} in {line[:200]!r}")
    return {key: "" if cell == "-" else cell for key, cell in zip(keys, cells, strict=True)}


def _volume(row: Mapping[str, str]) -> Volume:
    kind: Literal["filesystem", "volume"] = "volume" if row["type"] == "volume" else "filesystem"
    token = row["receive_resume_token"]
    return Volume(
        name=Dataset(row["name"]),
        guid=Guid(row["guid"]),
        type=kind,
        used=int(row["used"] or 0),
        refer=int(row["referenced"] or 0),
        encrypted=row["encryption"] not in ("", "off"),
        keystatus=row["keystatus"],
        origin=row["origin"],
        resume=ResumeToken(token=token) if token else None,
    )


def _snapshot(row: Mapping[str, str]) -> Snapshot:
    dataset, _, name = row["name"].partition("@")
    point = row[PROPERTY + "point"]
    match = SNAPSHOT_NAME.match(name)
    # A property is inherited by every snapshot of a dataset that has it: ours only if it names this snapshot.
    ours = match is not None and point.partition("/")[2] == match[1] and point.partition("/")[0].isdigit()
    return Snapshot(
        dataset=Dataset(dataset),
        name=name,
        guid=Guid(row["guid"]),
        createtxg=int(row["createtxg"]),
        creation=int(row["creation"]),
        used=int(row["used"] or 0),
        refer=int(row["referenced"] or 0),
        userrefs=int(row["userrefs"] or 0),
        clones=bool(row["clones"]),
        point=PointId(point) if ours else None,
        disks=row[PROPERTY + "disks"] if ours else "",
        consistency=row[PROPERTY + "consistency"] if ours else "",
        volume=Guid(row[PROPERTY + "volume"]) if ours else Guid(""),
    )


def _bookmark(row: Mapping[str, str]) -> Bookmark:
    dataset, _, name = row["name"].partition("#")
    return Bookmark(
        dataset=Dataset(dataset),
        name=name,
        guid=Guid(row["guid"]),
        createtxg=int(row["createtxg"]),
        creation=int(row["creation"]),
    )


def _hex(text: str | None) -> Guid:
    return Guid(str(int(text, 16))) if text else Guid("")


def require(listing: Listing, root: Dataset) -> None:
    """Raise `DatasetNotFoundError` unless the root was found."""
    if root not in listing.roots:
        raise DatasetNotFoundError(f"{listing.host}: dataset {root} does not exist")
