"""Guests that a boot drill which was killed left on this node, and that wait for somebody to take them away."""

from __future__ import annotations

from pve_zfsbackup.app.session import Session
from pve_zfsbackup.host.boot import LOCK, Yard, marked_guests
from pve_zfsbackup.host.lock import held
from pve_zfsbackup.model import Vmid

STRAY = "left by a boot drill that was killed, and may run: the next `run` or `verify drill` on this node removes it"


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
