"""`discover --check`: what nobody decided to leave unprotected."""

from __future__ import annotations

from typing import Any

from pve_zfsbackup.app.audit import Audit
from pve_zfsbackup.report.format import FORMAT, Table, clean


def audit_table(found: Audit) -> Table:
    """The open findings; the explained ones are in the JSON."""
    rows = [(str(f.vmid or ""), f.guest, f.disk, f.kind, f.text, f.resolve) for f in found.open]
    columns = ("vmid", "name", "disk", "finding", "what", "what to do")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid"}))


def audit_json(found: Audit) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "node": found.node,
        "open": len(found.open),
        "findings": [
            {
                "vmid": finding.vmid,
                "guest": finding.guest,
                "disk": finding.disk,
                "kind": finding.kind,
                "text": finding.text,
                "explained": finding.explained,
                "resolve": finding.resolve,
            }
            for finding in found.findings
        ],
        "notes": list(found.notes),
    }
