"""What work that was killed or hangs leaves behind, and somebody must hear of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pve_zfsbackup.app.session import Session
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.boot import LOCK, Yard, marked_guests
from pve_zfsbackup.host.lock import held, held_for
from pve_zfsbackup.model import Vmid

STRAY = "left by a boot drill that was killed, and may run: the next `run` or `verify drill` on this node removes it"

HOUR: Final = 3600
WORKS: Final = ("snapshot", "replicate")  # locks, as the stages are named; an upload to a box may take weeks


def stuck(session: Session) -> Iterator[Result]:
    """What another run has been at for longer than the strictest job's `critical-age`. It has the locks, so no later
    run has anything to do that could fail; and what waits for it is as late by now."""
    limit = HOUR * min((job.critical_age for job in session.config.jobs.values()), default=0)
    for work in WORKS:
        found = held_for(session.config.runtime_dir, work, limit, now=session.now().timestamp()) if limit else None
        if found:
            owner, seconds = found
            yield Result(
                stage=work,
                outcome=Outcome.FAILED,
                message=f"another run (process {owner}) has been at work on this for {seconds / HOUR:.0f} hours",
                hint="a first replication may take days; if it moves no more, end that process: the next run goes on",
            )


def strays(session: Session) -> tuple[tuple[Vmid, ...], tuple[str, ...]]:
    """Guests on this node that a boot drill made which was killed: they may run on, and nobody waits for them. And a
    note where that cannot be known. A drill that ends between the looks takes its guest along."""
    yard = Yard(runner=session.runner, root=session.pve_root)
    try:
        found = marked_guests(yard)
        if not found or held(session.config.runtime_dir, LOCK):
            return (), ()
        return tuple(sorted(set(found) & set(marked_guests(yard)))), ()
    except OSError as error:
        return (), (f"whether a drill left a guest cannot be told: {error.strerror}",)
