"""Packing: every disk once, guests whole, big ones alone, and lanes that end together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pve_zfsbackup.host.pipeline import MOST, Chain, _consumers
from pve_zfsbackup.host.runner import ProcessRunner
from pve_zfsbackup.host.ssh import Destination, Host
from pve_zfsbackup.model import Bookmark, CreateBookmark, Dataset, Guid, Resume, Send, Snapshot, Vmid
from pve_zfsbackup.plan.lanes import BIG, FULL, MANY, Load, expected, pack

MIB = 1 << 20
PLACE = Path("/x")
TARGET = Host(
    name="t",
    runner=ProcessRunner(),
    destination=Destination(host="b", user="u", port=22, identity=PLACE, known_hosts=PLACE, control=PLACE),
)


def snap(name: str, *, refer: int = 0, used: int = 0, txg: int = 1) -> Snapshot:
    return Snapshot(
        dataset=Dataset("rpool/a"), name=name, guid=Guid(name), createtxg=txg, creation=txg, refer=refer, used=used
    )


def send(goal: Snapshot, base: Snapshot | Bookmark | None = None, through: tuple[Snapshot, ...] = ()) -> Send:
    return Send(host="t", snapshot=goal, base=base, dataset=Dataset("tank/a"), raw=False, through=through)


def load(
    number: int, size: int, *, vmid: int | None = None, since: int = 0, suspect: bool = False, compress: bool = False
) -> Load:
    return Load(
        vmid=Vmid(vmid or number),
        dataset=Dataset(f"rpool/{number}"),
        steps=(send(snap("x")),),
        size=size,
        since=since,
        suspect=suspect,
        compress=compress,
    )


def test_what_is_expected_of_a_stream() -> None:
    old, new = snap("a", refer=100, used=30), snap("b", refer=150)
    assert expected([send(new)]) == 150
    assert expected([send(new, old)]) == 80, "what grew, and what was overwritten"
    assert expected([send(snap("b", refer=20), old)]) == 30, "what was deleted is not sent"
    assert expected([send(new, old, (snap("i", refer=120, used=7),))]) == 87
    mark = Bookmark(dataset=Dataset("rpool/a"), name="m", guid=Guid("a"), createtxg=1, creation=1)
    assert expected([send(new, mark)]) == 18, "a bookmark does not say: a guess"
    resume = Resume(host="t", token="1-x", snapshot=new, dataset=Dataset("tank/a"), raw=False)
    assert expected([CreateBookmark(snapshot=new, name="m"), resume, send(new, old)]) == 230


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 3, 20, 100, 1000])
def test_every_disk_travels_once_in_no_more_sessions_than_it_takes(count: int, lanes: int) -> None:
    loads = [load(100 + number, number * 1000) for number in range(count)]
    sessions = pack(loads, lanes)
    assert sorted(one.dataset for session in sessions for one in session) == sorted(one.dataset for one in loads)
    assert all(sessions)
    assert len(sessions) <= max(min(lanes, count), -(-count // MANY))
    assert not sessions or max(map(len, sessions)) - min(map(len, sessions)) <= 2


def test_small_disks_of_a_guest_stay_together() -> None:
    loads = [load(number, 1000, vmid=100 + number // 5) for number in range(100, 200)]
    for session in pack(loads, 4):
        vmids = {one.vmid for one in session}
        assert sum(other.vmid in vmids for other in loads) == len(session)


def test_big_ones_go_alone_largest_first_and_one_lane_is_for_the_small_ones() -> None:
    big = [load(number, BIG + number * MIB) for number in range(1, 5)]
    small = [load(number, MIB) for number in range(10, 16)]
    sessions = pack([*small, *big], 2)
    assert [len(session) for session in sessions] == [1, 3, 3, 1, 1, 1]
    assert [session[0].size for session in sessions if session[0].size >= BIG] == sorted(
        (one.size for one in big), reverse=True
    )
    assert [len(session) for session in pack([*big, *small], 1)] == [6, 1, 1, 1, 1], "with one lane they go first"


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_the_guest_that_has_waited_longest_begins_first(lanes: int) -> None:
    """A run that is cut off day after day would leave the same guests behind for ever."""
    day, now = 86_400, 1_795_000_000
    small = [load(number, number * 1000, since=now - (number % 7) * day) for number in range(100, 300)]
    sessions = pack(small, lanes)
    begun = [session[0].since for session in sessions[:lanes]]
    assert begun == [now - 6 * day] * lanes
    for session in sessions:
        assert [one.since for one in session] == sorted(one.since for one in session)
    big = [load(number, BIG + number * MIB, since=now - number % 3 * day) for number in range(1, 7)]
    ordered = [session[0].dataset for session in pack(big, lanes)]
    assert ordered == [f"rpool/{number}" for number in (5, 2, 4, 1, 6, 3)], "and of equals the largest"


def test_a_guest_that_waits_is_not_left_for_last_because_it_is_compressed() -> None:
    loads = [load(number, MIB, since=100 * 3600, compress=number == 3) for number in range(1, 7)]
    waiting = dataclasses.replace(loads[2], since=0)
    assert pack([*loads[:2], waiting, *loads[3:]], 1)[0] == (waiting,)


def test_guests_of_one_run_have_waited_equally_long() -> None:
    """Their points were made one after another: that shall not decide which of them goes first."""
    start = 1_795_000_000 // 3600 * 3600
    loads = [load(number, number * BIG, since=start + 60 * number) for number in range(1, 9)]
    assert [session[0].size for session in pack(loads, 2)] == [number * BIG for number in range(8, 0, -1)]


def test_sessions_of_small_ones_are_even_in_bytes() -> None:
    sizes = [60 * MIB, 3 * MIB, 30 * MIB, 31 * MIB, 1 * MIB, 2 * MIB]
    sessions = pack([load(number + 1, size) for number, size in enumerate(sizes)], 2)
    sums = sorted(sum(one.size for one in session) for session in sessions)
    assert sums[1] - sums[0] <= 4 * MIB


def test_much_data_in_small_streams_is_finished_along_the_way() -> None:
    loads = [load(number, BIG - 1) for number in range(1, 41)]
    sessions = pack(loads, 2)
    assert len(sessions) >= 40 * (BIG - 1) // FULL
    assert max(sum(one.size for one in session) for session in sessions) <= FULL + BIG


@pytest.mark.parametrize(
    ("disks", "steps", "length"), [(100, 24, 60), (100, 80, 60), (256, 31, 250), (40, 500, 60), (1000, 1, 250)]
)
def test_no_command_line_is_longer_than_the_kernel_takes(disks: int, steps: int, length: int) -> None:
    """A target that was away for weeks gets many streams of each disk; one string of 128 KiB ends every try."""
    goal = send(snap("x"))
    loads = []
    for number in range(disks):
        name = Dataset(f"tank/{number}/".ljust(length, "a"))
        one = dataclasses.replace(load(number + 100, MIB), steps=(dataclasses.replace(goal, dataset=name),) * steps)
        loads.append(one)
    sessions = pack(loads, 4)
    assert sorted(one.vmid for session in sessions for one in session) == sorted(one.vmid for one in loads)
    for session in sessions:
        chains = [Chain(streams=tuple(s for s in one.steps if isinstance(s, Send))[:MOST]) for one in session]
        assert len(_consumers(TARGET, chains)[-1][-1]) < 128 << 10
        assert len(session) == 1 or all(len(one.steps) <= MOST for one in session), "only alone it is cut"


def test_a_suspect_breaks_nobody_elses_session() -> None:
    loads = [load(number, MIB, suspect=number == 3) for number in range(1, 7)]
    sessions = pack(loads, 1)
    assert [len(session) for session in sessions] == [5, 1]
    assert sessions[1][0].suspect


def test_a_session_compresses_all_or_nothing() -> None:
    sessions = pack([load(number, MIB, compress=number % 2 == 0) for number in range(1, 9)], 2)
    assert all(len({one.compress for one in session}) == 1 for session in sessions)
    assert sum(map(len, sessions)) == 8
