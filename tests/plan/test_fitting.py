"""Whether all that is to be sent has room together, and who stands back where it has not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pve_zfsbackup.model import (
    SOURCE,
    Conflict,
    Dataset,
    Disk,
    Guid,
    Plan,
    PointDisk,
    PointId,
    ResumeToken,
    Snapshot,
    Vmid,
    Volume,
    encode_disks,
)
from pve_zfsbackup.plan.fitting import crowded_out
from pve_zfsbackup.plan.pairing import Sides, compare
from pve_zfsbackup.plan.replication import ReplicationPolicy, plan_replication
from tests.plan.worlds import HOST, POLICY, ROOT, listing, parent, stamp

STORE = Dataset(f"{ROOT}/local-zfs")


def disk(vmid: int, number: int = 0) -> Disk:
    name = f"vm-{vmid}-disk-{number}"
    return Disk(key=f"scsi{number}", volid=f"local-zfs:{name}", storage="local-zfs", volume=name,
                dataset=Dataset(f"rpool/data/{name}"))  # fmt: skip


def volume(vmid: int, sizes: Mapping[int, int], *, number: int = 0, disks: int = 1, replica: bool = False) -> Volume:
    """Snapshots by instant, each of so many bytes and all of them new."""
    text = encode_disks(
        PointDisk(key=f"scsi{n}", volid=disk(vmid, n).volid, guid=Guid(f"{vmid}{n}")) for n in range(disks)
    )
    own = disk(vmid, number)
    name = Dataset(f"{STORE}/{own.volume}") if replica else own.dataset
    assert name
    made = tuple(
        Snapshot(dataset=name, name=f"pzb:{stamp(at)}", guid=Guid(f"{vmid}{number}{at}"), createtxg=at, refer=size,
                 creation=1000 * at, written=size, point=PointId(f"{vmid}/{stamp(at)}"), disks=text,
                 volume=Guid(f"{vmid}{number}" if replica else ""))
        for at, size in sizes.items()
    )  # fmt: skip
    return Volume(name=name, guid=Guid(f"{9 if replica else ''}{vmid}{number}"), type="volume", snapshots=made)


def judge(
    source: list[Volume],
    target: list[Volume],
    limits: Mapping[str, int],
    disks: Mapping[int, int],
    *,
    of: str = "available",
    policy: ReplicationPolicy = POLICY,
) -> Mapping[Vmid, Conflict]:
    """`limits`: what is available in datasets of the target, or `of` is; `disks`: how many each guest has."""
    volumes = (parent(ROOT), parent(STORE), *target)
    there = listing(HOST, *(replace(v, **{of: limits.get(v.name)}) for v in volumes))  # type: ignore[arg-type]
    sides: Sides = compare(listing(SOURCE, *source), there)
    plans: dict[Vmid, tuple[Plan, ...]] = {}
    for vmid, count in disks.items():
        plans[Vmid(vmid)] = tuple(plan_replication(disk(vmid, n), sides, POLICY) for n in range(count))
    assert not any(plan.conflicts for own in plans.values() for plan in own), "alone each has room"
    return crowded_out(plans, sides, policy)


def three() -> tuple[list[Volume], dict[int, int]]:
    sizes = {100: 1000, 101: 3000, 102: 2000}
    return [volume(vmid, {1: size}) for vmid, size in sizes.items()], dict.fromkeys(sizes, 1)


def test_what_fits_together_is_sent() -> None:
    source, disks = three()
    assert judge(source, [], {ROOT: 6600}, disks) == {}
    assert judge(source, [], {}, disks) == {}, "nothing is known of the room"


def test_alone_each_would_fit_and_together_they_do_not() -> None:
    source, disks = three()
    out = judge(source, [], {ROOT: 6599}, disks)
    assert out.keys() == {100}, "the largest first, and whoever still fits"
    (conflict,) = out.values()
    assert conflict.kind == "target-full"
    assert "when guests 101, 102 have been sent" in conflict.message
    assert "quota" in conflict.resolve
    assert judge(source, [], {ROOT: 4500}, disks).keys() == {102}, "the small one fits where the second does not"
    assert judge(source, [], {ROOT: 3300}, disks).keys() == {100, 102}


def test_who_is_there_already_goes_first_and_the_longest_waiting_before_the_others() -> None:
    source = [volume(100, {1: 10, 3: 1000}), volume(101, {2: 10, 3: 1000}), volume(102, {3: 1050})]
    target = [volume(100, {1: 10}, replica=True), volume(101, {2: 10}, replica=True)]
    disks = dict.fromkeys((100, 101, 102), 1)
    assert judge(source, target, {ROOT: 2300}, disks).keys() == {102}
    assert judge(source, target, {ROOT: 1200}, disks).keys() == {101, 102}


def test_a_guest_is_sent_whole_or_not_at_all() -> None:
    source = [volume(100, {1: 1000}, number=n, disks=2) for n in range(2)] + [volume(101, {1: 900})]
    assert judge(source, [], {ROOT: 2199}, {100: 2, 101: 1}).keys() == {100}


def test_a_quota_below_the_root_binds_those_below_it() -> None:
    source, disks = three()
    assert judge(source, [], {ROOT: 10_000, STORE: 3500}, disks).keys() == {100, 102}


def test_a_limit_of_the_root_alone_binds_nothing_below_it() -> None:
    """A refquota, or somebody's reservation: below there is more."""
    source, disks = three()
    assert judge(source, [], {ROOT: 10, STORE: 6600}, disks) == {}


def test_of_an_interrupted_stream_only_the_rest_counts() -> None:
    source = [volume(100, {1: 1000, 2: 2000}), volume(101, {2: 1000})]
    there = volume(100, {1: 1000}, replica=True)
    token = ResumeToken(token="1-a", to_guid=Guid("10002"), from_guid=Guid("10001"), received=1500)
    disks = {100: 1, 101: 1}
    assert judge(source, [replace(there, resume=token)], {ROOT: 1650}, disks) == {}
    assert judge(source, [replace(there, resume=token)], {ROOT: 1649}, disks).keys() == {101}
    assert judge(source, [there], {ROOT: 2200}, disks).keys() == {101}


LIMITED = replace(POLICY, limited=True)


def test_snapshots_that_the_limit_does_not_leave_are_not_begun() -> None:
    """At its first byte, or after hours at its last, a receive would say that a space quota is exceeded."""
    source = [volume(100, {1: 10, 2: 10, 3: 10}), volume(101, {1: 10, 2: 10}), volume(102, {3: 10})]
    target = [volume(vmid, {1: 10}, replica=True) for vmid in (100, 101)]
    disks = dict.fromkeys((100, 101, 102), 1)

    def out(left: int) -> Mapping[Vmid, Conflict]:
        return judge(source, target, {ROOT: left}, disks, of="snapshots_left", policy=LIMITED)

    assert out(4) == {}
    assert out(3).keys() == {102}, "those that are there go first"
    (conflict,) = out(3).values()
    assert conflict.kind == "target-limit"
    told = f"snapshot_limit of {ROOT} on {HOST} leaves 0 when guests 100, 101 have been sent, and 1 would be made"
    assert conflict.message == told
    assert f"zfs get snapshot_limit,snapshot_count {ROOT}" in conflict.resolve
    assert conflict.evidence == (f"{STORE}/vm-102-disk-0: 1 snapshots",)
    assert out(1).keys() == {100, 102}
    assert out(0).keys() == {100, 101, 102}


def test_snapshots_of_one_package_count_each() -> None:
    source = [volume(100, {1: 10, 2: 10, 3: 10})]
    target = [volume(100, {1: 10}, replica=True)]
    assert judge(source, target, {STORE: 1}, {100: 1}, of="snapshots_left", policy=LIMITED).keys() == {100}
    minimal = replace(LIMITED, minimal=True)
    assert judge(source, target, {STORE: 1}, {100: 1}, of="snapshots_left", policy=minimal).keys() == {100}
    assert judge(source, target, {STORE: 2}, {100: 1}, of="snapshots_left", policy=LIMITED) == {}


def test_new_replicas_count_against_the_limit_of_datasets() -> None:
    source = [volume(100, {1: 10, 2: 10}), *(volume(101, {1: 10}, number=n, disks=2) for n in range(2))]
    target = [volume(100, {1: 10}, replica=True)]
    disks = {100: 1, 101: 2}
    out = judge(source, target, {ROOT: 1}, disks, of="filesystems_left", policy=LIMITED)
    assert out.keys() == {101}, "an increment makes none"
    assert "filesystem_limit" in out[Vmid(101)].message
    assert judge(source, target, {ROOT: 2}, disks, of="filesystems_left", policy=LIMITED) == {}


def test_root_is_bound_by_no_such_limit() -> None:
    source, disks = three()
    for kind in ("snapshots_left", "filesystems_left"):
        assert judge(source, [], {ROOT: 0}, disks, of=kind) == {}
        assert judge(source, [], {ROOT: 0}, disks, of=kind, policy=LIMITED).keys() == disks.keys()
