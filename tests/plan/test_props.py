"""What a restore needs of the disks is kept with the point, within ZFS's limit, and read back or not at all."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pve_zfsbackup.model import RESTORE_PROPS, SOURCE, Quiesce, SnapshotGuest, decode_props, encode_props
from pve_zfsbackup.plan.snapshot import plan_snapshot
from tests.plan.worlds import GUEST, ZVOL, build

DISK = {"volsize": "1073741824", "volblocksize": "16384", "refreservation": "0", "compression": "lz4"}


@pytest.mark.parametrize("count", [0, 1, 2, 40, 60, 250])
def test_any_number_of_disks_comes_back_and_fits(count: int) -> None:
    disks = {f"scsi{number}": {**DISK, "volsize": str(number << 30)} for number in range(count)}
    text = encode_props(disks)
    assert decode_props(text) == disks
    assert len(text) < 8192
    assert text.isascii()
    assert text.isprintable()


def test_what_was_tuned_is_left_out_where_it_would_not_fit() -> None:
    """Else nothing would come back at all, not even the quotas."""
    tuned, chance = {"sync": "always"}, random.Random(1)
    disks = {f"scsi{n}": DISK | tuned | {"reservation": str(chance.randrange(10**100))} for n in range(200)}
    assert decode_props(encode_props(disks)) == dict.fromkeys(disks, DISK)
    few = {"scsi0": DISK | tuned, "scsi1": DISK}
    assert decode_props(encode_props(few)) == few


def test_nothing_is_known_of_disks_without_properties() -> None:
    assert encode_props({"scsi0": {}}) == ""
    assert decode_props("") == {}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"scsi0": 3}', "z:", "z:!!!", "z:AAAA", "null", "\x00", "z:" + "A" * 8000, "[" * 8000]
)
def test_damaged_text_is_nothing(text: str) -> None:
    assert decode_props(text) == {}


def test_a_point_carries_the_properties_of_its_disks() -> None:
    world = build(["o-"])
    volume = replace(world[SOURCE].volumes[ZVOL], props=DISK)
    source = replace(world[SOURCE], volumes={**world[SOURCE].volumes, ZVOL: volume})
    now = datetime(2026, 11, 23, tzinfo=UTC)
    (step,) = plan_snapshot(GUEST, source, now=now, suffix="ab12", quiesce=Quiesce.OFF).steps
    assert isinstance(step, SnapshotGuest)
    assert decode_props(step.props) == {"scsi0": DISK}
    assert set(DISK) <= set(RESTORE_PROPS)
