"""JSON of manifests: one member, or one item of a list, per line, so that sed and people can read it as well."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pve_zfsbackup.archive.names import DIGEST, OPAQUE
from pve_zfsbackup.errors import VerificationError

LIMIT: Final = 64 << 20  # bytes of a manifest
SIGNATURE_LIMIT: Final = 16 << 10  # bytes; ssh-keygen makes 300, and reads megabytes of them for half a minute
MOST_SEGMENTS: Final = 200_000  # of a point: 250 bytes of the inner manifest each
_DECIMAL: Final = re.compile(r"[0-9]{1,20}\Z")


def dumps(members: Mapping[str, Any]) -> bytes:
    """ASCII JSON in a fixed layout: what is signed."""
    lines = []
    for key, value in members.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            items = ",\n".join(_compact(item) for item in value)
            lines.append(f"{_compact(key)}:[\n{items}\n]")
        else:
            lines.append(f"{_compact(key)}:{_compact(value)}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


class Reading:
    """Members of a JSON object, checked as they are read. Raises `VerificationError` naming `what` and the member."""

    def __init__(self, members: Any, what: str) -> None:
        if not isinstance(members, dict):
            raise VerificationError(f"{what}: not an object")
        self._members, self._what = members, what

    @classmethod
    def of(cls, data: bytes, what: str) -> Reading:
        try:
            return cls(json.loads(data.decode("ascii")), what)
        except (ValueError, RecursionError):
            raise VerificationError(f"{what}: not readable as JSON") from None

    def text(self, key: str, pattern: re.Pattern[str] | None = None, *, empty: bool = False) -> str:
        value = self._members.get(key)
        if isinstance(value, str) and ((empty and not value) or pattern is None or pattern.match(value)):
            return value
        raise self._bad(key)

    def opaque(self, key: str, *, empty: bool = False) -> str:
        return self.text(key, OPAQUE, empty=empty)

    def digest(self, key: str, *, empty: bool = False) -> str:
        return self.text(key, DIGEST, empty=empty)

    def guid(self, key: str, *, empty: bool = False) -> str:
        return self.text(key, _DECIMAL, empty=empty)

    def number(self, key: str) -> int:
        value = self._members.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
            return value
        raise self._bad(key)

    def flag(self, key: str) -> bool:
        value = self._members.get(key)
        if isinstance(value, bool):
            return value
        raise self._bad(key)

    def texts(self, key: str) -> dict[str, str]:
        value = self._members.get(key)
        if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
            return dict(value)
        raise self._bad(key)

    def words(self, key: str) -> tuple[str, ...]:
        value = self._members.get(key)
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            return tuple(value)
        raise self._bad(key)

    def item(self, key: str) -> Reading:
        return Reading(self._members.get(key), f"{self._what}, {key}")

    def items(self, key: str) -> list[Reading]:
        value = self._members.get(key)
        if isinstance(value, list):
            return [Reading(item, f"{self._what}, {key} {number}") for number, item in enumerate(value, 1)]
        raise self._bad(key)

    def expect(self, key: str, value: str) -> None:
        if self._members.get(key) != value:
            raise VerificationError(f"{self._what}: {key} is not {value!r}")

    def _bad(self, key: str) -> VerificationError:
        return VerificationError(f"{self._what}: {key} is missing or not what it should be")
