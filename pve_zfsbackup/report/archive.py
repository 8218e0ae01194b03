"""Boxes: what was checked there and what was restored from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pve_zfsbackup.app.archive_restore import Restored
from pve_zfsbackup.app.archive_verify import Verification, Verified
from pve_zfsbackup.report.format import FORMAT, Table, clean, size


def verified_table(points: Sequence[Verified]) -> Table:
    rows = []
    for point in points:
        told = "; ".join(point.problems) or "good"
        name = point.point or "(closed)"
        rows.append((name, point.path, point.level.value, str(point.segments), size(point.bytes), told))
    columns = ("point", "in the box", "level", "segments read", "read", "found")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"segments read", "read"}))


def verification_json(found: Verification) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "good": found.good,
        "part": found.part,
        "problems": list(found.problems),
        "points": [
            {
                "point": point.point,
                "path": point.path,
                "level": point.level.value,
                "segments": point.segments,
                "bytes": point.bytes,
                "problems": list(point.problems),
            }
            for point in found.points
        ],
    }


def restored_table(disks: Sequence[Restored], *, done: bool = True) -> Table:
    rows = []
    for disk in disks:
        cost = f"{disk.seconds:.1f} s" if done else size(disk.bytes)
        rows.append((disk.key, disk.dataset, str(disk.received), str(disk.streams - disk.received), cost))
    columns = ("disk", "dataset", *(("received", "there already", "time") if done else ("missing", "there", "size")))
    return Table(columns=columns, rows=clean(rows), right=frozenset(columns[2:]))


def restored_json(
    point: str, disks: Sequence[Restored], files: Sequence[str], *, done: bool = True
) -> dict[str, Any]:  # fmt: skip
    return {
        "format": FORMAT,
        "done": done,
        "point": point,
        "disks": [
            {"disk": one.key, "dataset": one.dataset, "streams": one.streams, "received": one.received if done else 0}
            for one in disks
        ],
        "files": list(files),
    }
