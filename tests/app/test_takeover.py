"""The source after a failover: it sees who has the role, sends nothing for that guest, prunes nothing, and says so."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health
from pve_zfsbackup.app.history import history
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.health import Level
from pve_zfsbackup.plan.takeover import FAILOVER, mark_text, takeovers
from pve_zfsbackup.report.status import problems
from tests.fakes.runner import HERE
from tests.fakes.world import CT, DB, REPLICAS, TARGET, WEB, World

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
WEBS = [REPLICAS["rpool/data/vm-100-disk-0"], REPLICAS["fast/vm-100-disk-0"]]


def take(world: World, vmid: int = WEB, names: list[str] = WEBS, text: str = "") -> None:
    """What `failover` leaves on the target."""
    point = world.complete(TARGET, vmid)[-1]
    for name in names:
        world.target.datasets[name].props[FAILOVER] = text or mark_text(NOW, "backup1", point, "pve1 burnt\ndown")


@pytest.fixture
def taken(world: World) -> World:
    world.run()
    take(world)
    world.write()
    return world


def streams(world: World, vmid: int) -> list[tuple[str, ...]]:
    return [argv for argv in world.runner.zfs(HERE, "send") if f"-{vmid}-" in argv[-1]]


def test_nothing_is_sent_marked_or_released_for_it_and_the_others_go_on(taken: World) -> None:
    world = taken
    before = world.target.datasets[WEBS[0]].snaps.copy()
    world.runner.ran.clear()
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    (refused,) = world.results(report, Outcome.FAILED)
    assert (refused.vmid, refused.host) == (WEB, TARGET)
    assert "taken over by backup1 at 20261126T120000Z" in refused.message
    assert "pve1 burnt down" in refused.message
    assert f"failback {WEB}" in refused.hint
    assert any(WEBS[0] in line for line in refused.details)
    assert streams(world, WEB) == []
    assert world.target.datasets[WEBS[0]].snaps == before
    assert not [ran for ran in world.runner.changes if ran.host == TARGET and "vm-100" in " ".join(ran.argv)]
    for vmid in (DB, CT):
        assert world.complete(TARGET, vmid)[-1] == world.complete(HERE, vmid)[-1]


def test_a_dry_run_says_the_same(taken: World) -> None:
    with taken.session() as session:
        found = history(session, Scope())
    assert "taken over" in found.taken[Vmid(WEB)][0].message


def test_a_new_disk_of_the_guest_is_refused_as_well(taken: World) -> None:
    world = taken
    world.source.add("rpool/data/vm-100-disk-1", zvol=True)
    text = (world.node.etc / "qemu-server/100.conf").read_text()
    world.node.define(WEB, text + "scsi2: local-zfs:vm-100-disk-1,size=1G\n")
    world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert not any("vm-100-disk-1" in name for name in world.target.datasets)


def test_nothing_of_it_is_pruned_anywhere_for_what_runs_there_comes_back_to_it(taken: World) -> None:
    world = taken
    before = {name: list(world.target.datasets[name].snaps) for name in WEBS}
    for _ in range(5):
        world.write()
        world.run()
    assert {name: list(world.target.datasets[name].snaps) for name in WEBS} == before
    assert len(world.points(HERE, WEB)) == 6, "keep-last is 3"
    assert len(world.points(HERE, DB)) == 3


def test_check_is_critical_and_status_tells_and_two_masters_are_named(taken: World) -> None:
    world = taken
    with world.session() as session:
        found = health(session, Scope())
        known = history(session, Scope())
    told = [finding for finding in found.findings if "taken over" in finding.text]
    assert [(finding.level, finding.about) for finding in told] == [(Level.CRITICAL, "guest 100 web")]
    assert "runs here as well: STOP ONE" in told[0].text
    (entry,) = [entry for entry in known.coverage if entry.guest.vmid == WEB]
    assert "taken over" in problems(known, entry)[0]
    world.guest(WEB).running = False
    with world.session() as session:
        told = [finding for finding in health(session, Scope()).findings if "taken over" in finding.text]
    assert "runs here as well" not in told[0].text


def test_when_the_mark_is_gone_replication_goes_on_from_the_same_base(taken: World) -> None:
    world = taken
    world.run()
    for name in WEBS:
        del world.target.datasets[name].props[FAILOVER]
    world.write()
    world.runner.ran.clear()
    assert not world.results(world.run(), Outcome.FAILED)
    assert all({"-i", "-I"} & set(argv) for argv in streams(world, WEB) if "-nvP" not in argv)
    assert world.complete(TARGET, WEB)[-1] == world.complete(HERE, WEB)[-1]


def test_a_mark_that_cannot_be_read_stops_whoever_lies_there(world: World) -> None:
    world.run()
    take(world, names=WEBS[:1], text="who knows")
    world.write()
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert [result.vmid for result in world.results(report, Outcome.FAILED)] == [WEB]


def test_the_mark_is_one_line_that_fits_and_is_read_again(world: World) -> None:
    world.run()
    hostile = "a\x1b[31m\n" + "x" * 9000
    take(world, text=mark_text(NOW, "backup1", f"{WEB}/p", hostile))
    value = world.target.datasets[WEBS[0]].props[FAILOVER]
    assert len(value.encode()) < 8192
    assert value.isprintable()
    found = takeovers(world.listing(TARGET))[Vmid(WEB)]
    assert (found.host, found.point, found.since) == ("backup1", f"{WEB}/p", "20261126T120000Z")
    assert sorted(found.datasets) == sorted(WEBS)
