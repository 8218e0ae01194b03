"""What room there is in a box, and whether a point fits there and where segments are spooled, before it is sent."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence

from pve_zfsbackup.app.box import Vault
from pve_zfsbackup.archive.text import MOST_SEGMENTS
from pve_zfsbackup.errors import BackupError, StoreFullError
from pve_zfsbackup.model import Dataset
from pve_zfsbackup.model.archive import ArchiveTask
from pve_zfsbackup.model.room import Room


def preflight(vault: Vault, task: ArchiveTask, estimates: Sequence[int], there: int) -> None:
    """Raise `StoreFullError` where what `zfs send` estimates cannot fit; `there` are bytes of an earlier attempt. Raw
    streams go as they are; others may shrink by half, and nobody knows."""
    needed = sum(size if stream.raw else size // 2 for stream, size in zip(task.streams, estimates, strict=False))
    require_countable(vault, sum(-(-size // vault.box.segment_bytes) for size in estimates), task.point)
    free = vault.store.free()
    if free is not None and needed - there > free:
        raise StoreFullError(
            f"{vault.box.name}: {free} bytes are free, {task.point} needs at least {needed - there} more",
            hint="free space in the box, or keep less there; nothing is deleted to make room",
        )
    vault.box.spool_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    spool = min((vault.box.connections + 1) * vault.box.segment_bytes, needed)
    room = shutil.disk_usage(vault.box.spool_dir).free
    if spool > room:
        raise StoreFullError(
            f"{vault.box.spool_dir}: {room} bytes are free, and segments on their way to the box take {spool}",
            hint="free space there, name another directory by `spool-dir`, or make `segment-mib` or `connections` less",
        )


def require_countable(vault: Vault, segments: int, point: str) -> None:
    """Raise `BackupError` where a point has more segments than a manifest can name: no reader would take it."""
    if segments > MOST_SEGMENTS:
        raise BackupError(
            f"{vault.box.name}: {point} would have {segments} segments, and a manifest names {MOST_SEGMENTS} at most",
            hint=f"make `segment-mib` of the box larger than {vault.box.segment_bytes >> 20}",
        )


def room_of(vault: Vault, at: float) -> Room | None:
    """What the box says of its room, for the journal: `check` and `metrics` know it from there and ask no box. One that
    does not answer any more is told of where that matters."""
    with contextlib.suppress(BackupError):
        if space := vault.store.space():
            return Room(host=vault.box.name, dataset=Dataset(""), used=space.used, available=space.free, at=at)
    return None
