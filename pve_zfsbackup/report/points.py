"""`list`: which points there are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from typing import Any

from pve_zfsbackup.app.boxes import BoxPoint
from pve_zfsbackup.app.cost import Cost
from pve_zfsbackup.app.history import History
from pve_zfsbackup.model import Point, Vmid
from pve_zfsbackup.model.proof import Proof
from pve_zfsbackup.report.format import FORMAT, Table, clean, cost, moment, size


def points_table(found: History, tz: tzinfo, *, disks: bool = False, costs: Sequence[Cost] = ()) -> Table:
    rows: list[tuple[str, ...]] = []
    for vmid, name in _guests(found):
        for host, point in _points_of(found, vmid):
            rows.append(
                (
                    str(vmid), name, host, point.stamp, moment(point.creation, tz),
                    _total(point, "used"), _total(point, "refer"), _quality(point, tz),
                )
            )  # fmt: skip
            if disks:
                rows += (_disk_row(key, point, tz) for key in sorted(point.snapshots))
        rows += (_box_row(vmid, name, box, kept, tz) for box, kept in _archived_of(found, vmid))
        rows += (_cost_row(own, name) for own in costs if own.vmid == vmid)
    columns = ("vmid", "guest", "where", "point", "creation", "used", "refer", "consistency")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid", "used", "refer"}))


def _disk_row(key: str, point: Point, tz: tzinfo) -> tuple[str, ...]:
    snapshot = point.snapshots[key]
    used, word = ("", "unchanged since") if key in point.borrowed else (size(snapshot.used), "")
    when = moment(snapshot.creation, tz)
    return ("", "", "", f"  {key} {snapshot.full_name}", when, used, size(snapshot.refer), word)


def _box_row(vmid: Vmid, name: str, box: str, kept: BoxPoint, tz: tzinfo) -> tuple[str, ...]:
    """What is stored stands under `used`. Until it was opened with the identity, nobody knows that it can be."""
    point = kept.archived
    told = [point.consistency, f"increment to {kept.base.partition('/')[2]}" if kept.base else "full"]
    told += [f"{kept.proof.level} {moment(int(kept.proof.at), tz)}" if kept.proof else "never read back"]
    told += [] if kept.sound else ["damaged"]
    stamp = point.point.partition("/")[2]
    return (str(vmid), name, box, stamp, moment(point.creation, tz), size(point.bytes), "", ", ".join(told))


def _cost_row(own: Cost, name: str) -> tuple[str, ...]:
    what = f"all {len(own.points)} of these" if len(own.points) > 1 else "this one"
    return (str(own.vmid), name, own.host, what, "would free", cost(own.freed), "", own.reason)


def _cost_json(own: Cost) -> dict[str, Any]:
    return {
        "vmid": own.vmid,
        "host": own.host,
        "first": own.points[0].id,
        "last": own.points[-1].id,
        "points": len(own.points),
        "freed": own.freed,
        "reason": own.reason,
    }


def points_json(found: History, costs: Sequence[Cost] | None = None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "points": [
            _point_json(host, name, point) for vmid, name in _guests(found) for host, point in _points_of(found, vmid)
        ],
        "archived": [
            _archived_json(box, name, kept) for vmid, name in _guests(found) for box, kept in _archived_of(found, vmid)
        ],
        "unreachable": {host: error.message for host, error in found.errors.items()},
        **({} if costs is None else {"costs": [_cost_json(own) for own in costs]}),
    }


def _guests(found: History) -> list[tuple[Vmid, str]]:
    """Those with a name are there; of the others only their points are."""
    return [(entry.guest.vmid, entry.guest.name) for entry in found.coverage] + [(vmid, "") for vmid in found.orphans]


def _point_json(host: str, name: str, point: Point) -> dict[str, Any]:
    return {
        "vmid": point.vmid,
        "guest": name,
        "host": host,
        "point": point.id,
        "creation": point.creation,
        "complete": point.complete,
        "consistency": point.consistency,
        "verified": proof_json(point.proof),
        "window": point.window,
        "disks": [
            {
                "key": key,
                "volid": point.disks.get(key, ""),
                "snapshot": snapshot.full_name,
                "guid": snapshot.guid,
                "creation": snapshot.creation,
                "used": snapshot.used,
                "refer": snapshot.refer,
                "held": snapshot.userrefs > 0,
                **({"borrowed": True} if key in point.borrowed else {}),
            }
            for key, snapshot in sorted(point.snapshots.items())
        ],
    }


def _archived_json(box: str, name: str, kept: BoxPoint) -> dict[str, Any]:
    point = kept.archived
    return {
        "vmid": point.vmid,
        "guest": name,
        "box": box,
        "point": point.point,
        "creation": point.creation,
        "consistency": point.consistency,
        "sound": kept.sound,
        "increment_to": kept.base or "",
        "bytes": point.bytes,
        "read_back": {"level": kept.proof.level, "at": int(kept.proof.at)} if kept.proof else None,
        "path": f"{point.generation}/{point.name}",
        "disks": [{"key": key, "volid": disk.volid, "guid": disk.guid} for key, disk in sorted(point.disks.items())],
    }


def _archived_of(found: History, vmid: Vmid) -> list[tuple[str, BoxPoint]]:
    return [(name, kept) for name, box in sorted(found.archived.items()) for kept in box.points.get(vmid, ())]


def _points_of(found: History, vmid: Vmid) -> list[tuple[str, Point]]:
    return [(host, point) for host in found.hosts for point in found.points[host].get(vmid, ())]


def _total(point: Point, name: str) -> str:
    snapshots = point.own if name == "used" else point.snapshots
    return size(sum(getattr(snapshot, name) for snapshot in snapshots.values()))


def _quality(point: Point, tz: tzinfo) -> str:
    if point.complete:
        proof = point.proof
        return f"{point.consistency}, {proof.level} {moment(proof.at, tz)}" if proof else point.consistency
    missing = sorted(point.disks.keys() - point.snapshots.keys())
    return f"incomplete: {', '.join(missing)} missing"


def proof_json(proof: Proof | None) -> dict[str, Any] | None:
    return {"level": proof.level.value, "at": proof.at} if proof else None
