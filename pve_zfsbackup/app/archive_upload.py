"""Uploads beside the send: a few at a time, each tried again for hours, while the stream waits for room to spool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.errors import BackupError, InterruptedRunError
from pve_zfsbackup.host.store import Store, Upload

LONGEST = 300.0
LEAST = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamina:
    """How long something that may pass is tried again: for `seconds`, first after 1 s, then twice as long each time,
    at most `LONGEST`. `pause` waits and says whether it was told to stop."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[threading.Event, float], bool] = threading.Event.wait

    def keep_trying(self, work: Callable[[], None], stop: threading.Event) -> None:
        """Do the work; raises its last error when it is not transient or the time is over."""
        end = self.clock() + self.seconds
        wait = 1.0
        while True:
            try:
                return work()
            except BackupError as error:
                if not error.transient or self.clock() + wait > end:
                    raise
            if self.pause(stop, wait):
                raise InterruptedRunError("interrupted while an upload was to be tried again")
            wait = min(LONGEST, wait * 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waning(Stamina):
    """For many files that are read one after another: what was waited in vain for one is not waited for the next, each
    of which gets `LEAST` seconds."""

    lost: list[float] = field(default_factory=list)

    def keep_trying(self, work: Callable[[], None], stop: threading.Event) -> None:
        started = self.clock()
        left = max(min(LEAST, self.seconds), self.seconds - sum(self.lost))
        try:
            Stamina(seconds=left, clock=self.clock, pause=self.pause).keep_trying(work, stop)
        except BackupError:
            self.lost.append(self.clock() - started)
            raise


@dataclass(slots=True)
class Uploads:
    """`workers` connections; as many files and one more may wait in the spool. `abort` ends what is under way."""

    store: Store
    stamina: Stamina
    workers: int
    abort: Callable[[], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _room: threading.Semaphore = field(init=False)
    _pool: ThreadPoolExecutor = field(init=False)
    _futures: list[Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._room = threading.Semaphore(self.workers + 1)
        self._pool = ThreadPoolExecutor(self.workers)

    @contextmanager
    def running(self) -> Iterator[Uploads]:
        """Whatever leaves the block, no upload is under way afterwards; leaving it in peace waits for all of them."""
        try:
            yield self
            for future in self._futures:
                future.result()
        except BaseException as error:
            self._stop.set()
            if not isinstance(error, Exception):
                self.abort()  # we are being ended: a transfer may take long
            raise
        finally:
            self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def room(self) -> None:
        """Wait until another file may be spooled. Raises what an upload failed of."""
        while not self._room.acquire(timeout=1.0):
            self.check()
        self.check()

    def check(self) -> None:
        """Raise what an upload failed of."""
        waiting = []
        for future in self._futures:
            if future.done():
                future.result()
            else:
                waiting.append(future)
        self._futures = waiting

    def add(self, prepare: Callable[[], Upload], done: Callable[[], None]) -> None:
        """Upload in a thread what `prepare` tells, call `done`, and forget the file."""
        self._futures.append(self._pool.submit(self._one, prepare, done))

    def _one(self, prepare: Callable[[], Upload], done: Callable[[], None]) -> None:
        upload = prepare()
        try:
            self.stamina.keep_trying(lambda: self.store.put([upload]), self._stop)
            done()
        finally:
            _forget(upload.file)
            self._room.release()

    def put(self, uploads: list[Upload]) -> None:
        """Publish some small files in this thread, in their order."""
        self.stamina.keep_trying(lambda: self.store.put(uploads), self._stop)


def _forget(file: Path) -> None:
    file.unlink(missing_ok=True)
