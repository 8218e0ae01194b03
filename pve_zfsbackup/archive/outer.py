"""The outer manifest: in the clear, signed, without a name. It says what belongs to a point and what is alive.

Each one carries a sequence number within its series and the list of the points alive when it was made: a series
whose newest manifest is genuine is known in full.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.archive.names import WRITER
from pve_zfsbackup.archive.text import Reading, dumps
from pve_zfsbackup.errors import VerificationError

FORMAT: Final = "pve-zfsbackup-archive 1"
POINT: Final = "point"
REMOVAL: Final = "removal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A segment as it lies in the box. `number` counts from 1 within the point."""

    number: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """A point that must be there. `sha256` is that of its outer manifest."""

    sequence: int
    generation: str
    point: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """`previous` is the sha256 of the manifest with the sequence before, `parent` that of the point it builds on.

    `what` is POINT, or REMOVAL: a statement without content, published before points are taken away.
    """

    what: str
    writer: str
    series: str
    generation: str
    point: str  # its directory
    sequence: int
    previous: str
    parent: str
    parent_point: str
    made: str
    manifest_bytes: int = 0
    manifest_sha256: str = ""
    segments: tuple[Stored, ...] = ()
    alive: tuple[Alive, ...] = ()  # without itself

    @property
    def path(self) -> str:
        return f"{self.generation}/{self.point}"

    @property
    def size(self) -> int:
        """Stored bytes of all segments."""
        return sum(segment.bytes for segment in self.segments)

    def encode(self) -> bytes:
        """The text that is signed."""
        members = {
            "format": FORMAT,
            **{key: getattr(self, key) for key in _PLAIN},
            "segments": [{"n": s.number, "bytes": s.bytes, "sha256": s.sha256} for s in self.segments],
            "alive": [
                {"sequence": a.sequence, "generation": a.generation, "point": a.point, "sha256": a.sha256}
                for a in self.alive
            ],
        }
        return dumps(members)

    @classmethod
    def decode(cls, data: bytes, what: str) -> Outer:
        """Raises `VerificationError` when it is not such a text, naming it as `what`."""
        read = Reading.of(data, what)
        read.expect("format", FORMAT)
        kind = read.text("what")
        if kind not in (POINT, REMOVAL):
            raise VerificationError(f"{what}: neither a point nor a removal")
        outer = cls(
            what=kind,
            writer=read.text("writer", WRITER),
            series=read.opaque("series"),
            generation=read.opaque("generation"),
            point=read.opaque("point"),
            sequence=read.number("sequence"),
            previous=read.digest("previous", empty=True),
            parent=read.digest("parent", empty=True),
            parent_point=read.opaque("parent_point", empty=True),
            made=read.text("made"),
            manifest_bytes=read.number("manifest_bytes"),
            manifest_sha256=read.digest("manifest_sha256", empty=kind == REMOVAL),
            segments=tuple(
                Stored(number=item.number("n"), bytes=item.number("bytes"), sha256=item.digest("sha256"))
                for item in read.items("segments")
            ),
            alive=tuple(
                Alive(
                    sequence=item.number("sequence"),
                    generation=item.opaque("generation"),
                    point=item.opaque("point"),
                    sha256=item.digest("sha256"),
                )
                for item in read.items("alive")
            ),
        )
        if [segment.number for segment in outer.segments] != list(range(1, len(outer.segments) + 1)):
            raise VerificationError(f"{what}: its segments are not numbered from 1 without gaps")
        if (kind == POINT) != bool(outer.segments) or bool(outer.parent) != bool(outer.parent_point):
            raise VerificationError(f"{what}: contradicts itself")
        return outer


_PLAIN: Final = (
    "what", "writer", "series", "generation", "point", "sequence", "previous", "parent", "parent_point", "made",
    "manifest_bytes", "manifest_sha256",
)  # fmt: skip


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
