"""A guest made from a recovery point: which disks go where, under which names, and what stands in the way.

Every disk is received beside what exists (`<storage>/pzb-restore/<vmid>-<stamp>/<key>`), read back, and only then
renamed to a free name of Proxmox's kind. Writing the configuration is the switch, in one step: before it a guest that
is replaced has all its old disks, after it all the new ones. What lost its place is renamed aside, never destroyed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

from pve_zfsbackup.model import Conflict, Dataset, GuestKind, Snapshot, Storage, Vmid, Volume
from pve_zfsbackup.model.restore import ASIDE, STAGING, Aside, DiskRestore, NodeState, Origin, Restore, Wish
from pve_zfsbackup.plan.failover import cloned
from pve_zfsbackup.plan.guest_config import (
    Fresh,
    exchange,
    guest_snapshots,
    rewrite,
    settings,
    snapshots_lost,
    volume_in,
)
from pve_zfsbackup.plan.restore_room import no_room
from pve_zfsbackup.plan.restore_taken import AS, guest_elsewhere, guest_exists
from pve_zfsbackup.plan.snapshot import LOCKS

_NUMBERED: Final = re.compile(r"(?:vm|base|subvol|basevol)-([1-9][0-9]{2,8})-disk-([0-9]+)\Z")
_VOLID: Final = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]):(?:[^/]+/)?((vm|base|subvol|basevol)-[0-9]+-.+)\Z")


def plan_restore(wish: Wish, origin: Origin, state: NodeState, seed: bytes) -> Restore:
    """The whole way, or its obstacles. Planned again after an interruption, it takes up what is there already."""
    copy = wish.new != wish.vmid  # the original may run where this node does not see it: on its source
    empty = Restore(work=f"{wish.new}:{origin.point.id}", origin=origin, wish=wish, copy=copy)
    keys = sorted(wish.disks or origin.point.disks)
    conflicts = [*unknown(wish, origin), *_unplaceable(keys, wish, origin, state)]
    if conflicts:
        return _with(empty, conflicts=tuple(conflicts))
    disks = _disks(keys, empty, state)
    continuing = any(volume.work == empty.work for volume in state.work.volumes.values())
    switched = continuing and bool(disks) and _switched(disks, state)
    conflicts += _guest_conflicts(wish, origin, state, switched=switched)
    conflicts += no_room([disk for disk in disks if not (wish.clones and cloned(disk.snapshot, disk.dataset))], state)
    if conflicts:
        return _with(empty, conflicts=tuple(conflicts))
    config, notes = _config(empty, disks, state, seed)
    aside = _aside(empty, config, state, switched=switched)
    parents = {disk.pool for disk in disks} | {Dataset(old.dataset.rpartition("/")[0]) for old in aside}
    begun = [name for name, volume in state.work.volumes.items() if volume.work == empty.work]
    parents |= {Dataset(name.split(f"/{STAGING}/")[0]) for name in begun}
    texts = origin.texts
    whole = bool(config) and not (wish.disks and wish.replace)
    if whole and texts.get("left-out") == "firewall":
        notes += ("the point has no firewall file of the guest, which was too large for it: put it back by hand",)
    gone = {old.dataset for old in aside}
    return _with(
        empty,
        former=() if continuing else tuple(made for disk in disks for made in _made(disk.key, empty, disk.pool, state)),
        disks=tuple(replace(disk, history=bool(config) and not copy and _alone(disk, state, gone)) for disk in disks),
        aside=aside,
        parents=tuple(sorted(parents)),
        config="" if switched else config,
        firewall=texts.get("firewall", "") if whole else "",
        pool=texts.get("pool", "") if whole else "",
        notes=(*origin.notes, *notes),
    )


def _alone(disk: DiskRestore, state: NodeState, gone: Set[Dataset]) -> bool:
    """Whether no other dataset that stays in its place here has the snapshot: a point has each disk once."""
    there = {
        name for name, v in state.listing.volumes.items() if any(s.guid == disk.snapshot.guid for s in v.snapshots)
    }
    return not there - gone - {disk.dataset}


def _with(plan: Restore, **changes: object) -> Restore:
    values = {name: getattr(plan, name) for name in Restore.__dataclass_fields__}
    return Restore(**{**values, **changes})


def unknown(wish: Wish, origin: Origin) -> Iterator[Conflict]:
    """What the point would need to have, and has not."""
    label = origin.point.id
    if missing := sorted(wish.disks - origin.point.disks.keys()):
        message = f"the point has no disk {', '.join(missing)}"
        yield Conflict(kind="no-disk", object=label, message=message, evidence=tuple(sorted(origin.point.disks)))
    if not origin.texts.get("conf"):
        message = "the point does not carry the guest's configuration"
        hint = "its disks can be received by hand: zfs send | zfs receive"
        yield Conflict(kind="no-config", object=label, message=message, resolve=hint)


def _unplaceable(keys: Sequence[str], wish: Wish, origin: Origin, state: NodeState) -> Iterator[Conflict]:
    yield from unplaceable(keys, wish, origin, state.storages, state.node)
    for key in keys:
        match = _VOLID.match(origin.point.disks.get(key, ""))
        storage = state.storages.get(target_storage(wish, match[1])) if match else None
        if storage and storage.pool and Dataset(storage.pool) not in state.listing.volumes:
            yield _misplaced(key, storage.id, f"has no dataset {storage.pool} here", match[1] if match else "")


def unplaceable(
    keys: Sequence[str], wish: Wish, origin: Origin, storages: Mapping[str, Storage], node: str
) -> Iterator[Conflict]:
    """Disks that have no storage on a node of the cluster, by what Proxmox says of its storages."""
    for key in keys:
        volid = origin.point.disks.get(key, "")
        match = _VOLID.match(volid)
        if match is None:
            if volid:
                yield Conflict(kind="volume", object=key, message=f"{volid!r} is no volume name of Proxmox")
            continue
        name = target_storage(wish, match[1])
        if reason := _storage_fault(storages.get(name), origin.kind, node):
            yield _misplaced(key, name, reason, match[1])


def _misplaced(key: str, storage: str, reason: str, was: str) -> Conflict:
    hint = f"--storage {was}:OTHER puts its disks on another storage"
    return Conflict(kind="storage", object=key, message=f"storage {storage} {reason}", resolve=hint)


def target_storage(wish: Wish, storage: str) -> str:
    """Where disks of a storage of the point go."""
    return wish.storages.get(storage) or wish.storages.get("") or storage


def _storage_fault(storage: Storage | None, kind: GuestKind, node: str) -> str:
    if storage is None:
        return "does not exist here"
    if storage.type != "zfspool" or not storage.pool:
        return f"is of type {storage.type}, not ZFS"
    if storage.disabled or (storage.nodes and node not in storage.nodes):
        return f"is not available on node {node}"
    wanted = "images" if kind is GuestKind.VM else "rootdir"
    if storage.content and wanted not in storage.content:
        return f"takes no {wanted}"
    return ""


def _disks(keys: Sequence[str], plan: Restore, state: NodeState) -> tuple[DiskRestore, ...]:
    """Each with its place: the one an earlier try gave it, or the next free number (as Proxmox counts)."""
    wish, origin = plan.wish, plan.origin
    continuing = any(volume.work == plan.work for volume in state.work.volumes.values())
    template = settings(origin.texts.get("conf", "")).get("template") == "1" and not (wish.disks and state.guest)
    taken = set(state.listing.volumes)
    found = []
    for key in keys:
        volid = origin.point.disks[key]
        match = _VOLID.match(volid)
        assert match is not None, "judged before"
        storage = target_storage(wish, match[1])
        pool = state.storages[storage].pool
        snapshot = origin.point.snapshots[key]
        prefix = {"vm": "vm", "base": "vm", "subvol": "subvol", "basevol": "subvol"}[match[3]]
        prefix = {"vm": "base", "subvol": "basevol"}[prefix] if template else prefix
        here = wish.clones and key in origin.raw and cloned(snapshot, Dataset(pool))
        placed = _placed(key, plan, pool, state) if continuing else None
        begun = _begun(plan, snapshot, pool, state) if here and continuing else None
        dataset = placed or begun or _free(prefix, wish.new, pool, taken)
        taken.add(dataset)
        found.append(
            DiskRestore(
                key=key,
                snapshot=snapshot,
                raw=key in origin.raw,
                staging=dataset if here else Dataset(f"{pool}/{STAGING}/{plan.folder}/{key}"),
                dataset=dataset,
                volid=f"{storage}:{dataset.rpartition('/')[2]}",
                props=origin.props.get(key, {}),
                placed=placed is not None,
            )
        )
    return tuple(found)


def _placed(key: str, plan: Restore, pool: str, state: NodeState) -> Dataset | None:
    return next((volume.name for volume in _made(key, plan, pool, state)), None)


def _made(key: str, plan: Restore, pool: str, state: NodeState) -> Iterator[Volume]:
    """What the marks say was made for the guest of this disk of the point: by this restore, or by one before it."""
    for name, volume in sorted(state.listing.volumes.items()):
        here = name.rpartition("/")[0] == pool
        number = _NUMBERED.match(name.rpartition("/")[2])
        ours = volume.restored == f"{plan.origin.point.id},{key}"
        if here and ours and number and int(number[1]) == plan.wish.new:
            yield volume


def _begun(plan: Restore, snapshot: Snapshot, pool: str, state: NodeState) -> Dataset | None:
    """A clone that an earlier try made in its place, and did not give its properties yet."""
    for name, volume in sorted(state.listing.volumes.items()):
        if name.rpartition("/")[0] == pool and volume.work == plan.work and volume.origin == snapshot.full_name:
            return name
    return None


def _free(prefix: str, vmid: Vmid, pool: str, taken: set[Dataset]) -> Dataset:
    """The next free number among all volumes of the guest on this storage, whatever their prefix (pve-facts §c)."""
    numbers = set()
    for name in taken:
        match = _NUMBERED.match(name.rpartition("/")[2])
        if name.rpartition("/")[0] == pool and match and int(match[1]) == vmid:
            numbers.add(int(match[2]))
    number = next(number for number in range(len(numbers) + 1) if number not in numbers)
    return Dataset(f"{pool}/{prefix}-{vmid}-disk-{number}")


def _switched(disks: Sequence[DiskRestore], state: NodeState) -> bool:
    """Whether the guest has the restored disks already: an earlier try was cut off after the switch."""
    have = settings(state.config)
    kind = state.guest.kind if state.guest else GuestKind.VM
    return all(disk.placed and volume_in(kind, have.get(disk.key, "")) == disk.volid for disk in disks)


def _guest_conflicts(wish: Wish, origin: Origin, state: NodeState, *, switched: bool) -> Iterator[Conflict]:
    node = state.owners.get(wish.new)
    label = f"guest {wish.new}"
    if node is None:
        if wish.replace:
            yield Conflict(kind="no-guest", object=label, message="there is none that could be replaced")
        return
    guest = state.guest
    if guest is None:
        if node == state.node:
            yield Conflict(kind="guest-elsewhere", object=label, message="exists, and cannot be read", resolve=AS)
        else:
            yield guest_elsewhere(wish, origin.kind, node, state.node, offline=state.owner_offline)
        return
    if not wish.replace and not wish.disks and not switched:
        yield guest_exists(wish.new, f"exists ({guest.name})", state.owners)
    if guest.kind is not origin.kind:
        message = f"is of kind {guest.kind.value}, the point of kind {origin.kind.value}"
        yield Conflict(kind="other-kind", object=label, message=message, resolve=AS)
    if guest.lock:
        message = f"is locked ({guest.lock})" + (f": {LOCKS[guest.lock]}" if guest.lock in LOCKS else "")
        yield Conflict(kind="locked", object=label, message=message, resolve="wait until the task has ended")
    if guest.running and wish.replace and not switched:
        yield Conflict(kind="running", object=label, message="is running", resolve="stop it first, then run this again")


def _config(plan: Restore, disks: Sequence[DiskRestore], state: NodeState, seed: bytes) -> tuple[str, tuple[str, ...]]:
    """The guest's new configuration; empty where single disks are only laid beside what it has."""
    wish, text = plan.wish, plan.origin.texts["conf"]
    volids = {disk.key: disk.volid for disk in disks}
    if wish.disks and state.guest is not None:
        if wish.replace:
            exchanged = exchange(state.guest.kind, state.config, volids, text)
            return exchanged.text, exchanged.notes
        return "", (f"guest {wish.new} gets what is restored as unused disks; attach them in its hardware",)
    have = {volume_in(plan.origin.kind, value) for value in settings(state.config).values()}
    fresh = Fresh(seed=seed, copy=plan.copy)
    made = rewrite(plan.origin.kind, text, vmid=wish.new, volids=volids, kept=have - {""}, fresh=fresh)
    snapshots = guest_snapshots(state.config)
    return made.text, (*made.notes, *([snapshots_lost(snapshots)] if snapshots else []))


def _aside(plan: Restore, config: str, state: NodeState, *, switched: bool) -> tuple[Aside, ...]:
    """What the guest has now and will have no more. Cut off after the switch: what was marked before it."""
    if switched:
        marked = [volume for volume in state.listing.volumes.values() if volume.work == f"aside:{plan.work}"]
    elif config and plan.wish.replace and state.guest is not None:
        left = {volume_in(state.guest.kind, value) for value in settings(config).values()}
        had = [disk for disk in state.guest.disks if disk.dataset and not disk.key.startswith("unused")]
        lost = {disk.dataset for disk in had if disk.dataset and disk.volid not in left}
        marked = [state.listing.volumes[name] for name in lost if name in state.listing.volumes]
    else:
        marked = []
    return tuple(
        Aside(dataset=volume.name, guid=volume.guid, to=aside_name(volume.name, volume.guid, plan.wish.new))
        for volume in sorted(marked, key=lambda volume: volume.name)
        if f"/{ASIDE}/" not in volume.name
    )


def aside_name(dataset: Dataset, guid: str, vmid: Vmid) -> Dataset:
    """`<storage>/pzb-aside/<vmid>/<name>-<8 hex of its guid>`: Proxmox does not look there."""
    pool, _, name = dataset.rpartition("/")
    return Dataset(f"{pool}/{ASIDE}/{vmid}/{name}-{int(guid):016x}"[:-8])
