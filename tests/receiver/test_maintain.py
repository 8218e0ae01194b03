"""`maintain`: what it holds, destroys and aborts, and everything it leaves alone."""

from __future__ import annotations

import fcntl
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup import receiver
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.receiver import TroubleError, main
from tests.fakes.pools import Ds
from tests.receiver.conftest import ROOT, Target
from tests.receiver.world import ACCOUNT, DAY, HOUR, TAG, World, root


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(receiver, "ask", made.ask)
    return made


# -- Hold -----------------------------------------------------------------------------------------------------------


def test_every_snapshot_of_a_point_is_held_and_nothing_else(world: World) -> None:
    world.days(100, 3, 2, 1, disks=2)
    world.pools.snap(f"{world.disk(100).name}@manual")
    world.pools.snap(f"{world.disk(100).name}@pzb:20261118T110640Z-aaaa")  # our name, not marked: not a point yet
    report = world.maintain(keep_last=10)
    assert (report.held, report.problems) == (6, [])
    assert [sorted(snap.holds) for snap in world.snaps(100)] == [[TAG], [TAG], [TAG], [], []]
    again = world.maintain(keep_last=10)
    assert again.held == 0
    assert len(world.did("hold")) == 1, "one command for all of them, and none when all are held"


def test_a_snapshot_that_went_away_does_not_leave_the_others_without_hold(world: World) -> None:
    world.days(100, 3, 2, 1)
    victim = world.snaps(100)[1]

    def vanish(words: tuple[str, ...]) -> None:
        if words[0] == "hold":
            world.disk(100).snaps.pop(victim.name, None)

    world.before = vanish
    report = world.maintain(keep_last=10)
    assert report.problems == []
    assert [sorted(snap.holds) for snap in world.snaps(100)] == [[TAG], [TAG]]


# -- Prune ----------------------------------------------------------------------------------------------------------


def test_points_go_oldest_first_by_the_targets_own_policy(world: World) -> None:
    ids = world.days(100, 5, 4, 3, 2, 1, disks=2)
    report = world.maintain(keep_last=2)
    assert report.destroyed == ids[:3]
    assert world.points() == ids[3:]
    assert all("-r" not in words and "-R" not in words and "-F" not in words and "-d" not in words
               for words in world.did("destroy"))  # fmt: skip
    assert all(len(words) == 2 and "," not in words[1] and "%" not in words[1] for words in world.did("destroy"))
    assert [sorted(snap.holds) for snap in world.snaps(100)] == [[TAG]] * 2


def test_what_a_kept_point_borrows_from_stays_with_it(world: World) -> None:
    """`skip-unchanged` on the source: the second disk was not sent again."""
    first = world.point(100, 5 * DAY, disks=2)
    same = {1: world.snaps(100, 1)[0].guid}
    later = [world.point(100, age * DAY, disks=2, present=1, same=same) for age in (4, 3, 2, 1)]
    report = world.maintain(keep_last=2)
    assert report.destroyed == later[:2]
    assert world.points() == [first, *later[2:]]
    last = world.point(100, 0, disks=2)
    report = world.maintain(keep_last=1)
    assert report.destroyed == [first, *later[2:]]
    assert world.points() == [last]


def test_a_hold_is_released_right_before_its_snapshot_goes(world: World) -> None:
    world.days(100, 3, 2, 1)
    world.maintain(keep_last=10)
    world.asked.clear()
    world.maintain(keep_last=2)
    verbs = [(words[0], words[-1]) for words in world.asked if words[0] in ("release", "destroy", "hold")]
    assert [verb for verb, _ in verbs] == ["release", "destroy"]
    assert len({name for _, name in verbs}) == 1


def test_no_rule_keeps_everything(world: World) -> None:
    ids = world.days(100, 50, 4, 3, disks=2)
    world.days(100, 40, disks=2, present=1)
    assert world.maintain(keep_last=0).destroyed == []
    assert set(ids) < set(world.points())


def test_what_is_younger_than_minimum_age_stays(world: World) -> None:
    ids = world.days(100, 9, 8, 6, 5, 1)
    report = world.maintain(minimum_age=7.0 * DAY)
    assert report.destroyed == ids[:2]


def test_the_newest_of_each_guest_stay_by_number(world: World) -> None:
    ids = {vmid: world.days(vmid, 90, 80, 70, 60, 50) for vmid in (100, 101)}
    report = world.maintain(keep_last=1, minimum_count=3)
    assert sorted(report.destroyed) == sorted([*ids[100][:2], *ids[101][:2]])


def test_the_newest_complete_point_stays_whatever_the_policy_says(world: World) -> None:
    whole = world.point(100, 100 * DAY, disks=2)
    pieces = [world.point(100, age * DAY, disks=2, present=1) for age in (90, 80, 70)]
    report = world.maintain(keep_last=1, minimum_count=0)
    assert report.destroyed == []
    assert world.points() == [whole, *pieces]


def test_incomplete_points_go_only_under_a_newer_complete_one_and_with_age(world: World) -> None:
    old = world.point(100, 20 * DAY, disks=2, present=1)
    young = world.point(100, 3 * DAY, disks=2, present=1)
    world.point(100, 2 * DAY, disks=2)
    newer = world.point(100, 1 * DAY, disks=2, present=1)
    report = world.maintain(minimum_age=7.0 * DAY)
    assert report.destroyed == [old]
    assert young in world.points()
    assert newer in world.points()


def test_the_last_of_a_disk_that_only_some_points_have_stays(world: World) -> None:
    """One job sends the first disk every day, another one both at times: its next increment starts from the last."""
    both = world.point(100, 60 * DAY, disks=2)
    (base,) = world.snaps(100, 1)
    daily = world.days(100, *range(1, 20))
    report = world.maintain(keep_last=3, max_share=100)
    assert report.destroyed == daily[:-3]
    assert world.points() == [both, *daily[-3:]]
    assert world.snaps(100, 1) == [base]


def test_an_older_generation_goes_with_its_last_snapshot(world: World) -> None:
    old = world.days(100, 30, 29)
    world.pools.rename(world.disk(100).name, f"{world.disk(100).name}-old")
    replica = world.pools.datasets.pop(f"{ROOT}/local-zfs/vm-100-disk-0-old")
    replica.name = f"{ROOT}/local-zfs/vm-100-disk-0"
    world.pools.datasets[replica.name] = replica
    world.disk(100, suffix="-g0123abcd")
    moved = world.pools.datasets[f"{ROOT}/local-zfs/vm-100-disk-0-g0123abcd"]
    for age in (3, 2, 1):
        point = world.point(100, age * DAY)
        name = f"pzb:{point.partition('/')[2]}"
        moved.snaps[name] = replica.snaps.pop(name)
    assert world.maintain(keep_last=2, max_share=100).destroyed[:2] == old


def test_more_than_a_share_in_one_run_destroys_nothing_and_says_so(world: World) -> None:
    ids = world.days(100, *range(1, 11))
    report = world.maintain(keep_last=6, max_share=30)
    assert report.destroyed == []
    assert "4 of 10 points would go" in report.problems[0]
    assert report.notes == [f"would go: {point}" for point in ids[:4]]
    assert world.points() == ids
    assert world.maintain(keep_last=7, max_share=30).destroyed == ids[:3]


@pytest.mark.parametrize("creation", [10**11, 10**15, 2**63, 2**64 - 1])
@pytest.mark.parametrize("newest", [True, False])
def test_a_time_that_no_clock_has_destroys_nothing_and_says_so(world: World, creation: int, newest: bool) -> None:
    """`creation` comes with a stream: whoever can send can write there what no calendar has."""
    world.days(100, 5, 4, 3, 2, 1)
    (world.snaps(100)[-1 if newest else 0]).creation = creation
    report = world.keeper().root(root(keep_daily=1))
    assert any("a clock is wrong" in problem for problem in report.problems), report.problems
    assert report.destroyed == []
    assert report.held == 5, "and the rest is done"
    assert len(world.points()) == 5


def test_whatever_befalls_a_root_the_next_is_looked_after(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.days(100, 5, 4, 3, 2, 1)
    real = receiver.seen

    def broken(site: receiver.Site, one: receiver.Root, timeout: float) -> receiver.Seen:
        if one.name != ROOT:
            raise OverflowError("timestamp out of range")
        return real(site, one, timeout)

    monkeypatch.setattr(receiver, "seen", broken)
    roots = [receiver.Root(name="tank/other", account=ACCOUNT), root(keep_daily=1)]
    reports = receiver._all(world.site, roots, dry=False)
    assert [report.problems for report in reports] == [["OverflowError('timestamp out of range')"], []]
    assert reports[1].destroyed


def test_a_clock_before_the_newest_point_destroys_nothing(world: World) -> None:
    ids = world.days(100, 5, 4, 3, 2)
    world.point(101, -2 * HOUR)
    report = world.maintain()
    assert (report.destroyed, len(world.did("destroy", "release"))) == ([], 0)
    assert "a clock is wrong" in report.problems[0]
    assert set(ids) < set(world.points())


def test_no_command_of_it_waits_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that is suspended in the middle of a run kept the lock, and no root of any pool was looked after again."""
    endless: list[tuple[str, ...]] = []
    real = world.ask

    def asked(site: receiver.Site, *words: str, timeout: float | None = None, **more: Any) -> receiver.Told:
        if timeout is None:
            endless.append(words)
        return real(site, *words, timeout=timeout, **more)

    monkeypatch.setattr(receiver, "ask", asked)
    world.days(100, 20, 19, 18, 3)
    request(world, world.interrupted(100).name)
    report = world.maintain(minimum_count=1, max_share=100, keep_last=1)
    assert (report.problems, report.held, len(report.aborted), len(report.destroyed)) == ([], 4, 1, 3)
    assert endless == []


def test_a_command_that_never_ends_is_its_roots_problem(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.days(100, 20, 19, 18, 3)
    real = world.ask

    def asked(site: receiver.Site, *words: str, timeout: float | None = None, **more: Any) -> receiver.Told:
        if words[0] == "hold":
            raise receiver.TroubleError("zfs hold: no answer within 900 s")
        return real(site, *words, timeout=timeout, **more)

    monkeypatch.setattr(receiver, "ask", asked)
    reports = receiver._all(world.site, [root(), receiver.Root(name="tank/backups", account=ACCOUNT)], dry=False)
    assert [report.problems for report in reports] == [["zfs hold: no answer within 900 s"]] * 2


def test_what_has_clones_stays(world: World) -> None:
    ids = world.days(100, 3, 2, 1)
    clone = world.pools.add("tank/clone")
    clone.origin = f"{world.disk(100).name}@{world.snaps(100)[0].name}"
    assert world.maintain().destroyed == [ids[1]]


# -- What drills of this host left ------------------------------------------------------------------------------------

BENCH = "tank/pve-zfsbackup-drill"


def left(world: World, name: str, *, number: int = 0, age: float = DAY, mark: str | None = None) -> Ds:
    """A clone of a snapshot of guest 100, with the mark it would have."""
    parent = name.rpartition("/")[0]
    if parent not in world.pools.datasets:
        world.pools.add(parent)
    clone = world.pools.add(name, zvol=True)
    clone.origin = f"{world.disk(100).name}@{world.snaps(100)[number].name}"
    clone.creation = int(world.now - age)
    mark = name.rpartition("/")[2] if mark is None else mark
    if mark:
        clone.props["pve-zfsbackup:drill"] = mark
    return clone


@pytest.mark.parametrize("kind", ["drill", "files"])
def test_what_a_killed_drill_left_goes_after_a_day_and_lets_its_point_go(
    world: World, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = world.days(100, 3, 2, 1)
    clone = left(world, f"tank/pve-zfsbackup-{kind}/0a1b2c3d-0", age=DAY - 1)
    assert (world.maintain().swept, world.points()) == ([], [ids[0], ids[2]])
    clone.creation = world.now - DAY
    dry = world.keeper(dry=True).root(root())
    assert (dry.swept, dry.destroyed, clone.name in world.pools.datasets) == ([clone.name], [ids[0]], True)
    report = world.maintain()
    assert (report.swept, report.destroyed, report.problems, report.notes) == ([clone.name], [ids[0]], [], [])
    assert ("destroy", clone.name) in world.asked, "by its one full name"
    assert f"tank/pve-zfsbackup-{kind}" in world.pools.datasets


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("tank/pve-zfsbackup-boot/0a1b2c3d-0", None),  # a guest may run on it
        ("tank/pve-zfsbackup-drill/mine", None),
        ("tank/pve-zfsbackup-drill/0a1b2c3d-0/deeper", None),
        ("tank/x/pve-zfsbackup-drill/0a1b2c3d-0", None),
        (f"{BENCH}/0a1b2c3d-0", ""),
        (f"{BENCH}/0a1b2c3d-0", "0a1b2c3d-1"),
        (f"{ROOT}/local-zfs/clone", None),
    ],
)
def test_no_other_clone_is_ever_swept(world: World, name: str, mark: str | None) -> None:
    world.days(100, 3, 2, 1)
    clone = left(world, name, age=99 * DAY, mark=mark)
    report = world.maintain()
    assert (report.swept, clone.name in world.pools.datasets) == ([], True)
    assert any("has clones" in note for note in report.notes)


def test_what_became_another_since_it_was_listed_stays(world: World) -> None:
    world.days(100, 3, 2, 1)
    clone = left(world, f"{BENCH}/0a1b2c3d-0", age=9 * DAY)

    def promoted(words: tuple[str, ...]) -> None:
        if words[0] == "get" and words[-1] == clone.name:
            clone.origin = ""

    world.before = promoted
    assert (world.maintain().swept, clone.name in world.pools.datasets) == ([], True)


def test_a_drill_under_way_is_left_alone(world: World) -> None:
    world.days(100, 3, 2, 1)
    clone = left(world, f"{BENCH}/0a1b2c3d-0", age=9 * DAY)
    with run_lock(world.place / "run", "drill"):
        assert (world.maintain().swept, clone.name in world.pools.datasets) == ([], True)
    assert world.maintain().swept == [clone.name]


def test_a_clone_that_is_in_use_is_the_next_runs_business(world: World) -> None:
    world.days(100, 3, 2, 1)
    clone = left(world, f"{BENCH}/0a1b2c3d-0", age=9 * DAY)
    world.refuse["destroy"] = f"cannot destroy '{clone.name}': dataset is busy"
    report = world.maintain(keep_last=9)
    assert (report.swept, report.problems) == ([], [])
    assert report.notes[0] == f"{clone.name}: zfs destroy: \"cannot destroy '{clone.name}': dataset is busy\""


def test_what_somebody_else_holds_stays_without_alarm(world: World) -> None:
    ids = world.days(100, 3, 2, 1)
    world.snaps(100)[0].holds.add("legal")
    report = world.maintain()
    assert (report.destroyed, report.problems) == ([ids[1]], [])
    assert report.notes == [f"{ids[0]} stays: held by 'legal'"]
    assert "legal" in world.snaps(100)[0].holds


def test_the_base_of_an_interrupted_receive_stays(world: World) -> None:
    ids = world.days(100, 3, 2, disks=2)
    world.point(100, 1 * DAY, disks=2)
    for dataset in (world.disk(100, 1),):  # the newest never arrived on the second disk: its base is older
        dataset.snaps.popitem()
    newest = world.point(100, 0, disks=1)
    world.interrupted(100, 1)
    report = world.maintain()
    assert ids[1] not in report.destroyed
    assert report.destroyed == [ids[0]] or ids[0] in report.destroyed
    assert newest in world.points()
    assert world.disk(100, 1).partial is not None


def test_a_snapshot_made_anew_since_the_listing_stays(world: World) -> None:
    ids = world.days(100, 3, 2, 1)
    oldest = world.snaps(100)[0]

    def swap(words: tuple[str, ...]) -> None:
        if words[0] == "get":
            oldest.guid = 4711

    world.before = swap
    report = world.maintain()
    assert oldest.name in world.disk(100).snaps
    assert any("changed since they were listed" in problem for problem in report.problems)
    assert report.destroyed == [ids[1]]


def test_a_snapshot_that_lost_our_property_stays(world: World) -> None:
    world.days(100, 3, 2, 1)
    oldest = world.snaps(100)[0]

    def strip(words: tuple[str, ...]) -> None:
        if words[0] == "get":
            oldest.props.pop("pve-zfsbackup:point", None)

    world.before = strip
    world.maintain()
    assert oldest.name in world.disk(100).snaps


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("manual", "100/{stamp}"),
        ("pzb:{stamp}x", "100/{stamp}"),
        ("__replicate_100-0_1795000000__", "100/{stamp}"),
        ("pzb:{stamp}", "100/20200101T000000Z-0000"),
        ("pzb:{stamp}", "x/{stamp}"),
        ("pzb:{stamp}", ""),
    ],
)
def test_only_what_has_our_name_and_our_property_is_touched(world: World, name: str, point: str) -> None:
    world.days(100, 3, 2, 1)
    stamp = "20200102T000000Z-0001"
    dataset = world.disk(100)
    made = world.pools.freeze(dataset, name.format(stamp=stamp), 5, {"pve-zfsbackup:disks": "scsi0=local-zfs:x#1000"})
    made.creation = world.now - 90 * DAY
    made.props["pve-zfsbackup:point"] = point.format(stamp=stamp)
    world.maintain()
    assert made.name in dataset.snaps
    assert made.holds == set()


def test_a_property_inherited_from_the_dataset_makes_nothing_ours(world: World) -> None:
    dataset = world.disk(100)
    dataset.props["pve-zfsbackup:point"] = "100/20200102T000000Z-0001"
    world.pools.snap(f"{dataset.name}@auto")
    world.days(100, 3, 2, 1)
    world.maintain()
    assert "auto" in dataset.snaps


def test_a_busy_snapshot_is_tried_again_and_stays_held(world: World) -> None:
    world.days(100, 3, 2, 1)
    world.maintain(keep_last=10)
    world.refuse["destroy"] = "cannot destroy snapshot: dataset is busy\n"
    report = world.maintain()
    assert (report.destroyed, report.problems) == ([], [])
    assert len(report.notes) == 2
    assert all(snap.holds == {TAG} for snap in world.snaps(100))
    world.refuse.clear()
    assert len(world.maintain().destroyed) == 2


def test_a_destroy_that_fails_is_told_and_the_next_point_still_goes(world: World) -> None:
    ids = world.days(100, 3, 2, 1)
    first = world.snaps(100)[0].name

    def fail(words: tuple[str, ...]) -> None:
        world.refuse.clear()
        if words[0] == "destroy" and words[1].endswith(first):
            world.refuse["destroy"] = "cannot destroy: permission denied\n"

    world.before = fail
    report = world.maintain()
    assert report.destroyed == [ids[1]]
    assert "permission denied" in report.problems[0]


def test_a_listing_that_fails_changes_nothing(world: World) -> None:
    world.days(100, 3, 2, 1)
    world.refuse["list"] = "cannot open: I/O error\n"
    report = world.maintain()
    assert "I/O error" in report.problems[0]
    assert [words[0] for words in world.asked] == ["list"]


def test_a_listing_that_is_garbage_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "ask", lambda *args, **_: receiver.Told(0, "tank\tx\n", ""))
    assert world.maintain().problems


def test_a_suspended_pool_is_told_and_nothing_is_run(world: World) -> None:
    (world.place / "kstat" / "tank").mkdir(parents=True)
    (world.place / "kstat" / "tank" / "state").write_text("SUSPENDED\n")
    report = world.maintain()
    assert "pool tank is suspended" in report.problems[0]
    assert world.asked == []


def test_a_dry_run_says_the_same_and_does_nothing(world: World) -> None:
    ids = world.days(100, 5, 4, 3, 2, 1)
    world.interrupted(100)
    keeper = world.keeper(dry=True)
    keeper.partials[world.disk(100).name] = (world.interrupted(100).partial.token, 0.0)  # type: ignore[union-attr]
    report = keeper.root(root(keep_last=2))
    assert report.destroyed == ids[:3]
    assert report.aborted == [world.disk(100).name]
    assert report.held == 5
    assert world.did("hold", "release", "destroy", "receive") == []


def test_replicas_without_any_snapshot_are_reported_not_removed(world: World) -> None:
    empty = world.disk(103)
    world.days(100, 1)
    assert world.maintain().empty == [empty.name]
    assert empty.name in world.pools.datasets


def test_ten_thousand_runs_never_take_the_last_complete_point(world: World) -> None:
    """Random histories, random policies, several runs each: what must stay is there after every one."""
    chance = random.Random(7)
    for _ in range(300):
        for dataset in [name for name in world.pools.datasets if name.count("/") > 3]:
            world.pools.drop(dataset)
        whole: dict[int, str] = {}
        for age in sorted(chance.sample(range(1, 400), chance.randrange(1, 12)), reverse=True):
            vmid, disks = chance.choice((100, 101)), chance.choice((1, 2))
            present = chance.choice((1, disks))
            made = world.point(vmid, age * DAY / 7, disks=disks, present=present)
            if present == disks:
                whole[vmid] = made
        policy = {f"keep_{word}": chance.choice((0, 0, 1, 2)) for word in ("last", "daily", "weekly", "monthly")}
        for _ in range(3):
            world.maintain(**policy, minimum_count=0)
            assert set(whole.values()) <= set(world.points())


# -- Abort ----------------------------------------------------------------------------------------------------------


def request(world: World, dataset: str) -> Path:
    """As the forced command leaves it, for this process's own account."""
    own = world.place / "state" / "spool" / str(os.geteuid())
    own.mkdir(mode=0o700, exist_ok=True)
    path = own / receiver.spooled("abort", dataset)
    path.touch()
    return path


def test_a_requested_abort_is_done_and_struck_out(world: World) -> None:
    world.days(100, 1)
    dataset = world.interrupted(100)
    path = request(world, dataset.name)
    report = world.maintain()
    assert report.aborted == [dataset.name]
    assert dataset.partial is None
    assert not path.exists()
    assert len(dataset.snaps) == 1


def test_a_request_for_what_was_not_interrupted_is_struck_out(world: World) -> None:
    world.days(100, 1)
    path = request(world, world.disk(100).name)
    assert world.maintain().aborted == []
    assert not path.exists()
    assert world.did("receive") == []


@pytest.mark.parametrize("name", ["tank/backups/pve2/x", "tank", ROOT, f"{ROOT}/../x", f"{ROOT}/x@y", "-r"])
def test_a_request_outside_of_the_root_is_not_heard(world: World, name: str) -> None:
    world.pools.add("tank/backups/pve2")
    world.pools.add("tank/backups/pve2/x").partial = world.interrupted(100).partial
    world.disk(100).partial = None
    path = request(world, name)
    assert world.maintain().aborted == []
    assert path.exists()
    assert world.did("receive") == []


def test_a_request_that_cannot_be_struck_out_keeps_nothing_else_from_being_done(world: World) -> None:
    """The account may make a directory of that name: its root would never be held or pruned again."""
    world.days(100, 20, 19, 18, 3)
    path = request(world, world.disk(100).name)
    path.unlink()
    path.mkdir()
    report = world.maintain(minimum_count=1, max_share=100, keep_last=1)
    assert len(report.problems) == 1
    assert path.name in report.problems[0]
    assert report.held == 4
    assert len(report.destroyed) == 3


def test_requests_of_another_account_are_not_heard(world: World) -> None:
    dataset = world.interrupted(100)
    request(world, dataset.name)
    report = world.keeper().root(root(account="daemon"))
    assert report.aborted == []
    assert dataset.partial is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away; make test runs as root")
def test_a_spool_directory_of_the_wrong_owner_is_an_alarm(world: World) -> None:
    dataset = world.interrupted(100)
    os.chown(request(world, dataset.name).parent, 12345, 12345)
    world.days(101, 1)
    report = world.maintain()
    assert f"not of account {ACCOUNT}" in report.problems[0]
    assert dataset.partial is not None
    assert report.held == 1, "who puts something into the spool must not keep the rest from being done"


def test_a_spool_directory_that_is_a_link_is_not_followed(world: World, tmp_path: Path) -> None:
    dataset = world.interrupted(100)
    path = request(world, dataset.name)
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    assert world.maintain().problems
    assert dataset.partial is not None


def test_an_account_that_does_not_exist_is_told_and_the_rest_is_done(world: World) -> None:
    world.days(100, 1)
    report = world.maintain(account="nobody-of-that-name")
    assert "'nobody-of-that-name' does not exist" in report.problems[0]
    assert report.held == 1


def test_an_abort_that_meets_a_live_receive_waits_for_the_next_run(world: World) -> None:
    dataset = world.interrupted(100)
    path = request(world, dataset.name)
    world.refuse["receive"] = "cannot destroy 'x/%recv': dataset is busy\n"
    report = world.maintain()
    assert (report.aborted, report.problems, path.exists()) == ([], [], True)
    world.refuse.clear()
    assert world.maintain().aborted == [dataset.name]


def test_a_partial_that_nothing_goes_on_with_is_aborted_after_a_while(world: World) -> None:
    dataset = world.interrupted(100)
    keeper = world.keeper()
    for _ in range(7):
        assert keeper.root(root(stale_partials=7.0 * DAY)).aborted == []
        keeper.now += DAY
    assert keeper.root(root(stale_partials=7.0 * DAY)).aborted == [dataset.name]
    assert keeper.root(root()).aborted == []
    assert keeper.partials == {}


def test_a_partial_that_grows_is_never_stale(world: World) -> None:
    dataset = world.interrupted(100)
    keeper = world.keeper()
    for done in range(30):
        assert dataset.partial is not None
        dataset.partial = type(dataset.partial)(package=dataset.partial.package, done=done)
        assert keeper.root(root(stale_partials=2.0 * DAY)).aborted == []
        keeper.now += DAY


def test_a_partial_that_went_on_since_the_listing_is_left_alone(world: World) -> None:
    dataset = world.interrupted(100)
    keeper = world.keeper()
    assert dataset.partial is not None
    keeper.partials[dataset.name] = (dataset.partial.token, 0.0)

    def goes_on(words: tuple[str, ...]) -> None:
        if words[0] == "get":
            assert dataset.partial is not None
            dataset.partial = type(dataset.partial)(package=dataset.partial.package, done=500)

    world.before = goes_on
    assert keeper.root(root()).aborted == []
    assert dataset.partial is not None


# -- The whole command ----------------------------------------------------------------------------------------------


def configured(place: Path, text: str = "") -> Path:
    path = place / "receiver.toml"
    path.write_text(f'[roots."{ROOT}"]\naccount = "{ACCOUNT}"\nkeep-last = 1\n{text}')
    path.chmod(0o644)
    return path


def run(world: World, *arguments: str, text: str = "") -> int:
    return main([*arguments, "--config", str(configured(world.place, text)), "--state", str(world.place / "state")])


@pytest.fixture
def today(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(time, "time", lambda: float(world.now))
    return world


def test_all_well_says_nothing_and_remembers(today: World, capfd: pytest.CaptureFixture[str]) -> None:
    today.days(100, 1, 2)
    today.interrupted(100)
    assert run(today, "maintain") == 0
    assert capfd.readouterr() == ("", "")
    known = receiver.remembered(today.site)
    assert known.finished == today.now
    assert list(known.partials) == [today.disk(100).name]


def test_a_problem_is_one_line_on_stderr_and_the_status(today: World, capfd: pytest.CaptureFixture[str]) -> None:
    today.days(100, *range(20, 40))
    assert run(today, "maintain") == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "more than max-share of 30 %" in err
    known = receiver.remembered(today.site)
    assert known.finished == today.now, "it did what it could"
    assert "more than max-share of 30 %" in known.problems[ROOT]
    assert run(today, "maintain", text="max-share = 100") == 0
    assert receiver.remembered(today.site).problems == {}


def test_json_tells_everything(today: World, capfd: pytest.CaptureFixture[str]) -> None:
    ids = today.days(100, 20, 19, 18, 3)
    assert run(today, "maintain", "--json", text="minimum-count = 1\nmax-share = 80") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["dry-run"] is False
    (report,) = told["roots"]
    assert report["destroyed"] == ids[:3]
    assert (report["points"], report["held"], report["problems"]) == (4, 4, [])


def test_a_dry_run_tells_a_person_and_leaves_no_trace(today: World, capfd: pytest.CaptureFixture[str]) -> None:
    ids = today.days(100, 20, 19, 18, 3)
    assert run(today, "maintain", "--dry-run", text="minimum-count = 3\nmax-share = 80") == 0
    assert capfd.readouterr().out == f"{ROOT}: 4 points, 4 snapshots to hold\n  destroy {ids[0]}\n"
    assert not (today.place / "state" / "maintain.json").exists()


def test_one_roots_trouble_is_not_the_others(today: World, capfd: pytest.CaptureFixture[str]) -> None:
    today.days(100, 1, 2)
    text = 'minimum-count = 1\n[roots."tank/backups/gone"]\nkeep-last = 1\n'
    assert run(today, "maintain", text=text) == 1
    assert "tank/backups/gone: zfs list" in capfd.readouterr().err
    assert all(snap.holds for snap in today.snaps(100))


def test_only_one_runs_at_a_time(today: World, capfd: pytest.CaptureFixture[str]) -> None:
    with open(today.place / "state" / "maintain.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(today, "maintain") == 75
    assert "another `maintain` is at work" in capfd.readouterr().err
    assert today.asked == []


def test_a_lost_memory_only_lets_partials_age_anew(today: World) -> None:
    dataset = today.interrupted(100)
    assert run(today, "maintain") == 0
    for garbage in ("", "{", "[]", '{"partials": 7}', "null"):
        (today.place / "state" / "maintain.json").write_text(garbage)
        today.pools.clock.now += 6 * DAY
        assert run(today, "maintain") == 0
        assert dataset.partial is not None
        assert receiver.remembered(today.site).partials[dataset.name][1] == today.now


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keep_last = 1", "'keep_last' is not known"),
        ("keep-daily = -1", "expected a whole number"),
        ("keep-daily = true", "expected a whole number"),
        ('keep-daily = "7"', "expected a whole number"),
        ("minimum-age = 7", "expected a span of time"),
        ('minimum-age = "7 days"', "expected a span of time"),
        ('timezone = "Nowhere/Land"', "Nowhere"),
        ('ignore-guests = ["x"]', "list of whole numbers"),
        ("max-share = 1.5", "expected a whole number"),
        ("keep-daily = ", "Invalid value"),
        ('[roots."tank"]', "not a dataset below a pool"),
        ('[roots."tank/../x"]', "not a dataset below a pool"),
        ("[else]", "expected tables"),
    ],
)
def test_a_wrong_configuration_stops_before_anything(
    today: World, capfd: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    assert run(today, "maintain", text=text) == 3
    assert told in capfd.readouterr().err
    assert today.asked == []


def test_a_configuration_that_others_may_write_is_refused(today: World, capfd: pytest.CaptureFixture[str]) -> None:
    path = configured(today.place)
    path.chmod(0o666)
    assert main(["maintain", "--config", str(path), "--state", str(today.place / "state")]) == 3
    assert "others may write it" in capfd.readouterr().err


def test_no_configuration_is_an_error_of_configuration(today: World) -> None:
    with pytest.raises(TroubleError) as told:
        receiver.load(str(today.place / "none.toml"))
    assert told.value.status == 3


@pytest.mark.processes
def test_the_program_itself_with_programs_of_its_own(target: Target) -> None:
    """Not in memory: the file, run by a plain interpreter, with a scripted zfs."""
    rows = [
        ["filesystem", ROOT, "1", "1", "1", "-", "-", "-", "-", "-", "-", "-"],
        ["volume", f"{ROOT}/s/vm-100-disk-0", "2", "2", "2", "-", "-", "-", "-", "-", "-", "-"],
        [
            "snapshot", f"{ROOT}/s/vm-100-disk-0@pzb:20261118T110640Z-0064", "3", "3", "1795000000", "0", "-", "-",
            "100/20261118T110640Z-0064", "scsi0=s:vm-100-disk-0#17", "17", "-",
        ],
    ]  # fmt: skip
    target.says("zfs", "list", out="".join("\t".join(row) + "\n" for row in rows))
    options = ["--config", str(configured(target.place)), "--state", str(target.place / "state")]
    done = target.run("maintain", "--json", "--bin", str(target.place / "bin"), *options)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["roots"][0]["held"] == 1
    assert [argv[1] for argv in target.argvs] == ["list", "hold"]
    assert target.argvs[1] == ["zfs", "hold", TAG, f"{ROOT}/s/vm-100-disk-0@pzb:20261118T110640Z-0064"]


def test_every_age_is_told_shortly() -> None:
    told = [receiver.span(seconds) for seconds in (0, 119, 120, 7199, 7200, 2 * DAY - 1, 2 * DAY, 400 * DAY)]
    assert told == ["0 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 d", "400 d"]
