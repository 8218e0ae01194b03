"""How we stand to a target as a whole: whether a root that is nobody's becomes ours, and what its pool is like."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from pve_zfsbackup.model import ONLINE, Dataset, Listing, Volume
from pve_zfsbackup.plan.ownership import OWNER
from pve_zfsbackup.plan.pairing import bases


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`adopt`: the root is nobody's, and nothing speaks against making it ours."""

    adopt: bool = False
    warnings: tuple[str, ...] = ()


def standing(source: Listing, target: Listing, root: Dataset, owner: str, *, append_only: bool) -> Standing:
    """What to do about a root without an owner, and what to warn of."""
    warnings = [
        f"pool {pool} of {target.host} is {state}: `zpool status {shlex.quote(pool)}` there tells more"
        for pool, state in sorted(target.health.items())
        if state != ONLINE
    ]
    volume = target.volumes.get(root)
    if volume is None or volume.owner or not owner:
        return Standing(warnings=tuple(warnings))
    strange = _unknown(source, target)
    command = f"zfs set {OWNER}={owner} {shlex.quote(root)}"
    if strange:
        warnings.append(
            f"{root} on {target.host} belongs to nobody and holds {len(strange)} replicas that are not known here, "
            f"such as {strange[0].name}; if it is ours: {command}"
        )
    elif append_only:
        warnings.append(f"{root} on {target.host} belongs to nobody; its administrator makes it ours: {command}")
    return Standing(adopt=not strange and not append_only, warnings=tuple(warnings))


def _unknown(source: Listing, target: Listing) -> list[Volume]:
    """Replicas that neither come from a dataset of ours nor share a snapshot with one."""
    replicas = [volume for volume in target.volumes.values() if any(s.point for s in volume.snapshots)]
    alive = {volume.guid for volume in source.volumes.values()}
    left = [volume for volume in replicas if not any(s.volume in alive for s in volume.snapshots)]
    if not left:
        return []
    known = {base.guid for volume in source.volumes.values() for base in bases(volume)}
    return sorted((v for v in left if not any(s.guid in known for s in v.snapshots)), key=lambda volume: volume.name)
