"""The rows of `zfs list -Hp -t all` as volumes with their snapshots and bookmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from pve_zfsbackup.errors import ZfsError
from pve_zfsbackup.model import (
    PROPERTY,
    RESTORE_PROPS,
    SNAPSHOT_NAME,
    Bookmark,
    Dataset,
    Guid,
    PointId,
    ResumeToken,
    Snapshot,
    Volume,
)

# A bookmark's `ivsetguid` and a snapshot's are listed like any property (seen on OpenZFS 2.3.9).
_NATIVE: Final = (
    "type", "name", "guid", "createtxg", "creation", "used", "referenced", "written", "userrefs", "clones",
    "encryption", "keystatus", "origin", "receive_resume_token", "available", "ivsetguid",
)  # fmt: skip
_OURS: Final = tuple(PROPERTY + name for name in ("point", "disks", "consistency", "window", "volume", "owner"))
# What a restore needs is asked for where new points are made: on the source.
TARGET_COLUMNS: Final = _NATIVE + _OURS
SOURCE_COLUMNS: Final = TARGET_COLUMNS + RESTORE_PROPS


@dataclass(slots=True)
class _Draft:
    volume: Volume
    snapshots: list[Snapshot] = field(default_factory=list)
    bookmarks: list[Bookmark] = field(default_factory=list)


def volumes(lines: Iterable[str], columns: Sequence[str]) -> Mapping[Dataset, Volume]:
    """All volumes of a listing. Raises `ZfsError` or ValueError for rows that cannot be read."""
    drafts: dict[str, _Draft] = {}
    later: list[Snapshot | Bookmark] = []  # roots may be listed in another order
    for line in lines:
        row = _row(line, columns)
        if row["type"] in ("filesystem", "volume"):
            drafts[row["name"]] = _Draft(_volume(row))
        elif row["type"] == "snapshot":
            later.append(_snapshot(row))
        elif row["type"] == "bookmark":
            later.append(_bookmark(row))
    for item in later:
        owner = drafts.get(item.dataset)
        if owner and isinstance(item, Snapshot):
            owner.snapshots.append(item)
        elif owner and isinstance(item, Bookmark):
            owner.bookmarks.append(item)
    return {draft.volume.name: _finished(draft) for draft in drafts.values()}


def _finished(draft: _Draft) -> Volume:
    unique = {snapshot.full_name: snapshot for snapshot in draft.snapshots}  # nested roots list twice
    marks = {bookmark.full_name: bookmark for bookmark in draft.bookmarks}
    return replace(
        draft.volume,
        snapshots=tuple(sorted(unique.values(), key=lambda s: (s.createtxg, s.name))),
        bookmarks=tuple(sorted(marks.values(), key=lambda b: (b.createtxg, b.name))),
    )


def _row(line: str, columns: Sequence[str]) -> dict[str, str]:
    cells = line.split("\t")
    if len(cells) != len(columns):
        raise ZfsError(f"zfs list: {len(cells)} columns instead of {len(columns)} in {line[:200]!r}")
    return {key: "" if cell == "-" else cell for key, cell in zip(columns, cells, strict=True)}


def _volume(row: Mapping[str, str]) -> Volume:
    kind: Literal["filesystem", "volume"] = "volume" if row["type"] == "volume" else "filesystem"
    token = row["receive_resume_token"]
    available = row["available"]
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
        available=int(available) if available else None,
        owner=row[PROPERTY + "owner"],
        props={name: row[name] for name in RESTORE_PROPS if row.get(name)},
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
        window=_milliseconds(row[PROPERTY + "window"]) if ours else 0,
        volume=Guid(row[PROPERTY + "volume"]) if ours else Guid(""),
        ivset=_ivset(row),
        written=int(row["written"] or 0),
    )


def _bookmark(row: Mapping[str, str]) -> Bookmark:
    dataset, _, name = row["name"].partition("#")
    return Bookmark(
        dataset=Dataset(dataset),
        name=name,
        guid=Guid(row["guid"]),
        createtxg=int(row["createtxg"]),
        creation=int(row["creation"]),
        ivset=_ivset(row),
    )


def _ivset(row: Mapping[str, str]) -> Guid:
    """Unknown where it is 0: bookmarks made before OpenZFS 2.1.6 may lack it (openzfs #14967)."""
    return Guid(row["ivsetguid"] if row["ivsetguid"] != "0" else "")


def _milliseconds(text: str) -> int:
    """A target is not trusted: what is no number tells nothing."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0
