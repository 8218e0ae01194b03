"""How faults and conflicts become results, the same for every stage, and what the system's journal hears of them: one
guest's failure never stops another's."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.journal import log_line
from pve_zfsbackup.model import Conflict, Guest, GuestKind, Vmid

THAW: Final = "thaw"  # stage of what an interrupted run left frozen
JOURNAL: Final = "journal"  # and of what went wrong with writing it
_SAID = frozenset({"message", "hint", "details", "alarm"})
_HARMLESS = frozenset({"no-protected-disk"})  # nothing failed: `discover` and `status` name what is not protected


def failed(stage: str, error: Exception, *, guest: Guest | None = None, host: str = "") -> Result:
    """A fault as a result. What nobody foresaw is a bug of ours: told with its place, and no other guest's trouble."""
    if isinstance(error, BackupError):
        message, hint, details = error.message, error.hint, []
    else:
        message = f"internal error: {type(error).__name__}: {error}"
        hint = "this is a bug of pve-zfsbackup: please report it with the lines above"
        details = [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
    return Result(
        stage=stage,
        outcome=Outcome.FAILED,
        vmid=guest.vmid if guest else None,
        guest=guest.name if guest else "",
        host=host,
        message=message,
        hint=hint,
        details=tuple(details),
    )


def blocked(stage: str, conflict: Conflict, *, guest: Guest, host: str = "") -> Result:
    return Result(
        stage=stage,
        outcome=Outcome.SKIPPED if conflict.kind in _HARMLESS else Outcome.FAILED,
        vmid=guest.vmid,
        guest=guest.name,
        host=host,
        message=f"{conflict.object}: {conflict.message}",
        hint=conflict.resolve,
        details=conflict.evidence,
    )


def doubted(stage: str, doubt: str, *, all_meant: bool) -> Result:
    """That guests may be hidden: nothing of theirs fails, so nobody else would ever be told. A failure where it may be
    they who get no point; whoever named guests has those."""
    outcome = Outcome.FAILED if all_meant else Outcome.WARNING
    return Result(stage=stage, outcome=outcome, message=doubt, hint="run pve-zfsbackup setup", alarm=True)


def deferred(left: Sequence[str], error: BackupError) -> Result:
    """Stages that are left to a later run, because another one is at work on the first of them."""
    return Result(
        stage=left[0],
        outcome=Outcome.SKIPPED,
        message=f"{', '.join(left)}: left to a later run: {error.message}",
        hint=error.hint,
    )


def unthawed(vmid: Vmid, kind: GuestKind) -> Result:
    """A guest that an interrupted run froze, and of which nobody knows that it was thawed."""
    command = f"lxc-unfreeze -n {vmid}" if kind is GuestKind.CT else f"qm guest cmd {vmid} fsfreeze-thaw"
    return Result(
        stage=THAW,
        outcome=Outcome.FAILED,
        vmid=vmid,
        message="may still be frozen by an interrupted run",
        hint=f"look at the guest; `{command}` thaws it",
    )


def as_fields(result: Result) -> dict[str, object]:
    """A result as the journal has it: without what says nothing."""
    fields = {key: value for key, value in asdict(result).items() if value not in ("", 0, None, ())}
    return {**fields, "seconds": round(result.seconds, 3)}


def log_result(run: str, result: Result) -> None:
    """A line to journald or syslog for what somebody should look at. What went well stands in our own journal."""
    bad = result.outcome is Outcome.FAILED
    if not (bad or result.alarm or result.outcome is Outcome.WARNING):
        return
    guest = f" guest {result.vmid} {result.guest}".rstrip() if result.vmid else ""
    told = f"run {run} {result.stage}{guest}{f' {result.host}' if result.host else ''}: {result.message}"
    fields = {key: value for key, value in as_fields(result).items() if key not in _SAID}
    text = f"{told} ({result.hint})" if result.hint else told
    log_line(text, failed=bad, warning=True, fields={"run": run, **fields})
