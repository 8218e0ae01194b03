"""What lost its place on this node to a restore and its kind, and waits for somebody to give it up."""

from __future__ import annotations

from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.restoring import list_put_aside
from pve_zfsbackup.model import SOURCE, Dataset, Listing
from pve_zfsbackup.model.aside import PutAside
from pve_zfsbackup.model.restore import ASIDE


def put_aside(session: Session, listing: Listing) -> tuple[tuple[PutAside, ...], tuple[str, ...]]:
    """What restores and their kind put aside, by guest; a note where it cannot be looked into. Nobody is asked where
    no such place is."""
    places = [Dataset(f"{root}/{ASIDE}") for root in sorted(listing.roots)]
    try:
        told = list_put_aside(session.hosts[SOURCE], [name for name in places if name in listing.volumes])
    except BackupError as error:
        return (), (f"what was put aside cannot be told: {error.message}",)
    return tuple(sorted(told, key=lambda one: (one.vmid, one.dataset))), ()
