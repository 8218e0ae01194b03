"""How often what is kept is proven, and how much time that may take."""
# ruff: noqa: RUF009 - `option` makes a field, as `dataclasses.field` does

from __future__ import annotations

from dataclasses import dataclass

from pve_zfsbackup.config import kinds
from pve_zfsbackup.config.option import option
from pve_zfsbackup.model import Dataset
from pve_zfsbackup.model.proof import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Drills and scrubs."""

    every: float = option(
        "A guest is drilled again when its last drill is older. Those that wait longest come first.",
        kinds.days(0.01, 3650),
        default=30.0,
    )
    budget: float = option(
        "How long one `verify drill` may take: after that no further drill begins, and the rest is left to the next.",
        kinds.seconds(0, 604_800),
        default=3600.0,
    )
    read: Reading = option(
        "How much is read of disks and files in a drill, so that ZFS checks its sums.",
        kinds.READING,
        default=Reading.SAMPLE,
    )
    local: tuple[Dataset, ...] = option(
        "Where replicas lie that this host received, as a list: `verify drill` opens those of every guest there, "
        "besides the points of its own guests. A host that only receives needs this and no job.",
        kinds.ROOT,
        default=(),
        example="[tank/pve-zfsbackup]",
    )
    scrub_every: float = option(
        "`verify pools` starts a scrub of a pool of this node when the last one is older; 0 never starts one. Debian's "
        "own cron job starts one each month.",
        kinds.days(0, 3650),
        default=35.0,
    )
