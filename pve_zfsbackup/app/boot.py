"""`verify drill --boot`: a point's guest started from clones of its disks, beside everything that runs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pve_zfsbackup.app.restore_point import origin_of
from pve_zfsbackup.errors import NotBootedError
from pve_zfsbackup.host.boot import Yard, boot, free_vmid, lacking_memory, sweep_guests
from pve_zfsbackup.host.clones import Bench, cloned, sweep
from pve_zfsbackup.model import GuestKind, Listing, Point
from pve_zfsbackup.model.boot import Booted
from pve_zfsbackup.model.drill import Judgement
from pve_zfsbackup.model.proof import Level
from pve_zfsbackup.plan.boot import bootable


@dataclass(frozen=True, slots=True, kw_only=True)
class Boots:
    """Where guests are started, and with clones on which bench."""

    yard: Yard
    bench: Bench


def boots(bench: Bench, yard: Yard) -> Boots:
    return Boots(yard=yard, bench=replace(bench, name="boot", place=bench.place.with_name("boot")))


def booted(own: Boots, listing: Listing, point: Point) -> Booted | str:
    """Boot a point. A string says why it was not tried. Raises `NotBootedError` when it does not come up."""
    origin = origin_of(own.bench.host, listing, point)
    if origin.kind is not GuestKind.VM:
        return "not booted: containers are not"
    started, vmid = time.monotonic(), free_vmid(own.yard)
    kinds = {key: listing.volumes[snapshot.dataset].type for key, snapshot in point.snapshots.items()}
    disks = {key: (snapshot, kinds[key] == "volume") for key, snapshot in point.snapshots.items()}
    with cloned(own.bench, disks) as clones:
        devices = {key: str(clone.path) for key, clone in clones.items()}
        conf = origin.texts.get("conf", "")
        made = bootable(conf, vmid=vmid, point=point.id, devices=devices, seed=secrets.token_bytes(16))
        if isinstance(made, str):
            return made
        if told := lacking_memory(own.yard, made.memory):
            return told
        system = boot(own.yard, vmid, made.text)
        return Booted(system=system, seconds=time.monotonic() - started)


def judged_boot(own: Boots, listing: Listing, point: Point, judgement: Judgement) -> tuple[Judgement, Booted | None]:
    """A judgement of what lies there, and of whether it comes up."""
    try:
        end = booted(own, listing, point)
    except NotBootedError as error:
        failed = replace(judgement, level=Level.FAILED, problems=(*judgement.problems, error.message))
        return failed, None
    if isinstance(end, str):
        return replace(judgement, notes=(*judgement.notes, end)), None
    told = f"booted: {end.system} answers after {end.seconds:.0f} s"
    return replace(judgement, level=Level.BOOTED, notes=(*judgement.notes, told)), end


def sweep_boots(own: Boots, pools: Sequence[str]) -> Iterator[str]:
    """What a killed boot left: first the guests, which hold their disks."""
    if own.yard.there:
        yield from sweep_guests(own.yard)
    yield from sweep(own.bench, pools)
