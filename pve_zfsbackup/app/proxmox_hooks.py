"""What we do when Proxmox calls: at the end of a guest's backup by vzdump, before a start, after a stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

from pve_zfsbackup.app.gather import Scope, inventory
from pve_zfsbackup.app.run import Report, Stage, run
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, ExitCode
from pve_zfsbackup.model import Vmid, parse_selector
from pve_zfsbackup.plan.points import points_of

# Every phase vzdump knows (pve-facts §e); we act at one of them.
VZDUMP_PHASES: Final = (
    "job-init", "job-start", "backup-start", "pre-stop", "pre-restart", "post-restart", "backup-end", "backup-abort",
    "log-end", "job-end", "job-abort",
)  # fmt: skip
GUEST_PHASES: Final = ("pre-start", "post-start", "pre-stop", "post-stop")
FAIL_BACKUP: Final = 75  # exit status that the hook script turns into a failed backup; no other one does
Opened = Callable[[], AbstractContextManager[Session]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was done, in lines for Proxmox's task log, and our exit status."""

    lines: tuple[str, ...] = ()
    code: int = 0


def vzdump_hook(opened: Opened, phase: str, vmid: Vmid | None) -> Answer:
    """At `backup-end`: a point of the guest and its replication, unless it has a young one. Nothing else.

    Whatever goes wrong here is not the backup's failure, unless the configuration says so. The guest still has
    vzdump's own lock then (`backup`), which does not stop us.
    """
    if phase != "backup-end" or vmid is None:
        return Answer()
    fail = False
    try:
        with opened() as session:
            rules = session.config.vzdump
            fail = rules.fail_backup
            age = _age(session, vmid)
            if age is not None and age < rules.skip_within:
                return Answer(lines=(f"guest {vmid}: has a point that is {age} s old, no other one is made",))
            stages = (Stage.SNAPSHOT, Stage.REPLICATE) if rules.replicate else (Stage.SNAPSHOT,)
            report = _run(replace(session, own_lock="backup"), vmid, stages)
    except BackupError as error:
        return Answer(lines=(f"guest {vmid}: {error}",), code=FAIL_BACKUP if fail else 0)
    bad = report.exit_code is not ExitCode.OK
    return Answer(lines=_lines(report), code=FAIL_BACKUP if bad and fail else 0)


def guest_hook(opened: Opened, vmid: Vmid, phase: str) -> Answer:
    """Before a start and after a stop: a point of a guest that stands still. It never keeps a guest from starting.

    Its task waits for us, and may have locked it itself (a migration, a backup in stop mode): no lock is waited for.
    """
    if phase not in ("pre-start", "post-stop"):
        return Answer()
    try:
        with opened() as session:
            return Answer(lines=_lines(_run(replace(session, patient=False), vmid, (Stage.SNAPSHOT,))))
    except BackupError as error:
        return Answer(lines=(f"guest {vmid}: {error}",))


def _run(session: Session, vmid: Vmid, stages: tuple[Stage, ...]) -> Report:
    return run(session, Scope(guests=(parse_selector(str(vmid)),)), stages)


def _age(session: Session, vmid: Vmid) -> int | None:
    """Seconds since the guest's newest complete point here. One from the future is none: a clock was wrong."""
    found = inventory(session, only=vmid)
    now = int(session.now().timestamp())
    ages = [now - point.creation for point in points_of(found.listing, vmid) if point.complete]
    return min((age for age in ages if age >= 0), default=None)


def _lines(report: Report) -> tuple[str, ...]:
    told = []
    for result in report.results:
        where = f" -> {result.host}" if result.host else ""
        hint = f" ({result.hint})" if result.hint else ""
        told.append(f"guest {result.vmid}: {result.stage}{where} {result.outcome}: {result.message}{hint}")
    return tuple(told)
