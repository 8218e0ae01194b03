"""The snapshot stage: a recovery point of each guest."""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

from pve_zfsbackup.app.gather import Assignment, Inventory
from pve_zfsbackup.app.outcome import blocked, failed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.guests import pack_config, read_config_file
from pve_zfsbackup.model import Consistency, Guest, Plan, SnapshotGuest
from pve_zfsbackup.plan.snapshot import plan_snapshot

STAGE = "snapshot"


def plan_one(session: Session, found: Inventory, item: Assignment) -> Plan:
    return plan_snapshot(
        item.guest, found.listing, now=session.now(), suffix=secrets.token_hex(2), quiesce=item.quiesce
    )


def snapshot(session: Session, found: Inventory, items: Iterable[Assignment]) -> Generator[Result, None, None]:
    """Take a point of every guest, one after another; a frozen guest never waits for another one."""
    for item in items:
        yield _one(session, found, item)


def _one(session: Session, found: Inventory, item: Assignment) -> Result:
    guest = item.guest
    started = time.monotonic()
    try:
        plan = plan_one(session, found, item)
        if plan.conflicts:
            return blocked(STAGE, plan.conflicts[0], guest=guest)
        step = plan.steps[0]
        assert isinstance(step, SnapshotGuest)
        config = _config(guest, session.pve_root)  # before the freeze: nothing but the snapshot belongs inside
        window = session.executor.snapshot(step, session.quiescer, lambda _: config, item.freeze_limit)
    except Exception as error:  # also a bug of ours is this guest's alone
        return failed(STAGE, error, guest=guest)
    wanted_more = step.freeze and window.consistency is not Consistency.QUIESCED
    return Result(
        stage=STAGE,
        outcome=Outcome.WARNING if wanted_more else Outcome.OK,
        vmid=guest.vmid,
        guest=guest.name,
        point=step.point,
        message=f"{len(guest.protected_disks)} disks, {window.label}",
        seconds=time.monotonic() - started,
        details=(f"freeze window {window.seconds:.3f} s",) if step.freeze else (),
    )


def _config(guest: Guest, root: Path) -> Mapping[str, str]:
    """The guest's configuration and firewall file, packed for the point's properties: `conf`, `conf2`, …"""
    chunks = pack_config(read_config_file(guest.vmid, guest.kind, root=root, digest=guest.digest))
    return {f"conf{number if number > 1 else ''}": chunk for number, chunk in enumerate(chunks, 1)}
