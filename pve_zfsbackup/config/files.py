"""Files that decide what root does, and files with secrets: read only when nobody else could have written them
(reliability.md §3, S6)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import printable
from pve_zfsbackup.model.secrets import keep_secret, keep_secrets

_CONFIG_LIMIT: Final = 1024 * 1024  # what pmxcfs takes at most (pve-facts §h)
_SECRET_LIMIT: Final = 4096
_SECRETS_LIMIT: Final = 64 * 1024
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH
_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC


class Secret:
    """A text that never shows itself: not in messages, logs, reports, tracebacks or pickles."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself, for the one place that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not copied out of the process")


def read_config_text(path: Path) -> str:
    """Text of a configuration file. Raises ConfigError when it is missing, too big, not UTF-8, or could have
    been written by others."""
    with _opened(path) as (handle, _):
        data = _read(handle, path, _CONFIG_LIMIT)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise ConfigError([f"{_name(path)}:{line}:{column}: not UTF-8 text"]) from None


def read_secret(path: Path) -> Secret:
    """One line of secret text, without its line end. Raises ConfigError when the file is missing, empty, or
    can be read or written by others."""
    data = _read_private(path, _SECRET_LIMIT)
    try:
        text = data.decode("ascii").rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise ConfigError([f"{_name(path)}: expected one line of printable ASCII text"])
    keep_secret(text)
    return Secret(text)


def find_secret(path: Path) -> Secret | None:
    """Like `read_secret`; None when there is no such file."""
    return read_secret(path) if os.path.lexists(path) else None


def checked_secrets(path: Path) -> Path:
    """The path of a file of secrets that another program reads, as apprise's: after the checks of `read_secret`, and
    with its secrets hidden from now on. Raises ConfigError like it."""
    try:
        text = _read_private(path, _SECRETS_LIMIT).decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise ConfigError([f"{_name(path)}: expected UTF-8 text"])
    keep_secrets(text)
    return path


def _read_private(path: Path, limit: int) -> bytes:
    with _opened(path) as (handle, mode):
        if mode & 0o077:
            raise ConfigError(
                [f"{_name(path)}: mode {mode:04o} lets others read the secret"], hint=f"chmod 600 {_name(path)}"
            )
        return _read(handle, path, limit)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """File descriptor and mode. The directory is opened first and the file inside it, so that what was checked
    is what is read."""
    try:
        parent = os.open(path.parent, _OPEN | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError([f"{_name(path)}: {error.strerror}"], hint=_hint(error)) from None
    try:
        # Non-blocking, because a FIFO in place of the file would stop us here for ever.
        handle = os.open(path.name, _OPEN | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        try:
            _check(os.fstat(parent), path.parent)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError([f"{_name(path)}: not a regular file"])
            _check(status, path)
            yield handle, stat.S_IMODE(status.st_mode)
        finally:
            os.close(handle)
    except OSError as error:
        raise ConfigError([f"{_name(path)}: {_told(path, error)}"], hint=_hint(error)) from None
    finally:
        os.close(parent)


def _read(handle: int, path: Path, limit: int) -> bytes:
    parts = []
    size = 0
    while size <= limit and (part := os.read(handle, limit + 1 - size)):
        parts.append(part)
        size += len(part)
    if size > limit:
        raise ConfigError([f"{_name(path)}: larger than {limit} bytes"])
    return b"".join(parts)


def _check(status: os.stat_result, path: Path) -> None:
    problems = []
    if status.st_uid not in {0, os.geteuid()}:
        problems.append(f"{_name(path)}: owned by uid {status.st_uid}, must be root's")
    if status.st_mode & _WRITABLE:
        problems.append(f"{_name(path)}: mode {stat.S_IMODE(status.st_mode):04o} lets others write it")
    if problems:
        raise ConfigError(problems, hint=f"chown root:root {_name(path)} && chmod go-w {_name(path)}")


def _told(path: Path, error: OSError) -> str:
    # O_NOFOLLOW answers ELOOP, which reads as something else.
    return "a symbolic link, which is not followed" if path.is_symlink() else str(error.strerror)


def _hint(error: OSError) -> str:
    return "`pve-zfsbackup setup` writes a first one" if isinstance(error, FileNotFoundError) else ""


def _name(path: Path) -> str:
    return printable(str(path))
