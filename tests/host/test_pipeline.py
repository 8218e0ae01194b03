"""Many streams in one session: which arrived, which failed and why, and which were not begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.errors import (
    BackupError,
    CommandTimeoutError,
    DatasetNotFoundError,
    DestinationModifiedError,
    HostUnreachableError,
    OutOfSpaceError,
    StreamBrokenError,
)
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.pipeline import ALONE_BYTES, MOST, Chain, Fate, _said, carry
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.ssh import Destination, Host, Link
from pve_zfsbackup.model import Dataset, Guid, Resume, Send, Snapshot
from tests.fakes.node import FakeNode
from tests.fakes.pools import Clock, Pools
from tests.fakes.runner import HERE, FakeRunner, Fault

DISKS = [Dataset(f"rpool/d{number}") for number in range(5)]
SIZE = 1 << 20
ARRIVED, FAILED, AGAIN = Fate.ARRIVED, Fate.FAILED, Fate.AGAIN


class Seen:
    """A meter that writes down."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.bytes: dict[str, int] = {}

    def begin(self, stream: Send | Resume) -> None:
        self.log.append(("begin", stream.dataset[-2:]))

    def moved(self, stream: Send | Resume, count: int) -> None:
        self.bytes[stream.dataset[-2:]] = count

    def end(self, stream: Send | Resume) -> None:
        self.log.append(("end", stream.dataset[-2:]))


@pytest.fixture
def runner(tmp_path: Path) -> FakeRunner:
    clock = Clock()
    pools = {HERE: Pools(HERE, clock), "t": Pools("t", clock)}
    pools[HERE].pool("rpool")
    pools["t"].pool("tank")
    for name in DISKS:
        pools[HERE].add(name, zvol=True)
        pools[HERE].write(name, SIZE)
    return FakeRunner(pools, FakeNode(tmp_path), {"t.example": "t"})


@pytest.fixture
def source(runner: FakeRunner) -> Host:
    return Host(name="source", runner=runner)


@pytest.fixture
def target(runner: FakeRunner, tmp_path: Path) -> Host:
    place = Destination(
        host="t.example", user="u", port=22, identity=Path("/i"), known_hosts=Path("/k"), control=tmp_path / "s"
    )
    return Host(name="t", runner=runner, destination=place)


def taken(source: Host, name: Dataset) -> Snapshot:
    """A new snapshot of one disk, as the listing shows it."""
    count = len(list_host(source, [name]).volumes[name].snapshots)
    zfs.snapshot(source, [[name]], f"pzb:20261118T10{count:02d}00Z-0000", {})
    return list_host(source, [name]).volumes[name].snapshots[-1]


def full(source: Host, name: Dataset) -> Send:
    return Send(host="t", snapshot=taken(source, name), base=None, dataset=replica(name), raw=False)


def replica(name: Dataset) -> Dataset:
    return Dataset(f"tank/{name[-2:]}")


@pytest.fixture
def chains(source: Host) -> list[Chain]:
    return [Chain(streams=(full(source, name),)) for name in DISKS]


def fates(chains: Sequence[Chain]) -> list[Fate]:
    return [chain.fate for chain in chains]


def there(runner: FakeRunner) -> list[str]:
    """The replicas that have what was sent to them, whole."""
    found = runner.pools["t"].datasets
    return [str(name)[-2:] for name in DISKS if (made := found.get(replica(name))) and made.snaps]


def sessions(runner: FakeRunner) -> int:
    return len([argv for argv in runner.zfs("t", "receive") if "-A" not in argv])


def test_five_disks_arrive_in_one_session(source: Host, target: Host, runner: FakeRunner, chains: list[Chain]) -> None:
    seen = Seen()
    carry(source, target, chains, seen)
    assert fates(chains) == [ARRIVED] * 5
    assert there(runner) == ["d0", "d1", "d2", "d3", "d4"]
    assert all(chain.moved > SIZE and chain.error is None for chain in chains)
    assert seen.log == [(what, name) for name in ("d0", "d1", "d2", "d3", "d4") for what in ("begin", "end")]
    assert seen.bytes == {chain.dataset[-2:]: chain.moved for chain in chains}
    assert runner.connections == 1
    assert len(runner.zfs("t", "list")) == 1, "the session itself reads back what arrived"
    assert all(chain.read == chain.guids for chain in chains)


def test_an_account_that_says_something_else_is_asked_again() -> None:
    told = Completed(argv=(), returncode=0, stdout="Welcome to backup1\ntank/d0@a\t5\n", stderr="")
    assert _said(told) == {}


def test_a_disk_is_prepared_right_before_its_turn(source: Host, target: Host, runner: FakeRunner) -> None:
    told: list[int] = []

    def noting() -> Callable[[], None]:
        return lambda: told.append(len(runner.zfs(HERE, "send")))

    carry(source, target, [Chain(streams=(full(source, name),), prepare=noting()) for name in DISKS], Seen())
    assert told == [0, 1, 2, 3, 4]


def test_the_receiver_refuses_the_second_of_five(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain]
) -> None:
    runner.pools["t"].add("tank/d1")
    runner.pools["t"].snap("tank/d1@foreign")
    carry(source, target, chains, Seen())
    assert fates(chains) == [ARRIVED, FAILED, AGAIN, AGAIN, AGAIN]
    assert isinstance(chains[1].error, DestinationModifiedError)
    assert "destination 'tank/d1' exists" in str(chains[1].error)
    assert there(runner) == ["d0", "d1"], "d1 has the foreign one alone"
    rest = chains[2:]
    carry(source, target, rest, Seen())
    assert fates(rest) == [ARRIVED] * 3


def test_a_refusal_is_found_out_although_small_streams_vanished_in_buffers(
    source: Host, target: Host, runner: FakeRunner
) -> None:
    """Their senders all ended well, and so did that of the refused one: what is read back tells."""
    for name in DISKS:
        runner.pools[HERE].datasets[name].refer = 4096
    chains = [Chain(streams=(full(source, name),)) for name in DISKS]
    runner.faults.append(Fault(words=("receive", "tank/d2"), answer=(1, "cannot receive: out of space")))
    carry(source, target, chains, Seen())
    assert fates(chains) == [ARRIVED, ARRIVED, FAILED, AGAIN, AGAIN]
    assert isinstance(chains[2].error, OutOfSpaceError)


@pytest.mark.parametrize("number", range(5))
def test_a_cut_after_some_bytes_of_any_stream_is_that_ones_and_resumable(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain], number: int
) -> None:
    runner.faults.append(Fault(words=("receive", f"tank/d{number}"), cut=600_000))
    carry(source, target, chains, Seen())
    assert fates(chains) == [ARRIVED] * number + [FAILED] + [AGAIN] * (4 - number)
    assert isinstance(chains[number].error, StreamBrokenError)
    assert chains[number].error.transient
    partial = runner.pools["t"].datasets[f"tank/d{number}"].partial
    assert partial is not None
    assert partial.done == 600_000
    sent = chains[number].streams[0]
    resume = Resume(host="t", token=partial.token, snapshot=sent.snapshot, dataset=sent.dataset, raw=False)
    again = [Chain(streams=(resume,)), *chains[number + 1 :]]
    carry(source, target, again, Seen())
    assert fates(again) == [ARRIVED] * len(again)
    assert len(there(runner)) == 5


@pytest.mark.parametrize(
    ("answer", "kind", "transient"),
    [
        ((1, "warning: cannot send 'rpool/d2@x': Input/output error"), BackupError, False),
        ((-9, ""), StreamBrokenError, True),
    ],
)
def test_a_sender_that_dies_is_the_reason_not_the_short_stream(
    source: Host,
    target: Host,
    runner: FakeRunner,
    chains: list[Chain],
    answer: tuple[int, str],
    kind: type[BackupError],
    transient: bool,
) -> None:  # fmt: skip
    runner.faults.append(Fault(words=("receive", "tank/d2"), answer=answer, sender=True, cut=500_000))
    carry(source, target, chains, Seen())
    assert fates(chains) == [ARRIVED, ARRIVED, FAILED, AGAIN, AGAIN]
    error = chains[2].error
    assert isinstance(error, kind)
    assert error.transient is transient
    assert "zfs send" in error.message
    assert [argv[-1][-24:] for argv in runner.zfs(HERE, "send")][3:] == [], "nothing follows a broken stream"


def test_a_snapshot_that_is_gone_fails_its_disk_alone(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain]
) -> None:
    del runner.pools[HERE].datasets[DISKS[3]].snaps[chains[3].streams[0].snapshot.name]
    carry(source, target, chains, Seen())
    assert fates(chains) == [ARRIVED, ARRIVED, ARRIVED, FAILED, AGAIN]
    assert isinstance(chains[3].error, DatasetNotFoundError)


def test_what_cannot_be_prepared_is_not_sent_and_nothing_takes_its_place(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain]
) -> None:
    """The receive that waits for it must never get the next disk's full stream."""

    def refuse() -> None:
        raise BackupError("no bookmark")

    chains[1] = replace_chain(chains[1], refuse)
    carry(source, target, chains, Seen())
    assert fates(chains) == [ARRIVED, FAILED, AGAIN, AGAIN, AGAIN]
    assert str(chains[1].error) == "no bookmark"
    assert not chains[1].begun
    assert there(runner) == ["d0"]


def replace_chain(chain: Chain, prepare: Callable[[], None]) -> Chain:
    return Chain(streams=chain.streams, prepare=prepare)


def test_without_a_connection_all_wait_for_the_next_attempt(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain]
) -> None:
    runner.down["t"] = "ssh: connect to host t.example port 22: Connection refused"
    carry(source, target, chains, Seen())
    assert fates(chains) == [FAILED] * 5
    assert all(isinstance(chain.error, HostUnreachableError) for chain in chains)
    assert sessions(runner) == 0


def test_a_connection_that_breaks_leaves_it_to_the_next_listing_what_arrived(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain]
) -> None:
    runner.faults.append(Fault(words=("receive", "tank/d2"), answer=(255, "Connection reset by peer")))
    carry(source, target, chains, Seen())
    assert fates(chains) == [FAILED] * 5
    assert all(chain.error and chain.error.transient for chain in chains)
    assert [chain.begun for chain in chains] == [True, True, True, False, False]
    assert not runner.zfs("t", "list"), "nobody asks one that is not there"


def test_a_silent_target_is_given_up_for_all(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain]
) -> None:
    runner.faults.append(Fault(words=("receive", "tank/d1"), error=CommandTimeoutError("no byte moved for 60 s")))
    seen = Seen()
    carry(source, target, chains, seen)
    assert fates(chains) == [FAILED] * 5
    assert all(isinstance(chain.error, CommandTimeoutError) for chain in chains)
    assert seen.log[-1] == ("end", "d1"), "its bar does not stay on the screen"


def test_one_that_lies_in_a_session_that_fails_is_found_first(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain]
) -> None:
    runner.faults.append(Fault(words=("receive", "tank/d1"), lie=True))
    runner.faults.append(Fault(words=("receive", "tank/d3"), answer=(1, "cannot receive: out of space")))
    carry(source, target, chains, Seen())
    assert fates(chains) == [ARRIVED, FAILED, ARRIVED, AGAIN, AGAIN]


def test_a_target_that_cannot_be_read_back_is_no_proof_of_anything(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain]
) -> None:
    runner.faults.append(Fault(words=("receive", "tank/d1"), answer=(1, "cannot receive: out of space")))
    runner.faults.append(Fault(words=("list",), host="t", answer=(1, "internal error: out of memory")))
    carry(source, target, chains, Seen())
    assert fates(chains) == [FAILED] * 5


def test_the_steps_of_one_disk_are_one_chain(source: Host, target: Host, runner: FakeRunner) -> None:
    one = full(source, DISKS[0])
    runner.pools[HERE].write(DISKS[0], 4096)
    two = replace(one, snapshot=taken(source, DISKS[0]), base=one.snapshot)
    chains = [Chain(streams=(one, two)), Chain(streams=(full(source, DISKS[1]),))]
    carry(source, target, chains, Seen())
    assert fates(chains) == [ARRIVED, ARRIVED]
    assert len(runner.pools["t"].datasets["tank/d0"].snaps) == 2


def test_the_second_step_of_a_disk_that_fails_is_the_disks_failure(
    source: Host, target: Host, runner: FakeRunner
) -> None:
    one = full(source, DISKS[0])
    gone = replace(one.snapshot, name="gone", guid=Guid("17"))
    two = replace(one, snapshot=gone, base=one.snapshot)
    chains = [Chain(streams=(one, two)), Chain(streams=(full(source, DISKS[1]),))]
    carry(source, target, chains, Seen())
    assert fates(chains) == [FAILED, AGAIN]
    assert isinstance(chains[0].error, DatasetNotFoundError)


def test_a_disk_with_very_many_steps_takes_several_sessions(source: Host, target: Host, runner: FakeRunner) -> None:
    first = full(source, DISKS[0])
    streams, base = [first], first.snapshot
    for number in range(2 * MOST):
        made = runner.pools[HERE].snap(f"{DISKS[0]}@s{number}")
        goal = replace(base, name=made.name, guid=Guid(str(made.guid)), createtxg=made.createtxg)
        streams.append(replace(first, snapshot=goal, base=base))
        base = goal
    prepared: list[int] = []
    chain = Chain(streams=tuple(streams), prepare=lambda: prepared.append(1))
    carry(source, target, [chain], Seen())
    assert (chain.fate, prepared) == (ARRIVED, [1])
    assert len(runner.pools["t"].datasets["tank/d0"].snaps) == 2 * MOST + 1
    carried = [line for line in runner.lines if "receive" in line]
    assert [line.count("zfs receive") for line in carried] == [MOST, MOST, 1]
    assert max(map(len, carried)) < 1 << 17


def test_a_part_that_breaks_ends_its_disk(source: Host, target: Host, runner: FakeRunner) -> None:
    first = full(source, DISKS[0])
    gone = replace(first, snapshot=replace(first.snapshot, name="gone", guid=Guid("17")), base=first.snapshot)
    chain = Chain(streams=(first, *(gone for _ in range(2 * MOST))))
    carry(source, target, [chain], Seen())
    assert chain.fate is FAILED
    assert isinstance(chain.error, DatasetNotFoundError)
    assert len([line for line in runner.lines if "receive" in line]) == 1


@pytest.mark.parametrize("text", ["sh: 1: mbuffer: not found", "bash: line 1: mbuffer: command not found"])
def test_a_filter_that_the_target_does_not_have_is_named(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain], text: str
) -> None:
    said = f"{text}\ncannot receive: failed to read from stream"
    runner.faults.append(Fault(words=("receive", "tank/d0"), answer=(1, said)))
    carry(source, replace(target, link=Link(mbuffer=1 << 20)), chains, Seen())
    assert chains[0].error is not None
    assert chains[0].error.message == "t: mbuffer is not installed there"
    assert not chains[0].error.transient


# -- command lines


class Lines:
    """Takes the command lines, moves nothing."""

    def __init__(self) -> None:
        self.consumers: tuple[tuple[str, ...], ...] = ()

    def pipe(self, producers: object, consumers: Sequence[Sequence[str]], flow: object) -> None:
        self.consumers = tuple(tuple(words) for words in consumers)
        raise BackupError("enough")


def lines(target: Host, chains: list[Chain], **about: object) -> tuple[tuple[str, ...], ...]:
    taking = Lines()
    link = Link(**about)  # type: ignore[arg-type]
    carry(Host(name="source", runner=taking), replace(target, link=link), chains, Seen())  # type: ignore[arg-type]
    return taking.consumers


READ_BACK = "zfs list -Hp -d 1 -t snapshot -o name,guid --"


def test_one_command_line_has_a_receive_for_every_stream(target: Host, chains: list[Chain]) -> None:
    (argv,) = lines(target, chains[:2])
    receives = "zfs receive -s -u -- tank/d0 && zfs receive -s -u -- tank/d1"
    assert argv[-1] == f"{receives} && {READ_BACK} tank/d0 tank/d1"
    assert any(word.startswith("ControlPath=/") for word in argv)


def test_hostile_names_stay_words(target: Host, chains: list[Chain]) -> None:
    odd = replace(chains[0].streams[0], dataset=Dataset("tank/$(reboot) && x"))
    (argv,) = lines(target, [Chain(streams=(odd,))])
    assert argv[-1] == f"zfs receive -s -u -- 'tank/$(reboot) && x' && {READ_BACK} 'tank/$(reboot) && x'"


def test_much_data_has_a_connection_of_its_own(target: Host, chains: list[Chain]) -> None:
    big = Chain(streams=chains[0].streams, size=ALONE_BYTES)
    (argv,) = lines(target, [big])
    assert "ControlPath=none" in argv


def test_filters_stand_before_the_receives_and_mirror_each_other(target: Host, chains: list[Chain]) -> None:
    pair = [Chain(streams=chain.streams, compress=True) for chain in chains[:2]]
    *here, argv = lines(target, pair, mbuffer=64 << 20)
    assert here == [("mbuffer", "-q", "-s", "128k", "-m", "64M"), ("zstd", "-qc", "-3")]
    receives = "zfs receive -s -u -- tank/d0 && zfs receive -s -u -- tank/d1"
    assert argv[-1] == f"zstd -dqc | mbuffer -q -s 128k -m 64M | {{ {receives}; }}"
    *here, argv = lines(target, pair)
    assert here == [("zstd", "-qc", "-3")]
    assert argv[-1] == f"zstd -dqc | {{ {receives}; }}"
    *here, argv = lines(target, chains[:2], mbuffer=8 << 20)
    assert here == [("mbuffer", "-q", "-s", "128k", "-m", "8M")]
    assert argv[-1] == f"mbuffer -q -s 128k -m 8M | {{ {receives}; }}"


def test_streams_arrive_through_filters(source: Host, target: Host, runner: FakeRunner, chains: list[Chain]) -> None:
    several = [Chain(streams=chain.streams, compress=True) for chain in chains]
    carry(source, replace(target, link=Link(mbuffer=1 << 20)), several, Seen())
    assert fates(several) == [ARRIVED] * 5


def test_one_that_lies_before_one_that_fails_is_tried_again(
    source: Host, target: Host, runner: FakeRunner, chains: list[Chain]
) -> None:
    """It is the first that is not there, so it is taken for the one that failed: harmless, as that may pass."""
    runner.faults.append(Fault(words=("receive", "tank/d0"), lie=True))
    del runner.pools[HERE].datasets[DISKS[1]].snaps[chains[1].streams[0].snapshot.name]
    carry(source, target, chains, Seen())
    assert fates(chains) == [FAILED, AGAIN, AGAIN, AGAIN, AGAIN]
    assert isinstance(chains[0].error, StreamBrokenError)
