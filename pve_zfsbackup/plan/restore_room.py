"""Whether what a restore is to receive has room. Told before anything is received."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pve_zfsbackup.model import Conflict, Dataset
from pve_zfsbackup.model.restore import DiskRestore, NodeState


def no_room(disks: Sequence[DiskRestore], state: NodeState) -> Iterator[Conflict]:
    """Disks that are still to be received, and what they reserve, against what their storage has."""
    needed: dict[Dataset, int] = {}
    for disk in disks:
        if not disk.placed and disk.staging not in state.work.volumes:
            reserved = disk.props.get("refreservation", "")
            size = max(disk.size, int(reserved) if reserved.isdecimal() else 0)
            needed[disk.pool] = needed.get(disk.pool, 0) + size
    for pool, size in sorted(needed.items()):
        room = state.listing.volumes[pool].available
        if room is not None and room < size:
            message = f"{size >> 20} MiB are needed, {room >> 20} MiB are available"
            yield Conflict(kind="no-room", object=pool, message=message, resolve="--storage names another storage")
