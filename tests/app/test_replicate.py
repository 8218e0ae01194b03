"""Replication that nobody has to babysit: what is tried again, how often, and what is left to a person."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Iterable, Sequence

import pytest

from pve_zfsbackup.app import lanes
from pve_zfsbackup.app.gather import Scope, assign, inventory
from pve_zfsbackup.app.lanes import Course
from pve_zfsbackup.app.patience import LONGEST, Patience
from pve_zfsbackup.app.replicate import _to_target, replicate
from pve_zfsbackup.app.run import Report, Stage
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.works import Work, works_to
from pve_zfsbackup.errors import BackupError, CommandTimeoutError, ExitCode, ZfsError
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.host.pump import Flow
from pve_zfsbackup.host.runner import Piped
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.plan import wire
from tests.fakes.pools import Ds, Mark, Pools, Snap
from tests.fakes.reading import Reading
from tests.fakes.runner import HERE, FakeRunner, Fault, Ran
from tests.fakes.tokens import Item, token
from tests.fakes.world import CT, DB, REPLICAS, ROOT, TARGET, WEB, World, assert_replicated

ZVOL, FAST = "rpool/data/vm-100-disk-0", "fast/vm-100-disk-0"
DOWN = "ssh: connect to host backup1.example port 22: No route to host"
BUSY = "cannot receive incremental stream: dataset is busy"


def option(world: World, text: str) -> None:
    """Set an option of the target."""
    world.config.write_text(world.config.read_text().replace("parallel: 1,", f"parallel: 1, {text},", 1))


def sends(world: World) -> list[tuple[str, ...]]:
    return [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv]


def ok(report: Report) -> bool:
    assert report.exit_code is ExitCode.OK, [f"{r.message} {r.hint}" for r in report.results]
    return True


# -- few processes


def many(world: World, count: int) -> list[int]:
    """Guests with one small disk each."""
    vmids = list(range(300, 300 + count))
    for vmid in vmids:
        world.source.add(f"rpool/data/vm-{vmid}-disk-0", zvol=True)
        world.source.write(f"rpool/data/vm-{vmid}-disk-0", 100_000)
        world.node.define(vmid, f"cores: 1\nname: g{vmid}\nscsi0: local-zfs:vm-{vmid}-disk-0,size=1G\n", running=False)
    return vmids


def test_many_guests_cost_few_sessions_and_few_commands(world: World) -> None:
    vmids = many(world, 40)
    world.run(Stage.SNAPSHOT)
    world.runner.lines.clear()
    world.runner.ran.clear()
    assert ok(world.run(Stage.REPLICATE))
    assert_replicated(world, vmids)
    lines = world.runner.lines
    carried = [line for line in lines if "zfs receive" in line]
    assert len(carried) == 3, "some twenty disks in each: a guest is finished while others are sent"
    assert sum(line.count("zfs receive") for line in carried) == 44
    small = [line for line in lines if line not in carried]
    assert all(line.count("zfs list -Hp -d 1") == 1 for line in carried), "and they read back what arrived"
    assert not [line for line in small if line.startswith("zfs list -Hp -d 1")]
    marked = [line for line in small if line.startswith("zfs set") and "pve-zfsbackup:point" in line]
    assert len(marked) <= 9, "joined, three sessions side by side"
    held = [line for line in small if "zfs hold" in line]
    assert held == marked, "and held in the same sessions"
    assert len(world.runner.zfs(HERE, "program")) == 1, "all bookmarks of a pool at once"
    assert len(world.runner.zfs(HERE, "bookmark")) <= 1, "where there are several"
    assert 1 <= len(world.runner.zfs(HERE, "get")) <= len(carried)
    assert not [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" in argv], "nobody needs their exact size"


def test_runs_that_break_off_again_and_again_leave_two_bookmarks_at_most(world: World) -> None:
    """Bookmarks are made before the streams, also of disks whose turn never comes."""
    vmids = many(world, 10)
    world.run()
    disks = [f"rpool/data/vm-{vmid}-disk-0" for vmid in vmids]
    for _ in range(3):
        world.clock.now += 3600
        for disk in disks:
            world.source.write(disk, 10_000)
        world.run(Stage.SNAPSHOT)
        gone = (255, "client_loop: send disconnect: Broken pipe")
        world.runner.faults.append(Fault(words=("receive",), answer=gone, again=True))
        assert world.run(Stage.REPLICATE).exit_code
        world.runner.faults.clear()
        marks = [len(world.source.datasets[disk].marks) for disk in disks]
        assert max(marks) == 2, marks
    assert ok(world.run(Stage.REPLICATE))
    assert all(len(world.source.datasets[disk].marks) == 1 for disk in disks)


def test_a_large_stream_is_estimated_and_has_a_connection_of_its_own(world: World) -> None:
    world.source.write(ZVOL, 300 << 20)
    world.run(Stage.SNAPSHOT)
    world.runner.ran.clear()
    world.runner.connections = 0
    assert ok(world.run(Stage.REPLICATE))
    estimates = [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" in argv]
    assert [argv[-1].partition("@")[0] for argv in estimates] == [ZVOL]
    assert world.runner.connections == 2


@pytest.mark.parametrize(
    "error", [CommandTimeoutError("zfs send: no end after 60 s"), ZfsError("zfs send: cannot be reckoned")]
)
def test_a_size_that_nobody_can_tell_keeps_no_disk_from_arriving(world: World, error: BackupError) -> None:
    """From an old bookmark zfs reads for as long as the send itself would: tried again and again, nothing ever went."""
    world.source.write(ZVOL, 300 << 20)
    world.runner.faults.append(Fault(words=("send", "-nvP"), error=error, again=True))
    assert ok(world.run())
    assert_replicated(world)


def test_parallel_lanes_bring_everything(world: World) -> None:
    vmids = many(world, 30)
    world.config.write_text(world.config.read_text().replace("parallel: 1,", "parallel: 4,"))
    assert ok(world.run())
    assert_replicated(world, [*vmids, WEB, DB, CT])
    for _ in range(2):
        world.write()
        assert ok(world.run())
    assert_replicated(world, [*vmids, WEB, DB, CT])


@pytest.mark.parametrize("old", ["", HERE, TARGET])
def test_steps_go_together_only_where_both_sides_are_new_enough(world: World, old: str) -> None:
    """Before OpenZFS 2.2.0 `zfs send -I` could skip a snapshot in silence (openzfs #12661)."""
    if old:
        world.runner.pools[old].version = "2.1.15"
    world.run()
    assert not world.runner.zfs("", "version"), "nobody needs to know yet"
    for _ in range(3):
        world.write()
        world.run(Stage.SNAPSHOT)
    world.runner.ran.clear()
    assert ok(world.run(Stage.REPLICATE))
    assert_replicated(world)
    assert any("-I" in argv for argv in sends(world)) is not bool(old)
    assert len(world.complete(TARGET, WEB)) == 4


def test_one_guest_that_cannot_be_marked_does_not_keep_its_batch_from_it(world: World) -> None:
    refused = Fault(words=("set", f"{REPLICAS[ZVOL]}@pzb:20261118T120640Z-0002"), again=True, answer=(1, "cannot set"))

    def aim(ran: Ran) -> None:
        if ran.argv[:2] == ("zfs", "set") and REPLICAS[ZVOL] in ran.argv[-1]:
            refused.words = ("set", ran.argv[-1])

    world.runner.watchers.append(aim)
    world.runner.faults.append(refused)
    report = world.run()
    assert [result.vmid for result in world.results(report, Outcome.FAILED)] == [WEB]
    assert_replicated(world, (DB, CT))


def test_what_is_marked_is_not_marked_again_when_one_of_the_batch_cannot_be(world: World) -> None:
    """An append-only target refuses to mark a point twice; the others of the batch are none the worse for it."""
    append_only(world)
    marked: set[str] = set()
    refused = Fault(words=("nobody",), again=True, answer=(1, "denied"))
    world.runner.faults.append(refused)

    def watch(ran: Ran) -> None:
        if ran.argv[:2] == ("zfs", "set"):
            name = ran.argv[-1]
            strange = "crypt/" in name or name in marked
            refused.words = ("set", name) if strange else ("nobody",)
            refused.seen = 0
            marked.add(name)

    world.runner.watchers.append(watch)
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert {result.vmid for result in world.results(report, Outcome.FAILED)} == {DB}
    for vmid in (WEB, CT):
        assert world.complete(TARGET, vmid) == world.complete(HERE, vmid)


def test_an_append_only_target_gets_one_stream_for_each_point(world: World) -> None:
    """Its receiver takes no packages, which `-I` makes."""
    append_only(world)
    world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    for _ in range(3):
        world.write()
        world.run(Stage.SNAPSHOT)
    world.runner.ran.clear()
    assert ok(world.run(Stage.REPLICATE))
    assert len(sends(world)) == 12
    assert all("-i" in argv and "-I" not in argv for argv in sends(world))
    assert len(carried(world)) == 2
    assert len(world.complete(TARGET, WEB)) == 4


def append_only(world: World) -> None:
    text = world.config.read_text().replace("keep: {keep-last: 3}}", "append-only: true}", 1)
    world.config.write_text(text)


def carried(world: World) -> list[str]:
    return [line for line in world.runner.lines if "zfs receive" in line]


def test_compression_is_for_plain_streams_and_encrypted_ones_travel_apart(world: World) -> None:
    option(world, "compress: zstd")
    assert ok(world.run())
    assert_replicated(world)
    told = {"crypt/" in line: line.startswith("zstd -dqc | { ") for line in carried(world)}
    assert told == {True: False, False: True}


def test_compression_by_itself_leaves_out_what_zfs_compressed(world: World) -> None:
    option(world, "compress: auto, mbuffer: 16M")
    seen_at(world, 2 << 20)
    world.source.datasets[ZVOL].props["compressratio"] = "1.80"
    assert ok(world.run())
    assert_replicated(world)
    plain = next(line for line in carried(world) if REPLICAS[ZVOL] in line)
    packed = next(line for line in carried(world) if REPLICAS[FAST] in line)
    assert plain.startswith("mbuffer -q -s 128k -m 16M | { ")
    assert packed.startswith("zstd -dqc | mbuffer -q -s 128k -m 16M | { ")
    asked = [argv for argv in world.runner.zfs(HERE, "get") if "compressratio" in argv]
    assert len(asked) == 1


def seen_at(world: World, rate: int) -> None:
    """Runs before brought so many bytes a second there."""
    (world.place / "state").mkdir(exist_ok=True)
    text = json.dumps({TARGET: {"rate": rate, "at": int(world.clock.now)}})
    (world.place / "state/links.json").write_text(text)


@pytest.mark.parametrize("rate", [0, 200 << 20])
def test_compression_by_itself_is_for_links_that_are_known_to_be_slow(world: World, rate: int) -> None:
    option(world, "compress: auto")
    if rate:
        seen_at(world, rate)
    assert ok(world.run())
    assert_replicated(world)
    assert not [line for line in carried(world) if "zstd" in line]
    assert not [argv for argv in world.runner.zfs(HERE, "get") if "compressratio" in argv], "nobody needs it"
    option(world, "rate: 1M")
    world.write()
    assert ok(world.run())
    assert [line for line in carried(world) if "zstd" in line], "a limit says that the link is"


@pytest.mark.parametrize(("options", "noted"), [("compress: auto", True), ("compress: auto, rate: 64M", False),
                                                 ("mbuffer: 16M", False)])  # fmt: skip
def test_what_a_run_brought_there_is_remembered_where_it_matters(
    world: World, monkeypatch: pytest.MonkeyPatch, options: str, noted: bool
) -> None:
    monkeypatch.setattr(wire, "ENOUGH", 1)
    monkeypatch.setattr(wire, "LONG", 0.0)
    option(world, options)
    assert ok(world.run())
    path = world.place / "state/links.json"
    assert path.exists() is noted
    if noted:
        assert json.loads(path.read_text())[TARGET]["rate"] > 0


@pytest.mark.parametrize(
    ("options", "gain", "installed", "used"),
    [
        ("", 0.3, True, True), ("", 0.05, True, False), ("", 0.3, False, False), ("mbuffer: 0", 0.3, True, False),
        ("rate: 900M", 0.3, True, False),
    ],
)  # fmt: skip
def test_large_streams_have_a_buffer_here_where_runs_saw_that_it_pays(
    world: World, monkeypatch: pytest.MonkeyPatch, options: str, gain: float, installed: bool, used: bool
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: "/usr/bin/mbuffer" if installed else None)
    monkeypatch.setattr("pve_zfsbackup.host.pipeline.ALONE_BYTES", 1)
    (world.place / "state").mkdir(exist_ok=True)
    known = {TARGET: {"gain": gain, "gain-at": int(world.clock.now)}}
    (world.place / "state/links.json").write_text(json.dumps(known))
    if options:
        option(world, options)
    seen: list[tuple[str, ...]] = []
    pipe = FakeRunner.pipe

    def watched(
        self: FakeRunner, producers: Iterable[Sequence[str]], consumers: Sequence[Sequence[str]], flow: Flow
    ) -> Piped:
        seen.append(tuple(words[0] for words in consumers))
        return pipe(self, producers, consumers, flow)

    monkeypatch.setattr(FakeRunner, "pipe", watched)
    assert ok(world.run())
    assert_replicated(world)
    assert set(seen) == {("mbuffer", "ssh") if used else ("ssh",)}
    assert not [line for line in carried(world) if "mbuffer" in line], "there it may not be installed"


@pytest.mark.parametrize(("options", "noted"), [("", True), ("mbuffer: 16M", False), ("rate: 1M", False)])
def test_what_a_buffer_would_save_is_remembered_where_it_matters(
    world: World, monkeypatch: pytest.MonkeyPatch, options: str, noted: bool
) -> None:
    monkeypatch.setattr("pve_zfsbackup.plan.wire.ENOUGH", 1)
    monkeypatch.setattr("pve_zfsbackup.plan.wire.LONG", 0.0)
    if options:
        option(world, options)
    pipe = FakeRunner.pipe
    monkeypatch.setattr(FakeRunner, "pipe", lambda *all: dataclasses.replace(pipe(*all), lost=5.0, seconds=20.0))
    assert ok(world.run())
    path = world.place / "state/links.json"
    assert path.exists() is noted
    if noted:
        assert json.loads(path.read_text())[TARGET]["gain"] == 0.25


def test_rates_of_the_configuration_reach_the_streams(world: World) -> None:
    with world.session() as session:
        assert session.hosts[TARGET].link.pace is None
    option(world, "rate: 3M, stall: 120")
    with world.session() as session:
        link = session.hosts[TARGET].link
        assert link.pace is not None
        assert (link.pace.rate(), link.stall) == (3 << 20, 120)
    option(world, "rate-schedule: ['00:00-24:00: 7M']")
    with world.session() as session:
        pace = session.hosts[TARGET].link.pace
        assert pace is not None
        assert pace.rate() == 7 << 20


# -- tried again


@pytest.mark.parametrize("cut", [0, 1, 20_000, 600_000])
@pytest.mark.parametrize("disk", sorted(REPLICAS))
def test_a_stream_that_breaks_goes_on_in_the_same_run(world: World, disk: str, cut: int) -> None:
    world.runner.faults.append(Fault(words=("receive", REPLICAS[disk]), cut=cut))
    assert ok(world.run())
    assert len(world.waits) == 1
    assert_replicated(world)
    resumed = [argv for argv in sends(world) if "-t" in argv]
    assert len(resumed) == (1 if cut else 0)


def test_a_target_that_comes_back_is_waited_for(world: World) -> None:
    world.runner.down[TARGET] = DOWN

    def come_back() -> None:
        if len(world.waits) == 2:
            world.runner.down.clear()

    world.meanwhile = come_back
    assert ok(world.run())
    assert world.waits == [10, 20]
    assert_replicated(world)


def test_busy_twice_then_fine(world: World) -> None:
    world.run()
    world.write()
    for nth in (1, 2):
        world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), nth=nth, answer=(1, BUSY)))
    world.runner.faults[1].nth = 1
    assert ok(world.run())
    assert_replicated(world)
    assert len(world.waits) == 2


def test_a_receive_that_is_still_under_way_is_waited_for(world: World) -> None:
    world.run()
    world.write()
    text = (
        f'cannot receive incremental stream: destination {REPLICAS[ZVOL]} contains partially-complete state from "x".'
    )
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), answer=(1, text)))
    assert ok(world.run())
    assert_replicated(world)


@pytest.mark.parametrize(
    "answer", [(1, "cannot receive: out of space"), (1, "cannot receive: internal error: x"), (2, "nobody knows")]
)
def test_what_does_not_pass_by_itself_is_not_tried_again(world: World, answer: tuple[int, str]) -> None:
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), answer=answer, again=True))
    report = world.run()
    assert [result.vmid for result in world.results(report, Outcome.FAILED)] == [WEB]
    assert world.waits == []
    assert len([argv for argv in sends(world) if ZVOL in argv[-1]]) == 1
    assert_replicated(world, (DB, CT))


def test_as_often_as_it_is_configured_and_no_more(world: World) -> None:
    option(world, "retries: 5, retry-wait: 100")
    world.runner.down[TARGET] = DOWN
    report = world.run(Stage.REPLICATE)
    assert report.exit_code is ExitCode.FAILED
    assert world.waits == [100, 200, LONGEST, LONGEST, LONGEST]
    (failed,) = world.results(report, Outcome.FAILED)
    assert (failed.vmid, failed.host) == (None, TARGET)


def test_a_stream_that_breaks_again_and_again_goes_on_as_long_as_bytes_arrive(world: World) -> None:
    world.source.write(ZVOL, 10 << 20)
    slow = [Fault(words=("receive", REPLICAS[ZVOL]), nth=1, cut=1 << 20) for _ in range(8)]
    world.runner.faults.extend(slow)
    assert ok(world.run())
    assert_replicated(world, (WEB,))
    assert len(world.waits) == 8
    assert set(world.waits) == {10}, "with every progress the count begins anew"


def test_without_progress_it_ends_and_the_next_run_goes_on(world: World) -> None:
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), cut=600_000))
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), cut=0, again=True))
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert failed.vmid == WEB
    assert_replicated_others(world)
    assert world.waits[-3:] == [10, 20, 40]
    assert len(world.waits) <= 5
    world.runner.revive()
    assert ok(world.run())
    assert_replicated(world)


def assert_replicated_others(world: World) -> None:
    for vmid in (DB, CT):
        assert world.complete(TARGET, vmid)[-1] == world.complete(HERE, vmid)[-1]


def test_one_that_breaks_every_connection_does_not_keep_the_others_from_arriving(world: World) -> None:
    vmids = many(world, 10)
    cursed = "tank/backups/local-zfs/vm-304-disk-0"
    world.runner.faults.append(Fault(words=("receive", cursed), answer=(255, "Connection reset by peer"), again=True))
    report = world.run()
    (failed,) = world.results(report, Outcome.FAILED)
    assert failed.vmid == 304
    assert_replicated(world, [WEB, DB, CT, *(vmid for vmid in vmids if vmid != 304)])


def test_silence_is_tried_again(world: World) -> None:
    world.runner.faults.append(Fault(words=("receive", REPLICAS[FAST]), error=CommandTimeoutError("no byte moved")))
    assert ok(world.run())
    assert_replicated(world)


def test_marks_that_a_lost_connection_swallowed_are_made_in_the_next_attempt(world: World) -> None:
    world.runner.faults.append(Fault(words=("set",), host=TARGET, answer=(255, "Connection reset by peer")))
    assert ok(world.run())
    assert len(sends(world)) == 4, "what is there is not sent again"
    assert_replicated(world)


def test_the_bytes_of_all_attempts_are_told(world: World) -> None:
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), cut=600_000))
    report = world.run()
    (done,) = [r for r in world.results(report, Outcome.OK, WEB) if r.stage == "replicate"]
    assert done.bytes > 2 << 20
    assert done.message == "2 streams"


def add_target(world: World) -> None:
    world.runner.pools["backup2"] = Pools("backup2", world.clock)
    world.runner.pools["backup2"].pool("tank")
    world.runner.addresses["backup2.example"] = "backup2"
    text = world.config.read_text().replace("targets: [backup1]", "targets: [backup1, backup2]")
    other = "  backup2: {host: backup2.example, root: tank/backups, parallel: 1, keep: {keep-last: 3}}\njobs:\n"
    world.config.write_text(text.replace("jobs:\n", other))


def test_a_dead_target_does_not_keep_the_other_waiting(world: World) -> None:
    add_target(world)
    world.runner.down[TARGET] = DOWN

    def until_the_other_is_done() -> None:
        """The first target waits until the second one is done: were that not let to, this would never end."""
        for _ in range(2000):
            with world.runner._lock:
                if world.complete("backup2", CT) and world.complete("backup2", DB):
                    return
            threading.Event().wait(0.01)
        raise AssertionError("backup2 waits for backup1")

    world.meanwhile = until_the_other_is_done
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert report.exit_code is ExitCode.PARTIAL
    assert {result.host for result in world.results(report, Outcome.FAILED)} == {TARGET}
    assert len(world.complete("backup2", WEB)) == 1


def test_whoever_interrupts_a_run_does_not_wait_for_its_patience(world: World) -> None:
    """The first target waits for minutes, the other one has told its first result: then somebody wants the end."""
    add_target(world)
    world.run(Stage.SNAPSHOT)
    world.runner.down[TARGET] = DOWN
    option(world, "retry-wait: 300")
    with world.session() as session:
        waiting = dataclasses.replace(session, pause=threading.Event.wait)
        found = inventory(waiting)
        items, _ = assign(waiting, found, Scope())
        results = replicate(waiting, found, items)
        assert next(results).host == "backup2"
        started = time.monotonic()
        results.close()
        assert time.monotonic() - started < 10
    assert world.runner.cancelled


# -- one target's trouble is its own


def test_a_channel_program_without_end_costs_nothing_but_its_time(world: World) -> None:
    add_target(world)
    world.runner.faults.append(Fault(words=("program",), error=CommandTimeoutError("zfs program: no end"), again=True))
    assert ok(world.run())
    assert world.runner.zfs(HERE, "program"), "it was tried"
    assert not world.runner.cancelled
    assert world.complete("backup2", WEB)
    assert_replicated(world)


def test_disks_that_do_not_say_how_they_are_compressed_are_sent_all_the_same(world: World) -> None:
    option(world, "compress: auto")
    seen_at(world, 2 << 20)
    silence = CommandTimeoutError("zfs get: no end")
    world.runner.faults.append(Fault(words=("compressratio",), error=silence, again=True))
    assert ok(world.run())
    assert world.waits == []
    assert_replicated(world)


def test_a_bug_at_one_target_is_told_and_does_not_end_the_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It strikes while a stream to this target is under way: that one is given up, those to the other go on."""
    add_target(world)
    world.source.write(FAST, 65 << 20)  # so that it goes alone, and last
    real, begun, struck = lanes.finish, threading.Event(), threading.Event()

    def finish(session: Session, target: str, works: Sequence[Work]) -> None:
        if target == TARGET and works:
            assert begun.wait(30)
            struck.set()
            raise RuntimeError("a bug")
        real(session, target, works)

    def under_way() -> None:
        begun.set()
        assert struck.wait(30)
        threading.Event().wait(0.5)

    monkeypatch.setattr(lanes, "finish", finish)
    world.runner.faults.append(Fault(words=("receive", REPLICAS[FAST]), host=TARGET, slow=under_way))
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert [(r.host, r.message) for r in world.results(report, Outcome.FAILED)] == [
        (TARGET, "internal error: RuntimeError: a bug")
    ]
    assert not world.runner.cancelled
    assert world.target.datasets[REPLICAS[FAST]].partial, "given up"
    assert all(world.complete("backup2", vmid) for vmid in (WEB, DB, CT))


def test_a_target_that_was_stopped_says_so(world: World) -> None:
    world.run(Stage.SNAPSHOT)
    with world.session() as session:
        found = inventory(session)
        items, _ = assign(session, found, Scope())
        stopped = Course(target=TARGET, stop=threading.Event())
        stopped.stop.set()
        (told,) = _to_target(session, found, works_to(TARGET, items), stopped)
    assert (told.outcome, told.host) == (Outcome.FAILED, TARGET)


# -- tokens


def interrupted(world: World) -> None:
    """The replica of one disk is half received."""
    world.run()
    world.write()
    world.impatient()
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), cut=20_000))
    world.run()
    assert world.target.datasets[REPLICAS[ZVOL]].partial
    world.runner.revive()


def test_a_token_that_is_refused_is_thrown_away_once_and_the_stream_planned_anew(world: World) -> None:
    interrupted(world)
    refusal = "cannot resume send: 'x' used in the initial send no longer exists"
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), answer=(255, refusal), sender=True, cut=0))
    report = world.run(Stage.REPLICATE)
    assert ok(report)
    aborted = [argv for argv in world.runner.zfs(TARGET, "receive") if "-A" in argv]
    assert aborted == [("zfs", "receive", "-A", "--", REPLICAS[ZVOL])]
    assert world.waits == [], "that does not take patience"
    assert any("thrown away" in result.message for result in world.results(report, Outcome.WARNING))
    assert_replicated(world)


@pytest.mark.parametrize(
    "told",
    [
        "cannot receive incremental stream: IV set guid mismatch. See the 'zfs receive' man page",
        "cannot receive incremental stream: invalid stream (checksum mismatch)",
        "cannot receive incremental stream: most recent snapshot of tank/x does not\nmatch incremental source",
    ],
)
def test_a_stream_that_the_target_cannot_go_on_with_begins_anew(world: World, told: str) -> None:
    interrupted(world)
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), answer=(1, told), cut=0))
    report = world.run(Stage.REPLICATE)
    assert ok(report)
    assert len([argv for argv in world.runner.zfs(TARGET, "receive") if "-A" in argv]) == 1
    assert world.waits == []
    assert_replicated(world)


def test_a_stream_begun_anew_goes_on_when_it_is_cut_as_well(world: World) -> None:
    """Its token is another one than that which was refused."""
    interrupted(world)
    world.config.write_text(world.config.read_text().replace("retries: 0,", ""))
    refusal = "cannot resume send: 'x' used in the initial send no longer exists"
    receive = ("receive", REPLICAS[ZVOL])
    world.runner.faults.append(Fault(words=receive, answer=(255, refusal), sender=True, cut=0))
    world.runner.faults.append(Fault(words=receive, nth=2, cut=20_000))
    report = world.run(Stage.REPLICATE)
    assert ok(report)
    assert len([argv for argv in world.runner.zfs(TARGET, "receive") if "-A" in argv]) == 1
    assert len([argv for argv in world.runner.zfs(HERE, "send") if "-t" in argv]) == 2, "both are tried"
    assert_replicated(world)


@pytest.mark.parametrize("raw", [False, True])
def test_a_token_that_a_target_made_up_is_thrown_away_and_an_encrypted_disk_leaves_raw(
    world: World, monkeypatch: pytest.MonkeyPatch, raw: bool
) -> None:
    """Its name would print as one more line, which says that the stream is raw: it would have left decrypted."""
    interrupted(world)
    disk = "rpool/crypt/vm-101-disk-0"
    newest = world.source.datasets[disk].newest
    base = world.target.datasets[REPLICAS[disk]].newest
    assert newest
    assert base
    where: list[Item] = [("fromguid", base.guid), ("object", 1), ("offset", 0), ("bytes", 0), ("toguid", newest.guid)]
    flag: list[Item] = [("rawok", True)] if raw else []
    forged = token([*where, ("toname", f"{disk}@x\n\trawok = 1"), *flag])
    real = Reading.cell

    def cell(self: Reading, dataset: Ds, part: Snap | Mark | None, column: str) -> str:
        told = self.pools is world.target and part is None and dataset.name == REPLICAS[disk]
        return forged if told and column == "receive_resume_token" else real(self, dataset, part, column)

    monkeypatch.setattr(Reading, "cell", cell)
    world.write()
    world.runner.ran.clear()
    report = world.run()
    sent = [argv for argv in world.runner.zfs(HERE, "send") if disk in argv[-1] or forged in argv]
    assert not any(forged in argv for argv in sent)
    assert all("-w" in argv for argv in sent)
    assert [argv for argv in world.runner.zfs(TARGET, "receive") if "-A" in argv] == [
        ("zfs", "receive", "-A", "--", REPLICAS[disk])
    ]
    assert any("not understood" in result.message for result in report.results)


def test_a_token_that_comes_back_is_left_to_a_person(world: World) -> None:
    interrupted(world)
    world.config.write_text(world.config.read_text().replace("retries: 0,", ""))
    refusal = "cannot resume send: 'x' used in the initial send no longer exists"

    def refuse(ran: Ran) -> None:
        if ran.argv[:3] == ("zfs", "send", "-t"):
            world.runner.faults.append(
                Fault(words=("receive", REPLICAS[ZVOL]), answer=(255, refusal), sender=True, cut=0)
            )
        elif ran.argv[:2] == ("zfs", "send") and ZVOL in ran.argv[-1]:
            world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), cut=20_000))

    world.runner.watchers.append(refuse)
    report = world.run(Stage.REPLICATE)
    (failed,) = world.results(report, Outcome.FAILED)
    assert failed.vmid == WEB
    assert len([argv for argv in world.runner.zfs(TARGET, "receive") if "-A" in argv]) == 1
    assert_replicated_others(world)


def test_a_token_that_cannot_be_aborted_parks_its_disk(world: World) -> None:
    interrupted(world)
    partial = world.target.datasets[REPLICAS[ZVOL]].partial
    assert partial
    del world.source.datasets[ZVOL].snaps[partial.package.name]
    world.runner.faults.append(
        Fault(words=("receive", "-A"), answer=(1, "cannot destroy: permission denied"), again=True)
    )
    report = world.run(Stage.REPLICATE)
    failed = [result for result in world.results(report, Outcome.FAILED) if "permission denied" in result.message]
    assert [result.vmid for result in failed] == [WEB]
    assert len([argv for argv in world.runner.zfs(TARGET, "receive") if "-A" in argv]) == 1
    assert_replicated_others(world)


def test_an_abort_that_is_queued_parks_the_disk_with_an_alarm(world: World) -> None:
    interrupted(world)
    partial = world.target.datasets[REPLICAS[ZVOL]].partial
    assert partial
    del world.source.datasets[ZVOL].snaps[partial.package.name]
    world.runner.faults.append(Fault(words=("receive", "-A"), answer=(75, "queued"), again=True))
    report = world.run(Stage.REPLICATE)
    warned = [r for r in world.results(report, Outcome.WARNING, WEB) if "queued on backup1" in r.message]
    assert len(warned) == 1
    assert "maintain" in warned[0].hint
    assert warned[0].alarm
    assert not world.results(report, Outcome.OK, WEB), "a guest of which a disk is not sent is not done"
    assert not world.results(report, Outcome.FAILED)
    assert world.waits == []
    assert_replicated_others(world)


# -- patience


def test_waits_grow_and_jitter() -> None:
    waited: list[float] = []
    luck = iter([0.0, 1.0, 0.5])
    patience = Patience(
        retries=3, wait=8, pause=lambda stop, seconds: waited.append(seconds) is not None, random=lambda: next(luck)
    )
    stop = threading.Event()
    assert [patience.again(stop) for _ in range(4)] == [True, True, True, False]
    assert waited == [4, 16, 24]


def test_who_is_told_to_stop_waits_no_more() -> None:
    stop = threading.Event()
    patience = Patience(retries=3, wait=1, pause=threading.Event.wait, random=lambda: 1.0)
    stop.set()
    assert not patience.again(stop)
    cut = Patience(retries=3, wait=1, pause=lambda event, seconds: True, random=lambda: 1.0)
    assert not cut.again(threading.Event())


def test_a_place_that_cannot_be_made_is_the_trouble_of_the_disks_that_go_there(world: World) -> None:
    """A new storage at the source stood still every guest on that target."""
    told = f"cannot create '{ROOT}/fast': permission denied"
    refused = Fault(words=("create", f"{ROOT}/fast"), again=True, answer=(1, told))
    world.runner.faults.append(refused)
    report = world.run()
    assert report.exit_code is ExitCode.PARTIAL
    assert_replicated(world, [DB, CT])
    failed = [result for result in report.results if result.outcome is Outcome.FAILED]
    assert [(result.vmid, FAST in result.message) for result in failed] == [(WEB, True)]
    assert world.target.datasets[REPLICAS[ZVOL]].snaps, "its other disk arrived"
    world.runner.faults.clear()
    assert ok(world.run())
    assert_replicated(world)


def test_a_root_that_cannot_be_made_is_the_trouble_of_all(world: World) -> None:
    refused = Fault(words=("create", ROOT), again=True, answer=(1, f"cannot create '{ROOT}': permission denied"))
    world.runner.faults.append(refused)
    report = world.run()
    failed = [result for result in report.results if result.outcome is Outcome.FAILED]
    assert [(result.vmid, result.host) for result in failed] == [(None, TARGET)], "told once"


def test_results_name_their_guest(world: World) -> None:
    world.runner.faults.append(Fault(words=("receive", REPLICAS[ZVOL]), cut=600_000))
    report = world.run()
    told = {result.vmid for result in report.results if result.stage == "replicate"}
    assert told == {Vmid(WEB), Vmid(DB), Vmid(CT)}


def test_a_replica_that_was_written_is_told_with_how_much_and_what_would_help(world: World) -> None:
    """By hand, or by a mount: nothing is rolled back from here, and the other guests go on."""
    world.run()
    replica = world.target.datasets[REPLICAS["rpool/crypt/vm-101-disk-0"]]
    replica.dirty = 4711
    world.write()
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    (failed,) = world.results(report, Outcome.FAILED)
    assert failed.vmid == DB
    assert "something was written since, 4711 bytes" in failed.message
    newest = max(replica.snaps.values(), key=lambda snap: snap.createtxg)
    assert failed.hint.endswith(f"zfs rollback {replica.name}@{newest.name}")
    assert_replicated(world, [WEB, CT])
    assert replica.dirty == 4711
