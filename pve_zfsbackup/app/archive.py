"""The archive stage: what is due of every guest into each of its boxes, then what has had its time there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pve_zfsbackup.app.archive_expire import expire
from pve_zfsbackup.app.archive_preflight import room_of
from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.archive_write import Order, Writer, Written, begun, send_of
from pve_zfsbackup.app.box import Vault, open_box
from pve_zfsbackup.app.boxes import own_catalog
from pve_zfsbackup.app.catalog import Catalog, Shelf, told
from pve_zfsbackup.app.gather import Assignment, Inventory, inventory
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.archive.inner import StreamFacts
from pve_zfsbackup.archive.names import OUTER, segment_name
from pve_zfsbackup.config import Box
from pve_zfsbackup.errors import BackupError, VerificationError
from pve_zfsbackup.events import Outcome, Progress, Result, Seen
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.guests import unpack_config
from pve_zfsbackup.host.listing import point_properties
from pve_zfsbackup.host.private import write_private
from pve_zfsbackup.model import PROPERTY, SOURCE, Guest, Guid, Plan, Vmid
from pve_zfsbackup.model.archive import ArchivePlan, ArchiveStream, ArchiveTask
from pve_zfsbackup.plan.archive import ArchivePolicy, plan_archive, plan_bookmarks

STAGE = "archive"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One box during a run."""

    session: Session
    vault: Vault
    catalog: Catalog
    shelves: Mapping[Vmid, Shelf]
    writer: Writer


def archive(session: Session, found: Inventory, items: Iterable[Assignment]) -> Generator[Result, None, None]:
    """Archive to every box that jobs name. A box that does not answer fails alone."""
    items = list(items)
    for name in session.config.boxes:
        guests = [item.boxes[name] for item in items if name in item.boxes]
        if not guests:
            continue
        try:
            vault = open_box(session.config, name, session.runner, session.programs)
            with vault.store.kept():
                yield from _to_box(session, found, guests, vault)
        except Exception as error:  # also a bug of ours is this box's alone
            yield failed(STAGE, error, host=name)
        except BaseException:
            session.programs.cancel()  # uploads under way would be waited for, and may take hours
            raise


def archive_plans(
    session: Session, found: Inventory, items: Iterable[Assignment]
) -> Iterator[tuple[Guest, str, Plan, str]]:
    """What the stage would do, for a dry run, in words as well. A box that cannot be asked is a warning."""
    items = list(items)
    for name in session.config.boxes:
        guests = [item.boxes[name] for item in items if name in item.boxes]
        if not guests:
            continue
        try:
            vault = open_box(session.config, name, session.runner, session.programs)
            catalog = own_catalog(vault)
        except BackupError as error:
            yield from ((guest, name, Plan(warnings=(error.message,)), "") for guest in guests)
            continue
        shelves = shelves_by_guest(catalog)
        for guest in guests:
            plan = plan_guest(session, vault, found, guest, shelves.get(guest.vmid))
            would = f"archive {plan.task.point}" if plan.task else ""
            yield guest, name, Plan(reasons=plan.reasons, warnings=plan.warnings), would


def _to_box(session: Session, found: Inventory, guests: Sequence[Guest], vault: Vault) -> Iterator[Result]:
    catalog = own_catalog(vault)
    yield from (_problem(vault, problem) for problem in catalog.all_problems)
    told(vault, catalog)
    work = _Work(
        session=session,
        vault=vault,
        catalog=catalog,
        shelves=shelves_by_guest(catalog),
        writer=Writer(
            vault=vault,
            source=session.hosts[SOURCE],
            stamina=Stamina(seconds=vault.box.retry_hours * 3600),
            now=session.now,
            catalog_recipient=(_catalog_recipient(vault),),
        ),
    )
    for guest in guests:
        yield _one(work, found, guest)
    yield from expire(session, vault, STAGE)
    if room := room_of(vault, session.now().timestamp()):
        session.emit(Seen(room=room))


def plan_guest(session: Session, vault: Vault, found: Inventory, guest: Guest, shelf: Shelf | None) -> ArchivePlan:
    """What is due of one guest."""
    return plan_archive(
        guest,
        found.listing,
        shelf.archived if shelf else (),
        replace(archive_policy(vault.box), now=session.now().timestamp()),
        unusable=shelf.unusable if shelf else frozenset(),
        begun=begun(vault, guest.vmid),
    )


def archive_policy(box: Box) -> ArchivePolicy:
    """When something is due for a box, and when in full, by its configuration."""
    return ArchivePolicy(
        every=box.every_hours * 3600,
        full_days=box.full_days,
        full_increments=box.full_increments,
        full_percent=box.full_percent,
    )


def shelves_by_guest(catalog: Catalog) -> dict[Vmid, Shelf]:
    """The series of each guest that is written to: the one whose newest point is the newest."""
    found: dict[Vmid, Shelf] = {}
    for shelf in sorted(catalog.shelves, key=lambda shelf: max((a.creation for a in shelf.archived), default=0)):
        for archived in shelf.archived[-1:]:
            found[archived.vmid] = shelf
    return found


def _one(work: _Work, found: Inventory, guest: Guest) -> Result:
    started = time.monotonic()
    box = work.vault.box.name
    try:
        shelf = work.shelves.get(guest.vmid)
        plan = plan_guest(work.session, work.vault, found, guest, shelf)
        if plan.task is not None:  # those before it may have taken days, and others prune meanwhile
            found = inventory(work.session, only=guest.vmid)
            plan = plan_guest(work.session, work.vault, found, guest, shelf)
        if plan.task is None:
            return _result(guest, box, Outcome.SKIPPED, plan.reasons[0])
        made, stale = plan_bookmarks(guest, found.listing, plan.task, box)
        executor = work.session.executor
        executor.execute(made)
        order = _order(work, found, plan.task, shelf)
        written = work.writer.write(order, _Told(work, order))
        _confirm(work.vault, written)
        executor.execute(stale)
    except Exception as error:  # also a bug of ours is this guest's alone
        return failed(STAGE, error, guest=guest, host=box)
    kind = "increment" if plan.task.parent else "full"
    resumed = f", {written.skipped} there from an earlier attempt" if written.skipped else ""
    return replace(
        _result(
            guest,
            box,
            Outcome.WARNING if plan.warnings else Outcome.OK,
            f"{kind}, {written.segments} segments{resumed}",
        ),
        point=plan.task.point,
        bytes=written.stored,
        seconds=time.monotonic() - started,
        details=(*plan.warnings, *plan.reasons),
    )


def _order(work: _Work, found: Inventory, task: ArchiveTask, shelf: Shelf | None) -> Order:
    source = work.session.hosts[SOURCE]
    properties = point_properties(source, [stream.snapshot for stream in task.streams])
    facts = tuple(
        _facts(work, found, number, stream, properties[stream.snapshot.full_name])
        for number, stream in enumerate(task.streams, 1)
    )
    own = properties[task.streams[0].snapshot.full_name]
    chunks = [text for key, text in sorted(own.items()) if key.removeprefix(PROPERTY).rstrip("0123456789") == "conf"]
    version = source.run(("zfs", "version")).stdout.partition("\n")[0]
    return Order(
        task=task,
        shelf=shelf,
        facts=facts,
        config=unpack_config(chunks) if chunks else {},
        zfs_version=version,
        estimates=tuple(zfs.estimate(source, send_of(stream)) for stream in task.streams),
    )


def _facts(
    work: _Work, found: Inventory, number: int, stream: ArchiveStream, properties: Mapping[str, str]
) -> StreamFacts:
    source = work.session.hosts[SOURCE]
    argv = zfs.send_argv(send_of(stream))
    told = zfs.zfs(source, "get", "-Hp", "-s", "local", "-o", "property,value", "all", "--", stream.dataset).stdout
    own = dict(line.split("\t", 1) for line in told.splitlines() if "\t" in line)
    ivsets = [_ivset(work, name) for name in (stream.snapshot.full_name, stream.base.full_name if stream.base else "")]
    return StreamFacts(
        number=number,
        key=stream.key,
        volid=stream.volid,
        dataset=stream.dataset,
        volume=stream.volume,
        type=found.listing.volumes[stream.dataset].type,
        snapshot=stream.snapshot.name,
        to_guid=stream.snapshot.guid,
        from_guid=stream.base.guid if stream.base else Guid(""),
        to_ivset=ivsets[0] if stream.raw else Guid(""),
        from_ivset=ivsets[1] if stream.raw else Guid(""),
        raw=stream.raw,
        flags=tuple(word for word in argv[2:] if word.startswith("-") and word != "--"),
        properties=own,
        point_properties=dict(properties),
    )


def _ivset(work: _Work, name: str) -> Guid:
    if not name:
        return Guid("")
    told: str = zfs.zfs(work.session.hosts[SOURCE], "get", "-Hp", "-o", "value", "ivsetguid", name).stdout.strip()
    return Guid(told) if told.isdecimal() else Guid("")


def _confirm(vault: Vault, written: Written) -> None:
    """Success is what was read back."""
    outer = written.signed.outer
    directory = f"{outer.writer}/{outer.path}"
    files = vault.store.list([directory]).get(directory, {})
    sizes = {segment_name(segment.number, segment.sha256): segment.bytes for segment in outer.segments}
    wrong = [name for name, size in sizes.items() if name not in files or files[name].bytes != size]
    if wrong or OUTER not in files:
        raise VerificationError(f"{directory}: {len(wrong)} segments are not there as they were put: {wrong[:3]}")


@dataclass(slots=True)
class _Told:
    """Tells how far the streams of a point are, and how long each has taken."""

    work: _Work
    order: Order
    begun: dict[str, float] = field(default_factory=dict)

    def __call__(self, stream: ArchiveStream, moved: int, done: bool) -> None:
        now = time.monotonic()
        estimate = self.order.estimates[self.order.task.streams.index(stream)]
        self.work.session.emit(
            Progress(
                host=self.work.vault.box.name,
                disk=stream.dataset,
                moved=moved,
                total=max(estimate, moved),
                seconds=now - self.begun.setdefault(stream.key, now),
                done=done,
            )
        )


def _catalog_recipient(vault: Vault) -> Path:
    """A file with the recipient that belongs to this node's catalog key."""
    text = vault.seal.recipient(vault.box.catalog_key_file)
    path = vault.state / f"catalog-{hashlib.sha256(text.encode()).hexdigest()[:8]}.recipient"
    write_private(path, f"{text}\n")
    return path


def _problem(vault: Vault, problem: str) -> Result:
    return Result(
        stage=STAGE,
        outcome=Outcome.FAILED,
        host=vault.box.name,
        message=problem,
        hint="what is damaged is not built upon: a new full archive follows; see `verify archive`",
    )


def _result(guest: Guest, box: str, outcome: Outcome, message: str) -> Result:
    return Result(stage=STAGE, outcome=outcome, vmid=guest.vmid, guest=guest.name, host=box, message=message)
