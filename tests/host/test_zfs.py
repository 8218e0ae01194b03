"""The commands that change something: exactly those argvs, refusals classified, nothing destroyed by name alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.errors import (
    CommandError,
    DatasetNotFoundError,
    HostUnreachableError,
    OutOfSpaceError,
    QueuedError,
    SnapshotHeldError,
    VerificationError,
    ZfsError,
)
from pve_zfsbackup.host import destroying, zfs
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.ssh import Destination, Host
from pve_zfsbackup.model import Bookmark, Dataset, Guid, PointId, Resume, Send, Snapshot
from tests.fakes.node import FakeNode
from tests.fakes.pools import Clock, Pools
from tests.fakes.runner import HERE, FakeRunner, Fault

SRC, DST = Dataset("rpool/src"), Dataset("tank/dst")


@pytest.fixture
def runner(tmp_path: Path) -> FakeRunner:
    clock = Clock()
    pools = {HERE: Pools(HERE, clock), "backup1": Pools("backup1", clock)}
    pools[HERE].pool("rpool")
    pools["backup1"].pool("tank")
    pools[HERE].add(SRC, zvol=True)
    pools[HERE].write(SRC, 1 << 20)
    return FakeRunner(pools, FakeNode(tmp_path), {"backup1.example": "backup1"})


@pytest.fixture
def source(runner: FakeRunner) -> Host:
    return Host(name="source", runner=runner)


@pytest.fixture
def target(runner: FakeRunner, tmp_path: Path) -> Host:
    place = Destination(
        host="backup1.example", user="b", port=22, identity=Path("/i"), known_hosts=Path("/k"), control=tmp_path / "s"
    )
    return Host(name="backup1", runner=runner, destination=place)


def taken(source: Host, number: int) -> Snapshot:
    """A new snapshot of ours, as the listing shows it."""
    stamp = f"20261118T10{number:02d}40Z-{number:04x}"
    zfs.snapshot(source, [[SRC]], f"pzb:{stamp}", {"pve-zfsbackup:point": f"100/{stamp}"})
    return list_host(source, [SRC]).volumes[SRC].snapshots[-1]


def names(runner: FakeRunner) -> list[str]:
    return list(runner.pools[HERE].datasets[SRC].snaps)


# -- sending


def test_argvs_of_sends() -> None:
    snap = Snapshot(dataset=SRC, name="pzb:b", guid=Guid("2"), createtxg=2, creation=2)
    base = replace(snap, name="pzb:a", guid=Guid("1"))
    mark = Bookmark(dataset=SRC, name="pzb:a:t", guid=Guid("1"), createtxg=1, creation=1)
    full = Send(host="t", snapshot=snap, base=None, dataset=DST, raw=False)
    assert zfs.send_argv(full) == ("zfs", "send", "-L", "-c", "--", f"{SRC}@pzb:b")
    assert zfs.send_argv(replace(full, raw=True)) == ("zfs", "send", "-w", "--", f"{SRC}@pzb:b")
    step = replace(full, base=base)
    assert zfs.send_argv(step)[4:6] == ("-i", f"{SRC}@pzb:a")
    assert zfs.send_argv(replace(step, base=mark))[4:6] == ("-i", f"{SRC}#pzb:a:t")
    assert zfs.send_argv(replace(step, through=(snap,)))[4:6] == ("-I", f"{SRC}@pzb:a")
    assert zfs.send_argv(full, estimate=True)[:3] == ("zfs", "send", "-nvP")
    resume = Resume(host="t", token="1-abc", snapshot=snap, dataset=DST, raw=False)
    assert zfs.send_argv(resume) == ("zfs", "send", "-t", "1-abc")


def test_what_was_reckoned_is_what_the_listing_of_the_stream_says(source: Host, runner: FakeRunner) -> None:
    step = Send(host="backup1", snapshot=taken(source, 1), base=None, dataset=DST, raw=False)
    assert zfs.estimate(source, step) > 1 << 20
    with pytest.raises(DatasetNotFoundError):
        zfs.estimate(source, replace(step, snapshot=replace(step.snapshot, name="pzb:gone")))


def test_an_abort_that_the_target_does_later_is_told_apart(target: Host, runner: FakeRunner) -> None:
    runner.faults.append(Fault(words=("receive", "-A"), host="backup1", answer=(75, "queued tank/dst")))
    with pytest.raises(QueuedError, match="queued on backup1") as caught:
        zfs.abort_receive(target, DST)
    assert not caught.value.transient
    with pytest.raises(DatasetNotFoundError):
        zfs.abort_receive(target, DST)


# -- creating


def test_a_parent_is_inert_and_one_that_exists_stays(target: Host, runner: FakeRunner) -> None:
    zfs.create_parent(target, Dataset("tank/backups"))
    made = runner.pools["backup1"].datasets["tank/backups"]
    inert = {"readonly": "on", "mountpoint": "none", "canmount": "off", "volmode": "none", "snapdir": "hidden"}
    assert made.props == inert
    made.props["readonly"] = "off"
    zfs.create_parent(target, Dataset("tank/backups"))
    assert made.props["readonly"] == "off"
    with pytest.raises(ZfsError, match="parent does not exist"):
        zfs.create_parent(target, Dataset("tank/a/b"))


def test_a_full_pool_is_named(source: Host, runner: FakeRunner) -> None:
    """zfs itself names none, seen in the lab (OpenZFS 2.3.9, row 46)."""
    runner.faults.append(Fault(words=("snapshot", "--"), answer=(1, "cannot create snapshots : out of space\n")))
    with pytest.raises(OutOfSpaceError) as caught:
        zfs.snapshot(source, [[SRC]], "pzb:x", {})
    assert caught.value.message == "zfs snapshot: cannot create snapshots in rpool: out of space"


def test_a_snapshot_that_cannot_be_made_says_why_in_one_line(source: Host) -> None:
    with pytest.raises(DatasetNotFoundError) as caught:
        zfs.snapshot(source, [[SRC, Dataset("rpool/none")]], "pzb:x", {})
    assert caught.value.message == "zfs snapshot: cannot open 'rpool/none': dataset does not exist"


def test_a_bookmark_that_exists_is_fine_and_one_that_is_gone_too(source: Host, runner: FakeRunner) -> None:
    snap = taken(source, 1)
    zfs.create_bookmark(source, snap, "m")
    zfs.create_bookmark(source, snap, "m")
    (mark,) = list_host(source, [SRC]).volumes[SRC].bookmarks
    assert mark.guid == snap.guid
    zfs.destroy_bookmark(source, mark)
    zfs.destroy_bookmark(source, mark)
    assert not runner.pools[HERE].datasets[SRC].marks


# -- holds


def test_holding_twice_and_releasing_what_is_not_held_is_fine(source: Host, runner: FakeRunner) -> None:
    snaps = [taken(source, number) for number in (1, 2, 3)]
    zfs.hold(source, "t", snaps[:1])
    zfs.hold(source, "t", snaps)
    assert all(snap.holds == {"t"} for snap in runner.pools[HERE].datasets[SRC].snaps.values())
    zfs.release(source, "t", snaps[1:])
    zfs.release(source, "t", snaps)
    zfs.release(source, "t", snaps)
    assert not any(snap.holds for snap in runner.pools[HERE].datasets[SRC].snaps.values())


def test_a_hold_on_what_is_gone_is_a_fault_but_the_others_are_held(source: Host, runner: FakeRunner) -> None:
    snaps = [taken(source, number) for number in (1, 2)]
    with pytest.raises(DatasetNotFoundError):
        zfs.hold(source, "t", [replace(snaps[0], name="pzb:gone"), *snaps])
    assert all(snap.holds == {"t"} for snap in runner.pools[HERE].datasets[SRC].snaps.values())


def test_only_a_hold_that_is_there_already_passes_for_settled() -> None:
    held = "cannot hold snapshot 'tank/a@x': tag already exists on this dataset\n"
    named = "cannot open 'tank/tag already exists on this dataset@x': dataset does not exist\n"

    def settled(text: str) -> bool:
        return zfs.is_settled(Completed(argv=(), returncode=1, stdout="", stderr=text))

    assert settled("** a banner **\n" + held)
    assert not settled(named), "a name must not make a mark that failed pass"
    assert not settled(held + named)
    assert not settled("")


# -- destroying


def test_destroying_goes_by_guid(source: Host, runner: FakeRunner) -> None:
    snaps = [taken(source, number) for number in (1, 2)]
    impostor = replace(snaps[0], guid=Guid("17"))
    failed = destroying.destroy(source, [impostor, snaps[1]])
    assert [snap for snap, _ in failed] == [impostor]
    assert isinstance(failed[0][1], VerificationError)
    assert names(runner) == [snaps[0].name]


def test_what_is_not_ours_is_never_destroyed(source: Host, runner: FakeRunner) -> None:
    snap = taken(source, 1)
    with pytest.raises(VerificationError, match="not ours"):
        destroying.destroy(source, [snap, replace(snap, point=None)])
    assert names(runner) == [snap.name]
    assert not runner.zfs(HERE, "destroy")


def test_gone_is_what_was_wanted(source: Host, runner: FakeRunner) -> None:
    snap = taken(source, 1)
    del runner.pools[HERE].datasets[SRC].snaps[snap.name]
    assert destroying.destroy(source, [snap]) == []
    assert not runner.zfs(HERE, "destroy")


def test_one_command_destroys_many(source: Host, runner: FakeRunner) -> None:
    snaps = [taken(source, number) for number in range(1, 6)]
    before = len(runner.ran)
    assert destroying.destroy(source, snaps) == []
    assert len(runner.ran) - before == 1, "a channel program: look and deed in one transaction group"
    assert names(runner) == []


@pytest.mark.parametrize("answer", [(1, "Channel program execution failed"), (0, "no JSON"), (2, "")])
def test_where_there_is_no_channel_program_commands_do_it(
    source: Host, runner: FakeRunner, answer: tuple[int, str]
) -> None:
    snaps = [taken(source, number) for number in range(1, 6)]
    runner.faults.append(Fault(words=("program",), answer=answer))
    assert destroying.destroy(source, snaps) == []
    (argv,) = runner.zfs(HERE, "destroy")
    assert argv == ("zfs", "destroy", f"{SRC}@{','.join(snap.name for snap in snaps)}")
    assert names(runner) == []


def test_a_guid_of_more_than_63_bits_is_recognised(source: Host, runner: FakeRunner) -> None:
    snaps = [taken(source, number) for number in (1, 2)]
    for number, snap in enumerate(snaps):
        runner.pools[HERE].datasets[SRC].snaps[snap.name].guid = (1 << 64) - 2 + number
    large = [replace(snap, guid=Guid(str((1 << 64) - 2 + number))) for number, snap in enumerate(snaps)]
    assert destroying.destroy(source, large) == []
    assert not runner.zfs(HERE, "destroy"), "no command had to look at them again"
    assert names(runner) == []


def test_a_held_one_stalls_the_batch_and_only_itself(source: Host, runner: FakeRunner) -> None:
    snaps = [taken(source, number) for number in range(1, 6)]
    runner.pools[HERE].datasets[SRC].snaps[snaps[2].name].holds.add("admin")
    failed = destroying.destroy(source, snaps)
    assert [(snap, type(error)) for snap, error in failed] == [(snaps[2], SnapshotHeldError)]
    assert names(runner) == [snaps[2].name]


def test_guids_that_cannot_be_read_are_not_taken_for_gone(source: Host, runner: FakeRunner) -> None:
    snaps = [taken(source, number) for number in (1, 2)]
    text = f"cannot open '{snaps[0].full_name}': dataset does not exist\ncannot open '{SRC}@x': I/O error"
    runner.faults.append(Fault(words=("program",), answer=(1, "Channel program execution failed")))
    runner.faults.append(Fault(words=("get",), answer=(1, text)))
    with pytest.raises(CommandError):
        destroying.destroy(source, snaps)
    assert len(names(runner)) == 2


def there(runner: FakeRunner, count: int) -> list[Snapshot]:
    """Snapshots of ours on the target: one each of many replicas."""
    pools, snaps = runner.pools["backup1"], []
    for number in range(count):
        dataset = Dataset(f"tank/d{number}")
        pools.add(dataset, zvol=True)
        made = pools.snap(f"{dataset}@pzb:20261118T000000Z-0000")
        snaps.append(
            Snapshot(
                dataset=dataset, name=made.name, guid=Guid(str(made.guid)), createtxg=made.createtxg, creation=0,
                point=PointId("100/20261118T000000Z-0000"),
            )
        )  # fmt: skip
    return snaps


def left(runner: FakeRunner) -> list[str]:
    return [name for name, ds in runner.pools["backup1"].datasets.items() if ds.snaps]


def test_many_replicas_are_pruned_in_few_sessions(target: Host, runner: FakeRunner) -> None:
    snaps = there(runner, 30)
    assert destroying.destroy(target, snaps) == []
    assert left(runner) == []
    assert len(runner.lines) == 6, "of ten replicas the guids in one session, and then they go in another"


def test_one_replica_that_cannot_be_pruned_is_alone(target: Host, runner: FakeRunner) -> None:
    snaps = there(runner, 12)
    runner.pools["backup1"].datasets["tank/d3"].snaps[snaps[3].name].holds.add("admin")
    impostor = replace(snaps[5], guid=Guid("17"))
    failed = destroying.destroy(target, [*snaps[:5], impostor, *snaps[6:]])
    assert {snap.dataset: type(error) for snap, error in failed} == {
        "tank/d3": SnapshotHeldError, "tank/d5": VerificationError,
    }  # fmt: skip
    assert left(runner) == ["tank/d3", "tank/d5"]


def test_one_replica_that_cannot_be_looked_at_is_alone(target: Host, runner: FakeRunner) -> None:
    snaps = there(runner, 4)
    text = f"cannot open '{snaps[1].full_name}': I/O error"
    runner.faults.append(Fault(words=("get", snaps[1].full_name), answer=(1, text), again=True))
    assert [snap for snap, _ in destroying.destroy(target, snaps)] == [snaps[1]]
    assert left(runner) == ["tank/d1"]


def test_a_target_that_is_away_fails_as_a_whole(target: Host, runner: FakeRunner) -> None:
    snaps = there(runner, 4)
    runner.down["backup1"] = "ssh: connect to host backup1 port 22: No route to host"
    with pytest.raises(HostUnreachableError):
        destroying.destroy(target, snaps)


def test_thousands_of_snapshots_fit_into_arguments(target: Host, runner: FakeRunner) -> None:
    pools = runner.pools["backup1"]
    pools.add("tank/dst", zvol=True)
    snaps = []
    for number in range(3000):
        stamp = f"20261118T{number:06d}Z-{number:04x}"
        made = pools.snap(f"tank/dst@pzb:{stamp}")
        snaps.append(
            Snapshot(
                dataset=DST, name=made.name, guid=Guid(str(made.guid)), createtxg=made.createtxg, creation=0,
                point=PointId(f"100/{stamp}"),
            )
        )  # fmt: skip
    sizes: list[int] = []
    inner = runner.run
    runner_run = lambda argv, **more: (sizes.append(max(map(len, argv))), inner(argv, **more))[1]  # noqa: E731
    counted = replace(target, runner=type("Counting", (), {"run": staticmethod(runner_run)})())
    zfs.hold(counted, "t", snaps)
    zfs.release(counted, "t", snaps)
    zfs.set_properties(counted, [snap.full_name for snap in snaps], {"pve-zfsbackup:conf": "c" * 8000})
    assert destroying.destroy(counted, snaps) == []
    assert not pools.datasets["tank/dst"].snaps
    assert max(sizes) < 1 << 17, "Linux takes 128 KiB in one argument (MAX_ARG_STRLEN)"
