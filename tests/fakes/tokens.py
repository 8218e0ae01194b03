"""Resume tokens as OpenZFS makes them (dsl_dataset.c, nvpair.c of 2.3), and as a hostile target may make them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

Item = tuple[str, int | str | bool]


def token(items: Iterable[Item]) -> str:
    """A flag is True, a name text, everything else a number."""
    return wrapped(packed(items))


def packed(items: Iterable[Item]) -> bytes:
    """The list as it lies in memory of a little-endian machine."""
    return struct.pack("<4BiI", 0, 1, 0, 0, 0, 1) + b"".join(_pair(name, value) for name, value in items) + bytes(4)


def wrapped(data: bytes) -> str:
    body = zlib.compress(data, 6)
    words = struct.unpack(f"<{len(body) // 4}I", body[: len(body) // 4 * 4])
    return f"1-{sum(words):x}-{len(data):x}-{body.hex()}"


def _pair(name: str, value: int | str | bool) -> bytes:
    if value is True:
        kind, cell = 1, b""
    elif isinstance(value, str):
        kind, cell = 9, value.encode() + b"\0"
    else:
        kind, cell = 8, struct.pack("<Q", value)
    title = name.encode() + b"\0"
    title += bytes(-(16 + len(title)) % 8)
    cell += bytes(-len(cell) % 8)
    count = 0 if value is True else 1
    return struct.pack("<ihhii", 16 + len(title) + len(cell), len(name) + 1, 0, count, kind) + title + cell
