"""A box behind SFTP, by OpenSSH's own `sftp` in batch mode: what it answers is known only by its echo, its listings
and its exit status, so every upload is listed before and after it gets its name."""

from __future__ import annotations

import contextlib
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.errors import (
    CommandTimeoutError,
    HostUnreachableError,
    StoreConflictError,
    StoreError,
    StoreForbiddenError,
    StoreFullError,
)
from pve_zfsbackup.host.seal import digest_file
from pve_zfsbackup.host.sftp import Session, Sftp, word
from pve_zfsbackup.host.store import Entry, Space, Upload, checked

TEMPORARY = "tmp-"
TOGETHER = 100  # directories listed at a time: what is said of those that are gone must be kept whole (`Chain.said`)
_DENIED = "Permission denied"
_UNSUPPORTED = re.compile("unsupported", re.IGNORECASE)
_LISTED = re.compile(r"([-d])\S* .*? (\d+) +[A-Z][a-z]{2} +\d{1,2} +(?:\d\d:\d\d|\d{4}) (\S.*)")
_GONE = re.compile(r"not found|No such file or directory", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Put:
    """One upload: where it lies until it has all its bytes, its place, and how many bytes those are."""

    upload: Upload
    temporary: str
    goal: str
    size: int

    @property
    def bring(self) -> tuple[str, str]:
        return f"put -f {word(self.upload.file)} {self.temporary}", f"ls -ln {self.temporary}"

    @property
    def name(self) -> tuple[str, str]:
        """`rename -l` is the rename that replaces nothing."""
        return f"rename -l {self.temporary} {self.goal}", f"ls -ln {self.goal}"


@dataclass(slots=True, kw_only=True)
class SftpStore:
    """Several calls may run at the same time, each has a connection to itself meanwhile."""

    client: Sftp
    _made: set[str] = field(default_factory=set)
    _renames: bool = True

    @property
    def name(self) -> str:
        return self.client.name

    def kept(self) -> contextlib.AbstractContextManager[None]:
        return self.client.kept()

    def list(self, directories: Sequence[str]) -> Mapping[str, Mapping[str, Entry]]:
        with self.kept():
            parts = [directories[start : start + TOGETHER] for start in range(0, len(directories), TOGETHER)]
            return {name: entries for part in parts for name, entries in self._list(part).items()}

    def _list(self, directories: Sequence[str]) -> Mapping[str, Mapping[str, Entry]]:
        places = [self._place(directory) for directory in directories]
        done = self.client.batch([f"-ls -ln {place}" for place in places])
        gone = {line for line in done.stderr.splitlines() if _GONE.search(line)}
        self._nothing_else(done, "list")
        found = {}
        for directory, place, (_, lines) in zip(directories, places, done.output, strict=True):
            if not any(f'/{place}" not found' in line or f'"{place}" not found' in line for line in gone):
                found[directory] = dict(listed(lines))
        return found

    def put(self, uploads: Sequence[Upload]) -> None:
        with self.kept():
            if len(uploads) > 1 and self._renames and self._put_together([self._named(upload) for upload in uploads]):
                return
            for upload in uploads:
                if self._renames:
                    self._put(self._named(upload))
                else:
                    self._put_in_place(upload)

    def _named(self, upload: Upload) -> _Put:
        """Under a name of its own first."""
        goal = self._place(upload.path)
        temporary = f"{goal.rpartition('/')[0]}/{TEMPORARY}{secrets.token_hex(8)}"
        return _Put(upload=upload, temporary=temporary, goal=goal, size=upload.file.stat().st_size)

    def _put_together(self, puts: Sequence[_Put]) -> bool:
        """All in one batch, then their names in their order; one by one it is told what ails them."""
        with self._tidied(puts):
            done = self._brought(puts)
            if not done.returncode:
                done = self.client.batch([line for put in puts for line in put.name])
                self._sized(done, puts)
        if done.returncode:
            self._forget(puts)
        return not done.returncode

    def _put(self, put: _Put) -> None:
        with self._tidied([put]):
            done = self._brought([put])
            if done.returncode:
                raise self._refused(done, put.upload, put.size)
            named = self._name(put)
        if not named:
            self._renames = False
            self._put_in_place(put.upload)

    def _brought(self, puts: Sequence[_Put]) -> Session:
        """Every byte is there before anything gets its name."""
        directories = dict.fromkeys(line for put in puts for line in self._directories(put.goal))
        lines = [*directories, *(line for put in puts for line in put.bring)]
        done = self.client.batch(lines, sum(put.size for put in puts))
        self._sized(done, puts)
        if not done.returncode:
            for put in puts:
                self._remember(put.goal)
        return done

    def _name(self, put: _Put) -> bool:
        """Give it its name. False where the server renames nothing; the name may be taken, perhaps by ourselves before
        an answer was lost."""
        done = self.client.batch(put.name)
        taken = self._same(put.upload) if done.returncode else None
        if taken is False:
            raise StoreConflictError(
                f"{self.name}: another file lies at {put.upload.path}", hint="look at it; nothing was changed"
            )
        if done.returncode and taken is None and not _UNSUPPORTED.search(done.stderr):
            first, done = done, self.client.batch(put.name)  # what was in its way may have passed
            if done.returncode and done.told != first.told:
                raise self._refused(done, put.upload, put.size)
        if done.returncode:
            self._forget([put])
            return bool(taken)
        self._sized(done, [put])
        return True

    @contextlib.contextmanager
    def _tidied(self, puts: Sequence[_Put]) -> Iterator[None]:
        """What is refused leaves nothing behind."""
        try:
            yield
        except StoreError:
            self._forget(puts)
            raise

    def _forget(self, puts: Sequence[_Put]) -> None:
        with contextlib.suppress(StoreError, HostUnreachableError, CommandTimeoutError):
            self.client.batch([f"-rm {put.temporary}" for put in puts])

    def _put_in_place(self, upload: Upload) -> None:
        """For servers that refuse to rename: names are unique, so one that is too short is a cut upload of ours."""
        goal = self._place(upload.path)
        size = upload.file.stat().st_size
        directory, _, name = upload.path.rpartition("/")
        there = self.list([directory]).get(directory, {}).get(name)
        if there is not None and there.bytes >= size:
            if not self._same(upload):
                raise StoreConflictError(f"{self.name}: another file lies at {upload.path}", hint="look at it")
            return
        put = _Put(upload=upload, temporary=goal, goal=goal, size=size)
        done = self._brought([put])
        if done.returncode:
            raise self._refused(done, upload, size)

    def _same(self, upload: Upload) -> bool | None:
        """Whether the bytes that lie there are those of the upload; None when there is nothing."""
        directory, _, name = upload.path.rpartition("/")
        there = self.list([directory]).get(directory, {}).get(name)
        size = upload.file.stat().st_size
        if there is None or there.bytes != size:
            return None if there is None else False
        with tempfile.TemporaryDirectory(dir=upload.file.parent) as scratch:
            copy = Path(scratch) / "copy"
            self.get(upload.path, copy, size)
            return digest_file(copy).sha256 == upload.sha256

    def _sized(self, done: Session, puts: Sequence[_Put]) -> None:
        """Every listing of the session must show all bytes."""
        sizes = {path: put.size for put in puts for path in (put.temporary, put.goal)}
        for command, lines in done.output[: len(done.output) - bool(done.returncode)]:  # the last may be what failed
            if command.startswith("ls "):
                path = command.rpartition(" ")[2]
                if [entry.bytes for _, entry in listed(lines)] != [sizes[path]]:
                    raise StoreError(f"{self.name}: {path} arrived with another size than it was sent with")

    def _refused(self, done: Session, upload: Upload, size: int) -> StoreError:
        text = done.told
        if "No space" in text or "quota" in text.lower() or self._too_small(size):
            return StoreFullError(
                f"{self.name}: no room for {upload.path}, {size} bytes: {text}",
                hint="free space in the box, or keep less there; nothing is deleted to make room",
            )
        return StoreError(f"{self.name}: {upload.path}: {text}", stderr=done.stderr, returncode=done.returncode)

    def _too_small(self, size: int) -> bool:
        try:
            free = self.free()
        except StoreError:
            return False
        return free is not None and free < size

    def get(self, path: str, file: Path, size: int) -> None:
        done = self.client.batch([f"get {self._place(path)} {word(file)}"], size, [file])
        if done.returncode:
            raise StoreError(f"{self.name}: {path}: {done.told}", stderr=done.stderr)

    def get_many(self, pairs: Sequence[tuple[str, Path]], size: int) -> None:
        lines = [f"-get {self._place(path)} {word(file)}" for path, file in pairs]
        done = self.client.batch(lines, size, [file for _, file in pairs])
        self._nothing_else(done, "get")

    def remove(self, paths: Sequence[str]) -> None:
        self._nothing_else(self.client.batch([f"-rm {self._place(path)}" for path in paths]), "remove")

    def remove_directory(self, path: str) -> None:
        place = self._place(path)
        self._made.clear()
        done = self.client.batch([f"-rmdir {place}"])
        if done.stderr.strip() and path.rpartition("/")[2] in self._siblings(path):
            kind = StoreForbiddenError if _DENIED in done.stderr else StoreError
            raise kind(f"{self.name}: {path}: {done.told}")

    def _siblings(self, path: str) -> Mapping[str, Entry]:
        parent = path.rpartition("/")[0] or "."
        return self.list([parent]).get(parent, {})

    def space(self) -> Space | None:
        """`df`: KiB in all, used, available to the account, and to root, below a line of headings."""
        rows = [line.split() for _, lines in self.client.batch(["-df"]).output for line in lines]
        cells = rows[1][:3] if len(rows) > 1 else []
        if len(cells) < 3 or not all(re.fullmatch(r"[0-9]{1,18}", cell) for cell in cells):
            return None  # statvfs is an extension that not every server has
        return Space(free=int(cells[2]) << 10, size=int(cells[0]) << 10)

    def free(self) -> int | None:
        space = self.space()
        return space.free if space else None

    def _directories(self, goal: str) -> Iterator[str]:
        parts = goal.split("/")[:-1]
        for number in range(len(parts)):
            directory = "/".join(parts[: number + 1])
            if directory not in self._made:
                yield f"-mkdir {directory}"

    def _remember(self, goal: str) -> None:
        parts = goal.split("/")[:-1]
        self._made.update("/".join(parts[: number + 1]) for number in range(len(parts)))

    def _place(self, path: str) -> str:
        return self.client.server.path if path == "." else f"{self.client.server.path}/{checked(path)}"

    def _nothing_else(self, done: Session, what: str) -> None:
        """Raise unless all that went wrong is that something does not exist."""
        others = [line for line in done.stderr.splitlines() if line.strip() and not _GONE.search(line)]
        if done.returncode or others:
            denied = what == "remove" and others and all(_DENIED in line for line in others)
            kind = StoreForbiddenError if denied else StoreError
            raise kind(f"{self.name}: {what}: {'; '.join(others[:3]) or done.told}", stderr=done.stderr)


def listed(lines: Sequence[str]) -> Iterator[tuple[str, Entry]]:
    """`-rw-r--r-- 1 0 0 6 Nov 23 22:24 path`, with owners' names on some servers, which may have spaces: only the size
    stands before the date. What has another shape is passed over."""
    for line in lines:
        if found := _LISTED.fullmatch(line):
            yield found[3].rpartition("/")[2], Entry(bytes=int(found[2]), directory=found[1] == "d")
