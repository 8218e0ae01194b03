"""What programs said, as far as it is kept: they write into files, so that none waits for a reader."""

from __future__ import annotations

import os
from typing import IO, Final

STDERR_LIMIT: Final = 64 << 10
OUTPUT_LIMIT: Final = 16 << 20  # of what streams were poured into: it lists what arrived


def whole(file: IO[bytes]) -> bytes:
    """What a program wrote to a file; nothing where that is too much: the end of a list says what is not true."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return file.read() if size <= OUTPUT_LIMIT else b""


def tail(file: IO[bytes]) -> bytes:
    """The end of what a program wrote to a file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - STDERR_LIMIT))
    return file.read()
