"""Proofs and restores on record: in the journal, in the log, told to whoever is told of failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pve_zfsbackup.app.chains import STAGE, as_result, verify_points
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.measure import measure
from pve_zfsbackup.app.proofs import measured, proofs_between
from pve_zfsbackup.app.proving import failures, prove, restore_on_record, rollback_on_record
from pve_zfsbackup.app.restore import Request, prepare
from pve_zfsbackup.app.rollback import prepare_rollback, rolling_alone
from pve_zfsbackup.errors import CommandError, VerificationError, ZfsError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.memory import recall
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.plan.past import past_runs
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import REPLICAS, TARGET, WEB, World

DISK = REPLICAS["rpool/data/vm-100-disk-0"]


@pytest.fixture
def told(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose failures are told by mail."""
    monkeypatch.setattr("pve_zfsbackup.app.alerts.notify.mail", lambda *words: None)
    text = world.config.read_text().replace("{", "{{").replace("}", "}}")
    world.configure(f"{text}alerts: {{{{mail: [root]}}}}\n")
    world.run()
    return world


def lines(world: World) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (world.place / "log/journal.jsonl").read_text().splitlines()]
    return [line for line in found if line.get("stage") == STAGE or line.get("stages") == [STAGE]]


def on_record(world: World, stage: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (world.place / "log/journal.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == "result" and line["stage"] == stage]


def known(world: World) -> dict[str, Any]:
    found: dict[str, Any] = recall(world.place / "state/alerts.json").get("known", {})
    return found


def compared(world: World) -> tuple[Result, ...]:
    with world.session() as session:
        return prove(session, STAGE, verify_points(session, Scope()), as_result).results


def test_each_result_stands_in_the_journal_as_those_of_runs_do(
    told: World, syslog_lines: list[tuple[int, str]]
) -> None:
    results = compared(told)
    begun, *ends = lines(told)
    assert (begun["event"], begun["node"]) == ("start", "pve1")
    assert [(end["vmid"], end["host"], end["outcome"]) for end in ends] == [
        (vmid, TARGET, "ok") for vmid in (100, 101, 200)
    ]
    journal = (told.place / "log/journal.jsonl").read_text().splitlines()
    run = past_runs(map(json.loads, journal))[-1]
    assert (list(run.stages), run.exit_code, run.failed(STAGE)) == ([STAGE], 0, False)
    assert f"{STAGE}: 3 ok, " in syslog_lines[-1][1]
    assert [end["jobs"] for end in ends] == [["all"]] * 3
    with told.session() as session:
        proofs = proofs_between(session.config, 0, session.now().timestamp())
    assert [(proof.vmid, proof.place, proof.passed) for proof in proofs] == [
        (result.vmid, TARGET, True) for result in results
    ]


def test_journald_hears_of_a_proof_that_failed(told: World, journald: Callable[[], list[dict[str, str]]]) -> None:
    newest = told.target.datasets[DISK].newest
    assert newest
    newest.guid += 1
    compared(told)
    failure, end = journald()
    assert {key: failure[f"PZB_{key}"] for key in ("STAGE", "OUTCOME", "VMID", "HOST", "JOBS")} == {
        "STAGE": STAGE, "OUTCOME": "failed", "VMID": "100", "HOST": TARGET, "JOBS": "all",
    }  # fmt: skip
    assert failure["PZB_RUN"] == end["PZB_RUN"]
    assert "PZB_OUTCOME" not in end


def test_a_failure_is_told_until_it_is_over(told: World) -> None:
    newest = told.target.datasets[DISK].newest
    assert newest
    newest.guid += 1
    compared(told)
    (key,) = known(told)
    assert key == f"{STAGE}:100:{TARGET}"
    newest.guid -= 1
    compared(told)
    assert known(told) == {}


def test_what_breaks_off_is_told_with_what_came_before(told: World) -> None:
    """Cron's mail alone would be all there is of it."""

    def ends() -> Iterator[Result]:
        yield Result(stage=STAGE, outcome=Outcome.FAILED, vmid=Vmid(WEB), message="bad")
        raise VerificationError("something is left", hint="look")

    with told.session() as session, pytest.raises(VerificationError):
        prove(session, STAGE, ends(), lambda end: end)
    assert known(told).keys() == {f"{STAGE}:100:", STAGE}
    assert known(told)[STAGE]["problem"]["message"] == "something is left"
    runs = past_runs(map(json.loads, (told.place / "log/journal.jsonl").read_text().splitlines()))
    assert (runs[-1].broken_off, runs[-1].exit_code) == ("something is left", 2)
    compared(told)
    assert known(told).keys() == {f"{STAGE}:100:"}, "another guest's success is none of this one's"


def test_a_bug_breaks_off_as_well_and_ctrl_c_is_no_alarm(told: World) -> None:
    def ends(error: BaseException) -> Iterator[Result]:
        raise error
        yield

    with told.session() as session:
        with pytest.raises(KeyboardInterrupt):
            prove(session, STAGE, ends(KeyboardInterrupt("SIGTERM")), lambda end: end)
        assert known(told) == {}
        with pytest.raises(ZeroDivisionError):
            prove(session, STAGE, ends(ZeroDivisionError("oops")), lambda end: end)
    assert known(told)[STAGE]["problem"]["message"] == "ZeroDivisionError: oops"
    broken = [json.loads(line) for line in (told.place / "log/journal.jsonl").read_text().splitlines()]
    assert [line["error"] for line in broken if line["event"] == "broken-off"] == [
        "KeyboardInterrupt: SIGTERM", "ZeroDivisionError: oops",
    ]  # fmt: skip


def test_without_a_journal_it_is_proven_all_the_same_and_told(told: World) -> None:
    journal = told.place / "log/journal.jsonl"
    journal.unlink()
    journal.mkdir()
    results = compared(told)
    assert [result.outcome for result in results if result.stage == STAGE] == [Outcome.OK] * 3
    (lost,) = failures(results)
    assert "the journal cannot be written" in lost.message
    assert known(told).keys() == {"journal::"}


def test_how_long_a_restore_took_is_kept(world: World) -> None:
    world.run()
    with world.session() as session:
        prepared = prepare(session, Request(vmid=Vmid(WEB), new=300))
        done, untold = restore_on_record(session, prepared)
        assert (done.done, untold) == (True, ())
        prepared = prepare(session, Request(vmid=Vmid(WEB), new=301, where=TARGET, disks=frozenset({"scsi1"})))
        restore_on_record(session, prepared)
        now = session.now().timestamp()
        recovery, proofs = measured(session.config, now), proofs_between(session.config, 0, session.now().timestamp())
    assert [(proof.place, proof.whole) for proof in proofs] == [("source", True), (TARGET, False)]
    assert [line["jobs"] for line in on_record(world, "restore")] == [["all"], ["all"]]
    (one,) = recovery.rto[WEB]
    assert one == proofs[0], "a disk alone is not the guest"
    assert one.seconds > 0
    assert one.point == world.points("pve1", WEB)[-1].id


def test_a_restore_that_fails_counts_for_nothing_and_is_on_record(world: World) -> None:
    world.run()
    world.runner.faults.append(Fault(words=("receive",), answer=(1, "out of space")))
    with world.session() as session:
        prepared = prepare(session, Request(vmid=Vmid(WEB), new=300))
        with pytest.raises((ZfsError, CommandError)):
            restore_on_record(session, prepared)
        assert measured(session.config, session.now().timestamp()).rto == {}
    run = past_runs(map(json.loads, (world.place / "log/journal.jsonl").read_text().splitlines()))[-1]
    assert list(run.stages) == ["restore"]
    assert "out of space" in run.broken_off


def test_a_restore_that_fails_is_told_until_the_guest_is_back_from_wherever(told: World) -> None:
    fault = Fault(words=("receive",), answer=(1, "out of space"))
    told.runner.faults.append(fault)
    with told.session() as session:
        with pytest.raises((ZfsError, CommandError)):
            restore_on_record(session, prepare(session, Request(vmid=Vmid(WEB), new=300, where=TARGET)))
        assert known(told).keys() == {"restore:100:"}
        told.runner.faults.remove(fault)
        restore_on_record(session, prepare(session, Request(vmid=Vmid(WEB), new=300)))
        proofs = proofs_between(session.config, 0, session.now().timestamp())
    assert known(told) == {}
    assert [(proof.vmid, proof.outcome, proof.place) for proof in proofs] == [
        (WEB, "failed", TARGET), (WEB, "ok", "source"),
    ]  # fmt: skip


def test_a_restore_that_does_not_start_is_told(told: World) -> None:
    told.runner.faults.append(Fault(words=("qm", "start", "300"), answer=(255, "no memory")))
    with told.session() as session:
        done, untold = restore_on_record(session, prepare(session, Request(vmid=Vmid(WEB), new=300)), start=True)
    assert (done.done, untold) == (True, ())
    (line,) = on_record(told, "restore")
    assert line["outcome"] == "failed"
    assert "guest 300 of 2 disks is restored, and does not start: " in line["message"]
    assert known(told).keys() == {"restore:100:"}


def test_a_rollback_is_on_record_and_counts_for_no_recovery(told: World) -> None:
    point = told.complete(HERE, WEB)[-1]
    told.guest(WEB).running = False
    with told.session() as session, rolling_alone(session):
        done, untold = rollback_on_record(session, prepare_rollback(session, Vmid(WEB), point))
        assert (done.done, untold) == (True, ())
        (proof,) = proofs_between(session.config, 0, session.now().timestamp())
        assert on_record(told, "rollback")[0]["jobs"] == ["all"]
        assert (proof.stage, proof.vmid, proof.place, proof.point) == ("rollback", WEB, "source", point)
        assert done.safety
        assert done.safety in proof.message
        assert measured(session.config, session.now().timestamp()).rto == {}
        assert "rollback" not in measure(session).last, "somebody's wish comes once"


def test_a_rollback_that_leaves_the_guest_locked_is_told_until_it_is_done(told: World) -> None:
    point = told.complete(HERE, WEB)[-1]
    told.guest(WEB).running = False
    fault = Fault(words=("promote",), answer=(1, "no"))
    told.runner.faults.append(fault)
    with told.session() as session, rolling_alone(session):
        with pytest.raises((ZfsError, CommandError)):
            rollback_on_record(session, prepare_rollback(session, Vmid(WEB), point))
        assert known(told).keys() == {"rollback:100:"}
        run = past_runs(map(json.loads, (told.place / "log/journal.jsonl").read_text().splitlines()))[-1]
        assert [(one.guest, one.outcome) for one in run.troubles] == [("100 web", "failed")]
        assert run.broken_off
        told.runner.faults.remove(fault)
        rollback_on_record(session, prepare_rollback(session, Vmid(WEB), point))
    assert known(told) == {}


def test_a_rollback_that_a_lost_terminal_cuts_off_is_told(told: World) -> None:
    """SIGHUP and SIGTERM come as KeyboardInterrupt (cli)."""
    point = told.complete(HERE, WEB)[-1]
    told.guest(WEB).running = False
    fault = Fault(words=("promote",), error=KeyboardInterrupt())
    told.runner.faults.append(fault)
    with told.session() as session, rolling_alone(session):
        with pytest.raises(KeyboardInterrupt):
            rollback_on_record(session, prepare_rollback(session, Vmid(WEB), point))
        told.runner.faults.remove(fault)
    assert known(told).keys() == {"rollback:100:"}
    run = past_runs(map(json.loads, (told.place / "log/journal.jsonl").read_text().splitlines()))[-1]
    assert [(one.guest, one.outcome) for one in run.troubles] == [("100 web", "failed")]
