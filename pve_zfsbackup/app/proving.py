"""Proofs and restores as runs: in the journal result by result, in the log, and told where they fail."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pve_zfsbackup.app.alerts import tell_broken, tell_results
from pve_zfsbackup.app.gather import job_names
from pve_zfsbackup.app.outcome import JOURNAL, as_fields, failed, log_result
from pve_zfsbackup.app.restore import Prepared, Restored, carry_out
from pve_zfsbackup.app.restore_receive import Supply
from pve_zfsbackup.app.rollback import RolledBack, roll_back
from pve_zfsbackup.app.run import exit_code
from pve_zfsbackup.app.session import Home, Session
from pve_zfsbackup.errors import BackupError, ExitCode
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.journal import Journal, log_line
from pve_zfsbackup.model import SOURCE
from pve_zfsbackup.model.stages import RESTORE, ROLLBACK
from pve_zfsbackup.plan.rollback import Rollback

End = TypeVar("End")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved(Generic[End]):
    """What came of it: `ends` as they came, all of it as `results`, and what could not be told to whom."""

    ends: tuple[End, ...]
    results: tuple[Result, ...]
    notes: tuple[str, ...]


def prove(
    home: Home, stage: str, ends: Iterable[End], result_of: Callable[[End], Result],
    more: Callable[[End], Mapping[str, Any]] = lambda _: {}, *, host: str = "",
) -> Proved[End]:  # fmt: skip
    """Go through `ends`, which does the work one by one; `more` are fields for the journal besides those of a result,
    `host` is whose trouble it is when the work breaks off.

    Raises what breaks the work off, after it was told to whoever is told of failures.
    """
    found: list[End] = []
    with recording(home, stage) as record:
        try:
            for end in ends:
                found.append(end)
                record.add(result_of(end), **more(end))
        except Exception as error:
            tell_results(home, record.results)
            tell_broken(home, stage, error, host=host)
            raise
    notes = tell_results(home, record.results)
    return Proved(ends=tuple(found), results=tuple(record.results), notes=notes)


def restore_on_record(
    session: Session, prepared: Prepared, supply: Supply | None = None, *, start: bool = False
) -> tuple[Restored, tuple[str, ...]]:  # fmt: skip
    """`carry_out`, with its time in the journal: how long it takes to have a guest back is asked before it is needed.
    Also returns what went wrong with the journal and with the telling, which stops no restore."""
    plan = prepared.plan
    point, host = plan.origin.point, plan.origin.host
    about = Result(
        stage=RESTORE,
        outcome=Outcome.OK,
        vmid=point.vmid,
        host="" if host == SOURCE else host,
        point=point.id,
        message=f"guest {plan.wish.new} of {len(plan.disks)} disks",
        jobs=prepared.jobs,
    )

    def work() -> tuple[Restored, Result]:
        done = carry_out(session, prepared, supply, start=start)
        if done.error:
            told = f"{about.message} is restored, and {done.error}"
            return done, replace(about, outcome=Outcome.FAILED, bytes=done.moved, message=told)
        return done, replace(about, bytes=done.moved)

    return on_record(session, about, work, **({"disks": sorted(plan.wish.disks)} if plan.wish.disks else {}))


def rollback_on_record(session: Session, plan: Rollback) -> tuple[RolledBack, tuple[str, ...]]:
    """`roll_back` likewise: cut off, it leaves a guest locked, which somebody must hear of."""
    guest, point = plan.guest, plan.point.id
    jobs = job_names(session.config, guest)
    about = Result(stage=ROLLBACK, outcome=Outcome.OK, vmid=guest.vmid, guest=guest.name, point=point, jobs=jobs)

    def work() -> tuple[RolledBack, Result]:
        done = roll_back(session, plan)
        told = f"{len(plan.disks)} disks{f'; as it was before: {done.safety}' if done.safety else ''}"
        return done, replace(about, message=told)

    return on_record(session, about, work)


def on_record(
    home: Home, about: Result, work: Callable[[], tuple[End, Result]], **more: object
) -> tuple[End, tuple[str, ...]]:
    """Do somebody's wish. Returns what came of it, and what went wrong with the journal and the telling. Trouble with
    it is the guest's, wherever its point came from: the next try may take another."""
    started = time.monotonic()

    def add(result: Result) -> tuple[str, ...]:
        record.add(replace(result, seconds=time.monotonic() - started), **more)
        return tell_results(home, [replace(result, host="") for result in record.results])

    with recording(home, about.stage) as record:
        try:
            done, result = work()
        except (Exception, KeyboardInterrupt) as error:  # a signal, or a terminal that is gone, is one of the latter
            add(failed_by(about, error))
            raise
        notes = add(result)
    return done, (*notes, *(result.message for result in failures(record.results)))


def failed_by(about: Result, error: BaseException) -> Result:
    """What it is about, failed. What was cut off goes on, and its notes (`BaseException.add_note`) are for people."""
    notes = getattr(error, "__notes__", ())
    cut = BackupError("cut off", hint="; ".join(("the same command goes on", *notes)))
    bad = failed(about.stage, error if isinstance(error, Exception) else cut)
    return replace(about, outcome=bad.outcome, message=bad.message, hint=bad.hint, details=bad.details)


@dataclass(slots=True)
class Record:
    """A run under way. That the journal cannot be written is a failure that is told once, and stops nothing."""

    run: str
    journal: Journal | None = None
    results: list[Result] = field(default_factory=list)

    def add(self, result: Result, **more: object) -> None:
        self.results.append(result)
        self.write("result", {**as_fields(result), **more})
        log_result(self.run, result)

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        try:
            if self.journal:
                self.journal.write(event, fields)
        except BackupError as error:
            self._lost(error)

    def open(self, home: Home) -> None:
        try:
            self.journal = Journal(home.config.journal_dir, self.run, home.now)
        except BackupError as error:
            self._lost(error)

    def close(self) -> None:
        if self.journal:
            self.journal.close()
            self.journal = None

    def _lost(self, error: BackupError) -> None:
        self.close()
        self.results.append(failed(JOURNAL, error))


@contextmanager
def recording(home: Home, stage: str) -> Iterator[Record]:
    """The record of one piece of work, from its start to its end, or to what broke it off."""
    started, name = time.monotonic(), f"{home.now():%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    record = Record(run=name)
    record.open(home)
    record.write("start", {"stages": [stage], "node": home.node})
    try:
        yield record
        code, seconds = exit_code(record.results), round(time.monotonic() - started, 3)
        record.write("end", {"exit_code": int(code), "seconds": seconds})
        counts = Counter(result.outcome for result in record.results)
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "nothing to do"
        fields = {"run": name, "stage": stage, "exit_code": int(code), "seconds": seconds}
        log_line(f"run {name} {stage}: {told}, {seconds:.1f} s", failed=code is not ExitCode.OK, fields=fields)
    except BaseException as error:
        told = error.message if isinstance(error, BackupError) else f"{type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, BackupError) else ""
        record.write("broken-off", {"error": told, "hint": hint})
        with contextlib.suppress(OSError):
            log_line(f"run {name} {stage} broken off: {told}", failed=True, fields={"run": name, "stage": stage})
        raise
    finally:
        record.close()


def failures(results: Iterable[Result]) -> tuple[Result, ...]:
    """Those that are about no guest, target or pool: what went wrong with the record itself."""
    return tuple(result for result in results if result.stage == JOURNAL and result.outcome is Outcome.FAILED)
