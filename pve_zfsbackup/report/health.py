"""Health for monitoring: a plugin's line with performance data, Checkmk's local check.

Formats: monitoring-plugins.org guidelines; Checkmk "local checks".
Plugin output must not have `|`, which begins the performance data, nor line breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from pve_zfsbackup.app.health import SOON_CRITICAL, SOON_WARN
from pve_zfsbackup.model import printable
from pve_zfsbackup.model.health import Health, Level
from pve_zfsbackup.report.format import FORMAT
from pve_zfsbackup.report.leavings import aside_json

SHOWN: Final = 5  # findings in the one line; the rest is in `--json` and in the lines below


def check_lines(found: Health) -> list[str]:
    """The plugin's answer: one line, performance data behind `|`, then every finding on a line of its own."""
    return [f"{found.level.name} - {_summary(found)} | {' '.join(_perfdata(found))}", *_long(found)]


def checkmk_line(found: Health) -> str:
    data = "|".join(_perfdata(found)) or "-"
    return f'{int(found.level)} "pve-zfsbackup" {data} {_summary(found)}'


def unknown_line(message: str, *, checkmk: bool) -> str:
    """When nothing could be asked: that is no success."""
    text = _plain(message)
    return f'3 "pve-zfsbackup" - {text}' if checkmk else f"{Level.UNKNOWN.name} - {text}"


def health_json(found: Health) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "level": found.level.name.lower(),
        "findings": [
            {"level": item.level.name.lower(), "about": item.about, "text": item.text} for item in found.findings
        ],
        "ages": [
            {
                "vmid": age.vmid,
                "guest": age.guest,
                "host": age.host,
                "seconds": age.seconds,
                "warn": age.warn,
                "critical": age.critical,
                "consistency": age.consistency,
            }
            for age in found.ages
        ],
        "verified": [
            {
                "vmid": one.vmid,
                "guest": one.guest,
                "level": one.last.level if one.last else None,
                "where": one.last.place if one.last else None,
                "seconds": found.now - one.last.at if one.last else None,
                "warn": one.limit,
            }
            for one in found.verified
        ],
        "aside": aside_json(found.aside),
        "strays": list(found.strays),
        "stages": [
            {"stage": one.stage, "seconds": None if one.last is None else found.now - one.last, "warn": one.limit}
            for one in found.stages
        ],
        "pools": [
            {"name": pool.name, "health": pool.health, "size": pool.size, "free": pool.free} for pool in found.pools
        ],
        "conditions": [
            {
                "host": host,
                "pool": pool,
                "state": condition.state,
                "errors": condition.errors,
                "devices": [str(device) for device in condition.devices] if condition.known else None,
            }
            for (host, pool), condition in found.conditions.items()
        ],
        "space": [
            {
                "host": one.room.host,
                "dataset": one.room.dataset,
                "used": one.room.used,
                "available": one.room.available,
                "known": one.known,
                "per_day": round(one.per_day),
                "age": round(found.now - one.room.at),
                "days_to_full": None if one.days is None else round(one.days, 1),
            }
            for one in found.outlooks
        ],
    }


def _summary(found: Health) -> str:
    guests = len({age.vmid for age in found.ages})
    well = f"{guests} guests protected, oldest newest point {_oldest(found) / 3600:.1f} h"
    if not found.findings:
        return well
    shown = [well] if found.level is Level.OK else []
    shown += [_plain(f"{item.about}: {item.text}") for item in found.findings[:SHOWN]]
    more = f" and {len(found.findings) - SHOWN} more" if len(found.findings) > SHOWN else ""
    return f"{'; '.join(shown)}{more}"


def _long(found: Health) -> list[str]:
    return [_plain(f"{item.level.name}: {item.about}: {item.text}") for item in found.findings]


def _oldest(found: Health) -> int:
    return max((age.seconds for age in found.ages if age.seconds is not None), default=0)


def _perfdata(found: Health) -> Iterator[str]:
    """The oldest newest point of each host, and how full the pools are."""
    for host in dict.fromkeys(age.host for age in found.ages):
        ages = [age for age in found.ages if age.host == host]
        known = [age.seconds for age in ages if age.seconds is not None]
        warn, critical = min(age.warn for age in ages), min(age.critical for age in ages)
        if known:
            yield f"age_{_label(host)}={max(known)}s;{warn:.0f};{critical:.0f};0"
        yield f"without_point_{_label(host)}={len(ages) - len(known)};;;0"
    if found.verified:
        limits = [one.limit for one in found.verified if one.limit is not None]
        known = [found.now - one.last.at for one in found.verified if one.last]
        if known:
            yield f"verified_age={max(known)}s;{f'{min(limits):.0f}' if limits else ''};;0"
        yield f"never_verified={sum(one.last is None for one in found.verified)};;;0"
    for pool in found.pools:
        yield f"used_{_label(pool.name)}={pool.used_share * 100:.1f}%;;;0;100"
    if found.aside:
        yield f"put_aside={sum(one.bytes for one in found.aside)}B;;;0"
    for one in found.outlooks:
        if not one.room.dataset:
            yield f"used_{_label(one.room.host)}={one.room.share * 100:.1f}%;;;0;100"
        if one.days is not None:
            name = "_".join(_label(part) for part in (one.room.host, one.room.dataset) if part)
            yield f"days_to_full_{name}={one.days:.1f};{SOON_WARN:.0f}:;{SOON_CRITICAL:.0f}:;0"


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)


def _plain(text: str) -> str:
    return printable(text).replace("|", "/")
