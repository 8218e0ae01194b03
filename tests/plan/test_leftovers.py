"""Interrupted receives of guests that are no more age by their tokens, on days on which they were looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from pve_zfsbackup.model import SOURCE, Dataset, Guid, Listing, ResumeToken, Snapshot, Volume
from pve_zfsbackup.plan.leftovers import DAY, Leftover, leftovers, remembered

NOW = 1_700_000_000.0
ROOT = Dataset("tank/r")
A, B = Dataset("tank/r/s/vm-101-disk-0"), Dataset("tank/r/s/subvol-102-disk-0-g00aa11bb")
SENT = "rpool/data/vm-101-disk-0@pzb:20261101T000000Z-0001"


def token(text: str, to: str = "77", snapshot: str = SENT) -> ResumeToken:
    return ResumeToken(token=text, to_guid=Guid(to), snapshot=snapshot)


def target(tokens: Mapping[Dataset, ResumeToken | None], failover: str = "") -> Listing:
    volumes = {
        name: Volume(name=name, guid=Guid(name), type="volume", resume=found, failover=failover)
        for name, found in tokens.items()
    }
    return Listing(host="t", volumes=volumes)


def found(
    tokens: Mapping[Dataset, ResumeToken | None],
    memory: Mapping[str, object] = {},
    now: float = NOW,
    *,
    defined: frozenset[str] = frozenset(),
    source: Listing | None = None,
) -> tuple[Leftover, ...]:
    here = source or Listing(host=SOURCE)
    return leftovers(here, target(tokens), ROOT, memory, now=now, defined=lambda disk: disk in defined)


def test_one_that_was_never_seen_is_young_and_what_has_none_is_not_named() -> None:
    (one,) = found({A: token("1-x"), B: None})
    assert (one.dataset, one.token, one.stood) == (A, "1-x", 0)


def test_the_same_token_ages_through_what_is_remembered_and_another_is_young() -> None:
    memory = json.loads(json.dumps(remembered(found({A: token("1-x"), B: token("1-y")}), NOW)))
    later = found({A: token("1-x"), B: token("1-z")}, memory, NOW + 900)
    assert [(one.dataset, one.stood) for one in later] == [(B, 0), (A, 900)]
    assert remembered(later, NOW + 900) == {A: ["1-x", 900, NOW + 900], B: ["1-z", 0, NOW + 900]}


def test_a_time_in_which_nobody_could_look_counts_as_a_day() -> None:
    memory: dict[str, object] = {A: ["1-x", 99, NOW]}
    assert found({A: token("1-x")}, memory, NOW + DAY)[0].stood == 99 + DAY
    assert found({A: token("1-x")}, memory, NOW + 40 * DAY)[0].stood == 99 + DAY


@pytest.mark.parametrize("every", [1, 2, 7])
def test_it_is_told_before_it_goes_however_often_anybody_looks(every: int) -> None:
    memory: dict[str, object] = {}
    stood = []
    for look in range(9):
        now = NOW + look * every * DAY
        (one,) = found({A: token("1-x")}, memory, now)
        memory = dict(remembered((one,), now))
        stood.append(one.stood / DAY)
    assert stood == list(range(9))


@pytest.mark.parametrize(
    "known",
    ["1-x", ["1-x"], ["1-x", 5], ["1-x", "1", 5], [1, 2, 3], None, ["1-x", 9, NOW + 5], ["1-x", -9, NOW], {}],
)
def test_what_is_not_understood_or_of_the_future_is_forgotten(known: object) -> None:
    assert found({A: token("1-x")}, {A: known})[0].stood == 0


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("tank/r/laptop", token("1-x")),  # of another tool
        ("tank/r", token("1-x")),
        ("tank/r/s/vm-101-disk-0/deeper", token("1-x")),
        ("tank/r/s/pzb-restore/vm-101-disk-0", token("1-x")),
        ("tank/other/s/vm-101-disk-0", token("1-x")),
        ("tank/rr/s/vm-101-disk-0", token("1-x")),
        ("tank/r/s/vm-0-disk-0", token("1-x")),
        (A, token("1-x", snapshot="rpool/data/vm-101-disk-0@syncoid_2026")),
        (A, token("1-x", snapshot="")),
        (A, ResumeToken(token="1-x")),  # not understood
    ],
)
def test_what_is_no_stream_of_ours_into_a_replica_is_let_alone(name: str, state: ResumeToken) -> None:
    assert found({Dataset(name): state}) == ()


def test_with_one_of_a_guest_that_there_is_somebody_may_go_on() -> None:
    assert found({A: token("1-x")}, defined=frozenset({"vm-101-disk-0"})) == ()
    assert found({B: token("1-x")}, defined=frozenset({"subvol-102-disk-0"})) == (), "whatever its generation"
    assert found({A: token("1-x")}, defined=frozenset({"vm-102-disk-0"})) != ()
    disk = Dataset("rpool/data/vm-101-disk-0")
    snapshot = Snapshot(dataset=disk, name="pzb:x", guid=Guid("77"), createtxg=1, creation=1)
    kept = Volume(name=disk, guid=Guid("5"), type="volume", snapshots=(snapshot,))
    assert found({A: token("1-x")}, source=Listing(host=SOURCE, volumes={disk: kept})) == ()


@pytest.mark.parametrize("volume", ["vm-101-disk-0", "base-101-disk-0", "subvol-101-disk-1", "basevol-101-disk-0"])
def test_every_kind_of_volume_is_looked_at(volume: str) -> None:
    assert len(found({Dataset(f"tank/r/s/{volume}"): token("1-x")})) == 1


@pytest.mark.parametrize("failover", ["", "20261126T113000Z backup1 100/20261101T000000Z-0001 a fire"])
def test_one_of_a_guest_that_failed_over_stays(failover: str) -> None:
    name = Dataset("tank/r/s/vm-100-disk-0")
    there = target({name: token("1-x")}, failover)
    left = leftovers(Listing(host=SOURCE), there, ROOT, {}, now=NOW, defined=lambda disk: False)
    assert bool(left) is not bool(failover)
