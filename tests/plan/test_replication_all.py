"""Every short history on both sides, replayed through `project`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pytest

from pve_zfsbackup.model import (
    SOURCE,
    AbortReceive,
    Destroy,
    Guid,
    Plan,
    Resume,
    ResumeToken,
    Send,
    Snapshot,
    Volume,
    World,
)
from pve_zfsbackup.plan.pairing import common_base
from pve_zfsbackup.plan.points import bookmark_target
from pve_zfsbackup.plan.project import project
from pve_zfsbackup.plan.replication import ReplicationPolicy, phases
from tests.plan.worlds import (
    GENERATION,
    HOST,
    KINDS,
    POLICY,
    REPLICA,
    ROOT,
    ZVOL,
    build,
    guid,
    guids,
    replicate,
    shuffled,
    snapshot,
)

MINIMAL = replace(POLICY, minimal=True)
FEW = ("--", "o-", "O-", "ou", "Oh", "bm", "b-", "f-", "i-")


def histories(length: int, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, ...]]:
    return itertools.product(kinds, repeat=length)


def complete(history: Iterable[str]) -> list[int]:
    return [number for number, kind in enumerate(history, 1) if kind[0] in "oO"]


def replica_of(world: World) -> Volume | None:
    """Where the newest common snapshot is, looked up without the planner's help."""
    source = world[SOURCE].volumes[ZVOL]
    order = {item.guid: item.createtxg for item in source.snapshots + source.bookmarks}
    best: tuple[int, Volume] | None = None
    for volume in world[HOST].volumes.values():
        common = [order[found] for found in guids(volume) if found in order]
        if common and (best is None or max(common) > best[0]):
            best = (max(common), volume)
    return best[1] if best else None


def blocked(history: Sequence[str]) -> str:
    """What must stand in the way, told from the history alone."""
    common = [n for n, kind in enumerate(history, 1) if kind[0] in "oObf" and kind[1] not in "-x"]
    if not common or not complete(history):
        return ""
    newer = [kind for kind in history[max(common) :] if kind[1] != "-"]
    if not newer:
        return ""
    return "foreign-snapshot" if any(kind[1] == "x" for kind in newer) else "diverged"


def check_goal(before: World, after: World, history: Sequence[str], plan: Plan) -> None:
    """The newest complete point is on the target, marked, held and bookmarked, or it was overtaken."""
    source, replica = after[SOURCE].volumes[ZVOL], replica_of(after)
    assert replica is not None
    goal = complete(history)[-1]
    top = common_base(source, replica)
    assert top is not None
    there = {found.guid: found for found in replica.snapshots}
    assert max(there.values(), key=lambda found: found.createtxg).guid == top.guid
    if guid(goal) not in there:
        assert any("cannot be sent" in warning for warning in plan.warnings)
        assert top.createtxg > 100 * goal
        return
    assert there[guid(goal)].point is not None
    assert there[guid(goal)].disks
    if isinstance(top, Snapshot) and top.point:
        assert there[top.guid].userrefs > 0
        mine = [mark for mark in source.bookmarks if bookmark_target(mark) == HOST]
        assert [mark.guid for mark in mine] == [top.guid]
        assert all(not found.userrefs for found in replica.snapshots if found.guid != top.guid and found.point)


def check_nothing_lost(before: World, after: World) -> None:
    for host, listing in before.items():
        for name, volume in listing.volumes.items():
            if volume.snapshots:
                assert guids(volume) <= guids(after[host].volumes[name])
    assert guids(before[SOURCE].volumes[ZVOL]) == guids(after[SOURCE].volumes[ZVOL])
    sent = guids(replica_of(after)) - guids(replica_of(before))
    allowed = {found.guid for found in before[SOURCE].volumes[ZVOL].snapshots if found.point}
    assert sent <= allowed


def converge(world: World, policy: ReplicationPolicy) -> World:
    return project(world, replicate(world, policy).steps)


def check(history: Sequence[str], world: World, policy: ReplicationPolicy) -> Plan:
    plan = replicate(world, policy)
    assert plan.reasons
    assert all(plan.reasons)
    if plan.conflicts:
        assert not plan.steps
        assert all(conflict.message and conflict.resolve for conflict in plan.conflicts)
        return plan
    assert not any(isinstance(step, Destroy) for step in plan.steps)
    after = project(world, plan.steps)
    check_nothing_lost(world, after)
    if complete(history):
        check_goal(world, after, history, plan)
    again = replicate(after, policy)
    assert again.steps == ()
    assert again.conflicts == ()
    return plan


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("raw", [False, True])
def test_every_history_reaches_the_goal_or_names_what_stands_in_the_way(length: int, raw: bool) -> None:
    for history in histories(length):
        world = build(history, raw=raw)
        for policy in (POLICY, MINIMAL):
            plan = check(history, world, policy)
            assert [conflict.kind for conflict in plan.conflicts] == [kind for kind in [blocked(history)] if kind]
            assert all(step.raw is raw for step in plan.steps if isinstance(step, Send))


def test_longer_histories_of_the_kinds_that_interact() -> None:
    for history in histories(5, ("--", "o-", "Oh", "om", "bm", "f-")):
        plan = check(history, build(history), POLICY)
        assert [conflict.kind for conflict in plan.conflicts] == [kind for kind in [blocked(history)] if kind]


def test_plans_do_not_depend_on_the_order_of_the_listing() -> None:
    for history in histories(3):
        world = build(history)
        assert replicate(world) == replicate(shuffled(world))


def test_a_kill_after_any_step_converges_to_the_same() -> None:
    for history in (*histories(2), *histories(3, FEW)):
        world = build(history)
        steps = replicate(world).steps
        done = project(world, steps)
        for count in range(len(steps)):
            cut = project(world, steps[:count])
            check_nothing_lost(world, cut)
            end = converge(cut, POLICY)
            assert guids(replica_of(end)) == guids(replica_of(done))
            assert replica_of(end) == replica_of(done) or any(kind[1] == "h" for kind in history)
            assert replicate(end).steps == ()


def test_parents_streams_and_the_rest_do_the_same_one_after_the_other() -> None:
    """As it is carried out: streams of all disks first, then the small steps together."""
    for history in histories(3, FEW):
        world = build(history)
        world = {**world, HOST: replace(world[HOST], volumes=world[HOST].volumes if history[0] != "--" else {})}
        plan = replicate(world)
        parts = phases(plan)
        assert sorted(map(repr, plan.steps)) == sorted(repr(step) for part in parts for step in part)
        assert not any(isinstance(step, Send | Resume | AbortReceive) for step in (*parts[0], *parts[2]))
        steps = [step for part in parts for step in part]
        done = project(world, plan.steps)
        assert project(world, steps) == done
        for count in range(len(steps)):
            cut = project(world, steps[:count])
            end = converge(cut, POLICY)
            assert guids(replica_of(end)) == guids(replica_of(done))
            assert replicate(end).steps == ()


def test_something_common_is_held_at_every_instant() -> None:
    for history in histories(3):
        if not any(kind[1] == "h" for kind in history):
            continue
        world = build(history)
        for step in replicate(world).steps:
            world = project(world, [step])
            replica = world[HOST].volumes[REPLICA]
            assert any(found.userrefs for found in replica.snapshots)


def test_sends_take_only_ours_and_never_more_than_one_stream_can() -> None:
    for history in histories(4, ("o-", "om", "bm", "f-", "i-", "--")):
        world = build(history)
        for policy in (POLICY, MINIMAL):
            for step in replicate(world, policy).steps:
                if not isinstance(step, Send):
                    continue
                assert all(sent.point for sent in (*step.through, step.snapshot))
                assert not (step.through and (policy.minimal or not isinstance(step.base, Snapshot)))
                assert step.base is not None or step.snapshot.guid == guid(complete(history)[-1])


def tokens(length: int) -> Iterator[ResumeToken]:
    known = [guid(number) for number in range(1, length + 1)]
    for to, start, raw in itertools.product([*known, Guid("5"), Guid("")], [*known, Guid("5"), Guid("")], [0, 1]):
        yield ResumeToken(token=f"1-{to}-{start}", to_guid=to, from_guid=start, raw=bool(raw))


def usable(world: World, token: ResumeToken) -> bool:
    """Whether `zfs send -t` and the receive behind it would work, on a snapshot of ours."""
    source, replica = world[SOURCE].volumes[ZVOL], world[HOST].volumes[REPLICA]
    goal = [found for found in source.snapshots if found.guid == token.to_guid and found.point]
    newest = max(replica.snapshots, key=lambda found: found.createtxg, default=None)
    if not goal or token.raw != source.encrypted:
        return False
    if newest is None:
        return not token.from_guid
    start = [item for item in source.snapshots + source.bookmarks if item.guid == token.from_guid]
    return newest.guid == token.from_guid and bool(start) and start[0].createtxg < goal[0].createtxg


TOKEN_CASES = [
    (2, False, ("--", "o-", "om", "Oh", "bm", "f-", "i-", "-m", "-x")),
    (2, True, ("--", "o-", "Oh", "bm")),
    (3, False, ("o-", "om", "bm")),
]


@pytest.mark.parametrize(("length", "raw", "kinds"), TOKEN_CASES)
def test_every_resume_token_is_used_or_thrown_away_once(length: int, raw: bool, kinds: tuple[str, ...]) -> None:
    for history in histories(length, kinds):
        for token in tokens(length):
            world = build(history, raw=raw, token=token)
            plan = check(history, world, POLICY)
            if plan.conflicts or not complete(history):
                continue
            first = next(step for step in plan.steps if isinstance(step, Send | Resume | AbortReceive))
            if any(kind[1] == "x" for kind in history) and replica_of(world) is None:
                assert isinstance(first, Send)  # beside what is there: not ours, not touched
                assert first.dataset == GENERATION
                continue
            if usable(world, token):
                assert isinstance(first, Resume)
                assert first.snapshot.guid == token.to_guid
                assert not plan.warnings or "cannot be sent" in plan.warnings[0]
            else:
                assert isinstance(first, AbortReceive)
                assert first.reason in plan.warnings[0]
            assert sum(isinstance(step, Resume | AbortReceive) for step in plan.steps) == 1
            assert project(world, plan.steps)[HOST].volumes[REPLICA].resume is None


def test_a_target_that_has_nothing_gets_its_parents_first() -> None:
    world = build(["o-", "o-"])
    world = {**world, HOST: replace(world[HOST], volumes={})}
    plan = replicate(world)
    names = [type(step).__name__ for step in plan.steps]
    assert names == ["CreateParent", "CreateParent", "CreateBookmark", "Send", "Mark", "Hold"]
    assert [step.dataset for step in plan.steps[:2]] == [ROOT, f"{ROOT}/local-zfs"]  # type: ignore[union-attr]
    assert guids(project(world, plan.steps)[HOST].volumes[REPLICA]) == {guid(2)}


@pytest.mark.parametrize(
    ("history", "instant"),
    [
        (["om", "o-", "o-"], 1),
        (["bm", "o-"], 1),
        (["om", "om", "o-"], 2),
        (["o-", "o-", "o-"], 1),  # nothing has ever arrived: it waits since its first point
        (["i-", "o-", "o-"], 2),
    ],
)
def test_a_disk_waits_since_what_both_sides_have(history: list[str], instant: int) -> None:
    plan = replicate(build(history))
    assert any(isinstance(step, Send) for step in plan.steps)
    assert plan.since == snapshot(instant, ZVOL).creation


def test_an_interrupted_stream_does_not_end_the_wait() -> None:
    token = ResumeToken(token="1-x", to_guid=guid(2), from_guid=guid(1))
    plan = replicate(build(["om", "o-", "o-"], token=token))
    assert any(isinstance(step, Resume) for step in plan.steps)
    assert plan.since == snapshot(1, ZVOL).creation
