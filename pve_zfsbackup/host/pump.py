"""Moves the bytes of streams by `splice(2)`: counted, at a given pace, and ended on both sides when nothing moves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Protocol

from pve_zfsbackup.host.pace import LARGEST, Pace

PIPE_SIZE = 1 << 20  # the most an unprivileged pipe may have; fewer wake-ups per MiB
TICK = 1.0
LONG = 0.1  # seconds: pipes bridge what is shorter

Progress = Callable[[int, int], None]  # which stream (from 0), and its bytes so far


class Killable(Protocol):
    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """How streams are to be moved. `stall`: seconds without a byte, and without an end, after which it is given up.
    `unwanted` tells of the stream under way why it is not to go on; it is asked every second, and must not wait."""

    progress: Progress
    stall: float
    pace: Pace | None = None
    unwanted: Callable[[int], str] = lambda number: ""


class Pump:
    """Pours one source after another into a sink. `moved` has the bytes of each; `hungry` and `held` are the seconds it
    waited for a source that had begun, and for the sink, in pieces of a tenth and more, `seconds` all since streams
    began. `onwards` counts what goes on behind the sink: a buffer that empties is no stall."""

    def __init__(self, sink: IO[bytes], flow: Flow, onwards: Callable[[], int] = lambda: 0) -> None:
        self.moved: list[int] = []
        self.hungry = self.held = self.seconds = 0.0
        self._onwards = onwards
        self.stalled = False
        self.unwanted = ""
        self.broken = False  # the sink takes no more
        self._sink, self._flow = sink, flow
        self._processes: list[Killable] = []
        self._over = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Pump:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()

    @property
    def ended(self) -> bool:
        """Whether it was given up, or told to end: nothing more is to be poured."""
        return self._ended.is_set()

    def rest(self, seconds: float) -> None:
        """Do nothing for so long, or until it ends."""
        self._ended.wait(seconds)

    @contextlib.contextmanager
    def killing(self, *processes: Killable) -> Iterator[None]:
        """These end with the pump, from now on."""
        with self._lock:
            self._processes += processes
        try:
            if self.ended:
                self.kill()
            yield
        finally:
            with self._lock:
                self._processes = [process for process in self._processes if process not in processes]

    def pour(self, source: IO[bytes]) -> None:
        """Move all of it. Closes the source: whoever writes into it must not wait for a reader that is gone."""
        self.moved.append(0)
        with contextlib.suppress(PermissionError):  # smaller pipes (user limit reached) are slower, not wrong
            fcntl.fcntl(source.fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            fcntl.fcntl(self._sink.fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        try:
            self._splice(source.fileno(), self._sink.fileno())
        except BrokenPipeError:
            self.broken = True  # the consumer is gone; its exit status tells why
        source.close()

    def _splice(self, source: int, sink: int) -> None:
        pace = self._flow.pace
        ready = select.poll()
        ready.register(source, select.POLLIN)
        if not self._has(ready):
            return
        started = time.monotonic()
        try:
            while True:
                before = time.monotonic()
                count = os.splice(source, sink, pace.piece() if pace else LARGEST)
                self.held += _long(time.monotonic() - before)
                if not count:
                    return
                self.moved[-1] += count
                if pace and (seconds := pace.wait(count)):
                    self.rest(seconds)
                if not self._has(ready):
                    return
        finally:
            self.seconds += time.monotonic() - started

    def _has(self, ready: select.poll) -> bool:
        """Wait for bytes or the end of them; False when it was given up, whether or not the sender could be killed."""
        before = time.monotonic()
        while not ready.poll(TICK * 1000):
            if self.ended:
                return False
        self.hungry += _long(time.monotonic() - before) if self.moved[-1] else 0.0
        return True

    def tell(self) -> None:
        """Report the bytes of the stream under way."""
        if self.moved:
            self._flow.progress(len(self.moved) - 1, self.moved[-1])

    def _watch(self) -> None:
        seen, since = (-1, -1, -1), time.monotonic()
        while not self._over.wait(TICK):
            self.tell()
            now = (len(self.moved), sum(self.moved), self._onwards())
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self._flow.stall:
                self.stalled = True
                self.kill()
            if self.moved and not self.ended and (why := self._flow.unwanted(len(self.moved) - 1)):
                self.unwanted = why
                self.kill()

    def kill(self) -> None:
        """End all programs; `zfs receive -s` keeps what arrived."""
        self._ended.set()
        with self._lock:
            for process in self._processes:
                process.kill()


def _long(seconds: float) -> float:
    return seconds if seconds >= LONG else 0.0


def throttle(source: IO[bytes], sink: IO[bytes], pace: Pace, pump: Pump) -> None:
    """Move from now on what filters make of streams at this pace, in a thread that ends with either end. Closes both
    here: the thread has descriptors of its own, which nobody closes under it."""
    ends = os.dup(source.fileno()), os.dup(sink.fileno())
    source.close()
    sink.close()
    threading.Thread(target=_throttle, args=(*ends, pace, pump), daemon=True).start()


def _throttle(source: int, sink: int, pace: Pace, pump: Pump) -> None:
    try:
        with contextlib.suppress(BrokenPipeError):  # its exit status tells why
            while count := os.splice(source, sink, pace.piece()):
                if seconds := pace.wait(count):
                    pump.rest(seconds)
    finally:
        os.close(source)
        os.close(sink)
