"""Failover and failback on record: in the journal guest by guest, and told to whoever is told of failures."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from pve_zfsbackup.app.failback_way import prepare, source_host
from pve_zfsbackup.app.failover import Failover, Request, plan_takeover
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.measure import measure
from pve_zfsbackup.app.overview import overview
from pve_zfsbackup.app.proofs import proofs_between
from pve_zfsbackup.app.restore import restoring_alone
from pve_zfsbackup.app.roles_on_record import failback_on_record, failover_on_record
from pve_zfsbackup.cli import roles
from pve_zfsbackup.errors import BackupError, ExitCode
from pve_zfsbackup.host.memory import recall
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.runs import PastProof, PastRun
from pve_zfsbackup.plan.past import past_runs
from pve_zfsbackup.report.page import report_page
from tests.app.test_failback import FASTHOME, away, second
from tests.app.test_failover import CRYPT, DEAD
from tests.fakes.runner import Fault
from tests.fakes.second import Second
from tests.fakes.world import CT, DB, WEB

__all__ = ["second"]


@pytest.fixture
def told(second: Second, monkeypatch: pytest.MonkeyPatch) -> Second:
    """The second site, whose failures are told by mail."""
    monkeypatch.setattr("pve_zfsbackup.app.alerts.notify.mail", lambda *words: None)
    second.config.write_text(f"{second.config.read_text()}alerts: {{mail: [root]}}\n")
    return second


def lines(second: Second) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (second.first.place / "log2/journal.jsonl").read_text().splitlines()]


def last_run(second: Second) -> PastRun:
    return past_runs(lines(second))[-1]


def results(second: Second) -> list[dict[str, Any]]:
    found = [line for line in lines(second) if line["event"] == "result"]
    return [line for line in found if line["run"] == found[-1]["run"]]


def known(second: Second) -> dict[str, Any]:
    found: dict[str, Any] = recall(second.first.place / "state2/alerts.json").get("known", {})
    return found


def take(second: Second, *vmids: int, start: bool = True) -> tuple[Failover, tuple[str, ...]]:
    with second.session() as session, restoring_alone(session):
        request = Request(guests=tuple(Vmid(vmid) for vmid in vmids), start=start)
        found = plan_takeover(session, request, DEAD)
        return found, failover_on_record(session, found, DEAD, start=start)


def give(second: Second, *, start: bool = False) -> tuple[str, ...]:
    with second.session() as session, restoring_alone(session), source_host(session) as host:
        return failback_on_record(prepare(session, host, Vmid(WEB)), start=start)[1]


def proofs(second: Second) -> list[PastProof]:
    with second.session() as session:
        return list(proofs_between(session.config, 0, session.now().timestamp()))


def test_every_guest_that_is_taken_over_stands_in_the_journal(told: Second) -> None:
    found, untold = take(told, WEB, DB, CT)
    assert untold == ()
    run = last_run(told)
    assert (list(run.stages), run.exit_code, run.troubles) == (["failover"], 0, ())
    ends = {line["vmid"]: line for line in results(told)}
    assert set(ends) == {WEB, DB, CT}
    point = next(one.point for one in found.guests if one.vmid == WEB)
    assert point
    end = ends[WEB]
    assert (end["outcome"], end["point"], end["source"], end["reason"]) == ("ok", point.id, "pve1.example", DEAD.reason)
    assert "taken over from pve1.example" in end["message"]
    assert "runs" in end["message"]
    assert end["seconds"] > 0
    assert end["bytes"] > 0, "the disk in another pool is a copy"
    (proof,) = [proof for proof in proofs(told) if proof.vmid == WEB]
    assert (proof.stage, proof.place, proof.passed) == ("failover", "source", True)
    with told.session() as session:
        assert "failover" not in measure(session).last, "somebody's wish comes once"


def test_a_guest_that_is_not_taken_over_is_told_until_it_is(told: Second) -> None:
    told.pools.datasets[CRYPT].key = False
    told.runner.faults = [Fault(words=("qm", "start", str(WEB)), answer=(255, "no memory"))]
    take(told, WEB, DB, CT)
    ends = {line["vmid"]: line for line in results(told)}
    assert {vmid: end["outcome"] for vmid, end in ends.items()} == {WEB: "failed", DB: "failed", CT: "ok"}
    assert "no memory" in ends[WEB]["message"]
    assert "encrypted disks need their key" in ends[DB]["message"]
    assert known(told).keys() == {"failover:100:", "failover:101:"}
    assert last_run(told).exit_code == 1
    told.pools.datasets[CRYPT].key = True
    take(told, WEB, DB, CT)
    assert known(told) == {}
    assert {line["vmid"]: line["outcome"] for line in results(told)} == {WEB: "ok", DB: "ok", CT: "skipped"}


def test_a_terminal_that_is_lost_in_the_middle_is_told_with_what_was_done(told: Second) -> None:
    told.runner.faults = [Fault(words=("pct", "start", str(CT)), error=KeyboardInterrupt("SIGHUP"))]
    with pytest.raises(KeyboardInterrupt):
        take(told, WEB, CT)
    ends = {line["vmid"]: line for line in results(told)}
    assert {vmid: end["outcome"] for vmid, end in ends.items()} == {WEB: "ok", CT: "failed"}
    assert (ends[CT]["message"], ends[CT]["hint"]) == ("cut off", "the same command goes on")
    assert known(told).keys() == {"failover:200:"}
    assert last_run(told).broken_off == "KeyboardInterrupt: SIGHUP"


def test_a_way_home_stands_in_the_journal(told: Second) -> None:
    away(told)
    assert give(told, start=True) == ()
    (end,) = results(told)
    assert (end["stage"], end["outcome"], end["vmid"], end["guest"]) == ("failback", "ok", WEB, "web")
    assert end["message"] == "2 disks went home to pve1.example, and it runs there"
    assert end["point"].startswith("100/")
    assert end["bytes"] > 0
    assert (list(last_run(told).stages), last_run(told).exit_code) == (["failback"], 0)
    assert [proof.stage for proof in proofs(told)] == ["failback"]


def test_a_way_home_that_breaks_off_is_told_until_it_is_gone(told: Second) -> None:
    away(told)
    told.runner.faults = [Fault(words=("rename", FASTHOME), answer=(1, "busy"))]
    with pytest.raises(BackupError):
        give(told)
    (end,) = results(told)
    assert end["outcome"] == "failed"
    assert "qm unlock 100" in end["hint"], "that it is locked there, and how that ends"
    assert known(told).keys() == {"failback:100:"}
    told.runner.faults = [Fault(words=("qm", "start", str(WEB)), answer=(255, "no memory"))]
    give(told, start=True)
    (end,) = results(told)
    assert end["outcome"] == "failed"
    assert "no memory" in end["message"]
    assert known(told).keys() == {"failback:100:"}, "it is at home, and nobody is served"
    give(told, start=True)
    assert known(told) == {}


def test_a_way_home_that_a_signal_cuts_off_tells_of_the_lock(told: Second) -> None:
    away(told)
    told.runner.faults = [Fault(words=("rename", FASTHOME), error=KeyboardInterrupt("SIGTERM"))]
    with pytest.raises(KeyboardInterrupt):
        give(told)
    (end,) = results(told)
    assert end["message"] == "cut off"
    assert "qm unlock 100" in end["hint"]
    assert "qm unlock 100" in known(told)["failback:100:"]["problem"]["hint"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_commands_write_it_and_a_dry_run_does_not(
    told: Second, dry_run: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roles, "session_of", lambda path, emit: told.session())
    monkeypatch.setattr(roles, "ask", lambda session, request: DEAD)
    common: dict[str, Any] = {"config_path": told.config, "as_json": True, "verbose": False, "dry_run": dry_run}
    given = {"everyone": False, "at": "", "storages": (), "root": "", "source": "", "fenced": True, "forced": False,
             "reason": "", "no_start": False}  # fmt: skip
    call = functools.partial(roles.failover_command.callback, (WEB,), **given, **common)
    assert call() == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["dry-run"] is dry_run
    journal = told.first.place / "log2/journal.jsonl"
    assert journal.exists() is not dry_run
    if not dry_run:
        told.first.guest(WEB).running = False
        call = functools.partial(roles.failback_command.callback, vmid=WEB, root="", source="", start=True, **common)
        assert call() == ExitCode.OK
        assert json.loads(capsys.readouterr().out)["started"] is True
        assert [line["stage"] for line in results(told)] == ["failback"]


def test_the_report_of_the_host_that_took_over_tells_of_it(told: Second) -> None:
    told.pools.datasets[CRYPT].key = False
    take(told, WEB, DB)
    with told.session() as session:
        text = report_page(overview(session, Scope()))
    assert "failover: taken over from pve1.example, and runs" in text
    assert "guest 101" in text
    assert "encrypted disks need their key" in text
