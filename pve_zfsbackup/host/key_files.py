"""Keys as files of root's alone: made once, never written over, never removed but by who just made them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model.keys import RAW_BYTES

KEYS: Final = Path("/etc/pve-zfsbackup/keys")
_LIMIT: Final = 64 << 10
_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def new_key() -> bytes:
    return os.urandom(RAW_BYTES)


def write_key(file: Path, key: bytes) -> None:
    """Put a key there, mode 0400, on disk before this returns, whole or not at all. Raises `ConfigError` when there
    is something already."""
    try:
        for missing in [folder for folder in reversed(file.parents) if not folder.exists()]:
            missing.mkdir(mode=0o700)  # each of them: `parents=True` gives the mode to the last alone
            _settle(missing.parent)
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
        try:
            with open(handle, "wb") as stream:
                stream.write(key)
                stream.flush()
                os.fsync(stream.fileno())
            os.link(temporary, file)  # unlike a rename, it never takes another's place
        finally:
            temporary.unlink(missing_ok=True)
        _settle(file.parent)
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror}"], hint="no key is written over; nothing was changed") from None


def read_key(file: Path) -> bytes:
    """The bytes of a key file. Raises `ConfigError` when it is not there, or no file."""
    try:
        handle = os.open(file, _OPEN)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ConfigError([f"{file}: not a regular file"])
            return os.read(handle, _LIMIT)
        finally:
            os.close(handle)
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror}"]) from None


def exposed(file: Path) -> str:
    """Who else may read the key, in words; empty when only root may."""
    with contextlib.suppress(OSError):
        status = file.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"it belongs to uid {status.st_uid}"
        if status.st_mode & 0o077:
            return f"its mode {stat.S_IMODE(status.st_mode):04o} lets others at it: chmod 400"
    return ""


def discard_key(file: Path) -> None:
    """Remove a key that was made a moment ago and that nothing has been encrypted with."""
    file.unlink(missing_ok=True)
    _settle(file.parent)


def kept_keys(directory: Path) -> tuple[Path, ...]:
    """The key files of one dataset, oldest first as their names tell."""
    return tuple(sorted((p for p in directory.glob("*.key") if p.is_file()), key=lambda p: p.name.split("-")[-1]))


def _settle(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
