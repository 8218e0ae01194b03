"""Space for points, and how long it lasts."""

from __future__ import annotations

from dataclasses import dataclass

from pve_zfsbackup.model.names import Dataset
from pve_zfsbackup.model.zfs import Listing


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is used below a root of points, and what is available to it, quotas counted in; bytes, at a time in seconds
    since the epoch. Of a box, which has no `dataset`, all that is used there by anybody, 0 where the server does not
    tell."""

    host: str
    dataset: Dataset
    used: int
    available: int
    at: float = 0.0

    @property
    def share(self) -> float:
        """How full it is, from 0 to 1."""
        return self.used / max(self.used + self.available, 1)


def rooms(listing: Listing, *, at: float) -> tuple[Room, ...]:
    """Every root of a listing whose room is known. Roots that draw on the same available space are several."""
    return tuple(
        Room(host=listing.host, dataset=root, used=volume.used, available=volume.available, at=at)
        for root in sorted(listing.roots)
        if (volume := listing.volumes.get(root)) and volume.available is not None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A root now, and when it is full if it goes on as in the last weeks. `known`: there is history enough to say so.
    `days` is None where it does not fill."""

    room: Room
    known: bool = False
    per_day: float = 0.0  # bytes by which the available shrinks, day by day
    days: float | None = None
