"""A disk of a point into a dataset of this node: by `zfs send | zfs receive`, from here or from a target.

Never by a clone, though one is made in an instant: it would tie the new disk to the old one, whose guest could then
not be removed, and its point not be pruned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pve_zfsbackup.app.meter import Meter
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import BackupError, VerificationError, ZfsError
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.pipeline import Chain, carry
from pve_zfsbackup.host.rows import SOURCE_COLUMNS
from pve_zfsbackup.model import SOURCE, Dataset, Resume, Send, Volume
from pve_zfsbackup.model.restore import DiskRestore

Supply = Callable[[DiskRestore], int]  # brings a disk's snapshot to its `staging`; the bytes that moved
ATTEMPTS: Final = 5  # in a row without anything new
PAUSE: Final = 10.0  # seconds before another attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """Brings disks from the host `origin`: the node itself, or a target."""

    session: Session
    origin: str

    def __call__(self, disk: DiskRestore) -> int:
        """Receive the disk, or what is missing of it. Raises what does not pass by itself."""
        moved, idle = 0, 0
        while True:
            stream = self._next(disk)
            if stream is None:
                return moved
            chain = Chain(streams=(stream,), size=disk.size)
            here = self.session.hosts[SOURCE]
            there = self.session.hosts[self.origin]
            meter = Meter(self.session.emit, host=self.session.node, disk=disk.snapshot.dataset, size=disk.size)
            carry(there, replace(here, link=there.link), [chain], meter)
            moved += chain.moved
            if chain.error is None:
                continue  # what is there now decides
            idle = 0 if chain.moved else idle + 1
            if not chain.error.transient or idle >= ATTEMPTS:
                raise self._explained(chain.error, disk)
            time.sleep(PAUSE)

    def _next(self, disk: DiskRestore) -> Send | Resume | None:
        """What is to be sent next; nothing when the snapshot is there. An interrupted receive of ours goes on."""
        volume = look(self.session, disk.staging)
        if volume is None:
            return Send(host=SOURCE, snapshot=disk.snapshot, base=None, dataset=disk.staging, raw=disk.raw)
        if volume.resume is None:
            if all(snapshot.guid != disk.snapshot.guid for snapshot in volume.snapshots):
                raise VerificationError(
                    f"{disk.staging} is there without {disk.snapshot.name}: it is not what was received",
                    hint=f"look at it, then: zfs destroy -r {disk.staging}",
                )
            return None
        token = volume.resume
        if token.to_guid == disk.snapshot.guid and token.raw == disk.raw:
            return Resume(host=SOURCE, token=token.token, snapshot=disk.snapshot, dataset=disk.staging, raw=disk.raw)
        zfs.abort_receive(self.session.hosts[SOURCE], disk.staging)
        return Send(host=SOURCE, snapshot=disk.snapshot, base=None, dataset=disk.staging, raw=disk.raw)

    def _explained(self, error: BackupError, disk: DiskRestore) -> BackupError:
        """A target that was set up before restores were built does not let its account send."""
        told = str(error)
        if self.origin == SOURCE or not ("permission denied" in told or "denied" in told):
            return error
        target = self.session.config.targets[self.origin]
        return ZfsError(
            f"target {self.origin} does not let us read {disk.snapshot.full_name}: {error.message}",
            hint=f"on {target.host}: zfs allow -u {target.user} send {target.root}; and the same version of "
            f"pve-zfsbackup-receiver there (`setup target {self.origin} --check`)",
        )


def look(session: Session, dataset: Dataset) -> Volume | None:
    """The dataset as it is now, with its snapshots; None where there is none."""
    return list_host(session.hosts[SOURCE], [dataset], depth=1, columns=SOURCE_COLUMNS).volumes.get(dataset)
