"""`restore --files`: single files of a point, listed or copied out of clones of its disks, without making the guest.

It runs where the snapshots are, as a drill does: on the node with its own, or, as root on a target, with the replicas.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo
from pathlib import Path
from typing import Final

from pve_zfsbackup.app.gather import inventory
from pve_zfsbackup.app.restore_point import find_point
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Config
from pve_zfsbackup.errors import BackupError, ConfigError, LockedError
from pve_zfsbackup.host.browse import Browser
from pve_zfsbackup.host.clones import Bench, sweep
from pve_zfsbackup.host.copying import Copier
from pve_zfsbackup.host.health import pool_of
from pve_zfsbackup.host.listing import list_target, require
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, Dataset, Listing, Point, Vmid
from pve_zfsbackup.model.files import Found, Sought, parse_sought
from pve_zfsbackup.plan.choice import choose_point
from pve_zfsbackup.plan.drill import WITHOUT, closed
from pve_zfsbackup.plan.points import guest_points

LOCK: Final = "files"
TOP: Final = Sought(text="/", path="/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A point whose files are asked for, and where it is opened. `notes` is what was found seeking it."""

    bench: Bench
    listing: Listing
    point: Point
    notes: tuple[str, ...] = ()

    @property
    def pools(self) -> tuple[str, ...]:
        named = {snapshot.dataset for snapshot in self.point.snapshots.values()} | self.listing.roots
        return tuple(sorted({pool_of(dataset) for dataset in named}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for. `into` is None where nothing is copied; `disks` empty for all that may have
    files."""

    vmid: Vmid
    at: str = ""
    where: str = ""
    paths: tuple[str, ...] = ()
    disks: frozenset[str] = frozenset()
    into: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Browsed:
    """What was found in a point. `notes` is what was not looked into, and what a killed call before had left."""

    point: Point
    found: Found
    notes: tuple[str, ...] = ()


def on_node(session: Session, request: Request) -> Opening:
    """A point of this node. Raises `ConfigError` where there is none: on another host nobody from here can open it."""
    if request.where in session.config.boxes:
        way = f"restore {request.vmid} --from {request.where} --to DATASET --identity FILE"
        raise ConfigError(
            [f"{request.where} is a box: its archives are streams, which have no files before they are received"],
            hint=f"first `{way}`, then `restore {request.vmid} --files --local DATASET`",
        )
    lying = find_point(session, inventory(session), request.vmid, at=request.at, where=request.where)
    if lying.host != SOURCE:
        target = session.config.targets[lying.host]
        raise ConfigError(
            [f"point {lying.point.id} lies on {lying.host}, where the account of this node may not clone or mount"],
            hint=f"as root on {target.host}: `pve-zfsbackup restore {request.vmid} --files --local {target.root} "
            f"--at {lying.point.stamp}`; or restore the guest beside itself with --as, and look into that; "
            "--from source takes what is here",
        )
    own = bench(session.hosts[SOURCE], session.config)
    return Opening(bench=own, listing=lying.listing, point=lying.point, notes=lying.notes)


def at_root(config: Config, runner: Runner, root: Dataset, request: Request, zone: tzinfo) -> Opening:
    """A point below a dataset of this very host. Raises `ConfigError` where there is none."""
    host = Host(name=SOURCE, runner=runner)
    listing = list_target(host, root)
    require(listing, root)
    chosen = choose_point(guest_points(listing).of(request.vmid), request.at, zone, now=time.time())
    if not isinstance(chosen, Point):
        raise ConfigError([f"guest {request.vmid}: {chosen.message} ({chosen.object})"], hint=chosen.resolve)
    return Opening(bench=bench(host, config), listing=listing, point=chosen)


def bench(host: Host, config: Config) -> Bench:
    """One of its own: a drill may take hours, and nobody waits for it who lost a file."""
    return Bench(host=host, place=config.runtime_dir / LOCK, name=LOCK)


def browse(opening: Opening, request: Request, config: Config) -> Browsed:
    """List or copy. What a killed call left is swept first.

    Raises `ConfigError` for what cannot be asked, `LockedError` while another one runs, and what keeps it from looking.
    """
    sought = _sought(request.paths) or (TOP,)
    point, volumes = opening.point, opening.listing.volumes
    keys, notes = _disks(opening, request.disks)
    disks = {key: (point.snapshots[key], volumes[point.snapshots[key].dataset].type == "volume") for key in keys}
    copier = Copier(into=request.into, overwrite=request.overwrite) if request.into else None
    with run_lock(config.runtime_dir, LOCK):
        notes += [f"a call before this one was killed: {told}" for told in sweep(opening.bench, opening.pools)]
        found = Browser(bench=opening.bench).look(disks, sought, copier)
    return Browsed(point=point, found=found, notes=(*opening.notes, *notes))


def sweep_files(own: Bench, config: Config, pools: Iterable[str]) -> list[str]:
    """What a killed call left, taken away by a drill: nobody may look for a file for months, and a clone keeps its
    snapshot. Not while one is at work."""
    left = replace(own, name=LOCK, place=own.place.with_name(LOCK))
    try:
        with run_lock(config.runtime_dir, LOCK):
            return sweep(left, pools)
    except LockedError:
        return []


def _sought(paths: Sequence[str]) -> tuple[Sought, ...]:
    try:
        return tuple(parse_sought(text) for text in dict.fromkeys(paths))
    except ValueError as error:
        raise ConfigError([str(error)]) from None


def _disks(opening: Opening, wanted: frozenset[str]) -> tuple[list[str], list[str]]:
    """Which disks are looked into, and remarks on those that are not."""
    point = opening.point
    if unknown := sorted(wanted - point.snapshots.keys()):
        known = ", ".join(sorted(point.snapshots))
        raise ConfigError([f"point {point.id} has no disk {', '.join(unknown)}"], hint=f"there are: {known}")
    keys = sorted(wanted or {key for key in point.snapshots if not key.startswith(WITHOUT)})
    locked = [key for key in closed(point, opening.listing.volumes) if key in keys]
    told = [f"{key}: encrypted, and its key is not loaded here" for key in locked]
    left = [key for key in keys if key not in locked]
    if not left:
        names = [point.snapshots[key].dataset for key in locked]
        hint = "; ".join(f"zfs load-key {name}" for name in names) or "name one with --disk"
        raise BackupError("; ".join(told) or f"point {point.id} has no disk with files", hint=hint)
    return left, told
