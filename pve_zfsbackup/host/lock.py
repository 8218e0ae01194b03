"""Every lock of ours: kernel flocks, which die with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pve_zfsbackup.errors import LockedError


@contextlib.contextmanager
def run_lock(directory: Path, work: str) -> Iterator[None]:
    """Only one run at a time does this `work`. Raises `LockedError` at once when another one is at it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{work}.lock"
    with open(path, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(64).strip() or "unknown"
            raise LockedError(
                f"another run is at work on this: {work} (process {owner})",
                hint="wait for it to end, then run this again",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
