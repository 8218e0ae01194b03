"""The receiver stands alone, so it decides retention a second time: it must decide as the product does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast
from zoneinfo import ZoneInfo

import pytest

from pve_zfsbackup import receiver
from pve_zfsbackup.host import listing
from pve_zfsbackup.host.runner import Completed, Runner
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import Dataset, Keep
from pve_zfsbackup.plan import points as plan_points
from pve_zfsbackup.plan.proven import proven_guids
from pve_zfsbackup.plan.retention import decide_retention, marks
from pve_zfsbackup.receiver import Root
from tests.fakes.zfs import FakeZfs
from tests.receiver.conftest import ROOT
from tests.receiver.world import DAY, HOUR, World, root

ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia")
RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
HISTORIES = 4000
WORLDS = 1500


def policy(chance: random.Random) -> tuple[Keep, Root]:
    counts = {rule: chance.choice((0, 0, 0, 1, 2, 3, 7, 13)) for rule in RULES}
    zone = chance.choice(ZONES)
    return Keep(**counts), root(**{f"keep_{rule}": count for rule, count in counts.items()}, timezone=zone)


def history(chance: random.Random) -> list[int]:
    """Around a change of DST and of years, with repetitions, in any order."""
    start = chance.choice((1_795_000_000, 1_792_900_000, 1_774_700_000, 1_798_700_000))
    spread = chance.choice((3 * HOUR, 3 * DAY, 40 * DAY, 900 * DAY))
    return [start - chance.randrange(spread) for _ in range(chance.randrange(40))] + [start] * chance.randrange(3)


def test_the_same_marks_on_thousands_of_histories() -> None:
    chance = random.Random(20261123)
    decided = 0
    for _ in range(HISTORIES):
        creations = history(chance)
        keep, own = policy(chance)
        expected = {index for index, mark in enumerate(marks(creations, keep, ZoneInfo(own.timezone))) if mark}
        assert receiver.kept(creations, own) == expected, (creations, keep, own.timezone)
        decided += len(creations) - len(expected)
    assert decided > HISTORIES, "these histories leave nothing to decide"


class Local:
    """The product's runner over the same fake ZFS."""

    def __init__(self, world: World) -> None:
        self.zfs = FakeZfs(world.pools)

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        return self.zfs.run(argv)


def as_product(world: World) -> Host:
    return Host(name="backup1", runner=cast(Runner, Local(world)))


def scramble(world: World, chance: random.Random) -> None:
    """What only happens on bad days: new generations, other storages, lost or wrong marks, origins nobody knows."""
    for dataset in [one for one in world.pools.datasets.values() if one.name.count("/") > 3]:
        for snap in list(dataset.snaps.values()):
            match chance.randrange(16):
                case 0:
                    snap.props["pve-zfsbackup:volume"] = str(chance.randrange(10))
                case 1:
                    snap.props.pop("pve-zfsbackup:volume")
                case 2:
                    snap.props["pve-zfsbackup:disks"] = chance.choice(("", "garbage", "scsi0=local-zfs:x#", ",=,#"))
                case 3:
                    snap.props.pop("pve-zfsbackup:point")
                case 4:
                    del dataset.snaps[snap.name]
                case 6 | 7 | 8:
                    text = chance.choice(
                        [f"{level} 202611{day}T120000Z" for level in ("files", "failed", "points") for day in (25, 26)]
                        + ["booted 20261127T120000Z", "failed 20261399T120000Z", "good"]
                    )
                    snap.props["pve-zfsbackup:verified"] = text
                case 5:
                    snap.creation += chance.choice((-1, 0, 1)) * DAY
                case _:
                    continue
        if chance.random() < 0.2:
            leaf = dataset.name.rpartition("/")[2]
            parent = chance.choice((f"{ROOT}/local-zfs", f"{ROOT}/fast"))
            suffix = chance.choice(("", "-g0123abcd", "-x"))
            if f"{parent}/{leaf}{suffix}" not in world.pools.datasets:
                world.pools.rename(dataset.name, f"{parent}/{leaf}{suffix}")


def populate(world: World, chance: random.Random) -> None:
    world.pools.add(f"{ROOT}/fast")
    borrowing = chance.random() < 0.5
    for age in sorted(chance.sample(range(1, 2000), chance.randrange(1, 14)), reverse=True):
        vmid, disks = chance.choice((100, 101)), chance.choice((1, 1, 2, 3))
        same = {}
        for number in range(1, disks) if borrowing else ():
            newest = world.disk(vmid, number).newest
            if newest and chance.random() < 0.7:
                same[number] = chance.choice((newest.guid, newest.guid, newest.guid, 7))
        present = chance.choice((disks, disks, 1)) if not same or chance.random() < 0.1 else 1
        world.point(vmid, age * HOUR, disks=disks, present=present, same=same)
    scramble(world, chance)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_points_and_the_same_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Both read the same target, put the same points together and let the same ones go."""
    chance = random.Random(seed)
    odd = gone = borrowed = kept_proven = 0
    for number in range(WORLDS // 3):
        world = World(tmp_path / str(number))
        monkeypatch.setattr(receiver, "ask", world.ask)
        populate(world, chance)
        theirs = plan_points.points(listing.list_host(as_product(world), [Dataset(ROOT)]))
        keep, own = policy(chance)
        ours = receiver.points(receiver.seen(world.site, own, 1).snaps)
        assert [(p.id, p.creation, p.complete) for p in ours] == [(p.id, p.creation, p.complete) for p in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert {key: snap.name for key, snap in one.snaps.items()} == {
                key: snap.full_name for key, snap in other.own.items() if key in other.disks
            }
            assert {key: snap.name for key, snap in one.borrowed.items()} == {
                key: other.snapshots[key].full_name for key in other.borrowed
            }
            borrowed += len(one.borrowed)
            odd += not one.complete
        for vmid, points in plan_points.by_guest(theirs).items():
            zone = ZoneInfo(own.timezone)
            proven = proven_guids(points)
            kept_proven += bool(proven)
            verdicts = decide_retention(points, [keep], proven, host="backup1", tz=zone, now=world.now + 1000 * DAY)
            going = receiver.doomed([p for p in ours if p.vmid == vmid], own, set(), world.now + 1000 * DAY)
            assert [p.id for p in going] == [v.point.id for v in verdicts if not v.keep], (keep, own.timezone)
            gone += len(going)
    assert odd > 100
    assert gone > 100
    assert borrowed > 100
    assert kept_proven > 100
