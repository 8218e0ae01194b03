"""`pour_file`: a file into a pipe, also where the kernel cannot move its pages."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from pve_zfsbackup.host.programs import ProcessPrograms, pour_file

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
