"""What makes received snapshots a point on their host: properties, holds, and the holds that they replace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TypeAlias

from pve_zfsbackup.errors import VerificationError
from pve_zfsbackup.host import listing, zfs
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import PROPERTY, SOURCE, Hold, Mark, Release

SIDE_BY_SIDE = 3  # sessions over one connection, which has ten (sshd_config(5)); with `parallel` above 2, others beside
FEW = 6  # disks that are not worth sessions of their own
Small: TypeAlias = Mark | Hold | Release
Groups: TypeAlias = Sequence[tuple[Sequence[str], Mapping[str, str]]]


def settle(hosts: Mapping[str, Host], steps: Sequence[Small]) -> None:
    """Do all, those of a disk in order. Of many disks some go side by side: each command waits for a transaction
    group, and they can wait for the same one. Raises on what fails, of which the others are done or not."""
    properties = _properties(hosts[SOURCE], [step for step in steps if isinstance(step, Mark)])
    for name in dict.fromkeys(step.host for step in steps):
        for together in _rounds([step for step in steps if step.host == name]):
            parts = _parts(together)
            with ThreadPoolExecutor(len(parts)) as threads:
                for done in [threads.submit(_in_order, hosts[name], part, properties) for part in parts]:
                    done.result()


def _rounds(steps: Sequence[Small]) -> list[list[Small]]:
    """Older generations are let go when all else is done: each is another dataset than the one that is held for it."""
    now: list[Small] = []
    later: list[Small] = []
    own = {_dataset(step) for step in steps if not isinstance(step, Release)}
    for step in steps:
        (now if _dataset(step) in own else later).append(step)
    return [together for together in (now, later) if together]


def _dataset(step: Small) -> str:
    return step.dataset if isinstance(step, Mark) else step.snapshot.dataset


def _parts(steps: Sequence[Small]) -> list[list[Small]]:
    disks: dict[str, list[Small]] = defaultdict(list)
    for step in steps:
        disks[_dataset(step)].append(step)
    if len(disks) <= FEW:
        return [list(steps)]
    order = {Mark: 0, Hold: 1, Release: 2}
    own = list(disks.values())
    return [
        sorted((step for part in own[number::SIDE_BY_SIDE] for step in part), key=lambda step: order[type(step)])
        for number in range(SIDE_BY_SIDE)
    ]


def _in_order(host: Host, steps: Sequence[Small], properties: Mapping[str, Mapping[str, str]]) -> None:
    """All in one session. Where a hold is there already, the holds are looked at one by one."""
    commands: list[tuple[str, ...]] = []
    holds: list[Hold | Release] = []
    for kind, run in groupby(steps, key=type):
        if kind is Mark:
            names = [f"{step.dataset}@{step.source.name}" for step in run if isinstance(step, Mark)]
            commands += zfs.set_commands(_groups(names, properties))
            continue
        own = [step for step in run if isinstance(step, Hold | Release)]
        holds += own
        for tag in dict.fromkeys(step.tag for step in own):
            snapshots = [step.snapshot for step in own if step.tag == tag]
            commands += zfs.hold_commands("hold" if kind is Hold else "release", tag, snapshots)
    failed = host.run_all(commands)
    if failed and not zfs.is_settled(failed):
        raise classified(failed)
    releases = [command for command in commands if command[1] == "release"]
    # Somebody else's hold is counted like ours: that the last command found no tag of ours is no failure.
    if failed and not (releases == commands[-1:] and zfs.is_settled(failed, ("release",))):
        _holds(host, holds)


def _properties(source: Host, steps: Sequence[Mark]) -> dict[str, Mapping[str, str]]:
    """What to set, by the snapshot's name there: the point's properties of the source snapshot."""
    if not steps:
        return {}
    found: dict[str, Mapping[str, str]] = {}
    properties = listing.point_properties(source, [step.source for step in steps])
    for step in steps:
        own = dict(properties[step.source.full_name])
        if f"{PROPERTY}point" not in own:
            raise VerificationError(f"{step.source.full_name}: lost its properties, the replica is not marked")
        own[f"{PROPERTY}volume"] = step.volume
        if step.disks:
            own[f"{PROPERTY}disks"] = step.disks
        found[f"{step.dataset}@{step.source.name}"] = own
    return found


def _groups(names: Iterable[str], properties: Mapping[str, Mapping[str, str]]) -> Groups:
    """Snapshots with equal properties together."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for name in names:
        groups[tuple(sorted(properties[name].items()))].append(name)
    return [(own, dict(pairs)) for pairs, own in groups.items()]


def _holds(host: Host, steps: Sequence[Hold | Release]) -> None:
    for (tag, kind), own in groupby(steps, key=lambda step: (step.tag, type(step))):
        action = zfs.hold if kind is Hold else zfs.release
        action(host, tag, [step.snapshot for step in own])
