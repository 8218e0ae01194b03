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
_PORT: Final = re.compile(r":\d{1,5}\Z")
_ODD: Final = re.compile(r"[A-Z0-9]")  # no ordinary word, and no name of a dataset either, where it is long as well
_SHORTEST_PATH: Final = 16
_known: set[str] = set()


def keep_secret(value: str) -> None:
    """From now on `redacted` hides it: whole, what follows the `=` of a token, and of an address the path and the end
    of the query, where they are no ordinary words."""
    last = value.rpartition("=")[2]
    _keep((value, *_paths(value), *([last] if "://" not in value or _ODD.search(last) else ())))


def keep_secrets(text: str) -> None:
    """The same for a text in which secrets stand among other words, as apprise's configuration: its addresses, with who
    calls and the path of each for themselves where they are no ordinary words, the password, and what a key like
    `password` or `token` has, unless that is a file."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    _keep(value for value in _VALUE.findall(lines) if not value.startswith("/") or _ODD.search(value))
    for address in (found.rstrip(":,") for found in _ADDRESS.findall(lines)):
        place = address.partition("://")[2].partition("/")[0]
        caller, at, host = place.rpartition("@")
        # Many services take a token where others have a host.
        words = caller if at else "" if "." in host else _PORT.sub("", host)
        _keep((address, words if _ODD.search(words) else "", words.partition(":")[2], *_paths(address)))


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
        path = urlsplit(address).path if "://" in address else ""
    except ValueError:
        return ()  # no address
    return (path,) if len(path) >= _SHORTEST_PATH and _ODD.search(path) else ()
