"""Names in a box: opaque, of characters no server and no shell minds."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Final

WRITER: Final = re.compile(r"w-[0-9a-f]{16}\Z")
OPAQUE: Final = re.compile(r"[0-9a-f]{32}\Z")
SEGMENT: Final = re.compile(r"seg-([0-9]{6})-([0-9a-f]{64})\Z")
TEMPORARY: Final = re.compile(r"tmp-[0-9a-f]{16}\Z")
DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")

OUTER: Final = "manifest.json"
OUTER_SIGNATURE: Final = "manifest.json.sig"
INNER: Final = "manifest.age"
INNER_SIGNATURE: Final = "manifest.age.sig"
README: Final = "README.txt"
SCRIPT: Final = "restore.sh"
NAMESPACE: Final = "pve-zfsbackup-archive"  # of the signatures: no other signature of the key is taken for one


def opaque() -> str:
    """A name that tells nothing."""
    return secrets.token_hex(16)


def segment_name(number: int, digest: str) -> str:
    """`seg-000001-<sha256 of the stored bytes>`."""
    return f"seg-{number:06d}-{digest}"


def writer_name(public_key: str) -> str:
    """Directory and principal of the node with this public key (`ssh-ed25519 AAAA…`, the comment does not count)."""
    words = public_key.split()
    return f"w-{hashlib.sha256(' '.join(words[:2]).encode()).hexdigest()[:16]}"
