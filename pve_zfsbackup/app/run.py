"""The stages in order, each guest isolated, each stage under its lock, with a journal."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import assert_never

from pve_zfsbackup.app.gather import Assignment, Inventory, Scope, assign, inventory, show_rooms
from pve_zfsbackup.app.hooks import Hooks
from pve_zfsbackup.app.leavings import strays, stuck
from pve_zfsbackup.app.outcome import JOURNAL, as_fields, deferred, doubted, failed, log_result, unthawed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Config
from pve_zfsbackup.errors import BackupError, ConfigError, ExitCode, LockedError
from pve_zfsbackup.events import Event, Outcome, Result, Seen
from pve_zfsbackup.host.journal import Journal, log_line
from pve_zfsbackup.host.lock import OneLock, run_lock
from pve_zfsbackup.model import Vmid


class Stage(StrEnum):
    SNAPSHOT = "snapshot"
    REPLICATE = "replicate"
    ARCHIVE = "archive"
    PRUNE = "prune"


ALL_STAGES = tuple(Stage)
# A first replication takes hours, and new points must not wait for it. To prune while streams are under way could
# take away what they still need.
SNAPSHOT_LOCK = "snapshot"
_LOCKS: Mapping[Stage, str] = {
    Stage.SNAPSHOT: SNAPSHOT_LOCK,
    Stage.REPLICATE: "replicate",
    Stage.ARCHIVE: "archive",
    Stage.PRUNE: "replicate",
}
Results = Generator[Result, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run did; `left` are the stages it had to do and did not."""

    run: str
    results: tuple[Result, ...]
    notes: tuple[str, ...]
    seconds: float
    left: tuple[Stage, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(result.bytes for result in self.results)

    @property
    def exit_code(self) -> ExitCode:
        return exit_code(self.results)


def exit_code(results: Iterable[Result]) -> ExitCode:
    """OK, PARTIAL when something failed and something else worked, FAILED when nothing worked. A warning of no guest
    and no host is a remark, and no work."""
    found = {(result.outcome, bool(result.vmid or result.host)) for result in results}
    outcomes = {outcome for outcome, about in found if about or outcome is not Outcome.WARNING}
    if Outcome.FAILED not in outcomes:
        return ExitCode.OK
    return ExitCode.PARTIAL if outcomes & {Outcome.OK, Outcome.WARNING} else ExitCode.FAILED


def run(session: Session, scope: Scope, stages: Sequence[Stage] = ALL_STAGES) -> Report:
    """Do the stages for the guests in scope. Lists anew before each stage, because the world moves.

    Where another run is at a stage, this one ends: what follows is the other's to do; only an archive under way is
    passed by. Raises `LockedError` when that is the first stage, `ConfigError` for an unusable configuration, and
    whatever keeps it from finding the guests at all; a guest's or a target's failure is a `Result`.
    """
    if not session.config.jobs and session.config.receives:
        return Report(run="", results=(), notes=("no job: this host only receives",), seconds=0.0)
    if not session.config.jobs:
        raise ConfigError(
            ["no job is configured, so nothing would ever be protected"],
            hint="/usr/share/doc/pve-zfsbackup/examples/config.yaml has one",
        )
    stages = needed(session.config, stages)
    loaded = {stage: _loaded(stage) for stage in stages}
    started = time.monotonic()
    name = f"{session.now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    with OneLock(session.config.runtime_dir) as locks:
        locks.take(_LOCKS[stages[0]])
        with _journal(session, name, stages) as journal:
            hooks = Hooks(session=session, run=name)
            written = _Written(session, journal, hooks, [])
            session = replace(session, emit=written.told)
            notes, undone = _sweep(session, written, locks), list[Stage]()
            for told in () if scope.guests else stuck(session):  # whoever names guests has those
                written.result(told)
            hooks.before("before-run")
            for number, stage in enumerate(stages):
                try:
                    locks.take(_LOCKS[stage])
                except LockedError as error:  # what an upload of weeks needs has its bookmark: pruning does not wait
                    left = [one.value for one in ([stage] if stage is Stage.ARCHIVE else stages[number:])]
                    undone += map(Stage, left)
                    written.result(deferred(left, error))
                    written.add("deferred", {"stages": left})
                    if stage is Stage.ARCHIVE:
                        continue
                    break
                if stage is Stage.REPLICATE and (kept := _kept_from(hooks, stage)):
                    written.result(kept)
                    undone.append(stage)
                    continue
                found = inventory(session, targets=_wanted(session.config, scope, stage))
                if not number:
                    show_rooms(session, found.listing)
                    for doubt in found.doubts:
                        written.result(doubted(stage.value, doubt, all_meant=not scope.guests))
                items, remarks = assign(session, found, scope)
                written.jobs.update((item.guest.vmid, item.names) for item in items)
                notes += [note for note in (*found.notes, *remarks) if note not in notes]
                # Closed while the lock is ours, whatever ends the loop: its streams end then.
                with contextlib.closing(loaded[stage](session, found, items)) as stage_results:
                    for result in stage_results:
                        written.result(result)
            for told in _strays(session):
                written.result(told)
            code = exit_code(written.results)
            for told in hooks.end(code.name.lower(), int(code)):
                written.result(told)
            code, seconds = exit_code(written.results), time.monotonic() - started
            written.add("end", {"exit_code": int(code), "seconds": round(seconds, 3), "notes": notes})
    report = Report(
        run=name, results=tuple(written.results), notes=tuple(notes), seconds=seconds, left=tuple(undone)
    )  # fmt: skip
    ended = {"run": name, "exit_code": int(report.exit_code), "bytes": report.bytes, "seconds": round(seconds, 3)}
    log_line(_summary(report, stages), failed=report.exit_code is not ExitCode.OK, fields=ended)
    return report


def needed(config: Config, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages there is something to do for: nothing is archived where no job names a box."""
    if any(job.boxes for job in config.jobs.values()):
        return tuple(stages)
    left = tuple(stage for stage in stages if stage is not Stage.ARCHIVE)
    if not left:
        raise ConfigError(["no job names a box"], hint="add `boxes: [NAME]` to a job, and the box to `boxes`")
    return left


def _wanted(config: Config, scope: Scope, stage: Stage) -> list[str]:
    """Targets this stage surely has to do with: of a few guests it is not known yet."""
    if stage not in (Stage.REPLICATE, Stage.PRUNE) or scope.guests:
        return []
    jobs = (job for name, job in config.jobs.items() if not scope.jobs or name in scope.jobs)
    return list(dict.fromkeys(target for job in jobs for target in job.targets))


def _sweep(session: Session, written: _Written, locks: OneLock) -> list[str]:
    """Thaw what an interrupted run left frozen; returns what was done."""
    with contextlib.ExitStack() as stack:
        if locks.held != SNAPSHOT_LOCK:
            try:
                stack.enter_context(run_lock(session.config.runtime_dir, SNAPSHOT_LOCK))
            except LockedError:
                return []  # somebody is at his snapshots: what is frozen now is his to thaw
        told = session.quiescer.sweep()
        for line in told:
            written.add("sweep", {"message": line})
        for vmid, kind in session.quiescer.unthawed().items():
            written.result(unthawed(vmid, kind))
    return told


def _strays(session: Session) -> Iterator[Result]:
    """A guest that a killed boot drill left goes away after the points of all the others."""
    if strays(session)[0]:
        from pve_zfsbackup.app.drill import sweep_strays  # noqa: PLC0415 - hardly ever needed, and takes time to load

        yield from sweep_strays(session)


def _kept_from(hooks: Hooks, stage: Stage) -> Result | None:
    """The failure of the administrator's command before a stage, which then is not done."""
    try:
        hooks.before(f"before-{stage}", PZB_STAGE=stage.value)
    except BackupError as error:
        return failed(stage.value, BackupError(f"the before-{stage} command failed: {error.message}", hint=error.hint))
    return None


@dataclass(slots=True)
class _Written:
    """Results as they come: kept, written to the journal, told. A journal that cannot be written any more is a
    failure of the run that is told once, and no reason to leave the other guests without their points."""

    session: Session
    journal: Journal
    hooks: Hooks
    results: list[Result]
    broken: bool = False
    jobs: dict[Vmid, tuple[str, ...]] = field(default_factory=dict)  # of the guests, as they were assigned

    def result(self, result: Result) -> None:
        if result.vmid:
            result = replace(result, jobs=self.jobs.get(result.vmid, ()))
        self.results.append(result)
        self.session.emit(result)
        self.add("result", as_fields(result))
        log_result(self.hooks.run, result)
        for told in self.hooks.after(result):
            self.result(told)

    def told(self, event: Event) -> None:
        """What the stages tell by themselves, from several threads: for whoever watches, and what is worth keeping."""
        if isinstance(event, Seen):
            self.add("room", {key: value for key, value in asdict(event.room).items() if key != "at"})
        else:
            self.session.emit(event)

    def add(self, event: str, fields: Mapping[str, object]) -> None:
        if self.broken:
            return
        try:
            self.journal.write(event, fields)
        except BackupError as error:
            self.broken = True
            self.result(failed(JOURNAL, error))


def _loaded(stage: Stage) -> Callable[[Session, Inventory, Sequence[Assignment]], Results]:
    """What does this stage. Of a run with several all are loaded before the first: a package upgrade in the hours that
    one may take would mix two versions. Others are not loaded at all: most runs have one or two, and loading takes
    longer than listing."""
    match stage:
        case Stage.SNAPSHOT:
            from pve_zfsbackup.app.snapshot import snapshot  # noqa: PLC0415 - see above

            return snapshot
        case Stage.REPLICATE:
            from pve_zfsbackup.app.replicate import replicate  # noqa: PLC0415 - see above

            return replicate
        case Stage.ARCHIVE:
            from pve_zfsbackup.app.archive import archive  # noqa: PLC0415 - see above

            return archive
        case Stage.PRUNE:
            from pve_zfsbackup.app.prune import plan_all, prune  # noqa: PLC0415 - see above

            return lambda session, found, items: prune(session, plan_all(session, found, items))
        case unknown:
            assert_never(unknown)


@contextmanager
def _journal(session: Session, run: str, stages: Sequence[Stage]) -> Iterator[Journal]:
    """The journal of this run; what breaks the run off is its last line."""
    journal = Journal(session.config.journal_dir, run, session.now)
    try:
        journal.write("start", {"stages": [stage.value for stage in stages], "node": session.node})
        yield journal
    except BaseException as error:
        hint = error.hint if isinstance(error, BackupError) else ""
        told = error.message if isinstance(error, BackupError) else f"{type(error).__name__}: {error}"
        log_line(f"run {run} broken off: {told}", failed=True, fields={"run": run, "outcome": "broken-off"})
        with contextlib.suppress(BackupError):  # the journal itself may be what broke
            journal.write("broken-off", {"error": told, "hint": hint})
        for warning in Hooks(session=session, run=run).end("broken-off", int(ExitCode.FAILED)):
            log_line(warning.message, failed=True)
        raise
    finally:
        journal.close()


def _summary(report: Report, stages: Sequence[Stage]) -> str:
    counts = Counter(result.outcome for result in report.results)
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "nothing to do"
    names = "+".join(stage.value for stage in stages)
    return f"run {report.run} {names}: {told}, {report.bytes} bytes sent, {report.seconds:.1f} s"
