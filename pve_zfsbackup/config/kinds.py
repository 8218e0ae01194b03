"""What a single value may be: one `Kind` per sort, used for loading, for the example and for the reference.

A kind reads the text as it stands in the file, so YAML's own guesses (`off` is false, `1:30` is 90, `010` is 8)
never change what an administrator wrote.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pve_zfsbackup.model import (
    DISK_FORMS,
    RATE_FORMS,
    RATE_RULE_FORMS,
    SELECTOR_FORMS,
    SOURCE,
    Compress,
    Dataset,
    Quiesce,
    parse_disk_pattern,
    parse_rate,
    parse_rate_rule,
    parse_selector,
    parse_size,
)
from pve_zfsbackup.model.proof import Reading

RESERVED_TARGETS: Final = (SOURCE, "local")
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\Z")
_REMOTE: Final = re.compile(r"rclone::?[A-Za-z0-9][A-Za-z0-9._-]*:[A-Za-z0-9._/-]*\Z")
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,31}\Z")
_NODE: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\Z")  # pve-facts §b
_COMPONENT: Final = re.compile(r"[A-Za-z0-9_.:][A-Za-z0-9_.:-]*\Z")
_POOL: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*\Z")
_FINGERPRINT: Final = re.compile(r"(?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2}\Z")
_WHOLE: Final = re.compile(r"(?:0|[1-9][0-9]{0,9})\Z")
_DECIMAL: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?\Z")
# ZFS allows 255 bytes in all; a replica adds storage, volume, generation and snapshot name below the root.
_ROOT_LIMIT: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`parse` turns the text of one scalar into the value; it raises ValueError saying what was expected."""

    expects: str  # for people: "a whole number from 1 to 8"
    parse: Callable[[str], Any]
    number: bool = False  # a quoted number is text, and reported
    unit: str = ""
    private: bool = False  # what was written may be a secret in the wrong place: not repeated in messages
    listed: bool = False  # the words are worth telling where the option is explained


def _matching(pattern: re.Pattern[str], expects: str) -> Kind:
    def parse(text: str) -> str:
        if not pattern.match(text):
            raise ValueError(f"expected {expects}")
        return text

    return Kind(expects=expects, parse=parse)


def whole(low: int, high: int) -> Kind:
    """A whole number in decimal, both ends included."""
    expects = f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        if not _WHOLE.match(text) or not low <= int(text) <= high:
            raise ValueError(f"expected {expects}")
        return int(text)

    return Kind(expects=expects, parse=parse, number=True)


def seconds(low: float, high: float) -> Kind:
    """A duration in seconds, both ends included."""
    return _duration(f"seconds, from {low:g} to {high:g}", low, high, "s")


def hours(low: float, high: float) -> Kind:
    """A duration in hours, both ends included."""
    return _duration(f"hours, from {low:g} to {high:g}", low, high, "h")


def days(low: float, high: float) -> Kind:
    """A duration in days, both ends included."""
    return _duration(f"days, from {low:g} to {high:g}", low, high, "d")


def _duration(expects: str, low: float, high: float, unit: str) -> Kind:
    def parse(text: str) -> float:
        if not _DECIMAL.match(text) or not low <= float(text) <= high:
            raise ValueError(f"expected {expects}")
        return float(text)

    return Kind(expects=expects, parse=parse, number=True, unit=unit)


EnumT = TypeVar("EnumT", bound=StrEnum)


def choice(values: type[EnumT], aliases: dict[str, EnumT]) -> Kind:
    *others, last = [member.value for member in values]
    expects = f"{', '.join(others)} or {last}"
    known = {member.value: member for member in values} | aliases

    def parse(text: str) -> EnumT:
        value = known.get(text.lower())
        if value is None:
            raise ValueError(f"expected {expects}")
        return value

    return Kind(expects=expects, parse=parse)


def _place(text: str) -> str:
    if text.startswith("rclone:"):
        if not _REMOTE.match(text):
            raise ValueError("expected rclone:REMOTE: or rclone:REMOTE:PATH, of a-z, A-Z, 0-9, '.', '_' and '-'")
        return text
    return str(_path(text)) if text.startswith("/") else _host(text)


def _guest_path(text: str) -> str:
    path = str(_path(text))
    if path == "/" or not text.isprintable():
        raise ValueError(f"expected {GUEST_PATH.expects}")
    return path


def _path(text: str) -> Path:
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise ValueError("expected an absolute path without '..'")
    return Path(text)


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.scheme != "https":
        raise ValueError("expected https://HOST[:PORT] (not http: the token would be readable on the way)")
    if parts.username is not None:
        raise ValueError("expected https://HOST[:PORT] without a user: the token has its own file")
    if parts.path not in {"", "/"} or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise ValueError("expected https://HOST[:PORT] with nothing behind it")
    return text.rstrip("/")


def _host(text: str) -> str:
    if ":" in text and _IPV6.match(text):
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            raise ValueError(f"expected {HOST.expects}") from None
    elif not _HOST.match(text):
        port = ", without a port: that has its own key" if ":" in text else ""
        raise ValueError(f"expected {HOST.expects}{port}")
    return text


def _fingerprint(text: str) -> str:
    if not _FINGERPRINT.match(text):
        raise ValueError("expected a SHA-256 fingerprint: 32 pairs of hexadecimal digits joined by ':'")
    return text.upper()


def _root(text: str) -> Dataset:
    pool, *rest = text.split("/")
    if len(text) > _ROOT_LIMIT:
        raise ValueError(f"expected at most {_ROOT_LIMIT} characters: replicas get their own names below it")
    if bad := sorted(set(text) & set("@#%")):
        raise ValueError(f"expected a dataset, not a snapshot, bookmark or token: {bad[0]!r} is not allowed")
    if not _POOL.match(pool) or not all(_COMPONENT.match(part) and part.strip(".") for part in rest):
        raise ValueError("expected a dataset such as tank/pve-zfsbackup: letters, digits and _ . : - only")
    if not rest:
        raise ValueError(
            f"expected a dataset below the pool, such as {pool}/pve-zfsbackup: the pool itself keeps other data"
        )
    return Dataset(text)


def _timezone(text: str) -> ZoneInfo:
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("expected the name of a time zone, such as Europe/Berlin") from None


def _buffer(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError:
        size = -1
    if size and not 1 << 20 <= size <= 1 << 32:
        raise ValueError(f"expected {BUFFER.expects}")
    return size


def _yes_or_no(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(f"expected {YES_OR_NO.expects}")
    return words[text.lower()]


def _target_name(text: str) -> str:
    if text in RESERVED_TARGETS:
        raise ValueError("expected another name: this one means this node")
    if not _NAME.match(text):
        raise ValueError(f"expected {NAME.expects}")
    return text


def _word(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"expected {WORD.expects}")
    return text


def command_problem(argv: tuple[str, ...]) -> str:
    """What is wrong with a command as a list of words; empty when nothing is. It is run without a shell."""
    if argv and (not argv[0].startswith("/") or "=" in argv[0]):
        return "the first word must be the absolute path of a program (without '=' in it); no shell reads this"
    return ""


WORD: Final = Kind(expects="one line of text", parse=_word)
NAME: Final = _matching(_NAME, "a name of a-z, 0-9 and -, starting with a letter, at most 32 characters")
TARGET_NAME: Final = Kind(expects=NAME.expects, parse=_target_name)
HOST: Final = Kind(expects="a host name or address", parse=_host)
PLACE: Final = Kind(expects="a host name or address, an absolute path, or rclone:REMOTE:PATH", parse=_place)
USER: Final = _matching(_USER, "a user name")
MAIL: Final = _matching(
    re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}(?:@[A-Za-z0-9][A-Za-z0-9.-]{0,250})?\Z"), "a mail address"
)
NODE: Final = _matching(_NODE, "the name of a node")
URL: Final = Kind(expects="https://HOST[:PORT]", parse=_url, private=True)
RELATIVE_PATH: Final = _matching(
    re.compile(r"(?!.*(?:^|/)\.\.?(?:/|$))[A-Za-z0-9._][A-Za-z0-9._-]*(?:/[A-Za-z0-9._][A-Za-z0-9._-]*)*\Z"),
    "a relative path of a-z, A-Z, 0-9, '.', '_' and '-'",
)
PATH: Final = Kind(expects="an absolute path", parse=_path)
GUEST_PATH: Final = Kind(expects="an absolute path of a file in the guest", parse=_guest_path)
SECRET_PATH: Final = Kind(expects="an absolute path", parse=_path, private=True)
FINGERPRINT: Final = Kind(expects="a SHA-256 fingerprint (AA:BB:…)", parse=_fingerprint)
ROOT: Final = Kind(expects="a dataset below a pool", parse=_root)
TIMEZONE: Final = Kind(expects="a time zone", parse=_timezone)
SELECTOR: Final = Kind(expects=SELECTOR_FORMS, parse=parse_selector, listed=True)
DISK: Final = Kind(expects=DISK_FORMS, parse=parse_disk_pattern, listed=True)
RATE: Final = Kind(expects=RATE_FORMS, parse=parse_rate)
RATE_RULE: Final = Kind(expects=RATE_RULE_FORMS, parse=parse_rate_rule)
BUFFER: Final = Kind(expects="bytes from 1M to 4G, or 0 for none", parse=_buffer)
YES_OR_NO: Final = Kind(expects="true or false", parse=_yes_or_no)
# YAML reads a bare `off` or `no` as false; both mean what they look like.
QUIESCE: Final = choice(Quiesce, {"no": Quiesce.OFF, "false": Quiesce.OFF})
READING: Final = choice(Reading, {"no": Reading.NONE, "false": Reading.NONE})
COMPRESS: Final = choice(Compress, {"no": Compress.OFF, "false": Compress.OFF})
