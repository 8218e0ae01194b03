"""One `zfs send` on its way into segments: cut, hashed, compressed where it pays, encrypted, handed to the uploads.

Slices that an earlier attempt brought to the box are only hashed and compared: a stream that is not the same as then
starts anew.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any

from pve_zfsbackup.app.archive_preflight import require_countable
from pve_zfsbackup.app.archive_upload import Uploads
from pve_zfsbackup.app.box import Vault, fresh
from pve_zfsbackup.archive.inner import NONE, ZSTD, Sealed
from pve_zfsbackup.archive.names import segment_name
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.notebook import Log
from pve_zfsbackup.host.programs import fill
from pve_zfsbackup.host.seal import CHUNK
from pve_zfsbackup.host.store import Upload

SEALING = 2  # slices at a time: while one comes in, the one before may still be on its way through the programs
HEAD = 8 << 20  # bytes of a slice that are looked at before it is compressed, or not; and that are hashed at a time
SAMPLE = 64 << 10
PAYS = 0.92  # compressed to less than this, it is compressed


class StreamDiffersError(BackupError):
    """The stream is not the one of the first attempt: the point starts anew."""


@dataclass(slots=True, kw_only=True)
class Slicer:
    """Makes the segments of one point. `known` are those that are in the box already, by number."""

    vault: Vault
    uploads: Uploads
    spool: Path
    directory: str  # of the point, in the box
    ledger: Log
    known: dict[int, Sealed] = field(default_factory=dict)
    made: dict[int, Sealed] = field(default_factory=dict)
    number: int = 0
    skipped: int = 0
    hashing: Executor = field(init=False)
    sealing: Executor = field(init=False)

    @property
    def segments(self) -> tuple[Sealed, ...]:
        """All of the point, complete after the uploads have ended."""
        return tuple(self.made[number] for number in sorted(self.made))

    @contextmanager
    def working(self) -> Iterator[Slicer]:
        """Hashing and sealing go on in threads beside the stream; none of them outlives the block."""
        with ThreadPoolExecutor(1) as self.hashing, ThreadPoolExecutor(SEALING) as self.sealing:
            yield self

    def take(
        self, source: IO[bytes], stream: int, moved: Callable[[int], None], ended: Callable[[], None], *, raw: bool
    ) -> int:
        """Slice all of a stream; returns its bytes. `ended` is called where it ends, and raises when that is too early:
        the short slice it ended in is no segment, or the next attempt would find another one in its place."""
        total = 0
        buffers = (memoryview(bytearray(HEAD)), memoryview(bytearray(HEAD)))
        while head := fill(source, buffers[0][: self.vault.box.segment_bytes]):
            self.number += 1
            require_countable(self.vault, self.number, self.directory)
            known = self.known.get(self.number)
            one = _Slice(
                stream=stream,
                offset=total,
                source=source,
                head=head,
                buffers=buffers,
                limit=self.vault.box.segment_bytes,
                moved=moved,
                ended=ended,
                hashing=self.hashing,
            )
            if known is None:
                self._seal(one, compress=not raw and _pays(head))
            else:
                for _ in one.pieces(one.read):
                    self.uploads.check()
                self._same(known, one)
            total += one.size
            if one.size < one.limit:
                return total
        ended()
        return total

    def end(self) -> None:
        """All streams were taken. Raises `StreamDiffersError` when the first attempt had more."""
        if any(number > self.number for number in self.known):
            raise StreamDiffersError("the streams are shorter than those of the first attempt")

    def _same(self, known: Sealed, one: _Slice) -> None:
        found = (one.stream, one.offset, one.size, one.hash.hexdigest())
        if found != (known.stream, known.offset, known.bytes, known.sha256):
            raise StreamDiffersError(f"segment {known.number} is not the same as in the first attempt")
        self.made[known.number] = known
        self.skipped += 1

    def _seal(self, one: _Slice, *, compress: bool) -> None:
        self.uploads.room()
        number, file = self.number, fresh(self.spool)
        files = [self.vault.box.recipients_file]
        with self.vault.seal.sealing(self.sealing, files, file, compress=compress) as sealing:
            for piece in _cut(one.head, CHUNK):
                sealing.feed(piece)
            for _ in one.pieces(partial(sealing.pass_on, one.source)):
                self.uploads.check()

        stream, offset, size, hashed = one.stream, one.offset, one.size, one.hash  # `one` has buffers, and uploads wait

        def prepare() -> Upload:
            digest = sealing.sealed.result()
            self.made[number] = Sealed(
                number=number,
                stream=stream,
                offset=offset,
                bytes=size,
                sha256=hashed.hexdigest(),
                codec=ZSTD if compress else NONE,
                stored_bytes=digest.bytes,
                stored_sha256=digest.sha256,
            )
            path = f"{self.directory}/{segment_name(number, digest.sha256)}"
            return Upload(file=file, path=path, sha256=digest.sha256)

        self.uploads.add(prepare, lambda: self.ledger.add(self.made[number].members()))


@dataclass(slots=True, kw_only=True)
class _Slice:
    """The next part of a stream, of which the `head` is there already, in the first of the buffers. `moved` is told
    the bytes of the stream so far, `ended` called where it ends within this slice; `size` is what went through."""

    stream: int
    offset: int
    source: IO[bytes]
    head: memoryview
    buffers: tuple[memoryview, memoryview]
    limit: int
    moved: Callable[[int], None]
    ended: Callable[[], None]
    hashing: Executor
    size: int = 0
    hash: Any = field(default_factory=hashlib.sha256)

    def read(self, buffer: memoryview) -> memoryview:
        return fill(self.source, buffer)

    def pieces(self, read: Callable[[memoryview], memoryview]) -> Iterator[memoryview]:
        """What `read` takes from the source after the head, piece by piece. A buffer is hashed as a whole, beside what
        is read into the other one: to wait for a thread after each piece took longer than the hashing."""
        hashes = [self.hashing.submit(self.hash.update, self.head)]
        try:
            self._told(self.head)
            for turn in count(1):
                left = self.limit - self.size
                if not left:
                    return
                if turn > 1:
                    hashes[turn - 2].result()  # of what the buffer held before
                buffer = self.buffers[turn % 2][:left]
                filled = 0
                while filled < len(buffer) and (piece := read(buffer[filled : filled + CHUNK])):
                    filled += len(piece)
                    self._told(piece)
                    yield piece
                hashes.append(self.hashing.submit(self.hash.update, buffer[:filled]))
                if filled < len(buffer):
                    return self.ended()
        finally:
            for hashing in hashes:
                hashing.result()

    def _told(self, piece: memoryview) -> None:
        self.size += len(piece)
        self.moved(self.offset + self.size)


def _cut(data: memoryview, size: int) -> Iterator[memoryview]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _pays(head: memoryview) -> bool:
    """Whether compressing is worth it, judged by samples from the beginning of the slice."""
    samples = [part[:SAMPLE] for part in _cut(head, SAMPLE * 8)]
    return sum(len(zlib.compress(part, 1)) for part in samples) < sum(map(len, samples)) * PAYS
