"""What `verify` found: of pools, of points, and in drills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pve_zfsbackup.app.chains import Chain
from pve_zfsbackup.app.pools import PoolFound
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.model.drill import Drilled, State
from pve_zfsbackup.report.format import FORMAT, Table, age, clean, size


def drilled_table(ends: Sequence[Drilled]) -> Table:
    rows = []
    for end in ends:
        up = f"{end.booted.system}, up after {end.booted.seconds:.0f} s" if end.booted else ""
        told = "; ".join(end.judgement.problems) or up or end.contents.system or "good"
        stamp = end.point.partition("/")[2]
        read, time = size(end.contents.read), f"{end.seconds:.1f} s"
        rows.append((str(end.vmid), end.guest, stamp, end.judgement.level.value, read, time, told))
    columns = ("vmid", "guest", "point", "level", "read", "time", "found")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid", "read", "time"}))


def looks_table(ends: Sequence[Drilled]) -> Table:
    """Every disk, partition, volume and file system."""
    rows = [
        (
            str(end.vmid),
            look.disk,
            look.place,
            look.kind,
            "" if look.state is State.GOOD else look.state.value,
            look.text,
        )
        for end in ends
        for look in end.contents.looks
    ]
    columns = ("vmid", "disk", "place", "kind", "state", "found")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid"}))


def drill_json(ends: Sequence[Drilled], others: Sequence[Result]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "drills": [
            {
                "vmid": end.vmid,
                "guest": end.guest,
                "host": end.host,
                "point": end.point,
                "level": end.judgement.level.value,
                "problems": list(end.judgement.problems),
                "notes": list(end.judgement.notes),
                "system": end.contents.system,
                "read": end.contents.read,
                "seconds": round(end.seconds, 3),
                "boot_seconds": round(end.booted.seconds, 3) if end.booted else None,
                "looks": [
                    {"disk": look.disk, "place": look.place, "kind": look.kind, "state": look.state, "text": look.text}
                    for look in end.contents.looks
                ],
            }
            for end in ends
        ],
        "failed": _failed(others),
        "notes": [result.message for result in others if result.outcome is not Outcome.FAILED],
    }


def pools_table(found: Sequence[PoolFound], now: float) -> Table:
    rows = []
    for entry in found:
        scrub = "not known" if entry.scan.ended is None else f"{age(int(now - entry.scan.ended))} ago"
        scrub = f"runs, {entry.scan.done:.0f} % done" if entry.scan.running else scrub
        told = "; ".join([*entry.problems, *([entry.unasked] if entry.unasked else ())]) or "good"
        rows.append((entry.host, entry.pool, entry.scan.state, scrub, told))
    columns = ("where", "pool", "state", "last scrub", "found")
    return Table(columns=columns, rows=clean(rows))


def pools_json(found: Sequence[PoolFound], results: Sequence[Result]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "pools": [
            {
                "host": entry.host,
                "pool": entry.pool,
                "state": entry.scan.state,
                "errors": entry.scan.errors,
                "devices": [str(device) for device in entry.scan.devices],
                "last_scrub": entry.scan.ended,
                "scrub_errors": entry.scan.found,
                "scrub_running": entry.scan.running,
                "scrub_started": entry.started,
                "problems": list(entry.problems),
                "not_asked": entry.unasked,
            }
            for entry in found
        ],
        "failed": _failed(results),
    }


def chains_table(found: Sequence[Chain]) -> Table:
    rows = []
    for entry in found:
        told = "; ".join(entry.problems) or "good"
        rows.append((str(entry.vmid), entry.host, str(entry.points), str(len(entry.whole)), told))
    columns = ("vmid", "target", "points", "whole", "found")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid", "points", "whole"}))


def chains_json(found: Sequence[Chain], results: Sequence[Result]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "guests": [
            {
                "vmid": entry.vmid,
                "host": entry.host,
                "points": entry.points,
                "whole": [point.id for point in entry.whole],
                "problems": list(entry.problems),
                "notes": list(entry.notes),
            }
            for entry in found
        ],
        "failed": _failed(results),
    }


def planted_json(results: Sequence[Result]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "guests": [
            {
                "vmid": result.vmid,
                "guest": result.guest,
                "outcome": result.outcome.value,
                "message": result.message,
                "hint": result.hint,
            }
            for result in results
        ],
    }


def _failed(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        {"vmid": result.vmid, "host": result.host, "message": result.message, "hint": result.hint}
        for result in results
        if result.outcome is Outcome.FAILED
    ]
