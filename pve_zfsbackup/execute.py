"""The only interpreter of steps. It decides nothing: it does what the plan says, in order, and reads back.

Neighbouring small steps of one kind go in one command (marks of one point, holds, destroys of one dataset).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import assert_never

from pve_zfsbackup.errors import BackupError, VerificationError, ZfsError
from pve_zfsbackup.events import Emit, Progress
from pve_zfsbackup.host import destroying, listing, zfs
from pve_zfsbackup.host.pipeline import Chain, carry
from pve_zfsbackup.host.quiesce import FreezeRules, Quiescer, Window
from pve_zfsbackup.host.settling import settle
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import (
    PROPERTY,
    SOURCE,
    AbortReceive,
    Adopt,
    Bookmark,
    CreateBookmark,
    CreateParent,
    Dataset,
    Destroy,
    DestroyBookmark,
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

ESTIMATE_BYTES = 256 << 20  # from here the exact size is worth a process of its own
AT_ONCE = 8  # commands that only wait for the pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """Carries out steps on `hosts` (SOURCE and the targets by name)."""

    hosts: Mapping[str, Host]
    emit: Emit

    def execute(self, steps: Sequence[Step]) -> int:
        """Do the steps; returns the bytes moved. Raises on the first that fails: those after it are not done."""
        moved = 0
        for kind, run in groupby(steps, key=_kind):
            if kind is Mark:
                settle(self.hosts, [step for step in run if isinstance(step, Mark | Hold | Release)])
            elif kind is DestroyBookmark:
                self._forget([step for step in run if isinstance(step, DestroyBookmark)])
            elif kind is Destroy:
                self._destroy([step for step in run if isinstance(step, Destroy)])
            elif kind is Send:
                moved += self._send([step for step in run if isinstance(step, Send | Resume)])
            else:
                for step in run:
                    self._one(step)
        return moved

    def _one(self, step: Step) -> None:
        match step:
            case AbortReceive():
                zfs.abort_receive(self.hosts[step.host], step.dataset)
            case CreateParent():
                zfs.create_parent(self.hosts[step.host], step.dataset, step.owner)
            case Adopt():
                zfs.set_properties(self.hosts[step.host], [step.dataset], {f"{PROPERTY}owner": step.owner})
            case CreateBookmark():
                zfs.create_bookmark(self.hosts[SOURCE], step.snapshot, step.name)
            case Mark() | Hold() | Release() | Destroy() | DestroyBookmark() | Send() | Resume():
                self.execute((step,))
            case SnapshotGuest():
                raise VerificationError("a guest is snapshotted by `snapshot`, which freezes it")
            case unknown:
                assert_never(unknown)

    def snapshot(
        self, step: SnapshotGuest, quiescer: Quiescer, config: Mapping[str, str], rules: FreezeRules
    ) -> Window:
        """Freeze, snapshot all pools, thaw. Returns how it really went. `config` are properties that
        carry the guest's configuration.

        The snapshots are born with what is proven at that moment, and are told more only when more is proven.
        Raises what went wrong. Where a pool failed, what the others have made by then is taken back, as far as that
        goes: it is no point. A whole one stays, and claims no more than it should.
        """
        host = self.hosts[SOURCE]
        properties = {
            f"{PROPERTY}point": step.point,
            f"{PROPERTY}disks": step.disks,
            f"{PROPERTY}guest": f"{step.guest.kind}/{step.guest.node}",
            **({f"{PROPERTY}props": step.props} if step.props else {}),
            **{PROPERTY + key: value for key, value in config.items()},
        }
        with contextlib.ExitStack() as thawed, quiescer.window(step, rules) as window:
            born = window.label
            try:
                zfs.snapshot(host, step.pools, step.name, {**properties, f"{PROPERTY}consistency": born})
            except ZfsError:  # not for a pool that hangs: it would again
                thawed.callback(self._discard_half, step)
                raise
        told = {} if window.label == born else {f"{PROPERTY}consistency": window.label}
        if window.seconds:
            told[f"{PROPERTY}window"] = str(max(1, round(window.seconds * 1000)))
        if told:
            names = [f"{dataset}@{step.name}" for datasets in step.pools for dataset in datasets]
            zfs.set_properties(host, names, told)
        return window

    def _discard_half(self, step: SnapshotGuest) -> None:
        with contextlib.suppress(BackupError):  # why there is a half is told, and what stays of it prune takes
            self.discard(step)

    def discard(self, step: SnapshotGuest) -> None:
        """Take back the point that was just made: its snapshots by their guids, and only where they are of it."""
        host = self.hosts[SOURCE]
        datasets = [dataset for datasets in step.pools for dataset in datasets]
        found = listing.list_host(host, datasets, depth=1)
        made = [s for volume in found.volumes.values() for s in volume.snapshots if s.point == step.point]
        self.execute([Destroy(host=SOURCE, snapshot=snapshot) for snapshot in made])

    def chain(
        self, steps: Sequence[Step], size: int, *, compress: bool = False, buffer: int = 0,
        unwanted: Callable[[], str] = lambda: "",
    ) -> Chain:  # fmt: skip
        """The streams of one disk with what is to be done right before them. The rest as in `Chain`."""
        streams = tuple(step for step in steps if isinstance(step, Send | Resume))
        before = [step for step in steps if not isinstance(step, Send | Resume)]

        def prepare() -> None:
            self.execute(before)

        return Chain(
            streams=streams, prepare=prepare, size=size, compress=compress, buffer=buffer, unwanted=unwanted
        )

    def carry(self, host: str, chains: Sequence[Chain]) -> None:
        """Send the chains to one host in one session; each says afterwards what became of it."""
        carry(self.hosts[SOURCE], self.hosts[host], chains, _Meter(self, chains))

    def _send(self, steps: Sequence[Send | Resume]) -> int:
        """Streams of one disk on their own."""
        chain = self.chain(steps, 0)
        self.carry(steps[0].host, [chain])
        if chain.error:
            raise chain.error
        return chain.moved

    def verify(self, host: str, expected: Mapping[Dataset, frozenset[Guid]]) -> dict[Dataset, frozenset[Guid]]:
        """Read back which snapshots were received, all in one command; returns what is missing, by dataset."""
        found = listing.read_guids(self.hosts[host], expected)
        missing = {name: guids - found.get(name, frozenset()) for name, guids in expected.items()}
        return {name: guids for name, guids in missing.items() if guids}

    def bookmark(self, steps: Sequence[CreateBookmark]) -> frozenset[str]:
        """Make many at once. Returns the full names of those that were made; `execute` tells why others are not."""
        return zfs.create_bookmarks(self.hosts[SOURCE], [(step.snapshot, step.name) for step in steps])

    def forget(self, bookmarks: Sequence[Bookmark]) -> list[tuple[Bookmark, BackupError]]:
        """Destroy bookmarks of this node; returns those that could not be, and why. Some at a time: each waits for a
        transaction group, and they can wait for the same one."""
        host, failed = self.hosts[SOURCE], []
        with ThreadPoolExecutor(min(AT_ONCE, len(bookmarks)) or 1) as threads:
            ends = [threads.submit(zfs.destroy_bookmark, host, bookmark) for bookmark in bookmarks]
            for bookmark, end in zip(bookmarks, ends, strict=True):
                try:
                    end.result()
                except BackupError as error:
                    failed.append((bookmark, error))
        return failed

    def _forget(self, steps: Sequence[DestroyBookmark]) -> None:
        if len(steps) == 1:  # without a thread
            zfs.destroy_bookmark(self.hosts[SOURCE], steps[0].bookmark)
            return
        for _, error in self.forget([step.bookmark for step in steps]):
            raise error

    def destroy(self, host: str, snapshots: Sequence[Snapshot]) -> list[tuple[Snapshot, Exception]]:
        """Destroy what lies on one host, of whichever guests: in few commands. The rest as in `destroying.destroy`."""
        return destroying.destroy(self.hosts[host], snapshots)

    def _destroy(self, steps: Sequence[Destroy]) -> None:
        failed: list[tuple[Snapshot, Exception]] = []
        for host in dict.fromkeys(step.host for step in steps):
            failed += self.destroy(host, [step.snapshot for step in steps if step.host == host])
        if failed:
            raise undestroyed(failed)


def undestroyed(failed: Sequence[tuple[Snapshot, Exception]]) -> BackupError:
    """What is told of snapshots that stay although they should go."""
    return BackupError(
        f"{len(failed)} snapshots could not be destroyed: "
        + "; ".join(f"{snapshot.full_name}: {error}" for snapshot, error in failed[:5]),
        hint="they are tried again by the next prune",
    )


def _kind(step: Step) -> type[Step]:
    """Of steps that are done together."""
    if isinstance(step, Mark | Hold | Release):
        return Mark
    return Send if isinstance(step, Resume) else type(step)


class _Meter:
    """Progress of the streams of one session, as events: what is expected of each is asked where it is worth it."""

    def __init__(self, executor: Executor, chains: Sequence[Chain]) -> None:
        self._executor = executor
        self._totals = {stream: chain.size for chain in chains for stream in chain.streams}
        self._began: dict[Send | Resume, float] = {}
        self._moved: dict[Send | Resume, int] = {}

    def begin(self, stream: Send | Resume) -> None:
        if self._totals[stream] >= ESTIMATE_BYTES:
            with contextlib.suppress(BackupError):  # what is wrong with the stream, the stream itself tells
                known = zfs.estimate(self._executor.hosts[SOURCE], stream)
                self._totals[stream] = known or self._totals[stream]
        self._began[stream] = time.monotonic()
        self.moved(stream, 0)

    def moved(self, stream: Send | Resume, count: int) -> None:
        self._moved[stream] = count
        self._emit(stream, done=False)

    def end(self, stream: Send | Resume) -> None:
        self._emit(stream, done=True)

    def _emit(self, stream: Send | Resume, *, done: bool) -> None:
        moved = self._moved[stream]
        self._executor.emit(
            Progress(
                host=stream.host,
                disk=stream.snapshot.dataset,
                moved=moved,
                total=max(self._totals[stream], moved),
                seconds=time.monotonic() - self._began[stream],
                done=done,
            )
        )
