"""Files inside of a recovery point: where they lie, what they are, and what was copied of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from pve_zfsbackup.model.drill import Look


class EntryKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    SPECIAL = "special"  # a device, a pipe, a socket


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """One of a guest's. `name` is ours and without surprises: it is typed, and a directory is called so. `kind` is
    blkid's word, or `zfs` for a container's disk; `size` of its device in bytes."""

    name: str
    disk: str
    place: str
    kind: str
    label: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A name in a directory. `mode` as stat(2) has it, `modified` in seconds since the epoch; `aim` is a link's."""

    name: str
    kind: EntryKind
    mode: int
    owner: int
    group: int
    size: int
    modified: int
    aim: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What lies at a path of a file system: `asked` is what was asked for, `path` where that is, links followed."""

    file_system: str
    asked: str
    path: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What was copied. `bytes` of content; `problems` are paths that were not copied, and why; `lost` what could not be
    kept of their owners and attributes."""

    files: int = 0
    bytes: int = 0
    problems: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found in a point. `missing` are the paths that no file system has."""

    file_systems: tuple[FileSystem, ...] = ()
    shown: tuple[Shown, ...] = ()
    missing: tuple[str, ...] = ()
    looks: tuple[Look, ...] = ()
    copied: Copied | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """A path as it was asked for: anywhere in the guest, or in the file system that is named."""

    text: str
    path: str
    file_system: str = ""


def parse_sought(text: str) -> Sought:
    """`/etc/fstab`, or `scsi0-part2:/etc/fstab`. Raises `ValueError`."""
    if text.startswith("/"):
        return Sought(text=text, path=text)
    name, colon, path = text.partition(":")
    if not colon or not name or not path.startswith("/"):
        raise ValueError(f"{text!r}: a path begins with /, or with a file system and a colon: scsi0-part2:/etc/fstab")
    return Sought(text=text, path=path, file_system=name)


def file_system_name(disk: str, place: str, taken: Iterable[str]) -> str:
    """`scsi0`, `scsi0-part2`, `scsi0-vg0-root`: of letters that neither a shell nor a path minds, and not `taken`."""
    words = f"{disk} {place}".replace(" partition ", " part").replace(" LV ", " ")
    name = "-".join(re.sub(r"[^A-Za-z0-9+_.]+", " ", words).split()).lstrip(".-") or "disk"
    name, known = name[:120], frozenset(taken)
    return next(one for one in (name, *(f"{name}-{n}" for n in range(2, len(known) + 3))) if one not in known)
