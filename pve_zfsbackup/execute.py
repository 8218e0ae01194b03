"""The only interpreter of steps. It decides nothing: it does what the plan says, in order, and reads back.

Neighbouring small steps of one kind go in one command (marks of one point, holds, destroys of one dataset).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import assert_never

from pve_zfsbackup.errors import BackupError, HostUnreachableError, VerificationError
from pve_zfsbackup.events import Emit, Progress
from pve_zfsbackup.host import listing, zfs
from pve_zfsbackup.host.quiesce import Quiescer, Window
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import (
    PROPERTY,
    SOURCE,
    AbortReceive,
    CreateBookmark,
    CreateParent,
    Dataset,
    Destroy,
    DestroyBookmark,
    Guest,
    Guid,
    Hold,
    Mark,
    Release,
    Resume,
    Send,
    Snapshot,
    SnapshotGuest,
    Step,
)

PackConfig = Callable[[Guest], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """Carries out steps on `hosts` (SOURCE and the targets by name)."""

    hosts: Mapping[str, Host]
    emit: Emit

    def execute(self, steps: Sequence[Step]) -> int:
        """Do the steps; returns the bytes moved. Raises on the first that fails: those after it are not done."""
        moved = 0
        for kind, run in groupby(steps, key=type):
            if kind is Mark:
                self._mark([step for step in run if isinstance(step, Mark)])
            elif kind in (Hold, Release):
                self._holds([step for step in run if isinstance(step, Hold | Release)])
            elif kind is Destroy:
                self._destroy([step for step in run if isinstance(step, Destroy)])
            else:
                moved += sum(self._one(step) for step in run)
        return moved

    def _one(self, step: Step) -> int:
        match step:
            case Send() | Resume():
                return self._transfer(step)
            case AbortReceive():
                zfs.abort_receive(self.hosts[step.host], step.dataset)
            case CreateParent():
                zfs.create_parent(self.hosts[step.host], step.dataset)
            case CreateBookmark():
                zfs.create_bookmark(self.hosts[SOURCE], step.snapshot, step.name)
            case DestroyBookmark():
                zfs.destroy_bookmark(self.hosts[SOURCE], step.bookmark)
            case Mark() | Hold() | Release() | Destroy():
                self.execute((step,))
            case SnapshotGuest():
                raise VerificationError("a guest is snapshotted by `snapshot`, which freezes it")
            case unknown:
                assert_never(unknown)
        return 0

    def snapshot(self, step: SnapshotGuest, quiescer: Quiescer, pack: PackConfig, limit: float) -> Window:
        """Freeze, snapshot each pool in one command, thaw. Returns how it really went.

        The snapshots are born with what is proven at that moment, and are told more only when more is proven.
        Raises what went wrong; whatever was snapshotted by then is not a complete point and nobody lists it as one,
        or claims no more than it should.
        """
        host = self.hosts[SOURCE]
        properties = {
            f"{PROPERTY}point": step.point,
            f"{PROPERTY}disks": step.disks,
            f"{PROPERTY}guest": f"{step.guest.kind}/{step.guest.node}",
            **{PROPERTY + key: value for key, value in pack(step.guest).items()},
        }
        with quiescer.window(step, limit) as window:
            born = window.label
            for datasets in step.pools:
                zfs.snapshot(host, datasets, step.name, {**properties, f"{PROPERTY}consistency": born})
        if window.label != born:
            names = [f"{dataset}@{step.name}" for datasets in step.pools for dataset in datasets]
            zfs.set_properties(host, names, {f"{PROPERTY}consistency": window.label})
        return window

    def _transfer(self, step: Send | Resume) -> int:
        """One stream, then its guid read back on the target."""
        source, target = self.hosts[SOURCE], self.hosts[step.host]
        total = zfs.estimate(source, step)
        started = time.monotonic()

        def report(moved: int, *, done: bool = False) -> None:
            self.emit(
                Progress(
                    host=step.host,
                    disk=step.snapshot.dataset,
                    moved=moved,
                    total=max(total, moved),
                    seconds=time.monotonic() - started,
                    done=done,
                )
            )

        report(0)
        moved = zfs.transfer(source, target, step, report)
        report(moved, done=True)
        return moved

    def verify(self, host: str, expected: Mapping[Dataset, frozenset[Guid]]) -> dict[Dataset, frozenset[Guid]]:
        """Read back which snapshots were received, all in one command; returns what is missing, by dataset."""
        found = listing.read_guids(self.hosts[host], expected)
        missing = {name: guids - found.get(name, frozenset()) for name, guids in expected.items()}
        return {name: guids for name, guids in missing.items() if guids}

    def _mark(self, steps: Sequence[Mark]) -> None:
        """Copy the point's properties from the source snapshots; one command per set of equal properties."""
        properties = listing.point_properties(self.hosts[SOURCE], [step.source for step in steps])
        groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = defaultdict(list)
        for step in steps:
            own = dict(properties[step.source.full_name])
            if f"{PROPERTY}point" not in own:
                raise VerificationError(f"{step.source.full_name}: lost its properties, the replica is not marked")
            own[f"{PROPERTY}volume"] = step.volume
            groups[step.host, tuple(sorted(own.items()))].append(f"{step.dataset}@{step.source.name}")
        for (host, pairs), names in groups.items():
            zfs.set_properties(self.hosts[host], names, dict(pairs))

    def _holds(self, steps: Sequence[Hold | Release]) -> None:
        groups: dict[tuple[str, str], list[Hold | Release]] = defaultdict(list)
        for step in steps:
            groups[step.host, step.tag].append(step)
        for (host, tag), members in groups.items():
            action = zfs.hold if isinstance(members[0], Hold) else zfs.release
            action(self.hosts[host], tag, [step.snapshot for step in members])

    def _destroy(self, steps: Sequence[Destroy]) -> None:
        groups: dict[tuple[str, Dataset], list[Destroy]] = defaultdict(list)
        for step in steps:
            groups[step.host, step.snapshot.dataset].append(step)
        failed: list[tuple[Snapshot, Exception]] = []
        for (host, _), members in groups.items():
            try:
                failed += zfs.destroy(self.hosts[host], [step.snapshot for step in members])
            except HostUnreachableError:
                raise  # the other datasets are there as well
            except BackupError as error:
                failed += ((step.snapshot, error) for step in members)
        if failed:
            raise BackupError(
                f"{len(failed)} snapshots could not be destroyed: "
                + "; ".join(f"{snapshot.full_name}: {error}" for snapshot, error in failed[:5]),
                hint="they are tried again by the next prune",
            )
