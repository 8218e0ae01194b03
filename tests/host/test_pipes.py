"""`pour_file` and `tee`: into a pipe without a copy, also where the kernel cannot do that."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pve_zfsbackup.host.programs import ProcessPrograms, pour_file, tee

pytestmark = pytest.mark.processes

SIZE = (3 << 20) + 17


def poured(place: Path, content: bytes) -> bytes:
    (place / "plain").write_bytes(content)
    with (
        open(place / "plain", "rb", buffering=0) as file,
        open(place / "out", "wb") as out,
        ProcessPrograms().opened(("cat",), sink=out) as chain,
    ):
        pour_file(file, chain.feed)
        (done,) = chain.finish()
    assert done.returncode == 0
    return (place / "out").read_bytes()


@pytest.mark.parametrize("size", [0, 1, SIZE])
def test_all_of_it_arrives(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    assert poured(tmp_path, content) == content


def test_it_is_copied_where_the_file_system_cannot_splice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "splice", refuse)
    content = os.urandom(SIZE)
    assert poured(tmp_path, content) == content


def test_a_reader_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(bytes(SIZE))
    reader = subprocess.Popen(("true",), stdin=subprocess.PIPE, bufsize=0)
    assert reader.stdin is not None
    reader.wait()
    with open(tmp_path / "plain", "rb", buffering=0) as file, reader, pytest.raises(BrokenPipeError):
        pour_file(file, reader.stdin)


def teed(place: Path, argv: tuple[str, ...], source: str = "") -> tuple[bytes, bytes]:
    """What was read, and what arrived, of what a program writes; or of a file."""
    read = b""
    buffer = memoryview(bytearray(1 << 20))
    with (
        ProcessPrograms().opened(argv) as chain,
        open(place / "out", "wb") as out,
        ProcessPrograms().opened(("cat",), sink=out) as taking,
    ):
        with open(source or os.devnull, "rb", buffering=0) as file:
            while data := tee(file if source else chain.output, taking.feed, buffer):
                read += data
        assert all(done.returncode == 0 for end in (chain, taking) for done in end.finish())
    return read, (place / "out").read_bytes()


@pytest.mark.parametrize("size", [0, 1, SIZE])
def test_what_is_read_of_a_pipe_goes_on_as_well(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "plain").write_bytes(content)
    assert teed(tmp_path, ("cat", str(tmp_path / "plain"))) == (content, content)


def test_no_more_is_passed_on_than_was_read(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"0123456789")
    with open(read, "rb", buffering=0) as source, open(write, "wb", buffering=0):
        with (
            open(tmp_path / "out", "wb") as out,
            ProcessPrograms().opened(("cat",), sink=out) as taking,
        ):
            assert bytes(tee(source, taking.feed, memoryview(bytearray(4)))) == b"0123"
            taking.finish()
        assert (tmp_path / "out").read_bytes() == b"0123"
        assert source.read(10) == b"456789"


def test_a_file_is_copied(tmp_path: Path) -> None:
    content = os.urandom(SIZE)
    (tmp_path / "plain").write_bytes(content)
    assert teed(tmp_path, ("true",), str(tmp_path / "plain")) == (content, content)


def test_a_signal_is_no_end_of_the_stream(tmp_path: Path) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    main = threading.main_thread().ident
    assert main is not None

    def disturb() -> None:
        for _ in range(5):
            time.sleep(0.05)
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        told = teed(tmp_path, ("sh", "-c", "sleep 0.5; echo late"))
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert told == (b"late\n", b"late\n")
    assert heard


def passed_on(source: str, to: str) -> None:
    with ProcessPrograms().opened((source,)) as chain, ProcessPrograms().opened((to,)) as taking:
        while tee(chain.output, taking.feed, memoryview(bytearray(1 << 20))):
            continue


def test_who_is_fed_by_a_pipe_and_gone_is_told() -> None:
    with pytest.raises(BrokenPipeError):
        passed_on("yes", "true")
