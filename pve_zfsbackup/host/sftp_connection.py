"""Running sftp clients: given commands, listened to, watched, kept for the next batch."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.errors import StoreError
from pve_zfsbackup.host.programs import Chain, write_all
from pve_zfsbackup.host.runner import Completed

ECHO = "sftp> "
GOODBYE = 5.0  # seconds to end in when there is nothing more to do
IDLE = 20.0  # seconds after which a connection is not used again: what lies between may have forgotten it
PORTION = 32 << 10  # bytes of commands given at once: less than a pipe holds
ANSWER = 64 << 20  # bytes of answers to one batch: a listing of some 400,000 files
WATCH = 0.5  # seconds between two looks at what comes
GLANCE = 5.0  # and where nothing is fetched


@dataclass(slots=True, kw_only=True)
class Watch:
    """Ends a client that takes longer than `seconds`, moves nothing for `still` of them, or fetches more than `most`
    bytes `into` files, while a batch is under way. `late` and `flooded` tell that it did."""

    chain: Chain
    seconds: float
    still: float
    most: int
    into: Sequence[Path]
    late: bool = False
    flooded: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            thread.join()

    def _look(self) -> None:
        now = since = time.monotonic()
        end, seen = now + self.seconds, self.chain.moved()
        while not self.over.wait(min(WATCH if self.into else GLANCE, self.still, max(0.0, end - now))):
            now, moved = time.monotonic(), self.chain.moved()
            if moved is None or moved != seen:
                since, seen = now, moved
            self.late = now >= end or now - since >= self.still
            self.flooded = sum(map(_size, self.into)) > self.most
            if self.late or self.flooded:
                self.chain.kill()
                return


@dataclass(slots=True, kw_only=True)
class Connection:
    """One running client. `rest` keeps what it is made of until it ends; `known` are the bytes of its stderr that were
    looked at."""

    argv: tuple[str, ...]
    chain: Chain
    rest: contextlib.ExitStack
    known: int = 0
    used: float = 0.0

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self.used <= IDLE and not self.chain.ended()

    def ask(self, lines: Sequence[str]) -> tuple[str, bool]:
        """What it answers to these commands, and whether it did them all: batch mode ends at the first that fails."""
        answer = b""
        for portion in _portions(lines):
            # A comment is echoed, too, when its turn comes; nobody else can know its text.
            mark = f"# {secrets.token_hex(16)}"
            with contextlib.suppress(BrokenPipeError):  # its answer says why
                write_all(self.chain.feed, ("\n".join([*portion, mark]) + "\n").encode("utf-8"))
            answer, whole = self._until(f"{ECHO}{mark}\n".encode("ascii"), answer)
            if not whole:
                return answer.decode("utf-8", "replace"), False
        return answer.decode("utf-8", "replace"), True

    def _until(self, end: bytes, answer: bytes) -> tuple[bytes, bool]:
        parts, last = [answer], b""
        total = len(answer)
        while data := self.chain.output.read(1 << 16):
            total += len(data)
            if total > ANSWER:
                raise StoreError(f"the server answers with more than {ANSWER >> 20} MiB", hint="what lies there?")
            last = (last + data)[-(len(data) + len(end)) :]
            parts.append(data)
            if end in last:
                return b"".join(parts).removesuffix(end), True
        return b"".join(parts), False

    def heard(self) -> str:
        """What it wrote to stderr since this was last asked."""
        data, self.known = self.chain.said(self.known)
        return data.decode("utf-8", "replace")

    def ended(self) -> tuple[Completed, str]:
        """How it ended, which it does by itself or because it gets no more commands; and what it said of that."""
        timer = threading.Timer(GOODBYE, self.chain.kill)
        timer.daemon = True
        timer.start()
        with self.rest:
            (done,) = self.chain.finish()
            timer.cancel()
            return done, self.heard()


@dataclass(slots=True)
class Idle:
    """Connections that wait for their next batch, while somebody wants them kept."""

    wanted: int = 0
    connections: list[Connection] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, argv: tuple[str, ...]) -> Connection | None:
        """One with this command line that was used just now. Others, and those that are too old, are ended first: a
        box takes only so many."""
        with self.lock:
            fit = [one for one in self.connections if one.argv == argv and one.fresh]
            old = [one for one in self.connections if one not in fit]
            taken = fit.pop() if fit else None
            self.connections = fit
        for one in old:
            one.ended()
        return taken

    def give(self, connection: Connection) -> None:
        connection.used = time.monotonic()
        with self.lock:
            if self.wanted:
                self.connections.append(connection)
                return
        connection.ended()


def _portions(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    portion: list[str] = []
    for line in lines:
        if portion and sum(map(len, portion)) + len(line) > PORTION:
            yield portion
            portion = []
        portion.append(line)
    yield portion


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
