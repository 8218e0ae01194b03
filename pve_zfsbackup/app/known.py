"""What completion offers: names out of the configuration, guests and points out of the end of the journal.

Two local files are read and nobody is asked: a shell waits for it, and a pool or an API that hangs must not hang it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.config import Config, load_config
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.host.journal import last_lines
from pve_zfsbackup.model import PREFIX, SNAPSHOT_NAME, printable

_BYTES = 256 << 10  # of the journal: the last hundreds of results


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """`guests` by vmid with their names; `points` of each, newest first."""

    jobs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    guests: Mapping[str, str] = field(default_factory=dict)
    points: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def known(path: Path) -> Known:
    """What can be told without asking; nothing where a file cannot be read: completion never complains."""
    try:
        config = load_config(path)
    except ConfigError:
        config = Config()
    guests: dict[str, str] = {}
    points: dict[str, dict[str, None]] = {}
    for line in reversed(last_lines(config.journal_dir, _BYTES)):
        vmid, name, point = line.get("vmid"), line.get("guest"), line.get("point")
        if type(vmid) is not int or vmid <= 0:
            continue
        guests.setdefault(str(vmid), printable(str(name or "")))
        stamp = str(point or "").partition("/")[2]
        if SNAPSHOT_NAME.match(f"{PREFIX}{stamp}"):
            points.setdefault(str(vmid), {})[stamp] = None
    return Known(
        jobs=tuple(config.jobs),
        targets=tuple(config.targets),
        boxes=tuple(config.boxes),
        guests=dict(sorted(guests.items(), key=lambda item: int(item[0]))),
        points={vmid: tuple(found) for vmid, found in points.items()},
    )
