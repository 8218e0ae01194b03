"""`simulate`: what the configuration's policies would keep as time goes by. Neither ZFS nor Proxmox is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from pve_zfsbackup.app.archive import archive_policy
from pve_zfsbackup.config import Config, Job
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import SOURCE, Keep
from pve_zfsbackup.plan.simulate import Future, simulate, simulate_box


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """One job at one place. No `future` where the place has a policy of its own, which is not known here."""

    job: str
    where: str
    kind: str  # source, target or box
    keep: Keep | None
    future: Future | None


def simulate_config(
    config: Config, *, start: datetime, every: int, days: int, jobs: Sequence[str] = ()
) -> tuple[Simulated, ...]:
    """Every job on this node, on its targets and in its boxes. `start` has the zone that counts, `every` is in
    seconds. Raises `ConfigError` for a job that is not there."""
    if unknown := sorted(set(jobs) - config.jobs.keys()):
        known = ", ".join(sorted(config.jobs)) or "none"
        raise ConfigError([f"no job named {', '.join(unknown)}"], hint=f"jobs: {known}")

    @cache  # most jobs share their policies
    def kept(keep: Keep) -> Future:
        return simulate([keep], start=start, every=every, days=days)

    def of(job: Job) -> Iterator[Simulated]:
        yield Simulated(job=job.name, where=SOURCE, kind="source", keep=job.keep, future=kept(job.keep))
        for name in job.targets:
            keep = None if config.targets[name].append_only else config.targets[name].keep
            yield Simulated(job=job.name, where=name, kind="target", keep=keep, future=kept(keep) if keep else None)
        for name in job.boxes:
            box = config.boxes[name]
            future = simulate_box(box.keep, archive_policy(box), start=start, every=every, days=days)
            yield Simulated(job=job.name, where=name, kind="box", keep=box.keep, future=future)

    return tuple(row for job in config.jobs.values() if not jobs or job.name in jobs for row in of(job))
