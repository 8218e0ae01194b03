"""The interpreter of steps: what goes in one command, in which order, and what is read back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.errors import BackupError, CommandTimeoutError, PveUnreachableError, VerificationError, ZfsError
from pve_zfsbackup.events import Event, Progress
from pve_zfsbackup.execute import Executor
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.quiesce import FreezeRules, Quiescer, Window
from pve_zfsbackup.host.ssh import Destination, Host
from pve_zfsbackup.model import (
    AbortReceive,
    Consistency,
    CreateBookmark,
    CreateParent,
    Dataset,
    Destroy,
    DestroyBookmark,
    Guest,
    GuestKind,
    Guid,
    Hold,
    Mark,
    PointId,
    Quiesce,
    Release,
    Resume,
    Send,
    Snapshot,
    SnapshotGuest,
    Vmid,
)
from tests.fakes.node import FakeNode
from tests.fakes.pools import Clock, Pools
from tests.fakes.runner import HERE, FakeRunner, Fault

A, B, REPLICA = Dataset("rpool/a"), Dataset("rpool/b"), Dataset("tank/x/a")
POINT = "pve-zfsbackup:point"


@pytest.fixture
def runner(tmp_path: Path) -> FakeRunner:
    clock = Clock()
    pools = {HERE: Pools(HERE, clock), "t": Pools("t", clock)}
    for pool in ("rpool", "fast"):
        pools[HERE].pool(pool)
    pools["t"].pool("tank")
    pools["t"].add("tank/x")
    for name in (A, B, "fast/c"):
        pools[HERE].add(name, zvol=True)
        pools[HERE].write(name, 1 << 20)
    return FakeRunner(pools, FakeNode(tmp_path), {"t.example": "t"})


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def executor(runner: FakeRunner, tmp_path: Path, events: list[Event]) -> Executor:
    place = Destination(
        host="t.example", user="u", port=22, identity=Path("/i"), known_hosts=Path("/k"), control=tmp_path / "s"
    )
    hosts = {"source": Host(name="source", runner=runner), "t": Host(name="t", runner=runner, destination=place)}
    return Executor(hosts=hosts, emit=events.append)


def point(executor: Executor, number: int, *datasets: Dataset) -> dict[Dataset, Snapshot]:
    """A point of ours, as the listing shows it."""
    stamp = f"20261118T10{number:02d}00Z-{number:04x}"
    names = [f"{dataset}@pzb:{stamp}" for dataset in datasets]
    executor.hosts["source"].run(("zfs", "snapshot", "-o", f"{POINT}=100/{stamp}", "--", *names))
    volumes = list_host(executor.hosts["source"], datasets).volumes
    return {dataset: volumes[dataset].snapshots[-1] for dataset in datasets}


def verbs(runner: FakeRunner, host: str) -> list[str]:
    return [argv[1] for argv in runner.zfs(host)]


# -- small steps in few commands


def test_marks_of_one_point_are_one_command(executor: Executor, runner: FakeRunner) -> None:
    snaps = point(executor, 1, A, B)
    for dataset in (A, B):
        executor.execute([Send(host="t", snapshot=snaps[dataset], base=None, dataset=replica(dataset), raw=False)])
    runner.ran.clear()
    executor.execute([Mark(host="t", source=snaps[d], dataset=replica(d), volume=Guid("7")) for d in (A, B)])
    assert verbs(runner, HERE) == ["get"]
    assert verbs(runner, "t") == ["set"]
    for dataset in (A, B):
        there = runner.pools["t"].get(f"{replica(dataset)}@{snaps[dataset].name}")
        assert there.props == {POINT: snaps[dataset].point, "pve-zfsbackup:volume": "7"}


def replica(dataset: Dataset) -> Dataset:
    return Dataset(f"tank/x/{dataset.rpartition('/')[2]}")


def test_marks_of_different_points_or_volumes_are_apart(executor: Executor, runner: FakeRunner) -> None:
    first, second = point(executor, 1, A), point(executor, 2, A)
    send = Send(host="t", snapshot=first[A], base=None, dataset=REPLICA, raw=False)
    executor.execute([send, replace(send, snapshot=second[A], base=first[A])])
    runner.ran.clear()
    marks = [Mark(host="t", source=snap[A], dataset=REPLICA, volume=Guid("7")) for snap in (first, second)]
    executor.execute(marks)
    assert verbs(runner, "t") == ["set", "set"]
    points = [snap.props[POINT] for snap in runner.pools["t"].datasets[REPLICA].snaps.values()]
    assert points == [first[A].point, second[A].point]


def test_a_source_that_lost_its_properties_marks_nothing(executor: Executor, runner: FakeRunner) -> None:
    snaps = point(executor, 1, A)
    executor.execute([Send(host="t", snapshot=snaps[A], base=None, dataset=REPLICA, raw=False)])
    runner.pools[HERE].get(snaps[A].full_name).props.clear()
    with pytest.raises(VerificationError, match="lost its properties"):
        executor.execute([Mark(host="t", source=snaps[A], dataset=REPLICA, volume=Guid("7"))])
    assert not runner.pools["t"].get(f"{REPLICA}@{snaps[A].name}").props


def test_the_new_hold_comes_before_the_old_goes(executor: Executor, runner: FakeRunner) -> None:
    snaps = [point(executor, number, A)[A] for number in (1, 2, 3)]
    executor.execute([Hold(host="source", snapshot=snaps[0], tag="t")])
    runner.ran.clear()
    executor.execute(
        [
            Hold(host="source", snapshot=snaps[1], tag="t"), Hold(host="source", snapshot=snaps[2], tag="t"),
            Release(host="source", snapshot=snaps[0], tag="t"),
        ]
    )  # fmt: skip
    assert verbs(runner, HERE) == ["hold", "release"]
    holds = [snap.holds for snap in runner.pools[HERE].datasets[A].snaps.values()]
    assert holds == [set(), {"t"}, {"t"}]


def test_holds_of_somebody_else_cost_one_question_for_all(executor: Executor, runner: FakeRunner) -> None:
    """A listing counts holds and does not name them: each is taken for ours, run after run."""
    snaps = [point(executor, number, A)[A] for number in range(1, 6)]
    for snap in snaps[:4]:
        runner.pools[HERE].get(snap.full_name).holds.add("admin")
    holds = [Hold(host="source", snapshot=snaps[4], tag="t")]
    runner.ran.clear()
    executor.execute([*holds, *(Release(host="source", snapshot=snap, tag="t") for snap in snaps[:4])])
    assert verbs(runner, HERE) == ["hold", "release"]
    runner.ran.clear()
    executor.execute([*holds, *(Release(host="source", snapshot=snap, tag="t") for snap in snaps[:4])])
    assert verbs(runner, HERE) == ["hold", "hold", "release"], "it is held already: once more, each for itself"
    assert [snap.holds for snap in runner.pools[HERE].datasets[A].snaps.values()] == [{"admin"}] * 4 + [{"t"}]


def test_destroys_are_one_channel_program_and_one_failure_stops_no_other(
    executor: Executor, runner: FakeRunner
) -> None:
    points = [point(executor, number, A, B) for number in (1, 2)]
    held = points[0][A]
    runner.pools[HERE].get(held.full_name).holds.add("admin")
    runner.ran.clear()
    with pytest.raises(BackupError, match=r"1 snapshots could not be destroyed: rpool/a@.*it's being held"):
        executor.execute([Destroy(host="source", snapshot=snap) for taken in points for snap in taken.values()])
    left = [s.name for name in (A, B) for s in runner.pools[HERE].datasets[name].snaps.values()]
    assert left == [held.name]
    assert verbs(runner, HERE)[0] == "program"
    assert verbs(runner, HERE).count("destroy") == 2, "only of the held one commands tell why"


def test_a_bookmark_that_stays_keeps_no_other(executor: Executor, runner: FakeRunner) -> None:
    snaps = point(executor, 1, A, B)
    for dataset in (A, B):
        executor.execute([CreateBookmark(snapshot=snaps[dataset], name=f"m{number}") for number in range(2)])
    volumes = list_host(executor.hosts["source"], [A, B]).volumes
    marks = [mark for name in (A, B) for mark in volumes[name].bookmarks]
    assert len(marks) == 4
    runner.faults.append(Fault(words=("destroy", marks[1].full_name), answer=(1, "dataset is busy"), again=True))
    ((left, error),) = executor.forget(marks)
    assert (left, "busy" in str(error)) == (marks[1], True)
    assert [len(runner.pools[HERE].datasets[name].marks) for name in (A, B)] == [1, 0]
    with pytest.raises(BackupError, match="busy"):
        executor.execute([DestroyBookmark(bookmark=mark) for mark in (marks[1], marks[1])])
    assert executor.forget([]) == []


def test_nothing_after_the_first_failure(executor: Executor, runner: FakeRunner) -> None:
    snaps = point(executor, 1, A, B)
    bad = Send(host="t", snapshot=snaps[A], base=None, dataset=Dataset("tank/none/a"), raw=False)
    with pytest.raises(BackupError):
        executor.execute([bad, Send(host="t", snapshot=snaps[B], base=None, dataset=replica(B), raw=False)])
    assert replica(B) not in runner.pools["t"].datasets


def test_bookmarks_parents_and_aborts(executor: Executor, runner: FakeRunner) -> None:
    snaps = point(executor, 1, A)
    executor.execute([CreateParent(host="t", dataset=Dataset("tank/x/p")), CreateBookmark(snapshot=snaps[A], name="m")])
    assert "tank/x/p" in runner.pools["t"].datasets
    (mark,) = list_host(executor.hosts["source"], [A]).volumes[A].bookmarks
    executor.execute([DestroyBookmark(bookmark=mark)])
    assert not runner.pools[HERE].datasets[A].marks
    runner.faults.append(Fault(words=("receive",), cut=5000))
    with pytest.raises(ZfsError):
        executor.execute([Send(host="t", snapshot=snaps[A], base=None, dataset=REPLICA, raw=False)])
    executor.execute([AbortReceive(host="t", dataset=REPLICA, reason="stale")])
    assert REPLICA not in runner.pools["t"].datasets


# -- streams


def test_a_stream_reports_its_progress_and_its_bytes(executor: Executor, events: list[Event]) -> None:
    snaps = point(executor, 1, A)
    moved = executor.execute([Send(host="t", snapshot=snaps[A], base=None, dataset=REPLICA, raw=False)])
    shown = [event for event in events if isinstance(event, Progress)]
    assert (shown[0].moved, shown[0].done) == (0, False)
    assert (shown[-1].moved, shown[-1].total, shown[-1].done) == (moved, moved, True)
    assert {(event.host, event.disk) for event in shown} == {("t", A)}
    assert moved > 1 << 20


def test_a_resumed_stream_moves_only_the_rest(executor: Executor, runner: FakeRunner) -> None:
    snaps = point(executor, 1, A)
    send = Send(host="t", snapshot=snaps[A], base=None, dataset=REPLICA, raw=False)
    runner.faults.append(Fault(words=("receive",), cut=1_000_000))
    with pytest.raises(ZfsError, match="incomplete stream"):
        executor.execute([send])
    partial = runner.pools["t"].datasets[REPLICA].partial
    assert partial is not None
    step = Resume(host="t", token=partial.token, snapshot=snaps[A], dataset=REPLICA, raw=False)
    assert executor.execute([step]) == partial.package.size - 1_000_000
    assert runner.pools["t"].datasets[REPLICA].partial is None


def test_verify_names_what_is_missing(executor: Executor, runner: FakeRunner) -> None:
    snaps = point(executor, 1, A, B)
    for dataset in (A, B):
        executor.execute([Send(host="t", snapshot=snaps[dataset], base=None, dataset=replica(dataset), raw=False)])
    runner.ran.clear()
    wanted = {replica(A): frozenset({snaps[A].guid}), replica(B): frozenset({snaps[B].guid, Guid("17")})}
    assert executor.verify("t", wanted) == {replica(B): {Guid("17")}}
    assert len(runner.ran) == 1
    gone = {Dataset("tank/x/gone"): frozenset({Guid("1")})}
    assert executor.verify("t", gone) == gone
    runner.faults.append(Fault(words=("list",), host="t", answer=(1, "cannot open 'tank/x/gone': I/O error")))
    with pytest.raises(ZfsError):
        executor.verify("t", gone)


# -- snapshots


GUEST = Guest(vmid=Vmid(100), kind=GuestKind.VM, node="pve1", name="web", running=True)
STEP = SnapshotGuest(
    guest=GUEST, point=PointId("100/20261118T101010Z-ab12"), name="pzb:20261118T101010Z-ab12",
    pools=((Dataset("fast/c"),), (A, B)), disks="scsi0=v#1", quiesce=Quiesce.PREFER, freeze=True,
)  # fmt: skip


class FakeQuiescer(Quiescer):
    """A window that ends as told: `after` is what turns out when it closes, `error` what its end raises."""

    def __init__(self, after: Consistency = Consistency.QUIESCED, error: Exception | None = None) -> None:
        object.__setattr__(self, "after", after)
        object.__setattr__(self, "error", error)

    @contextmanager
    def window(self, step: SnapshotGuest, limit: float) -> Iterator[Window]:
        window = Window()
        yield window
        if self.error:
            raise self.error
        window.consistency, window.reason = self.after, ""


def take(executor: Executor, quiescer: Quiescer, *, cut: bool = False) -> None:
    with pytest.raises(PveUnreachableError) if cut else nullcontext():
        executor.snapshot(STEP, quiescer, {"conf": "packed", "conf2": "more"}, FreezeRules())


def consistencies(runner: FakeRunner) -> set[str]:
    names = (A, B, "fast/c")
    snaps = [snap for name in names for snap in runner.pools[HERE].datasets[name].snaps.values()]
    return {snap.props["pve-zfsbackup:consistency"] for snap in snaps}


def test_a_snapshot_is_one_command_per_pool_with_all_properties(executor: Executor, runner: FakeRunner) -> None:
    take(executor, FakeQuiescer(error=PveUnreachableError("cut off here")), cut=True)
    assert verbs(runner, HERE) == ["snapshot", "snapshot"]
    assert runner.pools[HERE].get(f"{A}@{STEP.name}").props == {
        POINT: STEP.point, "pve-zfsbackup:disks": "scsi0=v#1", "pve-zfsbackup:guest": "qemu/pve1",
        "pve-zfsbackup:conf": "packed", "pve-zfsbackup:conf2": "more",
        "pve-zfsbackup:consistency": "crash-consistent: the run was cut off before more was proven",
    }  # fmt: skip


@pytest.mark.parametrize("proven", [Consistency.QUIESCED, Consistency.OFFLINE, Consistency.CRASH])
def test_a_point_is_called_what_was_proven_when_its_window_closed(
    executor: Executor, runner: FakeRunner, proven: Consistency
) -> None:
    take(executor, FakeQuiescer(after=proven))
    assert consistencies(runner) == {proven}
    assert verbs(runner, HERE) == ["snapshot", "snapshot", "set"]


def test_a_pool_that_fails_is_raised_and_what_the_others_made_is_taken_back(
    executor: Executor, runner: FakeRunner
) -> None:
    """No prune takes half points while none is whole: hour after hour one more, as long as a pool is full."""
    theirs = runner.pools[HERE].snap("fast/c@before-upgrade")
    older = point(executor, 1, Dataset("fast/c"))[Dataset("fast/c")]
    runner.ran.clear()
    runner.faults.append(Fault(words=("snapshot",), nth=2, answer=(1, "out of space")))
    with pytest.raises(ZfsError, match="out of space"):
        take(executor, FakeQuiescer())
    assert verbs(runner, HERE) == ["snapshot", "snapshot", "list", "program"]
    left = {name: [snap.guid for snap in runner.pools[HERE].datasets[name].snaps.values()] for name in (A, "fast/c")}
    assert left == {A: [], "fast/c": [theirs.guid, int(older.guid)]}


def test_what_cannot_be_taken_back_hides_no_failure(executor: Executor, runner: FakeRunner) -> None:
    runner.faults.append(Fault(words=("snapshot",), nth=2, answer=(1, "out of space")))
    runner.faults.append(Fault(words=("list",), answer=(1, "internal error")))
    with pytest.raises(ZfsError, match="out of space"):
        take(executor, FakeQuiescer())


def test_a_pool_that_hangs_is_not_asked_once_more(executor: Executor, runner: FakeRunner) -> None:
    runner.faults.append(Fault(words=("snapshot",), nth=2, error=CommandTimeoutError("zfs snapshot: no end")))
    with pytest.raises(CommandTimeoutError):
        take(executor, FakeQuiescer())
    assert verbs(runner, HERE) == ["snapshot", "snapshot"]


def test_a_whole_point_stays_whatever_its_window_ends_with(executor: Executor, runner: FakeRunner) -> None:
    take(executor, FakeQuiescer(error=PveUnreachableError("does not thaw")), cut=True)
    assert all(len(runner.pools[HERE].datasets[name].snaps) == 1 for name in (A, B, "fast/c"))


def test_a_guest_is_not_snapshotted_without_its_window(executor: Executor, runner: FakeRunner) -> None:
    with pytest.raises(VerificationError):
        executor.execute([STEP])
    assert not runner.ran
