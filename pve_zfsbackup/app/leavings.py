"""What of ours lies on this node and waits for somebody to take it away."""

from __future__ import annotations

from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.boot import LOCK, Yard, marked_guests
from pve_zfsbackup.host.lock import held
from pve_zfsbackup.host.restoring import list_put_aside
from pve_zfsbackup.model import ASIDE, SOURCE, Dataset, Listing, Vmid
from pve_zfsbackup.model.aside import PutAside

STRAY = "left by a boot drill that was killed, and may run: the next `run` or `verify drill` on this node removes it"


def put_aside(session: Session, listing: Listing) -> tuple[tuple[PutAside, ...], tuple[str, ...]]:
    """What restores and their kind put aside, by guest; a note where it cannot be looked into. Nobody is asked where
    no such place is."""
    places = [Dataset(f"{root}/{ASIDE}") for root in sorted(listing.roots)]
    try:
        told = list_put_aside(session.hosts[SOURCE], [name for name in places if name in listing.volumes])
    except BackupError as error:
        return (), (f"what was put aside cannot be told: {error.message}",)
    return tuple(sorted(told, key=lambda one: (one.vmid, one.dataset))), ()


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
