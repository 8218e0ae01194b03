"""`skip-unchanged`: disks at rest are not sent, and their points are as whole as ever."""

from __future__ import annotations

import dataclasses

import pytest

from pve_zfsbackup.app.restore import Request, carry_out, prepare, restoring_alone
from pve_zfsbackup.app.run import Report, Stage
from pve_zfsbackup.app.why import why_replicate
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.model import Vmid, parse_selector
from pve_zfsbackup.plan.points import points
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import REPLICAS, TARGET, WEB, World, assert_replicated, assert_safe

ZVOL, FAST = "rpool/data/vm-100-disk-0", "fast/vm-100-disk-0"


@pytest.fixture
def resting(world: World) -> World:
    """Guest 100 alone, whose second disk nobody writes to any more. Here and there enough points are kept."""
    text = world.config.read_text().replace("guests: [all]", "guests: [100]\n    skip-unchanged: true")
    world.config.write_text(text.replace("keep-last: 3", "keep-last: 50"))
    busy(world)
    return world


def busy(world: World, hours: int = 1) -> Report:
    for _ in range(hours):
        world.source.write(ZVOL)
        report = world.run()
        assert not world.results(report, Outcome.FAILED)
    return report


def sent(world: World) -> list[str]:
    """Datasets in the order in which their streams were sent, and forgotten."""
    found = [argv[-1].partition("@")[0] for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv]
    world.runner.ran.clear()
    return found


def assert_contents(world: World) -> None:
    """Every point of the target has the content that its disks have in that point on the source."""
    here = {point.id: point for point in world.points(HERE, WEB)}
    for point in world.points(TARGET, WEB):
        assert point.complete
        for key, snapshot in point.snapshots.items():
            mine = world.source.get(here[point.id].snapshots[key].full_name)
            assert world.target.get(snapshot.full_name).content == mine.content, (point.id, key)


def test_a_disk_at_rest_is_not_sent_and_its_points_are_whole(resting: World) -> None:
    sent(resting)
    report = busy(resting, 3)
    assert sent(resting) == [ZVOL] * 3
    assert "1 stream, 1 disks unchanged" in [result.message for result in report.results]
    assert resting.complete(TARGET, WEB) == resting.complete(HERE, WEB)
    assert [sorted(point.borrowed) for point in resting.points(TARGET, WEB)] == [[], ["scsi1"], ["scsi1"], ["scsi1"]]
    assert len(resting.target.datasets[REPLICAS[FAST]].snaps) == 1
    assert all(not point.borrowed for point in resting.points(HERE, WEB)), "one instant on the source, as ever"
    assert_contents(resting)
    assert_safe(resting)


def test_what_was_written_is_sent_from_the_old_base_and_the_points_between_stay_whole(resting: World) -> None:
    busy(resting, 2)
    sent(resting)
    resting.source.write(FAST)
    busy(resting)
    assert sorted(sent(resting)) == [FAST, ZVOL]
    busy(resting)
    assert sent(resting) == [ZVOL]
    lent = [{point.snapshots[key].name for key in point.borrowed} for point in resting.points(TARGET, WEB)]
    first, _, _, fourth, _ = (point.stamp for point in resting.points(TARGET, WEB))
    assert lent == [set(), {f"pzb:{first}"}, {f"pzb:{first}"}, set(), {f"pzb:{fourth}"}]
    assert_contents(resting)


def test_points_made_while_the_target_was_away_are_all_there_afterwards(resting: World) -> None:
    for _ in range(3):
        resting.source.write(ZVOL)
        resting.run(Stage.SNAPSHOT)
    resting.source.write(FAST)
    sent(resting)
    busy(resting)
    assert sorted(sent(resting)) == [FAST, ZVOL]
    assert resting.complete(TARGET, WEB) == resting.complete(HERE, WEB)
    assert_contents(resting)


def test_one_disk_of_every_point_is_sent(resting: World) -> None:
    sent(resting)
    for _ in range(3):
        resting.run()
    assert sent(resting) == [ZVOL] * 3, "the first one carries the point"
    assert resting.complete(TARGET, WEB) == resting.complete(HERE, WEB)
    assert_contents(resting)


def test_a_disk_is_sent_again_after_a_day(resting: World) -> None:
    sent(resting)
    busy(resting)
    resting.clock.now += 21 * 3600
    busy(resting)
    assert sent(resting) == [ZVOL] * 2
    busy(resting)
    assert sorted(sent(resting)) == [FAST, ZVOL]
    busy(resting)
    assert sent(resting) == [ZVOL]
    assert_contents(resting)


def test_nothing_is_spared_without_being_asked_for_by_every_job(resting: World) -> None:
    text = resting.config.read_text()
    resting.config.write_text(
        text.replace("timezone:", "  other:\n    guests: [100]\n    targets: [backup1]\ntimezone:", 1)
    )
    sent(resting)
    busy(resting)
    assert sorted(sent(resting)) == [FAST, ZVOL]
    assert_replicated(resting, [WEB])


def test_what_a_kept_point_refers_to_is_not_pruned(resting: World) -> None:
    busy(resting, 4)
    resting.config.write_text(resting.config.read_text().replace("keep-last: 50", "keep-last: 2"))
    busy(resting)
    first, *_, last = resting.complete(HERE, WEB)
    assert len(resting.complete(HERE, WEB)) == 3, "two, and the one with the base of the disk at rest"
    assert resting.complete(TARGET, WEB)[0] == first, "its disk stands for that of the others"
    assert resting.complete(TARGET, WEB)[-1] == last
    assert len(resting.points(TARGET, WEB)) == 3
    assert_contents(resting)
    resting.source.write(FAST)
    busy(resting, 3)
    assert first not in resting.complete(TARGET, WEB), "nothing refers to it any more"
    assert len(resting.points(TARGET, WEB)) == 3
    assert_contents(resting)


def test_a_run_killed_before_it_marked_is_made_good(resting: World) -> None:
    """The next one writes the same reference, though more was written since."""
    for stamp in range(3):
        resting.source.write(ZVOL)
        if stamp == 2:
            resting.source.write(FAST)
        resting.runner.faults.append(Fault(words=("set",), host=TARGET, answer=(1, "cannot set")))
        resting.run(Stage.SNAPSHOT, Stage.REPLICATE)
        resting.runner.faults.clear()
    busy(resting, 2)
    assert resting.complete(TARGET, WEB) == resting.complete(HERE, WEB)
    assert_contents(resting)


def test_a_snapshot_somebody_else_took_in_between_hides_nothing(resting: World) -> None:
    """`written` is since the snapshot before, whosoever it is."""
    resting.source.write(FAST)
    resting.source.snap(f"{FAST}@manual")
    sent(resting)
    busy(resting)
    assert sorted(sent(resting)) == [FAST, ZVOL]
    assert_contents(resting)


def test_a_point_that_borrows_is_restored_from_the_target_with_its_own_configuration(resting: World) -> None:
    conf = resting.node.etc / "qemu-server/100.conf"
    conf.write_text(conf.read_text().replace("cores: 2", "cores: 3"))
    busy(resting)
    last = resting.points(TARGET, WEB)[-1]
    assert last.borrowed == {"scsi1"}
    contents = {key: resting.target.get(s.full_name).content for key, s in last.snapshots.items()}
    for name in (ZVOL, FAST):
        resting.source.drop(name)
    resting.node.remove(WEB)
    with resting.session() as session, restoring_alone(session):
        found = prepare(session, Request(vmid=Vmid(WEB), where=TARGET))
        assert found.plan.conflicts == ()
        carry_out(session, found, start=False)
    lines = dict(line.split(": ", 1) for line in conf.read_text().splitlines())
    assert lines["cores"] == "3"
    pools = {"local-zfs": "rpool/data", "fast": "fast"}
    for key, content in contents.items():
        storage, volume = lines[key].partition(",")[0].split(":")
        assert resting.source.datasets[f"{pools[storage]}/{volume}"].content == content


def test_why_tells_it(resting: World) -> None:
    resting.source.write(ZVOL)
    resting.run(Stage.SNAPSHOT)
    with resting.session() as session:
        found = why_replicate(session, parse_selector("100"))
    reasons = {answer.reasoning.disk.key: " ".join(answer.reasoning.plan.reasons) for answer in found.answers}
    assert "nothing was written since" in reasons["scsi1"]
    assert "send " in reasons["scsi0"]


def test_a_lender_that_was_destroyed_makes_its_points_incomplete_and_the_next_run_sends_again(resting: World) -> None:
    busy(resting, 2)
    replica = resting.target.datasets[REPLICAS[FAST]]
    replica.snaps.clear()
    assert not any(p.complete for p in points(dataclasses.replace(resting.listing(TARGET), host=TARGET)))
    resting.run()
    assert resting.complete(TARGET, WEB)[-1] == resting.complete(HERE, WEB)[-1]
