"""What a run did, and what prune decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.model import Verdict
from pve_zfsbackup.report.format import FORMAT, Table, clean, moment, size

if TYPE_CHECKING:  # the stage of prune takes time to load, and most commands do not need it
    from pve_zfsbackup.app.prune import PruneWork
    from pve_zfsbackup.app.run import Report


def results_table(results: Iterable[Result]) -> Table:
    rows = [
        (
            result.stage, result.outcome.value, str(result.vmid or ""), result.guest, result.host,
            _told(result), size(result.bytes) if result.bytes else "", f"{result.seconds:.1f} s",
        )
        for result in results
    ]  # fmt: skip
    columns = ("stage", "result", "vmid", "guest", "target", "what", "sent", "time")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid", "sent", "time"}))


def _told(result: Result) -> str:
    return f"{result.message} ({result.hint})" if result.hint else result.message


def report_json(report: Report) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "run": report.run,
        "exit_code": int(report.exit_code),
        "seconds": round(report.seconds, 3),
        "results": [
            {
                "stage": result.stage,
                "outcome": result.outcome.value,
                "vmid": result.vmid,
                "guest": result.guest,
                "host": result.host,
                "point": result.point,
                "message": result.message,
                "hint": result.hint,
                "bytes": result.bytes,
                "seconds": round(result.seconds, 3),
                "details": list(result.details),
            }
            for result in report.results
        ],
        "notes": list(report.notes),
    }


def verdicts_table(work: PruneWork, tz: tzinfo) -> Table:
    rows = [
        (str(verdict.point.vmid), verdict.host, verdict.point.stamp, moment(verdict.point.creation, tz),
         "keep" if verdict.keep else "remove", "; ".join(verdict.reasons))
        for verdict in _verdicts(work)
    ]  # fmt: skip
    columns = ("vmid", "where", "point", "creation", "verdict", "why")
    return Table(columns=columns, rows=clean(rows), right=frozenset({"vmid"}))


def verdicts_json(
    work: PruneWork, freed: Mapping[str, int | None], told: Sequence[Result] | None = None
) -> dict[str, Any]:
    """`told`, where all are looked at, has the interrupted receives that are to go, and what could not be asked."""
    warned = [f"{result.host}: {result.message}" for result in told or () if result.outcome is Outcome.WARNING]
    return {
        "format": FORMAT,
        "verdicts": [
            {
                "vmid": verdict.point.vmid,
                "host": verdict.host,
                "point": verdict.point.id,
                "creation": verdict.point.creation,
                "keep": verdict.keep,
                "reasons": list(verdict.reasons),
            }
            for verdict in _verdicts(work)
        ],
        "freed": dict(freed),
        **({"partials": warned} if told is not None else {}),
        "unreachable": [result.host for result in work.silent if result.host],
    }


def _verdicts(work: PruneWork) -> list[Verdict]:
    return [verdict for pruning in work.guests for verdict in pruning.plan.verdicts]
