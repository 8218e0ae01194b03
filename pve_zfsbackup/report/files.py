"""`restore --files`: what lies in a point, and what was copied."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import tzinfo
from typing import Any

from pve_zfsbackup.app.files import Browsed
from pve_zfsbackup.model import printable
from pve_zfsbackup.model.drill import State
from pve_zfsbackup.model.files import Copied, Entry, EntryKind, Shown
from pve_zfsbackup.report.format import FORMAT, Table, clean, moment, size


def systems_table(browsed: Browsed) -> Table:
    """The file systems of a point, and what there is besides."""
    rows = [
        (one.name, one.disk, one.place, one.kind, one.label, size(one.size) if one.size else "", "")
        for one in browsed.found.file_systems
    ]
    rows += [
        ("", look.disk, look.place, look.kind, "", "", look.text)
        for look in browsed.found.looks
        if look.state is not State.GOOD
    ]
    columns = ("file system", "disk", "place", "kind", "label", "size", "not opened")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"size"}))


def entries_table(shown: Shown, zone: tzinfo) -> Table:
    rows = [
        (
            stat.filemode(entry.mode),
            str(entry.owner),
            str(entry.group),
            size(entry.size) if entry.kind is EntryKind.FILE else "",
            moment(entry.modified, zone),
            _name(entry),
        )
        for entry in shown.entries
    ]
    columns = ("mode", "owner", "group", "size", "modified", f"{shown.file_system}:{shown.path}")
    return Table(columns=clean([columns])[0], rows=clean(rows), right=frozenset({"owner", "group", "size"}))


def _name(entry: Entry) -> str:
    if entry.kind is EntryKind.LINK:
        return f"{entry.name} -> {entry.aim}"
    return f"{entry.name}/" if entry.kind is EntryKind.DIRECTORY else entry.name


def copied_lines(browsed: Browsed, into: str) -> Iterator[str]:
    """What was copied, for people."""
    copied = browsed.found.copied or Copied()
    yield f"{copied.files} files, {size(copied.bytes)}, of point {browsed.point.id} copied to {into}"
    for lost in copied.lost:
        yield f"not kept everywhere: {lost}"


def problem_lines(browsed: Browsed) -> Iterator[str]:
    """What was not found, not copied or not opened."""
    found = browsed.found
    for path in found.missing:
        yield f"{printable(path)}: in no file system of this point"
    if found.copied:
        yield from found.copied.problems
    for look in found.looks:
        if look.state is State.BAD:
            yield " ".join(word for word in (look.disk, look.place, f"{look.kind}: {look.text}") if word)


def files_json(browsed: Browsed) -> dict[str, Any]:
    """Names as they are; bytes that are no UTF-8 as lone surrogates (PEP 383)."""
    found = browsed.found
    return {
        "format": FORMAT,
        "point": browsed.point.id,
        "file_systems": [
            {
                "name": one.name,
                "disk": one.disk,
                "place": one.place,
                "kind": one.kind,
                "label": one.label,
                "size": one.size,
            }
            for one in found.file_systems
        ],
        "others": [
            {"disk": look.disk, "place": look.place, "kind": look.kind, "state": look.state, "text": look.text}
            for look in found.looks
            if look.state is not State.GOOD
        ],
        "shown": [
            {
                "file_system": shown.file_system,
                "asked": shown.asked,
                "path": shown.path,
                "entries": [_entry(entry) for entry in shown.entries],
            }
            for shown in found.shown
        ],
        "copied": _copied(found.copied) if found.copied else None,
        "missing": list(found.missing),
        "notes": list(browsed.notes),
    }


def _copied(copied: Copied) -> dict[str, Any]:
    return {
        "files": copied.files,
        "bytes": copied.bytes,
        "problems": list(copied.problems),
        "lost": list(copied.lost),
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind.value,
        "mode": f"{stat.S_IMODE(entry.mode):04o}",
        "owner": entry.owner,
        "group": entry.group,
        "size": entry.size,
        "modified": entry.modified,
        "aim": entry.aim,
    }
