"""Marks, holds and releases of many disks, side by side: what is let go too early, what a failure leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pve_zfsbackup.errors import ZfsError
from pve_zfsbackup.host import settling
from pve_zfsbackup.host.ssh import Destination, Host
from pve_zfsbackup.model import SOURCE, Dataset, Guid, Hold, Release, Snapshot
from tests.fakes.node import FakeNode
from tests.fakes.pools import Clock, Pools, Snap
from tests.fakes.runner import FakeRunner, Fault

DISKS = 8
TAG = "pve-zfsbackup"


@pytest.fixture
def runner(tmp_path: Path) -> FakeRunner:
    pools = Pools("backup1", Clock())
    pools.pool("tank")
    return FakeRunner({"backup1": pools}, FakeNode(tmp_path), {"backup1.example": "backup1"})


@pytest.fixture
def hosts(runner: FakeRunner, tmp_path: Path) -> dict[str, Host]:
    place = Destination(
        host="backup1.example", user="b", port=22, identity=Path("/i"), known_hosts=Path("/k"), control=tmp_path / "s"
    )
    target = Host(name="backup1", runner=runner, destination=place)
    return {SOURCE: Host(name=SOURCE, runner=runner), "backup1": target}


def replica(runner: FakeRunner, name: str, *, held: bool) -> Snapshot:
    pools = runner.pools["backup1"]
    pools.add(name, zvol=True)
    made = pools.snap(f"{name}@pzb:20261118T000000Z-0000")
    if held:
        made.holds.add(TAG)
    guid, name_ = Guid(str(made.guid)), made.name
    return Snapshot(dataset=Dataset(name), name=name_, guid=guid, createtxg=made.createtxg, creation=made.creation)


def here(runner: FakeRunner, snapshot: Snapshot) -> Snap:
    return runner.pools["backup1"].get(snapshot.full_name)


@pytest.fixture
def generations(runner: FakeRunner) -> list[tuple[Snapshot, Snapshot]]:
    """Disks that were made anew: what is held is of the generation before, in a dataset of its own."""
    numbers = range(DISKS)
    return [
        (replica(runner, f"tank/d{n}", held=True), replica(runner, f"tank/d{n}-g0123abcd", held=False)) for n in numbers
    ]


def steps(generations: list[tuple[Snapshot, Snapshot]]) -> list[Hold | Release]:
    """In the order in which they are executed."""
    holds = [Hold(host="backup1", snapshot=new, tag=TAG) for _, new in generations]
    return [*holds, *(Release(host="backup1", snapshot=old, tag=TAG) for old, _ in generations)]


def test_an_older_generation_is_let_go_when_the_newer_is_held(
    hosts: dict[str, Host], runner: FakeRunner, generations: list[tuple[Snapshot, Snapshot]]
) -> None:
    settling.settle(hosts, steps(generations))
    assert [(here(runner, old).holds, here(runner, new).holds) for old, new in generations] == [(set(), {TAG})] * DISKS
    assert len(runner.lines) == 2 * settling.SIDE_BY_SIDE


@pytest.mark.parametrize("unlucky", range(DISKS))
def test_an_older_generation_stays_held_where_the_newer_cannot_be(
    hosts: dict[str, Host], runner: FakeRunner, generations: list[tuple[Snapshot, Snapshot]], unlucky: int
) -> None:
    """They are different datasets, and went side by side: the old one was let go whatever became of the new one."""
    full = (1, f"cannot hold snapshot '{generations[unlucky][1].full_name}': out of space")
    runner.faults.append(Fault(words=("hold", generations[unlucky][1].full_name), answer=full, again=True))
    with pytest.raises(ZfsError, match="out of space"):
        settling.settle(hosts, steps(generations))
    old, new = generations[unlucky]
    assert (here(runner, old).holds, here(runner, new).holds) == ({TAG}, set())
