"""How the pools are, here and on the targets, down to their devices: for `check` and what judges as it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pve_zfsbackup.app.history import History
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, CommandError
from pve_zfsbackup.host.health import pool_of
from pve_zfsbackup.host.pools import conditions_of
from pve_zfsbackup.host.ssh import DENIED
from pve_zfsbackup.model import ONLINE, SOURCE, SUSPENDED
from pve_zfsbackup.model.health import Condition, Finding, Level, Pool

Conditions = Mapping[tuple[str, str], Condition]  # by host and pool


def conditions(session: Session, found: History, pools: Sequence[Pool]) -> tuple[Conditions, tuple[Finding, ...]]:
    """One `zpool status` here and one on each target that answered. Never of a suspended pool: OpenZFS 2.1 reads the
    log of errors from its disks and would hang. The findings are what could not be asked."""
    told: dict[tuple[str, str], Condition] = {}
    doubts: list[Finding] = []
    asked = {SOURCE: [pool.name for pool in pools if pool.health != SUSPENDED]}
    for host, target in session.config.targets.items():
        if host in found.listings:  # whose pool is not suspended, or it would not have answered
            asked[host] = [pool_of(target.root)]
    for host, names in asked.items():
        if not names:
            continue
        states = found.listings[host].health if host != SOURCE else {}
        told |= {(host, pool): Condition(state=state, known=False) for pool, state in states.items()}
        try:
            seen = conditions_of(session.hosts[host], names)
        except BackupError as error:
            if not (isinstance(error, CommandError) and error.returncode == DENIED):
                doubts += [_unknown(host, name, error.message) for name in names]
            continue
        told |= {(host, name): condition for name, condition in seen.items() if name in names}
        doubts += [_unknown(host, name, "zpool status does not name it") for name in names if name not in seen]
    return told, tuple(doubts)


def _unknown(host: str, pool: str, text: str) -> Finding:
    return Finding(level=Level.UNKNOWN, about=_about(host, pool), text=f"its devices could not be asked: {text}")


def _about(host: str, pool: str) -> str:
    return f"pool {pool}" if host == SOURCE else f"pool {pool} on {host}"


def judged(told: Conditions, pools: Sequence[Pool]) -> Iterator[Finding]:
    """What is wrong with pools; of this node's also with those that `zpool status` was not asked of."""
    here = {(SOURCE, pool.name): Condition(state=pool.health) for pool in pools}
    for (host, pool), condition in {**here, **told}.items():
        yield from _judged(_about(host, pool), condition)


def _judged(about: str, condition: Condition) -> Iterator[Finding]:
    if condition.errors:
        yield Finding(level=Level.CRITICAL, about=about, text=condition.errors)
    text = condition.told
    if condition.state != ONLINE:
        level = Level.WARNING if condition.state == "DEGRADED" else Level.CRITICAL
        yield Finding(level=level, about=about, text=f"{condition.state}: {text}" if text else condition.state)
    elif text:
        lost = not all(device.there for device in condition.devices)
        called = ", though the pool is called ONLINE" if lost else ""
        yield Finding(level=Level.WARNING, about=about, text=f"{text}{called}")
