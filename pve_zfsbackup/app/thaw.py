"""Thawing by hand: what an interrupted run may have left frozen, or a guest somebody names."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pve_zfsbackup.app.outcome import THAW, failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, GuestMissingError, LockedError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.guests import guest_kind
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.model import Vmid


def thaw(session: Session, vmids: Sequence[Vmid] = ()) -> tuple[Result, ...]:
    """Thaw these guests, whoever froze them; without any, those that have a marker of ours.

    Named guests are thawed also while a run is at its snapshots: that run sees it, and its point is called
    crash-consistent. Marker and watchdog stay then: the freeze they are for may be still to come. Raises `LockedError`
    for the others: what is frozen then is the run's to thaw.
    """
    with contextlib.ExitStack() as stack:
        alone = True
        try:
            stack.enter_context(run_lock(session.config.runtime_dir, "snapshot"))
        except LockedError:
            if not vmids:
                raise
            alone = False
        return tuple(_one(session, vmid, alone=alone) for vmid in vmids or session.quiescer.unthawed())


def _one(session: Session, vmid: Vmid, *, alone: bool) -> Result:
    try:
        kind = guest_kind(vmid, root=session.pve_root)
    except GuestMissingError:
        kind = None  # its marker tells, and may be all that is left of it
    try:
        count = session.quiescer.thaw(vmid, kind, done=alone)
    except BackupError as error:
        result = failed(THAW, error)
        return Result(stage=THAW, outcome=result.outcome, vmid=vmid, message=result.message, hint=result.hint)
    message = f"thawed, {count} were frozen" if count else "was not frozen"
    return Result(stage=THAW, outcome=Outcome.OK, vmid=vmid, message=message)
