"""Pruning never takes what the next send, a resume, a hold or a clone needs, nor anything that is not ours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pve_zfsbackup.model import (
    SOURCE,
    Bookmark,
    Dataset,
    Destroy,
    DestroyBookmark,
    Guid,
    Keep,
    Quiesce,
    ResumeToken,
    Send,
    Snapshot,
    Vmid,
    World,
)
from pve_zfsbackup.plan.pairing import common_base
from pve_zfsbackup.plan.project import project
from pve_zfsbackup.plan.prune import PrunePlan, PrunePolicy, plan_prune, survey
from pve_zfsbackup.plan.snapshot import plan_snapshot
from tests.plan.worlds import (
    DAY0,
    GUEST,
    HOST,
    KINDS,
    OTHER,
    REPLICA,
    ZVOL,
    bookmark,
    build,
    guid,
    guids,
    listing,
    replicate,
    shuffled,
)

ONE = (Keep(last=1),)
BOTH = PrunePolicy(keep={SOURCE: ONE, HOST: ONE})
NOW = DAY0 + 40 * 3600


def prune(world: World, policy: PrunePolicy = BOTH, now: int = NOW) -> PrunePlan:
    return plan_prune(Vmid(100), survey(world), policy, tz=UTC, now=now)


def reasons(plan: PrunePlan, host: str, number: int) -> tuple[str, ...]:
    (verdict,) = [
        verdict for verdict in plan.verdicts if verdict.host == host and verdict.point.creation == DAY0 + 3600 * number
    ]
    return verdict.reasons


def destroyed(plan: PrunePlan, host: str) -> list[Guid]:
    return [step.snapshot.guid for step in plan.plan.steps if isinstance(step, Destroy) and step.host == host]


def change(world: World, host: str, name: Dataset, **changes: object) -> World:
    volume = replace(world[host].volumes[name], **changes)  # type: ignore[arg-type]
    return {**world, host: replace(world[host], volumes={**world[host].volumes, name: volume})}


def change_snapshot(world: World, host: str, number: int, **changes: object) -> World:
    name = ZVOL if host == SOURCE else REPLICA
    snapshots = tuple(
        replace(found, **changes) if found.guid == guid(number) else found  # type: ignore[arg-type]
        for found in world[host].volumes[name].snapshots
    )
    return change(world, host, name, snapshots=snapshots)


def check_safe(world: World, plan: PrunePlan) -> World:
    """What holds for every prune, whatever the world."""
    steps = plan.plan.steps
    assert all(isinstance(step, Destroy | DestroyBookmark) for step in steps)
    assert all(step.snapshot.point for step in steps if isinstance(step, Destroy))
    assert all(verdict.reasons and all(verdict.reasons) for verdict in plan.verdicts)
    assert plan.plan.reasons
    after = project(world, steps)  # refuses what is held, has clones, or a resume needs
    before, here = world[SOURCE].volumes[ZVOL], after[SOURCE].volumes[ZVOL]
    if HOST in world and REPLICA in world[HOST].volumes:
        was = common_base(before, world[HOST].volumes[REPLICA])
        now = common_base(here, after[HOST].volumes[REPLICA])
        assert was == now
    foreign = {found for found in before.snapshots if not found.point}
    assert foreign <= set(here.snapshots)
    return after


FEW = ("--", "o-", "om", "ou", "Oh", "bm", "b-", "f-", "ff", "i-")


@pytest.mark.parametrize(
    ("keep", "kinds"),
    [(Keep(last=1), KINDS), (Keep(last=2), FEW), (Keep(hourly=1, daily=1), FEW), (Keep(), FEW)],
)
def test_every_history_keeps_its_base(keep: Keep, kinds: Sequence[str]) -> None:
    policy = PrunePolicy(keep={SOURCE: (keep,), HOST: (keep,)})
    for history in itertools.product(kinds, repeat=3):
        world = build(history)
        plan = prune(world, policy)
        after = check_safe(world, plan)
        assert prune(shuffled(world), policy).plan == plan.plan
        if keep.everything:
            assert not any(isinstance(step, Destroy) for step in plan.plan.steps)
        assert not any(isinstance(step, Destroy) for step in prune(after, policy).plan.steps)


def test_after_replicate_and_prune_the_next_send_is_incremental() -> None:
    guest = replace(GUEST, running=False)
    later = datetime.fromtimestamp(NOW, UTC) + timedelta(hours=1)
    for history in itertools.product(FEW, repeat=3):
        world = build(history)
        first = replicate(world)
        if first.conflicts or not any(kind[0] in "oO" for kind in history):
            continue
        world = project(world, first.steps)
        world = check_safe(world, prune(world))
        taken = plan_snapshot(guest, world[SOURCE], now=later, suffix="00ff", quiesce=Quiesce.OFF)
        world = project(world, taken.steps)
        plan = replicate(world)
        sends = [step for step in plan.steps if isinstance(step, Send)]
        assert sends
        assert all(send.base is not None for send in sends)
        world = project(world, plan.steps)
        assert replicate(world).steps == ()
        check_safe(world, prune(world, now=int(later.timestamp())))


def test_a_kill_between_any_two_destroys_loses_nothing_more() -> None:
    for history in itertools.product(["o-", "om", "Oh", "bm", "f-", "i-"], repeat=3):
        world = build(history)
        plan = prune(world)
        end = project(world, plan.plan.steps)
        for count in range(len(plan.plan.steps)):
            cut = project(world, plan.plan.steps[:count])
            again = project(cut, prune(cut).plan.steps)
            assert guids(again[SOURCE].volumes[ZVOL]) == guids(end[SOURCE].volumes[ZVOL])


def test_reasons_name_the_target() -> None:
    plan = prune(build(["om", "oh", "o-"]))
    assert reasons(plan, SOURCE, 1) == ("not kept by any rule",)
    assert reasons(plan, SOURCE, 2) == (f"base of the next send to {HOST}",)
    assert reasons(plan, SOURCE, 3) == ("keep-last", "newest complete point")
    assert reasons(plan, HOST, 1) == ("not kept by any rule",)
    assert reasons(plan, HOST, 2)[-1] == "held; base of the next send from the source"
    assert destroyed(plan, SOURCE) == destroyed(plan, HOST) == [guid(1)]


def test_oldest_first_source_before_targets() -> None:
    plan = prune(build(["om", "om", "om", "oh"]))
    assert [(step.host, step.snapshot.guid) for step in plan.plan.steps if isinstance(step, Destroy)] == [
        (host, guid(number)) for host in (SOURCE, HOST) for number in (1, 2, 3)
    ]


def silent(world: World, host: str = HOST) -> tuple[World, PrunePolicy]:
    rest = {name: seen for name, seen in world.items() if name != host}
    return rest, PrunePolicy(keep={SOURCE: ONE, HOST: ONE}, silent=frozenset({host}))


def test_a_silent_targets_base_is_the_one_its_bookmark_names() -> None:
    world, policy = silent(build(["o-", "O-", "o-", "o-"]))
    plan = prune(world, policy)
    assert destroyed(plan, SOURCE) == [guid(1), guid(3)]
    assert reasons(plan, SOURCE, 2) == (f"base on {HOST}, which did not answer",)
    assert any(HOST in warning for warning in plan.plan.warnings)
    assert {verdict.host for verdict in plan.verdicts} == {SOURCE}


def test_a_run_that_was_cut_leaves_two_bookmarks_and_what_lies_between_may_be_the_base() -> None:
    world, policy = silent(build(["o-", "O-", "o-", "O-", "o-", "o-"]))
    plan = prune(world, policy)
    assert destroyed(plan, SOURCE) == [guid(1), guid(5)]
    assert reasons(plan, SOURCE, 3) == (f"perhaps the base on {HOST}, which did not answer",)


def test_a_silent_target_without_a_bookmark_keeps_everything() -> None:
    for history in itertools.product(["o-", "f-", "i-"], repeat=3):
        world, policy = silent(build(history))
        plan = prune(world, policy)
        assert plan.plan.steps == ()
    assert f"{HOST} did not answer and has no bookmark here" in reasons(prune(*silent(build(["o-", "o-"]))), SOURCE, 1)


def test_silence_of_a_target_that_is_not_the_guests_keeps_nothing() -> None:
    world, _ = silent(build(["o-", "o-"]))
    assert destroyed(prune(world), SOURCE) == [guid(1)]


def test_every_history_with_a_silent_target_can_go_on_when_it_is_back() -> None:
    """In whatever state the target is: what it had in common by snapshot and bookmark is still there."""
    for history in itertools.product(["o-", "Oh", "om", "bm", "b-"], repeat=3):
        whole = build(history)
        plan = replicate(whole)
        if plan.conflicts:
            continue
        whole = project(whole, plan.steps)
        seen, policy = silent(whole)
        after = project(seen, prune(seen, policy).plan.steps)
        back = {**whole, SOURCE: after[SOURCE]}
        if REPLICA in back[HOST].volumes:
            source, replica = back[SOURCE].volumes[ZVOL], back[HOST].volumes[REPLICA]
            assert common_base(source, replica) == common_base(whole[SOURCE].volumes[ZVOL], replica)


def test_a_target_that_answered_but_shows_no_replica_keeps_what_the_bookmark_names() -> None:
    """Its pool is not imported, for one."""
    world = {**build(["O-", "o-", "o-"]), HOST: listing(HOST)}
    plan = prune(world)
    assert destroyed(plan, SOURCE) == [guid(2)]
    assert reasons(plan, SOURCE, 1) == (f"base on {HOST}, which shows no replica",)


def test_two_targets_protect_each_its_base() -> None:
    here = build(["oh", "o-", "oh", "o-"])
    near = build(["--", "oh", "--", "--"])[HOST]
    world = {**change(here, HOST, REPLICA, snapshots=here[HOST].volumes[REPLICA].snapshots[:1])}
    world["backup2"] = replace(near, host="backup2")
    plan = prune(world, PrunePolicy(keep={SOURCE: ONE, HOST: ONE, "backup2": ONE}))
    assert destroyed(plan, SOURCE) == [guid(3)]
    assert reasons(plan, SOURCE, 1) == (f"base of the next send to {HOST}",)
    assert reasons(plan, SOURCE, 2) == ("base of the next send to backup2",)


@pytest.mark.parametrize(("changes", "reason"), [({"userrefs": 1}, "held"), ({"clones": True}, "has clones")])
def test_holds_and_clones_protect(changes: dict[str, object], reason: str) -> None:
    for host in (SOURCE, HOST):
        world = change_snapshot(build(["om", "om", "oh"]), host, 1, **changes)
        plan = prune(world)
        assert reasons(plan, host, 1) == (reason,)
        assert guid(1) not in destroyed(plan, host)
        check_safe(world, plan)


def test_a_resume_token_protects_what_it_needs() -> None:
    token = ResumeToken(token="1-x", to_guid=guid(3), from_guid=guid(2))
    world = build(["om", "om", "o-", "o-", "o-"], token=token)
    plan = prune(world)
    assert destroyed(plan, SOURCE) == [guid(1), guid(4)]
    assert f"needed to resume the send to {HOST}" in reasons(plan, SOURCE, 3)
    assert destroyed(plan, HOST) == [guid(1)]
    check_safe(world, plan)


def test_a_protected_disk_protects_the_whole_point() -> None:
    """A point with one disk gone would not be complete any more."""
    world = build(["i-", "o-"])
    second = replace(world[SOURCE].volumes[ZVOL].snapshots[0], dataset=OTHER, guid=Guid("501"), userrefs=1)
    world = change(world, SOURCE, OTHER, snapshots=(second,))
    plan = prune(world)
    assert reasons(plan, SOURCE, 1) == ("held",)
    assert plan.plan.steps == ()


def test_an_orphans_points_stay_on_the_target_by_its_own_clock() -> None:
    world = build(["om", "om", "oh"])
    world = {**world, SOURCE: listing(SOURCE)}
    assert survey(world).vmids == (100,)
    plan = prune(world)
    assert destroyed(plan, HOST) == [guid(1), guid(2)]
    assert reasons(plan, HOST, 3) == ("keep-last", "newest complete point", "held")


def test_a_host_without_a_policy_keeps_everything() -> None:
    plan = prune(build(["om", "om", "oh"]), PrunePolicy(keep={SOURCE: ONE}))
    assert destroyed(plan, HOST) == []
    assert reasons(plan, HOST, 1) == ("no policy for this host",)


def test_an_append_only_target_prunes_itself_and_still_protects_the_base() -> None:
    policy = replace(BOTH, append_only=frozenset({HOST}))
    for history in itertools.product(("o-", "om", "Oh", "-m"), repeat=4):
        world = build(history)
        held = {
            **world,
            HOST: replace(
                world[HOST],
                volumes={
                    name: replace(v, snapshots=tuple(replace(s, userrefs=1) for s in v.snapshots))
                    for name, v in world[HOST].volumes.items()
                },
            ),
        }
        both, plan = prune(world), prune(held, policy)
        assert destroyed(plan, HOST) == []
        assert destroyed(plan, SOURCE) == destroyed(both, SOURCE), "the source side is as with any other target"
        own = [verdict for verdict in plan.verdicts if verdict.host == HOST]
        assert {reason for verdict in own for reason in verdict.reasons} <= {"append-only: the target prunes itself"}


def test_a_clock_in_the_past_removes_nothing() -> None:
    plan = prune(build(["om", "om", "oh"]), now=DAY0 + 3 * 3600 - 1)
    assert plan.plan.steps == ()


def test_a_guest_that_was_never_seen_has_no_verdicts() -> None:
    plan = plan_prune(Vmid(999), survey(build(["om"])), BOTH, tz=UTC, now=NOW)
    assert (plan.verdicts, plan.plan.steps) == ((), ())
    assert plan.plan.reasons


def gone(plan: PrunePlan) -> list[Bookmark]:
    return [step.bookmark for step in plan.plan.steps if isinstance(step, DestroyBookmark)]


def marked(history: Sequence[str], *more: Bookmark) -> World:
    world = build(history)
    return change(world, SOURCE, ZVOL, bookmarks=(*world[SOURCE].volumes[ZVOL].bookmarks, *more))


def test_bookmarks_go_when_snapshot_is_gone_and_a_newer_one_stands() -> None:
    assert gone(prune(marked(["b-", "b-", "Oh"]))) == [bookmark(1), bookmark(2)]
    assert gone(prune(marked(["Oh", "b-", "b-", "o-"]))) == [bookmark(2)]
    assert gone(prune(marked(["O-", "b-", "b-", "o-"]))) == []  # no replica is seen: nobody knows
    other = (bookmark(1, "backup2"), replace(bookmark(1), name="someone:else"))
    assert gone(prune(marked(["b-", "Oh"], *other))) == [bookmark(1)]


def test_the_bookmark_that_is_the_base_stays_though_a_newer_one_stands() -> None:
    """The target was put back to an older state."""
    world = marked(["bh", "b-", "o-"])
    assert gone(prune(world)) == []
    assert isinstance(common_base(world[SOURCE].volumes[ZVOL], world[HOST].volumes[REPLICA]), Bookmark)


def test_snapshots_that_only_look_like_ours_are_never_named() -> None:
    world = change_snapshot(build(["om", "om", "oh"]), SOURCE, 1, point=None, disks="")
    plan = prune(world)
    assert guid(1) not in destroyed(plan, SOURCE)
    named = [step.snapshot for step in plan.plan.steps if isinstance(step, Destroy)]
    assert all(isinstance(found, Snapshot) and found.point for found in named)
