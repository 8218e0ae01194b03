"""The state of pools, and who we are: read without asking anything that could hang."""

from __future__ import annotations

from pathlib import Path

import pytest

from pve_zfsbackup.errors import PoolSuspendedError, PveError, ZfsError
from pve_zfsbackup.host.health import local_states, pool_properties
from pve_zfsbackup.host.identity import owner_id
from pve_zfsbackup.host.listing import list_source, list_target
from pve_zfsbackup.host.ssh import Destination, Host
from pve_zfsbackup.model import Dataset, Guid
from tests.fakes.node import FakeNode
from tests.fakes.pools import Clock, Pools
from tests.fakes.runner import HERE, FakeRunner, Fault

ROOT = Dataset("tank/backups")


@pytest.fixture
def pools() -> Pools:
    made = Pools("backup1", Clock())
    made.pool("tank")
    made.add(ROOT)
    made.add(f"{ROOT}/a", zvol=True, crypt="aes-256-gcm")
    made.snap(f"{ROOT}/a@one")
    return made


@pytest.fixture
def runner(pools: Pools, tmp_path: Path) -> FakeRunner:
    here = Pools(HERE, Clock())
    for name in ("rpool", "fast"):
        here.pool(name)
        here.add(f"{name}/data")
    return FakeRunner({"backup1": pools, HERE: here}, FakeNode(tmp_path), {"backup1.example": "backup1"})


@pytest.fixture
def target(runner: FakeRunner, tmp_path: Path) -> Host:
    files = {name: tmp_path / name for name in ("identity", "known_hosts", "control")}
    return Host(
        name="backup1",
        runner=runner,
        destination=Destination(host="backup1.example", user="b", port=22, **files),
    )


@pytest.mark.parametrize("state", ["ONLINE", "DEGRADED"])
def test_state_and_listing_in_one_round_trip(target: Host, pools: Pools, runner: FakeRunner, state: str) -> None:
    pools.states["tank"] = state
    pools.datasets[ROOT].props["pve-zfsbackup:owner"] = "pve-a"
    pools.room = 12345
    found = list_target(target, ROOT)
    assert found.health == {"tank": state}
    assert found.roots == {ROOT}
    assert (found.volumes[ROOT].owner, found.volumes[ROOT].available) == ("pve-a", 12345)
    (snap,) = found.volumes[Dataset(f"{ROOT}/a")].snapshots
    assert snap.ivset == Guid(str(pools.get(f"{ROOT}/a@one").ivset))
    assert [ran.argv[0] for ran in runner.ran] == ["grep", "zfs"]
    assert runner.connections == 1


def test_a_suspended_pool_is_not_listed(target: Host, pools: Pools, runner: FakeRunner) -> None:
    pools.states["tank"] = "SUSPENDED"
    with pytest.raises(PoolSuspendedError, match="backup1: pool tank is suspended"):
        list_target(target, ROOT)
    assert [ran.argv[0] for ran in runner.ran] == ["grep"]


def test_a_pool_whose_state_cannot_be_read_is_listed(target: Host, pools: Pools) -> None:
    pools.kstat = False
    found = list_target(target, ROOT)
    assert (found.health, found.roots) == ({}, {ROOT})


def test_a_root_that_does_not_exist_is_no_suspended_pool(target: Host) -> None:
    found = list_target(target, Dataset("tank/other"))
    assert (found.roots, found.volumes, found.health) == (frozenset(), {}, {"tank": "ONLINE"})


def test_any_other_trouble_raises(target: Host, runner: FakeRunner) -> None:
    runner.faults.append(Fault(words=("zfs", "list"), answer=(1, "cannot open 'tank': I/O error")))
    with pytest.raises(ZfsError, match="I/O error"):
        list_target(target, ROOT)
    runner.faults[:] = [Fault(words=("grep",), answer=(1, "denied: not on the list"))]
    with pytest.raises(ZfsError, match="denied"):
        list_target(target, ROOT)


def test_states_of_this_node(tmp_path: Path, runner: FakeRunner) -> None:
    for pool, state in (("rpool", "ONLINE"), ("fast", "SUSPENDED")):
        (tmp_path / pool).mkdir()
        (tmp_path / pool / "state").write_text(f"{state}\n")
    roots = [Dataset("rpool/data"), Dataset("fast/data"), Dataset("gone/data")]
    assert local_states(roots, tmp_path) == {"rpool": "ONLINE", "fast": "SUSPENDED"}
    found = list_source(Host(name="source", runner=runner), roots, kstat=tmp_path)
    assert found.roots == {"rpool/data"}
    assert "fast/data" not in runner.ran[-1].argv
    assert found.volumes[Dataset("rpool/data")].props["compression"] == "lz4"


def test_properties_of_a_pool(target: Host, pools: Pools) -> None:
    pools.features["feature@zstd_compress"] = "disabled"
    assert pool_properties(target, "tank")["feature@zstd_compress"] == "disabled"
    with pytest.raises(ZfsError, match="no such pool"):
        pool_properties(target, "other")


def test_who_we_are(tmp_path: Path) -> None:
    machine = tmp_path / "machine-id"
    with pytest.raises(PveError, match="neither"):
        owner_id(tmp_path, machine)
    machine.write_text("0123\n")
    alone = owner_id(tmp_path, machine)
    assert alone.startswith("host-")
    (tmp_path / "pve-root-ca.pem").write_text("cert\n")
    cluster = owner_id(tmp_path, machine)
    assert cluster.startswith("pve-")
    assert cluster == owner_id(tmp_path, tmp_path / "other")
    (tmp_path / "pve-root-ca.pem").write_text("cert2\n")
    assert owner_id(tmp_path, machine) != cluster
