"""What streams pass through on both sides of the wire."""

from __future__ import annotations

from typing import Final

LEVEL: Final = "-3"  # zstd; faster than a network that is worth compressing for
BLOCK: Final = "128k"  # of mbuffer

Words = tuple[str, ...]


def filters(here: int, there: int, *, compress: bool) -> tuple[list[Words], list[Words]]:
    """The programs before and behind the wire, with bytes of a buffer on either side (0 for none). Buffers lie where
    streams are as ZFS makes and takes them: it is ZFS that is slow and fast by turns."""
    return (
        [*_buffer(here), *([("zstd", "-qc", LEVEL)] if compress else [])],
        [*([("zstd", "-dqc")] if compress else []), *_buffer(there)],
    )


def _buffer(size: int) -> list[Words]:
    return [("mbuffer", "-q", "-s", BLOCK, "-m", f"{max(1, size >> 20)}M")] if size else []
