"""What destroying would free: neighbours as ranges, one command per dataset, and nothing where nobody says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.host.cost import freed, ranges
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.ssh import Destination, Host
from pve_zfsbackup.model import Dataset, Snapshot, Volume
from tests.fakes.node import FakeNode
from tests.fakes.pools import Clock, Pools
from tests.fakes.runner import HERE, FakeRunner, Fault

ONE, TWO, THREE = Dataset("rpool/one"), Dataset("rpool/two"), Dataset("rpool/three")


@pytest.fixture
def runner(tmp_path: Path) -> FakeRunner:
    """Three datasets, each with the snapshots 1 to 5, the second one of them somebody else's."""
    pools = {HERE: Pools(HERE, Clock())}
    pools[HERE].pool("rpool")
    for dataset in (ONE, TWO, THREE):
        pools[HERE].add(dataset, zvol=True)
        for number in range(1, 6):
            pools[HERE].write(dataset, 1000 * number)
            pools[HERE].snap(f"{dataset}@{'daily' if number == 2 else f'pzb:{number}'}")
    return FakeRunner(pools, FakeNode(tmp_path), {"node.example": HERE})


@pytest.fixture(params=["local", "ssh"])
def host(request: pytest.FixtureRequest, runner: FakeRunner, tmp_path: Path) -> Host:
    if request.param == "local":
        return Host(name="source", runner=runner)
    key = tmp_path / "key"
    there = Destination(host="node.example", user="b", port=22, identity=key, known_hosts=key, control=tmp_path / "c")
    return Host(name="backup1", runner=runner, destination=there)


def volumes(host: Host) -> list[Volume]:
    found = list_host(host, [ONE, TWO, THREE]).volumes
    return [found[name] for name in (ONE, TWO, THREE)]


def own(volume: Volume) -> list[Snapshot]:
    return [snapshot for snapshot in volume.snapshots if snapshot.name.startswith("pzb:")]


def test_neighbours_are_a_range_and_what_is_not_meant_is_in_none(host: Host) -> None:
    volume = volumes(host)[0]
    assert ranges(volume, own(volume)) == ["pzb:1", "pzb:3%pzb:5"]
    assert ranges(volume, own(volume)[::-1]) == ["pzb:1", "pzb:3%pzb:5"], "in whatever order"
    assert ranges(volume, [own(volume)[0], own(volume)[2]]) == ["pzb:1", "pzb:4"]
    assert ranges(volume, volume.snapshots) == ["pzb:1%pzb:5"]
    assert ranges(volume, []) == []


def test_each_dataset_is_asked_once(host: Host, runner: FakeRunner) -> None:
    groups = [(volume, own(volume)) for volume in volumes(host)]
    before = len(runner.ran)
    assert freed(host, groups) == [1000 + 3000 + 4000 + 5000] * 3
    asked = [ran.argv for ran in runner.ran[before:] if "destroy" in ran.argv]
    assert [argv[-1] for argv in asked] == [f"{name}@pzb:1,pzb:3%pzb:5" for name in (ONE, TWO, THREE)]
    assert not runner.changes


def test_one_that_cannot_be_told_does_not_hide_the_others(host: Host) -> None:
    one, two, three = volumes(host)
    gone = replace(two, snapshots=(replace(two.snapshots[0], name="pzb:gone"),))
    assert freed(host, [(one, own(one)), (gone, gone.snapshots), (three, own(three))]) == [13000, None, 13000]
    assert freed(host, [(gone, gone.snapshots), (gone, gone.snapshots), (one, own(one)[:1])]) == [None, None, 1000]
    assert freed(host, [(one, []), (two, own(two)[:1])]) == [None, 1000]
    assert freed(host, []) == []


def test_a_command_that_fails_after_it_was_asked_tells_nothing(host: Host, runner: FakeRunner) -> None:
    runner.faults.append(Fault(words=("destroy", "-nvp"), nth=2, answer=(1, "internal error")))
    assert freed(host, [(volume, own(volume)) for volume in volumes(host)]) == [13000, None, 13000]


def test_more_ranges_than_a_command_takes_are_not_added_up(host: Host) -> None:
    one = volumes(host)[0]
    many = tuple(replace(one.snapshots[0], name=f"pzb:{number:0>60}") for number in range(4000))
    assert freed(host, [(replace(one, snapshots=many), many[::2])]) == [None]
    assert len(ranges(replace(one, snapshots=many), many)[0]) < 200
