"""How faults and conflicts become results, the same for every stage: one guest's failure never stops another's."""

from __future__ import annotations

import traceback
from dataclasses import asdict

from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.model import Conflict, Guest

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


def as_fields(result: Result) -> dict[str, object]:
    """A result as the journal has it: without what says nothing."""
    fields = {key: value for key, value in asdict(result).items() if value not in ("", 0, None, ())}
    return {**fields, "seconds": round(result.seconds, 3)}
