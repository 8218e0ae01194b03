"""One attempt at one target: streams in lanes, and guests finished in batches as their disks arrive."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial

from pve_zfsbackup.app.finishing import finish
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.wire import Stopwatch, buffer_to, ratios_of, wire_to
from pve_zfsbackup.app.works import Work
from pve_zfsbackup.errors import (
    BackupError,
    GivenUpError,
    PoolReadOnlyError,
    QueuedError,
    ResumeRefusedError,
)
from pve_zfsbackup.host.pipeline import Chain, Fate
from pve_zfsbackup.host.vigil import Vigil
from pve_zfsbackup.model import (
    AbortReceive,
    Adopt,
    CreateBookmark,
    CreateParent,
    Dataset,
    DestroyBookmark,
    Resume,
    Send,
    Step,
    Vmid,
)
from pve_zfsbackup.plan.lanes import Load, expected, pack
from pve_zfsbackup.plan.replication import phases


@dataclass(slots=True, kw_only=True)
class Course:
    """What is remembered of one target from one attempt to the next. Datasets are those of the replicas, but for
    `suspects`: disks that were under way when a session broke."""

    target: str
    stop: threading.Event
    refused: set[Dataset] = field(default_factory=set)  # their resume tokens turned out to be of no use
    aborted: set[Dataset] = field(default_factory=set)  # thrown away once in this run: not again
    suspects: set[Dataset] = field(default_factory=set)


def attempt(session: Session, course: Course, works: Sequence[Work]) -> Iterator[Work]:
    """Do what is planned. Each guest comes out as soon as all its disks have arrived or failed and it was finished.

    Raises what is the fault of the whole target: its streams under way are given up then, and no other target's.
    """
    _prepare(session, course.target, works)
    _abort(session, course, works)
    lanes = session.config.targets[course.target].parallel
    vigil = session.vigil([work.guest for work in works])
    with vigil, ThreadPoolExecutor(lanes) as carriers, ThreadPoolExecutor(lanes) as finishers:
        under_way = _Attempt(session, (course, vigil), works, carriers, finishers)
        try:
            yield from under_way.run()
        except Exception:
            under_way.over.set()  # leaving the block waits for the threads, and a stream may take hours
            raise
        except BaseException:
            course.stop.set()
            session.runner.cancel()
            raise
        finally:
            if course.stop.is_set() or under_way.over.is_set():
                for threads in (carriers, finishers):
                    threads.shutdown(wait=False, cancel_futures=True)


class _Attempt:
    """The coordinator: all bookkeeping is in its thread, the others carry and finish."""

    def __init__(
        self,
        session: Session,
        course: tuple[Course, Vigil],
        works: Sequence[Work],
        carriers: ThreadPoolExecutor,
        finishers: ThreadPoolExecutor,
    ) -> None:
        self._session = session
        self._course, self._vigil = course
        self._lanes = session.config.targets[self._course.target].parallel
        self._works = {work.guest.vmid: work for work in works}
        self._carriers, self._finishers = carriers, finishers
        self._buffer = buffer_to(session, course[0].target)
        self.over = threading.Event()  # this attempt failed: what it sends is given up
        self._sealed: PoolReadOnlyError | None = None  # what one stream was told holds for all
        self._carried: dict[Future[None], list[tuple[Load, Chain]]] = {}
        self._finished: dict[Future[None], list[Work]] = {}

    def run(self) -> Iterator[Work]:
        loads = self._loads()
        for load in loads:
            self._works[load.vmid].pending += 1
        ready = [work for work in self._works.values() if not work.pending]
        finish(self._session, self._course.target, ready)
        self._start(loads)
        yield from ready
        watch = Stopwatch(session=self._session, target=self._course.target)
        while self._carried or self._finished:
            watch.mark(sending=bool(self._carried))
            done, _ = wait({*self._carried, *self._finished}, return_when=FIRST_COMPLETED)
            if self._course.stop.is_set():
                return
            sent = [future for future in self._carried if future in done]
            carried = [chain for future in sent for _, chain in self._carried[future]]
            watch.moved += sum(chain.moved for chain in carried)
            watch.lost += sum(chain.lost for chain in carried)
            watch.streaming += sum(chain.seconds for chain in carried)
            self._collect(sent)
            for future in [future for future in self._finished if future in done]:
                future.result()
                yield from self._finished.pop(future)
        watch.mark(sending=False)
        watch.note(packed=any(load.compress for load in loads), buffered=self._buffer > 0)

    def _loads(self) -> list[Load]:
        found: list[Load] = []
        for work in self._works.values():
            own = []
            for dataset, plan in work.alive:
                steps = tuple(step for step in phases(plan)[1] if not isinstance(step, AbortReceive))
                if any(isinstance(step, Send | Resume) for step in steps):
                    own.append((dataset, steps, plan.since))
            since = min((since for _, _, since in own), default=0)
            for dataset, steps, _ in own:
                suspect, size = dataset in self._course.suspects, expected(steps)
                load = Load(vmid=work.guest.vmid, dataset=dataset, steps=steps, size=size, since=since, suspect=suspect)
                found.append(load)
        wire = wire_to(self._session, self._course.target)
        ratios = ratios_of(self._session, wire, [load.dataset for load in found if not load.raw])
        packed = {load.dataset for load in found if not load.raw and wire.packs(ratios.get(load.dataset, 1.0))}
        return [replace(load, compress=load.dataset in packed) for load in found]

    def _start(self, loads: Sequence[Load]) -> None:
        executor = self._session.executor
        made = executor.bookmark([step for load in loads for step in _first_marks(load)])
        for session in pack(loads, self._lanes):
            chains = [
                executor.chain(
                    [step for step in load.steps if not _is_made(step, made)],
                    load.size,
                    compress=load.compress,
                    buffer=self._buffer,
                    unwanted=partial(self._unwanted, load.dataset),
                )
                for load in session
            ]
            future = self._carriers.submit(executor.carry, self._course.target, chains)
            self._carried[future] = list(zip(session, chains, strict=True))

    def _unwanted(self, dataset: Dataset) -> str:
        return "the attempt it belongs to failed" if self.over.is_set() else self._vigil.gone(dataset)

    def _collect(self, futures: Sequence[Future[None]]) -> None:
        """Note what became of these sessions: some go again, and guests that are complete are finished together."""
        touched: dict[Vmid, Work] = {}
        again: list[Load] = []
        for future in futures:
            pairs = self._carried.pop(future)
            touched |= {load.vmid: self._works[load.vmid] for load, _ in pairs}
            try:
                future.result()
            except Exception as error:
                again += self._after_a_bug(pairs, error)
            else:
                again += [load for load, chain in pairs if not self._noted(load, chain)]
        self._start(again)
        batch = [work for work in touched.values() if not work.pending]
        if batch:
            self._finished[self._finishers.submit(finish, self._session, self._course.target, batch)] = batch

    def _after_a_bug(self, pairs: Sequence[tuple[Load, Chain]], error: Exception) -> list[Load]:
        """Those under way are tried once more, each on its own: then it is known whose trouble it is."""
        begun = [load for load, chain in pairs if chain.begun] or [load for load, _ in pairs]
        for load in begun:
            kept = self._ended(load).faults if len(pairs) == 1 else self._ended(load).broken
            kept[load.dataset] = error
            self._course.suspects.add(load.dataset)
        return [load for load, _ in pairs if load not in begun]

    def _noted(self, load: Load, chain: Chain) -> bool:
        """Whether this disk is over, one way or the other."""
        work = self._works[load.vmid]
        work.moved += chain.moved
        if chain.fate is Fate.AGAIN:
            if self._sealed is None:
                return False
            chain.fail(self._sealed)
        self._ended(load)
        if isinstance(chain.error, PoolReadOnlyError) and chain.begun:  # else it is the pool here, of this disk alone
            self._sealed = chain.error
        if isinstance(chain.error, GivenUpError):
            work.leave(load.dataset, chain.error)
            return True
        if chain.error is not None and chain.begun:
            self._course.suspects.add(load.dataset)
        if chain.error is None:
            work.streams += len(chain.streams)
            work.read.pop(chain.dataset, None)
            if chain.read is not None:
                work.read[chain.dataset] = chain.read
        elif isinstance(chain.error, ResumeRefusedError) and chain.dataset not in self._course.aborted:
            self._course.refused.add(chain.dataset)
            work.broken[load.dataset] = chain.error
        else:
            work.blame(load.dataset, chain.error)
        return True

    def _ended(self, load: Load) -> Work:
        work = self._works[load.vmid]
        work.pending -= 1
        return work


def _first_marks(load: Load) -> list[CreateBookmark]:
    """Bookmarks that can be made before the disk's turn. Where one of an earlier try is still to be removed it waits
    for its turn: tries that break off again and again would leave one each."""
    if any(isinstance(step, DestroyBookmark) for step in load.steps):
        return []
    return [step for step in load.steps if isinstance(step, CreateBookmark)]


def _is_made(step: Step, bookmarks: frozenset[str]) -> bool:
    return isinstance(step, CreateBookmark) and f"{step.snapshot.dataset}#{step.name}" in bookmarks


def _prepare(session: Session, target: str, works: Sequence[Work]) -> None:
    """Make what replicas lie in. Of what lies below the root, one that cannot be made is the trouble of the disks that
    are to go there; the root is that of all."""
    root = session.config.targets[target].root
    tried: dict[Step, BackupError | None] = {}
    for work in works:
        for dataset, plan in list(work.alive):
            for step in (step for step in phases(plan)[0] if isinstance(step, Adopt | CreateParent)):
                if step not in tried:
                    tried[step] = _fault(session, step, fatal=step.dataset == root)
                if fault := tried[step]:
                    work.blame(dataset, fault)
                    break


def _fault(session: Session, step: Step, *, fatal: bool) -> BackupError | None:
    try:
        session.executor.execute([step])
    except BackupError as error:
        if fatal or error.transient:
            raise
        return error
    return None


def _abort(session: Session, course: Course, works: Sequence[Work]) -> None:
    """Throw away the interrupted receives that cannot go on: each once in a run, then it is for a person."""
    for work in works:
        for dataset, plan in list(work.alive):
            for step in plan.steps:
                if isinstance(step, AbortReceive):
                    _abort_one(session, course, (work, dataset), step)


def _abort_one(session: Session, course: Course, disk: tuple[Work, Dataset], step: AbortReceive) -> None:
    work, dataset = disk
    if step.dataset in course.aborted:
        work.faults[dataset] = BackupError(
            f"the interrupted receive into {step.dataset} was thrown away once and cannot go on again: {step.reason}",
            hint=f"look at it on {course.target}; `zfs receive -A {step.dataset}` throws it away",
        )
        return
    try:
        session.executor.execute([step])
        course.aborted.add(step.dataset)
        course.refused.discard(step.dataset)  # that token; one of the stream that now begins is worth a try
    except QueuedError as error:
        work.park(dataset, error)
    except BackupError as error:
        work.blame(dataset, error)
