"""What lies aside is told, with what to do about it, until somebody gives it up; only what we put there counts."""

from __future__ import annotations

import json
from datetime import UTC

import pytest

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health
from pve_zfsbackup.app.history import history
from pve_zfsbackup.app.overview import overview
from pve_zfsbackup.app.restore import Request, carry_out, prepare
from pve_zfsbackup.app.rollback import prepare_rollback, roll_back
from pve_zfsbackup.app.status import status
from pve_zfsbackup.model import Vmid, parse_selector
from pve_zfsbackup.model.aside import PutAside
from pve_zfsbackup.model.health import Health, Level
from pve_zfsbackup.report.health import check_lines, checkmk_line, health_json
from pve_zfsbackup.report.leavings import leaving_lines
from pve_zfsbackup.report.page import report_page
from pve_zfsbackup.report.status import status_json
from tests.fakes.pools import Ds
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import DB, WEB, World

MARK = "pve-zfsbackup:aside"
DAY = 86_400


def told(world: World, *guests: str) -> tuple[PutAside, ...]:
    with world.session() as session:
        return history(session, Scope(guests=tuple(parse_selector(text) for text in guests))).aside


def judged(world: World) -> Health:
    with world.session() as session:
        return health(session, Scope())


@pytest.fixture
def rolled(world: World) -> World:
    """A guest that was rolled back, with what it had aside."""
    for _ in range(2):
        world.run()
        world.write()
    world.guest(WEB).running = False
    with world.session() as session:
        roll_back(session, prepare_rollback(session, Vmid(WEB), world.complete(HERE, WEB)[0]))
    return world


def lying(world: World) -> dict[str, Ds]:
    return {name: ds for name, ds in world.source.datasets.items() if "/pzb-aside/100/" in name}


def test_a_rollback_puts_aside_and_everything_tells_of_it(rolled: World) -> None:
    aside = told(rolled)
    assert [one.dataset for one in aside] == sorted(lying(rolled))
    assert {(one.vmid, one.by, one.since) for one in aside} == {(WEB, "rollback", rolled.clock.now)}
    assert all(one.bytes > 0 for one in aside)
    name = aside[0].dataset
    with rolled.session() as session:
        found = status(session, Scope())
        assert next(leaving_lines(found.history, UTC)).endswith(
            f"look at it: zfs list -r -t all -o name,used,creation {name}; give it up: zfs destroy -r {name}"
        )
        shown = json.loads(json.dumps(status_json(found)))["aside"]
        page = report_page(overview(session, Scope()))
    assert [(one["dataset"], one["vmid"], one["by"]) for one in shown] == [(d, WEB, "rollback") for d in lying(rolled)]
    assert page.count("zfs destroy -r ") == 2
    assert "Put aside" in page


def test_for_a_week_it_is_only_to_be_known_and_then_a_warning(rolled: World) -> None:
    rolled.run()
    found = judged(rolled)
    assert found.level is Level.OK
    line, *details = check_lines(found)
    assert line.startswith("OK - 3 guests protected, oldest newest point 0.")
    assert "guest 100: " in line
    assert f"put_aside={sum(one.bytes for one in found.aside)}B;;;0" in line
    assert len(details) == 2
    assert all("give it up: zfs destroy -r " in text for text in details)
    assert checkmk_line(found).startswith('0 "pve-zfsbackup" ')
    assert len(health_json(found)["aside"]) == 2
    with rolled.session() as session:
        assert "What is wrong" not in report_page(overview(session, Scope()))
    rolled.clock.now += 8 * DAY
    rolled.run()
    found = judged(rolled)
    assert found.level is Level.WARNING
    assert "put aside by rollback 8 days ago as " in found.findings[0].text


def test_it_is_told_no_more_when_it_is_gone(rolled: World) -> None:
    for name in lying(rolled):
        rolled.source.drop(name)
    assert told(rolled) == ()
    assert judged(rolled).aside == ()


def test_a_guest_that_is_asked_for_hears_of_its_own(rolled: World) -> None:
    assert {one.vmid for one in told(rolled, "100")} == {WEB}
    assert told(rolled, "101") == ()


def test_only_what_we_put_there_counts(rolled: World) -> None:
    """Somebody's own dataset, a child that inherits the mark, a copy that has it, and one that has its place again."""
    first = sorted(lying(rolled))[0]
    value = rolled.source.datasets[first].props[MARK]
    rolled.runner.run(("zfs", "create", "-o", "mountpoint=none", "rpool/data/pzb-aside"), check=False)
    for name, options in (
        ("rpool/data/pzb-aside/theirs", ()),
        ("rpool/data/pzb-aside/100/copy", ("-o", f"{MARK}={value}")),
        ("rpool/data/pzb-aside/555", ()),
        ("rpool/data/pzb-aside/555/mine", ("-o", f"{MARK}=nonsense")),
        ("rpool/data/vm-100-again", ("-o", f"{MARK}={value}")),
    ):
        rolled.runner.run(("zfs", "create", *options, "-o", "mountpoint=none", name))
    assert [one.dataset for one in told(rolled)] == [name for name in sorted(lying(rolled)) if "copy" not in name]


def test_no_value_of_the_property_keeps_anything_from_being_told(rolled: World) -> None:
    for name, value in (("a", "1\t2\t3"), ("b", "x\ny"), ("c", "\n1\t2\t3\t4")):
        rolled.source.add(f"rpool/data/pzb-aside/100/{name}").props[MARK] = value
    assert [one.dataset for one in told(rolled)] == [name for name in sorted(lying(rolled)) if "vm-100" in name]


def test_a_restore_in_place_of_a_guest_puts_aside_as_well(world: World) -> None:
    world.run()
    world.guest(DB).running = False
    with world.session() as session:
        carry_out(session, prepare(session, Request(vmid=Vmid(DB), replace=DB)))
    (one,) = told(world)
    assert (one.vmid, one.by, one.since) == (DB, "restore", world.clock.now)
    assert one.dataset.startswith("rpool/crypt/pzb-aside/101/")


def test_what_cannot_be_looked_into_is_noted_and_stops_nothing(rolled: World) -> None:
    rolled.runner.faults.append(Fault(words=("list", f"name,guid,used,{MARK}"), answer=(1, "I/O error")))
    with rolled.session() as session:
        found = history(session, Scope())
    assert found.aside == ()
    assert any("what was put aside cannot be told: " in note for note in found.notes)
    assert len(found.coverage) == 3


def test_nobody_is_asked_where_nothing_lies_aside(world: World) -> None:
    world.run()
    world.runner.ran.clear()
    told(world)
    assert len(world.runner.zfs(HERE, "list")) == 1


@pytest.mark.parametrize("name", ["a b", "x'y"])
def test_commands_are_quoted(name: str) -> None:
    one = PutAside(dataset=f"rpool/{name}/pzb-aside/100/x", vmid=Vmid(100), by="restore", since=0, bytes=1)  # type: ignore[arg-type]
    assert one.remove.endswith(("'rpool/a b/pzb-aside/100/x'", "'rpool/x'\"'\"'y/pzb-aside/100/x'"))
