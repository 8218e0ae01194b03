"""What of ours waits to be taken away: which, since when, how much, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import tzinfo
from typing import Any

from pve_zfsbackup.app.history import History
from pve_zfsbackup.app.leavings import STRAY
from pve_zfsbackup.model import printable
from pve_zfsbackup.model.aside import PutAside
from pve_zfsbackup.report.format import moment, size


def leaving_lines(found: History, zone: tzinfo) -> Iterator[str]:
    yield from (f"guest {vmid}: {STRAY}" for vmid in found.strays)
    for one in found.aside:
        since = moment(one.since, zone)[:-3]
        told = f"put aside by {one.by} of guest {one.vmid} since {since}: {one.dataset}, {size(one.bytes)}"
        yield printable(f"{told}; look at it: {one.look}; give it up: {one.remove}")


def aside_json(aside: Iterable[PutAside]) -> list[dict[str, Any]]:
    return [
        {
            "dataset": one.dataset,
            "vmid": one.vmid,
            "by": one.by,
            "since": one.since,
            "bytes": one.bytes,
            "look": one.look,
            "remove": one.remove,
        }
        for one in aside
    ]
