"""Files copied out of what a guest left, into a directory of this host: never through a link, nor over a file unasked.

What is read is mounted for reading only and stands still; what is written goes through handles of directories, so that
no name of the guest's, no link of it, and nothing that lies in the directory leads anywhere else. Below the directory
each file system has one of its own, which only we may enter: in there a program keeps its setuid bit, and a
secret its mode, without anybody else of this host getting at them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.model import printable
from pve_zfsbackup.model.files import Copied

CHUNK: Final = 1 << 20
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PART: Final = re.compile(r"\.pve-zfsbackup-[0-9a-f]{16}\.part\Z")  # a file that is not whole yet
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
Parts = tuple[str, ...]


@dataclass(slots=True)
class Copier:
    """Copies into a directory, made if it is not there. `overwrite`: a file of the same name is replaced."""

    into: Path
    overwrite: bool = False
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    lost: dict[str, None] = field(default_factory=dict)

    @property
    def copied(self) -> Copied:
        return Copied(files=self.files, bytes=self.bytes, problems=tuple(self.problems), lost=tuple(self.lost))

    def copy(self, root: Path, place: Path, name: str) -> None:
        """What lies at `place` in the file system mounted at `root`, with all that is in it, to the same path below
        `<into>/<name>`. A path that cannot be copied is a problem, and the others are.

        Raises `BackupError` when nothing can be written there.
        """
        with contextlib.ExitStack() as stack:
            shelf = self._shelf(name)
            stack.callback(os.close, shelf)
            way = _Way(copier=self, root=root, shelf=shelf, name=name)
            try:
                way.copy(place.relative_to(root).parts)
            except OSError as error:
                raise BackupError(
                    f"{self.into}: {error.strerror}: what was copied until then stays", hint="name another directory"
                ) from None

    def _shelf(self, name: str) -> int:
        """A handle of the directory for one file system, which is ours alone."""
        path = self.into / name
        try:
            self.into.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            shelf = os.open(path, _FOLDER)
        except OSError as error:
            told = "is there, and is no directory" if error.errno in (errno.ELOOP, errno.ENOTDIR) else error.strerror
            raise BackupError(f"{error.filename or path}: {told}", hint="name another directory") from None
        info = os.fstat(shelf)
        if info.st_uid != os.geteuid() or info.st_mode & 0o077:
            os.close(shelf)
            raise BackupError(f"{path}: others of this host may enter it", hint="name another directory, or chmod it")
        for left in os.listdir(shelf):
            if _PART.match(left):
                with contextlib.suppress(OSError):  # a directory of that name, which is the guest's own
                    os.unlink(left, dir_fd=shelf)
        return shelf


@dataclass(slots=True, kw_only=True)
class _Way:
    """Through one file system. `made` are the directories of ours, dressed at the end: writing changes their times."""

    copier: Copier
    root: Path
    shelf: int
    name: str
    made: list[Parts] = field(default_factory=list)

    def copy(self, parts: Parts) -> None:
        try:
            if all(self._folder(parts[:depth]) for depth in range(1, len(parts))):
                self._walk(parts)
        finally:
            for own in reversed(self.made):
                with self._telling(own), self._inside(own) as folder:
                    self._dress(folder, own)

    def _walk(self, start: Parts) -> None:
        left = [start]
        while left:
            own = left.pop()
            with self._telling(own):
                left += reversed([(*own, name) for name in self._entry(own)])

    def _entry(self, own: Parts) -> list[str]:
        """Copy one thing; returns what is in it."""
        source = self._source(own)
        mode = source.lstat().st_mode
        if stat.S_ISDIR(mode):
            return sorted(os.listdir(source)) if self._folder(own) else []
        if stat.S_ISREG(mode):
            self._file(own)
        elif stat.S_ISLNK(mode):
            self._link(own)
        else:
            self._problem(own, "neither a file nor a directory nor a link: not copied")
        return []

    def _folder(self, own: Parts) -> bool:
        """A directory that is there is gone on in, whoever made it; it keeps what it has."""
        if not own:
            return True
        with self._inside(own[:-1]) as above:
            try:
                os.mkdir(own[-1], 0o700, dir_fd=above)
                self.made.append(own)
                return True
            except FileExistsError:
                if stat.S_ISDIR(os.lstat(own[-1], dir_fd=above).st_mode):
                    return True
        self._problem(own, "something else is there already, and stays")
        return False

    def _file(self, own: Parts) -> None:
        with self._inside(own[:-1]) as above, contextlib.ExitStack() as stack:
            if not self._free(own, above):
                return
            reading = os.open(self._source(own), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, reading)
            part = f".pve-zfsbackup-{secrets.token_hex(8)}.part"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            writing = os.open(part, flags, 0o600, dir_fd=self.shelf)
            stack.callback(os.close, writing)
            try:
                copied = _pour(reading, writing)
                self._dress(writing, own)
                os.rename(part, own[-1], src_dir_fd=self.shelf, dst_dir_fd=above)
            except BaseException:
                os.unlink(part, dir_fd=self.shelf)
                raise
        self.copier.files += 1
        self.copier.bytes += copied

    def _link(self, own: Parts) -> None:
        """As it is: where it leads to is the guest's business, and nobody's here."""
        source = self._source(own)
        with self._inside(own[:-1]) as above:
            if not self._free(own, above):
                return
            part = f".pve-zfsbackup-{secrets.token_hex(8)}.part"
            os.symlink(os.readlink(source), part, dir_fd=self.shelf)
            try:
                info = source.lstat()
                with self._losing("owners"):
                    os.chown(part, info.st_uid, info.st_gid, dir_fd=self.shelf, follow_symlinks=False)
                times = (info.st_atime_ns, info.st_mtime_ns)
                os.utime(part, ns=times, dir_fd=self.shelf, follow_symlinks=False)
                os.rename(part, own[-1], src_dir_fd=self.shelf, dst_dir_fd=above)
            except BaseException:
                os.unlink(part, dir_fd=self.shelf)
                raise
        self.copier.files += 1

    def _free(self, own: Parts, above: int) -> bool:
        try:
            mode = os.lstat(own[-1], dir_fd=above).st_mode
        except FileNotFoundError:
            return True
        if stat.S_ISDIR(mode):
            self._problem(own, "a directory is there already, and stays")
        elif not self.copier.overwrite:
            self._problem(own, "is there already, and stays: --overwrite replaces it")
        else:
            return True
        return False

    def _dress(self, handle: int, own: Parts) -> None:
        """Give it the owners, attributes (of which ACLs are some), mode and times that it has in the guest."""
        source = self._source(own)
        info = source.lstat()
        with self._losing("owners"):
            os.chown(handle, info.st_uid, info.st_gid)
        for name in os.listxattr(source, follow_symlinks=False):
            with self._losing(f"attribute {printable(name)}"):
                os.setxattr(handle, name, os.getxattr(source, name, follow_symlinks=False))
        os.chmod(handle, stat.S_IMODE(info.st_mode))
        os.utime(handle, ns=(info.st_atime_ns, info.st_mtime_ns))

    @contextlib.contextmanager
    def _inside(self, own: Parts) -> Iterator[int]:
        """A handle of our directory for these parts, reached without following anything."""
        handle = os.dup(self.shelf)
        try:
            for part in own:
                below = os.open(part, _FOLDER, dir_fd=handle)
                os.close(handle)
                handle = below
            yield handle
        finally:
            os.close(handle)

    def _source(self, own: Parts) -> Path:
        return self.root.joinpath(*own)

    def _problem(self, own: Parts, told: str) -> None:
        self.copier.problems.append(f"{self.name}:/{printable('/'.join(own))}: {told}")

    @contextlib.contextmanager
    def _telling(self, own: Parts) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise
            self._problem(own, error.strerror or "cannot be copied")

    @contextlib.contextmanager
    def _losing(self, what: str) -> Iterator[None]:
        """What the directory's file system, or our account, cannot keep is told once."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise
            self.copier.lost[f"{what}: {error.strerror}"] = None


def _pour(reading: int, writing: int) -> int:
    """Copy the content, holes as holes; returns its bytes."""
    info = os.fstat(reading)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "is no file any more")
    at = 0
    while at < info.st_size:
        try:
            at = os.lseek(reading, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                break
            raise
        end = os.lseek(reading, at, os.SEEK_HOLE)
        os.lseek(reading, at, os.SEEK_SET)
        os.lseek(writing, at, os.SEEK_SET)
        while at < end:
            data = os.read(reading, min(CHUNK, end - at))
            if not data:
                raise OSError(errno.EIO, "ends before it should")
            at += len(data)
            while data:
                data = data[os.write(writing, data) :]
    os.ftruncate(writing, info.st_size)
    return info.st_size
