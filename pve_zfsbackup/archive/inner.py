"""The inner manifest: everything about a point, encrypted: names, guids, hashes of the plaintext, the guest's
configuration. With it and the segments alone, a point can be restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pve_zfsbackup.archive.names import WRITER
from pve_zfsbackup.archive.outer import Outer
from pve_zfsbackup.archive.text import Reading, dumps
from pve_zfsbackup.errors import VerificationError
from pve_zfsbackup.model import Guid, PointId, Vmid
from pve_zfsbackup.model.archive import Archived, ArchivedDisk

FORMAT: Final = "pve-zfsbackup-archive-contents 1"
ZSTD: Final = "zstd"
NONE: Final = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A slice of a stream's plaintext (`offset`, `bytes`, `sha256`) and the segment it became."""

    number: int
    stream: int
    offset: int
    bytes: int
    sha256: str
    codec: str
    stored_bytes: int
    stored_sha256: str

    def members(self) -> dict[str, Any]:
        """In this order: restore.sh reads the line with sed."""
        return {
            "n": self.number, "stream": self.stream, "codec": self.codec, "bytes": self.bytes, "sha256": self.sha256,
            "stored_bytes": self.stored_bytes, "stored_sha256": self.stored_sha256, "offset": self.offset,
        }  # fmt: skip

    @classmethod
    def read(cls, item: Reading) -> Sealed:
        return cls(
            number=item.number("n"),
            stream=item.number("stream"),
            codec=item.text("codec"),
            bytes=item.number("bytes"),
            sha256=item.digest("sha256"),
            stored_bytes=item.number("stored_bytes"),
            stored_sha256=item.digest("stored_sha256"),
            offset=item.number("offset"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """What is known of one `zfs send`. Guids are empty where there is none; `properties` are the dataset's own,
    `point_properties` the snapshot's."""

    number: int
    key: str
    volid: str
    dataset: str
    volume: Guid
    type: str
    snapshot: str
    to_guid: Guid
    from_guid: Guid
    to_ivset: Guid
    from_ivset: Guid
    raw: bool
    flags: tuple[str, ...]
    bytes: int = 0
    properties: Mapping[str, str] = field(default_factory=dict)
    point_properties: Mapping[str, str] = field(default_factory=dict)

    def members(self) -> dict[str, Any]:
        return {
            "stream": self.number, "disk": self.key, "type": self.type, "raw": self.raw, "to_guid": self.to_guid,
            "from_guid": self.from_guid, "bytes": self.bytes, "snapshot": self.snapshot,
            "volid": self.volid, "dataset": self.dataset, "dataset_guid": self.volume, "to_ivset": self.to_ivset,
            "from_ivset": self.from_ivset, "flags": list(self.flags), "properties": dict(self.properties),
            "point_properties": dict(self.point_properties),
        }  # fmt: skip

    @classmethod
    def read(cls, item: Reading) -> StreamFacts:
        return cls(
            number=item.number("stream"),
            key=item.text("disk"),
            volid=item.text("volid"),
            dataset=item.text("dataset"),
            volume=Guid(item.guid("dataset_guid")),
            type=item.text("type"),
            snapshot=item.text("snapshot"),
            to_guid=Guid(item.guid("to_guid")),
            from_guid=Guid(item.guid("from_guid", empty=True)),
            to_ivset=Guid(item.guid("to_ivset", empty=True)),
            from_ivset=Guid(item.guid("from_ivset", empty=True)),
            raw=item.flag("raw"),
            flags=item.words("flags"),
            bytes=item.number("bytes"),
            properties=item.texts("properties"),
            point_properties=item.texts("point_properties"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """`config` are texts of the guest (`conf`, `firewall`). `parent` is the sha256 of the parent's outer manifest."""

    writer: str
    series: str
    generation: str
    point: str
    sequence: int
    parent: str
    parent_point: str
    guest_point: PointId
    creation: int
    consistency: str
    config: Mapping[str, str]
    tool: str
    zfs: str
    recipients: tuple[str, ...]
    streams: tuple[StreamFacts, ...]
    segments: tuple[Sealed, ...]

    @property
    def vmid(self) -> Vmid:
        return Vmid(int(self.guest_point.partition("/")[0]))

    def encode(self) -> bytes:
        plain = {key: getattr(self, key) for key in _PLAIN}
        members = {
            "format": FORMAT,
            **plain,
            "config": dict(self.config),
            "recipients": list(self.recipients),
            "streams": [stream.members() for stream in self.streams],
            "segments": [segment.members() for segment in self.segments],
        }
        return dumps(members)

    @classmethod
    def decode(cls, data: bytes, what: str) -> Inner:
        """Raises `VerificationError` when it is not such a text."""
        read = Reading.of(data, what)
        read.expect("format", FORMAT)
        point = read.text("guest_point")
        if not point.partition("/")[0].isdecimal():
            raise VerificationError(f"{what}: guest_point names no guest")
        return cls(
            writer=read.text("writer", WRITER),
            series=read.opaque("series"),
            generation=read.opaque("generation"),
            point=read.opaque("point"),
            sequence=read.number("sequence"),
            parent=read.digest("parent", empty=True),
            parent_point=read.opaque("parent_point", empty=True),
            guest_point=PointId(point),
            creation=read.number("creation"),
            consistency=read.text("consistency"),
            config=read.texts("config"),
            tool=read.text("tool"),
            zfs=read.text("zfs"),
            recipients=read.words("recipients"),
            streams=tuple(StreamFacts.read(item) for item in read.items("streams")),
            segments=tuple(Sealed.read(item) for item in read.items("segments")),
        )

    def check(self, outer: Outer, what: str) -> None:
        """Raise `VerificationError` unless both manifests speak of the same point and the same segments."""
        for key in ("writer", "series", "generation", "point", "sequence", "parent", "parent_point"):
            if getattr(self, key) != getattr(outer, key):
                raise VerificationError(f"{what}: its inner and outer manifest do not agree about {key}")
        stored = [(segment.number, segment.stored_bytes, segment.stored_sha256) for segment in self.segments]
        if stored != [(segment.number, segment.bytes, segment.sha256) for segment in outer.segments]:
            raise VerificationError(f"{what}: its inner and outer manifest do not agree about the segments")
        if [stream.number for stream in self.streams] != list(range(1, len(self.streams) + 1)):
            raise VerificationError(f"{what}: its streams are not numbered from 1 without gaps")
        for stream in self.streams:
            offset = 0
            for segment in (segment for segment in self.segments if segment.stream == stream.number):
                if segment.offset != offset or segment.codec not in (ZSTD, NONE):
                    raise VerificationError(f"{what}: segment {segment.number} does not follow the one before")
                offset += segment.bytes
            if offset != stream.bytes:
                raise VerificationError(f"{what}: the segments of {stream.key} do not make up its stream")
        if {segment.stream for segment in self.segments} != {stream.number for stream in self.streams}:
            raise VerificationError(f"{what}: streams and segments do not belong together")

    def archived(self, outer: Outer) -> Archived:
        """The point as the planners know it."""
        return Archived(
            point=self.guest_point,
            vmid=self.vmid,
            creation=self.creation,
            consistency=self.consistency,
            series=self.series,
            generation=self.generation,
            name=self.point,
            sequence=self.sequence,
            parent=self.parent_point,
            bytes=outer.size,
            disks={
                stream.key: ArchivedDisk(
                    key=stream.key,
                    volid=stream.volid,
                    volume=stream.volume,
                    guid=stream.to_guid,
                    base=stream.from_guid,
                )
                for stream in self.streams
            },
        )


_PLAIN: Final = (
    "writer", "series", "generation", "point", "sequence", "parent", "parent_point", "guest_point", "creation",
    "consistency", "tool", "zfs",
)  # fmt: skip
