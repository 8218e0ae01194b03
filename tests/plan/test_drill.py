"""Whose turn it is, and what a drill's findings say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pve_zfsbackup.model import Dataset, Guid, Point, PointId, Snapshot, Vmid
from pve_zfsbackup.model.drill import Contents, Expected, Look, State
from pve_zfsbackup.model.proof import Level, Proof, decode_proof, encode_proof
from pve_zfsbackup.plan.drill import judged, turns
from pve_zfsbackup.plan.proven import last_drill, newest_proven, proven_guids

NOW = 1_795_000_000
DAY = 86_400
NOTHING = Expected()


def point(vmid: int, number: int, *verified: str, disks: int = 0) -> Point:
    """With a snapshot for each proof; `disks` of which more belong to it than are there."""
    keys = [f"scsi{at}" for at in range(max(disks, len(verified)))]
    stamp = f"20261118T{number:06d}Z-ab12"
    snapshots = {
        key: Snapshot(
            dataset=Dataset(f"rpool/vm-{vmid}-{key}"), name=f"pzb:{stamp}", guid=Guid(f"{vmid}{number}{key}"),
            createtxg=number, creation=NOW - 90 * DAY + number, refer=1 << 30, verified=text,
        )
        for key, text in zip(keys, verified, strict=False)
    }  # fmt: skip
    return Point(
        id=PointId(f"{vmid}/{stamp}"), vmid=Vmid(vmid), creation=NOW - 90 * DAY + number, consistency="quiesced",
        disks=dict.fromkeys(keys, "x"), snapshots=snapshots,
    )  # fmt: skip


def proven(level: Level, days_ago: float) -> str:
    return encode_proof(Proof(level=level, at=int(NOW - days_ago * DAY)))


def test_a_proof_is_read_as_it_was_written() -> None:
    for level in Level:
        assert decode_proof(encode_proof(Proof(level=level, at=NOW))) == Proof(level=level, at=NOW)
    assert encode_proof(Proof(level=Level.FILES, at=NOW)) == "files 20261118T110640Z"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "files",
        "files 2026",
        "files 20261332T110640Z",
        "Files 20261118T110640Z",
        "x 20261118T110640Z",
        "files 20261118T110640Z\n",
    ],
)
def test_what_is_no_proof_proves_nothing(text: str) -> None:
    assert decode_proof(text) is None


def test_a_point_is_as_proven_as_its_weakest_disk() -> None:
    both = point(100, 1, proven(Level.BOOTED, 2), proven(Level.FILES, 3))
    assert both.proof == Proof(level=Level.FILES, at=NOW - 2 * DAY)
    assert point(100, 1, proven(Level.FILES, 2), "").proof is None
    assert point(100, 1, proven(Level.FILES, 2), disks=2).proof is None
    failed = point(100, 1, proven(Level.FAILED, 2), proven(Level.FILES, 3))
    assert failed.proof == Proof(level=Level.FAILED, at=NOW - 2 * DAY)


def test_the_newest_that_passed_is_kept_whatever_failed_since() -> None:
    points = [
        point(100, 1, proven(Level.FILES, 60)),
        point(100, 2, proven(Level.RECOGNISED, 30)),
        point(100, 3, proven(Level.FAILED, 2)),
        point(100, 4, proven(Level.POINTS, 1)),
        point(100, 5, ""),
    ]
    assert newest_proven(points) == points[0], "a newer one that was only recognised is no substitute"
    assert newest_proven(points[1:]) == points[1], "the best there is"
    failed = {points[2].snapshots["scsi0"].guid: "the last drill failed on it"}
    assert proven_guids(points) == {points[0].snapshots["scsi0"].guid: "newest point proven by a drill", **failed}
    assert proven_guids(points[2:]) == failed, "that it failed is known by this point alone"
    assert proven_guids(points[3:]) == {}
    later = [*points, point(100, 6, proven(Level.FILES, 1))]
    assert proven_guids(later) == {later[-1].snapshots["scsi0"].guid: "newest point proven by a drill"}
    booted = point(100, 7, proven(Level.BOOTED, 1))
    assert newest_proven([*later, booted]) == booted
    assert last_drill(points) == Proof(level=Level.FAILED, at=NOW - 2 * DAY)


def test_who_waits_longest_comes_first_and_who_was_just_drilled_is_not_due() -> None:
    guests = {
        Vmid(100): [point(100, 1, proven(Level.FILES, 40)), point(100, 2, "")],
        Vmid(101): [point(101, 1, "")],
        Vmid(102): [point(102, 1, proven(Level.FAILED, 50))],
        Vmid(103): [point(103, 1, proven(Level.FILES, 5))],
        Vmid(104): [point(104, 1, "", disks=2)],  # incomplete: nothing to drill
        Vmid(105): [point(105, 1, proven(Level.FILES, -400))],  # a clock was wrong once
        Vmid(106): [point(106, 1, proven(Level.POINTS, 1))],  # nobody looked into it
    }
    found = turns(guests, now=NOW, every=30 * DAY)
    assert [(turn.vmid, turn.due) for turn in found] == [
        (101, True), (105, True), (106, True), (102, True), (100, True), (103, False),
    ]  # fmt: skip
    assert found[4].point.id.endswith("000002Z-ab12")


def test_a_point_from_the_future_is_not_the_newest() -> None:
    guests = {Vmid(100): [point(100, 1, ""), point(100, 2, ""), replace(point(100, 3, ""), creation=NOW + 400 * DAY)]}
    (turn,) = turns(guests, now=NOW, every=30 * DAY)
    assert turn.point.id.endswith("000002Z-ab12")


def test_whose_drill_failed_is_due_at_the_next_one_behind_those_that_wait_longer() -> None:
    """`check` is critical until one passes: that must not take until its turn comes again."""
    guests = {
        Vmid(100): [point(100, 1, proven(Level.FAILED, 7)), point(100, 2, "")],
        Vmid(101): [point(101, 1, proven(Level.FILES, 7))],
        Vmid(102): [point(102, 1, proven(Level.FILES, 40))],
        Vmid(103): [point(103, 1, proven(Level.FAILED, 0.5))],
    }
    found = turns(guests, now=NOW, every=30 * DAY)
    assert [(turn.vmid, turn.due) for turn in found] == [(102, True), (100, True), (101, False), (103, False)]
    assert found[1].point.stamp == "20261118T000002Z-ab12", "the newest, and not the one that failed"


def test_who_broke_its_drill_is_due_again_behind_those_that_wait_longer() -> None:
    guests = {
        Vmid(100): [point(100, 1, "")],
        Vmid(101): [point(101, 1, proven(Level.FILES, 40))],
        Vmid(102): [point(102, 1, "")],
        Vmid(103): [point(103, 1, "")],
    }
    tried = {Vmid(100): NOW - 7 * DAY, Vmid(102): NOW + DAY, Vmid(101): NOW - 50 * DAY}
    found = turns(guests, now=NOW, every=30 * DAY, tried=tried)
    assert [(turn.vmid, turn.due) for turn in found] == [(102, True), (103, True), (101, True), (100, True)]


def test_every_guest_has_its_turn_within_the_period() -> None:
    """Forty guests, five a week: none waits for more than eight weeks, and each is drilled as often as the others."""
    last: dict[int, float] = {}
    drilled: dict[int, int] = dict.fromkeys(range(100, 140), 0)
    for week in range(80):
        now = NOW + week * 7 * DAY
        guests = {
            Vmid(vmid): [
                point(vmid, 1, encode_proof(Proof(level=Level.FILES, at=int(last[vmid]))) if vmid in last else "")
            ]
            for vmid in drilled
        }
        for turn in turns(guests, now=now, every=30 * DAY)[:5]:
            assert now - last.get(turn.vmid, now) <= 8 * 7 * DAY
            last[turn.vmid] = now
            drilled[turn.vmid] += 1
    assert set(drilled.values()) == {10}


def look(disk: str, kind: str, state: State = State.GOOD, text: str = "12 files read", place: str = "") -> Look:
    return Look(disk=disk, place=place, kind=kind, state=state, text=text)


def verdict(
    *looks: Look, expected: Expected = NOTHING, present: tuple[str, ...] = (), keys: tuple[str, ...] = ("scsi0",)
) -> tuple[Level, tuple[str, ...]]:
    one = point(100, 1, "")
    one = replace(one, snapshots=dict.fromkeys(keys, one.snapshots["scsi0"]))
    found = judged(Contents(looks=looks, present=frozenset(present)), expected, one)
    return found.level, found.problems


def test_a_file_system_that_could_be_opened_is_the_level_files() -> None:
    assert verdict(look("scsi0", "ext4")) == (Level.FILES, ())
    assert verdict(look("scsi0", "ntfs", State.UNOPENED)) == (Level.RECOGNISED, ())
    assert (
        verdict(look("scsi0", "gpt", text="2 partitions"), look("scsi0", "swap", State.UNOPENED))[0] is Level.RECOGNISED
    )


def test_one_bad_place_fails_the_point() -> None:
    level, problems = verdict(look("scsi0", "ext4"), look("scsi0", "xfs", State.BAD, "bad magic", "partition 3"))
    assert (level, problems) == (Level.FAILED, ("scsi0 partition 3: xfs: bad magic",))


def test_a_disk_must_be_something() -> None:
    table = look("scsi0", "gpt", text="2 partitions")
    nothing = look("scsi0", "", State.UNOPENED, "nothing recognised", "partition 1")
    told = "scsi0: neither a file system nor anything else is recognised there"
    assert verdict(table, nothing) == (Level.FAILED, (told,))
    assert verdict(nothing, expected=Expected(raw=frozenset({"scsi0"})))[0] is Level.RECOGNISED
    for key in ("efidisk0", "tpmstate0"):
        assert verdict(look("scsi0", "ext4"), look(key, "", State.UNOPENED), keys=("scsi0", key)) == (Level.FILES, ())


@pytest.mark.parametrize(
    ("place", "use", "mib", "passes"),
    [
        ("partition 2", "0fc63daf-8483-4772-8e79-3d69d8477de4", 30_000, False),
        ("partition 2", "0fc63daf-8483-4772-8e79-3d69d8477de4", 64, False),
        ("partition 2", "0x83", 64, False),
        ("LV vg/root", "", 64, False),
        ("LV vg/root", "", 63, True),
        ("partition 1", "21686148-6449-6e6f-744e-656564454649", 1, True),  # where GRUB lies
        ("partition 1", "e3c9e316-0b5c-4db8-817d-f92df00215ae", 128, True),  # reserved by Microsoft
        ("partition 3", "516e7cb5-6ecf-11d6-8ff8-00022d09712b", 2048, True),  # swap of FreeBSD
        ("partition 1", "0xa5", 20_000, True),  # a slice of FreeBSD, with a table of its own
    ],
)
def test_a_file_system_whose_beginning_is_lost_is_found(place: str, use: str, mib: int, passes: bool) -> None:
    """Beside another that is good, which is something: EFI's, /boot."""
    boot = look("scsi0", "vfat", place="partition 1")
    lost = replace(look("scsi0", "", State.UNOPENED, "nothing recognised", place), size=mib << 20, use=use)
    level, problems = verdict(look("scsi0", "gpt", text="2 partitions"), boot, lost)
    told = f"scsi0 {place}: nothing recognised in its {mib} MiB; where that is right, name the disk in verify-raw"
    assert (level, problems) == ((Level.FILES, ()) if passes else (Level.FAILED, (told,)))
    assert verdict(boot, lost, expected=Expected(raw=frozenset({"scsi0"})))[0] is Level.FILES


def test_what_was_mounted_and_not_read_was_opened() -> None:
    """`--read none`"""
    assert verdict(look("scsi0", "ext4", text="")) == (Level.FILES, ())


def test_a_file_that_is_not_there_is_a_failure() -> None:
    wanted = Expected(files=("/srv/canary", "/etc/fstab"))
    assert verdict(look("scsi0", "ext4"), expected=wanted, present=("/etc/fstab",)) == (
        Level.FAILED, ("/srv/canary: not there",),
    )  # fmt: skip


def test_a_container_without_a_system_is_none() -> None:
    assert verdict(look("rootfs", "zfs"), keys=("rootfs",)) == (
        Level.FAILED,
        ("rootfs: no os-release: no system lies there",),
    )
    assert verdict(look("mp0", "zfs"), keys=("mp0",)) == (Level.FILES, ())
