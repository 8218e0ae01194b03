"""What a canary says of itself, and of the point in which it is found."""

from __future__ import annotations

import dataclasses

import pytest

from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.canary import Canary, Planted, canary_text, digest, parse_canary, stamp
from pve_zfsbackup.plan.canary import canary_notes, canary_problem

NOW = 1_795_000_000
HOUR = 3600


def text(at: int, vmid: int = 100, name: str = "web") -> str:
    return canary_text(Vmid(vmid), name, at, f"{at:032x}")


def planted(*times: int) -> tuple[Planted, ...]:
    return tuple(Planted(at=at, digest=digest(text(at))) for at in times)


@pytest.mark.parametrize("name", ["web", "", "a\nguest 999", "\x1b[2J", "ü" * 300, "x" * 4000])
def test_it_names_guest_and_time_whatever_the_guest_is_called(name: str) -> None:
    made = text(NOW, name=name)
    assert parse_canary(made) == Canary(vmid=Vmid(100), planted=NOW)
    assert made.isascii()
    assert len(made) < 400


@pytest.mark.parametrize(
    "spoiled",
    ["", "mine", text(NOW)[:-1], text(NOW) + "x", "x" + text(NOW), text(NOW).replace("nonce", "nonse"),
     text(NOW).replace("planted 2", "planted 9").replace("1118", "9999")],
)  # fmt: skip
def test_what_is_not_ours_is_not_taken_for_it(spoiled: str) -> None:
    assert parse_canary(spoiled) is None


def test_the_newest_one_that_had_time_to_reach_the_disk_must_be_there() -> None:
    known = planted(NOW - 48 * HOUR, NOW - HOUR, NOW - 30, NOW + HOUR)
    assert canary_problem(known, [text(NOW - HOUR)], NOW) == ""
    assert canary_problem(known, [text(NOW - 30)], NOW) == ""  # written right before, and it reached the disk
    assert canary_problem(known, ["noise", text(NOW - HOUR)], NOW) == ""  # in another file system
    assert "is not there: " in canary_problem(known, [], NOW)
    told = canary_problem(known, [text(NOW - 48 * HOUR)], NOW)
    assert "is not there, but another one (20261116T" in told
    assert "verify plant" not in told
    assert "another one (20261118T" in canary_problem(known, [text(NOW + HOUR)], NOW)
    assert "none of ours" in canary_problem(known, ["damaged"], NOW)
    flipped = text(NOW - HOUR).replace("nonce 0", "nonce 1")
    assert "another one" in canary_problem(known, [flipped], NOW)


def test_one_that_nobody_knows_to_be_there_is_neither_demanded_nor_wrong() -> None:
    """The agent wrote it and its answer was lost; or the guest was rolled back to before it."""
    (sure, lost) = planted(NOW - 48 * HOUR, NOW - HOUR)
    known = (sure, dataclasses.replace(lost, sure=False))
    assert canary_problem(known, [text(NOW - HOUR)], NOW) == ""
    assert canary_problem(known, [text(NOW - 48 * HOUR)], NOW) == ""
    assert f"planted at {stamp(NOW - 48 * HOUR)} is not there" in canary_problem(known, [], NOW)
    assert canary_problem(known[1:], [], NOW) == "", "the first: nothing is demanded yet"


def test_before_the_first_nothing_is_expected_but_what_is_there_must_be_one() -> None:
    assert canary_problem((), [], NOW) == ""
    assert canary_problem(planted(NOW - 30), [], NOW) == ""
    assert canary_problem((), [text(NOW - HOUR)], NOW) == ""
    assert canary_problem((), ["damaged"], NOW) == "the canary is damaged, or somebody else's file"


def test_what_lies_there_is_told() -> None:
    assert canary_notes([text(NOW - 5 * HOUR)], Vmid(100), NOW) == ("canary: planted 20261118T060640Z, 5 h before",)
    assert canary_notes([text(NOW, vmid=7)], Vmid(100), NOW)[1] == "canary: of guest 7: a copy of it?"
    assert canary_notes(["damaged"], Vmid(100), NOW) == ()
