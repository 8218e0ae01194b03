"""Secrets this process has read, so that nothing it writes down has one of them in it, whatever message it came in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

HIDDEN: Final = "***"
_SHORTEST: Final = 8  # less would hide ordinary words
_ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"]+", re.IGNORECASE)
_VALUE: Final = re.compile(r"(?:pass|token|secret|key)[\w-]*['\"]?\s*:\s+['\"]?([^\s'\"]+)", re.IGNORECASE)
_known: set[str] = set()


def keep_secret(value: str) -> None:
    """From now on `redacted` hides it: whole, what follows the `=` of a token, the path of an address."""
    _keep((value, value.rpartition("=")[2], *_paths(value)))


def keep_secrets(text: str) -> None:
    """The same for a text in which secrets stand among other words, as apprise's configuration: its addresses, with who
    calls and the path of each for themselves, and what a key like `password` or `token` has."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    _keep(_VALUE.findall(lines))
    for address in (found.rstrip(":,") for found in _ADDRESS.findall(lines)):
        place = address.partition("://")[2].partition("/")[0]
        caller, at, host = place.rpartition("@")
        words = caller if at else "" if "." in host else host  # many services take a token where others have a host
        _keep((address, words, words.partition(":")[2], *_paths(address)))


def redacted(text: str) -> str:
    """The text without any secret that was read; the longest first, so that no rest of one stays."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def _keep(values: Iterable[str]) -> None:
    for value in values:
        if len(value) >= _SHORTEST:
            _known.update((value, json.dumps(value)[1:-1]))


def _paths(address: str) -> tuple[str, ...]:
    try:
        return (urlsplit(address).path,)
    except ValueError:
        return ()  # no address
