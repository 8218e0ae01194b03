"""`restore`: a guest, or some of its disks, made of a recovery point. Interrupted anywhere and repeated, it converges.

Disks are received, read back and given their properties beside everything that exists; then they are renamed into their
places; then the configuration is written, which is the switch; then what lost its place is renamed aside.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.app.gather import Inventory, inventory, job_names
from pve_zfsbackup.app.planting import went_back
from pve_zfsbackup.app.restore_disks import (
    bring,
    label_old,
    make_places,
    outdate,
    place,
    put_aside,
    remove_places,
    settle_snapshots,
)
from pve_zfsbackup.app.restore_point import find_origin
from pve_zfsbackup.app.restore_receive import Pull, Supply
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, CommandError, ConfigError, GuestBusyError, PveError
from pve_zfsbackup.host.guest_files import (
    check_writable,
    config_path,
    firewall_path,
    read_nodes,
    read_owners,
    write_firewall,
    writing_config,
)
from pve_zfsbackup.host.guests import config_bytes, is_running, read_storages
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.lock import RESTORE, migration_lock, run_lock
from pve_zfsbackup.host.private import write_private
from pve_zfsbackup.host.pvesh import PveshApi
from pve_zfsbackup.host.rows import SOURCE_COLUMNS
from pve_zfsbackup.model import SOURCE, Dataset, GuestKind, Vmid
from pve_zfsbackup.model.restore import STAGING, Cluster, NodeState, Origin, Restore, Wish
from pve_zfsbackup.plan.restore import plan_restore
from pve_zfsbackup.plan.restore_elsewhere import plan_elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for. `new` is 0 for the vmid the guest had; `where` empty for wherever it is."""

    vmid: Vmid
    at: str = ""
    where: str = ""
    new: int = 0
    replace: int = 0
    disks: frozenset[str] = frozenset()
    storages: Mapping[str, str] = field(default_factory=dict)

    @property
    def wish(self) -> Wish:
        """Raises `ConfigError` where two different guests are named for the same thing."""
        if self.new and self.replace and self.new != self.replace:
            raise ConfigError([f"--as {self.new} and --replace {self.replace} name two different guests"])
        new = Vmid(self.new or self.replace or self.vmid)
        return Wish(vmid=self.vmid, new=new, replace=bool(self.replace), disks=self.disks, storages=self.storages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan with what it was made from."""

    plan: Restore
    state: NodeState
    jobs: tuple[str, ...] = ()  # of the guest the point is of, where it is still here


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was done, or would be."""

    plan: Restore
    done: bool = False
    moved: int = 0
    notes: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()  # files with the configuration the guest had before
    error: str = ""  # why it was not started


@contextlib.contextmanager
def restoring_alone(session: Session) -> Iterator[None]:
    """One restore at a time. Snapshots and replication go on meanwhile. Raises `LockedError`."""
    with run_lock(session.config.runtime_dir, RESTORE):
        yield


def prepare(session: Session, request: Request) -> Prepared:
    """Find the point and plan its restore. Raises `ConfigError` where there is no such point."""
    wish = request.wish
    found = inventory(session)
    origin = find_origin(session, found, wish.vmid, at=request.at, where=request.where)
    return plan_of(session, found, wish, origin)


def plan_of(session: Session, found: Inventory, wish: Wish, origin: Origin) -> Prepared:
    """Plan the restore of a point that was found."""
    state = node_state(session, found, wish)
    jobs = job_names(session.config, next((guest for guest in found.guests if guest.vmid == wish.vmid), None))
    return Prepared(plan=plan_restore(wish, origin, state, secrets.token_bytes(16)), state=state, jobs=jobs)


def tell_elsewhere(
    session: Session, request: Request, node: str, more: Sequence[str] = (), *, origin: Origin | None = None
) -> Restored:
    """What another node of the cluster has to do; nothing is done here. `origin` is a point in a box, `more` as for
    `plan_elsewhere`. Raises as `prepare`."""
    wish = request.wish
    if request.where == SOURCE:
        message = f"--from source names this node's own snapshots, which node {node} cannot read"
        raise ConfigError([message], hint="name a target or a box that has the point")
    cluster = Cluster(
        nodes=read_nodes(session.api), owners=read_owners(session.api), storages=read_storages(session.api)
    )
    if origin is None:
        found = inventory(session)
        origin = find_origin(session, found, wish.vmid, at=request.at, where=request.where, abroad=True)
    return Restored(plan=plan_elsewhere(wish, origin, cluster, node, more))


def node_state(session: Session, found: Inventory, wish: Wish) -> NodeState:
    """What matters of the node for a guest with the wished vmid."""
    guest = next((guest for guest in found.guests if guest.vmid == wish.new), None)
    config = config_bytes(guest.vmid, guest.kind, session.pve_root) if guest else b""
    roots = [Dataset(f"{root}/{STAGING}") for root in sorted(found.listing.roots)]
    owners = read_owners(session.api)
    owner = owners.get(wish.new, session.node)
    return NodeState(
        node=session.node,
        listing=found.listing,
        work=list_host(session.hosts[SOURCE], roots, columns=SOURCE_COLUMNS),
        storages=read_storages(session.api),
        owners=owners,
        guest=guest,
        config=config.decode("utf-8", "surrogateescape"),
        owner_offline=owner != session.node and read_nodes(session.api).get(owner) == "offline",
    )


def carry_out(session: Session, prepared: Prepared, supply: Supply | None = None, *, start: bool = False) -> Restored:
    """Do what was planned. Raises what went wrong: run again, it goes on from there."""
    plan = prepared.plan
    if plan.config:  # it is written last, and hours may be received in vain before
        check_writable(session.pve_root)
    outdate(session, plan.former)
    make_places(session, plan.work, plan.folder, plan.parents)
    moved, notes = bring(session, plan, supply or Pull(session=session, origin=plan.origin.host))
    place(session, plan)
    saved = _switch(session, prepared)
    if not plan.copy and (plan.wish.replace or not plan.wish.disks):
        notes += went_back(session.config, plan.wish.new, plan.origin.point.creation)
    put_aside(session, plan)
    settle_snapshots(session, plan)
    if prepared.state.guest is None:
        notes += tuple(_unowned(plan.wish.new, session.pve_root, saved))
    notes += (*plan.notes, *_surroundings(session, prepared))
    remove_places(session, plan.work, plan.folder, plan.parents)
    error = _started(session, prepared) if start else ""
    return Restored(plan=plan, done=True, moved=moved, notes=notes, saved=saved, error=error)


def _started(session: Session, prepared: Prepared) -> str:
    """Why it does not start: it is restored all the same. One that a disk was laid beside may run."""
    plan, guest = prepared.plan, prepared.state.guest
    try:
        if guest is None or not is_running(session.api, guest):
            _tool(session, plan, "start", str(plan.wish.new))
    except BackupError as error:
        return f"does not start: {error.message}"
    return ""


def _switch(session: Session, prepared: Prepared) -> tuple[str, ...]:
    """Write the configuration: from now on the guest is the restored one. What it had before is kept in a file."""
    plan, guest = prepared.plan, prepared.state.guest
    if not plan.config:
        return ()
    vmid, kind, root = plan.wish.new, plan.origin.kind, session.pve_root
    locks = session.migration_locks.parent

    def stopped() -> None:
        if guest is not None and is_running(session.api, guest):
            raise GuestBusyError(f"guest {vmid}: was started meanwhile", hint="stop it, then run this again")

    with contextlib.ExitStack() as stack:
        if guest is not None:
            stack.enter_context(migration_lock(vmid, directory=session.migration_locks))
            stopped()
        saved = _save(session, prepared)
        label_old(session, plan)
        replaces = guest.digest if guest else ""
        with writing_config(vmid, kind, root=root, locks=locks, replaces=replaces) as write:
            stopped()  # to mark the old disks took its time
            if not _firewall_stays(prepared):
                write_firewall(vmid, plan.firewall, root=root)
            write(plan.config)
    return saved


def _firewall_stays(prepared: Prepared) -> bool:
    """Whether the restored guest goes on with the firewall file that is there: its own, as far as can be known. One
    without a guest may be of any that had the number."""
    plan = prepared.plan
    too_large = plan.origin.texts.get("left-out") == "firewall" and not plan.copy
    return not plan.firewall and (prepared.state.guest is not None or too_large)


def _save(session: Session, prepared: Prepared) -> tuple[str, ...]:
    """The files that are written over or removed, snapshot sections included."""
    plan, root = prepared.plan, session.pve_root
    name = f"{plan.wish.new}-before-{plan.origin.point.stamp}"
    files = {"conf": config_path(plan.wish.new, plan.origin.kind, root)}
    if not _firewall_stays(prepared):
        files["fw"] = firewall_path(plan.wish.new, root)
    saved = []
    for suffix, path in files.items():
        copy = session.config.state_dir / f"replaced/{name}.{suffix}"
        try:
            text = path.read_text("utf-8", "surrogateescape")
            if text not in (plan.config, plan.firewall):
                saved.append(str(_kept(copy, text)))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BackupError(f"{copy}: {error.strerror}", hint="nothing was changed yet: run this again") from None
    return tuple(saved)


def _kept(file: Path, text: str) -> Path:
    """Where the text is kept: this file, or one beside it where an earlier restore of the point kept another text."""
    copy, number = file, 1
    while True:
        try:
            if copy.read_text("utf-8", "surrogateescape") == text:
                return copy
        except FileNotFoundError:
            write_private(copy, text)
            return copy
        number += 1
        copy = file.with_stem(f"{file.stem}-{number}")


def _unowned(vmid: Vmid, root: Path, saved: Sequence[str]) -> Iterator[str]:
    for copy in saved:
        was = f"{firewall_path(vmid, root)} was there although there was no guest {vmid}"
        yield f"{was}; it is not the new guest's: kept as {copy}"


def _surroundings(session: Session, prepared: Prepared) -> Iterator[str]:
    """What Proxmox keeps elsewhere. Nothing of it is worth a failure: what did not work is told."""
    plan, guest = prepared.plan, prepared.state.guest
    if plan.pool and (guest is None or guest.pool != plan.pool):
        try:
            where = {"poolid": plan.pool, "vms": str(plan.wish.new), "allow-move": True}  # out of the one it is in now
            PveshApi(session.runner).put("/pools", **where)
        except PveError as error:
            if "is already a pool member" not in error.message:  # a guest whose file was lost never left its pool
                yield f"guest {plan.wish.new} could not be put into the pool {plan.pool}: {error.message}"
    rescan = ("disk", "rescan") if plan.origin.kind is GuestKind.VM else ("rescan",)
    try:
        _tool(session, plan, *rescan, "--vmid", str(plan.wish.new))
    except CommandError as error:
        yield f"Proxmox did not look at its disks anew: {error.message}"


def _tool(session: Session, plan: Restore, *words: str) -> None:
    """`qm` or `pct`. Raises `CommandError`."""
    tool = "qm" if plan.origin.kind is GuestKind.VM else "pct"
    session.runner.run((tool, *words), timeout=600)
