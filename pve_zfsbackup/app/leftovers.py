"""Interrupted receives on plain targets of disks that are no more: told, and after a week thrown away.

An append-only target does this itself, in its `maintain`.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from typing import Any, Final

from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, DatasetNotFoundError, QueuedError, SnapshotBusyError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.guest_files import defined
from pve_zfsbackup.host.identity import owner_id
from pve_zfsbackup.host.listing import read_resume_token
from pve_zfsbackup.host.memory import recall, remember
from pve_zfsbackup.model import SOURCE, World
from pve_zfsbackup.plan.leftovers import DAY, KEPT, TOLD_AFTER, Leftover, leftovers, remembered

FILE: Final = "partials.json"  # target -> dataset -> its token, how long it stood, and when it was seen last


def sweep(session: Session, world: World, stage: str, *, dry: bool = False) -> Iterator[Result]:
    """Look at the targets of this world that we prune and that are ours, and remember what was seen there."""
    path, now = session.config.state_dir / FILE, session.now().timestamp()
    known: dict[str, Any] = {}
    with contextlib.suppress(BackupError):
        known = recall(path)
    ours = {name for name, target in session.config.targets.items() if not target.append_only}
    seen = {host: value for host, value in known.items() if host in ours}
    for host in sorted(ours & world.keys()):
        root, memory = session.config.targets[host].root, known.get(host)
        place = world[host].volumes.get(root)
        if place is None or not place.owner or place.owner != owner_id(session.pve_root):
            continue
        found = leftovers(
            world[SOURCE], world[host], root, memory if isinstance(memory, dict) else {},
            now=now, defined=lambda disk: defined(disk, session.pve_root),
        )  # fmt: skip
        for one in found:
            if one.stood >= TOLD_AFTER:
                yield _one(session, host, one, stage, dry=dry)
        seen[host] = remembered(found, now)
    seen = {host: value for host, value in seen.items() if value}
    if seen != known and not dry:
        with contextlib.suppress(BackupError):  # a full disk the journal tells
            remember(path, seen)


def _one(session: Session, host: str, one: Leftover, stage: str, *, dry: bool) -> Result:
    days = int(one.stood / DAY)
    what = f"the interrupted receive into {one.dataset}, whose disk is no more and which stood still for {days} days,"
    if dry or one.stood < KEPT:
        return Result(
            stage=stage,
            outcome=Outcome.WARNING,
            host=host,
            message=f"{what} is thrown away after {KEPT // DAY}",
            hint=f"`zfs receive -A {shlex.quote(one.dataset)}` on {host} throws it away now",
        )
    try:
        token = read_resume_token(session.hosts[host], one.dataset)
        if token == one.token:
            zfs.abort_receive(session.hosts[host], one.dataset)
            return Result(stage=stage, outcome=Outcome.WARNING, host=host, message=f"{what} was thrown away")
        told = "somebody else has thrown it away" if token in ("", "-") else "somebody went on with it"
    except DatasetNotFoundError:
        told = "somebody else has thrown it away"
    except SnapshotBusyError:
        told = "it is busy: somebody goes on with it"
    except QueuedError as error:
        return Result(stage=stage, outcome=Outcome.WARNING, host=host, message=error.message, hint=error.hint)
    except BackupError as error:
        return failed(stage, error, host=host)
    return Result(stage=stage, outcome=Outcome.SKIPPED, host=host, message=f"{what} stays: {told}")
