"""A canary: a small file planted in a guest, which a later drill must find in the guest's point as it was written."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pve_zfsbackup.model.names import Vmid, printable

PATH: Final = "/var/lib/pve-zfsbackup-canary"  # where a program keeps what it knows (file-hierarchy(7))
SETTLED: Final = 120  # seconds until a guest that nobody freezes has written to its disk what it was told
LIMIT: Final = 4096  # bytes that are looked at
_TIME: Final = "%Y%m%dT%H%M%SZ"
_FORM: Final = re.compile(
    r"pve-zfsbackup canary 1\nguest (\d{1,9})( [^\n]{0,200})?\nplanted (\d{8}T\d{6}Z)\nnonce [0-9a-f]{32}\n", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """What a canary says of itself: `planted` in seconds since the epoch."""

    vmid: Vmid
    planted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """What is remembered of one: when it was planted, and the SHA-256 of its text. `sure`: it was seen in its guest
    then, and must be there; else it may be there, or the one before it."""

    at: int
    digest: str
    sure: bool = True


def canary_text(vmid: Vmid, name: str, at: int, nonce: str) -> str:
    """The file. `nonce` is 32 hexadecimal digits: nothing that lies there already is the same."""
    shown = re.sub(r"[^ -~]", "?", printable(name))[:200]
    guest = f"{vmid} {shown}" if shown else str(vmid)
    return f"pve-zfsbackup canary 1\nguest {guest}\nplanted {stamp(at)}\nnonce {nonce}\n"


def parse_canary(text: str) -> Canary | None:
    """None for what `canary_text` did not make: it is somebody else's, or damaged."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    try:
        planted = datetime.strptime(match[3], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return Canary(vmid=Vmid(int(match[1])), planted=int(planted.timestamp()))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def stamp(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime(_TIME)
