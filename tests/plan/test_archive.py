"""What is due for a box, on which base, and what may go: decided, not done."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC

import pytest

from pve_zfsbackup.model import (
    SOURCE,
    Bookmark,
    CreateBookmark,
    Dataset,
    DestroyBookmark,
    Disk,
    Guest,
    GuestKind,
    Guid,
    Keep,
    Listing,
    PointDisk,
    PointId,
    Snapshot,
    Vmid,
    Volume,
    encode_disks,
)
from pve_zfsbackup.model.archive import Archived, ArchivedDisk, ArchivePlan, Begun
from pve_zfsbackup.plan.archive import (
    DAY,
    ArchivePolicy,
    plan_archive,
    plan_bookmarks,
    plan_expiry,
    removals,
)

POLICY = ArchivePolicy(every=DAY, full_days=30, full_increments=30, full_percent=100)
NOON = 1_800_000_000
VOLUMES = {"scsi0": ("1", "rpool/data/vm-100-disk-0"), "scsi1": ("2", "fast/vm-100-disk-1")}
DISKS = encode_disks(
    PointDisk(key=key, volid=f"s:{name.rpartition('/')[2]}", guid=Guid(guid)) for key, (guid, name) in VOLUMES.items()
)
GUEST = Guest(
    vmid=Vmid(100), kind=GuestKind.VM, node="pve1", name="web", running=True,
    disks=tuple(
        Disk(key=key, volid=f"s:{name.rpartition('/')[2]}", dataset=Dataset(name)) for key, (_, name) in VOLUMES.items()
    ),
)  # fmt: skip


def stamp(day: int) -> str:
    return f"202701{day + 1:02d}T120000Z-0001"


def snap(key: str, day: int) -> Snapshot:
    number, name = VOLUMES[key]
    return Snapshot(
        dataset=Dataset(name), name=f"pzb:{stamp(day)}", guid=Guid(f"{number}0{day}"), createtxg=100 + day,
        creation=NOON + day * DAY, point=PointId(f"100/{stamp(day)}"), disks=DISKS, consistency="quiesced",
    )  # fmt: skip


def world(*days: int, marks: dict[str, tuple[int, ...]] | None = None, gone: frozenset[str] = frozenset()) -> Listing:
    """Points of these days; bookmarks of the box of these days by disk."""
    volumes = {}
    for key, (number, name) in VOLUMES.items():
        if key in gone:
            continue
        bookmarks = tuple(
            Bookmark(
                dataset=Dataset(name), name=f"pzb:{stamp(day)}:box1", guid=Guid(f"{number}0{day}"),
                createtxg=100 + day, creation=NOON + day * DAY,
            )
            for day in (marks or {}).get(key, ())
        )  # fmt: skip
        volumes[Dataset(name)] = Volume(
            name=Dataset(name), guid=Guid(number), type="volume", encrypted=key == "scsi1",
            snapshots=tuple(snap(key, day) for day in days), bookmarks=bookmarks,
        )  # fmt: skip
    return Listing(host=SOURCE, volumes=volumes)


def there(day: int, *, sequence: int = 1, parent: str = "", generation: str = "g1", size: int = 100) -> Archived:
    return Archived(
        point=PointId(f"100/{stamp(day)}"), vmid=Vmid(100), creation=NOON + day * DAY, consistency="quiesced",
        series="s", generation=generation, name=f"p{sequence}", sequence=sequence, parent=parent, bytes=size,
        disks={
            key: ArchivedDisk(key=key, volid="x", volume=Guid(number), guid=Guid(f"{number}0{day}"))
            for key, (number, _) in VOLUMES.items()
        },
    )  # fmt: skip


def bases(plan: ArchivePlan) -> dict[str, str]:
    assert plan.task is not None
    return {stream.key: stream.base.full_name if stream.base else "" for stream in plan.task.streams}


def test_the_first_one_is_full() -> None:
    plan = plan_archive(GUEST, world(0, 1), [], POLICY)
    assert plan.reasons == ("full: the first one",)
    assert plan.task is not None
    assert (plan.task.point, plan.task.parent) == (f"100/{stamp(1)}", None)
    assert bases(plan) == {"scsi0": "", "scsi1": ""}
    assert [stream.raw for stream in plan.task.streams] == [False, True]


@pytest.mark.parametrize(
    ("parent", "archived", "days", "point"),
    [
        ("", [], (0, 1), 0),
        ("p1", [there(0)], (0, 1, 2), 1),
        ("p0", [there(0)], (0, 1, 2), 2),  # its parent is no longer the newest
        ("", [there(0)], (0, 1, 2), 2),  # it was to be a full one, and an increment will do
        ("p1", [], (0, 1, 2), 2),
        ("p1", [there(0)], (0, 2), 2),  # gone from the source
        ("p1", [there(1)], (0, 1, 2), 2),  # published after all
        ("p1", [there(0)], (0, 1, 40), 40),  # begun too long ago
    ],
)
def test_what_was_begun_goes_before_what_is_newer_while_it_would_be_the_same(
    parent: str, archived: list[Archived], days: tuple[int, ...], point: int
) -> None:
    begun = Begun(point=PointId(f"100/{stamp(1 if archived or parent else 0)}"), parent=parent)
    policy = replace(POLICY, full_days=1000)
    plan = plan_archive(GUEST, world(*days), archived, policy, begun=begun)
    assert plan.task is not None
    assert plan.task.point == f"100/{stamp(point)}"
    assert ("goes on" in plan.reasons[-1]) is (point != days[-1])


def test_the_next_one_builds_on_what_is_there() -> None:
    plan = plan_archive(GUEST, world(0, 1), [there(0)], POLICY)
    assert plan.task is not None
    assert plan.task.parent == there(0)
    assert bases(plan) == {key: f"{name}@pzb:{stamp(0)}" for key, (_, name) in VOLUMES.items()}
    assert plan.reasons == (f"increment to 100/{stamp(0)}",)


def test_a_bookmark_is_base_where_the_snapshot_is_gone() -> None:
    listing = world(1, marks={"scsi0": (0,), "scsi1": (0,)})
    plan = plan_archive(GUEST, listing, [there(0)], POLICY)
    assert bases(plan) == {key: f"{name}#pzb:{stamp(0)}:box1" for key, (_, name) in VOLUMES.items()}


def test_a_disk_without_base_goes_in_full_and_is_told() -> None:
    plan = plan_archive(GUEST, world(1, marks={"scsi0": (0,)}), [there(0)], POLICY)
    assert bases(plan)["scsi1"] == ""
    assert bases(plan)["scsi0"] != ""
    assert plan.warnings == ("scsi1: what its last archive is based on is gone, so it goes in full once more",)


def test_without_any_base_a_new_generation_begins() -> None:
    plan = plan_archive(GUEST, world(1), [there(0)], POLICY)
    assert plan.task is not None
    assert plan.task.parent is None
    assert "neither snapshot nor bookmark" in plan.reasons[0]


def test_a_disk_made_anew_has_no_base() -> None:
    """Its dataset has another guid, whatever snapshot it may have."""
    archived = there(0)
    other = {**archived.disks, "scsi0": ArchivedDisk(key="scsi0", volid="x", volume=Guid("99"), guid=Guid("100"))}
    plan = plan_archive(GUEST, world(0, 1), [Archived(**{**_members(archived), "disks": other})], POLICY)
    assert bases(plan)["scsi0"] == ""


def _members(archived: Archived) -> dict[str, object]:
    return {name: getattr(archived, name) for name in Archived.__dataclass_fields__}


@pytest.mark.parametrize(
    ("listing", "archived", "reason"),
    [
        (world(), [], "no complete recovery point"),
        (world(0, gone=frozenset({"scsi1"})), [], "no complete recovery point"),
        (world(0), [there(0)], "nothing new"),
        (world(0), [there(1)], "is newer than"),
    ],
)
def test_nothing_is_due(listing: Listing, archived: list[Archived], reason: str) -> None:
    plan = plan_archive(GUEST, listing, archived, POLICY)
    assert plan.task is None
    assert reason in plan.reasons[0]


def test_what_was_made_while_a_clock_was_wrong_stops_nothing() -> None:
    """One point of a year to come, on the source or in the box, is not the newest until that year."""
    policy = replace(POLICY, now=NOON + 2 * DAY)
    plan = plan_archive(GUEST, world(0, 2, 20), [there(0)], policy)
    assert plan.task is not None
    assert plan.task.point == f"100/{stamp(2)}"
    plan = plan_archive(GUEST, world(0, 2), [there(0), there(20, sequence=2, parent="p1")], policy)
    assert plan.task is not None
    assert plan.task.point == f"100/{stamp(2)}"
    assert plan_archive(GUEST, world(20), [there(20)], policy).task is None, "that one is there"


def test_it_waits_as_long_as_it_is_told() -> None:
    policy = ArchivePolicy(every=2 * DAY, full_days=30, full_increments=30, full_percent=100)
    assert plan_archive(GUEST, world(0, 1), [there(0)], policy).task is None
    assert plan_archive(GUEST, world(0, 2), [there(0)], policy).task is not None


@pytest.mark.parametrize(
    ("policy", "archived", "reason"),
    [
        (ArchivePolicy(every=1, full_days=3, full_increments=9, full_percent=900), [there(0)], "3 days old"),
        (
            ArchivePolicy(every=1, full_days=30, full_increments=1, full_percent=900),
            [there(0), there(1, sequence=2, parent="p1")],
            "1 increments",
        ),
        (
            ArchivePolicy(every=1, full_days=30, full_increments=9, full_percent=50),
            [there(0), there(1, sequence=2, parent="p1", size=50)],
            "50 % of the size",
        ),
    ],
)
def test_a_chain_ends_by_age_length_and_size(policy: ArchivePolicy, archived: list[Archived], reason: str) -> None:
    plan = plan_archive(GUEST, world(0, 1, 3), archived, policy)
    assert plan.task is not None
    assert plan.task.parent is None
    assert reason in plan.reasons[0]


def test_a_chain_below_its_limits_goes_on() -> None:
    policy = ArchivePolicy(every=1, full_days=4, full_increments=2, full_percent=51)
    archived = [there(0), there(1, sequence=2, parent="p1", size=50)]
    plan = plan_archive(GUEST, world(0, 1, 3), archived, policy)
    assert plan.task is not None
    assert plan.task.parent == archived[-1]


def test_a_damaged_chain_is_not_built_upon() -> None:
    plan = plan_archive(GUEST, world(0, 1), [there(0)], POLICY, unusable=frozenset({"g1"}))
    assert plan.reasons == ("full: the chain in the box is damaged",)


def test_bookmarks_of_the_new_base_come_before_and_those_of_the_old_go_after() -> None:
    listing = world(0, 1, marks={"scsi0": (0,), "scsi1": (0,)})
    task = plan_archive(GUEST, listing, [there(0)], POLICY).task
    assert task is not None
    before, after = plan_bookmarks(GUEST, listing, task, "box1")
    assert [step.name for step in before if isinstance(step, CreateBookmark)] == [f"pzb:{stamp(1)}:box1"] * 2
    assert [step.bookmark.name for step in after] == [f"pzb:{stamp(0)}:box1"] * 2


def test_bookmarks_of_an_attempt_before_are_used_and_others_boxes_are_not_touched() -> None:
    listing = world(0, 1, marks={"scsi0": (0, 1), "scsi1": (0, 1)})
    task = plan_archive(GUEST, listing, [there(0)], POLICY).task
    assert task is not None
    before, after = plan_bookmarks(GUEST, listing, task, "box1")
    assert before == ()
    assert [step.bookmark.name for step in after] == [f"pzb:{stamp(0)}:box1"] * 2
    assert plan_bookmarks(GUEST, listing, task, "box2")[1] == ()


@pytest.mark.parametrize("parent", [True, False])
def test_bookmarks_of_what_never_arrives_do_not_pile_up(parent: bool) -> None:
    """Each keeps its snapshot from being pruned. The base, the first attempt after it and the last stay."""
    listing = world(*range(7), marks={"scsi0": (5, 3, 4, 1, 2, 0), "scsi1": (0, 4, 5)})
    task = plan_archive(GUEST, listing, [there(0)] if parent else [], POLICY).task
    assert task is not None
    before, after = plan_bookmarks(GUEST, listing, task, "box1")
    made = [step.name for step in before if isinstance(step, CreateBookmark)]
    assert made == [f"pzb:{stamp(6)}:box1"] * 2
    gone = [step.bookmark for step in before if isinstance(step, DestroyBookmark)]
    assert [(mark.dataset, mark.name) for mark in gone] == [
        ("rpool/data/vm-100-disk-0", f"pzb:{stamp(day)}:box1") for day in (2, 3, 4)
    ]
    assert not {mark.guid for mark in gone} & {step.bookmark.guid for step in after}
    assert len(after) == 3 + 3


# Retention


def chains(*lengths: int) -> list[Archived]:
    """One point a day: generations of these lengths."""
    found: list[Archived] = []
    for generation, length in enumerate(lengths, 1):
        for place in range(length):
            number = len(found) + 1
            parent = f"p{number - 1}" if place else ""
            found.append(there(number - 1, sequence=number, parent=parent, generation=f"g{generation}"))
    return found


def kept(points: list[Archived], keep: Keep, *, proven: frozenset[str] = frozenset(), now: int = 0) -> list[int]:
    decided = plan_expiry(points, keep, proven, tz=UTC, now=now or NOON + 400 * DAY)
    assert all(verdict.reasons for verdict in decided)
    return [verdict.archived.sequence for verdict in decided if verdict.keep]


def test_what_kept_points_build_on_stays() -> None:
    assert kept(chains(4), Keep(last=1)) == [1, 2, 3, 4]


def test_until_the_newest_is_proven_the_newest_that_is_stays() -> None:
    points = chains(2, 2, 2)
    assert kept(points, Keep(last=1), proven=frozenset({"g1"})) == [1, 2, 5, 6]
    assert kept(points, Keep(last=1), proven=frozenset({"g2"})) == [3, 4, 5, 6]
    assert kept(points, Keep(last=1)) == [3, 4, 5, 6]


def test_an_older_chain_goes_once_the_newest_is_proven() -> None:
    points = chains(3, 2)
    assert kept(points, Keep(last=1), proven=frozenset({"g2"})) == [4, 5]
    assert kept(points, Keep(last=1)) == [1, 2, 3, 4, 5]


def test_the_one_before_the_last_but_one_goes_in_any_case() -> None:
    assert kept(chains(2, 2, 2), Keep(last=1)) == [3, 4, 5, 6]


def test_damaged_points_take_no_slot() -> None:
    points = chains(2, 2, 1)
    decided = plan_expiry(
        points, Keep(last=2), frozenset({"g3"}), tz=UTC, now=NOON + 400 * DAY, damaged=frozenset({"g2"})
    )
    assert [verdict.archived.sequence for verdict in decided if verdict.keep] == [1, 2, 3, 4, 5]


def test_the_only_chain_never_goes() -> None:
    assert kept(chains(1), Keep(daily=1)) == [1]


def test_an_empty_policy_keeps_all() -> None:
    assert kept(chains(3, 3, 3), Keep(), proven=frozenset({"g3"})) == list(range(1, 10))


def test_the_end_of_an_old_chain_goes_before_its_beginning() -> None:
    points = chains(3, 1)
    decided = plan_expiry(points, Keep(last=1, monthly=1), frozenset({"g2"}), tz=UTC, now=NOON + 400 * DAY)
    assert [archived.sequence for archived in removals(decided)] == [3, 2, 1]


def test_a_clock_that_is_behind_removes_nothing() -> None:
    assert kept(chains(3, 3), Keep(last=1), proven=frozenset({"g2"}), now=NOON) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("seed", range(300))
def test_whatever_is_kept_can_be_restored(seed: int) -> None:
    draw = random.Random(seed)
    points = chains(*(draw.randint(1, 5) for _ in range(draw.randint(1, 6))))
    keep = Keep(last=draw.randint(0, 3), daily=draw.randint(0, 5), weekly=draw.randint(0, 3))
    proven = frozenset(f"g{n}" for n in range(1, 7) if draw.random() < 0.5)
    decided = plan_expiry(points, keep, proven, tz=UTC, now=NOON + 400 * DAY)
    names = {verdict.archived.name for verdict in decided if verdict.keep}
    assert all(v.archived.parent in names for v in decided if v.keep and v.archived.parent)
    assert points[-1].name in names
    gone: set[str] = set()
    for archived in removals(decided):  # at every moment of the removal, too
        gone.add(archived.name)
        assert not any(p.parent in gone and p.name not in gone for p in points)
