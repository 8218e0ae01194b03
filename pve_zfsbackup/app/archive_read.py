"""Content of a box read back: segments fetched, hashed, opened, and poured into `zfs receive`.

Nothing is trusted before it was checked: the stored hash before decryption, the plaintext's before a byte of it
reaches ZFS (reliability S13).
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO

from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.box import Vault, fresh
from pve_zfsbackup.app.catalog import Content
from pve_zfsbackup.archive.inner import ZSTD, Inner, Sealed, StreamFacts
from pve_zfsbackup.archive.names import segment_name
from pve_zfsbackup.archive.outer import Stored
from pve_zfsbackup.errors import BackupError, SealError, VerificationError
from pve_zfsbackup.host.programs import pour_file
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.seal import digest_file

AHEAD = 2  # slices on their way while one is used, opened side by side
_FULL = ("no space left", "quota exceeded")  # as age and zstd say it
_ROOM = "make room there, or name another directory by `spool-dir`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads one box into `spool`, where at most five segments lie at a time."""

    vault: Vault
    spool: Path
    stamina: Stamina

    def fetch(self, content: Content, stored: Stored | Sealed, stop: threading.Event | None = None) -> Path:
        """One segment, its stored hash checked; nothing is tried again once `stop` is set. Raises `VerificationError`
        naming it."""
        if isinstance(stored, Sealed):
            stored = Stored(number=stored.number, bytes=stored.stored_bytes, sha256=stored.stored_sha256)
        name = segment_name(stored.number, stored.sha256)
        file = fresh(self.spool)
        path = f"{content.path}/{name}"
        self.stamina.keep_trying(lambda: self._get(path, file, stored.bytes), stop or threading.Event())
        found = digest_file(file)
        if (found.bytes, found.sha256) != (stored.bytes, stored.sha256):
            file.unlink()
            raise VerificationError(
                f"{content.path}/{name}: what lies there is not what was stored: {found.bytes} bytes, {found.sha256}",
                hint="the box, or what lies between, changed it; another copy is needed",
            )
        return file

    def _room(self, file: Path, size: int) -> None:
        """Raise `BackupError` where the spool had no room for the rest of a file of this size: nothing is wrong with
        what was to be written there."""
        missing = size - (file.stat().st_size if file.exists() else 0)
        free = shutil.disk_usage(self.spool).free
        if missing > free:
            raise BackupError(
                f"{self.vault.box.spool_dir}: {free} bytes are free, and {missing} more are needed to read on",
                hint=_ROOM,
            )

    def _get(self, path: str, file: Path, size: int) -> None:
        file.unlink(missing_ok=True)  # of an attempt that broke
        self._room(file, size)
        self.vault.store.get(path, file, size)

    def open(self, content: Content, segment: Sealed, identity: Path) -> Path:
        """One slice of plaintext, checked. Raises `VerificationError`, `SealError`."""
        return self._unseal(content, segment, self.fetch(content, segment), identity)

    def _unseal(self, content: Content, segment: Sealed, stored: Path, identity: Path) -> Path:
        plain = fresh(self.spool)
        name = f"{content.path}/{segment_name(segment.number, segment.stored_sha256)}"
        with contextlib.ExitStack() as bad:
            bad.callback(plain.unlink, missing_ok=True)  # many that are damaged would fill the spool
            try:
                found = self.vault.seal.unseal(stored, identity, plain, compressed=segment.codec == ZSTD)
            except SealError as error:
                self._room(plain, segment.bytes)
                if any(words in error.stderr.lower() for words in _FULL):  # until now: or a quota, which nobody sees
                    raise BackupError(f"{self.vault.box.spool_dir}: {error.message}", hint=_ROOM) from None
                raise SealError(f"{name}: {error.message}", hint=error.hint) from None
            finally:
                stored.unlink()
            if (found.bytes, found.sha256) != (segment.bytes, segment.sha256):
                raise VerificationError(f"{name}: opens, but is not what was archived")
            bad.pop_all()
        return plain

    def slices(self, content: Content, stream: StreamFacts, identity: Path) -> Generator[Path, None, None]:
        """The slices of a stream in order: while one is used, the next ones are fetched and opened. Each is gone
        afterwards, and those that nobody used as well."""
        with tempfile.TemporaryDirectory(dir=self.spool, ignore_cleanup_errors=True) as place:
            yield from replace(self, spool=Path(place))._slices(content, stream, identity)

    def _slices(self, content: Content, stream: StreamFacts, identity: Path) -> Generator[Path, None, None]:
        todo = iter([segment for segment in require_inner(content).segments if segment.stream == stream.number])
        waiting: deque[Future[Path]] = deque()
        stop = threading.Event()
        with ThreadPoolExecutor(1) as fetching, ThreadPoolExecutor(AHEAD) as opening:

            def begin() -> None:
                for segment in islice(todo, AHEAD - len(waiting)):
                    stored = fetching.submit(self.fetch, content, segment, stop)
                    waiting.append(opening.submit(self._opened, content, segment, stored, identity))

            try:
                begin()
                while waiting:
                    plain = waiting.popleft().result()
                    begin()
                    yield plain
                    plain.unlink()
            except BaseException as error:
                stop.set()
                for future in waiting:
                    future.cancel()
                if not isinstance(error, Exception | GeneratorExit):
                    self.vault.programs.cancel()  # we are being ended: a transfer may take long
                raise

    def _opened(self, content: Content, segment: Sealed, stored: Future[Path], identity: Path) -> Path:
        return self._unseal(content, segment, stored.result(), identity)

    def pour(self, content: Content, stream: StreamFacts, identity: Path, sink: IO[bytes]) -> None:
        """The whole plaintext of a stream into a pipe."""
        with contextlib.closing(self.slices(content, stream, identity)) as slices:
            for plain in slices:
                with open(plain, "rb", buffering=0) as file:
                    pour_file(file, sink)

    def receive(self, content: Content, stream: StreamFacts, identity: Path, argv: Sequence[str]) -> Completed:
        """Pour a stream into a program; returns how it ended, which is a failure when it did not take all."""
        with self.vault.programs.opened(argv) as chain:
            try:
                self.pour(content, stream, identity, chain.feed)
                whole = True
            except BrokenPipeError:
                whole = False
            (done,) = chain.finish()
        return done if whole else replace(done, returncode=done.returncode or 1)


def require_inner(content: Content) -> Inner:
    """The inner manifest. Raises `VerificationError` when it could not be opened."""
    if content.inner is None:
        raise VerificationError(f"{content.path}: {'; '.join(content.problems) or 'no identity was given to open it'}")
    return content.inner
