"""Directories for files on their way to a box or from one, some of them in the clear: gone afterwards, whatever ends
their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.notebook import changing

_PREFIX: Final = "pzb-spool-"
_LOCK: Final = ".lock"  # beside each directory, a file: NFS locks no directories


@contextlib.contextmanager
def spooled(parent: Path) -> Iterator[Path]:
    """A new directory below `parent`. Its lock dies with its process: the next one that comes by removes what a kill
    left. Raises `BackupError` where `parent` cannot be written."""
    with contextlib.ExitStack() as stack:
        with changing(parent / "spool"), _told(parent):  # nobody sweeps between a new directory and its lock
            _sweep(parent)
            place = parent / f"{_PREFIX}{secrets.token_hex(8)}"
            lock = parent / f"{place.name}{_LOCK}"
            stack.enter_context(_locked(lock, os.O_CREAT | os.O_EXCL))  # first: without one, nobody would sweep it
            place.mkdir(mode=0o700)
        try:
            yield place
        finally:
            _remove(lock)


def _sweep(parent: Path) -> None:
    for lock in parent.glob(f"{_PREFIX}*{_LOCK}"):
        with contextlib.suppress(OSError), _locked(lock):  # it fails where its owner is at work
            _remove(lock)


def _remove(lock: Path) -> None:
    """The directory, then its lock. What cannot be removed now goes with the next: NFS keeps a file while a program
    that outlived the kill has it open, and a file system may have become read-only."""
    place = lock.with_name(lock.name.removesuffix(_LOCK))
    shutil.rmtree(place, ignore_errors=True)
    if not os.path.lexists(place):
        with contextlib.suppress(OSError):
            lock.unlink()


@contextlib.contextmanager
def _locked(file: Path, how: int = 0) -> Iterator[None]:
    handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | how, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _told(parent: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "make room there, or name another directory by `spool-dir`"
        raise BackupError(f"{parent}: {error.strerror}", hint=hint) from None
