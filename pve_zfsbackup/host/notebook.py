"""Small facts that outlive a run, in JSON files of the state directory. Each is whole or not there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pve_zfsbackup.errors import BackupError


def write_json(path: Path, members: Mapping[str, Any]) -> None:
    """Replace the file at once. Raises `BackupError` when the disk is full or read-only."""
    with _told(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        with open(temporary, "w", encoding="ascii") as file:
            json.dump(members, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The members; None when there is no such file. Raises `BackupError` when it cannot be read as such."""
    with _told(path):
        try:
            found = json.loads(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
    if not isinstance(found, dict):
        raise BackupError(f"{path}: damaged", hint="look at it, then remove it: it is made anew from the box")
    return found


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Only one process at a time reads such a file and writes it anew; the others wait for it."""
    with _told(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with _told(path):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Log:
    """A file of JSON lines that grows; a last line that was cut is as if it had not been written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[dict[str, Any]]:
        """All lines up to the first that is not whole."""
        found: list[dict[str, Any]] = []
        with _told(self._path):
            try:
                text = self._path.read_text(encoding="ascii", errors="replace")
            except FileNotFoundError:
                return []
        for line in text.split("\n")[:-1]:
            try:
                members = json.loads(line)
            except ValueError:
                break
            if not isinstance(members, dict):
                break
            found.append(members)
        return found

    def begin(self, lines: list[dict[str, Any]]) -> None:
        """Make it anew with these lines."""
        with _told(self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._path.with_name(f".{self._path.name}.new")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")
            temporary.replace(self._path)

    def add(self, members: Mapping[str, Any]) -> None:
        with _told(self._path), open(self._path, "a", encoding="ascii") as file:
            file.write(json.dumps(members) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        with _told(self._path):
            self._path.unlink(missing_ok=True)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(f"{path}: {error.strerror}", hint="is the disk full or read-only?") from None
