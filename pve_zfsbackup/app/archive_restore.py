"""A point from a box back into ZFS: the full archive first, then each increment, every disk by itself.

What was received already is passed over, what was cut is aborted and received again; nothing is ever forced.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pve_zfsbackup.app.archive_read import Reader, require_inner
from pve_zfsbackup.app.catalog import Catalog, Content, Shelf, require_sound
from pve_zfsbackup.archive.chain import lineage
from pve_zfsbackup.archive.inner import StreamFacts
from pve_zfsbackup.errors import BackupError, ConfigError, VerificationError
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import PROPERTY, Dataset, Guid, Listing, Vmid, Volume
from pve_zfsbackup.model.points import SKEW

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """One disk that is there now, or would be. `received` streams of `streams`: the others were there already."""

    key: str
    dataset: Dataset
    streams: int
    received: int
    seconds: float
    bytes: int = 0  # of those streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The point that is meant, with all it builds on, the full one first."""

    shelf: Shelf
    chain: tuple[Content, ...]

    @property
    def content(self) -> Content:
        return self.chain[-1]


def choose(catalog: Catalog, vmid: Vmid, point: str = "", *, older: bool = False) -> Choice:
    """The newest point of the guest, or the one that is named (`100/2026…`, its stamp, or its name in the box).

    `older` takes what is genuine although newer states were seen, which are gone.
    Raises `ConfigError` when there is none, `VerificationError` when it cannot be trusted or is not whole.
    """
    found = []
    past = time.time() + SKEW  # a clock was wrong where it is later: what was made since is newer
    for shelf in catalog.shelves:
        for content in shelf.contents:
            archived = content.archived
            if archived and archived.vmid == vmid:
                names = (archived.point, archived.point.partition("/")[2], archived.name)
                if not point or point in names:
                    order = (archived.creation <= past, archived.creation, archived.sequence)
                    found.append((order, shelf, content))
    if not found:
        closed = sum(content.inner is None for shelf in catalog.shelves for content in shelf.contents)
        hint = f"{closed} points cannot be opened with this identity" if closed else "see `verify archive`"
        raise ConfigError([f"no point of {vmid} {point}".rstrip() + " in the box"], hint=hint)
    _, shelf, content = max(found, key=lambda entry: entry[0])
    if not older:
        require_sound(shelf)
    return chosen(shelf, content)


def chosen(shelf: Shelf, content: Content) -> Choice:
    """This point with all it builds on. Raises `VerificationError` when it is not whole."""
    named = {one.signed.outer.point: one for one in shelf.contents}
    chain = tuple(named[signed.outer.point] for signed in lineage(shelf.series, content.signed.outer.point))
    if not chain:
        raise VerificationError(
            f"{content.path}: something it builds on is missing: {'; '.join(shelf.problems)}",
            hint="choose an older point, or another copy",
        )
    for one in chain:
        if one.problems:
            raise VerificationError(f"{one.path}: {'; '.join(one.problems)}", hint="another copy is needed")
        require_inner(one)
    return Choice(shelf=shelf, chain=chain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restorer:
    """Receives below `root`, which must exist, on this node. `note` is told each stream as it begins."""

    reader: Reader
    host: Host
    root: Dataset
    identity: Path
    note: Callable[[str], None]

    def restore(self, choice: Choice, only: Set[str] = frozenset()) -> tuple[Restored, ...]:
        """Every disk of the point, or those named. Raises what went wrong with the first that failed; run again, it
        goes on there."""
        return tuple(self.into(choice, key, self._place(choice, key)) for key in _keys(choice, only))

    def planned(self, choice: Choice, only: Set[str] = frozenset()) -> Iterator[Restored]:
        """What `restore` would receive; nothing is done. Raises as it what can be known before."""
        for key in _keys(choice, only):
            dataset, steps = self._place(choice, key), streams_of(choice, key)
            volume = self._listing().volumes.get(dataset)
            cut = volume is not None and volume.resume is not None and not volume.snapshots
            have = 0 if cut else self._have(volume, steps)
            size = sum(stream.bytes for _, stream in steps[have:])
            yield Restored(
                key=key, dataset=dataset, streams=len(steps), received=len(steps) - have, seconds=0, bytes=size
            )

    def _place(self, choice: Choice, key: str) -> Dataset:
        return self._dataset(streams_of(choice, key)[-1][1])

    def into(self, choice: Choice, key: str, dataset: Dataset) -> Restored:
        """One disk of the point, into a dataset below the root. Raises as `restore`."""
        started = time.monotonic()
        steps = streams_of(choice, key)
        volume = self._prepared(dataset)
        have = self._have(volume, steps)
        for content, stream in steps[have:]:
            self.note(f"{key}: {stream.snapshot} to {dataset}")
            argv = self.host.argv(("zfs", "receive", "-s", "-u", "--", dataset))
            done = self.reader.receive(content, stream, self.identity, argv)
            if done.returncode:
                raise classified(done)
            self._check(dataset, stream)
        return Restored(
            key=key,
            dataset=dataset,
            streams=len(steps),
            received=len(steps) - have,
            bytes=sum(stream.bytes for _, stream in steps[have:]),
            seconds=time.monotonic() - started,
        )

    def _dataset(self, stream: StreamFacts) -> Dataset:
        storage, _, rest = stream.volid.partition(":")
        volume = rest.rpartition("/")[2]
        for name in (storage, volume):
            if not _NAME.match(name):
                raise VerificationError(f"{stream.key}: {stream.volid!r} is no name for a dataset")
        return Dataset(f"{self.root}/{storage}/{volume}")

    def _prepared(self, dataset: Dataset) -> Volume | None:
        """What lies there already, its cut receive thrown away; the parent is made."""
        listing = self._listing()
        parent = Dataset(dataset.rpartition("/")[0])
        if parent not in listing.volumes:
            zfs.create_parent(self.host, parent)
        volume = listing.volumes.get(dataset)
        if volume is None or volume.resume is None:
            return volume
        zfs.abort_receive(self.host, dataset)
        return self._listing().volumes.get(dataset)

    def _listing(self) -> Listing:
        listing = list_host(self.host, [self.root])
        if self.root not in listing.roots:
            raise ConfigError([f"dataset {self.root} does not exist"], hint="create it, or name another")
        return listing

    def _have(self, volume: Volume | None, steps: Sequence[tuple[Content, StreamFacts]]) -> int:
        """How many of the steps are there."""
        if volume is None:
            return 0
        newest = volume.snapshots[-1].guid if volume.snapshots else Guid("")
        guids = [stream.to_guid for _, stream in steps]
        if newest in guids:
            return guids.index(newest) + 1
        raise BackupError(
            f"{volume.name} exists and is none of the states of this archive",
            hint="nothing is overwritten: rename or destroy it yourself, or restore below another dataset",
        )

    def _check(self, dataset: Dataset, stream: StreamFacts) -> None:
        """Read back what was received, and make it a point again."""
        volume = list_host(self.host, [dataset], depth=1).volumes.get(dataset)
        found = {snapshot.guid: snapshot for snapshot in volume.snapshots} if volume else {}
        snapshot = found.get(stream.to_guid)
        if snapshot is None:
            raise VerificationError(f"{dataset} lacks the snapshot that was received, although the receive succeeded")
        own = {key: text for key, text in stream.point_properties.items() if key.startswith(PROPERTY)}
        if own:
            own[f"{PROPERTY}volume"] = stream.volume
            zfs.set_properties(self.host, [snapshot.full_name], own)


def _keys(choice: Choice, only: Set[str]) -> list[str]:
    """The disks that are meant. Raises `ConfigError` for one that the point does not have."""
    keys = [stream.key for stream in require_inner(choice.content).streams]
    if missing := sorted(only - set(keys)):
        raise ConfigError([f"the point has no disk {', '.join(missing)}"], hint=f"it has {', '.join(keys)}")
    return [key for key in keys if not only or key in only]


def streams_of(choice: Choice, key: str) -> list[tuple[Content, StreamFacts]]:
    """The streams that make one disk at the point, beginning with its last full one."""
    steps: list[tuple[Content, StreamFacts]] = []
    for content in choice.chain:
        for stream in require_inner(content).streams:
            if stream.key != key:
                continue
            if not stream.from_guid:
                steps = []
            elif not steps or steps[-1][1].to_guid != stream.from_guid:
                raise VerificationError(f"{content.path}: {key} does not build on what lies before it")
            steps.append((content, stream))
    return steps


def write_config(choice: Choice, directory: Path) -> Iterator[Path]:
    """The guest's configuration as files, as they were in /etc/pve; those that exist are left alone."""
    inner = require_inner(choice.content)
    for key, suffix in (("conf", "conf"), ("firewall", "fw")):
        if text := inner.config.get(key):
            path = directory / f"{inner.vmid}.{suffix}"
            try:
                with open(path, "x", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(text)
            except OSError as error:
                raise BackupError(f"{path}: {error.strerror}", hint="name another --config-dir") from None
            yield path
