"""What is wrong with a key somebody brings, where keys lie, and what changing one means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pve_zfsbackup.model import Dataset
from pve_zfsbackup.model.keys import PASSPHRASE_LENGTHS, RAW_BYTES

_HEX: Final = re.compile(rb"[0-9a-fA-F]{64}")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]{16,}={0,2}")
# No component `.` or `..`, none that begins with `-`: these become paths and arguments (zfs(8) allows the rest).
_DATASET: Final = re.compile(r"(?:(?!\.{1,2}(?:/|\Z)|-)[A-Za-z0-9_.: -]+/)*(?!\.{1,2}\Z|-)[A-Za-z0-9_.: -]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadKey:
    """Why ZFS would not take it, and what to do."""

    reason: str
    remedy: str


def judge_raw_key(data: bytes, path: str = "FILE") -> BadKey | None:
    """None for a key that `keyformat=raw` takes: 32 bytes, no more, no less, that are not obviously text.

    The most common mistakes get their own answer, above all `openssl rand -base64 64 > FILE`, which many guides have.
    """
    if len(data) == RAW_BYTES:
        if len(set(data)) < 8:
            return BadKey(reason="its 32 bytes are nearly all the same: that is no random key", remedy=_NEW)
        return None
    text = b"".join(data.split())
    if not data:
        return BadKey(reason="it is empty", remedy=_NEW)
    if len(data) == RAW_BYTES + 1 and data.endswith(b"\n"):
        return BadKey(
            reason="it has 33 bytes, a raw key has 32: an editor or `echo` put a line end behind it",
            remedy=f"if the 32 bytes before are the key: head -c 32 {path} > NEW",
        )
    if _HEX.fullmatch(text):
        return BadKey(
            reason=f"it has 64 hexadecimal digits ({len(data)} bytes), a raw key has 32 bytes: ZFS knows this as "
            "keyformat=hex",
            remedy=f"if this is the key: tr -d '[:space:]' < {path} | tr a-f A-F | basenc --base16 -d > NEW",
        )
    if _BASE64.fullmatch(text) and len(text) % 4 == 0:
        size = len(text) * 3 // 4 - text.count(b"=")
        told = f"it is base64 text of {size} bytes ({len(data)} bytes as it lies there), a raw key has 32 bytes"
        if size == RAW_BYTES:
            return BadKey(reason=told, remedy=f"if this is the key: base64 -d {path} > NEW")
        return BadKey(
            reason=f"{told}: ZFS says 'Raw key too long' (`openssl rand -base64 64` makes such a file)",
            remedy=f"{_NEW} (by hand: dd if=/dev/urandom of=NEW bs=32 count=1)",
        )
    return BadKey(reason=f"it has {len(data)} bytes, a raw key has exactly 32", remedy=_NEW)


_NEW: Final = "let `key create` make the key: leave out --key-file, or name a file that does not exist"


def judge_passphrase(text: str) -> str:
    """Why ZFS would not take it; empty when it would."""
    if "\n" in text or "\0" in text:
        return "a passphrase is one line"
    if len(text.encode()) not in PASSPHRASE_LENGTHS:
        return f"a passphrase has 8 to 512 bytes, this one {len(text.encode())}"
    return ""


def judge_dataset(name: str) -> str:
    """Why a name is none of a dataset that can be made; empty when it is one."""
    if not _DATASET.fullmatch(name):
        return f"{name!r} is no name of a dataset (POOL/NAME)"
    return "" if "/" in name else f"{name} is a pool: name a dataset in it, such as {name}/crypt"


def key_name(dataset: Dataset, now: datetime, prefix: str = "") -> str:
    """Path of a key below the directory of keys: `rpool/crypt/20261126T111500Z.key`. Every key has its own name, so
    that none is ever written over."""
    return f"{dataset}/{prefix}{now:%Y%m%dT%H%M%SZ}.key"


def consequences(dataset: Dataset, kept: str, targets: Sequence[str], boxes: Sequence[str]) -> tuple[str, ...]:
    """What a changed key means for everything that was sent before, for people (zfs-change-key(8), OpenZFS
    dsl_crypto_recv_raw_key)."""
    old = kept or "the old passphrase, which is nowhere but with you"
    return (
        f"put the new key into the safe now: pve-zfsbackup key escrow {dataset}",
        "snapshots on this node open with the new key, those made before as well: ZFS wrapped the same master key anew",
        f"replicas ({', '.join(targets) or 'none configured'}): the next raw increment of a disk brings the new key "
        "along; until then, and for disks that are not sent any more, its replica opens with the old one",
        f"archives ({', '.join(boxes) or 'none configured'}): restored to a point made before now, a disk opens with "
        "the old key, always",
        f"so keep until the last of those is gone: {old}",
        "who knew the old key and has a stream, replica or archive made before now can still read it: against that "
        "only a new encrypted dataset helps (`key create`), with everything sent in full again",
    )
