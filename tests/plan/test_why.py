"""`why` tells of every candidate exactly one fate, and the base it names is the one the plan takes."""

from __future__ import annotations

import itertools
from dataclasses import replace

from pve_zfsbackup.model import SOURCE, Dataset, Guid, ResumeToken, Send, Snapshot, World
from pve_zfsbackup.model.reasons import Fate, Fit, Reasoning
from pve_zfsbackup.plan.pairing import compare
from pve_zfsbackup.plan.why import explain
from tests.plan.worlds import DISK, HOST, KINDS, POLICY, REPLICA, ZVOL, build, guid, replicate


def why(world: World) -> Reasoning:
    return explain(DISK, compare(world[SOURCE], world[HOST]), POLICY)


def fates(world: World) -> list[Fate]:
    return [candidate.fate for candidate in why(world).candidates]


def test_the_base_named_is_the_one_that_is_taken() -> None:
    for history in itertools.product(KINDS, repeat=3):
        world = build(history)
        told = why(world)
        assert told.plan == replicate(world)
        volume = world[SOURCE].volumes[ZVOL]
        assert len(told.candidates) == len(volume.snapshots) + len(volume.bookmarks)
        txgs = [candidate.base.createtxg for candidate in told.candidates]
        assert txgs == sorted(txgs, reverse=True), "newest first"
        chosen = [candidate.base for candidate in told.candidates if candidate.fate is Fate.CHOSEN]
        sends = [step for step in told.plan.steps if isinstance(step, Send)]
        if sends:
            assert chosen == ([sends[0].base] if sends[0].base else [])
        if told.plan.conflicts:
            assert not chosen


def manners(*history: str, **policy: bool) -> list[str]:
    world = build(list(history))
    told = explain(DISK, compare(world[SOURCE], world[HOST]), replace(POLICY, **policy))  # type: ignore[arg-type]
    assert len(told.manners) == len([step for step in told.plan.steps if isinstance(step, Send)])
    return list(told.manners)


def test_each_stream_tells_why_it_is_one() -> None:
    assert manners("o-", "o-") == ["full: the newest point alone"]
    assert manners("oh", "o-") == ["-i: nothing lies in between"]
    assert manners("oh", "o-", "o-", "o-") == ["-I: all 2 in between are to be sent too"]
    (foreign,) = manners("oh", "f-", "o-")
    assert foreign.startswith("-i: -I would take along what is not to be sent: @")
    mark, rest = manners("bh", "o-", "o-", "o-")
    assert mark == "-i: from a bookmark, which -I does not take"
    assert rest.startswith("-I: ")
    assert set(manners("oh", "o-", "o-", minimal=True)) == {
        "-i: OpenZFS here or there is older than 2.2, where -I may skip a snapshot"
    }
    assert "takes no packages" in manners("oh", "o-", "o-", minimal=True, append_only=True)[0]
    assert manners("oh", "o-", minimal=True) == ["-i: nothing lies in between"]


def test_whether_it_fits_is_told_where_the_listing_says() -> None:
    world = build(["oh", "o-"])
    assert why(world).fit is None
    there = world[HOST].volumes
    for left, fits in ((1 << 30, True), (0, False)):
        volumes = {**there, REPLICA: replace(there[REPLICA], available=left)}
        snapshots = tuple(replace(s, refer=1000, written=500) for s in world[SOURCE].volumes[ZVOL].snapshots)
        source = {ZVOL: replace(world[SOURCE].volumes[ZVOL], snapshots=snapshots)}
        told = why({SOURCE: replace(world[SOURCE], volumes=source), HOST: replace(world[HOST], volumes=volumes)})
        if fits:
            assert told.fit == Fit(needed=550, available=left, place=REPLICA)
            assert told.fit.fits
        else:
            assert (told.fit, told.conflicts[0].kind) == (None, "target-full"), "the conflict tells it"


def test_each_fate_has_its_reason() -> None:
    world = build(["Om", "Oh", "o-", "f-"])
    # newest first; a snapshot before its bookmark
    expected = [Fate.ABSENT, Fate.ABSENT, Fate.CHOSEN, Fate.BESIDE, Fate.OLDER, Fate.OLDER]
    assert fates(world) == expected
    told = why(world)
    assert f"guid {guid(3)}" in told.candidates[1].why
    assert REPLICA in told.candidates[2].why
    assert (told.candidates[2].kind, told.candidates[3].kind) == ("snapshot", "bookmark")
    assert told.replica == REPLICA


def test_a_conflict_leaves_the_base_unused() -> None:
    told = why(build(["oh", "-x", "o-"]))
    assert [candidate.fate for candidate in told.candidates] == [Fate.ABSENT, Fate.BLOCKED]
    assert told.conflicts[0].kind == "foreign-snapshot"


def test_another_iv_set_is_told() -> None:
    world = build(["oh", "o-"], raw=True)
    for host, name, ivset in ((SOURCE, ZVOL, "51"), (HOST, REPLICA, "99")):
        volume = world[host].volumes[name]
        marked = tuple(replace(s, ivset=Guid(ivset)) if s.guid == guid(1) else s for s in volume.snapshots)
        volumes = {**world[host].volumes, name: replace(volume, snapshots=marked)}
        world = {**world, host: replace(world[host], volumes=volumes)}
    told = why(world)
    assert told.replica is None
    assert "IV set 99, here it is 51" in told.candidates[1].why


def test_a_replica_of_another_disk_is_told() -> None:
    world = build(["oh", "o-"])
    copied = replace(world[SOURCE].volumes[ZVOL], name=Dataset("rpool/data/copy"), guid=Guid("1012"))
    copied = replace(copied, snapshots=tuple(replace(s, dataset=copied.name) for s in copied.snapshots))
    disk = replace(DISK, key="scsi7", dataset=copied.name, volume="copy")
    source = replace(world[SOURCE], volumes={**world[SOURCE].volumes, copied.name: copied})
    told = explain(disk, compare(source, world[HOST]), POLICY)
    assert [candidate.fate for candidate in told.candidates] == [Fate.ABSENT, Fate.ELSEWHERE]
    assert "replica of another disk" in told.candidates[1].why


def test_an_interrupted_receive_is_told() -> None:
    known = ResumeToken(token="t", to_guid=guid(2), from_guid=guid(1))
    for token, said in ((known, "pzb:20261118T102840Z"), (replace(known, to_guid=Guid("7")), "guid 7"),
                        (ResumeToken(token="x"), "guid unknown")):  # fmt: skip
        assert said in why(build(["oh", "o-"], token=token)).token
    assert why(build(["oh"])).token == ""
    assert "interrupted receive" in why(build(["o-"], token=replace(known, to_guid=guid(1), from_guid=Guid("")))).token


def test_a_disk_that_is_gone_is_a_conflict_without_candidates() -> None:
    world = build(["oh"])
    told = explain(replace(DISK, dataset=Dataset("rpool/gone")), compare(world[SOURCE], world[HOST]), POLICY)
    assert (told.candidates, [conflict.kind for conflict in told.conflicts]) == ((), ["missing-dataset"])
    assert isinstance(why(world).candidates[0].base, Snapshot)
