"""The snapshot stage: a recovery point of each guest. First those that are frozen for it, one after another; then the
others, some at a time; and those Proxmox is at work on when all are done."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pve_zfsbackup.app.gather import Assignment, Inventory, Scope, assign, inventory, with_tuned
from pve_zfsbackup.app.hooks import Hooks
from pve_zfsbackup.app.outcome import blocked, failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import (
    BackupError,
    CommandError,
    FreezeError,
    GuestBusyError,
    GuestChangedError,
    GuestMissingError,
    PveError,
)
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.guests import fitting, pack_config, read_config_file, read_lock, read_version
from pve_zfsbackup.host.hooks import facts_of
from pve_zfsbackup.host.quiesce import Window
from pve_zfsbackup.model import Consistency, Guest, Plan, Quiesce, SnapshotGuest
from pve_zfsbackup.plan.snapshot import freezable, plan_snapshot, volumes_of

STAGE: Final = "snapshot"
ATTEMPTS: Final = 3  # at a guest whose configuration is being edited while we look
POLL: Final = 5.0  # seconds between looks at a locked guest
AT_ONCE: Final = 4  # guests that are not frozen: each waits for a transaction group, and they can wait for the same one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Busy:
    """A guest that Proxmox is at work on."""

    item: Assignment
    error: GuestBusyError


class _ToFreezeError(Exception):
    """The guest was changed meanwhile and is to be frozen: not beside others."""


def plan_one(session: Session, found: Inventory, item: Assignment) -> Plan:
    unlocked = session.own_lock and item.guest.lock == session.own_lock
    return plan_snapshot(
        replace(item.guest, lock="") if unlocked else item.guest,
        found.listing,
        now=session.now(),
        suffix=secrets.token_hex(2),
        quiesce=item.quiesce,
        container_freeze=item.container_freeze,
    )


def snapshot(session: Session, found: Inventory, items: Iterable[Assignment]) -> Generator[Result, None, None]:
    """Take a point of every guest. A frozen guest never waits for another one, nor beside others for the pool.

    Guests that are locked are waited for when all others are done, as long as their jobs say; in vain is a failure.
    Without patience they are skipped. Who ends it early waits a moment for those under way, none of which is frozen.
    """
    version = _version(session)
    items = tuple(items)
    try:
        found = with_tuned(session, found, [item.guest for item in items])
    except BackupError as error:
        told = f"what is set on the disks themselves could not be read, and is not in these points: {error.message}"
        yield Result(stage=STAGE, outcome=Outcome.WARNING, message=told, hint=error.hint)
    busy: list[_Busy] = []
    with contextlib.closing(_first(session, found, items, version)) as first:
        for done in first:
            if not isinstance(done, _Busy):
                yield done
            elif session.patient:
                busy.append(done)
            else:
                yield _skipped(done)
    started = time.monotonic()
    while busy:
        still = []
        for waiting in busy:
            waited = time.monotonic() - started
            last = waited >= waiting.item.lock_wait
            tried = last or not _locked(session, waiting.item.guest)
            done = _one(session, None, waiting.item, version) if tried else waiting
            if not isinstance(done, _Busy):
                yield done
            elif last:
                yield _deferred(done, waited)
            else:
                still.append(done)
        busy = still
        if busy:
            time.sleep(POLL)


def _first(
    session: Session, found: Inventory, items: Sequence[Assignment], version: str
) -> Generator[Result | _Busy, None, None]:
    """The first try at each guest. Frozen ones are thawed by this thread, the one that signals interrupt. Where a
    command of the administrator's comes before each snapshot, what follows it is its guest's snapshot, and no other."""
    alone: list[Assignment] = []
    together: list[Assignment] = []
    for item in items:
        freezes, _ = freezable(item.guest, item.quiesce, container_freeze=item.container_freeze)
        (alone if freezes or session.config.hooks.before_snapshot else together).append(item)
    for item in alone:
        yield _one(session, found, item, version)
    changed: list[Assignment] = []
    threads = ThreadPoolExecutor(AT_ONCE)
    try:
        for done in threads.map(lambda item: _beside_others(session, found, item, version), together):
            if isinstance(done, Assignment):
                changed.append(done)
            else:
                yield done
    except BaseException:
        session.runner.cancel()  # leaving waits for the threads, and a pool that hangs would let them wait for minutes
        raise
    finally:
        threads.shutdown(cancel_futures=True)
    for item in changed:
        yield _one(session, None, item, version)


def _beside_others(session: Session, found: Inventory, item: Assignment, version: str) -> Result | _Busy | Assignment:
    """The same as `_one`; the guest itself where that has to wait until it is alone."""
    try:
        return _one(session, found, item, version, alone=False)
    except _ToFreezeError:
        return item


def _deferred(busy: _Busy, waited: float) -> Result:
    waiting = f" (waited {waited:.0f} s)" if waited >= 1 else ""
    error = GuestBusyError(f"{busy.error.message}{waiting}: left to the next run", hint=busy.error.hint)
    return failed(STAGE, error, guest=busy.item.guest)


def _skipped(busy: _Busy) -> Result:
    told = f"{busy.error.message}: no point is made, the guest goes on"
    guest = busy.item.guest
    return Result(stage=STAGE, outcome=Outcome.SKIPPED, vmid=guest.vmid, guest=guest.name, message=told)


def _locked(session: Session, guest: Guest) -> bool:
    """Whether it is worth another try only later. What cannot be read is tried, and tells its own error."""
    try:
        return read_lock(session.api, guest) not in ("", "suspended")
    except PveError:
        return False


def _one(
    session: Session, found: Inventory | None, item: Assignment, version: str, *, alone: bool = True
) -> Result | _Busy:
    """The point of one guest; without `found`, of the guest as it is now: the lock's owner may have changed it. Raises
    `_ToFreezeError` for one that is to be frozen and is not `alone`, before anything was done."""
    try:
        if found is None:
            found, item = _anew(session, item.guest)
        return _taken(session, found, item, version, alone=alone)
    except GuestBusyError as error:
        return _Busy(item=item, error=error)
    except GuestMissingError as error:
        return _left(item.guest, error)
    except _ToFreezeError:
        raise
    except Exception as error:  # also a bug of ours is this guest's alone
        return failed(STAGE, error, guest=item.guest)


def _left(guest: Guest, error: GuestMissingError) -> Result:
    """Migrated, and its new node makes its points now; or removed. No failure: it would be told as one for weeks."""
    return Result(
        stage=STAGE,
        outcome=Outcome.WARNING,
        vmid=guest.vmid,
        guest=guest.name,
        message=f"guest {guest.vmid}: left this node while its point was to be made: {error.message}",
    )


def _taken(session: Session, found: Inventory, item: Assignment, version: str, *, alone: bool) -> Result:
    """Make the point. One that is not what was asked for is taken back, and made once more."""
    started = time.monotonic()
    attempt, discarded = 0, False
    while True:
        attempt += 1
        plan = plan_one(session, found, item)
        if plan.conflicts:
            conflict = plan.conflicts[0]
            if conflict.kind == "locked":
                raise GuestBusyError(f"{conflict.object}: {conflict.message}", hint=conflict.resolve)
            return blocked(STAGE, conflict, guest=item.guest)
        step = plan.steps[0]
        assert isinstance(step, SnapshotGuest)
        if step.freeze and not alone:
            raise _ToFreezeError
        _before(session, step)
        try:
            # Before the freeze: only the snapshot belongs inside.
            texts = texts_of(item.guest, session.pve_root, version)
            window = session.executor.snapshot(step, session.quiescer, _packed(texts), item.freeze_rules)
        except GuestChangedError:  # nothing was snapshotted yet
            if attempt >= ATTEMPTS:
                raise
        else:
            fault = _fault(step, window, texts["conf"], session.pve_root)
            if fault is None:
                return _told(step, window, time.monotonic() - started, left_out=texts.get("left-out", ""))
            session.executor.discard(step)
            if discarded or isinstance(fault, PveError):
                raise fault
            discarded = True
        found, item = _anew(session, item.guest)


def _before(session: Session, step: SnapshotGuest) -> None:
    """The administrator's command; when it fails there is no point."""
    try:
        Hooks(session=session).before("before-snapshot", **facts_of(step))
    except CommandError as error:
        raise BackupError(f"the before-snapshot command failed: {error.message}", hint=error.hint) from None


def _anew(session: Session, guest: Guest) -> tuple[Inventory, Assignment]:
    """The guest and its jobs as they are now."""
    found = inventory(session, only=guest.vmid)
    items, _ = assign(session, found, Scope())
    if not items:
        raise GuestMissingError("it is no longer here, or in no job any more")
    return with_tuned(session, found, [items[0].guest]), items[0]


def _fault(step: SnapshotGuest, window: Window, before: str, root: Path) -> BackupError | None:
    """Why the point just made is none. Raises `GuestMissingError` for a guest that left: nothing speaks against it."""
    vmid, kind = step.guest.vmid, step.guest.kind
    try:
        after = read_config_file(vmid, kind, root=root)["conf"]
    except GuestMissingError:
        raise
    except PveError as error:  # not known is not proven
        return error
    if volumes_of(kind, before) != volumes_of(kind, after):
        return GuestBusyError(
            f"guest {vmid}: its disks were changed each time while its point was made",
            hint="the points were taken back; run this again when its configuration is left alone",
        )
    if step.quiesce is Quiesce.REQUIRE and window.consistency is Consistency.CRASH:
        return FreezeError(vmid, window.reason)
    return None


def _told(step: SnapshotGuest, window: Window, seconds: float, *, left_out: str) -> Result:
    wanted_more = step.freeze and window.consistency not in (Consistency.QUIESCED, Consistency.FROZEN)
    details = (f"freeze window {window.seconds:.3f} s",) if step.freeze else ()
    missed = f"its {left_out} file is too large for the point and not part of it: keep a copy" if left_out else ""
    troubles = [trouble for trouble in (window.trouble, missed) if trouble]
    message = "; ".join([f"{len(step.guest.protected_disks)} disks, {window.label}", *troubles])
    return Result(
        stage=STAGE,
        outcome=Outcome.WARNING if wanted_more or troubles else Outcome.OK,
        vmid=step.guest.vmid,
        guest=step.guest.name,
        point=step.point,
        message=message,
        seconds=seconds,
        details=details,
    )


def _version(session: Session) -> str:
    """Of Proxmox, for the points to carry; nothing fails for the want of it."""
    try:
        return read_version(session.api)[1]
    except (PveError, ValueError, KeyError, TypeError):
        return ""


def texts_of(guest: Guest, root: Path, version: str) -> dict[str, str]:
    """What a point carries of its guest: configuration and firewall file, and what stands elsewhere in Proxmox."""
    texts = read_config_file(guest.vmid, guest.kind, root=root, digest=guest.digest)
    extra = {"pool": guest.pool, "tags": ";".join(guest.tags), "pve": version}
    return fitting({**texts, **{key: text for key, text in extra.items() if text}})


def _packed(texts: Mapping[str, str]) -> Mapping[str, str]:
    """As the values of properties: `conf`, `conf2`, …"""
    return {f"conf{number if number > 1 else ''}": chunk for number, chunk in enumerate(pack_config(texts), 1)}
