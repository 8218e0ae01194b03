"""Looking into what is mounted or mapped: nothing there is trusted, nothing is followed out of it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import VerificationError
from pve_zfsbackup.model import printable

CHUNK: Final = 1 << 20
SAMPLES: Final = 64  # places of a device, or files of a file system
_LINKS: Final = 40  # as the kernel has it
_TOLD: Final = 120


def find(root: Path, path: str) -> Path | None:
    """Where `path` is inside of `root`, with symbolic links as seen from there; None when it is not there.

    Nothing outside of `root` is ever reached, whatever the links say.
    """
    left = [part for part in path.split("/") if part not in ("", ".")]
    inside: list[str] = []
    links = 0
    while left:
        part = left.pop(0)
        if part == "..":
            inside = inside[:-1]
            continue
        here = root.joinpath(*inside, part)
        try:
            info = here.lstat()
        except OSError:
            return None
        if not stat.S_ISLNK(info.st_mode):
            inside.append(part)
            continue
        links += 1
        if links > _LINKS:
            return None
        aim = os.readlink(here)
        inside = [] if aim.startswith("/") else inside
        left = [*(step for step in aim.split("/") if step not in ("", ".")), *left]
    return root.joinpath(*inside)


def find_below(root: Path, path: str) -> Path | None:
    """The same for a file system that may be mounted anywhere in the guest: `/srv/data/x` is `/data/x` in the one for
    /srv."""
    found = found_below(root, path)
    return found[1] if found else None


def found_below(root: Path, path: str) -> tuple[int, Path] | None:
    """The same, and how many of the first parts of the path would be where it is mounted: the fewer, the surer."""
    parts = [part for part in path.split("/") if part]
    found = ((start, find(root, "/".join(parts[start:]))) for start in range(len(parts)))
    return next(((start, place) for start, place in found if place is not None and place != root), None)


def system_name(root: Path) -> str | None:
    """What the guest calls itself in its os-release (os-release(5)); None when it has none."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        place = find(root, path)
        if place is None or not place.is_file():
            continue
        with contextlib.suppress(OSError):
            text = read_text(place, limit=64 << 10)
            match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', text, re.MULTILINE)
            return printable(match[1] if match else "unnamed system")[:_TOLD]
    return None


def read_text(place: Path, *, limit: int) -> str:
    """The beginning of a file that was found. Raises `OSError`."""
    with open(place, "rb", opener=_regular) as file:
        return file.read(limit).decode("utf-8", "replace")


def subvolumes(root: Path) -> list[Path]:
    """Those of a btrfs that lie at its top, where distributions put their roots: each has the inode 256."""
    return sorted(
        path for path in root.iterdir() if not path.is_symlink() and path.is_dir() and path.stat().st_ino == 256
    )


def read_files(root: Path, *, everything: bool) -> tuple[int, int]:
    """Read regular files of one file system, all or some of them whole; returns how many, and bytes.

    Raises `VerificationError` for the first that cannot be read.
    """
    found = _files(root)
    if not everything:
        found = iter(_some(found))
    count = total = 0
    for path in found:
        try:
            with open(path, "rb", buffering=0, opener=_regular) as file:
                while part := file.read(CHUNK):
                    total += len(part)
        except OSError as error:
            shown = printable(os.fsdecode(path.relative_to(root)))[:_TOLD]
            raise VerificationError(f"file {shown}: cannot be read: {error.strerror}") from None
        count += 1
    return count, total


def _files(root: Path) -> Iterator[Path]:
    """Regular files on the same file system. Raises `VerificationError` for a directory that cannot be read."""

    def failed(error: OSError) -> None:
        raise VerificationError(f"directory {printable(str(error.filename))[:_TOLD]}: {error.strerror}") from None

    device = root.lstat().st_dev
    for folder, folders, names in os.walk(root, onerror=failed):
        here = Path(folder)
        folders[:] = [name for name in folders if _on(here / name, device)]
        for name in names:
            path = here / name
            try:
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path
            except OSError as error:
                failed(OSError(error.errno, error.strerror, str(path)))


def _on(path: Path, device: int) -> bool:
    try:
        return path.lstat().st_dev == device
    except OSError:
        return True  # told when it is walked into


def _some(found: Iterator[Path]) -> list[Path]:
    """An even choice of the files, other ones each time (reservoir sampling)."""
    chosen: list[Path] = []
    for number, path in enumerate(found):
        if number < SAMPLES:
            chosen.append(path)
        elif (at := secrets.randbelow(number + 1)) < SAMPLES:
            chosen[at] = path
    return chosen


def _regular(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_device(path: Path, *, everything: bool) -> int:
    """Read a block device, all of it or some places of it; ZFS checks the sums of all that is read. Returns the bytes.

    Raises `VerificationError` with the place that cannot be read.
    """
    with open(path, "rb", buffering=0) as device:
        size = device.seek(0, os.SEEK_END)
        last = max(0, size - CHUNK)
        places = range(0, size, CHUNK) if everything else sorted({0, last, *(_spot(last) for _ in range(SAMPLES))})
        total = 0
        for place in places:
            try:
                device.seek(place)
                total += len(device.read(CHUNK))
            except OSError as error:
                raise VerificationError(f"byte {place} cannot be read: {error.strerror}") from None
    return total


def _spot(last: int) -> int:
    return secrets.randbelow(last // 4096 + 1) * 4096
