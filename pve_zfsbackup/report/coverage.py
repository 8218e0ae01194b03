"""`discover`: what is protected and what is not."""

from __future__ import annotations

from typing import Any

from pve_zfsbackup.app.history import Coverage, Discovery
from pve_zfsbackup.model import Disk
from pve_zfsbackup.report.format import FORMAT, Table, clean


def discovery_table(found: Discovery) -> Table:
    rows = []
    for entry in found.guests:
        head = (str(entry.guest.vmid), entry.guest.name, _state(entry))
        for disk in entry.guest.disks:
            rows.append((*head, disk.key, disk.volid, disk.dataset or "", _protection(entry, disk)))
            head = ("", "", "")
        if not entry.guest.disks:
            rows.append((*head, "", "", "", "no disks"))
        rows += [("", "", "", "", "", "", f"note: {note}") for note in entry.notes]
    columns = ("vmid", "name", "state", "disk", "volume", "dataset", "protection")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid"}))


def discovery_json(found: Discovery) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "node": found.node,
        "guests": [_coverage_json(entry) for entry in found.guests],
        "notes": list(found.notes),
    }


def _coverage_json(entry: Coverage) -> dict[str, Any]:
    guest = entry.guest
    return {
        "vmid": guest.vmid,
        "type": guest.kind.value,
        "name": guest.name,
        "running": guest.running,
        "template": guest.template,
        "lock": guest.lock,
        "pool": guest.pool,
        "tags": list(guest.tags),
        "agent": guest.agent.enabled and guest.agent.freeze,
        "jobs": list(entry.jobs),
        "notes": list(entry.notes),
        "blocked-rollbacks": dict(entry.blocked),
        "pvesr": list(entry.replicated),
        "disks": [
            {
                "key": disk.key,
                "volid": disk.volid,
                "dataset": disk.dataset,
                "protected": disk.protected and bool(entry.jobs),
                "reason": reason(entry, disk),
            }
            for disk in guest.disks
        ],
    }


def _state(entry: Coverage) -> str:
    guest = entry.guest
    state = "template" if guest.template else "paused" if guest.paused else "running" if guest.running else "stopped"
    return f"{state}, locked ({guest.lock})" if guest.lock else state


def reason(entry: Coverage, disk: Disk) -> str:
    return disk.reason or ("" if entry.jobs else entry.excluded or "guest is in no job")


def _protection(entry: Coverage, disk: Disk) -> str:
    why = reason(entry, disk)
    return f"no: {why}" if why else f"yes: {', '.join(entry.jobs)}"
