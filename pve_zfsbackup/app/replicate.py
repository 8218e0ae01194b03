"""The replicate stage: every disk's newest point to each of its targets, all targets at the same time."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

from pve_zfsbackup.app.gather import Assignment, Inventory, first_listing, show_rooms
from pve_zfsbackup.app.lanes import Course, attempt
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.patience import Patience
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.targets import remarks
from pve_zfsbackup.app.works import STAGE, Work, plan_target, plan_works, works_to
from pve_zfsbackup.errors import BackupError, InterruptedRunError
from pve_zfsbackup.events import Result
from pve_zfsbackup.model import Dataset, Guid, Listing, ResumeToken, Vmid

__all__ = ["plan_target", "replicate"]

_Told = SimpleQueue[Result | None]


def replicate(session: Session, found: Inventory, items: Iterable[Assignment]) -> Generator[Result, None, None]:
    """Bring the points to every target. A target that does not answer fails alone, and nobody waits for it."""
    items = list(items)
    works = {name: works_to(name, items) for name in session.config.targets}
    stop = threading.Event()
    told: _Told = SimpleQueue()
    wanted = {name: own for name, own in works.items() if own}
    with ThreadPoolExecutor(max(1, len(wanted))) as threads:
        try:
            futures = [threads.submit(_one, session, found, (name, own, stop), told) for name, own in wanted.items()]
            left = len(futures)
            while left:
                result = told.get()
                if result is None:
                    left -= 1
                else:
                    yield result
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            session.runner.cancel()  # leaving the block waits for the threads, and a stream may take hours
            raise


def _one(session: Session, found: Inventory, to: tuple[str, Sequence[Work], threading.Event], told: _Told) -> None:
    """One target, in a thread of its own; a None at the end."""
    target, works, stop = to
    try:
        for result in _to_target(session, found, works, Course(target=target, stop=stop)):
            told.put(result)
    except Exception as error:  # also a bug of ours is this target's alone
        told.put(failed(STAGE, error, host=target))
    finally:
        told.put(None)


def _to_target(session: Session, found: Inventory, works: Sequence[Work], course: Course) -> Iterator[Result]:
    """Attempts until all is done, or nothing that may pass by itself is left, or patience is."""
    waiting = list(works)
    settings = session.config.targets[course.target]
    patience = Patience(retries=settings.retries, wait=settings.retry_wait, pause=session.pause, random=session.random)
    progress = _Progress()
    remarked = False
    while not course.stop.is_set():
        refused = len(course.refused)
        fault: BackupError | None = None
        try:
            listing = first_listing(session, found, course.target)
            if not remarked:
                yield from remarks(session, found, listing, STAGE)
                show_rooms(session, listing)
                remarked = True
            if progress.made(listing, waiting):
                patience.renew()
            plan_works(session, found, waiting, without(listing, course.refused))
            for work in attempt(session, course, waiting):
                if not work.again:
                    waiting.remove(work)
                    yield from work.results()
        except BackupError as error:
            fault = error
        if not waiting or (fault and not fault.transient):
            break
        if refused == len(course.refused) and not patience.again(course.stop):
            break
    if course.stop.is_set():  # whoever interrupts a run reads no more; anybody else is told
        yield failed(STAGE, InterruptedRunError("ended before all was sent"), host=course.target)
        return
    broken = [work for work in waiting if work.again]
    if fault and (not waiting or len(broken) < len(waiting)):  # of the others nothing is known
        yield failed(STAGE, fault, host=course.target)
    for work in broken if fault else waiting:
        yield from work.results()


def without(listing: Listing, refused: Iterable[Dataset]) -> Listing:
    """The listing with resume tokens that were tried in vain shown as unreadable: they are planned to be aborted."""
    spoilt = {
        name: replace(volume, resume=ResumeToken(token=volume.resume.token))
        for name in refused
        if (volume := listing.volumes.get(name)) and volume.resume
    }
    return replace(listing, volumes={**listing.volumes, **spoilt}) if spoilt else listing


class _Progress:
    """Whether anything got further than ever before in this run: a stream that arrived, or bytes of one that broke."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[Dataset, Guid], int] | None = None
        self._streams: dict[Vmid, int] = {}

    def made(self, listing: Listing, works: Sequence[Work]) -> bool:
        tokens = [(name, volume.resume) for name, volume in listing.volumes.items() if volume.resume]
        found = {(name, token.to_guid): token.received for name, token in tokens}
        streams = {work.guest.vmid: work.streams for work in works}
        first, best = self._bytes is None, self._bytes or {}
        further = any(count > best.get(key, 0) for key, count in found.items())
        arrived = any(count > self._streams.get(vmid, 0) for vmid, count in streams.items())
        self._bytes = {**best, **{key: max(count, best.get(key, 0)) for key, count in found.items()}}
        self._streams = streams
        return not first and (further or arrived)
