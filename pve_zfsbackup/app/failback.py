"""`failback`: a guest that was taken over goes home with what it wrote. The source's host is reached by ssh, as root.

While the guest still runs here, most of it travels; then it is shut down, the rest follows, and its disks there change
places, with the guest locked there. Every step looks first at what is there: interrupted anywhere and repeated, it goes
on.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pve_zfsbackup.app.failback_lock import Lock, lock_there
from pve_zfsbackup.app.failback_way import Way, look_there
from pve_zfsbackup.app.meter import Meter
from pve_zfsbackup.app.restore_disks import apply_props, make_places, remove_places
from pve_zfsbackup.app.restore_receive import look
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, CommandError, VerificationError
from pve_zfsbackup.host import destroying, restoring, zfs
from pve_zfsbackup.host.guests import is_running
from pve_zfsbackup.host.listing import tuned
from pve_zfsbackup.host.pipeline import Chain, carry
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import (
    SOURCE,
    Dataset,
    Guest,
    GuestKind,
    PointId,
    Send,
    Volume,
)
from pve_zfsbackup.plan.failback import PREFIX, Failback, Return, tool
from pve_zfsbackup.plan.failover import HOLD, replicas_of
from pve_zfsbackup.plan.points import points_of
from pve_zfsbackup.plan.takeover import FAILOVER


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was given back, or would be. `moved` are bytes, `full` what a whole send would have been."""

    plan: Failback
    done: bool = False
    moved: int = 0
    full: int = 0
    notes: tuple[str, ...] = ()
    started: bool = False
    error: str = ""  # why it was not started


def failback(way: Way, *, start: bool = False) -> Given:
    """Bring it home. Raises what went wrong: run again, it goes on from there."""
    moved, notes = (0, ("it was at home",)) if way.home else _travel(way)
    full = _full(way)  # after the role there is nothing left to ask: a repetition would be refused
    if not way.home:
        _hand_over(way)
    _tidy(way)
    error = _start(way) if start else ""
    if not error:  # last of all: as long as there is one, a repetition knows that something is left (`Way.home`)
        _forget(way, way.session, [disk.here for disk in way.plan.disks])
    return Given(
        plan=way.plan, done=True, moved=moved, full=full, notes=notes, started=start and not error, error=error
    )


def _travel(way: Way) -> tuple[int, tuple[str, ...]]:
    """What it wrote goes home, and its disks there change places. Returns bytes moved, and remarks."""
    session, there, plan, guest = way.session, way.there, way.plan, way.guest
    host = there.hosts[SOURCE]
    with lock_there(host, guest, held=plan.locked) as lock:
        make_places(there, plan.work, plan.folder, plan.parents)
        moved = _bring(way) if is_running(session.api, guest) else 0  # the most of it, while the guest works on
        _shut_down(session, guest)
        moved += _bring(way)
        notes = _exchanged(way, lock)
    remove_places(there, plan.work, plan.folder, plan.parents)  # after the lock, which they tell of as ours
    rescan = ("disk", "rescan") if guest.kind is GuestKind.VM else ("rescan",)
    notes += _told(host, (tool(guest), *rescan, "--vmid", str(guest.vmid)), "its sizes were not looked at anew")
    notes += _told(  # before the marks go: afterwards nothing would keep the two from running both
        session.hosts[SOURCE],
        (tool(guest), "set", str(guest.vmid), "--onboot", "0"),
        "it would start here again at the next boot",
    )
    return moved, (*plan.notes, *notes)


def _start(way: Way) -> str:
    """Start it there, where it does not run yet. Returns why it did not start: it is at home all the same."""
    host = way.there.hosts[SOURCE]
    try:
        if not look_there(host, way.guest, may_run=True):
            host.run((tool(way.guest), "start", str(way.guest.vmid)), timeout=600)
    except CommandError as error:
        return f"does not start on {host.name}: {error.message}"
    return ""


def _full(way: Way) -> int:
    return sum(volume.refer for disk in way.plan.disks if (volume := look(way.there, disk.name)))


def _told(host: Host, argv: Sequence[str], trouble: str) -> tuple[str, ...]:
    """A command that is no reason to fail."""
    try:
        host.run(argv, timeout=600)
    except CommandError as error:
        return (f"{trouble}: {error.message}",)
    return ()


def _bring(way: Way) -> int:
    """A snapshot of all disks, and what is missing of it to the other side; read back."""
    session, plan = way.session, way.plan
    name = f"{PREFIX}{session.now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"  # two passes may share a second
    left = [disk for disk in plan.disks if not _home(way, disk)]
    pools: dict[str, list[Dataset]] = {}
    for disk in left:
        pools.setdefault(disk.here.partition("/")[0], []).append(disk.here)
    zfs.snapshot(session.hosts[SOURCE], tuple(pools.values()), name, {})
    return sum(_send(way, disk, name) for disk in left)


def _send(way: Way, disk: Return, name: str) -> int:
    here, there = look(way.session, disk.here), look(way.there, disk.staging)
    assert here is not None
    goal = next(snapshot for snapshot in here.snapshots if snapshot.name == name)
    if there and there.resume:  # an interrupted one begins anew: what it has is of a snapshot that may be gone
        zfs.abort_receive(way.there.hosts[SOURCE], disk.staging)
        there = look(way.there, disk.staging)
    known = {snapshot.guid for snapshot in there.snapshots} if there else set()
    if goal.guid in known:
        return 0
    common = [snapshot for snapshot in here.snapshots if snapshot.guid in known]
    if not common and (there or not (disk.raw or disk.base)):
        raise VerificationError(
            f"{disk.staging} on the source has nothing in common with {disk.here}",
            hint=f"look at it, then there: zfs destroy -r {disk.staging}",
        )
    base = common[-1] if common else disk.base
    origin = "" if common or disk.raw else disk.origin
    step = Send(
        host=SOURCE, snapshot=goal, base=None if disk.raw and not common else base, dataset=disk.staging, raw=disk.raw,
        origin=origin,
    )  # fmt: skip
    chain = Chain(streams=(step,), size=goal.refer)
    receiver = way.there.hosts[SOURCE]
    meter = Meter(way.session.emit, host=receiver.name, disk=disk.here, size=goal.refer)
    carry(way.session.hosts[SOURCE], receiver, [chain], meter)
    if chain.error:
        raise chain.error
    after = look(way.there, disk.staging)
    if after is None or all(snapshot.guid != goal.guid for snapshot in after.snapshots):
        raise VerificationError(f"{disk.staging} on the source lacks {goal.name} (guid {goal.guid})")
    return chain.moved


def _home(way: Way, disk: Return) -> bool:
    """Whether the disk has its place again: an earlier try came that far. Raises `VerificationError` when it was
    written to after that: the guest was started here once more."""
    if _newest(look(way.session, disk.here)) not in _guids(look(way.there, disk.name)):
        return False
    told = zfs.zfs(way.session.hosts[SOURCE], "get", "-Hp", "-o", "value", "written", "--", disk.here)
    if told.stdout.strip() != "0":
        raise VerificationError(
            f"{disk.here} was written to after it had gone home as {disk.name}",
            hint="stop the guest here; decide which of the two counts: nothing was lost yet",
        )
    return True


def _newest(volume: Volume | None) -> str:
    """Guid of the newest snapshot a failback made."""
    mine = [s.guid for s in volume.snapshots if s.name.startswith(PREFIX)] if volume else []
    return mine[-1] if mine else "none"


def _guids(volume: Volume | None) -> set[str]:
    return {snapshot.guid for snapshot in volume.snapshots} if volume else set()


def _shut_down(session: Session, guest: Guest) -> None:
    if not is_running(session.api, guest):
        return
    limit = int(session.config.failover.shutdown)
    try:
        session.runner.run((tool(guest), "shutdown", str(guest.vmid), "--timeout", str(limit)), timeout=limit + 60)
    except CommandError as error:
        raise BackupError(
            f"guest {guest.vmid}: does not shut down, and stays here: {error.message}",
            hint="shut it down yourself, then run this again; what was sent stays",
        ) from None
    _refuse_running(session, guest)


def _refuse_running(session: Session, guest: Guest) -> None:
    """What it writes here from now on would stay behind."""
    if is_running(session.api, guest):
        raise BackupError(f"guest {guest.vmid}: runs, and stays here", hint="shut it down, then run this again")


def _exchanged(way: Way, lock: Lock) -> tuple[str, ...]:
    """All disks in their places, and the lock gone. Returns remarks."""
    left = [disk for disk in way.plan.disks if not _home(way, disk)]
    notes = [note for disk in left for note in _dressed(way, disk)]
    if left:
        lock.torn = len(left) < len(way.plan.disks) or any(look(way.there, disk.name) is None for disk in left)
        lock.take()
        for disk in left:
            notes += _placed(way, disk, lock)
    if lock.held:
        lock.let_go()
    return tuple(notes)


def _dressed(way: Way, disk: Return) -> Iterator[str]:
    """What was sent gets the properties of the old disk, and the key of the storage."""
    there, host = way.there, way.there.hosts[SOURCE]
    new = look(there, disk.staging)
    if new is None or _newest(look(way.session, disk.here)) not in _guids(new):
        raise VerificationError(f"{disk.staging} on the source is not what was sent")
    # It stays so, though the new disk is a clone; one that was added meanwhile stays as it is here.
    at, name = (host, disk.name) if look(there, disk.name) else (way.session.hosts[SOURCE], disk.here)
    short = apply_props(there, disk.staging, {**disk.props, **tuned(at, [name])[name]})
    note = restoring.inherit_key(host, disk.staging, Dataset(disk.name.rpartition("/")[0])) if disk.raw else ""
    if text := "; ".join(part for part in (note, short) if part):
        yield f"{disk.name} {text.replace('NAME', disk.name)}"


def _placed(way: Way, disk: Return, lock: Lock) -> Iterator[str]:
    """The new disk takes the old one's name; the old one is kept aside, with what was written after the point."""
    host = way.there.hosts[SOURCE]
    _refuse_running(way.session, way.guest)  # somebody may have started it since: streams take hours
    look_there(host, way.guest)  # and there, until it was locked
    new, old = look(way.there, disk.staging), look(way.there, disk.name)
    if new is None:
        raise VerificationError(f"{disk.staging} on the source is gone")
    if new.origin:
        restoring.promote(host, disk.staging)
    lock.torn = True
    if old is not None:
        at = int(way.session.now().timestamp())
        restoring.put_aside(host, disk.name, old.guid, disk.aside, by="failback", at=at)
        yield f"{disk.name}: what it had there is kept as {disk.aside}"
    restoring.rename(host, disk.staging, new.guid, disk.name)


def _hand_over(way: Way) -> None:
    """The marks, when all is proven to be there."""
    for disk in way.plan.disks:
        if not _home(way, disk):
            raise VerificationError(f"{disk.name} on the source is not what was sent: the role stays here")
    _refuse_running(way.session, way.guest)
    for name in way.taken.datasets:
        zfs.zfs(way.session.hosts[SOURCE], "inherit", FAILOVER, name)


def _tidy(way: Way) -> None:
    """Holds that a failover made for itself, and what a failback made on the source."""
    replicas = replicas_of(points_of(way.replicas, way.guest.vmid))
    held = [s for name in replicas for s in way.replicas.volumes[name].snapshots if s.userrefs]
    copies = [s for d in way.plan.disks if (v := look(way.session, d.here)) for s in v.snapshots if s.userrefs]
    zfs.release(way.session.hosts[SOURCE], HOLD, [*held, *copies])
    _forget(way, way.there, [disk.name for disk in way.plan.disks])


def _forget(way: Way, session: Session, names: Sequence[Dataset]) -> None:
    """The snapshots that a failback made of these."""
    for name in names:
        volume = look(session, name)
        mine = [s for s in volume.snapshots if s.name.startswith(PREFIX) and not s.clones] if volume else []
        # Ours by their name and by where they are; `destroy` looks at the guid again.
        mine = [replace(s, point=PointId(f"{way.guest.vmid}/failback")) for s in mine]
        destroying.destroy(session.hosts[SOURCE], mine)
