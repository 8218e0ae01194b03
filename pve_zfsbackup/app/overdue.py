"""Stages that have to come again, and whose lack shows nowhere else. Points that are not made or sent any more grow
old; what is not pruned or proven does not, and whoever left a line of cron commented out would never hear of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pve_zfsbackup.app.pools import STAGE as POOLS
from pve_zfsbackup.app.proofs import DAY, GRACE
from pve_zfsbackup.config import Config
from pve_zfsbackup.host.journal import read_journal
from pve_zfsbackup.model.health import Due, Finding, Level
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.model.runs import PastRun
from pve_zfsbackup.model.stages import CHAIN, DRILL
from pve_zfsbackup.plan.past import last_done, past_runs

PRUNE: Final = "prune"
WEEKLY: Final = 8 * DAY  # to prune once a week is enough
TOLD: Final = ("start", "deferred", "end", "broken-off")


def overdue(config: Config, now: int) -> tuple[Due, ...]:
    """Every stage that the configuration wants done again and again. None is late before the journal is old enough to
    say so. Raises `BackupError` when it is there and cannot be read."""
    limits = _limits(config)
    done = last_done(_runs(config, WEEKLY, now)) if limits else {}
    missing = [limits[stage] for stage in limits if stage not in done]
    runs = _runs(config, max(missing) + DAY, now) if missing else ()  # as far back only where something is missed
    known = last_done(runs) | done
    begun = min((run.started for run in runs), default=now)
    return tuple(
        Due(stage=stage, last=known.get(stage), since=known.get(stage, begun), limit=limit)
        for stage, limit in sorted(limits.items())
    )


def findings(stages: Iterable[Due], now: int) -> Iterator[Finding]:
    for one in stages:
        if one.late(now):
            days = f"{'' if one.last else 'at least '}{(now - one.since) / DAY:.0f}"
            text = f"not done for {days} days: is its line in /etc/cron.d/pve-zfsbackup, or its timer, still there?"
            yield Finding(level=Level.WARNING, about=f"stage {one.stage}", text=text)


def _limits(config: Config) -> dict[str, float]:
    """After how many seconds each is late: proofs as drills are, with two weeks more than they may take."""
    found: dict[str, float] = {}
    jobs, verify = config.jobs.values(), config.verify
    targets = [config.targets[name] for job in jobs for name in job.targets]
    kept = [job.keep for job in jobs] + [target.keep for target in targets if not target.append_only]
    if not all(keep.everything for keep in kept):
        found[PRUNE] = WEEKLY
    if jobs and verify.scrub_every:
        found[POOLS] = (verify.scrub_every + GRACE) * DAY
    if targets:
        found[CHAIN] = (verify.every + GRACE) * DAY
    if verify.local:
        found[DRILL] = (verify.every + GRACE) * DAY
    return found


def _runs(config: Config, back: float, now: int) -> tuple[PastRun, ...]:
    told = past_runs(read_journal(config.journal_dir, now - back, events=TOLD))
    return tuple(run for run in told if max(run.started, run.ended or 0) <= now + SKEW)  # the clock may have been wrong
