"""What is counted of a first use, and when a guest counts as protected."""

from __future__ import annotations

import json

import pytest

from tests.bench.first_use import DISKS, OURS, WAYS, Edited, Part, Typed, Walked, Way, protected, table
from tests.documented import PAGES

README = PAGES[0].read_text("utf-8")


def test_ours_is_what_the_readme_says_word_for_word() -> None:
    for step in OURS.steps:
        assert isinstance(step, Typed)
        for command in step.line.split(" && "):
            known = command.removesuffix(" 100")  # one guest of all
            assert known in README or command in ("git clone …", "cd pve-zfsbackup"), command


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_way_says_where_it_is_from_and_has_both_disks(way: Way) -> None:
    assert len(way.documents) > 40
    assert any(step.part is Part.INSTALL for step in way.steps)
    if any(step.here for step in way.steps):
        assert len(way.replicas) == len(DISKS) == len(set(way.replicas))


def test_commands_and_lines_are_counted() -> None:
    way = Way(
        name="x",
        documents="",
        steps=(
            Typed("a && b", Part.INSTALL),
            Edited("/etc/x", "one\n\ntwo\n"),
            Typed("c"),
            Typed("d", Part.SCHEDULE, here=False),
        ),
        replicas=("x", "y"),
    )
    assert way.count(Part.INSTALL) == (2, 0)
    assert way.count(Part.USE) == (1, 2)
    assert way.count(*Part) == (4, 2)
    assert {way.name: way.count(*Part) for way in WAYS} == {
        "pve-zfsbackup": (9, 0),
        "sanoid + syncoid": (5, 14),
        "zfs-autobackup": (4, 1),
        "bzfs": (5, 2),
        "pve-zsync": (2, 0),
    }


def test_a_guest_is_protected_when_each_disk_has_a_guid_on_both_sides() -> None:
    assert protected({"a": {"1", "2"}, "b": {"3"}}, {"x": {"2"}, "y": {"3", "4"}})
    assert not protected({"a": {"1"}, "b": {"3"}}, {"x": {"1"}, "y": set()})
    assert not protected({"a": {"1"}, "b": {"3"}}, {"x": {"3"}, "y": {"1"}}), "the other disk's is no replica"
    assert not protected({}, {})


def test_what_was_not_measured_is_said() -> None:
    ours, never = Walked(way=OURS, protected=True), Walked(way=next(way for way in WAYS if way.name == "pve-zsync"))
    ours.seconds = {step.line: 10.0 for step in OURS.steps if isinstance(step, Typed) and step.here}
    lines = list(table([ours, never]))
    assert "| pve-zfsbackup | 6 commands | 3 commands | 30 (installing: 20) | nothing |" in lines[2]
    assert "| pve-zsync | 1 command | 1 command | not measured | nothing |" in lines[3]
    assert ours.as_json()["counts"]["install"] == {"commands": 6, "lines": 0}
    assert json.loads(json.dumps(never.as_json()))["seconds"] == {"install": None, "use": None, "schedule": None}
    ours.protected = False
    assert "NOT PROTECTED" in list(table([ours]))[2]
