"""The fault matrix's own judgement: a row that does nothing, sees nothing or checks nothing cannot pass."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.lab.matrix import (
    context,
    criteria,
    cycles,
    history,
    rows_archive,
    rows_guest,
    rows_link,
    rows_ops,
    rows_process,
    rows_source,
    rows_target,
    state,
)
from tests.lab.matrix.rows import REGISTRY
from tests.lab.matrix.table import CRITERIA, Outcome, Registry, Row, summary, table

ROW = Row(number="16", fault="link dead", expected="resume", function=lambda ctx: "x")
ASKED_FOR = {*range(1, 7), 8, *range(11, 40), *range(41, 56), 66, 67, 68}
NAME = "pzb:20261123T180000Z-ab12"


def good() -> Outcome:
    return Outcome(row=ROW, seen="exit 1, then resumed", checked=set(CRITERIA))


def test_a_row_that_saw_and_checked_everything_passes() -> None:
    assert good().result == "passed"


@pytest.mark.parametrize("seen", ["", "  \n"])
def test_a_row_that_saw_nothing_fails(seen: str) -> None:
    outcome = good()
    outcome.seen = seen
    assert outcome.result == "failed"
    assert "NOTHING" in table([outcome])


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_nobody_looked_at_fails_the_row(name: str) -> None:
    outcome = good()
    outcome.checked.remove(name)
    assert outcome.result == "failed"
    assert outcome.json()[name] == "not checked"


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_that_does_not_hold_fails_the_row_and_says_why(name: str) -> None:
    outcome = good()
    outcome.complain(name, "a point is gone")
    outcome.complain(name, "a point is gone")
    assert outcome.result == "failed"
    assert outcome.json()[name] == "a point is gone"
    assert f"{name.upper()}: a point is gone" in table([outcome])


def test_what_contradicts_the_expectation_fails_the_row_and_is_shown_with_what_was_seen() -> None:
    outcome = good()
    outcome.contradiction = "called a success"
    assert outcome.result == "failed"
    assert "called a success" in outcome.json()["seen"]


def test_there_is_no_ninth_criterion() -> None:
    with pytest.raises(ValueError, match="n9"):
        good().complain("n9", "x")


def test_the_file_has_what_was_agreed() -> None:
    found = json.loads(json.dumps(good().json()))
    assert list(found) == ["row", "fault", "expected", "seen", *CRITERIA, "result", "seconds"]


def test_what_no_lab_can_do_is_said_and_counted_apart() -> None:
    row = Row(number="40", fault="f", expected="e", function=lambda ctx: "", impossible="needs two nodes")
    outcome = Outcome(row=row)
    assert outcome.result == "impossible"
    assert outcome.json()["seen"] == "needs two nodes"
    assert summary([outcome, good()]) == "matrix: 1 passed, 1 impossible, 0 s"


def registry() -> Registry:
    made = Registry()
    for number in ("10", "2", "32", "32a", "33"):
        made.row(number, "fault", "expected", fast=number == "2")(lambda ctx: "seen")
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["2", "10", "32", "32a", "33"]),
        ("32", ["32", "32a"]),
        ("32a", ["32a"]),
        ("2,30-33", ["2", "32", "32a", "33"]),
        (" 33 2 ", ["2", "33"]),
    ],
)
def test_rows_are_picked_by_number_and_range(text: str, expected: list[str]) -> None:
    assert [row.number for row in registry().chosen(text)] == expected


def test_the_fast_ones_are_a_choice_of_all() -> None:
    assert [row.number for row in registry().chosen(fast=True)] == ["2"]


@pytest.mark.parametrize("text", ["99", "2,99", "x"])
def test_a_row_that_is_not_there_is_not_silently_left_out(text: str) -> None:
    with pytest.raises(ValueError):
        registry().chosen(text)


def test_two_rows_of_one_number_and_rows_without_words_are_refused() -> None:
    made = registry()
    with pytest.raises(ValueError, match="twice"):
        made.row("2", "fault", "expected")(lambda ctx: "seen")
    with pytest.raises(ValueError, match="must say"):
        made.row("3", "fault", " ")(lambda ctx: "seen")


def test_every_row_that_was_asked_for_is_there() -> None:
    assert {int(row.number.rstrip("ab")) for row in REGISTRY.rows.values()} >= ASKED_FOR


MODULES = [rows_process, rows_link, rows_target, rows_source, rows_archive, rows_guest, rows_ops]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_every_row_returns_what_it_saw_and_has_something_to_lose(module: object) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = [node for node in functions if any(ast.unparse(one).startswith("row(") for one in node.decorator_list)]
    assert found
    for node in found:
        last = node.body[-1]
        assert isinstance(last, ast.Return), f"{node.name} ends without saying what it saw"
        assert re.search(r"ctx\.(baseline|publish)\(", ast.unparse(node)), (
            f"{node.name} makes no point that could get lost"
        )
        constants = [part for part in ast.walk(last) if isinstance(part, ast.Constant) and part.value == ""]
        assert not constants, f"{node.name} returns an empty text"


# -- zpool history ----------------------------------------------------------------------------------------------

SOURCE_FINE = [
    f"2026-11-23.22:10:10 [txg:12] snapshot rpool/data/vm-1-disk-0@{NAME} (7) ",
    f"2026-11-23.22:10:10 [txg:12] set rpool/data/vm-1-disk-0@{NAME} (7) pve-zfsbackup:point=1/20261123T180000Z-ab12",
    f"2026-11-23.22:10:11 [txg:14] destroy rpool/data/vm-1-disk-0@{NAME} (7) ",
    f"2026-11-23.22:10:11 [txg:15] bookmark rpool/data/vm-1-disk-0 (649) name={NAME}:backup1 creation_txg=12",
    "2026-11-23.22:10:11 [txg:15] create rpool/pve-zfsbackup-drill (9) ",
    f"2026-11-23.22:10:11 [txg:15] clone rpool/pve-zfsbackup-drill/0a1b2c3d-0 (9) origin=rpool/data/vm-1-disk-0@{NAME}",
    "2026-11-23.22:10:11 [txg:15] destroy rpool/pve-zfsbackup-drill/0a1b2c3d-0 (9) (bptree, mintxg=5)",
    "2026-11-23.22:10:11 zfs rollback rpool/data/x",
    "2026-11-23.22:10:11 [txg:16] scan setup func=2 mintxg=3",
]
SOURCE_FOREIGN = [
    "2026-11-23.22:10:11 [txg:15] snapshot rpool/pve-zfsbackup-drill/0a1b2c3d-0@x (9) ",
    "2026-11-23.22:10:11 [txg:15] destroy rpool/pve-zfsbackup-drill/theirs (9) ",
    "2026-11-23.22:10:10 [txg:12] remove bookmark rpool/data/vm-1-disk-0 (649) name=admins",
    "2026-11-23.22:10:10 [txg:12] destroy rpool/data/vm-1-disk-0@admin (7) ",
    "2026-11-23.22:10:10 [txg:12] destroy rpool/data/vm-1-disk-0 (7) (bptree, mintxg=2)",
    "2026-11-23.22:10:10 [txg:12] rollback rpool/data/vm-1-disk-0 (7) (new name=x)",
    f"2026-11-23.22:10:10 [txg:12] hold rpool/data/vm-1-disk-0@{NAME} (7) tag=pve-zfsbackup temp=0 refs=1",
    "2026-11-23.22:10:10 [txg:12] set rpool/data/vm-1-disk-0 (7) readonly=1",
    f"2026-11-23.22:10:10 [txg:12] set rpool/data/vm-1-disk-0@{NAME} (7) com.sun:auto-snapshot=false",
]


def test_the_products_own_doing_on_the_source_is_allowed() -> None:
    assert history.foreign(history.events(SOURCE_FINE), None, set()) == []
    assert len(list(history.events(SOURCE_FINE))) == 7


@pytest.mark.parametrize("line", SOURCE_FOREIGN)
def test_anything_else_on_the_source_is_told(line: str) -> None:
    assert len(history.foreign(history.events([line]), None, set())) == 1


TARGET_FINE = [
    "2026-11-23.22:10:10 [txg:12] create tank/m/r1/local-zfs (7) ",
    "2026-11-23.22:10:10 [txg:12] receive tank/m/r1/local-zfs/vm-1-disk-0/%recv (7) snap=none",
    "2026-11-23.22:10:10 [txg:12] finish receiving tank/m/r1/local-zfs/vm-1-disk-0/%recv (7) snap=" + NAME,
    "2026-11-23.22:10:10 [txg:12] destroy tank/m/r1/local-zfs/vm-1-disk-0/%recv (7) ",
    f"2026-11-23.22:10:10 [txg:12] hold tank/m/r1/x@{NAME} (7) tag=pve-zfsbackup temp=0 refs=1",
    f"2026-11-23.22:10:10 [txg:12] destroy tank/m/r1/x@{NAME} (7) ",
]
TARGET_FOREIGN = [
    "2026-11-23.22:10:10 [txg:12] create tank/m/r10 (7) ",
    "2026-11-23.22:10:10 [txg:12] destroy tank/m/r1/x (7) ",
    "2026-11-23.22:10:10 [txg:12] destroy tank/m/r1/x@admin (7) ",
    f"2026-11-23.22:10:10 [txg:12] release tank/m/r1/x@{NAME} (7) tag=keep-mine refs=0",
    "2026-11-23.22:10:10 [txg:12] rollback tank/m/r1/x (7) ",
    "2026-11-23.22:10:10 [txg:12] rename tank/m/r1/x (7) -> tank/m/r1/y",
    f"2026-11-23.22:10:10 [txg:12] destroy tank/other@{NAME} (7) ",
]


def test_the_products_own_doing_below_the_root_is_allowed() -> None:
    assert history.foreign(history.events(TARGET_FINE), "tank/m/r1", set()) == []


@pytest.mark.parametrize("line", TARGET_FOREIGN)
def test_anything_else_on_the_target_is_told_unless_the_lab_did_it(line: str) -> None:
    found = list(history.events([line]))
    assert len(history.foreign(found, "tank/m/r1", set())) == 1
    dataset = found[0].object.partition("@")[0]
    assert history.foreign(found, "tank/m/r1", {(found[0].verb, dataset)}) == []
    assert history.foreign(found, "tank/m/r1", {("promote", dataset), (found[0].verb, "tank")}) != []


# -- what a pool has --------------------------------------------------------------------------------------------


def entry(name: str, guid: str, kind: str = "snapshot", txg: int = 1, point: str = "-") -> str:
    return "\t".join((name, guid, kind, str(txg), "100", "0", "-", "-", point))


POINT = "1/20261123T180000Z-ab12"
LINES = [
    entry("tank/r/s/d0", "1", "volume"),
    entry("tank/r/s/d1", "2", "volume"),
    entry(f"tank/r/s/d0@{NAME}", "10", txg=4, point=POINT),
    entry(f"tank/r/s/d1@{NAME}", "11", txg=5, point=POINT),
    entry("tank/r/s/d1@admin", "12", txg=6),
    entry(f"tank/r/s/d1#{NAME}:backup1", "11", "bookmark", 5),
]


def test_a_point_counts_only_with_all_its_disks() -> None:
    whole = state.parse(LINES)
    assert list(state.points(whole, "tank/r", 2)) == [POINT]
    del whole[f"tank/r/s/d1@{NAME}"]
    assert not state.points(whole, "tank/r", 2)


def test_an_inherited_point_property_makes_nothing_ours() -> None:
    found = state.parse(
        [entry("tank/r/s/d0@admin", "1", point=POINT), entry(f"tank/r/s/d0@{NAME[:-1]}3", "2", point=POINT)]
    )
    assert not any(one.ours for one in found.values())


def test_foreign_objects_that_come_go_or_change_are_told_and_ours_are_not() -> None:
    before, after = (
        state.parse(LINES),
        state.parse([*LINES[1:4], entry("tank/r/s/d1@admin", "99"), entry("tank/x", "5", "volume")]),
    )
    assert state.changed(before, after, ()) == [
        "tank/r/s/d0 is gone",
        "tank/x appeared",
        "tank/r/s/d1@admin is another",
    ]


def test_bookmarks_count_as_a_common_base_but_only_on_the_source() -> None:
    here = state.parse([entry(f"rpool/d#{NAME}:backup1", "11", "bookmark")])
    assert state.common(here, "rpool/d", state.parse(LINES), "tank/r") == {"11"}
    assert state.common(here, "rpool/d", state.parse(LINES[5:]), "tank/r") == set()


def test_a_line_that_is_no_row_of_the_list_is_not_overlooked() -> None:
    with pytest.raises(ValueError, match="columns"):
        state.parse(["tank\t1"])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([50] * 9, True), ([50, 51, 50, 60, 50, 52, 51, 50, 51], True), (list(range(50, 80)), False), ([50], True)],
)
def test_memory_is_flat_when_the_last_third_needs_no_more_than_the_first(sizes: list[int], expected: bool) -> None:
    assert cycles.flat(sizes) is expected


class Said:
    """A row whose earlier runs told this, on a target that now has these replicas (guid -> name)."""

    def __init__(self, after: dict[str, str], earlier: str = "") -> None:
        self.outputs = [earlier]
        rows = [entry(name, guid, "volume") for guid, name in after.items()]
        self.root, self.lost, self.by_hand = "tank/r", set[str](), set[tuple[str, str]]()
        self.states = lambda: ({}, state.parse(rows))


@pytest.mark.parametrize(
    ("after", "told", "complaints"),
    [
        ({"1": "tank/r/s/vm-7-disk-0"}, "", 0),
        ({"1": "tank/r/s/vm-7-disk-0", "2": "tank/r/s/vm-7-disk-0-g00aa11bb"}, "nothing", 1),
        ({"1": "tank/r/s/vm-7-disk-0", "2": "tank/r/f/vm-7-disk-0"}, "ok: 1 stream", 1),
        ({"1": "tank/r/s/vm-7-disk-0", "2": "tank/r/s/vm-7-disk-0-g00aa11bb"}, "warning: new generation", 0),
        ({"1": "tank/r/s/vm-7-disk-0", "2": "tank/r/s/vm-8-disk-0"}, "", 0),
        ({"9": "tank/r/s/vm-7-disk-0"}, "it is sent in full", 1),
    ],
    ids=["same", "silent generation", "silently elsewhere", "told", "another guest's first", "overwritten"],
)
def test_nothing_is_sent_in_full_or_replaced_without_a_word(after: dict[str, str], told: str, complaints: int) -> None:
    found: list[str] = []
    done = context.Done(code=0, report={}, stderr=told, seconds=1.0)
    criteria._not_silently(Said(after), {"1": "tank/r/s/vm-7-disk-0"}, done, found.append)  # type: ignore[arg-type]
    assert len(found) == complaints, found


def test_what_an_earlier_run_of_the_row_told_counts_as_told() -> None:
    after = {"1": "tank/r/s/vm-7-disk-0", "2": "tank/r/s/vm-7-disk-0-g00aa11bb"}
    found: list[str] = []
    done = context.Done(code=0, report={}, stderr="ok: 1 stream", seconds=1.0)
    said = Said(after, "warning: new generation")
    criteria._not_silently(said, {"1": "tank/r/s/vm-7-disk-0"}, done, found.append)  # type: ignore[arg-type]
    assert found == []
