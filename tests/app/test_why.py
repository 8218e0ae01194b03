"""`why replicate` tells what a run would do: its streams as a run makes them, and whether there is room for all."""

from __future__ import annotations

from datetime import UTC

import pytest

from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.why import Why, why_replicate
from pve_zfsbackup.model import Send, parse_selector
from pve_zfsbackup.report.why import why_json, why_table
from tests.fakes.runner import HERE
from tests.fakes.world import ROOT, TARGET, WEB, World


def why(world: World, guest: int = WEB) -> Why:
    with world.session() as session:
        return why_replicate(session, parse_selector(str(guest)))


def behind(world: World) -> World:
    """Two points that are not on the target yet."""
    world.run()
    for _ in range(2):
        world.write(200 << 10)
        world.run(Stage.SNAPSHOT)
    return world


@pytest.mark.parametrize("old", ["", HERE, TARGET])
def test_the_streams_are_those_of_a_run_also_with_an_old_openzfs(world: World, old: str) -> None:
    behind(world)
    if old:
        world.runner.pools[old].version = "2.1.15"
    told = [stream for answer in why(world).answers for stream in answer.streams]
    steps = [stream.step for stream in told]
    assert all(isinstance(step, Send) and bool(step.through) is not bool(old) for step in steps)
    starts = {stream.manner.partition(":")[0] for stream in told}
    assert starts == ({"-i"} if old else {"-I"})
    if old:
        assert all("older than 2.2" in stream.manner for stream in told)
    world.runner.ran.clear()
    world.run(Stage.REPLICATE)
    sent = [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv and "vm-100" in argv[-1]]
    assert len(sent) == len(steps)


def test_room_is_told_for_each_disk_and_for_all_of_a_guest_together(world: World) -> None:
    behind(world)
    (one, two) = why(world).answers
    assert one.room is not None
    assert two.room is not None
    assert one.room.fits
    assert 400 << 10 < one.room.needed < 500 << 10
    assert why_json(why(world))["disks"][0]["room"]["needed"] == one.room.needed
    assert not why(world).crowded
    world.target.room = one.room.needed + two.room.needed - 1
    crowded = why(world)
    (full,) = crowded.crowded
    assert (full.guest.vmid, full.host, full.conflict.kind) == (WEB, TARGET, "target-full")
    assert all(answer.room and answer.room.fits for answer in crowded.answers), "each alone"
    rows = why_table(crowded, UTC).rows
    assert any("are needed on backup1" in row[-1] for row in rows)
    assert any("zfs get -r quota" in row[-1] and ROOT in row[-1] for row in rows)
