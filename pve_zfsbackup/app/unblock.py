"""`unblock-rollback`: make way for Proxmox to roll a guest back to one of its own snapshots."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from pve_zfsbackup.app.gather import inventory, target_listings
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, GuestMissingError
from pve_zfsbackup.host.guests import read_snapshots
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.model import SOURCE, Guest, Vmid
from pve_zfsbackup.plan.unblock import NextSend, Unblock, plan_unblock

__all__ = ["NextSend", "Unblocked", "unblock"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unblocked:
    """What was done, or would be."""

    guest: Guest
    plan: Unblock
    errors: Mapping[str, BackupError]  # of targets that did not answer
    done: bool = False


def unblock(session: Session, vmid: Vmid, name: str = "", *, dry_run: bool = False) -> Unblocked:
    """Remove what of ours is newer than the guest's snapshot `name`, without a name its newest.

    No run may be at work meanwhile: all their locks are taken. Raises `LockedError`, `GuestMissingError` for a guest or
    a snapshot that Proxmox does not know, and what keeps a snapshot from being destroyed; a conflict is in the plan.
    """
    with contextlib.ExitStack() as locks:
        for work in ("snapshot", "replicate", "archive") if not dry_run else ():
            locks.enter_context(run_lock(session.config.runtime_dir, work))
        found = inventory(session, only=vmid)
        if not found.guests:
            raise GuestMissingError(f"guest {vmid}: this node has no such guest")
        (guest,) = found.guests
        known = read_snapshots(session.api, guest)
        if name and name not in known:
            told = ", ".join(known) or "none"
            raise GuestMissingError(f"guest {vmid}: Proxmox has no snapshot {name}", hint=f"there are: {told}")
        if not known:
            raise GuestMissingError(f"guest {vmid}: Proxmox has no snapshot of it that could be rolled back to")
        targets = tuple(session.config.targets)
        listings, errors = target_listings(session, targets)
        world = {SOURCE: found.listing, **listings}
        plan = plan_unblock(guest, name or known[-1], world, targets, tuple(session.config.boxes))
        if plan.conflicts or dry_run:
            return Unblocked(guest=guest, plan=plan, errors=errors)
        session.executor.execute(plan.steps)
        return Unblocked(guest=guest, plan=plan, errors=errors, done=True)
