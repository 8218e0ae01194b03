"""Failover and failback on record, as restores are: in the journal guest by guest, and told where they fail."""

from __future__ import annotations

from dataclasses import replace

from pve_zfsbackup.app.alerts import tell_results
from pve_zfsbackup.app.failback import Given, failback
from pve_zfsbackup.app.failback_way import Way
from pve_zfsbackup.app.failover import Failover, Taking, take_over
from pve_zfsbackup.app.gather import job_names
from pve_zfsbackup.app.proving import failed_by, failures, on_record, recording
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.model import SOURCE
from pve_zfsbackup.model.stages import FAILBACK, FAILOVER
from pve_zfsbackup.plan.failover import Question


def failover_on_record(session: Session, found: Failover, question: Question, *, start: bool) -> tuple[str, ...]:
    """`take_over`, with whose guests they were and why in the journal: the source cannot be asked. Returns what went
    wrong with the journal and with the telling."""
    left = {taking.vmid: taking for taking in found.guests}
    why = {"source": question.source, **({"reason": question.reason} if question.reason else {})}
    with recording(session, FAILOVER) as record:
        try:
            for taking in take_over(session, found, question, start=start):
                del left[taking.vmid]
                record.add(_taken(question.source, taking), **why)
        except (Exception, KeyboardInterrupt) as error:
            for taking in left.values():
                record.add(failed_by(_about(taking), error), **why)
            tell_results(session, record.results)
            raise
        untold = tell_results(session, record.results)
    return (*untold, *(result.message for result in failures(record.results)))


def _about(taking: Taking) -> Result:
    point = taking.point.id if taking.point else ""
    return Result(stage=FAILOVER, outcome=Outcome.OK, vmid=taking.vmid, point=point, seconds=taking.seconds)


def _taken(source: str, taking: Taking) -> Result:
    about = replace(_about(taking), bytes=taking.moved)
    if taking.error:
        return failed_by(about, taking.error)
    if taking.conflicts:
        first = taking.conflicts[0]
        told = tuple(f"{one.object}: {one.message}" for one in taking.conflicts)
        return replace(about, outcome=Outcome.FAILED, message=told[0], hint=first.resolve, details=told[1:])
    if taking.there:
        outcome = Outcome.SKIPPED if taking.there.running else Outcome.OK
        return replace(about, outcome=outcome, message=f"was taken over before{', and runs' if taking.started else ''}")
    how = "runs" if taking.started else "is stopped"
    lost = f"what was written there in {taking.age} s after the point is lost"
    return replace(about, message=f"taken over from {source}, and {how}; {lost}")


def failback_on_record(way: Way, *, start: bool) -> tuple[Given, tuple[str, ...]]:
    """`failback` likewise: cut off, it may leave the guest locked at home, and running nowhere."""
    session, guest, home = way.session, way.guest, way.there.hosts[SOURCE].name
    jobs = job_names(session.config, guest)
    about = Result(
        stage=FAILBACK, outcome=Outcome.OK, vmid=guest.vmid, guest=guest.name, point=way.taken.point, jobs=jobs
    )

    def work() -> tuple[Given, Result]:
        done = failback(way, start=start)
        if done.error:
            told = f"is at home, and {done.error}"
            return done, replace(about, outcome=Outcome.FAILED, message=told, hint="the same command tries again")
        told = f"{len(way.plan.disks)} disks went home to {home}{', and it runs there' if done.started else ''}"
        return done, replace(about, message=told, bytes=done.moved)

    return on_record(session, about, work)
