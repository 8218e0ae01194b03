"""What a new point is made of, and what keeps it from being made."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pve_zfsbackup.model import (
    SNAPSHOT_NAME,
    SOURCE,
    Agent,
    Dataset,
    Disk,
    Guest,
    GuestKind,
    Guid,
    Quiesce,
    SnapshotGuest,
    Volume,
    decode_disks,
)
from pve_zfsbackup.plan.points import points
from pve_zfsbackup.plan.project import project
from pve_zfsbackup.plan.snapshot import freezable, plan_snapshot
from tests.plan.worlds import DISK, GUEST, OTHER, OTHER_DISK, ZVOL, listing

NOW = datetime(2026, 11, 23, 18, 0, 0, tzinfo=UTC)
READY = replace(GUEST, agent=Agent(enabled=True), disks=(DISK, OTHER_DISK))
HERE = listing(
    SOURCE,
    Volume(name=ZVOL, guid=Guid("1011"), type="volume"),
    Volume(name=OTHER, guid=Guid("1099"), type="volume"),
    Volume(name=Dataset("rpool/data/vm-100-disk-1"), guid=Guid("1012"), type="volume"),
)


def step_of(guest: Guest, quiesce: Quiesce = Quiesce.PREFER, now: datetime = NOW) -> SnapshotGuest:
    plan = plan_snapshot(guest, HERE, now=now, suffix="ab12", quiesce=quiesce)
    assert not plan.conflicts
    (step,) = plan.steps
    assert isinstance(step, SnapshotGuest)
    return step


def test_name_and_point_are_utc_whatever_the_zone() -> None:
    for now in (NOW, NOW.astimezone(timezone(timedelta(hours=5, minutes=45)))):
        step = step_of(READY, now=now)
        assert step.name == "pzb:20261123T180000Z-ab12"
        assert step.point == "100/20261123T180000Z-ab12"
        assert SNAPSHOT_NAME.match(step.name)


def test_disks_are_grouped_by_pool() -> None:
    third = replace(DISK, key="virtio0", dataset=Dataset("rpool/data/vm-100-disk-1"))
    step = step_of(replace(READY, disks=(third, OTHER_DISK, DISK)))
    assert step.pools == ((OTHER,), (ZVOL, Dataset("rpool/data/vm-100-disk-1")))
    assert {disk.key: disk.guid for disk in decode_disks(step.disks)} == {
        "scsi0": "1011",
        "scsi1": "1099",
        "virtio0": "1012",
    }


def test_what_is_not_protected_is_left_out_and_a_volume_is_one_disk() -> None:
    skipped = replace(OTHER_DISK, reason="backup=0")
    twice = replace(DISK, key="unused0")
    step = step_of(replace(READY, disks=(twice, skipped, DISK)))
    assert step.pools == ((ZVOL,),)
    assert [disk.key for disk in decode_disks(step.disks)] == ["scsi0"]


def test_the_point_made_is_complete() -> None:
    after = project({SOURCE: HERE}, [step_of(READY)])
    (point,) = points(after[SOURCE])
    assert point.complete
    assert {key: there.dataset for key, there in point.snapshots.items()} == {"scsi0": ZVOL, "scsi1": OTHER}
    assert point.creation == int(NOW.timestamp())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"kind": GuestKind.CT}, "container: ZFS has no freeze"),
        ({"running": False}, "guest is not running"),
        ({"running": False, "kind": GuestKind.CT}, "guest is not running"),
        ({"paused": True}, "guest is paused: its agent cannot answer"),
        ({"agent": Agent()}, "guest agent is not configured"),
        ({"agent": Agent(enabled=True, freeze=False)}, "agent option freeze-fs=0"),
    ],
)
def test_why_a_guest_is_not_frozen(changes: Mapping[str, object], reason: str) -> None:
    guest = replace(READY, **changes)  # type: ignore[arg-type]
    assert freezable(guest, Quiesce.PREFER) == (not reason, reason)
    assert freezable(guest, Quiesce.OFF) == (False, reason or "quiesce is off")
    assert (step_of(guest).freeze, step_of(guest).reason) == (not reason, reason)


def test_require_stops_a_running_guest_that_cannot_be_frozen_and_no_other() -> None:
    agents = [Agent(), Agent(enabled=True), Agent(enabled=True, freeze=False)]
    for kind, running, paused, agent in itertools.product(GuestKind, [False, True], [False, True], agents):
        guest = replace(READY, kind=kind, running=running, paused=paused, agent=agent)
        can, reason = freezable(guest, Quiesce.REQUIRE)
        plan = plan_snapshot(guest, HERE, now=NOW, suffix="ab12", quiesce=Quiesce.REQUIRE)
        assert plan.reasons
        if running and not can:
            assert [conflict.kind for conflict in plan.conflicts] == ["not-freezable"]
            assert reason in plan.conflicts[0].message
            assert not plan.steps
        else:
            assert not plan.conflicts
            assert len(plan.steps) == 1


def conflict_of(guest: Guest) -> tuple[str, str, tuple[str, ...]]:
    plan = plan_snapshot(guest, HERE, now=NOW, suffix="ab12", quiesce=Quiesce.PREFER)
    assert not plan.steps
    assert plan.reasons
    (conflict,) = plan.conflicts
    return conflict.kind, conflict.resolve, conflict.evidence


def test_a_locked_guest_is_left_alone() -> None:
    kind, resolve, _ = conflict_of(replace(READY, lock="migrate"))
    assert kind == "locked"
    assert "qm unlock 100" in resolve
    assert "pct unlock 100" in conflict_of(replace(READY, lock="backup", kind=GuestKind.CT))[1]


def test_a_guest_without_a_disk_to_protect_is_told_with_the_reasons() -> None:
    foreign = Disk(key="scsi0", volid="ceph:vm-100-disk-0", reason="storage ceph is not ZFS")
    kind, _, evidence = conflict_of(replace(READY, disks=(foreign,)))
    assert kind == "no-protected-disk"
    assert evidence == ("scsi0 ceph:vm-100-disk-0: storage ceph is not ZFS",)
    assert conflict_of(replace(READY, disks=()))[0] == "no-protected-disk"


def test_a_dataset_that_is_not_there_stops_the_point() -> None:
    absent = replace(DISK, dataset=Dataset("rpool/data/vm-100-disk-9"))
    kind, _, evidence = conflict_of(replace(READY, disks=(absent, OTHER_DISK)))
    assert kind == "missing-dataset"
    assert evidence == ("rpool/data/vm-100-disk-9",)
