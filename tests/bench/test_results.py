"""The arithmetic and the drawing of the benchmark; nothing is measured here."""

from __future__ import annotations

import os
import time
from xml.etree import ElementTree

import pytest

from tests.bench import archive, plot, results
from tests.bench.contenders import ALL, KEPT, Tree
from tests.bench.onhost import measure
from tests.bench.results import Run


def run(contender: str, seconds: float, *, phase: str = "full", void: str = "", processes: int = 10) -> Run:
    return Run(
        workload="w1", phase=phase, contender=contender, repetition=0, seconds=seconds, cpu=1.0, processes=processes,
        here={}, sessions=1, connections=1, largest=50 << 20, tree=60 << 20, load=0.5, void=void,
    )  # fmt: skip


def test_medians_and_ratios_to_the_floor_of_the_same_phase() -> None:
    runs = [run("floor", s) for s in (2.0, 1.0, 9.0)] + [run("ours", s) for s in (3.0, 5.0, 4.0)]
    runs += [run("floor", 10.0, phase="changed"), run("ours", 5.0, phase="changed")]
    found = {(line.phase, line.contender): line for line in results.lines(runs)}
    assert found["full", "floor"].seconds == 2.0
    assert found["full", "ours"].ratio == pytest.approx(2.0)
    assert (found["full", "ours"].fastest, found["full", "ours"].slowest) == (3.0, 5.0)
    assert found["changed", "ours"].ratio == pytest.approx(0.5)


def test_a_void_run_counts_nowhere_and_is_told() -> None:
    runs = [run("floor", 1.0), run("ours", 0.1, void="lost a snapshot"), run("ours", 2.0), run("bad", 1.0, void="x")]
    found = {line.contender: line for line in results.lines(runs)}
    assert found["ours"].seconds == 2.0
    assert (found["ours"].runs, found["ours"].void) == (1, ("lost a snapshot",))
    assert found["bad"].seconds is None
    text = results.table(runs)
    assert "1 void" in text
    assert next(line for line in text.splitlines() if "bad" in line).split()[3] == "void"


def test_without_a_good_floor_there_is_no_ratio() -> None:
    (floor, ours) = results.lines([run("floor", 1.0, void="failed"), run("ours", 2.0)])
    assert floor.ratio is None
    assert ours.ratio is None
    assert ours.seconds == 2.0


def test_phases_keep_their_order_and_the_table_puts_the_fastest_first() -> None:
    runs = [run("slow", 9.0), run("floor", 1.0), run("slow", 9.0, phase="new"), run("floor", 2.0, phase="new")]
    rows = [line.split() for line in results.table(runs).splitlines()[1:] if line]
    assert [row[1:3] for row in rows] == [["full", "floor"], ["full", "slow"], ["new", "floor"], ["new", "slow"]]


def test_the_plot_is_a_document_with_a_bar_for_each_ratio() -> None:
    runs = [run("floor", 2.0), run("<evil> & co", 1.0), run("sanoid", 40.0), run("floor", 1.0, phase="b", void="x")]
    root = ElementTree.fromstring(plot.svg(results.lines(runs), "a & b"))
    space = "{http://www.w3.org/2000/svg}"
    bars = root.findall(f"{space}rect")[1:]
    assert len(bars) == 3
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths == sorted(widths)
    texts = [text.text for text in root.findall(f"{space}text")]
    assert "a & b" in texts
    assert any("<evil> & co 1.0 s, 0.50×" in (text or "") for text in texts)


def test_a_plot_of_nothing_is_a_document_too() -> None:
    ElementTree.fromstring(plot.svg([], "nothing"))


def test_every_contender_has_a_command_for_everything() -> None:
    tree = Tree(names=("subvol-1000-disk-0", "subvol-1001-disk-0"), new="bench-1", pruned=("a", "b"))
    for contender in ALL.values():
        commands = (contender.replicate(tree), contender.replicate(tree, nothing=True), contender.prune(tree))
        for command in (*commands, contender.snapshot(tree)):
            assert all(isinstance(word, str) for word in command)
            assert command[0] in {"sh", "pve-zfsbackup", "bzfs", "zfs-autobackup", "syncoid", "sanoid"}
    assert str(KEPT) in " ".join(ALL["zfs-autobackup"].prune(tree))


@pytest.mark.processes
def test_measuring_sees_all_descendants_and_their_memory() -> None:
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            time.sleep(60)
        time.sleep(60)
    try:
        deadline = time.monotonic() + 10
        while len(found := measure.tree(os.getpid())) < 3 and time.monotonic() < deadline:
            pass
        assert child in found
        assert all(measure.resident(pid) > 1 << 20 for pid in found)
    finally:
        for pid in measure.tree(child):
            os.kill(pid, 9)
        os.waitpid(child, 0)
    assert measure.resident(child) == 0


def test_the_archives_memory_is_bounded_by_its_slices() -> None:
    assert archive.small(4 * 16 + 80, 16)
    assert not archive.small(4 * 16 + 81, 16)
