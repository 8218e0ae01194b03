"""`failover` in memory: what starts from what, what the source sees, and that any interruption converges."""

from __future__ import annotations

from typing import Any

import pytest

from pve_zfsbackup.app.failover import Failover, Request, Taking, plan_takeover, take_over
from pve_zfsbackup.app.restore import restoring_alone
from pve_zfsbackup.errors import ConfigError, RoleError
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.proof import VERIFIED
from pve_zfsbackup.plan.failover import HOLD, Question
from pve_zfsbackup.plan.takeover import FAILOVER
from pve_zfsbackup.report.failover import failover_json, failover_lines
from tests.fakes.node import GuestState
from tests.fakes.pools import Keys
from tests.fakes.runner import HERE, Fault, Killed
from tests.fakes.second import Second
from tests.fakes.world import CT, DB, REPLICAS, TARGET, WEB, World

ROOTDISK, FASTDISK = REPLICAS["rpool/data/vm-100-disk-0"], REPLICAS["fast/vm-100-disk-0"]
CRYPT = REPLICAS["rpool/crypt/vm-101-disk-0"]
DEAD = Question(source="pve1.example", signs=(), fenced=True, reason="pve1 burnt down")


def take(second: Second, *vmids: int, question: Question = DEAD, dry_run: bool = False, **options: Any) -> Failover:
    with second.session() as session, restoring_alone(session):
        request = Request(guests=tuple(Vmid(vmid) for vmid in vmids), **options)
        found = plan_takeover(session, request, question, dry_run=dry_run)
        if not dry_run:
            ended = [taking.vmid for taking in take_over(session, found, question, start=request.start)]
            assert sorted(ended) == sorted(taking.vmid for taking in found.guests), "each comes to its end, once"
        return found


def one(done: Failover) -> Taking:
    (taking,) = done.guests
    assert taking.good, (taking.conflicts, taking.error)
    return taking


@pytest.fixture
def second(world: World) -> Second:
    """Two points of every guest there, and something written since that is lost."""
    for _ in range(2):
        world.write()
        world.run()
    world.write()
    made = Second(world)
    made.pools.datasets[CRYPT].key = True
    return made


def config(second: Second, vmid: int) -> dict[str, str]:
    text = next(second.node.etc.glob(f"*/{vmid}.conf")).read_text()
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def test_a_disk_is_a_clone_in_the_pool_of_its_replica_and_a_copy_in_another(second: Second) -> None:
    newest = second.first.complete(TARGET, WEB)[-1]
    taking = one(take(second, WEB))
    assert taking.point is not None
    assert (taking.point.id, taking.done, taking.started) == (newest, True, True)
    disks = second.pools.datasets
    name = newest.partition("/")[2]
    assert disks["tank/data/vm-100-disk-0"].origin == f"{ROOTDISK}@pzb:{name}"
    assert disks["ssd/vm-100-disk-0"].origin == ""
    for dataset, replica in (("tank/data/vm-100-disk-0", ROOTDISK), ("ssd/vm-100-disk-0", FASTDISK)):
        assert disks[dataset].content == disks[replica].snaps[f"pzb:{name}"].content
    base = disks["ssd/vm-100-disk-0"].snaps[f"pzb:{name}"]
    assert base.guid == disks[FASTDISK].snaps[f"pzb:{name}"].guid, "what failback starts from"
    assert HOLD in base.holds
    assert all(HOLD in disks[replica].snaps[f"pzb:{name}"].holds for replica in (ROOTDISK, FASTDISK))
    assert config(second, WEB)["scsi0"] == "local-zfs:vm-100-disk-0,size=1G"
    assert config(second, WEB)["scsi1"] == "fast:vm-100-disk-0,size=1G"
    assert second.node.guests[WEB].running
    assert not any("pzb-restore" in dataset for dataset in disks)


def test_the_source_that_comes_back_sends_nothing_and_the_others_go_on(second: Second) -> None:
    take(second, WEB)
    world = second.first
    for name in (ROOTDISK, FASTDISK):
        assert world.target.datasets[name].props[FAILOVER].endswith(" pve1 burnt down")
    before = dict(world.target.datasets[ROOTDISK].snaps)
    report = world.run()
    assert [result.vmid for result in world.results(report, Outcome.FAILED)] == [WEB]
    assert world.target.datasets[ROOTDISK].snaps == before
    assert world.complete(TARGET, CT)[-1] == world.complete(HERE, CT)[-1]


def test_all_guests_start_in_their_order_and_one_that_cannot_holds_up_none(second: Second) -> None:
    for vmid, startup in ((WEB, "order=3"), (CT, "order=1"), (DB, "order=2")):
        second.first.node.define(vmid, config_text(second, vmid) + f"startup: {startup}\n")
    second.first.run()
    second.pools.datasets[CRYPT].key = False
    done = take(second)
    told = {taking.vmid: taking for taking in done.guests}
    assert [conflict.kind for conflict in told[Vmid(DB)].conflicts] == ["key-not-loaded"]
    assert "zfs load-key -L file:///PATH/OF/KEY" in told[Vmid(DB)].conflicts[0].resolve
    assert FAILOVER not in second.pools.datasets[CRYPT].props, "nothing was taken over"
    started = [ran.argv for ran in second.runner.ran if ran.argv[1:2] == ("start",)]
    assert started == [("pct", "start", str(CT)), ("qm", "start", str(WEB))]


def test_a_template_is_made_and_not_started_which_proxmox_refuses(second: Second) -> None:
    second.first.node.define(WEB, config_text(second, WEB) + "template: 1\n", running=False)
    second.first.run()
    for _ in range(2):  # also where it is there already
        done = take(second, WEB, CT)
        assert {taking.vmid: (taking.good, taking.started) for taking in done.guests} == {
            WEB: (True, False), CT: (True, True),
        }  # fmt: skip
    assert config(second, WEB)["scsi0"].startswith("local-zfs:base-100-disk-0,")


def config_text(second: Second, vmid: int) -> str:
    return next(second.first.node.etc.glob(f"*/{vmid}.conf")).read_text()


def test_an_encrypted_disk_starts_once_its_key_is_loaded(second: Second) -> None:
    second.pools.datasets[CRYPT].keys = Keys(keyformat="raw", secret=b"x" * 32)
    taking = one(take(second, DB))
    made = second.pools.datasets["tank/data/vm-101-disk-0"]
    assert (made.crypt, made.origin.partition("@")[0]) == ("aes-256-gcm", CRYPT)
    assert taking.started


def test_an_older_point_by_name_and_a_point_that_is_none(second: Second) -> None:
    oldest = second.first.complete(TARGET, WEB)[0]
    taking = one(take(second, WEB, at=oldest))
    assert taking.point is not None
    assert taking.point.id == oldest
    done = take(second, CT, at="200/20200101T000000Z-0000")
    assert [conflict.kind for conflict in done.guests[0].conflicts] == ["no-point"]


def drilled(second: Second, point: str, text: str, *replicas: str) -> None:
    for name in replicas or (ROOTDISK, FASTDISK):
        second.pools.datasets[name].snaps[f"pzb:{point.partition('/')[2]}"].props[VERIFIED] = text


def test_a_point_whose_drill_failed_is_passed_over_and_its_price_is_told(second: Second) -> None:
    older, newest = second.first.complete(TARGET, WEB)
    drilled(second, newest, "failed 20261118T110640Z")
    dry = take(second, WEB, dry_run=True)
    lines = "\n".join(failover_lines(dry))
    assert f"from point {older}" in lines
    assert "no drill has opened it here" in lines
    assert f"passed over: {newest}, its drill failed (2026-11-18 11:06:40Z)" in lines
    assert f"are lost as well; --at {newest} takes it all the same" in lines
    (told,) = failover_json(dry)["guests"]
    assert (told["point"], told["verified"], told["newest-verified"]) == (older, None, None)
    assert [one["point"] for one in told["passed-over"]] == [newest]
    assert told["passed-over"][0]["verified"]["level"] == "failed"
    taking = one(take(second, WEB))
    assert taking.point is not None
    assert taking.point.id == older


def test_by_its_name_a_failed_one_is_taken_and_by_a_time_it_is_not(second: Second) -> None:
    older, newest = second.first.complete(TARGET, WEB)
    drilled(second, newest, "failed 20261118T110640Z")
    (timed,) = take(second, WEB, at="2100-01-01T00:00", dry_run=True).guests
    assert timed.point is not None
    assert timed.point.id == older
    named = take(second, WEB, at=newest)
    assert "ITS LAST DRILL FAILED (2026-11-18 11:06:40Z)" in "\n".join(failover_lines(named))
    assert one(named).done


def test_where_every_point_failed_its_drill_none_is_taken(second: Second) -> None:
    for point in (points := second.first.complete(TARGET, WEB)):
        drilled(second, point, "failed 20261118T110640Z")
    done = take(second, WEB)
    (conflict,) = done.guests[0].conflicts
    assert (conflict.kind, set(conflict.evidence)) == ("known-bad", set(points))
    assert f"--at {points[-1]} takes it" in conflict.resolve
    assert not second.runner.changes


def test_the_newest_is_taken_before_an_older_proven_one_and_both_are_told(second: Second) -> None:
    older, newest = second.first.complete(TARGET, WEB)
    drilled(second, older, "files 20261118T110640Z")
    dry = take(second, WEB, dry_run=True)
    lines = "\n".join(failover_lines(dry))
    assert f"from point {newest}" in lines
    assert "no drill has opened it here" in lines
    assert f"files (2026-11-18 11:06:40Z), --at {older}" in lines
    (told,) = failover_json(dry)["guests"]
    assert (told["point"], told["verified"], told["passed-over"]) == (newest, None, [])
    assert told["newest-verified"]["point"] == older
    drilled(second, newest, "booted 20261119T110640Z")
    lines = "\n".join(failover_lines(take(second, WEB, dry_run=True)))
    assert "a drill opened it here: booted (2026-11-19 11:06:40Z)" in lines
    assert older not in lines


@pytest.mark.parametrize(
    "question",
    [
        Question(source="pve1.example", signs=("pve1.example answers ping",), fenced=True),
        Question(source="pve1.example", signs=()),
        Question(source="", signs=(), fenced=True),
    ],
)
def test_refused_nothing_at_all_is_done_and_a_dry_run_says_why(second: Second, question: Question) -> None:
    second.runner.ran.clear()
    with pytest.raises(RoleError) as caught:
        take(second, WEB, question=question)
    assert caught.value.hint
    dry = take(second, WEB, question=question, dry_run=True)
    assert dry.refused is not None
    assert "would be refused" in next(failover_lines(dry))
    assert not second.runner.changes


def test_overruled_the_reason_is_recorded(second: Second) -> None:
    question = Question(source="p", signs=("answers",), fenced=True, forced=True, reason="its disks are gone")
    one(take(second, WEB, question=question))
    assert second.pools.datasets[ROOTDISK].props[FAILOVER].endswith("its disks are gone")


def test_a_dry_run_tells_the_same_and_does_nothing(second: Second) -> None:
    second.runner.ran.clear()
    dry = take(second, WEB, dry_run=True)
    assert not second.runner.changes
    lines = list(failover_lines(dry))
    assert any("would be taken over" in line for line in lines)
    assert any("clone of" in line for line in lines)
    assert any("copy of" in line for line in lines)
    real = take(second, WEB)
    keys = ("vmid", "point", "disks")
    assert [{k: g[k] for k in keys} for g in failover_json(dry)["guests"]] == [
        {k: g[k] for k in keys} for g in failover_json(real)["guests"]
    ]


def test_once_more_it_is_here_already_and_a_stopped_one_is_started(second: Second) -> None:
    take(second, WEB)
    content = dict(second.pools.datasets)
    second.node.guests[WEB].running = False
    again = one(take(second, WEB))
    assert again.there is not None
    assert second.node.guests[WEB].running
    assert dict(second.pools.datasets) == content


def test_a_guest_of_this_node_with_that_number_is_left_alone(second: Second) -> None:
    second.node.define(WEB, "cores: 1\nname: mine\n")
    done = take(second, WEB)
    assert [conflict.kind for conflict in done.guests[0].conflicts] == ["guest-exists"]
    assert FAILOVER not in second.pools.datasets[ROOTDISK].props
    assert "mine" in config(second, WEB)["name"]


def test_the_role_another_host_took_is_not_taken(second: Second) -> None:
    second.pools.datasets[ROOTDISK].props[FAILOVER] = "20261126T120000Z backup9 100/20261126T110000Z-0001 dead"
    done = take(second, WEB)
    assert [conflict.kind for conflict in done.guests[0].conflicts] == ["taken-over"]
    assert not second.runner.changes


def test_a_guest_without_points_here_and_a_root_that_is_none(second: Second) -> None:
    with pytest.raises(ConfigError, match="no point of guest 999"):
        take(second, 999)


def test_a_mark_that_does_not_take_starts_nothing(second: Second) -> None:
    second.runner.faults = [Fault(words=("set", ROOTDISK), lie=True)]
    done = take(second, WEB)
    assert "did not take" in str(done.guests[0].error)
    assert WEB not in second.node.guests


def test_one_guests_failure_is_its_own_and_once_more_it_heals(second: Second) -> None:
    second.runner.faults = [Fault(words=("clone",), answer=(1, "out of space"))]
    done = take(second, WEB, CT)
    web, ct = done.guests
    assert web.error is not None
    assert ct.started
    assert one(take(second, WEB)).started


def test_killed_anywhere_and_repeated_it_converges_on_the_point_it_began_with(second: Second) -> None:
    chosen = second.first.complete(TARGET, WEB)[-1]
    for at in range(1, 200, 2):
        twin = copy_of(second)
        twin.runner.kill_at, twin.runner.kill_when = at, ("before", "after")[at // 2 % 2]
        try:
            take(twin, WEB)
        except Killed:
            twin.runner.revive()
        else:
            assert at > 20
            return
        assert one(take(twin, WEB)).started
        assert twin.node.guests[WEB].running
        assert twin.pools.datasets["tank/data/vm-100-disk-0"].origin == f"{ROOTDISK}@pzb:{chosen.partition('/')[2]}"
        there = (name for name in twin.pools.datasets if name.startswith(("tank/data/", "ssd/")))
        disks = sorted(name for name in there if not name.endswith("/pzb-restore"))  # an empty place, used again
        assert disks == ["ssd/vm-100-disk-0", "tank/data/vm-100-disk-0"], at
        assert all(FAILOVER in twin.pools.datasets[name].props for name in (ROOTDISK, FASTDISK))
        copied = twin.pools.datasets["ssd/vm-100-disk-0"].snaps[f"pzb:{chosen.partition('/')[2]}"]
        assert HOLD in copied.holds, "what failback starts from"


def test_killed_anywhere_an_encrypted_disk_is_made_once_in_its_place(second: Second) -> None:
    for at in range(1, 200, 2):
        twin = copy_of(second)
        twin.pools.datasets[CRYPT].keys = Keys(keyformat="raw", secret=b"x" * 32)
        twin.runner.kill_at, twin.runner.kill_when = at, ("before", "after")[at // 2 % 2]
        try:
            take(twin, DB)
        except Killed:
            twin.runner.revive()
        else:
            assert at > 15
            return
        assert one(take(twin, DB)).started
        there = sorted(name for name in twin.pools.datasets if name.startswith("tank/data/"))
        assert [name for name in there if not name.endswith("/pzb-restore")] == ["tank/data/vm-101-disk-0"], at


def test_a_clone_asks_for_no_room(second: Second) -> None:
    second.pools.room = 1
    assert one(take(second, CT)).started


COPIES = iter(range(10_000))


def copy_of(second: Second, *, fresh: bool = True) -> Second:
    """The same hosts in a parallel world; `fresh`: before anything was taken over."""
    world = second.first
    twin = world.copy(world.place.parent / f"{world.place.name}-{next(COPIES)}")
    kept, txgs = dict(twin.target.datasets), dict(twin.target.txgs)
    made = Second(twin)
    if not fresh:
        twin.target.datasets.update(kept)
        twin.target.txgs.update(txgs)
        for vmid in [int(path.stem) for path in made.node.etc.glob("*/*.conf")]:
            made.node.guests[vmid] = GuestState()
    made.pools.datasets[CRYPT].key = True
    return made
