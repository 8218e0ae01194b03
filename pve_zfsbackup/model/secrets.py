"""Secrets this process has read, so that nothing it writes down has one of them in it, whatever message it came in."""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import urlsplit

HIDDEN: Final = "***"
_SHORTEST: Final = 8  # less would hide ordinary words
_known: set[str] = set()


def keep_secret(value: str) -> None:
    """From now on `redacted` hides it: whole, what follows the `=` of a token, the path of an address."""
    parts = [value.rpartition("=")[2]]
    try:
        parts.append(urlsplit(value).path)
    except ValueError:
        parts.append("")  # no address
    for part in (value, *parts):
        if len(part) >= _SHORTEST:
            _known.update((part, json.dumps(part)[1:-1]))


def redacted(text: str) -> str:
    """The text without any secret that was read; the longest first, so that no rest of one stays."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text
