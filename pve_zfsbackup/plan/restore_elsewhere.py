"""A restore on another node of the cluster: that node's pools can be reached there only, so it is told, not done.

What is known everywhere is judged first, so that nobody goes there in vain. What only that node sees (its room, its
datasets, whether the guest runs) it judges itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pve_zfsbackup.model import Conflict
from pve_zfsbackup.model.restore import Cluster, Origin, Restore, Wish
from pve_zfsbackup.plan.restore import unknown, unplaceable
from pve_zfsbackup.plan.restore_taken import guest_elsewhere, guest_exists


def plan_elsewhere(wish: Wish, origin: Origin, cluster: Cluster, node: str, more: Sequence[str] = ()) -> Restore:
    """The command that restores the point on that node, or what stands in its way. `more` are words of the command
    that matter to nobody but it."""
    conflicts = [*_absent(node, cluster), *unknown(wish, origin)]
    if not conflicts:
        keys = sorted(wish.disks or origin.point.disks)
        conflicts += [*unplaceable(keys, wish, origin, cluster.storages, node), *_taken(wish, origin, cluster, node)]
    return Restore(
        work=f"{wish.new}:{origin.point.id}",
        origin=origin,
        wish=wish,
        copy=wish.new != wish.vmid,
        conflicts=tuple(conflicts),
        notes=origin.notes,
        node=node,
        command=() if conflicts else (*_command(wish, origin), *more),
    )


def _absent(node: str, cluster: Cluster) -> Iterator[Conflict]:
    status, message, hint = cluster.nodes.get(node), "", ""
    if status is None:
        message, hint = "is not in this cluster", f"there are: {', '.join(sorted(cluster.nodes))}"
    elif status == "offline":
        message, hint = "is offline", "start it, or name another one"
    if message:
        yield Conflict(kind="node", object=f"node {node}", message=message, resolve=hint)


def _taken(wish: Wish, origin: Origin, cluster: Cluster, node: str) -> Iterator[Conflict]:
    owner, label = cluster.owners.get(wish.new), f"guest {wish.new}"
    if owner is None and wish.replace:
        yield Conflict(kind="no-guest", object=label, message="there is none that could be replaced")
    elif owner not in (None, node):
        offline = cluster.nodes.get(str(owner)) == "offline"
        yield guest_elsewhere(wish, origin.kind, str(owner), node, offline=offline)
    elif owner is not None and not wish.replace and not wish.disks:
        yield guest_exists(wish.new, f"exists on node {node}", cluster.owners)


def _command(wish: Wish, origin: Origin) -> Iterator[str]:
    """The point by name, and where it lies: what is newest may be another one by then."""
    yield from ("pve-zfsbackup", "restore", str(wish.vmid), "--at", origin.point.id, "--from", origin.host)
    if wish.replace:
        yield from ("--replace", str(wish.new))
    elif wish.new != wish.vmid:
        yield from ("--as", str(wish.new))
    for key in sorted(wish.disks):
        yield from ("--disk", key)
    for old, new in sorted(wish.storages.items()):
        yield from ("--storage", f"{old}:{new}" if old else new)
