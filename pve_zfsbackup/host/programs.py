"""Programs that are fed or read by this process while they run: what `zfs send` writes is cut into slices here,
and each slice is poured into `zstd | age`. Every exit status counts."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, Protocol

from pve_zfsbackup.errors import InterruptedRunError
from pve_zfsbackup.host.process_io import moved
from pve_zfsbackup.host.runner import GRACE, Completed, completed, failure, spawn
from pve_zfsbackup.host.said import STDERR_LIMIT, tail

PIPE_SIZE = 1 << 20  # the most an unprivileged pipe may have; fewer wake-ups per MiB


class Chain(Protocol):
    """Programs joined by pipes. `feed` is the first one's input, `output` what the last one writes."""

    feed: IO[bytes]
    output: IO[bytes]

    def finish(self) -> tuple[Completed, ...]:
        """Close what we hold of it, wait for the ends, and tell them in order."""
        ...

    def kill(self) -> None:
        """End all of it at once: told to, and killed if it does not heed; sftp takes its ssh along only when told."""
        ...

    def ended(self) -> bool:
        """Whether one of them is gone."""
        ...

    def moved(self) -> int | None:
        """Bytes that its programs have read and written so far: what does not change moves nothing. None: not known."""
        ...

    def said(self, start: int = 0) -> tuple[bytes, int]:
        """What the last one has written to standard error so far, from this byte on, at most the last `STDERR_LIMIT`
        bytes of it; and where that ends."""
        ...


class Programs(Protocol):
    """Starts chains. The real one is `ProcessPrograms`."""

    def opened(
        self, *argvs: Sequence[str], source: IO[bytes] | None = None, sink: IO[bytes] | None = None
    ) -> AbstractContextManager[Chain]:
        """A chain that never outlives the block. Fed by us unless there is a `source`, read by us unless there is a
        `sink`. Raises `InterruptedRunError` after `cancel`."""
        ...

    def cancel(self) -> None:
        """End all chains, and start no more: we are being interrupted."""
        ...


class _Process(Protocol):
    pid: int
    returncode: int

    def wait(self) -> int: ...

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class _Chain:
    """Pipes are ours before they are a program's, so that no end of one stays open where it must not."""

    def __init__(self, feed: IO[bytes], output: IO[bytes]) -> None:
        self.feed, self.output = feed, output
        self.argvs: list[tuple[str, ...]] = []
        self.waits: list[IO[bytes]] = []
        self.processes: list[_Process] = []

    def kill(self) -> None:
        _end(self.processes)

    def ended(self) -> bool:
        return any(process.poll() is not None for process in self.processes)

    def moved(self) -> int | None:
        counts = [moved(process.pid) for process in self.processes]
        return None if None in counts else sum(sum(pair) for pair in counts if pair)

    def said(self, start: int = 0) -> tuple[bytes, int]:
        errors = self.waits[-1].fileno()
        end = os.fstat(errors).st_size
        start = max(start, end - STDERR_LIMIT)
        # pread: the program writes at the place in the file that we share with it
        return os.pread(errors, max(0, end - start), start), end

    def finish(self) -> tuple[Completed, ...]:
        with contextlib.suppress(BrokenPipeError):
            self.feed.close()
        self.output.close()
        for process in self.processes:
            process.wait()
        return tuple(
            completed(argv, process.returncode, b"", tail(errors))
            for argv, process, errors in zip(self.argvs, self.processes, self.waits, strict=True)
        )


class ProcessPrograms:
    """Real processes of this host."""

    def __init__(self) -> None:
        self._alive: set[_Process] = set()
        self._cancelled = False
        self._lock = threading.Lock()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            _end(list(self._alive))

    @contextlib.contextmanager
    def opened(
        self, *argvs: Sequence[str], source: IO[bytes] | None = None, sink: IO[bytes] | None = None
    ) -> Iterator[Chain]:
        with contextlib.ExitStack() as stack:
            nothing = stack.enter_context(open(os.devnull, "r+b", buffering=0))
            before, feed = (source, nothing) if source is not None else _pipe(stack)
            last = sink
            output: IO[bytes] = nothing
            if last is None:
                output, last = _pipe(stack)
            chain = _Chain(feed, output)
            for number, argv in enumerate(argvs):
                final = number == len(argvs) - 1
                after, out = (nothing, last) if final else _pipe(stack)
                self._start(stack, chain, argv, (before, out))
                if before is not source:
                    before.close()
                if out is not sink:
                    out.close()
                before = after
            yield chain

    def _start(
        self, stack: contextlib.ExitStack, chain: _Chain, argv: Sequence[str], ends: tuple[IO[bytes], IO[bytes]]
    ) -> None:
        errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack is its context
        with self._lock:
            if self._cancelled:
                raise InterruptedRunError(f"interrupted before {argv[0]} began")
            process = stack.enter_context(spawn(argv, stdin=ends[0], stdout=ends[1], stderr=errors))
            self._alive.add(process)
        stack.callback(self._forget, process)
        chain.argvs.append(tuple(argv))
        chain.processes.append(process)
        chain.waits.append(errors)

    def _forget(self, process: _Process) -> None:
        with self._lock:
            self._alive.discard(process)


def _end(processes: Sequence[_Process]) -> None:
    def kill() -> None:
        for process in processes:
            process.kill()

    for process in processes:
        process.terminate()
    later = threading.Timer(GRACE, kill)
    later.daemon = True
    later.start()


def _pipe(stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    with contextlib.suppress(PermissionError):  # smaller ones (user limit reached) are slower, not wrong
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return _closing(stack, os.fdopen(read, "rb", buffering=0)), _closing(stack, os.fdopen(write, "wb", buffering=0))


def _closing(stack: contextlib.ExitStack, file: IO[bytes]) -> IO[bytes]:
    stack.callback(_close, file)
    return file


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        file.close()


def raise_first(ends: Sequence[Completed]) -> None:
    """Raise the failure of the program that failed by cause: one that is gone breaks the pipe of those before it."""
    failed = [done for done in ends if done.returncode]
    if failed:
        by_itself = [done for done in failed if done.returncode != -13 and "Broken pipe" not in done.stderr]
        raise failure((by_itself or failed)[0])


def write_all(file: IO[bytes], data: bytes | memoryview) -> None:
    """A raw file may take less than it is given."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def fill(file: IO[bytes], buffer: memoryview) -> memoryview:
    """The buffer full of what the raw file has next; the part that was filled, at the end. Big buffers are used again
    and again: to map a new one costs more than what is done with it."""
    size = 0
    while size < len(buffer) and (more := file.readinto(buffer[size:])):  # type: ignore[attr-defined]
        size += more
    return buffer[:size]


def tee(source: IO[bytes], pipe: IO[bytes], buffer: memoryview) -> memoryview:
    """What the raw file `source` has next into a pipe and into the buffer; the part of that which was filled, empty at
    the end. Where the source is a pipe, the other one gets the same pages of memory, not a copy of them (tee(2)).
    Raises `BrokenPipeError`."""
    while (size := _tee()(source.fileno(), pipe.fileno(), len(buffer), 0)) < 0:
        error = ctypes.get_errno()
        if error == errno.EINVAL:
            data = fill(source, buffer)
            write_all(pipe, data)
            return data
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))
    return fill(source, buffer[:size])


@functools.cache
def _tee() -> Callable[[int, int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).tee
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
    function.restype = ctypes.c_ssize_t
    return function


def pour_file(file: IO[bytes], pipe: IO[bytes]) -> None:
    """The rest of a raw file into a pipe, without a copy of its bytes in this process where its file system can."""
    try:
        while os.splice(file.fileno(), pipe.fileno(), PIPE_SIZE):
            pass
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        buffer = memoryview(bytearray(PIPE_SIZE))
        while data := fill(file, buffer):
            write_all(pipe, data)
