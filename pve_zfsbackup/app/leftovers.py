"""Interrupted receives on plain targets that nobody goes on with: told, and after a week thrown away.

An append-only target does this itself, in its `maintain`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, QueuedError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.listing import read_resume_token
from pve_zfsbackup.host.memory import recall, remember
from pve_zfsbackup.model import World
from pve_zfsbackup.plan.leftovers import KEPT, TOLD_AFTER, Leftover, leftovers, remembered

FILE: Final = "partials.json"  # target -> dataset -> its token, and since when it is that; lost, they age anew
DAY: Final = 86_400


def sweep(session: Session, world: World, stage: str) -> Iterator[Result]:
    """Look at the targets of this world that we prune, and remember what was seen there."""
    path, now = session.config.state_dir / FILE, session.now().timestamp()
    known: dict[str, Any] = {}
    with contextlib.suppress(BackupError):
        known = recall(path)
    ours = {name for name, target in session.config.targets.items() if not target.append_only}
    seen = {host: value for host, value in known.items() if host in ours}
    for host in sorted(ours & world.keys()):
        memory = known.get(host)
        found = leftovers(world[host], memory if isinstance(memory, dict) else {}, now)
        for one in found:
            if one.stood(now) >= TOLD_AFTER:
                yield _one(session, host, one, stage)
        seen[host] = remembered(found)
    seen = {host: value for host, value in seen.items() if value}
    if seen != known:
        with contextlib.suppress(BackupError):  # a full disk the journal tells
            remember(path, seen)


def _one(session: Session, host: str, one: Leftover, stage: str) -> Result:
    days = int(one.stood(session.now().timestamp()) / DAY)
    what = f"the interrupted receive into {one.dataset}, with which nobody went on for {days} days,"
    if days * DAY < KEPT:
        return Result(
            stage=stage,
            outcome=Outcome.WARNING,
            host=host,
            message=f"{what} is thrown away after {KEPT // DAY}",
            hint=f"if its guest is gone: `zfs receive -A {one.dataset}` on {host} throws it away now",
        )
    try:
        if read_resume_token(session.hosts[host], one.dataset) != one.token:
            told = f"the receive into {one.dataset} went on"
            return Result(stage=stage, outcome=Outcome.SKIPPED, host=host, message=told)
        zfs.abort_receive(session.hosts[host], one.dataset)
    except QueuedError as error:
        return Result(stage=stage, outcome=Outcome.WARNING, host=host, message=error.message, hint=error.hint)
    except BackupError as error:
        return failed(stage, error, host=host)
    return Result(stage=stage, outcome=Outcome.WARNING, host=host, message=f"{what} was thrown away")
