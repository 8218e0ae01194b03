"""One target and this node, compared: whose root it is, what its pool can do, how disks go there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pve_zfsbackup.app.gather import Inventory
from pve_zfsbackup.app.session import HOLD_TAG, Session
from pve_zfsbackup.errors import ZfsError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.health import pool_of, pool_properties, version
from pve_zfsbackup.host.identity import owner_id
from pve_zfsbackup.model import SOURCE, Guest, Guid, Listing
from pve_zfsbackup.plan.features import PoolProps
from pve_zfsbackup.plan.pairing import Sides, compare, full_due
from pve_zfsbackup.plan.replication import ReplicationPolicy
from pve_zfsbackup.plan.standing import Standing, standing

PACKAGES_SINCE: Final = (2, 2, 0)


def comparison(
    session: Session, found: Inventory, guests: Sequence[Guest], listing: Listing
) -> tuple[Sides, ReplicationPolicy]:
    """What the planner needs for these guests. Pools are asked for their features only where a full stream is due."""
    sides = compare(found.listing, listing)
    own = _standing(session, found, listing)
    policy = replication_policy(session, listing.host)
    policy = replace(policy, adopt=own.adopt, left_out=_left_out(found, guests))
    volumes = [
        found.listing.volumes[disk.dataset]
        for guest in guests
        for disk in guest.protected_disks
        if disk.dataset and disk.dataset in found.listing.volumes
    ]
    new = {pool_of(volume.name) for volume in volumes if full_due(volume, sides, policy.root)}
    return (replace(sides, pools=_pools(session, listing, sorted(new))) if new else sides), policy


def replication_policy(session: Session, name: str) -> ReplicationPolicy:
    """How disks go to this target, by its configuration."""
    target = session.config.targets[name]
    return ReplicationPolicy(
        host=name,
        root=target.root,
        hold_tag=HOLD_TAG,
        append_only=target.append_only,
        minimal=target.append_only,  # its receiver takes no packages, as `-I` makes them: those can change properties
        owner=owner_id(session.pve_root),
        limited=target.user != "root",
    )


def older_than_packages(session: Session, name: str) -> bool:
    """Whether this node's OpenZFS or the target's may skip a snapshot of `zfs send -I` in silence (openzfs #12661,
    mended in 2.2.0). Asked only where one would be sent; what does not say its version counts as old."""
    hosts = (session.hosts[SOURCE], session.hosts[name])
    return any(version(host.run(("zfs", "version"), check=False).stdout.split()) < PACKAGES_SINCE for host in hosts)


def remarks(session: Session, found: Inventory, listing: Listing, stage: str) -> list[Result]:
    """What should be known of a target that works nevertheless."""
    told = _standing(session, found, listing).warnings
    return [Result(stage=stage, outcome=Outcome.WARNING, host=listing.host, message=message) for message in told]


def _standing(session: Session, found: Inventory, listing: Listing) -> Standing:
    target = session.config.targets[listing.host]
    owner = owner_id(session.pve_root)
    return standing(found.listing, listing, target.root, owner, append_only=target.append_only)


def _left_out(found: Inventory, guests: Sequence[Guest]) -> frozenset[Guid]:
    """Datasets of disks that the jobs of this target leave out, and others perhaps do not."""
    names = {disk.dataset for guest in guests for disk in guest.disks if disk.excluded}
    volumes = found.listing.volumes
    return frozenset(volumes[name].guid for name in names if name and name in volumes)


def _pools(session: Session, listing: Listing, pools: Sequence[str]) -> PoolProps:
    """What cannot be asked is not known, and the receive itself will tell."""
    source, target = session.hosts[SOURCE], session.hosts[listing.host]
    try:
        theirs = pool_properties(target, pool_of(session.config.targets[listing.host].root))
        return PoolProps(source={pool: pool_properties(source, pool) for pool in pools}, target=theirs)
    except ZfsError:
        return PoolProps()
