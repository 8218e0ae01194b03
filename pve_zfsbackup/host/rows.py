"""The rows of `zfs list -Hp -t all` as volumes with their snapshots and bookmarks."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from sys import intern
from typing import Final, Literal

from pve_zfsbackup.errors import ZfsError
from pve_zfsbackup.host.tokens import read_token
from pve_zfsbackup.model import (
    PROPERTY,
    RESTORE_PROPS,
    SNAPSHOT_NAME,
    Bookmark,
    Dataset,
    Guid,
    PointId,
    Snapshot,
    Volume,
)

# A bookmark's `ivsetguid` and a snapshot's are listed like any property (seen on OpenZFS 2.3.9).
_NATIVE: Final = (
    "type", "name", "guid", "createtxg", "creation", "used", "referenced", "written", "userrefs", "clones",
    "encryption", "keystatus", "origin", "receive_resume_token", "available", "ivsetguid",
)  # fmt: skip
_OURS: Final = tuple(
    PROPERTY + name for name in ("point", "disks", "consistency", "window", "volume", "verified", "owner", "failover")
)
# They bind whoever is not root (`dsl_enforce_ds_ss_limits` of dsl_dir.c): an account on a target.
LIMITS: Final = ("snapshot_limit", "snapshot_count", "filesystem_limit", "filesystem_count")
NO_LIMIT: Final = (1 << 64) - 1  # what `-p` prints for none
TARGET_COLUMNS: Final = _NATIVE + _OURS + LIMITS
# What a restore needs is asked for where new points are made: on the source.
SOURCE_COLUMNS: Final = _NATIVE + _OURS + RESTORE_PROPS + (PROPERTY + "restore", PROPERTY + "restored")
# Seconds; in the year 9892, so that it can be shown in any time zone. What comes with a stream may be any number.
LATEST: Final = 250_000_000_000
_VMID: Final = re.compile(r"[1-9][0-9]{0,8}\Z")  # not all that `isdigit` takes: `int` refuses some of it

_SNAPSHOT: Final = (
    "name", "guid", "createtxg", "creation", "used", "referenced", "written", "userrefs", "clones", "ivsetguid",
    *(PROPERTY + name for name in ("point", "disks", "consistency", "window", "volume", "verified")),
)  # fmt: skip
_BOOKMARK: Final = ("name", "guid", "createtxg", "creation", "ivsetguid")


@dataclass(slots=True)
class _Draft:
    volume: Volume
    snapshots: list[Snapshot] = field(default_factory=list)
    bookmarks: list[Bookmark] = field(default_factory=list)


def volumes(lines: Iterable[str], columns: Sequence[str]) -> Mapping[Dataset, Volume]:
    """All volumes of a listing. Raises `ZfsError` or ValueError for rows that cannot be read.

    There may be a million rows: what the snapshots of a volume or a point share is kept once (`intern`).
    """
    drafts: dict[str, _Draft] = {}
    later: list[Snapshot | Bookmark] = []  # roots may be listed in another order
    kind = columns.index("type")
    snapshot_cells, bookmark_cells = (
        itemgetter(*(columns.index(name) for name in wanted)) for wanted in (_SNAPSHOT, _BOOKMARK)
    )
    for line in lines:
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise ZfsError(f"zfs list: {len(cells)} columns instead of {len(columns)} in {line[:200]!r}")
        if cells[kind] == "snapshot":
            later.append(_snapshot(snapshot_cells(cells)))
        elif cells[kind] == "bookmark":
            later.append(_bookmark(bookmark_cells(cells)))
        elif cells[kind] in ("filesystem", "volume"):
            row = {key: "" if cell == "-" else cell for key, cell in zip(columns, cells, strict=True)}
            drafts[row["name"]] = _Draft(_volume(row))
    for item in later:
        owner = drafts.get(item.dataset)
        if owner and isinstance(item, Snapshot):
            owner.snapshots.append(item)
        elif owner and isinstance(item, Bookmark):
            owner.bookmarks.append(item)
    found = {draft.volume.name: _finished(draft) for draft in drafts.values()}
    gc.freeze()  # no cycles in there: the collector need not walk a million snapshots again and again
    return found


def _finished(draft: _Draft) -> Volume:
    unique = {snapshot.name: snapshot for snapshot in draft.snapshots}  # nested roots list twice
    marks = {bookmark.name: bookmark for bookmark in draft.bookmarks}
    return replace(
        draft.volume,
        snapshots=tuple(sorted(unique.values(), key=lambda s: (s.createtxg, s.name))),
        bookmarks=tuple(sorted(marks.values(), key=lambda b: (b.createtxg, b.name))),
    )


def _volume(row: Mapping[str, str]) -> Volume:
    kind: Literal["filesystem", "volume"] = "volume" if row["type"] == "volume" else "filesystem"
    token = row["receive_resume_token"]
    available = row["available"]
    return Volume(
        name=Dataset(intern(row["name"])),
        guid=Guid(row["guid"]),
        type=kind,
        used=int(row["used"] or 0),
        refer=int(row["referenced"] or 0),
        written=int(row["written"] or 0),
        encrypted=row["encryption"] not in ("", "off"),
        keystatus=row["keystatus"],
        origin=row["origin"],
        resume=read_token(token) if token else None,
        available=int(available) if available else None,
        owner=row[PROPERTY + "owner"],
        failover=row.get(PROPERTY + "failover", ""),
        props={name: row[name] for name in RESTORE_PROPS if row.get(name)},
        work=row.get(PROPERTY + "restore", ""),
        restored=_restored(row),
        snapshots_left=_left(row, "snapshot"),
        filesystems_left=_left(row, "filesystem"),
    )


def _left(row: Mapping[str, str], what: str) -> int | None:
    """How many more there may be below this dataset; None without a limit, and where its count is not told."""
    limit, count = row.get(f"{what}_limit", ""), row.get(f"{what}_count", "")
    if not (limit.isdecimal() and count.isdecimal()) or NO_LIMIT in (int(limit), int(count)):
        return None
    return max(0, int(limit) - int(count))


def _restored(row: Mapping[str, str]) -> str:
    """`point,key` of `point,key,guid`, where the guid is this dataset's: the property travels with `send -R`."""
    origin, _, guid = row.get(PROPERTY + "restored", "").rpartition(",")
    return origin if guid == row["guid"] else ""


def _snapshot(cells: tuple[str, ...]) -> Snapshot:
    (full, guid, createtxg, creation, used, refer, written, userrefs, clones, ivset,
     point, disks, consistency, window, volume, verified) = cells  # fmt: skip
    dataset, _, name = full.partition("@")
    match = SNAPSHOT_NAME.match(name)
    # A property is inherited by every snapshot of a dataset that has it: ours only if it names this snapshot.
    vmid, _, stamp = point.partition("/")
    ours = match is not None and stamp == match[1] and _VMID.match(vmid) is not None
    return Snapshot(
        dataset=Dataset(intern(dataset)),
        name=intern(name),
        guid=Guid(guid),
        createtxg=int(createtxg),
        creation=min(int(creation), LATEST),
        used=_number(used),
        refer=_number(refer),
        userrefs=_number(userrefs),
        clones=clones not in ("", "-"),
        point=PointId(intern(point)) if ours else None,
        disks=_text(disks) if ours else "",
        consistency=_text(consistency) if ours else "",
        window=_milliseconds(window) if ours else 0,
        volume=Guid(_text(volume)) if ours else Guid(""),
        ivset=_ivset(ivset),
        written=_number(written) if written.isdigit() else _number(refer),  # what is not told may be all of it
        verified=_text(verified) if ours else "",
    )


def _bookmark(cells: tuple[str, ...]) -> Bookmark:
    full, guid, createtxg, creation, ivset = cells
    dataset, _, name = full.partition("#")
    return Bookmark(
        dataset=Dataset(intern(dataset)),
        name=name,
        guid=Guid(guid),
        createtxg=int(createtxg),
        creation=min(int(creation), LATEST),
        ivset=_ivset(ivset),
    )


def _number(cell: str) -> int:
    return 0 if cell in ("", "-") else int(cell)


def _milliseconds(text: str) -> int:
    """A target is not trusted: what is no number tells nothing."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _text(cell: str) -> str:
    return "" if cell == "-" else intern(cell)


def _ivset(cell: str) -> Guid:
    """Unknown where it is 0: bookmarks made before OpenZFS 2.1.6 may lack it (openzfs #14967)."""
    return Guid("" if cell in ("", "-", "0") else cell)
