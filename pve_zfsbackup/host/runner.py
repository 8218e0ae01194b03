"""The only place that starts processes.

argv tuples, never a shell; a fixed environment, because stderr is parsed; every exit status counts. Streams are
moved between processes by `splice(2)` (pump.py), so their bytes are counted without passing through Python.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Protocol

from pve_zfsbackup.errors import (
    CommandError,
    CommandTimeoutError,
    GivenUpError,
    InterruptedRunError,
    NotInstalledError,
)
from pve_zfsbackup.host.process_io import written
from pve_zfsbackup.host.pump import Flow, Pump, throttle
from pve_zfsbackup.host.said import STDERR_LIMIT, tail, whole

ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
DEFAULT_TIMEOUT = 300.0
GRACE = 5.0  # seconds for a program that was told to end
LOOK = 1.0  # seconds between looks whether we were interrupted
_Process = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a program left behind. `stdout` and `stderr` are decoded with replacement: names are hostile."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Piped:
    """How streams and what took them ended. `sent` has the producers that were started, `moved` the bytes of each;
    `lost` are the seconds, of those they took, that a buffer between both ends would have saved at most."""

    sent: tuple[Completed, ...]
    moved: tuple[int, ...]
    received: tuple[Completed, ...]
    lost: float = 0.0
    seconds: float = 0.0


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

    def run_each(self, argvs: Sequence[Sequence[str]], *, timeout: float = DEFAULT_TIMEOUT) -> list[Completed]:
        """Run side by side, all to the end; how each ended. Raises `CommandTimeoutError`; none outlives the call."""
        ...

    def pipe(self, producers: Iterable[Sequence[str]], consumers: Sequence[Sequence[str]], flow: Flow) -> Piped:
        """Pour the output of one producer after another into the first consumer, whose output goes to the next.

        `producers` may be a generator: it is asked for the next one when the last has ended. After a producer that
        failed, or when the consumers are gone, no other is started. Raises `CommandTimeoutError` when no byte moved,
        and nothing ended, for `flow.stall` seconds, `GivenUpError` when `flow.unwanted` told so, `InterruptedRunError`
        after `cancel`.
        """
        ...

    def cancel(self) -> None:
        """We are being interrupted: end the streams under way in other threads and start no more, and give up other
        programs there that do not end soon. The thread that signals interrupt goes on: it thaws."""
        ...


class ProcessRunner:
    """Runs real processes of this host."""

    def __init__(self) -> None:
        self._pumps: set[Pump] = set()
        self._cancelled = False
        self._until = float("inf")  # what other threads wait for
        self._lock = threading.Lock()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled, self._until = True, time.monotonic() + GRACE
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
        with spawn(argv, stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL) as process:
            done = self._heard(argv, process, input, timeout)
        if check and done.returncode:
            raise failure(done)
        return done

    def run_each(self, argvs: Sequence[Sequence[str]], *, timeout: float = DEFAULT_TIMEOUT) -> list[Completed]:
        with contextlib.ExitStack() as stack:  # no threads: a signal that is raised here ends them all
            processes = [stack.enter_context(spawn(argv, stdin=subprocess.DEVNULL)) for argv in argvs]
            return [self._heard(argv, process, None, timeout) for argv, process in zip(argvs, processes, strict=True)]

    def _heard(self, argv: Sequence[str], process: _Process, input: bytes | None, timeout: float) -> Completed:
        """How a program ended and what it said. An input is small, and no second call would go on writing it."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, err = process.communicate(input, timeout=left if input else min(left, LOOK))
                return completed(argv, process.returncode, out, err)
            if time.monotonic() > self._until and threading.current_thread() is not threading.main_thread():
                raise InterruptedRunError(f"{_label(argv)}: no end after the run was interrupted")
        told = f"{_label(argv)}: no end after {timeout:.0f} s"
        raise CommandTimeoutError(told, hint="the work may or may not be done")

    def pipe(self, producers: Iterable[Sequence[str]], consumers: Sequence[Sequence[str]], flow: Flow) -> Piped:
        sent: list[Completed] = []
        if self._cancelled:
            raise InterruptedRunError("interrupted before the stream began")
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(len(consumers) + 1)]
            paced = flow.pace if len(consumers) > 1 else None  # then what the filters make of it has that pace
            chain, way = _chain(stack, consumers, files, apart=paced is not None)
            assert chain[0].stdin is not None
            pump = Pump(chain[0].stdin, replace(flow, pace=None) if paced else flow, lambda: written(chain[:-1]))
            with self._running(pump), pump.killing(*chain), pump:
                if paced and way:
                    throttle(*way, paced, pump)
                for argv in producers:
                    done = _poured(argv, pump)
                    sent.append(done)
                    if done.returncode or pump.broken or pump.ended:
                        break
                with contextlib.suppress(BrokenPipeError):
                    chain[0].stdin.close()
                for process in chain:
                    process.wait()
            output, *errors = (whole(files[0]), *(tail(file) for file in files[1:]))
            ends = [
                completed(argv, process.returncode, output if process is chain[-1] else b"", text)
                for argv, process, text in zip(consumers, chain, errors, strict=True)
            ]
        self._judge(pump, flow, (*sent, *ends))
        moved, lost = tuple(pump.moved), min(pump.hungry, pump.held)
        return Piped(sent=tuple(sent), moved=moved, received=tuple(ends), lost=lost, seconds=pump.seconds)

    def _judge(self, pump: Pump, flow: Flow, ends: Sequence[Completed]) -> None:
        """Raise when it did not end by itself."""
        if pump.stalled:
            raise CommandTimeoutError(
                f"{' | '.join(_label(end.argv) for end in ends[-2:])}: no byte moved for {flow.stall:.0f} s",
                hint="the receive is resumable; the next run goes on from here",
                stderr=next((end.stderr for end in reversed(ends) if end.stderr), ""),
            )
        if pump.unwanted:
            raise GivenUpError(f"given up: {pump.unwanted}", hint="what arrived is kept; nothing is tried again")
        if pump.ended:
            raise InterruptedRunError("interrupted while streams were under way")

    @contextlib.contextmanager
    def _running(self, pump: Pump) -> Iterator[None]:
        with self._lock:
            if self._cancelled:
                raise InterruptedRunError("interrupted before the stream began")
            self._pumps.add(pump)
        try:
            yield
        finally:
            with self._lock:
                self._pumps.discard(pump)


def _chain(
    stack: contextlib.ExitStack, consumers: Sequence[Sequence[str]], files: Sequence[IO[bytes]], *, apart: bool
) -> tuple[list[_Process], tuple[IO[bytes], IO[bytes]] | None]:
    """The consumers, started and joined; `files` take the output of the last and what each says. `apart`: the last is
    not joined, and the way to it returned."""
    chain: list[_Process] = []
    for number, argv in enumerate(consumers):
        before = chain[-1].stdout if chain else None
        last = number == len(consumers) - 1
        process = stack.enter_context(
            spawn(
                argv,
                stdin=subprocess.PIPE if last and apart else before or subprocess.PIPE,
                stdout=files[0] if last else subprocess.PIPE,
                stderr=files[number + 1],
            )
        )
        chain.append(process)
        if before is not None and last and apart:
            assert process.stdin is not None
            return chain, (before, process.stdin)
        if before is not None:
            before.close()  # the consumer alone has it now: one that is gone breaks the pipe
    return chain, None


def _poured(argv: Sequence[str], pump: Pump) -> Completed:
    with (
        tempfile.TemporaryFile() as errors,
        spawn(argv, stdin=subprocess.DEVNULL, stderr=errors) as process,
        pump.killing(process),
    ):
        assert process.stdout is not None
        pump.pour(process.stdout)
        status = _ended(process, GRACE) if pump.ended else process.wait()
        pump.tell()
        return completed(argv, -signal.SIGKILL if status is None else status, b"", tail(errors))


@contextlib.contextmanager
def spawn(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> Iterator[_Process]:
    """A child that never outlives the block, if a kill can end it: whatever leaves it, the child is waited for."""
    try:
        process = subprocess.Popen(
            tuple(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=ENVIRONMENT, cwd="/", close_fds=True
        )
    except FileNotFoundError:
        raise NotInstalledError(f"{argv[0]}: not installed", hint=f"install the package that has {argv[0]}") from None
    except OSError as error:
        raise CommandError(f"{_label(argv)}: cannot be started: {error.strerror}") from None
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            if _ended(process, GRACE) is None:
                process.kill()
                _ended(process, GRACE)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _ended(process: _Process, seconds: float) -> int | None:
    """The exit status, waited for that long. None: it goes on; on a suspended pool not even a kill ends it (openzfs
    #6138), and it is left to itself."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


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


def completed(argv: Sequence[str], returncode: int, out: bytes, err: bytes) -> Completed:
    """How a program ended; of what it said only the end is kept."""
    return Completed(
        argv=tuple(argv),
        returncode=returncode,
        stdout=out.decode("utf-8", "replace"),
        stderr=err[-STDERR_LIMIT:].decode("utf-8", "replace"),
    )
