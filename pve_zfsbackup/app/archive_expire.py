"""What has had its time in a box: first a signed statement that it is no longer alive, then each point child-first,
its manifest before its segments. Cut anywhere, what is alive is whole, and the next run goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import UTC
from pathlib import Path

from pve_zfsbackup.app.archive_publish import give_up, given_up, publish_removal
from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.archive_write import forget_stale, unfinished
from pve_zfsbackup.app.box import Vault
from pve_zfsbackup.app.boxes import own_catalog
from pve_zfsbackup.app.catalog import Catalog, Shelf
from pve_zfsbackup.app.catalog_memory import memory_of
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.archive.chain import Signed
from pve_zfsbackup.archive.names import (
    INNER,
    INNER_SIGNATURE,
    OUTER,
    OUTER_SIGNATURE,
    README,
    SCRIPT,
    SEGMENT,
    TEMPORARY,
    segment_name,
)
from pve_zfsbackup.archive.outer import REMOVAL
from pve_zfsbackup.errors import StoreForbiddenError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.lock import ARCHIVES, being_read
from pve_zfsbackup.host.notebook import read_json, write_json
from pve_zfsbackup.host.store import SAFE_PATH, Entry
from pve_zfsbackup.model.archive import ArchiveVerdict
from pve_zfsbackup.plan.archive import BEGUN_DAYS, plan_expiry, removals

ORPHAN_SECONDS = 7 * 86_400
ORPHANS = "orphans.json"
PUT_OFF = "put-off.json"
RCLONE_PARTIAL = re.compile(r"(.+)\.[0-9A-Za-z]{1,16}\.partial")  # since its 1.63 (rclone.org/docs, --partial-suffix)
MEMBERS = frozenset({OUTER, OUTER_SIGNATURE, INNER, INNER_SIGNATURE, README, SCRIPT})
LONG = 7 * 86_400  # seconds; no restore takes that long


def expire(session: Session, vault: Vault, stage: str) -> Iterator[Result]:
    """Remove what no rule keeps, of every series this node wrote that is sound. Where the box lets nothing be removed,
    that is said once and nothing is tried any more."""
    if vault.only_adds:
        return  # told when it was seen
    try:
        yield from _expired(session, vault, stage)
    except StoreForbiddenError as error:
        vault.note_only_adds(error.message)
        yield Result(
            stage=stage,
            outcome=Outcome.WARNING,
            host=vault.box.name,
            message=f"the box lets nothing be removed: {error.message}",
            hint=f"all archives stay from now on; once it may remove again, `setup box {vault.box.name}` notices",
            alarm=True,
        )


def _expired(session: Session, vault: Vault, stage: str) -> Iterator[Result]:
    forget_stale(vault, session.now().timestamp() - BEGUN_DAYS * 86_400)
    catalog = own_catalog(vault)
    for shelf in catalog.shelves:
        if being_read(session.config.runtime_dir, ARCHIVES):
            yield _put_off(session, vault, stage)
            return
        if not _settled(shelf, _proven(vault, shelf)):
            continue  # told already
        try:
            started = time.monotonic()
            gone = _expire(session, vault, shelf)
            if gone:
                archived = shelf.archived[-1]
                yield Result(
                    stage=stage,
                    outcome=Outcome.OK,
                    vmid=archived.vmid,
                    host=vault.box.name,
                    message=f"{gone} archived points removed",
                    seconds=time.monotonic() - started,
                )
            if back := [signed for signed in shelf.series.leftover if not _ours_to_remove(signed, given_up(vault))]:
                yield _put_back(vault, stage, shelf, back)
        except StoreForbiddenError:
            raise
        except Exception as error:  # also a bug of ours is this series' alone
            yield failed(stage, error, host=vault.box.name)
    (vault.state / PUT_OFF).unlink(missing_ok=True)
    collect_orphans(vault, catalog, unfinished(vault).keys(), now=session.now().timestamp())


def _put_back(vault: Vault, stage: str, shelf: Shelf, back: Sequence[Signed]) -> Result:
    """Genuine points that were gone, so that what is written since does not count them, and are there again."""
    where = ", ".join(sorted(f"{vault.writer}/{signed.outer.path}" for signed in back)[:3])
    return Result(
        stage=stage,
        outcome=Outcome.WARNING,
        vmid=shelf.archived[-1].vmid,
        host=vault.box.name,
        message=f"{len(back)} points were gone from the box and are back, and no newer manifest counts them: {where}",
        hint="nothing of ours removes them, and restore.sh in their generation reads them; remove them by hand when "
        "they are not wanted",
        alarm=True,
    )


def _ours_to_remove(signed: Signed, ours: Set[str]) -> bool:
    """Whether what is not alive was given up by us, and its removal cut, or is but a statement. What somebody took away
    and put back, from a copy or a snapshot of the provider's, is not alive either."""
    return signed.outer.what == REMOVAL or signed.outer.point in ours


def _put_off(session: Session, vault: Vault, stage: str) -> Result:
    """Said each time, with since when, and loudly where it never ends: a reader that hangs would fill the box."""
    path, now = vault.state / PUT_OFF, session.now().timestamp()
    since = min(_since(path).get("since", now), now)
    write_json(path, {"since": since})
    long = now - since >= LONG
    days, hours = divmod(int(now - since) // 3600, 24)
    told = f"; nothing has been for {f'{days} days' if days else f'{hours} hours'}" if days or hours else ""
    return Result(
        stage=stage,
        outcome=Outcome.WARNING if long else Outcome.SKIPPED,
        host=vault.box.name,
        message=f"nothing is removed from the box: it is being read, and what is read must stay{told}",
        hint=f"does it hang? `lslocks` tells who has a lock in {session.config.runtime_dir}" if long else "",
        alarm=long,
    )


def _settled(shelf: Shelf, proven: Set[str]) -> bool:
    """Whether anything may be removed: nothing from a series that is not as it was written, or cannot be read. Where
    only segments are damaged, as soon as the newest chain is whole and was read back: the box would fill for ever."""
    if shelf.series.problems or not all(content.inner for content in shelf.contents):
        return False
    damaged = shelf.unusable
    return not damaged or shelf.contents[-1].signed.outer.generation in proven - damaged


def _proven(vault: Vault, shelf: Shelf) -> frozenset[str]:
    """The generations that were read back."""
    read = vault.proven()
    points: dict[str, bool] = {}
    for content in shelf.contents:
        outer = content.signed.outer
        points[outer.generation] = points.get(outer.generation, True) and outer.point in read
    return frozenset(generation for generation, whole in points.items() if whole)


def verdicts(session: Session, vault: Vault, shelf: Shelf) -> tuple[ArchiveVerdict, ...]:
    """What stays and why."""
    return plan_expiry(
        shelf.archived,
        vault.box.keep,
        _proven(vault, shelf),
        tz=session.timezone,
        now=int(session.now().timestamp()),
        damaged=shelf.unusable,
    )


def _expire(session: Session, vault: Vault, shelf: Shelf) -> int:
    going = removals(verdicts(session, vault, shelf))
    if going:
        made = session.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        stamina = Stamina(seconds=vault.box.retry_hours * 3600)
        publish_removal(vault, stamina, shelf, [archived.name for archived in going], made)
    ours = given_up(vault)
    leftover = [signed for signed in shelf.series.leftover if _ours_to_remove(signed, ours)]
    files = {content.signed.outer.path: content.files for content in shelf.contents}
    memory_of(vault).removing([*(one.name for one in going), *(one.outer.path for one in leftover)])
    for archived in going:
        path = f"{archived.generation}/{archived.name}"
        _remove(vault, f"{vault.writer}/{path}", files[path])
    for signed in sorted(leftover, key=lambda signed: -signed.outer.sequence):
        place = f"{vault.writer}/{signed.outer.path}"
        _remove(vault, place, vault.store.list([place]).get(place, {}))
    if going or leftover:
        _empty(vault, {archived.generation for archived in going} | {s.outer.generation for s in leftover})
    done = {archived.name for archived in going} | {signed.outer.point for signed in leftover}
    if ours & done:
        give_up(vault, ours - done)
    return len(going)


def _remove(vault: Vault, directory: str, files: Mapping[str, Entry]) -> None:
    """The outer manifest first: without it there is no point, whatever else is left."""
    names = [name for name in files if SAFE_PATH.match(name) and not files[name].directory]
    for batch in ([name for name in names if name == OUTER], [name for name in names if name != OUTER]):
        if batch:
            vault.store.remove([f"{directory}/{name}" for name in batch])
    vault.store.remove_directory(directory)


def _empty(vault: Vault, generations: Set[str]) -> None:
    """Generations in which nothing but the kit is left."""
    places = [f"{vault.writer}/{generation}" for generation in sorted(generations)]
    for place, files in vault.store.list(places).items():
        if not files.keys() - {README, SCRIPT}:
            vault.store.remove([f"{place}/{name}" for name in files])
            vault.store.remove_directory(place)


def collect_orphans(vault: Vault, catalog: Catalog, own: Set[str], *, now: float) -> list[str]:
    """Remove what no manifest speaks of, seven days after it was first seen; returns what was removed.

    Whole directories without an outer manifest (one that is there and not genuine is for a person to look at, and so is
    what is left of a point that lost its own), and beside a point what an attempt brought that was killed before it
    knew: segments under another name, cut uploads.
    """
    path = vault.state / ORPHANS
    seen = _since(path)
    memory = memory_of(vault)
    strays = {place for place, files in catalog.strays.items() if place not in own and OUTER not in files}
    found = {place for place in strays if not memory.knows(place)}
    bare = {place for place, files in catalog.generations.items() if not any(e.directory for e in files.values())}
    loose = set(_loose(catalog))
    since = {place: min(seen.get(place, now), now) for place in sorted(found | bare | loose)}
    old = [place for place, first in since.items() if now - first >= ORPHAN_SECONDS]
    for place in old:
        if place in found:
            _remove(vault, place, catalog.strays[place])
        del since[place]
    vault.store.remove([place for place in old if place in loose])
    _empty(vault, {place.split("/")[1] for place in old if place not in loose})
    if since != seen:
        write_json(path, since)
    return old


def _loose(catalog: Catalog) -> Iterator[str]:
    for shelf in catalog.shelves:
        for content in shelf.contents if not shelf.problems else ():
            own = {segment_name(segment.number, segment.sha256) for segment in content.signed.outer.segments}
            names = (name for name, entry in content.files.items() if not entry.directory and name not in own)
            loose = (name for name in names if SEGMENT.match(name) or _is_cut(name))
            yield from (f"{content.path}/{name}" for name in loose)
    for place, files in catalog.generations.items():
        yield from (f"{place}/{name}" for name, entry in files.items() if _is_cut(name) and not entry.directory)


def _is_cut(name: str) -> bool:
    """Whether it is what an upload that was cut leaves: ours, or rclone's beside the name it was to have."""
    theirs = RCLONE_PARTIAL.fullmatch(name)
    return bool(TEMPORARY.match(name) or (theirs and (SEGMENT.match(theirs[1]) or theirs[1] in MEMBERS)))


def _since(path: Path) -> dict[str, float]:
    return {str(key): float(value) for key, value in (read_json(path) or {}).items()}
