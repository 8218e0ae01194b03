"""Whose a target's root is.

It belongs to one cluster, or one node without a cluster: points are known by vmid, and two who both have a guest 100
would prune each other's. The property `owner` of the root says who; see `host.identity`.
"""

from __future__ import annotations

import shlex

from pve_zfsbackup.model import PROPERTY, Conflict, Dataset, Listing

OWNER = f"{PROPERTY}owner"


def foreign_root(target: Listing, root: Dataset, owner: str) -> Conflict | None:
    """The root is another one's: it is left alone as a whole."""
    volume = target.volumes.get(root)
    if volume is None or volume.owner in ("", owner):
        return None
    replicas = sum(1 for other in target.volumes.values() if any(snapshot.point for snapshot in other.snapshots))
    command = f"zfs set {OWNER}={owner} {shlex.quote(root)}"
    return Conflict(
        kind="foreign-root",
        object=root,
        message=f"{target.host}: {root} belongs to {volume.owner}, not to this cluster or node ({owner})",
        evidence=(f"{OWNER}={volume.owner}", f"{replicas} replicas below it"),
        resolve=f"name another root for this target; or, if these replicas are to go on from here: {command}",
    )
