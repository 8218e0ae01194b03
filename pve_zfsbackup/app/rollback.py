"""`rollback`: a guest's disks get back the content of a point, in place. What was there is kept aside."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pve_zfsbackup.app.gather import Inventory, inventory, with_tuned
from pve_zfsbackup.app.planting import went_back
from pve_zfsbackup.app.restore_disks import apply_props, make_places, outdate, remove_places
from pve_zfsbackup.app.restore_receive import look
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.snapshot import texts_of
from pve_zfsbackup.errors import ConfigError, GuestBusyError, GuestMissingError, VerificationError, add_hint
from pve_zfsbackup.host import restoring, zfs
from pve_zfsbackup.host.guest_files import config_path, write_config
from pve_zfsbackup.host.guests import is_running, pack_config, read_snapshots, read_storages
from pve_zfsbackup.host.listing import list_host, tuned
from pve_zfsbackup.host.lock import RESTORE, migration_lock, run_lock
from pve_zfsbackup.host.quiesce import FreezeRules
from pve_zfsbackup.host.rows import SOURCE_COLUMNS
from pve_zfsbackup.host.zfs_keys import encryption
from pve_zfsbackup.model import (
    PROPERTY,
    SOURCE,
    TUNING_PROPS,
    Dataset,
    Guest,
    GuestKind,
    Listing,
    Point,
    PointId,
    Quiesce,
    SnapshotGuest,
    Vmid,
    decode_props,
)
from pve_zfsbackup.model.restore import STAGING
from pve_zfsbackup.plan.choice import choose_point
from pve_zfsbackup.plan.guest_config import settings, with_lock, without_lock
from pve_zfsbackup.plan.points import points_of
from pve_zfsbackup.plan.rollback import LOCK, Rollback, RollbackDisk, plan_rollback, within_roots
from pve_zfsbackup.plan.snapshot import plan_snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """What was done, or would be. `safety` is the point of how it was before."""

    plan: Rollback
    done: bool = False
    safety: PointId | None = None
    notes: tuple[str, ...] = field(default=())


@contextlib.contextmanager
def rolling_alone(session: Session) -> Iterator[None]:
    """No run and no restore is at work meanwhile. Raises `LockedError`."""
    with contextlib.ExitStack() as locks:
        for work in (RESTORE, "snapshot", "replicate"):
            locks.enter_context(run_lock(session.config.runtime_dir, work))
        yield


def prepare_rollback(session: Session, vmid: Vmid, at: str) -> Rollback:
    """Find the point and plan. Raises `GuestMissingError`, and `ConfigError` where there is no such point here."""
    found = inventory(session)
    guest = next((guest for guest in found.guests if guest.vmid == vmid), None)
    if guest is None:
        raise GuestMissingError(f"guest {vmid}: this node has no such guest", hint="`restore` makes it of a point")
    roots = [Dataset(f"{root}/{STAGING}") for root in sorted(found.listing.roots)]
    work = list_host(session.hosts[SOURCE], roots, columns=SOURCE_COLUMNS)
    points = points_of(_both(found, work), vmid)
    chosen = choose_point(points, at, session.timezone, now=session.now().timestamp())
    if not isinstance(chosen, Point):
        raise ConfigError([f"guest {vmid}: {chosen.message} ({chosen.object})"], hint=chosen.resolve)
    theirs = read_snapshots(session.api, guest)
    plan = plan_rollback(guest, chosen, _places(session, guest), found.listing, work, theirs)
    moving = [disk.dataset for disk in plan.disks if disk.aside]
    names = sorted({*moving, *(Dataset(name.rpartition("/")[0]) for name in moving)})
    keys = encryption(session.hosts[SOURCE], names) if names else ()  # without names: all of the host
    return within_roots(plan, {one.name: one.root for one in keys})


def _both(found: Inventory, work: Listing) -> Listing:
    """With what an earlier try has moved out of its place."""
    return replace(found.listing, volumes={**work.volumes, **found.listing.volumes})


def _places(session: Session, guest: Guest) -> list[Dataset]:
    """Where the guest's configuration says its disks are, whether or not they are there right now."""
    storages = read_storages(session.api)
    return sorted(
        {
            Dataset(f"{storages[disk.storage].pool}/{disk.volume}")
            for disk in guest.disks
            if disk.storage in storages and storages[disk.storage].pool and not disk.key.startswith("unused")
        }
    )


def roll_back(session: Session, plan: Rollback) -> RolledBack:
    """Do what was planned. Raises what went wrong: the guest stays locked then, and run again it goes on."""
    guest = plan.guest
    safety = None if plan.begun else _safety_point(session, guest)
    with migration_lock(guest.vmid, directory=session.migration_locks), _lock_told(session, guest):
        _refuse_running(session, guest)
        outdate(session, plan.former)
        _keep_origin(session, plan)
        make_places(session, plan.work, plan.folder, plan.parents)
        _lock(session, guest, locked=True, digest="" if plan.begun else guest.digest)
        try:
            _refuse_running(session, guest)  # until it was locked it could be started
        except GuestBusyError:
            if not plan.begun:  # otherwise its disks may be of two times: it stays locked
                _lock(session, guest, locked=False)
                remove_places(session, plan.work, plan.folder, plan.parents)
            raise
        notes = [note for disk in plan.disks for note in _cloned(session, plan, disk)]
        for disk in plan.disks:
            _exchanged(session, plan, disk)
        notes += went_back(session.config, guest.vmid, plan.point.creation)
        _lock(session, guest, locked=False)
        remove_places(session, plan.work, plan.folder, plan.parents)
    return RolledBack(plan=plan, done=True, safety=safety, notes=tuple(notes))


@contextlib.contextmanager
def _lock_told(session: Session, guest: Guest) -> Iterator[None]:
    """However it ends, a lock that stays is told. While the migration lock is ours nobody else rolls it back."""
    try:
        yield
    except BaseException as error:
        if _locked_by_us(session, guest):
            tool = "qm" if guest.kind is GuestKind.VM else "pct"
            add_hint(
                error,
                f"guest {guest.vmid} stays locked, for its disks may be of two times: the same command goes on; "
                f"to take the lock off: {tool} unlock {guest.vmid}",
            )
        raise


def _locked_by_us(session: Session, guest: Guest) -> bool:
    try:
        text = config_path(guest.vmid, guest.kind, session.pve_root).read_text("utf-8", "surrogateescape")
    except OSError:  # it is gone, or /etc/pve is: what happened tells more
        return False
    return settings(text).get("lock") == LOCK


def _refuse_running(session: Session, guest: Guest) -> None:
    if is_running(session.api, guest):
        raise GuestBusyError(f"guest {guest.vmid}: was started meanwhile", hint="stop it, then run this again")


def _safety_point(session: Session, guest: Guest) -> PointId:
    """A point of ours of how the guest is now. It goes aside with the disks, and can be restored from there."""
    found = with_tuned(session, inventory(session), [guest])
    plan = plan_snapshot(guest, found.listing, now=session.now(), suffix=secrets.token_hex(2), quiesce=Quiesce.OFF)
    for conflict in plan.conflicts:
        raise VerificationError(f"no safety point: {conflict.object}: {conflict.message}", hint=conflict.resolve)
    (step,) = plan.steps
    assert isinstance(step, SnapshotGuest)
    texts = pack_config(texts_of(guest, session.pve_root, ""))
    packed = {f"conf{number if number > 1 else ''}": chunk for number, chunk in enumerate(texts, 1)}
    session.executor.snapshot(step, session.quiescer, packed, FreezeRules())
    return step.point


def _keep_origin(session: Session, plan: Rollback) -> None:
    """Points know their disks by the guid of the dataset they were made of: the promoted clone has another."""
    host = session.hosts[SOURCE]
    for disk in plan.disks:
        volume = look(session, disk.dataset)
        if volume is None or disk.snapshot.dataset != disk.dataset or volume.restored == plan.mark(disk):
            continue
        moving = [s for s in volume.snapshots if s.createtxg <= disk.snapshot.createtxg and s.point and not s.volume]
        if moving:
            names = [snapshot.full_name for snapshot in moving]
            zfs.set_properties(host, names, {f"{PROPERTY}volume": volume.guid})


def _cloned(session: Session, plan: Rollback, disk: RollbackDisk) -> Iterator[str]:
    """The disk at the point, beside it, with its properties."""
    host = session.hosts[SOURCE]
    current = look(session, disk.dataset)
    if current is not None and current.restored == plan.mark(disk):
        return
    if look(session, disk.staging) is None:
        restoring.clone(host, disk.snapshot, disk.staging)
    staged = look(session, disk.staging)
    if staged is None:
        raise VerificationError(f"{disk.staging} is not there, although it was cloned")
    own = restoring.own_properties(host, [disk.snapshot])[disk.snapshot.full_name]
    props = decode_props(own.get("props", "")).get(disk.key) or (current.props if current else {})
    if current is not None:  # in place: what was tuned since stays tuned
        props = {name: text for name, text in props.items() if name not in TUNING_PROPS}
        props |= tuned(host, [disk.dataset])[disk.dataset]
    if note := apply_props(session, disk.staging, props):
        yield f"{disk.dataset} {note.replace('NAME', disk.dataset)}"
    zfs.set_properties(host, [disk.staging], {f"{PROPERTY}restored": f"{plan.mark(disk)},{staged.guid}"})


def _exchanged(session: Session, plan: Rollback, disk: RollbackDisk) -> None:
    """The clone takes over the history and the name; what was there goes aside."""
    host = session.hosts[SOURCE]
    current, staged = look(session, disk.dataset), look(session, disk.staging)
    if current is not None and current.restored == plan.mark(disk):
        return
    if staged is None or staged.restored != plan.mark(disk):
        raise VerificationError(f"{disk.staging} is not what was made for {disk.dataset}")
    if staged.origin.partition("@")[0] == disk.dataset:
        restoring.promote(host, disk.staging)
    promoted = look(session, disk.staging)
    if promoted is None or all(s.guid != disk.snapshot.guid for s in promoted.snapshots):
        raise VerificationError(f"{disk.staging} lacks {disk.snapshot.name} after it was promoted")
    if current is not None:
        assert disk.aside is not None, "there is something to put aside"
        at = int(session.now().timestamp())
        restoring.put_aside(host, disk.dataset, current.guid, disk.aside, by="rollback", at=at)
    restoring.rename(host, disk.staging, promoted.guid, disk.dataset)
    found = look(session, disk.dataset)
    if found is None or found.restored != plan.mark(disk):
        raise VerificationError(f"{disk.dataset} is not what it was rolled back to")


def _lock(session: Session, guest: Guest, *, locked: bool, digest: str = "") -> None:
    """Proxmox's own lock for it in the guest's configuration: it does not start half rolled back."""
    path = config_path(guest.vmid, guest.kind, session.pve_root)
    data = path.read_bytes()
    text = data.decode("utf-8", "surrogateescape")
    now = settings(text.partition("\n[")[0]).get("lock", "")
    if now not in ("", LOCK):
        raise GuestBusyError(f"guest {guest.vmid}: is locked ({now}) by now", hint="run this again when it is not")
    new = with_lock(text, LOCK) if locked else without_lock(text)
    if new != text:
        digest = digest or hashlib.sha1(data, usedforsecurity=False).hexdigest()
        locks = session.migration_locks.parent
        write_config(guest.vmid, guest.kind, new, root=session.pve_root, locks=locks, replaces=digest)
