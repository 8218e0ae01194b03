"""What a box must be able to do: take whole files, list them, give them back, forget them. Paths are relative, made
of `a-z A-Z 0-9 . _ - /`, and nothing that lies there is ever overwritten."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pve_zfsbackup.errors import StoreError

SAFE_PATH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file (with its bytes) or a directory."""

    bytes: int
    directory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Bytes there is room for, as the server says, and how many there are in all; None where it does not say."""

    free: int
    size: int | None = None

    @property
    def used(self) -> int:
        """0 where that is not known."""
        return max(0, self.size - self.free) if self.size else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file of this host that shall lie at `path`. `sha256` is that of its bytes."""

    file: Path
    path: str
    sha256: str


class Store(Protocol):
    """Raises `StoreError` and its kinds, `HostUnreachableError`, `HostKeyError`; `transient` says what may pass."""

    @property
    def name(self) -> str: ...

    def kept(self) -> AbstractContextManager[None]:
        """Inside, what calls need to reach the box is kept for the next one."""
        ...

    def list(self, directories: Sequence[str]) -> Mapping[str, Mapping[str, Entry]]:
        """What is in each of these directories ("." is the top); those that do not exist are left out."""
        ...

    def put(self, uploads: Sequence[Upload]) -> None:
        """Publish files one after another: each is there in full under its name, or not at all. One that is there
        with these bytes is fine; another raises `StoreConflictError`. Makes the directories."""
        ...

    def get(self, path: str, file: Path, size: int) -> None:
        """Fetch one file of so many bytes into a new one. One that goes on is given up: `VerificationError`."""
        ...

    def get_many(self, pairs: Sequence[tuple[str, Path]], size: int) -> None:
        """Fetch small files, of so many bytes together; those that do not exist are left out."""
        ...

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files; those that are gone are fine. Raises `StoreForbiddenError` where nothing may be removed."""
        ...

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory; one that is gone is fine."""
        ...

    def space(self) -> Space | None:
        """How much room there is, where the server tells."""
        ...

    def free(self) -> int | None:
        """Bytes there is room for, where the server tells."""
        ...


def checked(path: str) -> str:
    """The path, which is one we may hand to a server. Raises `StoreError`."""
    if not SAFE_PATH.match(path) or len(path) > 400:
        raise StoreError(f"{path!r} is no name for a file in a box")
    return path
