"""Directories for files on their way to a box or from one, some of them in the clear: gone afterwards, whatever ends
their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import BackupError

_PREFIX: Final = "pzb-spool-"


@contextlib.contextmanager
def spooled(parent: Path) -> Iterator[Path]:
    """A new directory below `parent`. Its lock dies with its process: the next one that comes by removes what a kill
    left. Raises `BackupError` where `parent` cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(parent):  # nobody sweeps between a new directory and its lock
                _sweep(parent)
                place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
                stack.enter_context(_locked(place))
        except OSError as error:
            hint = "make room there, or name another directory by `spool-dir`"
            raise BackupError(f"{parent}: {error.strerror}", hint=hint) from None
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for place in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _locked(place, fcntl.LOCK_NB):  # somebody's: in use, or not to be opened
            if not place.is_symlink() and place.stat().st_uid == os.geteuid():
                shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path, how: int = 0) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(handle)
