"""Points are put together from snapshots by dataset guid, and by name where the guid cannot tell."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pve_zfsbackup.model import (
    SOURCE,
    Consistency,
    Dataset,
    Guid,
    Listing,
    PointDisk,
    PointId,
    Snapshot,
    Vmid,
    Volume,
    decode_disks,
    encode_disks,
)
from pve_zfsbackup.plan.points import by_guest, complete_points, points, points_of
from tests.plan.worlds import HOST, ONE, OTHER, OTHER_GUID, ROOT, SOURCE_GUID, TWO, ZVOL, listing, snapshot, stamp


def volume(name: str, guid: Guid | str, *snapshots: Snapshot) -> Volume:
    own = tuple(replace(found, dataset=Dataset(name)) for found in snapshots)
    return Volume(name=Dataset(name), guid=Guid(guid), type="volume", snapshots=own)


def taken(number: int, disks: str = TWO, **changes: object) -> Snapshot:
    return replace(snapshot(number, ZVOL, disks=disks), **changes)  # type: ignore[arg-type]


def test_disks_survive_encoding() -> None:
    volids = ["local-zfs:vm-100-disk-0", "local-zfs:base-102-disk-0/vm-103-disk-0", "b:subvol-1-d:_.-x"]
    disks = [PointDisk(key=f"scsi{n}", volid=volid, guid=Guid(str(n))) for n, volid in enumerate(volids)]
    disks.append(replace(disks[0], key="scsi9", same=Guid("18446744073709551615")))
    assert decode_disks(encode_disks(disks)) == tuple(disks)
    assert encode_disks(reversed(disks)) == encode_disks(disks)


@pytest.mark.parametrize("text", ["", ",", "scsi0", "=x#1", "scsi0=#1", "\x00,=,#"])
def test_unreadable_disks_are_left_out(text: str) -> None:
    assert decode_disks(text) == ()


def test_a_point_is_complete_when_every_disk_is_there() -> None:
    first = volume(ZVOL, SOURCE_GUID, taken(1), taken(2), taken(3, ONE))
    second = volume(OTHER, OTHER_GUID, taken(2))
    found = points(listing(SOURCE, second, first))
    assert [(point.stamp, point.complete) for point in found] == [
        (stamp(1), False),
        (stamp(2), True),
        (stamp(3), True),
    ]
    assert {key: there.dataset for key, there in found[1].snapshots.items()} == {"scsi0": ZVOL, "scsi1": OTHER}
    assert found[1].disks == {"scsi0": "local-zfs:vm-100-disk-0", "scsi1": "fast:vm-100-disk-0"}
    assert complete_points(listing(SOURCE, first, second)) == {found[1].id, found[2].id}


def test_foreign_snapshots_and_unmarked_ones_are_no_points() -> None:
    unmarked = replace(taken(1), point=None, disks="")
    assert points(listing(HOST, volume(ZVOL, "1", unmarked, snapshot(2, ZVOL, ours=False)))) == ()
    odd = replace(taken(1), point=PointId("100"))
    assert points(listing(SOURCE, volume(ZVOL, SOURCE_GUID, odd))) == ()


def test_renamed_datasets_are_known_by_their_guid() -> None:
    """Two disks that swapped their names, even."""
    first = volume(OTHER, SOURCE_GUID, taken(1))
    second = volume(ZVOL, OTHER_GUID, taken(1))
    (point,) = points(listing(SOURCE, first, second))
    assert point.complete
    assert {key: there.dataset for key, there in point.snapshots.items()} == {"scsi0": OTHER, "scsi1": ZVOL}


def test_replicas_are_known_by_the_guid_of_their_source() -> None:
    names = ["tank/b/local-zfs/vm-100-disk-0-g12345678", "tank/b/anything"]
    first = volume(names[0], "7", taken(1, volume=SOURCE_GUID))
    second = volume(names[1], "8", taken(1, volume=OTHER_GUID))
    (point,) = points(listing(HOST, first, second))
    assert {key: there.dataset for key, there in point.snapshots.items()} == {"scsi0": names[0], "scsi1": names[1]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("tank/b/local-zfs/vm-100-disk-0", "tank/b/fast/vm-100-disk-0"), {"scsi0": 0, "scsi1": 1}),
        (("tank/b/fast/vm-100-disk-0", "tank/b/local-zfs/vm-100-disk-0-g0123abcd"), {"scsi1": 0, "scsi0": 1}),
        (("rpool/data/vm-100-disk-0", "tank/b/fast/vm-100-disk-0"), {"scsi1": 1}),
    ],
)
def test_without_a_known_guid_storage_and_volume_name_decide(names: tuple[str, str], expected: dict[str, int]) -> None:
    """After `zfs send -R` the properties lie in datasets with new guids."""
    made = [volume(name, str(n), taken(1)) for n, name in enumerate(names)]
    (point,) = points(listing(HOST, *made))
    found = {key: there.dataset for key, there in point.snapshots.items() if key in point.disks}
    assert found.items() >= {key: names[n] for key, n in expected.items()}.items()
    assert sorted(there.dataset for there in point.snapshots.values()) == sorted(names)


def test_a_migrated_guests_disks_of_one_name_are_told_apart_by_where_their_storages_are() -> None:
    """Proxmox numbers volumes per storage: two disks are often both `vm-100-disk-0`."""
    pools = ["apool/data/vm-100-disk-0", "zpool/data/vm-100-disk-0"]
    here = TWO.replace(SOURCE_GUID, "21").replace(OTHER_GUID, "22")
    for first, second in (pools, pools[::-1]):
        old = [volume(first, "21", taken(1)), volume(second, "22", taken(1))]
        assert [point.complete for point in points(listing(SOURCE, *old))] == [False]
        new = [volume(first, "21", taken(1), taken(3, here)), volume(second, "22", taken(1), taken(3, here))]
        found = points(listing(SOURCE, *new))
        assert [point.complete for point in found] == [True, True]
        assert {point.snapshots["scsi0"].dataset for point in found} == {first}


def test_what_fits_no_disk_is_not_lost() -> None:
    """It would never be pruned otherwise."""
    stray = volume("tank/b/x/vm-999-disk-7", "5", taken(1))
    right = volume("tank/b/local-zfs/vm-100-disk-0", "6", taken(1, volume=SOURCE_GUID))
    (point,) = points(listing(HOST, stray, right))
    assert set(point.snapshots) == {"scsi0", "tank/b/x/vm-999-disk-7"}
    assert not point.complete


def test_a_linked_clone_is_known_by_the_last_part_of_its_volid() -> None:
    disks = encode_disks([PointDisk(key="scsi0", volid="local-zfs:base-102-disk-0/vm-103-disk-0", guid=Guid("4"))])
    (point,) = points(listing(HOST, volume("tank/b/local-zfs/vm-103-disk-0", "6", taken(1, disks))))
    assert point.complete


def test_gone_is_told_from_missing_on_the_source_only() -> None:
    first = volume(ZVOL, SOURCE_GUID, taken(1))
    (point,) = points(listing(SOURCE, first))
    assert (point.complete, point.gone) == (False, {"scsi1"})
    (point,) = points(listing(SOURCE, first, volume(OTHER, OTHER_GUID)))
    assert (point.complete, point.gone) == (False, set())
    (point,) = points(listing(HOST, first))
    assert point.gone == set()


def test_two_generations_of_a_disk_carry_different_points() -> None:
    old = volume("tank/b/local-zfs/vm-100-disk-0", "7", taken(1, ONE, volume=SOURCE_GUID))
    other = encode_disks([PointDisk(key="scsi0", volid="local-zfs:vm-100-disk-0", guid=Guid("55"))])
    new = volume("tank/b/local-zfs/vm-100-disk-0-g00000037", "8", taken(2, other, volume=Guid("55")))
    found = points(listing(HOST, new, old))
    assert [point.complete for point in found] == [True, True]
    assert [point.snapshots["scsi0"].dataset for point in found] == [old.name, new.name]


def test_consistency_is_the_worst_when_the_disks_disagree() -> None:
    first = volume(ZVOL, SOURCE_GUID, taken(1))
    second = volume(OTHER, OTHER_GUID, taken(1, consistency="offline"))
    (point,) = points(listing(SOURCE, first, second))
    assert point.consistency == Consistency.CRASH
    (point,) = points(listing(SOURCE, first))
    assert point.consistency == Consistency.QUIESCED


def test_order_and_grouping_do_not_depend_on_the_listing() -> None:
    volumes = [
        volume(ZVOL, SOURCE_GUID, taken(2), taken(1), taken(3)),
        volume(OTHER, OTHER_GUID, taken(3), taken(1)),
        volume("rpool/data/vm-200-disk-0", "9", taken(1, ONE, point=PointId(f"200/{stamp(1)}"))),
    ]
    expected = points(listing(SOURCE, *volumes))
    assert [point.creation for point in expected] == sorted(point.creation for point in expected)
    for order in itertools.permutations(volumes):
        assert points(listing(SOURCE, *order)) == expected
    guests = by_guest(expected)
    assert sorted(guests) == [100, 200]
    assert points_of(listing(SOURCE, *volumes), Vmid(100)) == guests[Vmid(100)]
    assert [point.id for point in guests[Vmid(200)]] == [f"200/{stamp(1)}"]


def borrowing(same: str) -> Listing:
    """Point 2 has a snapshot of its first disk alone; `same` is said to stand for the second."""
    one, two = (PointDisk(key=f"scsi{n}", volid=f"local-zfs:vm-100-disk-{n}", guid=Guid(f"1{n}")) for n in range(2))
    early, late = encode_disks([one, two]), encode_disks([one, replace(two, same=Guid(same))])
    first = taken(1, early, volume=Guid("10"), guid=Guid("20"))
    second = taken(2, late, volume=Guid("10"), guid=Guid("30"))
    other = taken(1, early, volume=Guid("11"), guid=Guid("21"))
    return listing(HOST, volume(f"{ROOT}/d0", "1", first, second), volume(f"{ROOT}/d1", "2", other))


def test_an_older_snapshot_stands_for_a_disk_that_was_not_sent_again() -> None:
    first, second = points(borrowing("21"))
    assert (first.complete, first.borrowed, second.complete, second.borrowed) == (True, set(), True, {"scsi1"})
    assert second.snapshots["scsi1"] == first.snapshots["scsi1"]
    assert second.own.keys() == {"scsi0"}


@pytest.mark.parametrize("same", ["", "20", "99", "garbage"], ids=["nothing", "another disk's", "gone", "garbage"])
def test_nothing_else_stands_for_it(same: str) -> None:
    _, second = points(borrowing(same))
    assert (second.complete, second.borrowed, second.snapshots.keys()) == (False, set(), {"scsi0"})


def test_its_own_snapshot_beats_what_stood_for_it() -> None:
    found = borrowing("21")
    one, two = (found.volumes[Dataset(f"{ROOT}/d{n}")] for n in range(2))
    late = taken(2, one.snapshots[1].disks, volume=Guid("11"), guid=Guid("31"))
    _, second = points(listing(HOST, one, volume(two.name, "2", *two.snapshots, late)))
    assert (second.complete, second.borrowed, second.snapshots["scsi1"].guid) == (True, set(), "31")
