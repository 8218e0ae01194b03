"""The deepest look at a box: every chain is received into a scratch dataset, as a restore would, its guids are read
back, and the scratch is taken away again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pve_zfsbackup.app.archive_read import Reader, require_inner
from pve_zfsbackup.app.archive_restore import Restorer, chosen
from pve_zfsbackup.app.catalog import Content, Shelf
from pve_zfsbackup.errors import (
    BackupError,
    DatasetNotFoundError,
    FeatureMissingError,
    OutOfSpaceError,
    PoolSuspendedError,
    SealError,
    VerificationError,
    ZfsError,
)
from pve_zfsbackup.host.scratch import available, scratch
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import Dataset

# What is wrong with the pool says nothing about the archive.
_POOLS_OWN = (DatasetNotFoundError, FeatureMissingError, OutOfSpaceError, PoolSuspendedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """Receives below `parent` of this node. The encrypted streams need no key: their guids are read back, and what is
    in them is proven by their own checksums."""

    reader: Reader
    host: Host
    parent: Dataset
    identity: Path

    def look(self, shelf: Shelf, wanted: Sequence[Content]) -> Iterator[tuple[Content, str]]:
        """Each of these points with what is wrong with it: nothing, when it is. One chain lies in the scratch.

        Raises what keeps it from being tried at all: no room, no such pool.
        """
        for _, own in groupby(wanted, key=lambda content: content.signed.outer.generation):
            members = list(own)
            self._room(members)
            for run in _runs(members):
                yield from self._chain(shelf, run)

    def _chain(self, shelf: Shelf, members: Sequence[Content]) -> Iterator[tuple[Content, str]]:
        broken = ""
        with scratch(self.host, self.parent) as place:
            restorer = Restorer(
                reader=self.reader, host=self.host, root=place, identity=self.identity, note=lambda _: None
            )
            for content in members:
                try:
                    restorer.restore(chosen(shelf, content))
                except (VerificationError, SealError, ZfsError) as error:
                    if isinstance(error, _POOLS_OWN) or error.transient:
                        raise
                    yield content, f"cannot be received: {error.message}"
                    broken = content.path
                else:
                    yield content, ""
                if broken:
                    break
            left = members[members.index(content) + 1 :]
        yield from ((content, f"builds on {broken}") for content in left)

    def _room(self, members: Sequence[Content]) -> None:
        """The streams are as large as what they make, within the limits of compression."""
        inners = [require_inner(content) for content in members if content.inner]
        needed = sum(stream.bytes for inner in inners for stream in inner.streams)
        free = available(self.host, self.parent)
        if needed * 11 // 10 > free:
            raise BackupError(
                f"{self.parent} has {free} bytes free, and {members[-1].path} with all it builds on needs {needed}",
                hint="name a larger pool for the scratch, or look at fewer guests by --guest",
            )


def _runs(members: Sequence[Content]) -> Iterator[list[Content]]:
    """Points that one scratch can take one after another. A disk whose full stream comes once more, in the middle of a
    chain, cannot be received over what it was: from that point on it is another scratch."""
    run: list[Content] = []
    there: set[str] = set()
    for content in members:
        streams = content.inner.streams if content.inner else ()
        if there & {stream.volid for stream in streams if not stream.from_guid}:
            yield run
            run, there = [], set()
        run.append(content)
        there |= {stream.volid for stream in streams}
    yield run
