"""Sealing with real programs: interrupted, ended, and bounded in what is kept of their words."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest

from pve_zfsbackup.archive.names import NAMESPACE
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.programs import Chain, ProcessPrograms
from pve_zfsbackup.host.runner import ProcessRunner
from pve_zfsbackup.host.said import STDERR_LIMIT
from pve_zfsbackup.host.seal import Seal, _Following
from pve_zfsbackup.host.sftp import Server, Sftp

pytestmark = pytest.mark.processes


class SlowPrograms(ProcessPrograms):
    """Starting takes a while."""

    @contextlib.contextmanager
    def opened(
        self, *argvs: Sequence[str], source: IO[bytes] | None = None, sink: IO[bytes] | None = None
    ) -> Iterator[Chain]:
        time.sleep(1)
        with super().opened(*argvs, source=source, sink=sink) as chain:
            yield chain


def test_an_interrupt_while_the_programs_start_ends_them(tmp_path: Path) -> None:
    seal = Seal(runner=ProcessRunner(), programs=SlowPrograms(), namespace=NAMESPACE)
    identity = tmp_path / "identity"
    recipients = tmp_path / "recipients"
    recipients.write_text(seal.new_identity(identity) + "\n")
    alarms = iter([KeyboardInterrupt(), AssertionError("what was begun is waited for without end")])

    def alarm(*_: object) -> None:
        raise next(alarms)

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3, 10)
        with (
            pytest.raises(KeyboardInterrupt),
            ThreadPoolExecutor(1) as beside,
            seal.sealing(beside, [recipients], tmp_path / "out", compress=True),
        ):
            pytest.fail("it began")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class WatchedPrograms(ProcessPrograms):
    """Knows whether the feeder had let go of the pipe when it was closed."""

    fed: threading.Event
    let_go: bool

    @contextlib.contextmanager
    def opened(
        self, *argvs: Sequence[str], source: IO[bytes] | None = None, sink: IO[bytes] | None = None
    ) -> Iterator[Chain]:
        with super().opened(*argvs, source=source, sink=sink) as chain:
            try:
                yield chain
            finally:
                self.let_go = self.fed.is_set()


def test_a_spool_that_cannot_be_read_is_told_and_closes_no_pipe_that_is_fed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = WatchedPrograms()
    seal = Seal(runner=ProcessRunner(), programs=programs, namespace=NAMESPACE)
    programs.fed = threading.Event()
    recipients = tmp_path / "recipients"
    recipients.write_text(seal.new_identity(tmp_path / "identity") + "\n")

    def broken(written: _Following) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def feed() -> None:
        with (
            ThreadPoolExecutor(1) as beside,
            seal.sealing(beside, [recipients], tmp_path / "out", compress=True) as sealing,
        ):
            programs.fed = sealing.fed
            monkeypatch.setattr(_Following, "read_on", broken)
            while True:
                sealing.feed(bytes(1 << 20))

    with pytest.raises(OSError, match="Input/output error"):
        feed()
    assert programs.let_go


@pytest.mark.loopback
def test_a_client_that_is_ended_takes_its_ssh_along(tmp_path: Path) -> None:
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "id")), check=True)
    programs = Kept()
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as beside:
        place = tmp_path / "known_hosts"
        server = Server(
            host="127.0.0.1", user="box", port=silent.getsockname()[1], path="x", identity=tmp_path / "id",
            known_hosts=place,
        )  # fmt: skip
        asked = beside.submit(Sftp(name="box1", programs=programs, server=server).batch, ["-df"])
        ssh = _child(programs)
        programs.chains[0].kill()
        with contextlib.suppress(BackupError):
            asked.result(10)
        _gone(ssh)


def test_a_program_that_does_not_heed_is_killed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pve_zfsbackup.host.programs.GRACE", 0.3)
    text = "import signal,time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    for end in ("chain", "cancel"):
        programs = ProcessPrograms()
        with programs.opened((sys.executable, "-c", text)) as chain:
            assert chain.output.read(2) == b"on"
            begun = time.monotonic()
            chain.kill() if end == "chain" else programs.cancel()
            (done,) = chain.finish()
            assert done.returncode == -signal.SIGKILL
            assert time.monotonic() - begun < 5


def test_of_what_a_program_says_the_end_is_kept() -> None:
    text = "import os; os.write(2, b'x' * 10_000_000 + b'end'); print('on', flush=True); input()"
    with ProcessPrograms().opened((sys.executable, "-c", text)) as chain:
        assert chain.output.read(2) == b"on"
        said, place = chain.said()
        assert (len(said), said[-3:], place) == (STDERR_LIMIT, b"end", 10_000_003)
        assert chain.said(place) == (b"", place)
        assert chain.said(place - 3) == (b"end", place)


class Kept(ProcessPrograms):
    """Keeps every chain it opened."""

    def __init__(self) -> None:
        super().__init__()
        self.chains: list[Any] = []

    @contextlib.contextmanager
    def opened(
        self, *argvs: Sequence[str], source: IO[bytes] | None = None, sink: IO[bytes] | None = None
    ) -> Iterator[Chain]:
        with super().opened(*argvs, source=source, sink=sink) as chain:
            self.chains.append(chain)
            yield chain


def _child(programs: Kept) -> int:
    """The ssh of the first client."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for chain in programs.chains:
            argv = ("pgrep", "-P", str(chain.processes[0].pid), "-x", "ssh")
            found = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False).stdout.split()
            if found:
                return int(found[0])
        time.sleep(0.05)
    raise AssertionError("no ssh was started")


def _gone(pid: int) -> None:
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")
