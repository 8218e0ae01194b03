"""Replicas that were renamed, copied, taken over or half received; generations; several disks and targets."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC

import pytest

from pve_zfsbackup.model import (
    SOURCE,
    AbortReceive,
    CreateBookmark,
    CreateParent,
    Dataset,
    DestroyBookmark,
    Guid,
    Hold,
    Keep,
    Mark,
    PointDisk,
    Release,
    Resume,
    ResumeToken,
    Send,
    Snapshot,
    Step,
    Vmid,
    Volume,
    World,
    encode_disks,
)
from pve_zfsbackup.plan.pairing import compare, find_replica, generation_paths, usual_path
from pve_zfsbackup.plan.project import project
from pve_zfsbackup.plan.prune import PrunePolicy, plan_prune, survey
from tests.plan.worlds import (
    DAY0,
    DISK,
    GENERATION,
    HOST,
    OTHER,
    OTHER_DISK,
    OTHER_GUID,
    POLICY,
    REPLICA,
    ROOT,
    SOURCE_GUID,
    TAG,
    ZVOL,
    bookmark,
    build,
    guid,
    guids,
    listing,
    parent,
    replica_volume,
    replicate,
    snapshot,
    source_volume,
)

GENERATION_PATHS = generation_paths(REPLICA, source_volume([]))
ELSEWHERE = Dataset(f"{ROOT}/old/something")
GOOD = ResumeToken(token="1-good", to_guid=guid(2))
STALE = ResumeToken(token="1-stale", to_guid=Guid("5"))


def world(source: Volume, *target: Volume) -> World:
    parents = [parent(ROOT), parent(f"{ROOT}/local-zfs")]
    return {SOURCE: listing(SOURCE, source), HOST: listing(HOST, *parents, *target)}


def stranger(name: Dataset, *, held: bool = False) -> Volume:
    """A replica of something else that was ours, too."""
    made = replace(snapshot(9, name), guid=Guid("88888"), volume=Guid("4444"), userrefs=int(held))
    return Volume(name=name, guid=Guid("99"), type="volume", snapshots=(made,))


def kinds(steps: tuple[Step, ...]) -> list[str]:
    return [type(step).__name__ for step in steps]


def send_of(steps: tuple[Step, ...]) -> Send:
    (send,) = [step for step in steps if isinstance(step, Send)]
    return send


def test_a_renamed_replica_is_followed() -> None:
    history = ["oh", "o-"]
    here = world(source_volume(history), replica_volume(history, name=ELSEWHERE))
    plan = replicate(here)
    send = send_of(plan.steps)
    assert (send.dataset, send.base) == (ELSEWHERE, here[SOURCE].volumes[ZVOL].snapshots[0])
    assert not plan.warnings


def test_a_renamed_source_is_followed() -> None:
    name = Dataset("rpool/data/vm-200-disk-3")
    history = ["oh", "o-"]
    old = source_volume(history)
    moved = replace(old, name=name, snapshots=tuple(replace(found, dataset=name) for found in old.snapshots))
    here = world(moved, replica_volume(history))
    disk = replace(DISK, dataset=name, volid="local-zfs:vm-200-disk-3", volume="vm-200-disk-3")
    send = send_of(replicate(here, disk=disk).steps)
    assert send.dataset == REPLICA
    assert send.base is not None


def test_something_else_on_the_path_starts_a_generation_and_is_not_touched() -> None:
    here = world(source_volume(["o-", "o-"]), stranger(REPLICA, held=True))
    plan = replicate(here)
    send = send_of(plan.steps)
    assert (send.dataset, send.base, send.through) == (GENERATION, None, ())
    assert send.snapshot.guid == guid(2)
    assert GENERATION in plan.warnings[0]
    after = project(here, plan.steps)
    old = after[HOST].volumes[REPLICA]
    assert guids(old) == {"88888"}
    assert not old.snapshots[0].userrefs  # it ages out by policy from now on
    assert replicate(after).steps == ()


def test_a_disk_that_was_another_volume_is_sent_in_full_and_that_is_told() -> None:
    """Moved to another storage: the new zvol has nothing of the old one, which is gone with all its snapshots."""
    here = moved(before="old-zfs:vm-100-disk-3")
    way = replicate(here)
    (told,) = [warning for warning in way.warnings if "sent in full" in warning]
    assert "scsi0 is local-zfs:vm-100-disk-0 now and was old-zfs:vm-100-disk-3" in told
    assert told in way.alarms
    hostile = replicate(moved(before="x:\x1b[2Jy" + "z" * 5000)).warnings
    assert ["x:\\x1b[2Jyz" in warning and len(warning) < 500 for warning in hostile] == [True]
    assert [step.dataset for step in way.steps if isinstance(step, Send)] == [REPLICA]


def test_a_disk_that_is_new_or_was_always_this_volume_is_no_news() -> None:
    for before in (DISK.volid, ""):
        assert replicate(moved(before=before)).warnings == ()


def moved(before: str) -> World:
    """The disk has one point here, the target one of the guest before it, in which the disk was `before`."""
    text = encode_disks([PointDisk(key="scsi0" if before else "scsi9", volid=before or "a:b", guid=OTHER_GUID)])
    old = replica_volume(["om"])
    name = Dataset(f"{ROOT}/old-zfs/vm-100-disk-3")
    snapshots = tuple(replace(s, dataset=name, guid=Guid("77"), volume=OTHER_GUID, disks=text) for s in old.snapshots)
    there = replace(old, name=name, guid=Guid("76"), snapshots=snapshots)
    source = replace(source_volume(["o-"]), snapshots=(snapshot(2, ZVOL),))
    return world(source, there)


def test_the_generation_before_is_released_only_when_the_new_one_is_held() -> None:
    here = world(source_volume(["o-"]), stranger(REPLICA, held=True))
    steps = replicate(here).steps
    order = [type(step) for step in steps if isinstance(step, Send | Mark | Hold | Release)]
    assert order == [Send, Mark, Hold, Release]
    (release,) = [step for step in steps if isinstance(step, Release)]
    assert (release.snapshot.dataset, release.tag) == (REPLICA, TAG)


def test_another_live_disk_on_the_path_keeps_its_hold() -> None:
    """Two disks swapped their names: the path is that of the other one's replica."""
    source = source_volume(["o-"])
    other = Volume(name=OTHER, guid=Guid("4444"), type="volume")
    here = world(source, stranger(REPLICA, held=True))
    here = {**here, SOURCE: listing(SOURCE, source, other)}
    plan = replicate(here)
    assert send_of(plan.steps).dataset == GENERATION
    assert not any(isinstance(step, Release) for step in plan.steps)


def test_a_base_that_is_lost_again_and_again_gets_a_generation_each_time_and_somebody_is_told() -> None:
    """The volume is the same, and so is its guid: the first generation's path is taken by its own earlier replica."""
    source, there = source_volume(["o-"]), [stranger(REPLICA)]
    for path in GENERATION_PATHS:
        plan = replicate(world(source, *there))
        assert send_of(plan.steps).dataset == path
        assert any(str(path) in alarm for alarm in plan.alarms)
        assert usual_path(path) == REPLICA, "the receiver and the lists know it for what it is"
        there.append(stranger(path))
    assert len(set(GENERATION_PATHS)) == len(GENERATION_PATHS) == 4


def test_the_last_of_several_generations_goes_on() -> None:
    history = ["oh", "o-"]
    old = [stranger(name) for name in (REPLICA, *GENERATION_PATHS[:2])]
    plan = replicate(world(source_volume(history), *old, replica_volume(history, name=GENERATION_PATHS[2])))
    assert send_of(plan.steps).dataset == GENERATION_PATHS[2]
    assert not plan.warnings


def test_all_paths_taken_is_a_conflict() -> None:
    plan = replicate(world(source_volume(["o-"]), stranger(REPLICA), *map(stranger, GENERATION_PATHS)))
    (conflict,) = plan.conflicts
    assert (conflict.kind, conflict.object, plan.steps) == ("path-taken", GENERATION, ())
    assert any(REPLICA in line for line in conflict.evidence)
    assert f"zfs rename {GENERATION} " in conflict.resolve


def test_the_generation_has_the_first_digits_of_the_datasets_guid() -> None:
    source = replace(source_volume(["o-"]), guid=Guid(str(0x89ABCDEF01234567)))
    assert generation_paths(REPLICA, source)[0] == f"{REPLICA}-g89abcdef"


def test_a_generation_goes_on_when_the_old_one_is_there() -> None:
    history = ["oh", "o-"]
    here = world(source_volume(history), stranger(REPLICA), replica_volume(history, name=GENERATION))
    plan = replicate(here)
    assert send_of(plan.steps).dataset == GENERATION
    assert not plan.warnings


def test_among_several_with_something_common_the_one_with_the_newest_goes_on() -> None:
    histories = [["om", "o-", "o-"], ["om", "om", "o-"]]
    for names in itertools.permutations([REPLICA, ELSEWHERE]):
        replicas = [replica_volume(h, name=name) for h, name in zip(histories, names, strict=True)]
        assert send_of(replicate(world(source_volume(histories[0]), *replicas)).steps).dataset == names[1]
    twins = [replica_volume(histories[0], name=name) for name in (ELSEWHERE, REPLICA)]
    assert send_of(replicate(world(source_volume(histories[0]), *twins)).steps).dataset == REPLICA


def test_a_copy_of_a_disk_with_its_snapshots_never_feeds_the_originals_replica() -> None:
    """Both share guids; the replica is that of the dataset it was received from, while that exists."""
    original = source_volume(["oh", "o-"])
    own = tuple(replace(found, dataset=OTHER) for found in original.snapshots)
    copy = Volume(name=OTHER, guid=OTHER_GUID, type="volume", snapshots=own)
    here = world(original, replica_volume(["oh", "o-"]))
    both = {**here, SOURCE: listing(SOURCE, original, copy)}
    plan = replicate(both, disk=OTHER_DISK)
    assert send_of(plan.steps).dataset == f"{ROOT}/fast/vm-100-disk-0"
    assert send_of(plan.steps).base is None
    assert send_of(replicate(both).steps).dataset == REPLICA
    moved = {**here, SOURCE: listing(SOURCE, copy)}  # the original is gone: `zfs send -R` to another pool
    assert send_of(replicate(moved, disk=OTHER_DISK).steps).dataset == REPLICA
    assert find_replica(copy, compare(both[SOURCE], both[HOST]), ROOT, REPLICA) is None


def test_datasets_outside_the_root_are_not_replicas() -> None:
    outside = replica_volume(["oh"], name=Dataset("tank/backups2/vm-100-disk-0"))
    plan = replicate(world(source_volume(["oh", "o-"]), outside))
    assert send_of(plan.steps).base is None


PLACES = ("absent", "stranger", "good", "stale", "empty")


def place(name: Dataset, what: str) -> list[Volume]:
    bare = Volume(name=name, guid=Guid("66"), type="volume")
    made = {
        "absent": [],
        "stranger": [stranger(name)],
        "good": [replace(bare, resume=GOOD)],
        "stale": [replace(bare, resume=STALE)],
        "empty": [bare],
    }
    return made[what]


@pytest.mark.parametrize("places", list(itertools.product(PLACES, PLACES)), ids="-".join)
def test_every_state_of_both_paths(places: tuple[str, str]) -> None:
    usual, generation = places
    source = source_volume(["o-", "o-"])
    more = [stranger(path) for path in GENERATION_PATHS[1:]]
    here = world(source, *place(REPLICA, usual), *place(GENERATION, generation), *more)
    plan = replicate(here)
    if usual in ("stranger", "empty") and generation in ("stranger", "empty"):
        assert [conflict.kind for conflict in plan.conflicts] == ["path-taken"]
        return
    assert not plan.conflicts
    if "good" in places:
        (resume,) = [step for step in plan.steps if isinstance(step, Resume)]
        assert resume.dataset == (REPLICA if usual == "good" else GENERATION)
        assert not any(isinstance(step, Send) for step in plan.steps)
    else:
        send = send_of(plan.steps)
        assert send.dataset == (REPLICA if usual in ("absent", "stale") else GENERATION)
    aborted = [step.dataset for step in plan.steps if isinstance(step, AbortReceive)]
    if "good" not in places:
        assert aborted == [n for n, what in zip((REPLICA, GENERATION), places, strict=True) if what == "stale"]
        assert bool(aborted) <= bool(plan.warnings)
    after = project(here, plan.steps)
    assert replicate(after).steps == ()
    for count in range(len(plan.steps)):
        cut = project(here, plan.steps[:count])
        end = project(cut, replicate(cut).steps)
        assert end[HOST] == after[HOST]


def test_parents_are_made_from_the_root_down_and_only_where_missing() -> None:
    source = source_volume(["o-"])
    plan = replicate({SOURCE: listing(SOURCE, source), HOST: listing(HOST)})
    made = [step.dataset for step in plan.steps if isinstance(step, CreateParent)]
    assert made == [ROOT, f"{ROOT}/local-zfs"]
    plan = replicate({SOURCE: listing(SOURCE, source), HOST: listing(HOST, parent(ROOT))})
    assert [s.dataset for s in plan.steps if isinstance(s, CreateParent)] == [f"{ROOT}/local-zfs"]


def test_raw_and_plain_never_meet_in_one_replica() -> None:
    history = ["oh", "o-"]
    for source_raw, replica_raw in ((True, False), (False, True)):
        source, replica = source_volume(history, raw=source_raw), replica_volume(history, raw=replica_raw)
        plan = replicate(world(source, replica))
        assert [conflict.kind for conflict in plan.conflicts] == ["mode"]
        assert not plan.steps
        assert REPLICA in plan.conflicts[0].resolve


def test_a_target_that_encrypts_for_itself_takes_plain_streams() -> None:
    history = ["oh", "o-"]
    here = world(source_volume(history), replica_volume(history, raw=True))
    volumes = {name: replace(volume, encrypted=True) for name, volume in here[HOST].volumes.items()}
    here = {**here, HOST: replace(here[HOST], volumes=volumes)}
    assert not send_of(replicate(here).steps).raw


def test_divergence_names_the_casualties_and_the_command() -> None:
    history = ["om", "-h", "-x", "o-"]
    plan = replicate(build(history))
    (conflict,) = plan.conflicts
    assert conflict.kind == "foreign-snapshot"
    base, ours, foreign = build(history)[HOST].volumes[REPLICA].snapshots
    assert [line.split()[0] for line in conflict.evidence] == [ours.full_name, foreign.full_name]
    assert "ours, held" in conflict.evidence[0]
    assert "not ours" in conflict.evidence[1]
    assert f"zfs release {TAG} {ours.full_name} && zfs rollback -r {base.full_name}" in conflict.resolve
    assert HOST in conflict.resolve


def test_foreign_snapshots_alone_are_destroyed_by_name_not_rolled_back() -> None:
    (conflict,) = replicate(build(["om", "-x", "-x", "o-"])).conflicts
    assert f"zfs destroy {REPLICA}@admin2,admin3" in conflict.resolve
    assert "rollback" not in conflict.resolve


def test_commands_quote_hostile_names() -> None:
    source = source_volume(["om", "o-"])
    name = Dataset(f"{ROOT}/a b;c")
    replica = replica_volume(["om", "-x"], name=name)
    (conflict,) = replicate(world(source, replica)).conflicts
    assert f"zfs destroy '{name}@admin2'" in conflict.resolve


def test_foreign_snapshots_split_a_stream_that_takes_everything() -> None:
    history = ["oh", "o-", "o-", "f-", "o-", "o-", "i-", "o-"]
    sends = [step for step in replicate(build(history)).steps if isinstance(step, Send)]
    runs = [[guid(n) for n in run] for run in ([2, 3], [5], [6], [8])]
    assert [[sent.guid for sent in (*send.through, send.snapshot)] for send in sends] == runs
    assert [send.base.guid if send.base else None for send in sends] == [guid(n) for n in (1, 3, 5, 6)]
    plan = replicate(build(history))
    told = [reason for reason in plan.reasons if "is not sent" in reason]
    assert [("not ours" in reason, "not complete" in reason) for reason in told] == [(True, False), (False, True)]


def test_a_bookmark_takes_one_step_and_the_rest_go_together() -> None:
    sends = [step for step in replicate(build(["bh", "o-", "o-", "o-"])).steps if isinstance(step, Send)]
    assert [len(send.through) for send in sends] == [0, 1]
    assert not isinstance(sends[0].base, Snapshot)
    assert isinstance(sends[1].base, Snapshot)


def test_marks_follow_each_stream_in_order() -> None:
    assert kinds(replicate(build(["Ou", "f-", "o-", "o-"])).steps) == [
        "CreateBookmark", "Mark", "Send", "Mark", "Send", "Mark", "Hold", "DestroyBookmark",
    ]  # fmt: skip


def test_two_bookmarks_at_most_whatever_fails() -> None:
    """Every run makes one before it sends; none of these ever arrives."""
    here = build(["Oh", "o-"])
    for number in range(3, 9):
        plan = replicate(here)
        sent = next(index for index, step in enumerate(plan.steps) if isinstance(step, Send))
        here = project(here, plan.steps[:sent])
        marked = [found.guid for found in here[SOURCE].volumes[ZVOL].bookmarks]
        assert marked == [guid(1), guid(number - 1)]
        volume = here[SOURCE].volumes[ZVOL]
        volume = replace(volume, snapshots=(*volume.snapshots, snapshot(number, ZVOL)))
        here = {**here, SOURCE: replace(here[SOURCE], volumes={**here[SOURCE].volumes, ZVOL: volume})}
    here = project(here, replicate(here).steps)
    assert [found.guid for found in here[SOURCE].volumes[ZVOL].bookmarks] == [guid(8)]


def test_full_streams_that_never_arrive_leave_four_bookmarks_and_hold_up_no_pruning() -> None:
    """Between the two oldest lies the base of the replica that was there once; and the newest may be arriving."""
    here = {**build(["o-", "O-", "o-", "O-", "o-"]), HOST: listing(HOST)}
    for number in range(6, 14):
        plan = replicate(here)
        sent = next(index for index, step in enumerate(plan.steps) if isinstance(step, Send))
        here = project(here, plan.steps[:sent])
        marked = [found.guid for found in here[SOURCE].volumes[ZVOL].bookmarks]
        assert marked == [guid(2), guid(4), *([guid(number - 2)] if number > 6 else []), guid(number - 1)]
        policy = PrunePolicy(keep={SOURCE: (Keep(last=1),), HOST: (Keep(last=1),)})
        pruned = plan_prune(Vmid(100), survey(here), policy, tz=UTC, now=DAY0 + 40 * 3600).plan.steps
        here = project(here, pruned)
        volume = here[SOURCE].volumes[ZVOL]
        assert [s.guid for s in volume.snapshots] == [guid(2), guid(3), *marked[1:]], "3 may be the base"
        volume = replace(volume, snapshots=(*volume.snapshots, snapshot(number, ZVOL)))
        here = {**here, SOURCE: replace(here[SOURCE], volumes={**here[SOURCE].volumes, ZVOL: volume})}
    here = project(here, replicate(here).steps)
    assert [found.guid for found in here[SOURCE].volumes[ZVOL].bookmarks] == [guid(13)]


def test_the_bookmark_of_an_interrupted_full_stream_stays() -> None:
    token = ResumeToken(token="1-x", to_guid=guid(3))
    here = build(["O-", "O-", "O-", "O-", "O-", "O-", "o-"], token=token)
    plan = replicate(here)
    resume = next(index for index, step in enumerate(plan.steps) if isinstance(step, Resume))
    cut = project(here, plan.steps[:resume])
    assert [found.guid for found in cut[SOURCE].volumes[ZVOL].bookmarks] == [guid(n) for n in (1, 2, 3, 6, 7)]


def test_the_bookmark_of_the_base_outlives_a_resume_that_fails() -> None:
    token = replace(GOOD, from_guid=guid(1))
    here = build(["bh", "o-", "o-"], token=token)
    plan = replicate(here)
    resume = next(index for index, step in enumerate(plan.steps) if isinstance(step, Resume))
    cut = project(here, plan.steps[:resume])
    assert [found.guid for found in cut[SOURCE].volumes[ZVOL].bookmarks] == [guid(1), guid(3)]
    done = project(here, plan.steps)
    assert [found.guid for found in done[SOURCE].volumes[ZVOL].bookmarks] == [guid(3)]


def test_a_bookmark_of_another_target_is_not_taken_for_ones_own() -> None:
    source = replace(source_volume(["bh", "o-"]), bookmarks=(bookmark(1, "backup2"), bookmark(1)))
    here = world(source, replica_volume(["bh", "o-"]))
    plan = replicate(here, replace(POLICY, host="backup1"))
    assert [s.bookmark.name for s in plan.steps if isinstance(s, DestroyBookmark)] == [bookmark(1).name]


def test_a_renamed_snapshot_on_the_target_is_a_base_but_no_longer_ours() -> None:
    here = build(["ou", "o-"])
    replica = here[HOST].volumes[REPLICA]
    renamed = replace(replica, snapshots=(replace(replica.snapshots[0], name="kept-by-admin"),))
    volumes = {**here[HOST].volumes, REPLICA: renamed}
    here = {**here, HOST: replace(here[HOST], volumes=volumes)}
    plan = replicate(here)
    assert send_of(plan.steps).base is not None
    assert [step.source.guid for step in plan.steps if isinstance(step, Mark)] == [guid(2)]
    assert replicate(project(here, plan.steps)).steps == ()


def test_bookmarks_of_other_targets_and_other_tools_stay() -> None:
    source = source_volume(["Oh", "o-"])
    others = (bookmark(1, "backup2"), replace(bookmark(1), name="syncoid_x"), bookmark(1, "backup1:x"))
    here = world(replace(source, bookmarks=(*source.bookmarks, *others)), replica_volume(["Oh", "o-"]))
    gone = [step.bookmark for step in replicate(here).steps if isinstance(step, DestroyBookmark)]
    assert gone == [bookmark(1)]


def test_a_bookmark_of_a_name_used_again_is_replaced() -> None:
    source = source_volume(["Oh"])
    stale = replace(bookmark(1), guid=Guid("31337"))
    here = world(replace(source, bookmarks=(stale,)), replica_volume(["Oh"]))
    steps = [step for step in replicate(here).steps if isinstance(step, CreateBookmark | DestroyBookmark)]
    assert steps == [
        DestroyBookmark(bookmark=stale),
        CreateBookmark(snapshot=source.snapshots[0], name=bookmark(1).name),
    ]
    assert replicate(project(here, steps)).steps == ()


def test_two_targets_have_bases_of_their_own() -> None:
    here = build(["oh", "o-"])
    second = replace(here[HOST], host="backup2", volumes={ROOT: parent(ROOT)})
    here = {**here, "backup2": second}
    policy = replace(POLICY, host="backup2")
    after = project(project(here, replicate(here).steps), replicate(here, policy).steps)
    assert [send_of(replicate(here, p).steps).base is None for p in (POLICY, policy)] == [False, True]
    names = {mark.name for mark in after[SOURCE].volumes[ZVOL].bookmarks}
    assert names == {bookmark(2).name, bookmark(2, "backup2").name}


def test_without_a_tag_nothing_is_held_from_here() -> None:
    for history in itertools.product(["oh", "om", "o-"], repeat=3):
        plan = replicate(build(history), replace(POLICY, hold_tag=""))
        assert replicate(build(history), replace(POLICY, append_only=True)) == plan
        assert not any(isinstance(step, Hold | Release) for step in plan.steps)


def test_a_disk_without_a_dataset_is_a_conflict() -> None:
    here = build(["o-"])
    for disk in (replace(DISK, dataset=None), replace(DISK, dataset=Dataset("rpool/gone"))):
        plan = replicate(here, disk=disk)
        assert [conflict.kind for conflict in plan.conflicts] == ["missing-dataset"]
        assert plan.reasons


def test_nothing_of_ours_nothing_to_do() -> None:
    plan = replicate(build(["f-", "i-"]))
    assert (plan.steps, plan.conflicts) == ((), ())
    assert "no snapshot of a complete recovery point" in plan.reasons[0]


def test_the_source_dataset_of_a_mark_is_the_one_that_was_sent() -> None:
    for step in replicate(build(["ou", "o-"])).steps:
        if isinstance(step, Mark):
            assert step.volume == SOURCE_GUID


def test_a_base_that_is_there_as_snapshot_and_bookmark_is_sent_from_the_snapshot() -> None:
    """Only from a snapshot can several be sent in one stream."""
    here = build(["Oh", "o-", "o-"])
    send = send_of(replicate(here).steps)
    assert isinstance(send.base, Snapshot)
    assert [sent.guid for sent in send.through] == [guid(2)]


def test_an_interrupted_receive_of_another_live_disk_is_not_thrown_away() -> None:
    """Two disks swapped their names, and the other one's next receive was cut."""
    source = source_volume(["o-"])
    other = Volume(name=OTHER, guid=Guid("4444"), type="volume")
    for token in (STALE, replace(GOOD, to_guid=guid(1))):
        here = world(source, replace(stranger(REPLICA), resume=token))
        here = {**here, SOURCE: listing(SOURCE, source, other)}
        steps = replicate(here).steps
        assert not any(isinstance(step, AbortReceive | Resume) for step in steps)
        assert send_of(steps).dataset == GENERATION


def test_an_interrupted_receive_into_an_old_generation_is_thrown_away() -> None:
    """Nothing can go on there: it would only pin its base for ever."""
    here = world(source_volume(["o-"]), replace(stranger(REPLICA), resume=STALE))
    steps = replicate(here).steps
    assert [step.dataset for step in steps if isinstance(step, AbortReceive)] == [REPLICA]
    assert replicate(project(here, steps)).steps == ()


def test_holds_on_foreign_snapshots_are_not_released() -> None:
    here = build(["ff", "oh", "o-"])
    replica = here[HOST].volumes[REPLICA]
    held = tuple(replace(found, userrefs=1) for found in replica.snapshots)
    volumes = {**here[HOST].volumes, REPLICA: replace(replica, snapshots=held)}
    here = {**here, HOST: replace(here[HOST], volumes=volumes)}
    released = [step.snapshot.guid for step in replicate(here).steps if isinstance(step, Release)]
    assert released == [guid(2)]


@pytest.mark.parametrize("later", [False, True])
def test_a_snapshot_made_anew_under_our_name_is_never_sent_over_the_old_one(later: bool) -> None:
    """Its bookmark is still the base; whatever comes after it goes on from there."""
    history = ("Oh", "Oh", "o-") if later else ("Oh", "Oh")
    before = build(history)
    volume = before[SOURCE].volumes[ZVOL]
    forged = replace(volume.snapshots[1], guid=Guid("424242"), createtxg=volume.snapshots[1].createtxg + 5)
    changed = replace(volume, snapshots=(volume.snapshots[0], forged, *volume.snapshots[2:]))
    world = {**before, SOURCE: listing(SOURCE, changed)}
    plan = replicate(world)
    assert any("made anew" in warning for warning in plan.warnings)
    sent = [step for step in plan.steps if isinstance(step, Send)]
    assert [step.snapshot.guid for step in sent] == ([guid(3)] if later else [])
    after = project(world, plan.steps)
    assert guids(before[HOST].volumes[REPLICA]) <= guids(after[HOST].volumes[REPLICA])
    assert forged.guid not in guids(after[HOST].volumes[REPLICA])
