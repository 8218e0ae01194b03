"""All that `verify drill` opens when nobody is named: what this host received, and the points of its own guests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pve_zfsbackup.app.drill import LOCAL, STAGE, Ground, on_node, on_target
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, ConfigError
from pve_zfsbackup.events import Result
from pve_zfsbackup.model import Dataset
from pve_zfsbackup.model.drill import Expected


def grounds(session: Session, scope: Scope) -> Iterable[Ground | Result]:
    """Where guests are drilled, one place after another. Guests that are named are this node's, and are found at once.

    Raises what keeps it from knowing those that are named, and `ConfigError` where this host has none.
    """
    config = session.config
    if not (scope.guests or scope.jobs):
        return _all(session)
    if not config.jobs and config.receives:
        raise ConfigError(["this host has no job"], hint="--local ROOT drills the replicas that it received")
    return (on_node(session, scope),)


def _all(session: Session) -> Iterator[Ground | Result]:
    """What was received comes first: it is there also when Proxmox does not answer."""
    for root in session.config.verify.local:
        yield _received(session, root)
    if session.config.jobs or not session.config.receives:
        yield on_node(session, Scope())


def _received(session: Session, root: Dataset) -> Ground | Result:
    try:
        return on_target(session.config, session.runner, root, (), Expected())
    except BackupError as error:
        return failed(STAGE, BackupError(f"{root}: {error.message}", hint=error.hint), host=LOCAL)
