"""Every lock of ours, and Proxmox's for a guest that moves: kernel flocks, which die with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from pve_zfsbackup.errors import BackupError, GuestBusyError, LockedError
from pve_zfsbackup.model import Vmid

RESTORE: Final = "restore"  # while it is held nothing is pruned: what is being read must stay
_READERS: Final = "reading.lock"
ARCHIVES: Final = "reading-archives.lock"  # of those who read boxes alone: nothing is removed there meanwhile
_FLOCK: Final = "hhqqi0q"  # struct flock: type, whence, start, length (0: all of it), process
MIGRATION_LOCKS: Final = Path("/var/lock/pve-manager")
MIGRATION_WAIT: Final = 2.0  # seconds, as pvesr has it (pve-facts §d)


@contextlib.contextmanager
def run_lock(directory: Path, work: str) -> Iterator[None]:
    """Only one run at a time does this `work`. Raises `LockedError` at once when another one is at it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{work}.lock"
    with open(path, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"another run is at work on this: {work} (process {_owner(file)})",
                hint="wait for it to end, then run this again",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _owner(file: TextIO) -> str:
    file.seek(0)
    return file.read(64).strip() or "unknown"


def held_for(directory: Path, work: str, seconds: float, *, now: float) -> tuple[str, float] | None:
    """Which other process has been at this work for longer than that, and for how long; None for none. The file is
    written when the lock is taken: at a young one nobody looks any closer, for the look of `held` is in the way."""
    try:
        with open(directory / f"{work}.lock", encoding="ascii") as file:
            past, owner = now - os.fstat(file.fileno()).st_mtime, _owner(file)
            late = past > seconds and owner != str(os.getpid()) and held(directory, work)
            return (owner, past) if late else None
    except FileNotFoundError:
        return None


def held(directory: Path, work: str) -> bool:
    """Whether somebody is at this work now. The look takes the lock itself for a moment, beside other looks: whoever
    begins right then is told that somebody is at it, so ask only where it matters."""
    try:
        with open(directory / f"{work}.lock", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextlib.contextmanager
def reading(directory: Path, name: str = _READERS) -> Iterator[None]:
    """Points are read here, by any number at once, and beside a restore: nothing is pruned meanwhile.
    Raises `BackupError` where that cannot be said."""
    path = directory / name
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BackupError(f"{path}: {error.strerror}", hint="run this as root, or set runtime-dir") from None
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLKW, _whole_file(fcntl.F_RDLCK))
        yield
    finally:
        os.close(handle)


def being_read(directory: Path, *names: str) -> bool:
    """Whether somebody restores, or reads points, now, or has one of the other locks of readers. To ask for readers
    takes no lock (F_OFD_GETLK, fcntl(2))."""
    return held(directory, RESTORE) or any(_has_readers(directory / name) for name in (_READERS, *names))


def _has_readers(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            told = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
    except FileNotFoundError:
        return False
    kind, *_ = struct.unpack(_FLOCK, told)
    return bool(kind != fcntl.F_UNLCK)


def _whole_file(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


@contextlib.contextmanager
def migration_lock(vmid: Vmid, *, directory: Path = MIGRATION_LOCKS) -> Iterator[None]:
    """The guest neither migrates, nor is replicated by pvesr, nor loses a snapshot, nor rolls back meanwhile.

    Keep it for moments only: the others wait 2 to 10 seconds for it and then fail (pve-facts §d).
    Raises `GuestBusyError` when somebody else has it for longer than two seconds.
    """
    path = directory / f"pve-migrate-{vmid}"
    try:
        directory.mkdir(parents=True, exist_ok=True)  # Proxmox makes it with its first use
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise GuestBusyError(f"guest {vmid}: its migration lock cannot be taken: {path}: {error.strerror}") from None
    try:
        deadline = time.monotonic() + MIGRATION_WAIT
        while not _locked(handle):
            if time.monotonic() >= deadline:
                raise GuestBusyError(
                    f"guest {vmid}: is being migrated, replicated by pvesr or rolled back",
                    hint=f"its task holds {path}",
                )
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class OneLock:
    """The lock of the stage under way: one at a time, let go at the end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self.held = ""

    def __enter__(self) -> OneLock:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, work: str) -> None:
        """Let go of the last one, and have this one. Raises `LockedError`."""
        if work != self.held:
            self._stack.close()
            self.held = ""
            self._stack.enter_context(run_lock(self._directory, work))
            self.held = work
