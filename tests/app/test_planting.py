"""Canaries: planted in running guests, looked for in their points."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pve_zfsbackup.app.drill import Rules, drill, on_node
from pve_zfsbackup.app.gather import Scope, inventory
from pve_zfsbackup.app.planting import forget, plant, planted, planting_alone
from pve_zfsbackup.app.restore import Request, carry_out, prepare
from pve_zfsbackup.app.rollback import prepare_rollback, roll_back, rolling_alone
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.cli import verify
from pve_zfsbackup.errors import CommandTimeoutError, ExitCode, LockedError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.model import Vmid, parse_selector
from pve_zfsbackup.model.canary import PATH, parse_canary
from pve_zfsbackup.model.drill import Drilled
from pve_zfsbackup.model.proof import Level, Reading
from tests.fakes.disks import Content, Disks
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import CT, DB, WEB, World

Call = Callable[..., dict[int, Result]]


@pytest.fixture(autouse=True)
def clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(world.clock.now, UTC))


@pytest.fixture
def call(world: World) -> Call:
    def run(*guests: int, work: Callable[[Session, Scope], Iterator[Result]] = plant) -> dict[int, Result]:
        scope = Scope(guests=tuple(parse_selector(str(vmid)) for vmid in guests))
        with world.session() as session, planting_alone(session.config):
            return {result.vmid or 0: result for result in work(session, scope)}

    return run


def canary(world: World, vmid: int) -> str:
    return world.guest(vmid).files.get(PATH, "")


def test_each_running_guest_gets_one_that_names_it(world: World, call: Call) -> None:
    results = call()
    assert {result.outcome for result in results.values()} == {Outcome.OK}
    for vmid in (WEB, DB, CT):
        own = parse_canary(canary(world, vmid))
        assert own
        assert (own.vmid, own.planted) == (vmid, world.clock.now)
    assert canary(world, WEB).splitlines()[1] == "guest 100 web"
    assert {vmid: len(rows) for vmid, rows in _planted(world).items()} == {WEB: 1, DB: 1, CT: 1}


def _planted(world: World) -> dict[int, object]:
    with world.session() as session:
        return dict(planted(session.config))  # type: ignore[arg-type]


def demanded(world: World) -> set[Vmid]:
    """The guests whose points must hold one."""
    with world.session() as session:
        return {vmid for vmid, rows in planted(session.config).items() if any(row.sure for row in rows)}


def test_each_call_writes_it_anew(world: World, call: Call) -> None:
    call(WEB)
    first = canary(world, WEB)
    world.clock.now += 3600
    call(WEB)
    assert canary(world, WEB) != first


@pytest.mark.parametrize("vmid", [WEB, CT])
@pytest.mark.parametrize("text", ["of the guest\n", "pve-zfsbackup canary 1\nguest 1\n", "#!/bin/sh\n" * 10_000])
def test_what_is_not_ours_stays(world: World, call: Call, vmid: int, text: str) -> None:
    world.guest(vmid).files[PATH] = text
    result = call(vmid)[vmid]
    assert result.outcome is Outcome.FAILED
    assert "is there already, and not ours: it stays" in result.message
    assert canary(world, vmid) == text
    assert not demanded(world)


def test_what_cannot_be_looked_at_is_not_written_over(world: World, call: Call) -> None:
    """No answer is not the answer that nothing is there."""
    world.guest(WEB).agent = "refuse"
    world.guest(CT).files[PATH] = ""  # as pct leaves it when its task failed for another reason
    results = call()
    assert "guest-file-open has been disabled" in results[WEB].message
    assert "cannot be looked at: it is empty" in results[CT].message
    assert (results[WEB].outcome, results[CT].outcome, results[DB].outcome) == ("failed", "failed", "ok")
    assert world.guest(WEB).files == {}
    world.runner.faults.append(Fault(words=("pct", "pull"), answer=(124, "got timeout")))
    assert "cannot be looked at: got timeout" in call(CT)[CT].message


def test_success_is_what_was_read_back(world: World, call: Call) -> None:
    world.guest(WEB).forgets = True
    result = call(WEB)[WEB]
    assert (result.outcome, "what was read back is not what was written" in result.message) == (Outcome.FAILED, True)
    assert not demanded(world)


def test_who_does_not_run_is_left_out(world: World, call: Call) -> None:
    world.guest(WEB).running = False
    world.guest(CT).running = False
    results = call()
    assert (results[WEB].outcome, results[CT].outcome) == (Outcome.SKIPPED, Outcome.SKIPPED)


def test_two_at_a_time_do_not_meet(world: World, call: Call) -> None:
    with run_lock(world.place / "run", "plant"), pytest.raises(LockedError):
        call()


def test_what_was_planted_and_what_was_not_is_on_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "session_of", lambda path: world.session())
    world.guest(WEB).agent = "refuse"
    call = verify.verify_plant.callback
    assert call
    given = {"jobs": (), "config_path": world.config, "as_json": True, "verbose": False}
    assert call(guests=(), forgetting=False, **given) == ExitCode.PARTIAL
    lines = [json.loads(line) for line in (world.place / "log/journal.jsonl").read_text().splitlines()]
    assert lines[0]["stages"] == ["verify-plant"]
    ends = {line["vmid"]: line["outcome"] for line in lines if line["event"] == "result"}
    assert ends == {WEB: "failed", DB: "ok", CT: "ok"}
    assert lines[-1]["exit_code"] == 1
    assert call(guests=(), forgetting=True, **given) == ExitCode.OK


def test_a_damaged_memory_expects_nothing(world: World, call: Call) -> None:
    call()
    with world.session() as session:
        file = session.config.state_dir / "canaries.json"
    for damage in ("", "[1]", '{"100": 7, "x": [], "101": [{"at": "1"}, 3]}'):
        file.write_text(damage)
        assert not any(_planted(world).values())
    call(WEB)
    assert len(json.loads(file.read_text())["100"]) == 1


# -- and the drill


def drilled(world: World, disks: Disks, vmid: int) -> Drilled:
    rules = Rules(every=1.0, budget=3600.0, reading=Reading.NONE, named=True)
    with world.session() as session:
        ground = on_node(session, Scope(guests=(parse_selector(str(vmid)),)))
        ground = replace(ground, bench=disks.bench(ground.bench))
        (end,) = drill(ground, rules, session.config, session.now().timestamp())
    assert isinstance(end, Drilled)
    return end


def freeze_content(world: World, disks: Disks) -> None:
    """What the guests have written by now lies on their disks."""
    disks.contents["rpool/data/vm-100-disk-0"].files.update(world.guest(WEB).files)
    disks.contents["rpool/data/subvol-200-disk-0"].files.update(world.guest(CT).files)


def test_a_drill_finds_what_was_planted(world: World, disks: Disks, call: Call) -> None:
    call()
    freeze_content(world, disks)
    world.run()
    for vmid in (WEB, CT):
        end = drilled(world, disks, vmid)
        assert (end.judgement.level, end.judgement.problems) == (Level.FILES, ())
        assert any(note.startswith("canary: planted ") for note in end.judgement.notes)


def test_a_drill_finds_that_it_is_gone_old_or_damaged(world: World, disks: Disks, call: Call) -> None:
    call(WEB)
    world.run()
    (problem,) = drilled(world, disks, WEB).judgement.problems
    assert problem.startswith("the canary planted at ")
    freeze_content(world, disks)
    world.clock.now += 3600
    call(WEB)
    world.run()  # and its disk shows the old one: no write reached it
    assert "but another one" in drilled(world, disks, WEB).judgement.problems[0]
    disks.contents["rpool/data/vm-100-disk-0"].files[PATH] = canary(world, WEB).replace("nonce", "n\0nce")
    assert "none of ours" in drilled(world, disks, WEB).judgement.problems[0]


def test_a_point_that_is_older_than_the_first_expects_none(world: World, disks: Disks, call: Call) -> None:
    world.run()
    call(WEB)
    assert drilled(world, disks, WEB).judgement.problems == ()


@pytest.mark.parametrize("error", [KeyboardInterrupt("SIGTERM"), CommandTimeoutError("pvesh: no end after 60 s")])
def test_cut_off_after_the_guest_wrote_it_no_drill_fails_for_that(
    world: World, disks: Disks, call: Call, error: BaseException
) -> None:
    """A point whose drill failed is passed over by `failover`: it must not be for want of an answer."""
    call(WEB)
    world.clock.now += 3600
    world.runner.faults = [Fault(words=("get", "/nodes/pve1/qemu/100/agent/file-read"), nth=2, error=error)]
    with contextlib.suppress(KeyboardInterrupt):
        assert call(WEB)[WEB].outcome is Outcome.FAILED
    assert world.runner.faults[0].seen == 2
    freeze_content(world, disks)
    world.clock.now += 3600
    world.run()
    assert drilled(world, disks, WEB).judgement.problems == ()
    disks.contents["rpool/data/vm-100-disk-0"].files.pop(PATH)
    assert drilled(world, disks, WEB).judgement.level is Level.FAILED, "the one before is demanded still"


@pytest.mark.parametrize("way", ["rollback", "restore"])
def test_after_a_way_back_what_was_planted_later_is_not_demanded(
    world: World, disks: Disks, call: Call, way: str
) -> None:
    call(WEB)
    freeze_content(world, disks)
    was = canary(world, WEB)
    world.clock.now += 3600
    world.run()
    point = world.complete(HERE, WEB)[-1]
    world.clock.now += 3600
    call(WEB)
    assert canary(world, WEB) != was
    world.guest(WEB).running = False
    if way == "rollback":
        with world.session() as session, rolling_alone(session):
            roll_back(session, prepare_rollback(session, Vmid(WEB), point))
    else:
        with world.session() as session:
            carry_out(session, prepare(session, Request(vmid=Vmid(WEB), at=point, replace=WEB)))
        with world.session() as session:
            content = disks.contents["rpool/data/vm-100-disk-0"]
            found = inventory(session).guests
            guest = next(guest for guest in found if guest.vmid == WEB)
            made = {disk.key: str(disk.dataset) for disk in guest.disks}
            disks.contents |= {made["scsi0"]: content, made["scsi1"]: Content(kind="xfs")}
    world.clock.now += 3600
    world.run()
    assert drilled(world, disks, WEB).judgement.problems == (), "the one of the point is there"
    disks_of = [content for name, content in disks.contents.items() if "vm-100" in name]
    for content in disks_of:
        content.files.pop(PATH, None)
    assert drilled(world, disks, WEB).judgement.level is Level.FAILED


def test_what_is_forgotten_is_not_expected(world: World, disks: Disks, call: Call) -> None:
    call(WEB)
    world.run()
    assert drilled(world, disks, WEB).judgement.level is Level.FAILED
    assert call(WEB, work=forget)[WEB].message == "no canary is expected any more"
    assert Vmid(WEB) not in _planted(world)
    assert drilled(world, disks, WEB).judgement.level is Level.FILES
