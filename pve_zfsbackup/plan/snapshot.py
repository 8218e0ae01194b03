"""What a new recovery point is made of, and whether the guest can be frozen for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from pve_zfsbackup.model import (
    PREFIX,
    Conflict,
    Dataset,
    Guest,
    GuestKind,
    Guid,
    Listing,
    Plan,
    PointDisk,
    PointId,
    Quiesce,
    SnapshotGuest,
    encode_disks,
    encode_props,
)
from pve_zfsbackup.plan.discovery import disk_keys
from pve_zfsbackup.plan.properties import parse_properties

LOCKS: Final[Mapping[str, str]] = {
    "backup": "a backup by vzdump is under way",
    "clone": "the guest is being cloned",
    "create": "the guest is being created or restored",
    "destroyed": "the guest is being destroyed",
    "disk": "a disk of the container is being moved or resized",
    "fstrim": "the container's disks are being trimmed",
    "import": "the guest is being imported",
    "migrate": "the guest is being migrated",
    "mounted": "the container's disks are mounted on the node (pct mount)",
    "rollback": "the guest is being rolled back",
    "snapshot": "Proxmox takes a snapshot of it",
    "snapshot-delete": "Proxmox removes a snapshot of it",
    "suspending": "the guest is being hibernated",
}


def freezable(guest: Guest, quiesce: Quiesce, *, container_freeze: bool = False) -> tuple[bool, str]:
    """Whether a freeze is to be tried, and if not, why: the text recorded with the point."""
    if not guest.running:
        reason = "guest is not running"
    elif guest.kind is GuestKind.CT and container_freeze and quiesce is not Quiesce.OFF:
        return True, ""
    elif guest.kind is GuestKind.CT:
        reason = "container: ZFS has no freeze"
    elif guest.paused:
        reason = "guest is paused: its agent cannot answer"
    elif not guest.agent.enabled:
        reason = "guest agent is not configured"
    elif not guest.agent.freeze:
        reason = "agent option freeze-fs=0"
    elif quiesce is Quiesce.OFF:
        reason = "quiesce is off"
    else:
        return True, ""
    return False, reason


def plan_snapshot(
    guest: Guest, source: Listing, *, now: datetime, suffix: str, quiesce: Quiesce, container_freeze: bool = False
) -> Plan:
    """One `SnapshotGuest` for all protected disks. `now` is aware; `suffix` are four random hex digits.

    `source` needs the volumes of the guest's disks, their snapshots do not matter.
    """
    label = f"{guest.kind.value}/{guest.vmid}"
    if guest.trouble:
        message = f"its configuration cannot be read: {guest.trouble}"
        return _blocked(Conflict(kind="unreadable", object=label, message=message))
    if guest.lock and not guest.hibernated:
        message = f"guest is locked ({guest.lock})" + (f": {LOCKS[guest.lock]}" if guest.lock in LOCKS else "")
        hint = f"wait until the task has ended; if it is dead: {_tool(guest)} unlock {guest.vmid}"
        if guest.lock == "rollback":  # unlocked it would start with disks of two times
            hint = f"a `rollback` or `failback` of ours that broke off goes on with the same command; else {hint}"
        return _blocked(Conflict(kind="locked", object=label, message=message, resolve=hint))
    lost = tuple(f"{disk.key} {disk.volid}: {disk.reason}" for disk in guest.disks if disk.lost)
    if lost:  # a point without them would pass for complete, and in time replace those that have them
        message = f"{len(lost)} of the guest's disks are not there: {lost[0]}"
        hint = (
            "import the pool, enable the storage, or run `pve-zfsbackup setup`; to go on without a disk: backup=0 or "
            "exclude-disks"
        )
        return _blocked(Conflict(kind="lost-disk", object=label, message=message, evidence=lost, resolve=hint))
    if not guest.protected_disks:
        evidence = tuple(f"{disk.key} {disk.volid}: {disk.reason}" for disk in guest.disks)
        message = "guest has no disk that can be protected"
        return _blocked(Conflict(kind="no-protected-disk", object=label, message=message, evidence=evidence))
    can_freeze, reason = freezable(guest, quiesce, container_freeze=container_freeze)
    if quiesce is Quiesce.REQUIRE and guest.running and not can_freeze:
        message = f"quiescing is required but impossible: {reason}"
        hint = "make the guest agent work, or set quiesce: prefer for this guest"
        return _blocked(Conflict(kind="not-freezable", object=label, message=message, resolve=hint))
    disks = _disks(guest, source)
    missing = tuple(sorted(name for name in disks if name not in source.volumes))
    if missing:
        message = "datasets of the guest's disks do not exist"
        return _blocked(Conflict(kind="missing-dataset", object=label, message=message, evidence=missing))
    stamp = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{suffix}"
    step = SnapshotGuest(
        guest=guest,
        point=PointId(f"{guest.vmid}/{stamp}"),
        name=f"{PREFIX}{stamp}",
        pools=_pools(disks),
        disks=encode_disks(disks.values()),
        props=encode_props({d.key: source.volumes[name].props for name, d in disks.items()}),
        quiesce=quiesce,
        freeze=can_freeze,
        reason=reason,
    )
    by = "its agent" if guest.kind is GuestKind.VM else "lxc-freeze"
    how = f"frozen by {by}" if can_freeze else f"not frozen: {reason}"
    return Plan(steps=(step,), reasons=(f"{len(disks)} disks in {len(step.pools)} pools, {how}",))


def volumes_of(kind: GuestKind, text: str) -> Mapping[str, str]:
    """The disks a configuration file's current section names: key to volume and whether it is backed up. Two that
    are equal mean the same disks, whatever else was edited; a resized disk is the same disk."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
    config = {key.strip(): value.strip() for key, value in pairs}
    return {key: _volume_of(config[key]) for key in disk_keys(kind, config)}


def _volume_of(text: str) -> str:
    try:
        values = parse_properties(text, default="file", alias="volume")
    except ValueError:
        return text  # then any edit counts
    return f"{values.get('file', '')} backup={values.get('backup', '')}"


def _disks(guest: Guest, source: Listing) -> dict[Dataset, PointDisk]:
    """By dataset: a volume that is listed twice (also as `unused0`) is one disk under its first key."""
    found: dict[Dataset, PointDisk] = {}
    for disk in sorted(guest.protected_disks, key=lambda disk: disk.key):
        if disk.dataset is not None and disk.dataset not in found:
            volume = source.volumes.get(disk.dataset)
            guid = volume.guid if volume else Guid("")
            found[disk.dataset] = PointDisk(key=disk.key, volid=disk.volid, guid=guid)
    return found


def _pools(disks: dict[Dataset, PointDisk]) -> tuple[tuple[Dataset, ...], ...]:
    pools: dict[str, list[Dataset]] = defaultdict(list)
    for name in sorted(disks):
        pools[name.partition("/")[0]].append(name)
    return tuple(tuple(names) for _, names in sorted(pools.items()))


def _tool(guest: Guest) -> str:
    return "qm" if guest.kind is GuestKind.VM else "pct"


def _blocked(conflict: Conflict) -> Plan:
    return Plan(conflicts=(conflict,), reasons=(conflict.message,))
