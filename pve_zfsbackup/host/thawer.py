"""A process of its own that thaws one guest later, unless its marker is gone by then: see `watchdog.ChildWatchdog`.

python3 -m pve_zfsbackup.host.thawer MARKER SECONDS COMMAND…
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import CommandError
from pve_zfsbackup.host.runner import ProcessRunner, Runner
from pve_zfsbackup.host.watchdog import WATCHING

TRIES: Final = 300  # as often as the systemd timer
PAUSE: Final = 2.0


def watch(runner: Runner, marker: Path, seconds: float, argv: Sequence[str]) -> bool:
    """Wait, then run `argv` until it exits 0; True when the guest was thawed. Ends early when the marker goes.

    A marker that was written anew belongs to a later freeze, which has a watchdog of its own.
    """
    ours = _identity(marker)
    if ours is None:
        return False
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if _identity(marker) != ours:
            return False
        time.sleep(1)
    for _ in range(TRIES):
        if _identity(marker) != ours:
            return False
        try:
            runner.run(argv, timeout=180)
        except CommandError:
            time.sleep(PAUSE)
        else:
            return True
    return False


def _identity(marker: Path) -> tuple[int, int] | None:
    try:
        status = marker.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def main() -> None:
    """Say that the marker is seen, and let go of the caller's streams: it waits for their end, not for ours."""
    marker, seconds, *argv = sys.argv[1:]
    if _identity(Path(marker)) is None:
        raise SystemExit(f"{marker}: no marker")
    print(WATCHING, flush=True)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    watch(ProcessRunner(), Path(marker), float(seconds), argv)


if __name__ == "__main__":
    main()
