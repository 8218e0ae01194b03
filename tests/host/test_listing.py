"""One `zfs list` per host: what is ours, what is missing, and what must never be guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pve_zfsbackup.errors import DatasetNotFoundError, ZfsError
from pve_zfsbackup.host import listing
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.rows import LATEST
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import Dataset, Guid
from pve_zfsbackup.plan.points import points
from tests.fakes.node import FakeNode
from tests.fakes.pools import Clock, Mark, Package, Partial, Pools
from tests.fakes.runner import HERE, FakeRunner, Fault

SRC = Dataset("rpool/data/vm-100-disk-0")
ROOT = Dataset("rpool/data")
STAMP = "20261118T101010Z-ab12"
OURS = {"pve-zfsbackup:point": f"100/{STAMP}", "pve-zfsbackup:disks": "scsi0=l:v#1"}


@pytest.fixture
def pools() -> Pools:
    made = Pools(HERE, Clock())
    made.pool("rpool")
    made.add(ROOT)
    made.add(SRC, zvol=True)
    return made


@pytest.fixture
def runner(pools: Pools, tmp_path: Path) -> FakeRunner:
    return FakeRunner({HERE: pools}, FakeNode(tmp_path), {})


@pytest.fixture
def host(runner: FakeRunner) -> Host:
    return Host(name="source", runner=runner)


def test_a_snapshot_of_ours(host: Host, pools: Pools) -> None:
    made = pools.snap(f"{SRC}@pzb:{STAMP}")
    made.props |= {**OURS, "pve-zfsbackup:consistency": "quiesced", "pve-zfsbackup:volume": "77"}
    made.holds |= {"a", "b"}
    (found,) = list_host(host, [ROOT]).volumes[SRC].snapshots
    assert (found.point, found.disks, found.consistency, found.volume) == (
        f"100/{STAMP}", "scsi0=l:v#1", "quiesced", "77",
    )  # fmt: skip
    assert (found.guid, found.createtxg, found.creation) == (str(made.guid), made.createtxg, made.creation)
    assert (found.userrefs, found.clones, found.refer) == (2, False, made.refer)


def test_what_limits_leave(host: Host, pools: Pools) -> None:
    def left(name: str) -> tuple[int | None, int | None]:
        found = list_host(host, [ROOT]).volumes[Dataset(name)]
        return found.snapshots_left, found.filesystems_left

    pools.snap(f"{SRC}@a")
    assert left(ROOT) == (None, None)
    pools.datasets[ROOT].props |= {"snapshot_limit": "3", "filesystem_limit": "1"}
    assert left(ROOT) == (2, 0)
    assert left(SRC) == (None, None), "it has none of its own"
    pools.datasets[SRC].props["snapshot_limit"] = "0"
    assert left(SRC) == (0, None)


@pytest.mark.parametrize(
    ("name", "props"),
    [
        ("before-upgrade", {}),
        (f"pzb:{STAMP}", {}),
        ("__replicate_100-0_1795000000__", OURS),
        (f"pzb:{STAMP[:-1]}3", OURS),
        (f"pzb:{STAMP}x", OURS),
        (f"pzb:{STAMP}", {"pve-zfsbackup:point": f"web/{STAMP}"}),
        (f"pzb:{STAMP}", {"pve-zfsbackup:point": STAMP}),
        (f"pzb:{STAMP}", {"pve-zfsbackup:point": f"\N{SUPERSCRIPT TWO}/{STAMP}"}),
        (f"pzb:{STAMP}", {"pve-zfsbackup:point": f"{'9' * 5000}/{STAMP}"}),
        (f"pzb:{STAMP}", {"pve-zfsbackup:point": f"0100/{STAMP}"}),
        (f"x-pzb:{STAMP}", OURS),
    ],
)
@pytest.mark.parametrize("inherited", [False, True])
def test_name_and_property_must_agree_to_be_ours(
    host: Host, pools: Pools, name: str, props: dict[str, str], inherited: bool
) -> None:
    made = pools.snap(f"{SRC}@{name}")
    (pools.datasets[SRC].props if inherited else made.props).update(props)
    seen = list_host(host, [ROOT])
    (found,) = seen.volumes[SRC].snapshots
    assert (found.point, found.disks, found.consistency, found.volume) == (None, "", "", "")
    assert points(seen) == (), "and what a target makes up keeps nobody from knowing the others"


def test_order_is_createtxg_not_name_nor_time(host: Host, pools: Pools) -> None:
    for name in ("c", "a", "b"):
        pools.clock.now -= 1000
        pools.snap(f"{SRC}@{name}")
    assert [snap.name for snap in list_host(host, [ROOT]).volumes[SRC].snapshots] == ["c", "a", "b"]


@pytest.mark.parametrize("told", [10**15, 2**63, 2**64 - 1])
def test_a_time_that_no_calendar_has_is_the_last_one_that_has(host: Host, pools: Pools, told: int) -> None:
    """Streams bring it along. It counts as the future, where nothing is pruned; what is shown of it can be shown."""
    pools.snap(f"{SRC}@a").creation = told
    made = pools.get(f"{SRC}@a")
    pools.datasets[SRC].marks["b"] = Mark(name="b", guid=made.guid, createtxg=made.createtxg, creation=told)
    volume = list_host(host, [SRC]).volumes[SRC]
    for found in (*volume.snapshots, *volume.bookmarks):
        assert found.creation == LATEST
        assert datetime.fromtimestamp(found.creation, ZoneInfo("Pacific/Kiritimati")).isocalendar().year > 9000


def test_a_time_that_is_no_number_is_not_understood(host: Host, pools: Pools) -> None:
    pools.snap(f"{SRC}@a").creation = "soon"  # type: ignore[assignment]
    with pytest.raises(ZfsError, match="not understood"):
        list_host(host, [SRC])


def test_clones_bookmarks_origin_and_encryption(host: Host, pools: Pools, runner: FakeRunner) -> None:
    pools.snap(f"{SRC}@a")
    for command in (("bookmark", f"{SRC}@a", f"{SRC}#m"), ("clone", f"{SRC}@a", "rpool/data/clone")):
        runner.run(("zfs", *command))
    pools.add("rpool/data/crypt", crypt="aes-256-gcm").key = False
    volumes = list_host(host, [ROOT]).volumes
    assert volumes[SRC].snapshots[0].clones
    assert [mark.full_name for mark in volumes[SRC].bookmarks] == [f"{SRC}#m"]
    assert volumes[Dataset("rpool/data/clone")].origin == f"{SRC}@a"
    crypt = volumes[Dataset("rpool/data/crypt")]
    assert (crypt.encrypted, crypt.keystatus, crypt.type) == (True, "unavailable", "filesystem")
    assert (volumes[SRC].encrypted, volumes[SRC].type) == (False, "volume")


def test_nested_roots_list_nothing_twice(host: Host, pools: Pools, runner: FakeRunner) -> None:
    pools.snap(f"{SRC}@a")
    found = list_host(host, [ROOT, SRC, Dataset("rpool")])
    assert len(found.volumes[SRC].snapshots) == 1
    assert len(runner.ran) == 1


def test_depth_stops_below_the_disks(host: Host, pools: Pools) -> None:
    pools.add(f"{SRC}/deep")
    pools.snap(f"{SRC}@a")
    assert list_host(host, [ROOT], depth=2).volumes.keys() == {ROOT, SRC, f"{SRC}/deep"}
    assert list_host(host, [ROOT], depth=1).volumes.keys() == {ROOT, SRC}
    assert not list_host(host, [ROOT], depth=1).volumes[SRC].snapshots


@pytest.fixture
def kstat(tmp_path: Path) -> Path:
    """Of a pool with many disks that are in use here."""
    for number in range(listing.MANY):
        (tmp_path / "kstat/rpool").mkdir(parents=True, exist_ok=True)
        text = f"47 1 0x01 12 3264 1 2\nname type data\ndataset_name 7    rpool/data/vm-{number}-disk-0\nwrites 4 0\n"
        (tmp_path / f"kstat/rpool/objset-{number:x}").write_text(text)
    return tmp_path / "kstat"


def test_many_disks_are_listed_by_processes_beside_each_other_and_nothing_else_is_different(
    host: Host, pools: Pools, runner: FakeRunner, kstat: Path
) -> None:
    for number in range(45):
        pools.snap(f"{pools.add(f'rpool/data/vm-{number + 500}-disk-0', zvol=True).name}@a")
    pools.add("rpool/data/a")
    pools.add("rpool/data/a/b")
    for name in (ROOT, "rpool", SRC, "rpool/data/a/b"):
        pools.snap(f"{name}@a")
        pools.snap(f"{name}@pzb:{STAMP}").props |= OURS
        runner.run(("zfs", "bookmark", f"{name}@a", f"{name}#m"))
    for roots in ([ROOT], ["rpool", ROOT, "rpool/gone"], [ROOT, "rpool/data/a"], ["rpool/gone", "nopool/x"]):
        names = [Dataset(name) for name in roots]
        one = listing.list_source(host, names, kstat=kstat / "none")
        before = len(runner.ran)
        assert listing.list_source(host, names, kstat=kstat) == one
        assert len(runner.ran) - before == (2 + 5 if ROOT in roots else 1)
    assert one.volumes == {}


def test_what_else_of_the_pool_is_in_use_makes_no_further_process(
    host: Host, pools: Pools, runner: FakeRunner, kstat: Path
) -> None:
    pools.add("rpool/vms")
    assert listing.list_source(host, [Dataset("rpool/vms"), Dataset("rpool")], kstat=kstat).roots
    assert len(runner.ran) == 1


def test_a_row_that_is_none_is_not_passed_over(host: Host, runner: FakeRunner, kstat: Path) -> None:
    def broken(argv: Sequence[str], **more: Any) -> Completed:
        done = runner.run(argv, **more)
        return replace(done, stdout=f"filesystem\n{done.stdout}") if argv[-1] == ROOT and "all" in argv else done

    other = replace(host, runner=type("Broken", (), {"run": staticmethod(broken)})())
    with pytest.raises(ZfsError, match="columns"):
        listing.list_source(other, [ROOT], kstat=kstat)


def test_who_interrupts_a_listing_does_not_wait_for_all_of_it(
    host: Host, runner: FakeRunner, kstat: Path
) -> None:
    runner.faults.append(Fault(words=("list", "all"), error=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        listing.list_source(host, [ROOT], kstat=kstat)
    assert runner.cancelled


@pytest.mark.parametrize("nth", [1, 2, 3, 6])
def test_one_of_many_processes_that_fails_fails_the_listing(
    host: Host, pools: Pools, runner: FakeRunner, kstat: Path, nth: int
) -> None:
    for number in range(45):
        pools.add(f"rpool/data/vm-{number + 500}-disk-0", zvol=True)
    runner.faults.append(Fault(words=("list",), nth=nth, answer=(1, "cannot iterate filesystems: I/O error")))
    with pytest.raises(ZfsError, match="I/O error"):
        listing.list_source(host, [ROOT], kstat=kstat)


def test_a_disk_that_goes_while_it_is_listed_is_not_there_without_its_snapshots(
    host: Host, pools: Pools, runner: FakeRunner, kstat: Path
) -> None:
    pools.snap(f"{SRC}@a")
    text = f"cannot open '{SRC}': dataset does not exist"
    runner.faults.append(Fault(words=("list", SRC), answer=(1, text)))
    assert listing.list_source(host, [ROOT], kstat=kstat).volumes.keys() == {ROOT}


def test_missing_roots_are_left_out_and_the_others_are_there(host: Host) -> None:
    found = list_host(host, [ROOT, Dataset("rpool/gone"), Dataset("nopool/x")])
    assert found.roots == {ROOT}
    assert SRC in found.volumes
    assert list_host(host, [Dataset("rpool/gone")]).roots == frozenset()
    with pytest.raises(DatasetNotFoundError, match="source: dataset rpool/gone"):
        listing.require(list_host(host, [Dataset("rpool/gone")]), Dataset("rpool/gone"))


@pytest.mark.parametrize(
    "text",
    [
        "cannot open 'rpool/data': I/O error",
        "cannot open 'rpool/data': permission denied",
        "cannot open 'rpool/gone': dataset does not exist\ncannot iterate filesystems: I/O error",
        "internal error: out of memory",
        "",
    ],
)
def test_any_other_trouble_is_never_absence(host: Host, runner: FakeRunner, text: str) -> None:
    runner.faults.append(Fault(words=("list",), answer=(1, text)))
    with pytest.raises(ZfsError):
        list_host(host, [ROOT, Dataset("rpool/gone")])


def test_a_line_that_is_not_understood_is_not_skipped(host: Host, pools: Pools) -> None:
    pools.snap(f"{SRC}@a").props["pve-zfsbackup:disks"] = "evil\nrpool/other\t1"
    with pytest.raises(ZfsError, match="columns instead of 28"):
        list_host(host, [ROOT])


def test_without_roots_nothing_is_asked(host: Host, runner: FakeRunner) -> None:
    assert list_host(host, []).volumes == {}
    assert not runner.ran


# -- resume tokens


def half(pools: Pools, base: int, *, raw: bool = False) -> Partial:
    made = Partial(
        package=Package(
            origin=f"{SRC}@pzb:{STAMP}", guid=2**63 + 5, creation=0, content=(), refer=0, base=base, size=9, raw=raw
        ),
        done=4,
    )
    pools.add("rpool/half", zvol=True).partial = made
    return made


@pytest.mark.parametrize("base", [0, 2**64 - 1])
@pytest.mark.parametrize("raw", [False, True])
def test_a_token_tells_what_it_is_for_even_when_that_is_gone(host: Host, pools: Pools, base: int, raw: bool) -> None:
    token = half(pools, base, raw=raw).token
    found = list_host(host, [Dataset("rpool")]).volumes[Dataset("rpool/half")].resume
    assert found is not None
    assert (found.token, found.to_guid, found.raw) == (token, str(2**63 + 5), raw)
    assert found.from_guid == (str(base) if base else "")


# -- reading back


def test_guids_read_back(host: Host, pools: Pools, runner: FakeRunner) -> None:
    made = pools.snap(f"{SRC}@a")
    assert listing.read_guids(host, [SRC, ROOT]) == {SRC: {Guid(str(made.guid))}, ROOT: frozenset()}
    gone = Dataset("rpool/gone")
    assert listing.read_guids(host, [SRC, gone]) == {SRC: {Guid(str(made.guid))}, gone: frozenset()}
    for answer in ((1, f"cannot open '{gone}': dataset does not exist\ncannot open '{SRC}': I/O error"), (1, ""),
                   (137, f"cannot open '{gone}': dataset does not exist")):  # fmt: skip
        runner.faults = [Fault(words=("list",), answer=answer)]
        with pytest.raises(ZfsError):
            listing.read_guids(host, [SRC, gone])
    runner.faults.clear()
    runner.ran.clear()
    assert listing.read_guids(host, []) == {}
    assert not runner.ran


def test_guids_of_many_are_read_in_lines_the_kernel_takes(host: Host, pools: Pools, runner: FakeRunner) -> None:
    names = [Dataset(f"rpool/data/{number}-".ljust(250, "a")) for number in range(1000)]
    made = {name: Guid(str(pools.snap(f"{name}@a").guid)) for name in names if pools.add(name)}
    assert listing.read_guids(host, names) == {name: {guid} for name, guid in made.items()}
    assert len(runner.ran) == 3
    assert max(len(" ".join(ran.argv)) for ran in runner.ran) < 128 << 10


def test_properties_of_points_are_only_ours_and_only_local(host: Host, pools: Pools) -> None:
    pools.datasets[SRC].props["pve-zfsbackup:disks"] = "inherited"
    made = pools.snap(f"{SRC}@pzb:{STAMP}")
    made.props |= {"pve-zfsbackup:point": "100/x", "pve-zfsbackup:conf": "a\tb", "com.sun:auto": "1"}
    (snap,) = list_host(host, [ROOT]).volumes[SRC].snapshots
    assert listing.point_properties(host, [snap]) == {
        snap.full_name: {"pve-zfsbackup:point": "100/x", "pve-zfsbackup:conf": "a\tb"}
    }
    del pools.datasets[SRC].snaps[snap.name]
    with pytest.raises(DatasetNotFoundError):
        listing.point_properties(host, [snap])
