"""Which guests are drilled when, and what a drill's findings say about a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pve_zfsbackup.model import Dataset, Point, Vmid, Volume
from pve_zfsbackup.model.drill import Contents, Expected, Judgement, Look, State
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.model.proof import Level
from pve_zfsbackup.plan.canary import canary_notes, canary_problem
from pve_zfsbackup.plan.proven import last_drill

WITHOUT: Final = ("efidisk", "tpmstate", "vmstate")  # keys of disks that never have a file system
AGAIN: Final = 86_400  # seconds after which one that failed is tried again
EMPTY: Final = 1 << 20  # so little does a disk refer to that nobody ever wrote on
UNMARKED: Final = 64 << 20  # bytes: what is in a larger part of a disk says what it is, or was damaged
# Types of partitions that may be larger and never say so: Microsoft's reserved one and those of its dynamic disks,
# swap of FreeBSD (a pfSense has it) and of OpenBSD and NetBSD, which is in their own table (UEFI 2.10, gpart(8)).
MUTE: Final = (
    "e3c9e316-0b5c-4db8-817d-f92df00215ae", "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3",
    "af9b60a0-1431-4f62-bc68-3311714a69ad", "516e7cb5-6ecf-11d6-8ff8-00022d09712b", "0x42", "0xa5", "0xa6", "0xa9",
)  # fmt: skip
_UNREMARKABLE: Final = ("", "swap", "LVM2_member")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A guest whose newest complete point is to be drilled. `last` is when one was, None for never."""

    vmid: Vmid
    point: Point
    last: int | None
    due: bool


def turns(
    guests: Mapping[Vmid, Sequence[Point]], *, now: int, every: float, tried: Mapping[Vmid, int] = MappingProxyType({})
) -> tuple[Turn, ...]:
    """In which order: never drilled first, then the longest ago. Due is who was not drilled for `every` seconds, or
    failed more than a day ago: the alarm lasts until one passes. The others come last, for whoever names them. `tried`
    is when a drill was begun last: one that broke off proved nothing and is due again, behind those that wait longer. A
    time in the future (a clock that was wrong) counts as never, and a point of it is not the newest while there are
    others."""
    found = []
    begun = {vmid: at for vmid, at in tried.items() if at <= now}
    for vmid, points in sorted(guests.items()):
        complete = [point for point in points if point.complete]
        if not complete:
            continue
        proof = last_drill(points)
        last = proof.at if proof and proof.at <= now else None
        pause = min(every, AGAIN) if proof and proof.level is Level.FAILED else every
        past = [point for point in complete if point.creation <= now + SKEW] or complete
        found.append(Turn(vmid=vmid, point=past[-1], last=last, due=last is None or now - last >= pause))
    return tuple(sorted(found, key=lambda turn: (max(turn.last or 0, begun.get(turn.vmid, 0)), turn.vmid)))


def closed(point: Point, volumes: Mapping[Dataset, Volume]) -> tuple[str, ...]:
    """The disks whose key is not loaded on this host: nothing but their chain can be proven here."""
    found = ((key, volumes.get(snapshot.dataset)) for key, snapshot in sorted(point.snapshots.items()))
    return tuple(key for key, volume in found if volume and volume.encrypted and volume.keystatus != "available")


def judged(contents: Contents, expected: Expected, point: Point) -> Judgement:
    """What the findings say. A point passes when nothing is bad, every file is there, and the canary that was planted
    last, each disk is something, and a container has a system."""
    snapshots = point.snapshots
    problems = [_told(look) for look in contents.looks if look.state is State.BAD]
    problems += [
        f"{_told(look)} in its {look.size >> 20} MiB; where that is right, name the disk in verify-raw"
        for look in contents.looks
        if _lost(look) and not expected.raw.intersection(look.disk.split(" "))
    ]
    problems += [f"{path}: not there" for path in expected.files if path not in contents.present]
    if told := canary_problem(expected.planted, contents.canaries, point.creation):
        problems.append(told)
    if "rootfs" in snapshots and not contents.system:
        problems.append("rootfs: no os-release: no system lies there")
    notes = list(canary_notes(contents.canaries, point.vmid, point.creation))
    notes += [_told(look) for look in contents.looks if look.state is State.UNOPENED and look.kind not in _UNREMARKABLE]
    for key, snapshot in sorted(snapshots.items()):
        own = [look for look in contents.looks if key in look.disk.split(" ")]
        if any(look.state is State.BAD or _something(look) for look in own):
            continue
        if key.startswith(WITHOUT) or key in expected.raw:
            notes.append(f"{key}: no file system is expected there")
        elif snapshot.refer < EMPTY:
            notes.append(f"{key}: empty")
        else:
            problems.append(f"{key}: neither a file system nor anything else is recognised there")
    mounted = [look for look in contents.looks if look.state is State.GOOD and not _is_table(look)]
    if problems:
        return Judgement(level=Level.FAILED, problems=tuple(problems), notes=tuple(notes))
    level = Level.FILES if mounted else Level.RECOGNISED
    return Judgement(level=level, notes=tuple(notes))


def _lost(look: Look) -> bool:
    """A partition or volume in which nothing is recognised, though there must be something: its beginning was lost."""
    return bool(look.place) and not look.kind and look.size >= UNMARKED and look.use not in MUTE


def _something(look: Look) -> bool:
    return bool(look.kind) and not _is_table(look)


def _is_table(look: Look) -> bool:
    return look.kind in ("gpt", "dos", "disk")


def _told(look: Look) -> str:
    where = " ".join(part for part in (look.disk, look.place) if part)
    return f"{where}: {look.kind}: {look.text}" if look.kind else f"{where}: {look.text}"
