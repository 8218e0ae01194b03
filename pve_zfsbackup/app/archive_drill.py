"""The drill of a box: whether the identity from the safe opens the newest archive of each guest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pve_zfsbackup.app.archive_read import Reader, require_inner
from pve_zfsbackup.app.archive_upload import Waning
from pve_zfsbackup.app.archive_verify import Level, Verification, Verified
from pve_zfsbackup.app.box import Vault
from pve_zfsbackup.app.catalog import Catalog, Content, read_catalog
from pve_zfsbackup.errors import SealError, StoreError, VerificationError


def drill(vault: Vault, identity: Path, *, note: Callable[[str], None]) -> Verification:
    """Prove that this identity opens the newest archived point of each guest: its manifest, and one segment of each
    stream; and tell what is wrong in the box. Raises `VerificationError` when there is nothing to try it on."""
    catalog = read_catalog(vault, identity=identity)
    newest = newest_contents(catalog)
    if not newest:
        told = "; ".join(catalog.all_problems) or "it is empty"
        raise VerificationError(f"box {vault.box.name}: nothing there that could be opened: {told}")
    with vault.store.kept(), vault.scratch() as spool:
        reader = Reader(vault=vault, spool=spool, stamina=Waning(seconds=vault.box.retry_hours * 3600))
        points = []
        for content in newest:
            note(content.path)
            points.append(_drilled(reader, content, identity))
    return Verification(points=tuple(points), problems=catalog.box_problems)


def newest_contents(catalog: Catalog) -> list[Content]:
    return [shelf.contents[-1] for shelf in catalog.shelves if shelf.contents]


def _drilled(reader: Reader, content: Content, identity: Path) -> Verified:
    problems = list(content.problems)
    read = segments = 0
    try:
        inner = require_inner(content)
        for stream in inner.streams:
            segment = next(segment for segment in inner.segments if segment.stream == stream.number)
            reader.open(content, segment, identity).unlink()
            segments += 1
            read += segment.stored_bytes
    except (VerificationError, SealError, StoreError) as error:
        problems.append(error.message)
    archived = content.archived
    return Verified(
        path=content.path,
        point=archived.point if archived else "",
        level=Level.OPENED,
        segments=segments,
        bytes=read,
        problems=tuple(dict.fromkeys(problems)),
    )
