"""Interrupted receives age by their tokens."""

from __future__ import annotations

import json

import pytest

from pve_zfsbackup.model import Dataset, Guid, Listing, ResumeToken, Volume
from pve_zfsbackup.plan.leftovers import leftovers, remembered

NOW = 1_700_000_000.0
A, B = Dataset("tank/r/s/vm-1-disk-0"), Dataset("tank/r/s/vm-2-disk-0")


def listing(**tokens: str) -> Listing:
    volumes = {}
    for name, dataset in (("a", A), ("b", B)):
        token = ResumeToken(token=tokens[name]) if name in tokens else None
        volumes[dataset] = Volume(name=dataset, guid=Guid(name), type="volume", resume=token)
    return Listing(host="t", volumes=volumes)


def test_one_that_was_never_seen_is_young_and_what_has_none_is_not_named() -> None:
    (found,) = leftovers(listing(a="1-x"), {}, NOW)
    assert (found.dataset, found.token, found.stood(NOW)) == (A, "1-x", 0)


def test_the_same_token_ages_through_what_is_remembered_and_another_is_young() -> None:
    memory = json.loads(json.dumps(remembered(leftovers(listing(a="1-x", b="1-y"), {}, NOW))))
    later = leftovers(listing(a="1-x", b="1-z"), memory, NOW + 900)
    assert [(one.dataset, one.stood(NOW + 900)) for one in later] == [(A, 900), (B, 0)]
    assert remembered(later) == {A: ["1-x", NOW], B: ["1-z", NOW + 900]}


@pytest.mark.parametrize("known", ["1-x", ["1-x"], ["1-x", "1"], [1, 2], None, ["1-x", NOW + 5], {"1-x": 0}])
def test_what_is_not_understood_or_of_the_future_is_forgotten(known: object) -> None:
    (found,) = leftovers(listing(a="1-x"), {A: known}, NOW)
    assert found.since == NOW
