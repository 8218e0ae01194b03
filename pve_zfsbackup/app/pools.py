"""`verify pools`: what ZFS itself knows of its pools here and on the targets, and a scrub where one is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Final

from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, CommandError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.health import pool_of, pool_properties
from pve_zfsbackup.host.pools import read_pools, scan_of, start_scrub
from pve_zfsbackup.host.ssh import DENIED, Host
from pve_zfsbackup.model import ONLINE, SOURCE
from pve_zfsbackup.model.health import Scan

STAGE: Final = "verify-pools"
POLL: Final = 10.0
DAY: Final = 86_400
UNKNOWN: Final = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFound:
    """A pool as found. `problems` empty means that nothing is wrong with it."""

    host: str
    pool: str
    scan: Scan
    problems: tuple[str, ...]
    started: bool = False  # a scrub, by us
    unasked: str = ""  # what the account there may not ask, and who can


def verify_pools(
    session: Session, *, follow: bool, note: Callable[[str], None]
) -> Generator[PoolFound | Result, None, None]:
    """Every pool of the node, and the pool of each target's root. A scrub is started only here: on a target that is its
    administrator's, and only told when it is overdue. `follow` waits for those that run here."""
    places = [(SOURCE, pool.name) for pool in read_pools(session.hosts[SOURCE])]
    places += [(name, pool_of(target.root)) for name, target in session.config.targets.items()]
    for host, pool in places:
        try:
            yield _one(session, host, pool, follow=follow, note=note)
        except BackupError as error:
            told = BackupError(f"pool {pool}: {error.message}", hint=error.hint)
            yield replace(failed(STAGE, told, host=_target(host)), pool=pool)


def _target(host: str) -> str:
    return "" if host == SOURCE else host


def _one(session: Session, host: str, pool: str, *, follow: bool, note: Callable[[str], None]) -> PoolFound:
    place, limit = session.hosts[host], session.config.verify.scrub_every
    restricted = host != SOURCE and session.config.targets[host].append_only
    try:
        scan = scan_of(place, pool, restricted=restricted)
    except CommandError as error:
        if host == SOURCE or error.returncode != DENIED:
            raise
        return _denied(place, pool)
    due = bool(limit) and (scan.ended is None or session.now().timestamp() - scan.ended > limit * DAY)
    started = due and host == SOURCE and not scan.running and scan.state in (ONLINE, "DEGRADED")
    if started:
        start_scrub(place, pool)
        scan = scan_of(place, pool)
    while follow and host == SOURCE and scan.running:
        note(f"pool {pool}: scrub: {scan.done:.0f} % done")
        time.sleep(POLL)
        scan = scan_of(place, pool)
    overdue = due and not started and not scan.running
    problems = (*_problems(scan), *([_overdue(scan, session.now().timestamp())] if overdue else ()))
    return PoolFound(host=host, pool=pool, scan=scan, problems=problems, started=started)


def _denied(place: Host, pool: str) -> PoolFound:
    """A forced command that lets no `zpool status` through: what is left to ask knows of no error, and is not called
    good for that."""
    unasked = "errors and scrubs"
    try:
        state = pool_properties(place, pool).get("health", UNKNOWN)
    except CommandError as error:
        if error.returncode != DENIED:
            raise
        state, unasked = UNKNOWN, "state, errors and scrubs"
    scan = Scan(state=state)
    problems = () if state == UNKNOWN else tuple(_problems(scan))
    why = "its receiver is older than the question, or not configured as append-only here"
    told = f"{unasked} cannot be asked ({why}): `zpool status -v {pool}` there tells"
    return PoolFound(host=place.name, pool=pool, scan=scan, problems=problems, unasked=told)


def _problems(scan: Scan) -> Iterator[str]:
    if scan.state != ONLINE:
        yield f"is {scan.state}"
    if scan.errors:
        yield f"errors: {scan.errors}"
    yield from map(str, scan.devices)
    if scan.found:
        yield f"the last scrub found {scan.found} errors"


def _overdue(scan: Scan, now: float) -> str:
    if scan.ended is None:
        return "was never scrubbed"
    return f"the last scrub ended {(now - scan.ended) / DAY:.0f} days ago"


def as_result(found: PoolFound | Result) -> Result:
    """A pool as a result of a run has it."""
    if isinstance(found, Result):
        return found
    told = "; ".join([*(found.problems or (found.scan.state,)), *([found.unasked] if found.unasked else ())])
    told = f"pool {found.pool}: {told}"
    good = Outcome.WARNING if found.unasked else Outcome.OK
    return Result(
        stage=STAGE,
        outcome=Outcome.FAILED if found.problems else good,
        host=_target(found.host),
        pool=found.pool,
        message=f"{told}; a scrub was started" if found.started else told,
        hint=f"on {found.host}: `zpool status -v {found.pool}`" if found.problems else "",
    )
