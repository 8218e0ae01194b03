"""Proxmox's property strings: `local-zfs:vm-100-disk-0,backup=0,size=32G` (pve-facts §b)."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:iB)?\Z")
_FACTOR: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_properties(text: str, *, default: str, alias: str = "") -> dict[str, str]:
    """Split at `,` into key and value; the one part without `=` belongs to the key `default`, for which `alias`
    is another word. Raises ValueError where Proxmox would not read it either."""
    values: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        if not equals:
            key, value = default, part
        elif not key or not value:
            raise ValueError(f"{part!r} is not key=value")
        if key == alias:
            key = default
        if key in values:
            raise ValueError(f"{key!r} is given twice")
        values[key] = value
    return values


def parse_bool(text: str) -> bool | None:
    """Proxmox's words for yes and no; None for anything else."""
    word = text.lower()
    if word in {"1", "on", "yes", "true"}:
        return True
    return False if word in {"0", "off", "no", "false"} else None


def parse_size(text: str) -> int:
    """Bytes of `32G`; 0 when not understood: Proxmox keeps it for people only."""
    match = _SIZE.match(text)
    return int(float(match[1]) * _FACTOR[match[2]]) if match else 0
