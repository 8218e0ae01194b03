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
    StoreFullError,
)
from pve_zfsbackup.host.seal import digest_file
from pve_zfsbackup.host.sftp import SLOWEST, Session, Sftp, word
from pve_zfsbackup.host.store import Entry, Upload, checked

TEMPORARY = "tmp-"
_GONE = re.compile(r"not found|No such file or directory", re.IGNORECASE)


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
        places = [self._place(directory) for directory in directories]
        done = self.client.batch([f"-ls -ln {place}" for place in places])
        gone = {line for line in done.stderr.splitlines() if _GONE.search(line)}
        self._nothing_else(done, "list")
        found = {}
        for directory, place, (_, lines) in zip(directories, places, done.output, strict=True):
            if not any(f'/{place}" not found' in line or f'"{place}" not found' in line for line in gone):
                found[directory] = dict(_entries(lines))
        return found

    def put(self, uploads: Sequence[Upload]) -> None:
        if len(uploads) > 1 and self._renames and self._put_together(uploads):
            return
        for upload in uploads:
            if self._renames:
                self._put(upload)
            else:
                self._put_in_place(upload)

    def _put_together(self, uploads: Sequence[Upload]) -> bool:
        """All in one batch, in their order, to the first that is refused; one by one it is told what ails it."""
        sizes = {self._place(upload.path): upload.file.stat().st_size for upload in uploads}
        commands = [self._named(upload) for upload in uploads]
        done = self.client.batch([line for lines in commands for line in lines], sum(sizes.values()))
        if done.returncode:
            self.client.batch([f"-rm {_temporary(lines)}" for lines in commands])
            return False
        for lines, (goal, size) in zip(commands, sizes.items(), strict=True):
            self._sized([entry for entry in done.output if entry[0] in lines], goal, size)
            self._remember(goal)
        return True

    def _named(self, upload: Upload) -> Sequence[str]:
        """The commands for one file: under a name of its own first; `rename -l` is the rename that replaces nothing."""
        goal = self._place(upload.path)
        temporary = f"{goal.rpartition('/')[0]}/{TEMPORARY}{secrets.token_hex(8)}"
        return [
            *self._directories(goal),
            f"put -f {word(upload.file)} {temporary}",
            f"ls -ln {temporary}",
            f"rename -l {temporary} {goal}",
            f"ls -ln {goal}",
        ]

    def _put(self, upload: Upload) -> None:
        goal = self._place(upload.path)
        size = upload.file.stat().st_size
        lines = self._named(upload)
        temporary = _temporary(lines)
        done = self.client.batch(lines, size)
        if done.returncode == 0:
            self._sized(done.output, goal, size)
            self._remember(goal)
        elif done.last.startswith("rename"):
            self._unnamed(upload, temporary)
        else:
            with contextlib.suppress(StoreError, HostUnreachableError, CommandTimeoutError):
                self.client.batch([f"-rm {temporary}"])
            raise self._refused(done, upload, size)

    def _unnamed(self, upload: Upload, temporary: str) -> None:
        """The name is taken, perhaps by ourselves before an answer was lost; or the server renames nothing."""
        taken = self._same(upload)
        self.client.batch([f"-rm {temporary}"])
        if taken is None:
            self._renames = False
            self._put_in_place(upload)
        elif not taken:
            raise StoreConflictError(
                f"{self.name}: another file lies at {upload.path}", hint="look at it; nothing was changed"
            )

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
        done = self.client.batch(
            [*self._directories(goal), f"put -f {word(upload.file)} {goal}", f"ls -ln {goal}"], size
        )
        if done.returncode:
            raise self._refused(done, upload, size)
        self._sized(done.output, goal, size)
        self._remember(goal)

    def _same(self, upload: Upload) -> bool | None:
        """Whether the bytes that lie there are those of the upload; None when there is nothing."""
        with tempfile.TemporaryDirectory(dir=upload.file.parent) as scratch:
            copy = Path(scratch) / "copy"
            self.get_many([(upload.path, copy)])
            if not copy.exists():
                return None
            with open(copy, "rb") as file:
                return digest_file(file).sha256 == upload.sha256

    def _sized(self, output: Sequence[tuple[str, tuple[str, ...]]], goal: str, size: int) -> None:
        """Every listing of the session must show all bytes."""
        for command, lines in output:
            if command.startswith("ls "):
                entries = dict(_entries(lines))
                if [entry.bytes for entry in entries.values()] != [size]:
                    raise StoreError(f"{self.name}: {goal} arrived with another size than it was sent with")

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

    def get(self, path: str, file: Path) -> None:
        done = self.client.batch([f"get {self._place(path)} {word(file)}"], SLOWEST * 86_400)
        if done.returncode:
            raise StoreError(f"{self.name}: {path}: {done.told}", stderr=done.stderr)

    def get_many(self, pairs: Sequence[tuple[str, Path]]) -> None:
        done = self.client.batch([f"-get {self._place(path)} {word(file)}" for path, file in pairs], SLOWEST * 86_400)
        self._nothing_else(done, "get")

    def remove(self, paths: Sequence[str]) -> None:
        self._nothing_else(self.client.batch([f"-rm {self._place(path)}" for path in paths]), "remove")

    def remove_directory(self, path: str) -> None:
        place = self._place(path)
        self._made.clear()
        done = self.client.batch([f"-rmdir {place}"])
        if done.stderr.strip() and path.rpartition("/")[2] in self._siblings(path):
            raise StoreError(f"{self.name}: {path}: {done.told}")

    def _siblings(self, path: str) -> Mapping[str, Entry]:
        parent = path.rpartition("/")[0] or "."
        return self.list([parent]).get(parent, {})

    def free(self) -> int | None:
        done = self.client.batch(["-df"])
        rows = [line.split() for _, lines in done.output for line in lines]
        return int(rows[1][2]) << 10 if len(rows) > 1 and rows[1][2].isdecimal() else None

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
            raise StoreError(f"{self.name}: {what}: {'; '.join(others[:3]) or done.told}", stderr=done.stderr)


def _temporary(commands: Sequence[str]) -> str:
    """The name under which a file is put first."""
    return commands[-2].split(" ")[2]


def _entries(lines: Sequence[str]) -> Iterator[tuple[str, Entry]]:
    """`-rw-r--r-- 1 0 0 6 Nov 23 22:24 path`: what has another shape or a name that is not ours is passed over."""
    for line in lines:
        cells = line.split(None, 8)
        if len(cells) == 9 and cells[4].isdecimal() and cells[0][:1] in "-d":
            yield cells[8].rpartition("/")[2], Entry(bytes=int(cells[4]), directory=cells[0].startswith("d"))
