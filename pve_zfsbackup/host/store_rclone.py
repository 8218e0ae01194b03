"""A box that rclone reaches: S3 and whatever else it knows. Optional; the remote is one of rclone's configuration.

rclone puts a file under its name when it has it all (a partial name and a rename, or the store's own atomic put). It
compares by what the store offers, which may be the size alone: so whatever has the name already is read back.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pve_zfsbackup.errors import (
    HostUnreachableError,
    StoreConflictError,
    StoreError,
    StoreForbiddenError,
    StoreFullError,
    VerificationError,
)
from pve_zfsbackup.host.programs import Programs
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.seal import digest_file
from pve_zfsbackup.host.store import Entry, Space, Upload, checked

NO_DIRECTORY, NO_FILE, TRY_AGAIN, TOO_MUCH = 3, 4, 5, 8  # exit statuses: rclone.org/docs, "List of exit codes"
_DENIED = re.compile("access ?denied|forbidden|permission denied|not permitted", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RcloneStore:
    """`remote` is `NAME:PATH` as rclone has it, `config` its file of remotes with their secrets, `rate` the bytes per
    second one transfer may use now (0: as fast as it goes)."""

    name: str
    remote: str
    config: Path
    programs: Programs
    rate: Callable[[], int] = lambda: 0

    def kept(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def list(self, directories: Sequence[str]) -> Mapping[str, Mapping[str, Entry]]:
        found = {}
        for directory in directories:
            done, text = self._run("lsjson", "--no-modtime", "--no-mimetype", "--", self._place(directory))
            if done.returncode not in (NO_DIRECTORY, NO_FILE):
                self._good(done, directory)
                found[directory] = {str(entry["Name"]): _entry(entry) for entry in self._json(text, directory)}
        return found

    def put(self, uploads: Sequence[Upload]) -> None:
        for upload in uploads:
            size = upload.file.stat().st_size
            if there := self._stat(upload.path):
                self._require_same(upload, there)
                continue
            done, _ = self._run("copyto", "--immutable", "--", str(upload.file), self._place(upload.path))
            self._good(done, upload.path)
            arrived = self._stat(upload.path)
            if arrived is None or arrived.bytes != size:
                raise StoreError(f"{self.name}: {upload.path} arrived with another size than it was sent with")

    def _require_same(self, upload: Upload, entry: Entry) -> None:
        with tempfile.TemporaryDirectory(dir=upload.file.parent) as scratch:
            copy = Path(scratch) / "copy"
            self.get(upload.path, copy, entry.bytes)
            if digest_file(copy).sha256 != upload.sha256:
                raise StoreConflictError(
                    f"{self.name}: another file lies at {upload.path}", hint="look at it; nothing was changed"
                )

    def _stat(self, path: str) -> Entry | None:
        done, text = self._run("lsjson", "--stat", "--no-modtime", "--no-mimetype", "--", self._place(path))
        if done.returncode in (NO_DIRECTORY, NO_FILE):
            return None
        self._good(done, path)
        found = self._json(text, path)
        return _entry(found) if found else None

    def get(self, path: str, file: Path, size: int) -> None:
        done, _ = self._run("copyto", *_most(size), "--", self._place(path), str(file))
        self._good(done, path)
        if not file.is_file():  # a store without directories finds nothing to copy there, and calls it done
            raise StoreError(f"{self.name}: {path} is not there")

    def get_many(self, pairs: Sequence[tuple[str, Path]], size: int) -> None:
        if not pairs:
            return
        with tempfile.TemporaryDirectory(dir=pairs[0][1].parent) as scratch:
            done = self._named("copy", [path for path, _ in pairs], scratch, *_most(size))
            for path, file in pairs:
                copy = Path(scratch) / path
                if copy.is_file():
                    copy.rename(file)
                elif done.returncode not in (0, NO_DIRECTORY, NO_FILE):
                    self._good(done, path)

    def remove(self, paths: Sequence[str]) -> None:
        if paths:
            done = self._named("delete", paths)
            if done.returncode not in (NO_DIRECTORY, NO_FILE):
                self._good(done, paths[0], removing=True)

    def remove_directory(self, path: str) -> None:
        done, _ = self._run("rmdir", "--", self._place(path))
        parent, _, name = path.rpartition("/")
        if done.returncode and name in self.list([parent or "."]).get(parent or ".", {}):
            self._good(done, path, removing=True)

    def space(self) -> Space | None:
        done, text = self._run("about", "--json", "--", self.remote)
        if done.returncode:
            return None  # many stores do not tell
        told = self._json(text, "about")
        free, size = told.get("free"), told.get("total")
        if not isinstance(free, int) or free < 0:
            return None
        return Space(free=free, size=size if isinstance(size, int) and size > 0 else None)

    def free(self) -> int | None:
        space = self.space()
        return space.free if space else None

    def _named(self, verb: str, paths: Sequence[str], target: str = "", *options: str) -> Completed:
        """A command for files that are named in a list; those that do not exist are passed over by rclone."""
        with tempfile.NamedTemporaryFile("w", encoding="ascii") as names:
            names.write("".join(f"{checked(path)}\n" for path in paths))
            names.flush()
            places = (self.remote, target) if target else (self.remote,)
            return self._run(verb, "--files-from-raw", names.name, "--no-traverse", *options, "--", *places)[0]

    def _run(self, *words: str) -> tuple[Completed, str]:
        """One command; it tries again a little by itself, and is given up by us after that."""
        rate = self.rate()
        limit = ("--bwlimit", f"{rate}B") if rate else ()
        common = ("--config", str(self.config), "--ask-password=false", "--retries", "1", "--low-level-retries", "3")
        argv = ("rclone", words[0], *common, "--contimeout", "15s", "--timeout", "2m", *limit, *words[1:])
        with open("/dev/null", "rb") as nothing, self.programs.opened(argv, source=nothing) as chain:
            output = b"".join(iter(lambda: chain.output.read(1 << 16), b""))
            (done,) = chain.finish()
        return done, output.decode("utf-8", "replace")

    def _good(self, done: Completed, path: str, *, removing: bool = False) -> None:
        if not done.returncode:
            return
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        text = "; ".join(lines[-2:]) or f"rclone: exit status {done.returncode}, no message"
        told = f"{self.name}: {path}: {text}"
        if "no space left" in text.lower() or "quota" in text.lower():
            raise StoreFullError(
                told, hint="free space in the box, or keep less there; nothing is deleted to make room"
            )
        if removing and _DENIED.search(text):
            raise StoreForbiddenError(told, stderr=done.stderr, returncode=done.returncode)
        if done.returncode == TOO_MUCH:
            raise VerificationError(f"{told}: more than should lie there")
        if done.returncode == TRY_AGAIN or "connect" in text:
            raise HostUnreachableError(told, hint="check that the store is up and takes our credentials")
        raise StoreError(told, stderr=done.stderr, returncode=done.returncode)

    def _json(self, text: str, path: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise StoreError(f"{self.name}: {path}: rclone answered what is not understood") from None

    def _place(self, path: str) -> str:
        slash = "" if self.remote.endswith((":", "/")) else "/"
        return self.remote if path == "." else f"{self.remote}{slash}{checked(path)}"


def _most(size: int) -> tuple[str, str, str]:
    """No more than that is fetched; it counts by what it has in hand, so that the file itself must not reach it."""
    return "--max-transfer", f"{size + (1 << 20)}B", "--cutoff-mode=hard"


def _entry(members: Mapping[str, Any]) -> Entry:
    directory = bool(members.get("IsDir"))
    return Entry(bytes=0 if directory else int(members.get("Size", 0)), directory=directory)
