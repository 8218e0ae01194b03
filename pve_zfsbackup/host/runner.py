"""The only place that starts processes.

argv tuples, never a shell; a fixed environment, because stderr is parsed; every exit status counts. A stream is
moved between two processes by `splice(2)`, so its bytes are counted without passing through Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from pve_zfsbackup.errors import CommandError, CommandTimeoutError

ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
PIPE_SIZE = 1 << 20  # the most an unprivileged pipe may have; fewer wake-ups per MiB
STDERR_LIMIT = 64 << 10
DEFAULT_TIMEOUT = 300.0

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a program left behind. `stdout` and `stderr` are decoded with replacement: names are hostile."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Runner(Protocol):
    """Starts programs. The real one is `ProcessRunner`; tests bring an in-memory one."""

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        check: bool = True,
    ) -> Completed:
        """Run to the end. Raises `CommandTimeoutError`, and with `check` `CommandError` when it fails."""
        ...

    def pipe(
        self,
        producer: Sequence[str],
        consumer: Sequence[str],
        *,
        progress: Progress,
        stall: float,
    ) -> tuple[Completed, Completed, int]:
        """Join two programs; returns how both ended and the bytes moved.

        Raises `CommandTimeoutError` when no byte moved, and nothing ended, for `stall` seconds.
        """
        ...

    def cancel(self) -> None:
        """End the streams under way in other threads, and start no more: we are being interrupted."""
        ...


class ProcessRunner:
    """Runs real processes of this host."""

    def __init__(self) -> None:
        self._pumps: set[_Pump] = set()
        self._cancelled = False
        self._lock = threading.Lock()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            for pump in self._pumps:
                pump.kill()

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        check: bool = True,
    ) -> Completed:
        with _spawn(argv, stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL) as process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except subprocess.TimeoutExpired:
                raise CommandTimeoutError(
                    f"{_label(argv)}: no end after {timeout:.0f} s", hint="the work may or may not be done"
                ) from None
        done = _completed(argv, process.returncode, out, err)
        if check and done.returncode:
            raise failure(done)
        return done

    def pipe(
        self,
        producer: Sequence[str],
        consumer: Sequence[str],
        *,
        progress: Progress,
        stall: float,
    ) -> tuple[Completed, Completed, int]:
        with contextlib.ExitStack() as stack:
            errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
            output = stack.enter_context(tempfile.TemporaryFile())
            first = stack.enter_context(_spawn(producer, stdin=subprocess.DEVNULL, stderr=errors[0]))
            second = stack.enter_context(_spawn(consumer, stdin=subprocess.PIPE, stdout=output, stderr=errors[1]))
            pump = _Pump(first, second, progress, stall)
            with self._running(pump):
                pump.run()
            ends = [
                _completed(producer, first.returncode, b"", _tail(errors[0])),
                _completed(consumer, second.returncode, _tail(output), _tail(errors[1])),
            ]
        if pump.stalled:
            raise CommandTimeoutError(
                f"{_label(producer)} | {_label(consumer)}: no byte moved for {stall:.0f} s",
                hint="the receive is resumable; the next run goes on from here",
                stderr=ends[1].stderr or ends[0].stderr,
            )
        return ends[0], ends[1], pump.moved

    @contextlib.contextmanager
    def _running(self, pump: _Pump) -> Iterator[None]:
        with self._lock:
            if self._cancelled:
                raise CommandError("interrupted before the stream began")
            self._pumps.add(pump)
        try:
            yield
        finally:
            with self._lock:
                self._pumps.discard(pump)


class _Pump:
    """Moves bytes from one process to the other, reports them each second, and ends both when nothing moves."""

    def __init__(
        self, first: subprocess.Popen[bytes], second: subprocess.Popen[bytes], progress: Progress, stall: float
    ) -> None:
        self.first, self.second, self.progress, self.stall = first, second, progress, stall
        self.moved = 0
        self.stalled = False
        self._done = threading.Event()

    def run(self) -> None:
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            self._splice()
            self.first.wait()
            self.second.wait()
        finally:
            self._done.set()
            watcher.join()
        self.progress(self.moved)

    def _splice(self) -> None:
        assert self.first.stdout is not None
        assert self.second.stdin is not None
        source, sink = self.first.stdout.fileno(), self.second.stdin.fileno()
        for end in (source, sink):
            # Smaller pipes (user limit reached) are slower, not wrong.
            with contextlib.suppress(PermissionError):
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        try:
            while count := os.splice(source, sink, PIPE_SIZE):
                self.moved += count
        except BrokenPipeError:
            # The consumer is gone; its exit status tells why. The producer must not wait for a reader.
            self.first.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.second.stdin.close()

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        while not self._done.wait(1.0):
            self.progress(self.moved)
            if self.moved != seen:
                seen, since = self.moved, time.monotonic()
            elif time.monotonic() - since > self.stall:
                self.stalled = True
                self.kill()

    def kill(self) -> None:
        """End both programs; `zfs receive -s` keeps what arrived."""
        for process in (self.first, self.second):
            process.kill()


@contextlib.contextmanager
def _spawn(
    argv: Sequence[str],
    *,
    stdin: int,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that never outlives the block: whatever leaves it, the child is ended and waited for."""
    try:
        process = subprocess.Popen(
            tuple(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=ENVIRONMENT, cwd="/", close_fds=True
        )
    except FileNotFoundError:
        raise CommandError(f"{argv[0]}: not installed", hint=f"install the package that has {argv[0]}") from None
    except OSError as error:
        raise CommandError(f"{_label(argv)}: cannot be started: {error.strerror}") from None
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def failure(done: Completed) -> CommandError:
    """The error for a program that failed, not yet classified."""
    # zfs takes some missing datasets for wrong arguments, and after a cut stream it explains how to resume by hand.
    told = done.stderr.partition("\nusage:")[0].partition("\nPartially received snapshot is saved")[0]
    lines = [line for line in told.strip().splitlines() if line.strip()]
    text = "; ".join(lines[-3:]) or f"exit status {done.returncode}, no message"
    return CommandError(f"{_label(done.argv)}: {text}", stderr=done.stderr, returncode=done.returncode)


def _label(argv: Sequence[str]) -> str:
    """Program and verb. Not the whole argv: a property value may be long, and names belong in the message."""
    return " ".join(argv[:2]) if argv[0] in {"zfs", "zpool"} else argv[0]


def _completed(argv: Sequence[str], returncode: int, out: bytes, err: bytes) -> Completed:
    return Completed(
        argv=tuple(argv),
        returncode=returncode,
        stdout=out.decode("utf-8", "replace"),
        stderr=err[-STDERR_LIMIT:].decode("utf-8", "replace"),
    )


def _tail(file: IO[bytes]) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - STDERR_LIMIT))
    return file.read()
