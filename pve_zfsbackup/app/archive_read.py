"""Content of a box read back: segments fetched, hashed, opened, and poured into `zfs receive`.

Nothing is trusted before it was checked: the stored hash before decryption, the plaintext's before a byte of it
reaches ZFS (reliability S13).
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.box import Vault, fresh
from pve_zfsbackup.app.catalog import Content
from pve_zfsbackup.archive.inner import ZSTD, Inner, Sealed, StreamFacts
from pve_zfsbackup.archive.names import segment_name
from pve_zfsbackup.archive.outer import Stored
from pve_zfsbackup.errors import SealError, VerificationError
from pve_zfsbackup.host.programs import write_all
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.seal import CHUNK, digest_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads one box into `spool`, where at most three segments lie at a time."""

    vault: Vault
    spool: Path
    stamina: Stamina

    def fetch(self, content: Content, stored: Stored | Sealed) -> Path:
        """One segment, its stored hash checked. Raises `VerificationError` naming it."""
        if isinstance(stored, Sealed):
            stored = Stored(number=stored.number, bytes=stored.stored_bytes, sha256=stored.stored_sha256)
        name = segment_name(stored.number, stored.sha256)
        file = fresh(self.spool)
        self.stamina.keep_trying(lambda: self._get(f"{content.path}/{name}", file), threading.Event())
        with open(file, "rb") as opened:
            found = digest_file(opened)
        if (found.bytes, found.sha256) != (stored.bytes, stored.sha256):
            file.unlink()
            raise VerificationError(
                f"{content.path}/{name}: what lies there is not what was stored: {found.bytes} bytes, {found.sha256}",
                hint="the box, or what lies between, changed it; another copy is needed",
            )
        return file

    def _get(self, path: str, file: Path) -> None:
        file.unlink(missing_ok=True)  # of an attempt that broke
        self.vault.store.get(path, file)

    def open(self, content: Content, segment: Sealed, identity: Path) -> Path:
        """One slice of plaintext, checked. Raises `VerificationError`, `SealError`."""
        stored = self.fetch(content, segment)
        plain = fresh(self.spool)
        name = f"{content.path}/{segment_name(segment.number, segment.stored_sha256)}"
        try:
            found = self.vault.seal.unseal(stored, identity, plain, compressed=segment.codec == ZSTD)
        except SealError as error:
            raise SealError(f"{name}: {error.message}", hint=error.hint) from None
        finally:
            stored.unlink()
        if (found.bytes, found.sha256) != (segment.bytes, segment.sha256):
            raise VerificationError(f"{name}: opens, but is not what was archived")
        return plain

    def slices(self, content: Content, stream: StreamFacts, identity: Path) -> Generator[Path, None, None]:
        """The slices of a stream in order; the next one is fetched while one is used. Each is gone afterwards."""
        inner = require_inner(content)
        segments = [segment for segment in inner.segments if segment.stream == stream.number]
        with ThreadPoolExecutor(1) as ahead:
            waiting: list[Future[Path]] = []
            try:
                for number, segment in enumerate(segments):
                    current = waiting.pop() if waiting else ahead.submit(self.open, content, segment, identity)
                    plain = current.result()
                    if number + 1 < len(segments):
                        waiting.append(ahead.submit(self.open, content, segments[number + 1], identity))
                    yield plain
                    plain.unlink()
            finally:
                for future in waiting:
                    future.cancel()

    def pour(self, content: Content, stream: StreamFacts, identity: Path, take: Callable[[bytes], None]) -> None:
        """The whole plaintext of a stream; its hash is checked once more at the end."""
        whole = hashlib.sha256()
        with contextlib.closing(self.slices(content, stream, identity)) as slices:
            for plain in slices:
                with open(plain, "rb") as file:
                    while data := file.read(CHUNK):
                        whole.update(data)
                        take(data)
        if whole.hexdigest() != stream.sha256:
            raise VerificationError(f"{content.path}: {stream.key} is not the stream that was archived")

    def receive(self, content: Content, stream: StreamFacts, identity: Path, argv: Sequence[str]) -> Completed:
        """Pour a stream into a program; returns how it ended, which is a failure when it did not take all."""
        with self.vault.programs.opened(argv) as chain:
            try:
                self.pour(content, stream, identity, lambda data: write_all(chain.feed, data))
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
