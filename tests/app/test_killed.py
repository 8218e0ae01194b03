"""SIGKILL between any two commands of a run, and in the middle of streams: the next runs converge, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.host import settling
from pve_zfsbackup.host.watchdog import thaw_argv
from pve_zfsbackup.model import GuestKind, PointId, Vmid
from tests.fakes.pools import Clock, Snap
from tests.fakes.runner import HERE, Killed, Ran
from tests.fakes.world import CT, DB, TARGET, WEB, World, assert_replicated

VMIDS = (WEB, DB)


def small(place: Path, clock: Clock) -> World:
    """Two guests: one with disks in two pools, one encrypted."""
    place.mkdir()
    world = World(place, clock=clock)
    world.node.remove(CT)
    world.source.drop("rpool/data/subvol-200-disk-0")
    return world


@pytest.fixture
def veteran(tmp_path: Path, world: World) -> World:
    """A history of three points on both sides: the next run has something of everything to do."""
    made = small(tmp_path / "old", world.clock)
    for _ in range(3):
        made.run()
        made.write()
    made.runner.revive()
    return made


def counted(world: World, place: Path) -> list[Ran]:
    """The commands of a run."""
    twin = world.copy(place)
    twin.run()
    return twin.runner.counted


def kept(world: World) -> dict[tuple[str, int], list[PointId]]:
    return {(host, vmid): world.complete(host, vmid) for host in (HERE, TARGET) for vmid in VMIDS}


def contents(world: World) -> dict[tuple[str, str], tuple[str, ...]]:
    """Every snapshot on the target with its content."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for dataset in world.target.datasets.values():
        snap: Snap
        for snap in dataset.snaps.values():
            found[dataset.name, snap.name] = snap.content
    return found


def converge(world: World, points: int = 3) -> None:
    """One more run, as cron makes it, and everything is as if nothing had happened."""
    before = contents(world)
    world.runner.fire_timers()
    assert not any(state.frozen for state in world.node.guests.values()), "the watchdog thaws without us"
    world.write()
    report = world.run()
    assert report.exit_code is ExitCode.OK, [r for r in report.results if r.hint or r.message]
    assert_replicated(world, VMIDS)
    after = contents(world)
    assert all(after[key] == content for key, content in before.items() if key in after), "a replica was rewritten"
    for vmid in VMIDS:
        assert 1 <= len(world.complete(HERE, vmid)) <= points
        assert 1 <= len(world.complete(TARGET, vmid)) <= points
        assert all(point.complete for point in world.points(TARGET, vmid))
    marks = [mark for dataset in world.source.datasets.values() for mark in dataset.marks]
    assert len(marks) == 3
    world.runner.ran.clear()


@pytest.mark.parametrize("when", ["before", "after", "amid"])
def test_killed_at_every_command_of_a_later_run(tmp_path: Path, veteran: World, when: str) -> None:
    ran = counted(veteran, tmp_path / "count")
    streams = [at for at, r in enumerate(ran, 1) if r.argv[1] == "send" and "-nvP" not in r.argv]
    # Nothing of us happens between a command and the next, but for files: after one is almost before the next.
    places = {"before": range(1, len(ran) + 1), "after": range(1, len(ran) + 1, 4), "amid": streams}[when]
    assert len(places) >= 3
    published = {key: set(ids) for key, ids in kept(veteran).items()}
    for kill_at in places:
        broken = veteran.copy(tmp_path / f"{when[0]}{kill_at}")
        assert broken.killed_run(kill_at, when), f"the run ended before its command {kill_at}"
        for key, ids in kept(broken).items():
            assert len(set(ids) & published[key]) >= 2, f"{key} after command {kill_at}"
        converge(broken)


def test_killed_at_every_command_after_the_streams_with_disks_settled_side_by_side(
    tmp_path: Path, veteran: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of three sessions got how far is anybody's guess."""
    monkeypatch.setattr(settling, "FEW", 0)
    ran = counted(veteran, tmp_path / "count")
    settled = [at for at, r in enumerate(ran, 1) if r.host == TARGET and r.argv[1] in ("set", "hold", "release")]
    assert len(settled) >= 9
    for kill_at in range(settled[0], settled[-1] + 1):
        broken = veteran.copy(tmp_path / f"s{kill_at}")
        assert broken.killed_run(kill_at, "before")
        converge(broken)


def test_killed_at_every_command_of_a_first_run(tmp_path: Path, world: World) -> None:
    young = small(tmp_path / "young", world.clock)
    for kill_at in range(1, len(counted(young, tmp_path / "count")) + 1):
        broken = young.copy(tmp_path / f"f{kill_at}")
        assert broken.killed_run(kill_at, "before")
        converge(broken, points=2)


def test_killed_again_and_again(veteran: World) -> None:
    for kill_at in (30, 5, 33, 21, 36, 27, 42, 12, 29):
        veteran.write()
        veteran.killed_run(kill_at, "amid" if kill_at % 2 else "after")
        veteran.runner.fire_timers()
    veteran.run()
    converge(veteran)


def test_killed_while_frozen_the_watchdog_thaws_and_the_next_run_tidies_up(world: World) -> None:
    frozen_now = next(at for at in range(1, 40) if _frozen_after(world, at))
    assert frozen_now
    assert (world.place / "state/frozen/100").exists()
    (timer,) = world.runner.timers.values()
    assert timer == thaw_argv(GuestKind.VM, Vmid(100), float(timer[-1]))
    world.runner.fire_timers()
    assert not world.guest(WEB).frozen
    report = world.run()
    assert report.exit_code is ExitCode.OK
    assert report.notes == ("guest 100: thawed after an interrupted run",)
    assert not (world.place / "state/frozen/100").exists()
    assert_replicated(world)


def test_killed_while_frozen_the_next_run_thaws_before_anything_else(world: World) -> None:
    assert next(at for at in range(1, 40) if _frozen_after(world, at))
    world.runner.timers.clear()  # the host was rebooted in between
    world.run()
    first = world.runner.ran[0]
    assert first.argv == ("qm", "guest", "cmd", "100", "fsfreeze-thaw")
    assert_replicated(world)


def _frozen_after(world: World, kill_at: int) -> bool:
    world.killed_run(kill_at, "after")
    return world.guest(WEB).frozen


def test_a_killed_run_leaves_the_lock_free(world: World) -> None:
    world.runner.kill_at = 9
    with pytest.raises(Killed):
        world.run()
    world.runner.revive()
    assert world.run().exit_code is ExitCode.OK
