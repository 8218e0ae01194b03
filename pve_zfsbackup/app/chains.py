"""`verify points`: every replica point against the source, without reading any data."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from pve_zfsbackup.app.gather import Scope, assign, inventory, target_listings
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.restore_point import unreadable
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.target_check import said_hello
from pve_zfsbackup.app.target_judgement import lapsed
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import zfs
from pve_zfsbackup.model.proof import VERIFIED, Level, Proof, encode_proof
from pve_zfsbackup.model.stages import CHAIN
from pve_zfsbackup.plan.chain import Chain, chain
from pve_zfsbackup.plan.points import GuestPoints, guest_points

STAGE = CHAIN


def verify_points(session: Session, scope: Scope) -> Generator[Chain | Result, None, None]:
    """A verdict for each guest and target, and the failures of targets that did not answer. What is whole is noted on
    the target's snapshots; an append-only target lets nobody do so from here, and is compared all the same."""
    if not session.config.jobs and session.config.receives:
        return  # it need not be a Proxmox node at all
    found = inventory(session)
    items, _ = assign(session, found, scope)
    names = [name for name in session.config.targets if any(name in item.targets for item in items)]
    listings, errors = target_listings(session, names)
    here = guest_points(found.listing)
    for name, listing in listings.items():
        there = guest_points(listing)
        append_only = session.config.targets[name].append_only
        holder = "" if append_only else None
        if append_only:
            try:
                holder = _holder(session, name, there)
            except BackupError as error:
                yield failed(STAGE, error, host=name)
        own = {item.guest.vmid: item.names for item in items if name in item.targets}
        chains: list[Chain] = []
        for vmid, jobs in own.items():
            points = there.of(vmid)
            try:
                refused = unreadable(session.hosts[name], points)
            except BackupError as error:
                yield replace(failed(STAGE, error, host=name), vmid=vmid, jobs=jobs)
                continue
            verdict = chain(vmid, found.listing, listing, here.of(vmid), points, refused)
            chains.append(replace(_judged(verdict, holder), jobs=jobs))
            yield chains[-1]
        if not append_only:
            yield from _note(session, name, chains)
    yield from (failed(STAGE, error, host=name) for name, error in errors.items())


def _holder(session: Session, name: str, there: GuestPoints) -> str:
    """Why nobody holds on an append-only target, where only its own `maintain` does; empty while that can be waited
    for. Raises `BackupError`."""
    hello, _ = said_hello(session.hosts[name])
    since = min((point.creation for vmid in there.vmids for point in there.of(vmid)), default=0)
    return lapsed(hello, since)


def _judged(found: Chain, lapse: str | None) -> Chain:
    """What nothing holds is a problem, but on an append-only target that holds by itself, later. `lapse` tells why it
    does not, None of a target where we hold."""
    if lapse == "":
        told = (f"{name} is not held yet: the target's own maintain does that, every hour" for name in found.unheld)
        return replace(found, notes=(*found.notes, *told))
    why = f": {lapse}" if lapse else ""
    told = (f"{name} is not held, and the next increment starts from it{why}" for name in found.unheld)
    return replace(found, problems=(*found.problems, *told))


def _note(session: Session, name: str, chains: Sequence[Chain]) -> Generator[Result, None, None]:
    new = [point for found in chains for point in found.whole if point.proof is None]
    names = [snapshot.full_name for point in new for snapshot in point.own.values()]
    if not names:
        return
    value = encode_proof(Proof(level=Level.POINTS, at=int(session.now().timestamp())))
    try:
        zfs.set_properties(session.hosts[name], names, {VERIFIED: value})
    except BackupError as error:
        yield failed(STAGE, error, host=name)


def as_result(found: Chain | Result) -> Result:
    """A verdict as a result of a run has it."""
    if isinstance(found, Result):
        return found
    return Result(
        stage=STAGE,
        outcome=Outcome.FAILED if found.problems else Outcome.OK,
        vmid=found.vmid,
        host=found.host,
        message="; ".join(found.problems) or f"{len(found.whole)} of {found.points} points are whole",
        hint="the next replication may mend it; `pve-zfsbackup why replicate` tells" if found.problems else "",
        details=found.notes,
        jobs=found.jobs,
    )


__all__ = ["Chain", "as_result", "verify_points"]
