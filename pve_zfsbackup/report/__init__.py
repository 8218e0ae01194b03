"""From what was found or done to tables for people and JSON for machines. Pure; the JSON is a contract."""

from pve_zfsbackup.report.audit import audit_json, audit_table
from pve_zfsbackup.report.coverage import discovery_json, discovery_table
from pve_zfsbackup.report.format import Table, cost, size
from pve_zfsbackup.report.health import check_lines, checkmk_line, health_json, unknown_line
from pve_zfsbackup.report.points import points_json, points_table, status_json, status_table
from pve_zfsbackup.report.restore import restore_json, restore_lines, rollback_json, rollback_lines
from pve_zfsbackup.report.runs import report_json, results_table, verdicts_json, verdicts_table
from pve_zfsbackup.report.setup import actions_json, actions_table, findings_table, next_steps, script_json
from pve_zfsbackup.report.simulate import simulated_json, simulated_points, simulated_table
from pve_zfsbackup.report.steps import preview_json, preview_table
from pve_zfsbackup.report.unblock import unblock_json, unblock_lines
from pve_zfsbackup.report.why import why_json, why_table

__all__ = [
    "Table",
    "actions_json",
    "actions_table",
    "audit_json",
    "audit_table",
    "check_lines",
    "checkmk_line",
    "cost",
    "discovery_json",
    "discovery_table",
    "findings_table",
    "health_json",
    "next_steps",
    "points_json",
    "points_table",
    "preview_json",
    "preview_table",
    "report_json",
    "restore_json",
    "restore_lines",
    "results_table",
    "rollback_json",
    "rollback_lines",
    "script_json",
    "simulated_json",
    "simulated_points",
    "simulated_table",
    "size",
    "status_json",
    "status_table",
    "unblock_json",
    "unblock_lines",
    "unknown_line",
    "verdicts_json",
    "verdicts_table",
    "why_json",
    "why_table",
]
