"""What stands in a resume token, read here and not from what `zfs send -nvP -t` prints of it.

The token comes from the target, and the target may be hostile: a name with a line break in it would print as further
lines, and one of them could say that a stream is raw which is not. So anything but exactly what OpenZFS makes is of no
use (`get_receive_resume_token_impl` in dsl_dataset.c, the native packing of nvpair.c).

`1-<sum>-<length>-<hex>`: zlib data, the first word of its Fletcher-4 sum, and the length of what is packed in it. That
is a list of names and values in the byte order of the machine that made it; big-endian ones are not understood.
"""

from __future__ import annotations

import re
import struct
import zlib

from pve_zfsbackup.model import Guid, ResumeToken

LONGEST = 4096  # bytes, packed or not: there is one name of 255 in it, and nine numbers or flags
_TOKEN = re.compile(r"1-([0-9a-f]{1,16})-([0-9a-f]{1,8})-((?:[0-9a-f]{2})+)", re.ASCII)
_SNAPSHOT = re.compile(r"[\w.:%/ -]+@[\w.:% -]+", re.ASCII)
_HEAD = bytes((0, 1, 0, 0)) + struct.pack("<iI", 0, 1)  # native, little-endian; version 0, names are unique
_PAIR = struct.Struct("<ihhii")  # size of the pair, length of the name, nothing, number of values, type
_BOOLEAN, _UINT64, _STRING = 1, 8, 9
_KEYS = {
    **dict.fromkeys(("fromguid", "object", "offset", "bytes", "toguid"), _UINT64),
    **dict.fromkeys(("largeblockok", "embedok", "compressok", "rawok"), _BOOLEAN),
    "toname": _STRING,
}
_NEEDED = {"object", "offset", "bytes", "toguid", "toname"}  # or libzfs calls it corrupt


def read_token(token: str) -> ResumeToken:
    """The token with what it would send; without guids where it is not one that OpenZFS made for a stream of ours."""
    try:
        found = _pairs(_unpacked(token))
    except (ValueError, struct.error, zlib.error):
        return ResumeToken(token=token)
    to, start = found["toguid"], found.get("fromguid", 0)
    return ResumeToken(
        token=token,
        to_guid=Guid(str(to)),
        from_guid=Guid(str(start)) if start else Guid(""),
        raw="rawok" in found,
        received=int(found["bytes"]),
        snapshot=str(found["toname"]),
    )


def _unpacked(token: str) -> bytes:
    match = _TOKEN.fullmatch(token[: 3 * LONGEST])
    if match is None:
        raise ValueError("not a token")
    packed = bytes.fromhex(match[3])
    words = struct.unpack(f"<{len(packed) // 4}I", packed[: len(packed) // 4 * 4])
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(packed, LONGEST)
    if sum(words) != int(match[1], 16) or len(data) != int(match[2], 16) or not unpacker.eof or unpacker.unused_data:
        raise ValueError("damaged")
    return data


def _pairs(data: bytes) -> dict[str, int | str]:
    """Names and values. ValueError where there is more, or less, or anything twice."""
    if not data.startswith(_HEAD) or not data.endswith(bytes(4)):
        raise ValueError("not a list")
    found: dict[str, int | str] = {}
    at = len(_HEAD)
    while at < len(data) - 4:
        size, length, _, count, kind = _PAIR.unpack_from(data, at)
        start = _PAIR.size + _aligned(length, _PAIR.size)
        if not start <= size <= len(data) - 4 - at or length < 2:
            raise ValueError("sizes")
        name = _text(data[at + _PAIR.size : at + _PAIR.size + length])
        if _KEYS.get(name) != kind or name in found or count != (0 if kind == _BOOLEAN else 1):
            raise ValueError(f"unexpected {name[:20]!r}")
        found[name] = _value(kind, data[at + start : at + size])
        at += size
    if at != len(data) - 4 or not found.keys() >= _NEEDED or not found["toguid"]:
        raise ValueError("incomplete")
    return found


def _aligned(length: int, before: int) -> int:
    """To what length it is filled up, so that what comes after is at a multiple of eight."""
    return (before + length + 7) // 8 * 8 - before


def _value(kind: int, cell: bytes) -> int | str:
    if kind == _BOOLEAN:
        if cell:
            raise ValueError("a flag with a value")
        return 1
    if kind == _UINT64:
        (number,) = struct.unpack("<Q", cell)
        return int(number)
    text = _text(cell[: cell.index(0) + 1])
    if len(cell) != _aligned(len(text) + 1, 0) or not _SNAPSHOT.fullmatch(text) or len(text) > 255:
        raise ValueError("a name that ZFS does not have")
    return text


def _text(cell: bytes) -> str:
    """What ends with the one zero in it."""
    if cell.find(0) != len(cell) - 1:
        raise ValueError("not a string")
    return cell[:-1].decode("ascii")
