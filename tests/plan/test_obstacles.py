"""What is told before anything is sent: no room, missing features, other IV sets, somebody else's root."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from pve_zfsbackup.model import (
    SOURCE,
    Adopt,
    Conflict,
    CreateParent,
    Dataset,
    Guid,
    Listing,
    Mark,
    PointDisk,
    ResumeToken,
    Send,
    Snapshot,
    Volume,
    World,
    encode_disks,
)
from pve_zfsbackup.plan.features import PoolProps, missing
from pve_zfsbackup.plan.obstacles import UNMINDED, estimated
from pve_zfsbackup.plan.ownership import foreign_root
from pve_zfsbackup.plan.pairing import common_base, compare, full_due
from pve_zfsbackup.plan.points import points
from pve_zfsbackup.plan.project import project
from pve_zfsbackup.plan.replication import phases, plan_replication
from pve_zfsbackup.plan.standing import standing
from tests.plan.worlds import (
    DISK,
    GENERATION,
    HOST,
    OTHER_GUID,
    POLICY,
    REPLICA,
    ROOT,
    SOURCE_GUID,
    TWO,
    ZVOL,
    build,
    guid,
    listing,
    parent,
    replicate,
    snapshot,
)


def change(world: World, host: str, name: Dataset, **changes: object) -> World:
    volume = replace(world[host].volumes[name], **changes)  # type: ignore[arg-type]
    return {**world, host: replace(world[host], volumes={**world[host].volumes, name: volume})}


def sized(world: World, refer: int, written: int) -> World:
    there = world[SOURCE].volumes[ZVOL].snapshots
    return change(world, SOURCE, ZVOL, snapshots=tuple(replace(s, refer=refer, written=written) for s in there))


def kinds(conflicts: tuple[Conflict, ...]) -> list[str]:
    return [conflict.kind for conflict in conflicts]


# Room


@pytest.mark.parametrize(("left", "blocked"), [(1100, False), (1099, True), (0, True)])
def test_a_full_stream_needs_what_the_snapshot_refers_to_and_a_tenth(left: int, blocked: bool) -> None:
    world = change(sized(build(["o-", "o-"]), 1000, 400), HOST, Dataset(f"{ROOT}/local-zfs"), available=left)
    plan = replicate(world)
    assert kinds(plan.conflicts) == (["target-full"] if blocked else [])
    assert bool(plan.steps) is not blocked
    if blocked:
        (conflict,) = plan.conflicts
        assert "1.1 KiB" in conflict.message
        assert f"{ROOT}/local-zfs" in conflict.message
        assert "quota" in conflict.resolve


@pytest.mark.parametrize(
    ("history", "needed"), [(["oh", "o-"], 400), (["oh", "o-", "o-"], 800), (["oh", "f-", "o-"], 800)]
)
def test_an_increment_needs_what_was_written_since_its_base(history: list[str], needed: int) -> None:
    world = sized(build(history), 1000, 400)
    sends = [step for step in replicate(world).steps if isinstance(step, Send)]
    assert estimated(world[SOURCE].volumes[ZVOL], sends) == needed
    for left, blocked in ((needed * 11 // 10, False), (needed * 11 // 10 - 1, True)):
        plan = replicate(change(world, HOST, REPLICA, available=left))
        assert kinds(plan.conflicts) == (["target-full"] if blocked else [])


def test_no_stream_is_larger_than_what_it_carries() -> None:
    world = sized(build(["oh", "f-", "f-", "f-", "o-"]), 1000, 900)
    sends = [step for step in replicate(world).steps if isinstance(step, Send)]
    assert estimated(world[SOURCE].volumes[ZVOL], sends) == 1000


def test_a_base_that_is_a_bookmark_alone_makes_nobody_refuse_what_would_fit() -> None:
    """The first snapshot after it was written since one that lies before the bookmark, or is the disk's first."""
    world = sized(build(["bh", "o-", "o-"]), 1000, 400)
    sends = [step for step in replicate(world).steps if isinstance(step, Send)]
    assert sends[0].base is not None
    assert sends[0].base.guid == guid(1)
    assert estimated(world[SOURCE].volumes[ZVOL], sends) == 400
    assert not replicate(change(sized(build(["bh", "o-"]), 1000, 1000), HOST, REPLICA, available=0)).conflicts


def test_nothing_to_send_needs_no_room_and_the_nearest_place_that_exists_counts() -> None:
    assert not replicate(change(sized(build(["oh"]), 1000, 400), HOST, REPLICA, available=0)).conflicts
    world = sized(build(["o-"]), 1000, 400)
    bare = {**world, HOST: listing(HOST, replace(parent(ROOT), available=10))}
    assert kinds(replicate(bare).conflicts) == ["target-full"]
    assert not replicate({**world, HOST: Listing(host=HOST)}).conflicts, "nothing is known"


# Replicas that were written to


def test_a_replica_that_was_written_to_is_told_with_what_would_throw_that_away() -> None:
    world = change(build(["oh", "o-"]), HOST, REPLICA, written=UNMINDED + 1)
    plan = replicate(world)
    (conflict,) = plan.conflicts
    assert (conflict.kind, conflict.object, plan.steps) == ("target-written", REPLICA, ())
    newest = snapshot(1, REPLICA).full_name
    assert conflict.resolve == f"on {HOST}, throws away what was written since: zfs rollback {newest}"
    assert conflict.evidence == (f"newest there: {newest} guid {guid(1)}",)
    assert not replicate(change(world, HOST, REPLICA, written=UNMINDED)).conflicts, "a receive may not mind that"


def test_with_nothing_to_receive_nobody_minds() -> None:
    assert not replicate(change(build(["oh"]), HOST, REPLICA, written=1 << 30)).conflicts


def test_an_interrupted_receive_into_it_is_not_gone_on_with() -> None:
    world = build(["oh", "o-"])
    token = ResumeToken(token="1-a", to_guid=guid(2), from_guid=guid(1))
    assert not replicate(change(world, HOST, REPLICA, resume=token)).conflicts
    spoilt = replicate(change(world, HOST, REPLICA, resume=token, written=1 << 20))
    assert kinds(spoilt.conflicts) == ["target-written"]


def test_a_newest_snapshot_that_was_destroyed_there_is_guessed_by_its_bookmark() -> None:
    """Row 28: what it had is in the replica itself now, and nothing can be received before that is rolled back."""
    plan = replicate(change(build(["om", "O-", "o-"]), HOST, REPLICA, written=1 << 20))
    (conflict,) = plan.conflicts
    _, gone = conflict.evidence
    assert gone.startswith(f"{ZVOL}#")
    assert gone.endswith("if that arrived there, it was destroyed since")
    assert snapshot(1, REPLICA).full_name in conflict.resolve


# Features

ALL = {"lz4_compress": "active", "zstd_compress": "active", "large_blocks": "active", "large_dnode": "active",
       "encryption": "active"}  # fmt: skip


def pool(**features: str) -> dict[str, str]:
    return {"readonly": "off", **{f"feature@{name}": state for name, state in features.items()}}


@pytest.mark.parametrize(
    ("props", "raw", "needed"),
    [
        ({}, False, {"lz4_compress"}),
        ({"recordsize": "131072", "compression": "lz4", "dnodesize": "legacy"}, False, {"lz4_compress"}),
        ({"recordsize": "1048576"}, False, {"lz4_compress", "large_blocks"}),
        ({"volblocksize": "131072"}, False, {"lz4_compress"}),
        ({"volblocksize": "262144"}, False, {"lz4_compress", "large_blocks"}),
        ({"compression": "zstd"}, False, {"lz4_compress", "zstd_compress"}),
        ({"compression": "zstd-fast-10"}, False, {"lz4_compress", "zstd_compress"}),
        ({"dnodesize": "auto"}, False, {"lz4_compress", "large_dnode"}),
        ({"recordsize": "1048576"}, True, {"lz4_compress", "large_blocks", "encryption"}),
    ],
)
def test_what_a_stream_needs(props: dict[str, str], raw: bool, needed: set[str]) -> None:
    volume = replace(build(["o-"], raw=raw)[SOURCE].volumes[ZVOL], props=props)
    here = {"rpool": pool(**ALL)}
    assert set(missing(volume, PoolProps(source=here, target=pool(async_destroy="enabled")))) == needed
    for name in needed:
        for state in ("disabled", ""):
            lacking = {**ALL, name: state} if state else {k: v for k, v in ALL.items() if k != name}
            assert missing(volume, PoolProps(source=here, target=pool(**lacking))) == (name,)
        for state in ("enabled", "active"):
            assert missing(volume, PoolProps(source=here, target=pool(**{**ALL, name: state}))) == ()
        unused = {"rpool": pool(**{**ALL, name: "enabled"})}
        assert name not in missing(volume, PoolProps(source=unused, target=pool(async_destroy="enabled")))


def test_nothing_is_refused_where_nothing_is_known() -> None:
    volume = build(["o-"])[SOURCE].volumes[ZVOL]
    for pools in (PoolProps(), PoolProps(target=pool(x="enabled")), PoolProps(source={"rpool": pool(**ALL)})):
        assert missing(volume, pools) == ()


def test_only_a_full_stream_is_refused_for_a_feature_or_a_read_only_pool() -> None:
    lacking = PoolProps(source={"rpool": pool(**ALL)}, target=pool(lz4_compress="disabled"))
    frozen = PoolProps(source={"rpool": pool(**ALL)}, target={**pool(**ALL), "readonly": "on"})
    for pools, kind in ((lacking, "feature-missing"), (frozen, "target-readonly")):
        for history, expected in ((["o-"], [kind]), (["oh", "o-"], [])):
            world = build(history)
            sides = replace(compare(world[SOURCE], world[HOST]), pools=pools)
            plan = plan_replication(DISK, sides, POLICY)
            assert kinds(plan.conflicts) == expected
            assert all("tank" in conflict.resolve for conflict in plan.conflicts)


# IV sets


def with_ivsets(world: World, host: str, name: Dataset, numbers: dict[int, str]) -> World:
    """Snapshots and bookmarks of these instants get IV sets of their own."""
    by_guid = {guid(number): Guid(ivset) for number, ivset in numbers.items()}
    volume = world[host].volumes[name]
    return change(
        world,
        host,
        name,
        snapshots=tuple(replace(s, ivset=by_guid.get(s.guid, s.ivset)) for s in volume.snapshots),
        bookmarks=tuple(replace(b, ivset=by_guid.get(b.guid, b.ivset)) for b in volume.bookmarks),
    )


def test_a_replica_that_was_not_received_raw_is_no_base_and_a_new_generation_says_so() -> None:
    world = build(["oh", "o-"], raw=True)
    world = with_ivsets(with_ivsets(world, SOURCE, ZVOL, {1: "51", 2: "52"}), HOST, REPLICA, {1: "99"})
    plan = replicate(world)
    (send,) = [step for step in plan.steps if isinstance(step, Send)]
    assert (send.base, send.dataset) == (None, GENERATION)
    assert full_due(world[SOURCE].volumes[ZVOL], compare(world[SOURCE], world[HOST]), ROOT), "so pools are asked"
    assert any("another IV set" in warning for warning in plan.warnings)
    after = project(world, plan.steps)
    assert after[HOST].volumes[REPLICA].snapshots[0].guid == guid(1), "the old one stays"
    assert after[HOST].volumes[GENERATION].snapshots[0].ivset == "52"
    assert not full_due(after[SOURCE].volumes[ZVOL], compare(after[SOURCE], after[HOST]), ROOT)
    assert not [step for step in replicate(after).steps if isinstance(step, Send)], "and it goes on from there"


@pytest.mark.parametrize("source", ["51", ""])
@pytest.mark.parametrize("target", ["51", ""])
def test_an_unknown_iv_set_rules_nothing_out(source: str, target: str) -> None:
    world = build(["bh", "o-"], raw=True)
    world = with_ivsets(with_ivsets(world, SOURCE, ZVOL, {1: source}), HOST, REPLICA, {1: target})
    (send,) = [step for step in replicate(world).steps if isinstance(step, Send)]
    assert send.base is not None
    assert send.base.guid == guid(1)


def test_an_older_base_with_the_same_iv_set_makes_the_newer_one_a_divergence() -> None:
    world = build(["oh", "om", "o-"], raw=True)
    world = with_ivsets(world, SOURCE, ZVOL, {1: "51", 2: "52", 3: "53"})
    world = with_ivsets(world, HOST, REPLICA, {1: "51", 2: "99"})
    assert kinds(replicate(world).conflicts) == ["diverged"]


def test_a_token_does_not_go_on_from_another_iv_set() -> None:
    token = ResumeToken(token="t", to_guid=guid(2), from_guid=guid(1), raw=True)
    world = build(["oh", "o-"], raw=True, token=token)
    world = with_ivsets(with_ivsets(world, SOURCE, ZVOL, {1: "51", 2: "52"}), HOST, REPLICA, {1: "99"})
    plan = replicate(world)
    assert any("another IV set" in warning for warning in plan.warnings)
    project(world, plan.steps)


def test_whatever_the_iv_sets_no_raw_stream_goes_on_from_another_and_plans_can_be_carried_out() -> None:
    order = random.Random(4)
    for history in itertools.product(("oh", "Om", "bm", "o-", "ou"), repeat=3):
        for _ in range(3):
            world = build(history, raw=True)
            world = with_ivsets(world, SOURCE, ZVOL, {n: order.choice(("", f"5{n}")) for n in (1, 2, 3)})
            if REPLICA in world[HOST].volumes:
                there = {n: order.choice(("", f"5{n}", f"9{n}")) for n in (1, 2, 3)}
                world = with_ivsets(world, HOST, REPLICA, there)
                base = common_base(world[SOURCE].volumes[ZVOL], world[HOST].volumes[REPLICA])
                twin = next((s for s in world[HOST].volumes[REPLICA].snapshots if base and s.guid == base.guid), None)
                assert base is None or twin is None or not (base.ivset and twin.ivset and base.ivset != twin.ivset)
            plan = replicate(world)
            after = project(world, plan.steps)  # raises where ZFS would refuse
            again = replicate(after)
            assert not any(isinstance(step, Send) for step in again.steps), (history, world, again)


# The root and whose it is


def owned(world: World, owner: str) -> World:
    return change(world, HOST, ROOT, owner=owner)


def test_somebody_elses_root_is_refused_with_evidence_and_the_way_out() -> None:
    world = owned(build(["oh"]), "pve-b")
    conflict = foreign_root(world[HOST], ROOT, "pve-a")
    assert conflict is not None
    assert (conflict.kind, conflict.object) == ("foreign-root", ROOT)
    assert "pve-zfsbackup:owner=pve-b" in conflict.evidence
    assert "zfs set pve-zfsbackup:owner=pve-a tank/backups" in conflict.resolve
    for good in (owned(world, "pve-a"), owned(world, ""), {HOST: listing(HOST)}):
        assert foreign_root(good[HOST], ROOT, "pve-a") is None


@pytest.mark.parametrize("append_only", [False, True])
def test_a_root_without_an_owner(append_only: bool) -> None:
    strange = Volume(
        name=Dataset(f"{ROOT}/local-zfs/vm-900-disk-0"), guid=Guid("5"), type="volume",
        snapshots=(replace(snapshot(5, Dataset("x")), volume=Guid("4711"), guid=Guid("815")),),
    )  # fmt: skip
    for history, more, adopted, warned in (
        (["o-"], (), True, False),
        (["oh"], (), True, False),
        (["-m"], (), True, False),  # all snapshots are gone here, the dataset is known
        (["oh"], (strange,), False, True),
    ):
        world = build(history)
        target = replace(world[HOST], volumes={**world[HOST].volumes, **{v.name: v for v in more}})
        seen = standing(world[SOURCE], target, ROOT, "pve-a", append_only=append_only)
        assert seen.adopt is (adopted and not append_only)
        assert bool(seen.warnings) is (warned or append_only)
        assert all("zfs set pve-zfsbackup:owner=pve-a tank/backups" in warning for warning in seen.warnings)
    assert standing(world[SOURCE], owned(world, "pve-a")[HOST], ROOT, "pve-a", append_only=append_only).warnings == ()


def test_a_sick_pool_is_a_warning() -> None:
    world = owned(build(["oh"]), "a")
    target = replace(world[HOST], health={"tank": "DEGRADED"})
    (warning,) = standing(world[SOURCE], target, ROOT, "a", append_only=False).warnings
    assert "tank of backup1 is DEGRADED" in warning


def test_the_root_is_made_or_marked_as_ours_before_anything_is_sent() -> None:
    policy = replace(POLICY, owner="pve-a")
    world = build(["o-"])
    bare = {**world, HOST: Listing(host=HOST)}
    plan = replicate(bare, policy)
    made = [step for step in phases(plan)[0] if isinstance(step, CreateParent)]
    assert [(step.dataset, step.owner) for step in made] == [(ROOT, "pve-a"), (f"{ROOT}/local-zfs", "")]
    assert project(bare, plan.steps)[HOST].volumes[ROOT].owner == "pve-a"
    plan = replicate(world, replace(policy, adopt=True))
    assert phases(plan)[0][0] == Adopt(host=HOST, dataset=ROOT, owner="pve-a")
    assert project(world, plan.steps)[HOST].volumes[ROOT].owner == "pve-a"
    append_only = [s for s in replicate(bare, replace(policy, append_only=True)).steps if isinstance(s, CreateParent)]
    assert {step.owner for step in append_only} == {""}, "the wire has no form for it"


# Disks that do not go to this target


def test_a_point_is_complete_on_a_target_with_the_disks_that_go_there() -> None:
    world = build(["o-"])
    here = replace(world[SOURCE].volumes[ZVOL].snapshots[0], disks=TWO)
    other = Volume(
        name=Dataset("fast/vm-100-disk-0"), guid=OTHER_GUID, type="volume",
        snapshots=(replace(here, dataset=Dataset("fast/vm-100-disk-0"), guid=Guid("33")),),
    )  # fmt: skip
    world = change(world, SOURCE, ZVOL, snapshots=(here,))
    world = {**world, SOURCE: replace(world[SOURCE], volumes={**world[SOURCE].volumes, other.name: other})}
    for left_out, complete in ((frozenset({OTHER_GUID}), True), (frozenset[Guid](), False)):
        plan = replicate(world, replace(POLICY, left_out=left_out))
        (mark,) = [step for step in plan.steps if isinstance(step, Mark)]
        only = encode_disks([PointDisk(key="scsi0", volid=DISK.volid, guid=SOURCE_GUID)])
        assert mark.disks == (only if left_out else "")
        (point,) = points(project(world, plan.steps)[HOST])
        assert point.complete is complete


def test_snapshots_without_a_property_are_not_touched_by_left_out_disks() -> None:
    plan = replicate(build(["o-", "oh"]), replace(POLICY, left_out=frozenset({Guid("1")})))
    assert not [step for step in plan.steps if isinstance(step, Mark) and step.disks]
    assert isinstance(snapshot(1, ZVOL), Snapshot)
