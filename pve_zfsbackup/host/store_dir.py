"""A box that is a directory of this node, such as a mounted share."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pve_zfsbackup.errors import StoreConflictError, StoreError, StoreForbiddenError, StoreFullError, VerificationError
from pve_zfsbackup.host.seal import digest_file
from pve_zfsbackup.host.store import Entry, Space, Upload, checked

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryStore:
    """`root` must exist below a directory that does: a share that is not mounted is no empty box."""

    name: str
    root: Path
    mount: Path

    def kept(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def list(self, directories: Sequence[str]) -> Mapping[str, Mapping[str, Entry]]:
        self._mounted()
        found: dict[str, dict[str, Entry]] = {}
        for directory in directories:
            with self._told(directory), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found[directory] = {path.name: _entry(path) for path in self._place(directory).iterdir()}
        return found

    def put(self, uploads: Sequence[Upload]) -> None:
        self._mounted()
        for upload in uploads:
            goal = self._place(upload.path)
            with self._told(upload.path):
                goal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._publish(upload, goal)

    def _publish(self, upload: Upload, goal: Path) -> None:
        temporary = goal.parent / f"tmp-{secrets.token_hex(8)}"
        try:
            with open(upload.file, "rb") as source, open(temporary, "xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                os.fsync(target.fileno())
            if temporary.stat().st_size != upload.file.stat().st_size:
                raise StoreError(f"{self.name}: {upload.path} arrived with another size")
            self._name(temporary, goal, upload)
        finally:
            temporary.unlink(missing_ok=True)
        handle = os.open(goal.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _name(self, temporary: Path, goal: Path, upload: Upload) -> None:
        """Never over another file: a link fails where something is, a rename would replace it."""
        try:
            os.link(temporary, goal)
        except FileExistsError:
            if digest_file(goal).sha256 != upload.sha256:
                raise StoreConflictError(
                    f"{self.name}: another file lies at {upload.path}", hint="look at it; nothing was changed"
                ) from None
        except OSError as error:
            if error.errno not in _NO_LINKS or goal.exists():
                raise
            temporary.rename(goal)

    def get(self, path: str, file: Path, size: int) -> None:
        self._mounted()
        with self._told(path), open(self._place(path), "rb") as source, open(file, "xb") as target:
            left = size
            while data := source.read(1 << 20):
                left -= len(data)
                if left < 0:
                    raise VerificationError(f"{self.name}: {path} has more than the {size} bytes that should lie there")
                target.write(data)

    def get_many(self, pairs: Sequence[tuple[str, Path]], size: int) -> None:
        for path, file in pairs:
            if self._place(path).exists():
                self.get(path, file, size)
                size -= file.stat().st_size

    def remove(self, paths: Sequence[str]) -> None:
        self._mounted()
        for path in paths:
            with self._told(path, removing=True):
                self._place(path).unlink(missing_ok=True)

    def remove_directory(self, path: str) -> None:
        self._mounted()
        with self._told(path, removing=True), contextlib.suppress(FileNotFoundError):
            self._place(path).rmdir()

    def space(self) -> Space | None:
        self._mounted()
        told = shutil.disk_usage(self.mount)
        return Space(free=told.free, size=told.total)

    def free(self) -> int | None:
        space = self.space()
        return space.free if space else None

    def _place(self, path: str) -> Path:
        return self.root if path == "." else self.root / checked(path)

    def _mounted(self) -> None:
        if not self.mount.is_dir():
            raise StoreError(f"{self.name}: {self.mount} is not there", hint="is it mounted?")

    @contextlib.contextmanager
    def _told(self, path: str, *, removing: bool = False) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise StoreError(f"{self.name}: {path} is not there") from None
        except OSError as error:
            kind = StoreFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
            if removing and isinstance(error, PermissionError):
                kind = StoreForbiddenError
            hint = "free space in the box" if kind is StoreFullError else ""
            raise kind(f"{self.name}: {path}: {error.strerror}", hint=hint) from None


def _entry(path: Path) -> Entry:
    status = path.lstat()
    return Entry(bytes=status.st_size, directory=stat.S_ISDIR(status.st_mode))
