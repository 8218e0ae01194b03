"""Files written whole or not at all, mostly for root alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pve_zfsbackup.errors import BackupError


def write_private(file: Path, text: str) -> None:
    """Put `text` there, with mode 0600, never through a link that somebody left. Raises `OSError`."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(file, text, mode=0o600)


def write_whole(file: Path, text: str, *, mode: int) -> None:
    """Replace a file in a directory that is there; a reader sees the old one or the new one. Raises `OSError`."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_output(file: Path, text: str, *, mode: int) -> None:
    """Replace a file the caller named, in a directory that is there. Never a link or a device: as root, that would put
    a file in the place of /dev/null. Raises `BackupError`."""
    try:
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise BackupError(f"{file}: not a regular file", hint="name a file, or redirect standard output")
        write_whole(file, text, mode=mode)
    except OSError as error:
        hint = f"is {file.parent} there, and is there room?"
        raise BackupError(f"{file}: cannot be written: {error.strerror}", hint=hint) from None
