"""What makes streams that arrived a point: read back there, marked, held; and here the bookmarks of what is common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set

from pve_zfsbackup.app.gather import target_listing
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.works import Work, is_transient
from pve_zfsbackup.errors import BackupError, DatasetNotFoundError, VerificationError
from pve_zfsbackup.host.pipeline import sent_guids
from pve_zfsbackup.model import (
    CreateBookmark,
    Dataset,
    DestroyBookmark,
    Guid,
    Hold,
    Mark,
    Release,
    Resume,
    Send,
    Step,
)
from pve_zfsbackup.plan.replication import phases

# One command for all guests of a batch where ZFS allows it. An old bookmark goes before a new one of its name.
_FINISH = (Mark, Hold, Release, DestroyBookmark, CreateBookmark)


def finish(session: Session, target: str, works: Sequence[Work]) -> None:
    """Read back what arrived for these guests, then make it points there: properties, holds, bookmarks.

    All together; where that fails each for itself, so that one's trouble is its own.
    """
    try:
        _verify(session, target, works)
    except Exception as error:
        for work in works:
            work.error = error
        return
    _settle(session, target, works)


def _settle(session: Session, target: str, works: Sequence[Work], marked: Set[str] = frozenset()) -> None:
    """`marked` are snapshots there that are part of a point already: append-only targets let none be marked twice."""
    small = {work.guest.vmid: _small(work, marked) for work in works}
    steps = [step for own in small.values() for step in own]
    try:
        session.executor.execute(sorted(steps, key=lambda step: _FINISH.index(type(step))))
        for work in works:
            work.changed = work.changed or bool(small[work.guest.vmid])
    except Exception as error:
        if len(works) == 1 or is_transient(error):
            for work in works:
                work.error = None if work.gone and isinstance(error, DatasetNotFoundError) else error
            return
        marked = _marked(session, target)
        for work in works:
            _settle(session, target, [work], marked)


def _small(work: Work, marked: Set[str]) -> list[Step]:
    steps = [step for _, plan in work.alive for step in phases(plan)[2]]
    return [step for step in steps if not (isinstance(step, Mark) and f"{step.dataset}@{step.source.name}" in marked)]


def _marked(session: Session, target: str) -> frozenset[str]:
    """What is marked there now; nothing is known to be where that cannot be asked."""
    try:
        volumes = target_listing(session, target).volumes.values()
    except BackupError:
        return frozenset()
    return frozenset(snapshot.full_name for volume in volumes for snapshot in volume.snapshots if snapshot.point)


def _verify(session: Session, target: str, works: Sequence[Work]) -> None:
    """What is missing is the fault of its disk. Sessions that ended well have said what is there."""
    expected_guids: dict[Dataset, set[Guid]] = defaultdict(set)
    origin: dict[Dataset, tuple[Work, Dataset]] = {}
    for work in works:
        for dataset, plan in work.alive:
            for step in plan.steps:
                if isinstance(step, Send | Resume):
                    expected_guids[step.dataset].update(sent_guids(step))
                    origin[step.dataset] = (work, dataset)
    said = {name: guids for work in works for name, guids in work.read.items() if name in expected_guids}
    missing = {name: frozenset(guids) - said[name] for name, guids in expected_guids.items() if name in said}
    if asked := {name: frozenset(guids) for name, guids in expected_guids.items() if name not in said}:
        missing |= session.executor.verify(target, asked)
    for name, guids in ((name, guids) for name, guids in missing.items() if guids):
        work, dataset = origin[name]
        work.faults[dataset] = VerificationError(
            f"{target}: {name} lacks {len(guids)} snapshots that were sent, although every command succeeded",
            hint="the next run plans anew from what is there",
        )
