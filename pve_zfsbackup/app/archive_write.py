"""One point into a box: streams, segments, manifests, in this order; it exists when its outer manifest does.

What was brought to the box is written down as it arrives (the ledger). After a crash the same sends run again, and
only what is missing goes out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pve_zfsbackup import __version__
from pve_zfsbackup.app.archive_preflight import preflight
from pve_zfsbackup.app.archive_publish import publish_manifests, put_texts, recipients, series_state
from pve_zfsbackup.app.archive_slices import Slicer, StreamDiffersError
from pve_zfsbackup.app.archive_upload import Stamina, Uploads
from pve_zfsbackup.app.box import Vault, fresh
from pve_zfsbackup.app.catalog import Shelf
from pve_zfsbackup.app.catalog_memory import MANIFESTS
from pve_zfsbackup.archive import kit
from pve_zfsbackup.archive.chain import Head, Signed, series_name
from pve_zfsbackup.archive.inner import Inner, Sealed, StreamFacts
from pve_zfsbackup.archive.names import (
    INNER,
    INNER_SIGNATURE,
    opaque,
    segment_name,
)
from pve_zfsbackup.archive.outer import POINT, Outer, Stored, digest
from pve_zfsbackup.archive.text import Reading
from pve_zfsbackup.errors import BackupError, StoreConflictError, StoreForbiddenError, VerificationError
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.notebook import Log
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import PointId, Send, Vmid
from pve_zfsbackup.model.archive import ArchiveStream, ArchiveTask, Begun

Moved = Callable[[ArchiveStream, int, bool], None]  # bytes of a stream so far, and whether that is all of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A task with what is to be known of it besides: facts of each stream, the guest's configuration, the bytes
    of each stream that `zfs send` estimates, and what catalog and source say about the series."""

    task: ArchiveTask
    shelf: Shelf | None
    facts: tuple[StreamFacts, ...]
    config: Mapping[str, str]
    zfs_version: str
    estimates: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came of it. `skipped` segments were there from an earlier attempt."""

    signed: Signed
    segments: int
    skipped: int
    stored: int
    plain: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the point goes, and as what: new, or where the attempt before left off."""

    series: str
    generation: str
    point: str
    parent: str
    parent_point: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    vault: Vault
    source: Host
    stamina: Stamina
    now: Callable[[], datetime]
    catalog_recipient: Sequence[Any]  # files with recipients of manifests, besides those of the segments

    def write(self, order: Order, moved: Moved) -> Written:
        """Bring the point to the box. Raises what went wrong; what arrived by then is used by the next attempt."""
        with self.vault.store.kept():
            try:
                return self._attempt(order, moved)
            except StreamDiffersError:
                pending(self.vault, order.task.vmid).remove()
                return self._attempt(order, moved)

    def _attempt(self, order: Order, moved: Moved) -> Written:
        ledger = pending(self.vault, order.task.vmid)
        place, known = self._resume(order, ledger)
        preflight(self.vault, order.task, order.estimates, sum(one.stored_bytes for one in known.values()))
        directory = f"{self.vault.writer}/{place.generation}/{place.point}"
        workers = self.vault.box.connections
        uploads = Uploads(self.vault.store, self.stamina, workers, self.vault.programs.cancel)
        with self.vault.scratch() as spool:
            slicer = Slicer(
                vault=self.vault, uploads=uploads, spool=spool, directory=directory, ledger=ledger, known=known
            )
            facts = []
            with slicer.working(), uploads.running():
                for stream, about in zip(order.task.streams, order.facts, strict=True):
                    facts.append(self._send(stream, about, slicer, moved))
                slicer.end()
        written = self._publish(order, place, (tuple(facts), slicer.segments))
        ledger.remove()
        plain = sum(about.bytes for about in facts)
        return Written(
            signed=written,
            segments=len(slicer.segments),
            skipped=slicer.skipped,
            stored=written.outer.size,
            plain=plain,
        )

    def _send(self, stream: ArchiveStream, about: StreamFacts, slicer: Slicer, moved: Moved) -> StreamFacts:
        argv = self.source.argv(zfs.send_argv(send_of(stream)))
        with self.vault.programs.opened(argv, source=None) as sending:

            def ended() -> None:
                (done,) = sending.finish()
                if done.returncode:
                    raise classified(done)

            size = slicer.take(
                sending.output, about.number, lambda total: moved(stream, total, False), ended, raw=stream.raw
            )
        if not size:
            raise BackupError(f"{stream.snapshot.full_name}: zfs send wrote nothing, and said that all is well")
        moved(stream, size, True)
        return replace(about, bytes=size)

    def _resume(self, order: Order, ledger: Log) -> tuple[_Place, dict[int, Sealed]]:
        """Go on where the attempt before left off, if it was at the very same; otherwise begin."""
        wanted = self._identity(order)
        lines = ledger.read()
        if lines and lines[0].get("identity") == wanted and (started := _started(lines)):
            place, sealed = started
            with contextlib.suppress(StoreForbiddenError):  # then manifests of that attempt are in the way for ever
                known = self._still_there(place, sealed)
                ledger.begin([lines[0], *(one.members() for one in known.values())])
                return place, known
        parent = order.task.parent
        by_name = {c.signed.outer.point: c.signed for c in order.shelf.contents} if order.shelf else {}
        place = _Place(
            series=order.shelf.series.id if order.shelf else opaque(),
            generation=parent.generation if parent else opaque(),
            point=opaque(),
            parent=by_name[parent.name].sha256 if parent else "",
            parent_point=parent.name if parent else "",
        )
        members = {key: getattr(place, key) for key in ("series", "generation", "point", "parent", "parent_point")}
        ledger.begin([{"identity": wanted, "guest_point": order.task.point, "place": members}])
        return place, {}

    def _identity(self, order: Order) -> str:
        """What must be the same for the segments of an earlier attempt to be used."""
        shelf = order.shelf
        facts = {
            "point": order.task.point,
            "parent": order.task.parent.name if order.task.parent else "",
            "series": shelf.series.id if shelf else "",
            "sends": [list(zfs.send_argv(send_of(stream))) for stream in order.task.streams],
            "guids": [[about.volume, about.to_guid, about.from_guid] for about in order.facts],
            "slice": self.vault.box.segment_bytes,
            "recipients": hashlib.sha256(self.vault.box.recipients_file.read_bytes()).hexdigest(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _still_there(self, place: _Place, sealed: Sequence[Sealed]) -> dict[int, Sealed]:
        directory = f"{self.vault.writer}/{place.generation}/{place.point}"
        files = self.vault.store.list([directory]).get(directory, {})
        known = {}
        for one in sealed:
            entry = files.get(segment_name(one.number, one.stored_sha256))
            if entry is not None and entry.bytes == one.stored_bytes:
                known[one.number] = one
        # It is not in the catalog, so these were never published: they are made anew.
        self.vault.store.remove([f"{directory}/{name}" for name in MANIFESTS if name in files])
        return known

    def _publish(
        self, order: Order, place: _Place, content: tuple[tuple[StreamFacts, ...], tuple[Sealed, ...]]
    ) -> Signed:
        streams, segments = content
        head, alive = series_state(self.vault, place.series, order.shelf)
        inner = Inner(
            writer=self.vault.writer,
            series=place.series,
            generation=place.generation,
            point=place.point,
            sequence=head.sequence + 1,
            parent=place.parent,
            parent_point=place.parent_point,
            guest_point=order.task.point,
            creation=order.task.creation,
            consistency=order.task.consistency,
            config=order.config,
            tool=f"pve-zfsbackup {__version__}",
            zfs=order.zfs_version,
            recipients=recipients(self.vault),
            streams=streams,
            segments=segments,
        )
        text = inner.encode()
        outer = Outer(
            what=POINT,
            writer=self.vault.writer,
            series=place.series,
            generation=place.generation,
            point=place.point,
            sequence=inner.sequence,
            previous=head.sha256,
            parent=place.parent,
            parent_point=place.parent_point,
            made=self.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            segments=tuple(Stored(number=s.number, bytes=s.stored_bytes, sha256=s.stored_sha256) for s in segments),
            alive=alive,
        )
        with self.vault.scratch() as spool:
            sealed = fresh(spool)
            files = [self.vault.box.recipients_file, *self.catalog_recipient]
            self.vault.seal.encrypt(text, files, sealed)
            data = sealed.read_bytes()
            outer = replace(outer, manifest_bytes=len(data), manifest_sha256=digest(data))
            signature = self.vault.seal.sign(data, self.vault.box.signing_key_file)
            if not place.parent:
                self._kit(place)
            publish_manifests(self.vault, self.stamina, outer, {INNER: data, INNER_SIGNATURE: signature})
        signed = Signed(outer=outer, sha256=digest(outer.encode()))
        head = Head(sequence=outer.sequence, sha256=signed.sha256)
        self.vault.remember(series_name(outer.writer, outer.series), head)
        return signed

    def _kit(self, place: _Place) -> None:
        """README.txt and restore.sh, once for each generation."""
        for name, text in kit.FILES.items():
            try:
                put_texts(self.vault, self.stamina, f"{self.vault.writer}/{place.generation}", {name: text.encode()})
            except StoreConflictError:
                continue  # of an attempt before, by another version of ours


def _started(lines: Sequence[Mapping[str, Any]]) -> tuple[_Place, list[Sealed]] | None:
    """What a ledger says, if it is one."""
    try:
        return _Place(**lines[0]["place"]), [Sealed.read(Reading(line, "ledger")) for line in lines[1:]]
    except (KeyError, TypeError, VerificationError):
        return None


def pending(vault: Vault, vmid: Vmid) -> Log:
    """The ledger of the point of this guest that is under way."""
    return Log(vault.state / "pending" / f"{vmid}.jsonl")


def begun(vault: Vault, vmid: Vmid) -> Begun | None:
    """The point of this guest that is under way, if anything of it arrived."""
    lines = pending(vault, vmid).read()
    started = _started(lines) if len(lines) > 1 else None
    return Begun(point=PointId(str(lines[0].get("guest_point"))), parent=started[0].parent_point) if started else None


def unfinished(vault: Vault) -> dict[str, str]:
    """Directories of points under way, as `writer/generation/point`, and the series of each."""
    found = {}
    for path in sorted((vault.state / "pending").glob("*.jsonl")):
        lines = Log(path).read()
        place = lines[0].get("place") if lines else None
        if isinstance(place, dict):
            found[f"{vault.writer}/{place.get('generation')}/{place.get('point')}"] = str(place.get("series"))
    return found


def forget_stale(vault: Vault, before: float) -> None:
    """Points under way to which nothing was added since, in seconds of the epoch, are no longer: their guest went away,
    or its job. What arrived of them ages as any other that no manifest speaks of."""
    for path in (vault.state / "pending").glob("*.jsonl"):
        with contextlib.suppress(OSError):  # a state directory that takes nothing is told by whoever needs it
            if path.stat().st_mtime < before:
                path.unlink()


def send_of(stream: ArchiveStream) -> Send:
    """The stream as a step, for its command line."""
    return Send(host="", snapshot=stream.snapshot, base=stream.base, dataset=stream.dataset, raw=stream.raw)
