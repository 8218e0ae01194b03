"""Everything `report` shows, asked for once: points everywhere, how well that is, what they cost, the last runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Final

from pve_zfsbackup.app.cost import Cost, history_costs
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health_of
from pve_zfsbackup.app.history import History, history
from pve_zfsbackup.app.proofs import Recovery, measured, proofs_between
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.journal import read_journal
from pve_zfsbackup.model.health import Health
from pve_zfsbackup.model.runs import PastProof, PastRun
from pve_zfsbackup.plan.past import past_runs

RUNS_SECONDS: Final = 30 * 86_400
PROOFS_SECONDS: Final = 190 * 86_400  # as long as logrotate keeps the journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """`runs` are those of the last 30 days, `proofs` all that the journal has; oldest first. `zone` is what days and
    hours are told in."""

    node: str
    zone: tzinfo
    history: History
    health: Health
    costs: tuple[Cost, ...]
    runs: tuple[PastRun, ...]
    proofs: tuple[PastProof, ...] = ()
    recovery: Recovery = field(default_factory=Recovery)
    notes: tuple[str, ...] = ()


def overview(session: Session, scope: Scope) -> Overview:
    """Ask for everything. Raises what keeps it from knowing the guests and their points; the rest is noted."""
    found = history(session, scope)
    notes = list(found.notes)
    runs: tuple[PastRun, ...] = ()
    proofs: tuple[PastProof, ...] = ()
    recovery = Recovery()
    try:
        lines = read_journal(session.config.journal_dir, found.now - RUNS_SECONDS)
        runs = tuple(run for run in past_runs(lines) if run.started >= found.now - RUNS_SECONDS)
        proofs = proofs_between(session.config, found.now - PROOFS_SECONDS, found.now)
        recovery = measured(session.config, found.now)
    except BackupError as error:
        notes.append(f"no runs are shown: {error.message}")
    return Overview(
        node=session.node,
        zone=session.timezone,
        history=found,
        health=health_of(session, found),
        costs=history_costs(session, found),
        runs=runs,
        proofs=proofs,
        recovery=recovery,
        notes=tuple(notes),
    )
