"""How faults and conflicts become results, the same for every stage: one guest's failure never stops another's."""

from __future__ import annotations

from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.model import Conflict, Guest

_HARMLESS = frozenset({"no-protected-disk"})  # nothing failed: `discover` and `status` name what is not protected


def failed(stage: str, error: BackupError, *, guest: Guest | None = None, host: str = "") -> Result:
    return Result(
        stage=stage,
        outcome=Outcome.FAILED,
        vmid=guest.vmid if guest else None,
        guest=guest.name if guest else "",
        host=host,
        message=error.message,
        hint=error.hint,
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
