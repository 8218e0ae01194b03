"""Guests that are not frozen have their points side by side, four at most; those that are frozen have theirs alone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pve_zfsbackup.app import snapshot as stage
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.cli import _interrupted
from pve_zfsbackup.errors import CommandError, ExitCode
from pve_zfsbackup.events import Outcome
from tests.fakes.pools import ok
from tests.fakes.runner import HERE, Ran
from tests.fakes.world import CT, DB, WEB, World

STOPPED = tuple(range(300, 308))
PATIENCE = 60.0  # seconds that a test waits for threads of a slow machine


def dataset(vmid: int) -> str:
    return f"rpool/data/vm-{vmid}-disk-0"


@pytest.fixture
def many(world: World) -> World:
    """Two guests that are frozen, and eight that are stopped, without the container."""
    world.node.remove(CT)
    for vmid in STOPPED:
        world.source.add(dataset(vmid), zvol=True)
        text = f"agent: 1\ncores: 1\nname: off{vmid}\nscsi0: local-zfs:vm-{vmid}-disk-0,size=1G\n"
        world.node.define(vmid, text, running=False)
    return world


def snapshotted(argv: tuple[str, ...]) -> int:
    """The stopped guest that a command snapshots; 0 for another command."""
    names = [word.partition("@")[0] for word in argv if "@pzb:" in word] if argv[:2] == ("zfs", "snapshot") else []
    return next((vmid for vmid in STOPPED if dataset(vmid) in names), 0)


def meeting(act: Callable[[int], None] = lambda place: None) -> tuple[Callable[[tuple[str, ...]], None], list[int]]:
    """What lets four snapshots of stopped guests go on only together, and how many were under way each time."""
    barrier, lock = threading.Barrier(4), threading.Lock()
    inside: set[int] = set()
    seen: list[int] = []

    def coming(argv: tuple[str, ...]) -> None:
        if vmid := snapshotted(argv):
            with lock:
                inside.add(vmid)
                seen.append(len(inside))
            place = barrier.wait(PATIENCE)
            threading.Event().wait(0.1)  # a fifth would come now
            act(place)
            with lock:
                inside.discard(vmid)

    return coming, seen


def test_stopped_guests_have_their_points_four_at_a_time(many: World) -> None:
    many.runner.coming, seen = meeting()
    report = many.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.OK, report.results
    assert [result.vmid for result in report.results] == [WEB, DB, *STOPPED], "told in the order of their numbers"
    assert (len(seen), max(seen)) == (8, 4)
    points = [many.points(HERE, vmid) for vmid in STOPPED]
    assert {point.consistency for (point,) in points} == {"offline: guest is not running"}
    assert len({point.id.partition("/")[2] for (point,) in points}) == 8, "each has a name of its own"


def test_nobody_is_at_work_while_a_guest_is_frozen(many: World) -> None:
    strange: list[tuple[str, ...]] = []

    def look(ran: Ran) -> None:
        if snapshotted(ran.argv) and any(guest.frozen for guest in many.node.guests.values()):
            strange.append(ran.argv)

    many.runner.watchers.append(look)
    assert many.run(Stage.SNAPSHOT).exit_code is ExitCode.OK
    assert strange == []
    frozen = [guests for _, guests in many.runner.frozen_at]
    assert frozen == [{WEB}, {WEB}, {DB}, *[set()] * 8], "two pools, one, and the stopped ones when all is thawed"


def test_the_failure_of_one_is_its_own(many: World) -> None:
    def coming(argv: tuple[str, ...]) -> None:
        if snapshotted(argv) == 302:
            raise CommandError("zfs snapshot: out of space")
        if snapshotted(argv) == 305:
            raise ZeroDivisionError("a bug of ours")

    many.runner.coming = coming
    report = many.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.PARTIAL
    assert {result.vmid for result in many.results(report, Outcome.FAILED)} == {302, 305}
    assert len(many.results(report, Outcome.OK)) == 8
    assert [vmid for vmid in STOPPED if many.complete(HERE, vmid)] == [300, 301, 303, 304, 306, 307]


def test_one_that_is_locked_meanwhile_is_waited_for(many: World) -> None:
    path = next(many.node.etc.glob("*/303.conf"))
    before = path.read_text()
    locked = threading.Event()

    def coming(argv: tuple[str, ...]) -> None:
        if snapshotted(argv) == 300 and not locked.is_set():
            locked.set()
        elif locked.is_set() and argv[0] == "pvesh" and "/nodes/pve1/qemu/303/config" in argv:
            path.write_text(before)

    many.runner.coming = coming
    path.write_text(before + "lock: backup\n")
    report = many.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.OK, report.results
    assert [result.vmid for result in report.results][-1] == 303, "when all others are done"
    assert many.complete(HERE, 303)


def test_one_that_is_started_meanwhile_is_frozen_when_nobody_else_is_at_work(many: World) -> None:
    path = next(many.node.etc.glob("*/301.conf"))

    def start(ran: Ran) -> None:
        if ran.argv[:2] == ("zfs", "snapshot") and not many.guest(301).running:
            many.guest(301).running = True
            path.write_text(path.read_text() + "description: started\n")

    many.runner.watchers.append(start)
    report = many.run(Stage.SNAPSHOT)
    assert report.exit_code is ExitCode.OK, report.results
    assert [result.vmid for result in report.results][-1] == 301
    assert [point.consistency for point in many.points(HERE, 301)] == ["quiesced"]
    assert many.runner.frozen_at[-1][1] == {301}


def test_with_a_command_before_each_snapshot_they_come_one_after_another(many: World) -> None:
    many.config.write_text(many.config.read_text() + "hooks: {before-snapshot: /bin/prepare}\n")
    told: list[tuple[str, int]] = []
    elsewhere: list[str] = []

    def coming(argv: tuple[str, ...]) -> None:
        if vmid := snapshotted(argv):
            told.append(("snapshot", vmid))
        if threading.current_thread() is not threading.main_thread() and argv[:2] == ("zfs", "snapshot"):
            elsewhere.append(argv[-1])

    def hooks(argv: tuple[str, ...]) -> Any:
        told.append(("hook", int(next(word for word in argv if word.startswith("PZB_VMID=")).partition("=")[2])))
        return ok(argv)

    many.runner.coming, many.runner.hooks = coming, hooks
    assert many.run(Stage.SNAPSHOT).exit_code is ExitCode.OK
    assert elsewhere == []
    assert [pair for pair in told if pair[1] in STOPPED] == [
        pair for vmid in STOPPED for pair in (("hook", vmid), ("snapshot", vmid))
    ]


def test_a_signal_ends_it_after_those_that_are_under_way(many: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes as KeyboardInterrupt (cli), in the thread that waits for the others."""
    ending = threading.Event()

    class Threads(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ending.set()
            super().shutdown(wait=wait)

    def act(place: int) -> None:
        if not place:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        assert ending.wait(PATIENCE)

    monkeypatch.setattr(stage, "ThreadPoolExecutor", Threads)
    many.runner.coming, seen = meeting(act)
    before = signal.signal(signal.SIGTERM, _interrupted)
    try:
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            many.run(Stage.SNAPSHOT)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(seen) == 4
    assert many.runner.cancelled, "a pool that hangs is not waited for"
    assert len([vmid for vmid in STOPPED if many.complete(HERE, vmid)]) == 4, "those under way are whole"
    assert len([vmid for vmid in STOPPED if many.points(HERE, vmid)]) == 4, "and nothing is half"
    assert not any(guest.frozen for guest in many.node.guests.values())
    (journal,) = (many.place / "log").glob("*")
    assert '"broken-off"' in journal.read_text().splitlines()[-1]
    many.runner.coming = lambda argv: None
    assert many.run(Stage.SNAPSHOT).exit_code is ExitCode.OK
