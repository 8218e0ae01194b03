"""Snapshots of others on a guest's disks: whose they are, and which of them we keep from being rolled back to.

Nothing of others is ever touched. Proxmox, though, rolls back only to the newest snapshot of a disk, whoever made the
newer ones, and then does not even start; a newer bookmark lets it fail halfway (pve-facts §0.1, §c).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from pve_zfsbackup.model import SNAPSHOT_NAME, Bookmark, Dataset, Guest, Listing, Snapshot, Volume
from pve_zfsbackup.plan.points import bookmark_target

_OWNERS: Final = (  # pve-facts §c
    (SNAPSHOT_NAME, "pve-zfsbackup"),
    (re.compile(r"__replicate_[0-9]+-[0-9]+_[0-9]+__\Z"), "pvesr"),
    (re.compile(r"__migration__\Z"), "migration"),
    (re.compile(r"__base__\Z"), "template"),
    (re.compile(r"vzdump\Z"), "vzdump"),
    (re.compile(r"rep_.+_[0-9]{4}-[0-9]{2}-[0-9]{2}_[0-9]{2}:[0-9]{2}:[0-9]{2}\Z"), "pve-zsync"),
    (re.compile(r"auto[A-Za-z0-9_-]*[0-9]{12}\Z"), "cv4pve"),  # through the API: a snapshot of Proxmox's as well
    (re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}\Z"), "proxmox"),
)


def owner_of(name: str) -> str:
    """Who makes snapshots of this name; `other` when nobody we know."""
    return next((owner for pattern, owner in _OWNERS if pattern.match(name)), "other")


def volumes_of_guest(guest: Guest, source: Listing) -> tuple[Volume, ...]:
    """All volumes of the guest on this node's ZFS, also those we do not protect: Proxmox rolls them back too."""
    names = {disk.dataset for disk in guest.disks if disk.dataset is not None}
    return tuple(source.volumes[name] for name in sorted(names) if name in source.volumes)


def ours_newer(volume: Volume, than: Snapshot) -> tuple[tuple[Snapshot, ...], tuple[Bookmark, ...]]:
    """What of us stands between a snapshot of a volume and a rollback to it."""
    snapshots = tuple(s for s in volume.snapshots if s.point is not None and s.createtxg > than.createtxg)
    marks = tuple(b for b in volume.bookmarks if bookmark_target(b) and b.createtxg > than.createtxg)
    return snapshots, marks


def blocked_rollbacks(guest: Guest, source: Listing) -> Mapping[str, int]:
    """Snapshots of Proxmox's that we alone keep from being rolled back to, oldest first, with how many of our points
    are newer: those without a newer one of its own on any disk."""
    volumes = volumes_of_guest(guest, source)
    newest: dict[str, int] = {}
    for volume in volumes:
        theirs = [s for s in volume.snapshots if owner_of(s.name) in ("proxmox", "cv4pve")]
        if theirs:
            last = max(theirs, key=lambda s: s.createtxg)
            newest[last.name] = max(newest.get(last.name, 0), last.createtxg)
    found: dict[str, int] = {}
    for name in sorted(newest, key=lambda name: newest[name]):
        blocking = {point for _, snapshots, _ in _blocking(volumes, name) for point in (s.point for s in snapshots)}
        marks = sum(len(marks) for _, _, marks in _blocking(volumes, name))
        if blocking or marks:
            found[name] = len(blocking)
    return found


def _blocking(
    volumes: Iterable[Volume], name: str
) -> Iterator[tuple[Dataset, tuple[Snapshot, ...], tuple[Bookmark, ...]]]:
    for volume in volumes:
        for snapshot in volume.snapshots:
            if snapshot.name == name:
                yield volume.name, *ours_newer(volume, snapshot)
