"""What `metrics` tells: the judgement of `check`, what the last runs did, and what is still to be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pve_zfsbackup.app.alerts import held_back
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health
from pve_zfsbackup.app.proofs import Recovery, measured
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.journal import read_journal
from pve_zfsbackup.model.alerts import HeldBack
from pve_zfsbackup.model.health import Health
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.model.runs import PastRun
from pve_zfsbackup.model.stages import READ_BACK, SWEEP, WISHES
from pve_zfsbackup.plan.past import last_of_each_stage, past_runs

RUNS_SECONDS: Final = 8 * 86_400  # a prune that runs once a week is still seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`health` is None when nothing could be asked; `errors` say what could not. `last` has the last run that had a
    stage to do and is over, `good` the last in which nothing of that stage failed."""

    node: str
    at: int
    health: Health | None = None
    last: Mapping[str, PastRun] = field(default_factory=dict)
    good: Mapping[str, PastRun] = field(default_factory=dict)
    recovery: Recovery = field(default_factory=Recovery)
    held: HeldBack | None = None
    errors: tuple[BackupError, ...] = ()


def measure(session: Session) -> Measured:
    """Ask for everything once. What cannot be asked is missing, and told in `errors`: monitoring must hear of it."""
    errors: list[BackupError] = []
    now = int(session.now().timestamp())
    judged: Health | None = None
    held: HeldBack | None = None
    runs: tuple[PastRun, ...] = ()
    try:
        judged = health(session, Scope())
    except BackupError as error:
        errors.append(error)
    times = Recovery()
    try:
        told = past_runs(read_journal(session.config.journal_dir, now - RUNS_SECONDS))
        runs = tuple(run for run in told if run.started <= now + SKEW)  # a wrong clock's would be the last for long
        times = measured(session.config, now)
    except BackupError as error:
        errors.append(error)
    try:
        held = held_back(session)
    except BackupError as error:
        errors.append(error)
    return Measured(
        node=session.node,
        at=now,
        health=judged,
        last=_repeated(last_of_each_stage(runs)),
        good=_repeated(last_of_each_stage(runs, good=True)),
        recovery=times,
        held=held,
        errors=tuple(errors),
    )


def _repeated(last: Mapping[str, PastRun]) -> dict[str, PastRun]:
    """What has to come again. A restore is somebody's wish, and swept is only where something lies: one that failed is
    no state that lasts. A look into one box says nothing of the others; damage it found is among the findings."""
    return {stage: run for stage, run in last.items() if stage not in (*WISHES, SWEEP, READ_BACK)}


def nothing_measured(error: BackupError, now: float) -> Measured:
    """When there is not even a session."""
    return Measured(node="", at=int(now), errors=(error,))
