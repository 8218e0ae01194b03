"""`status`: what it says of each guest, and what colour repeats of it on a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pve_zfsbackup import terminal
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import judge
from pve_zfsbackup.app.history import history
from pve_zfsbackup.app.proofs import last_passed, newest_proof
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.status import Status, status
from pve_zfsbackup.model import SOURCE, Vmid
from pve_zfsbackup.model.health import Level
from pve_zfsbackup.model.proof import VERIFIED
from pve_zfsbackup.report.format import Table, Tone
from pve_zfsbackup.report.status import status_json, status_table
from tests.fakes.runner import Fault
from tests.fakes.world import REPLICAS, TARGET, WEB, World

DISK = "rpool/data/vm-100-disk-0"


def looked(world: World) -> Status:
    with world.session() as session:
        return status(session, Scope())


def table(world: World) -> Table:
    with world.session() as session:
        return status_table(status(session, Scope()), session.timezone)


def row(shown: Table, vmid: int = WEB) -> dict[str, str]:
    (found,) = (cells for cells in shown.rows if cells[0] == str(vmid))
    return dict(zip(shown.columns, found, strict=True))


def tones(shown: Table, vmid: int = WEB) -> dict[str, Tone]:
    (number,) = (number for number, cells in enumerate(shown.rows) if cells[0] == str(vmid))
    return {column: tone for (at, column), tone in shown.tones.items() if at == number}


def prove(world: World, value: str, *, target: bool = False) -> None:
    """As a drill does, on every disk of the guest."""
    for name in (DISK, "fast/vm-100-disk-0"):
        pools, dataset = (world.target, REPLICAS[name]) if target else (world.source, name)
        newest = pools.datasets[dataset].newest
        assert newest
        newest.props[VERIFIED] = value


def test_a_guest_that_is_well_has_no_colour(world: World) -> None:
    world.run()
    shown = table(world)
    assert shown.columns == ("vmid", "guest", "newest", SOURCE, TARGET, "consistency", "verified", "due", "problems")
    assert row(shown) == {
        "vmid": "100", "guest": "web", "newest": "2026-11-18 13:06", "source": "0 s", "backup1": "0 s",
        "consistency": "quiesced", "verified": "never", "due": "in 3 h", "problems": "",
    }  # fmt: skip
    assert shown.tones == {}


@pytest.mark.parametrize(
    ("hours", "due", "tone", "told"),
    [
        (2, "in 60 min", None, ""),
        (4, "60 min ago", Tone.LATE, "newest point on backup1 is older than 3 h"),
        (27, "24 h ago", Tone.BAD, "newest point on backup1 is older than 26 h"),
    ],
)
def test_what_is_late_is_said_and_coloured(world: World, hours: int, due: str, tone: Tone | None, told: str) -> None:
    """Also where there is no colour."""
    world.run()
    world.clock.now += hours * 3600
    world.run(Stage.SNAPSHOT)
    world.clock.now -= 3600
    shown = table(world)
    assert (row(shown)["due"], row(shown)["problems"]) == (due, told)
    assert tones(shown).get(TARGET) == tones(shown).get("problems") == tones(shown).get("vmid") == tone
    assert tones(shown).get("due") == (Tone.LATE if tone else None)
    assert SOURCE not in tones(shown)


def test_a_guest_without_a_point_is_due_now(world: World) -> None:
    shown = table(world)
    assert (row(shown)["newest"], row(shown)[SOURCE], row(shown)["due"]) == ("-", "none", "now")
    assert row(shown)["problems"] == "no point; no point on backup1"
    assert tones(shown).keys() == {"vmid", SOURCE, TARGET, "due", "problems"}


def test_a_target_that_does_not_answer_is_bad_only_for_its_guests(world: World) -> None:
    world.run()
    world.configure(
        world.config.read_text()
        .replace("guests: [all]", "guests: ['100']")
        .replace("{", "{{")
        .replace("}", "}}")
    )
    world.runner.down[TARGET] = "no route to host"
    shown = table(world)
    assert row(shown)[TARGET] == "no answer"
    assert tones(shown)[TARGET] is Tone.BAD
    assert "backup1 does not answer" in row(shown)["problems"]
    other = row(shown, 200)
    assert (other[TARGET], other["due"], other["problems"]) == ("-", "-", "in no job")


def test_a_guest_that_cannot_be_read_is_bad_and_its_points_still_grow_old(world: World) -> None:
    world.run()
    world.clock.now += 40 * 86_400
    fault = Fault(words=("get", "/nodes/pve1/qemu/100/pending"), answer=(2, "Permission check failed"), again=True)
    world.runner.faults.append(fault)
    shown = table(world)
    assert tones(shown)["vmid"] is tones(shown)[SOURCE] is tones(shown)[TARGET] is Tone.BAD
    told = row(shown)["problems"]
    assert told.startswith("its configuration cannot be read: ")
    assert told.endswith("; newest point is older than 26 h; newest point on backup1 is older than 26 h")


def test_the_newest_drill_of_any_host_is_shown(world: World) -> None:
    world.run()
    prove(world, "points 20261118T120000Z", target=True)
    assert row(table(world))["verified"] == "points 6 min on backup1"
    prove(world, "files 20261117T120000Z")
    assert row(table(world))["verified"] == "files 24 h", "a drill says more than the chain"
    prove(world, "files 20261118T114640Z", target=True)
    assert row(table(world))["verified"] == "files 20 min on backup1"
    prove(world, "failed 20261118T120000Z")
    shown = table(world)
    assert (row(shown)["verified"], tones(shown)["verified"]) == ("failed 6 min", Tone.BAD)
    assert row(shown)["problems"] == "the last drill failed"
    found = looked(world).history
    passed = last_passed(found, Vmid(WEB))
    assert passed
    assert (passed.place, passed.level) == (TARGET, "files")


def test_a_proof_from_the_future_or_without_sense_proves_nothing(world: World) -> None:
    world.run()
    for value in ("files 20991118T120000Z", "magic 20261118T120000Z", "files", "files 20261399T000000Z"):
        prove(world, value, target=True)
        found = looked(world).history
        assert newest_proof(found, Vmid(WEB)) is None
        assert last_passed(found, Vmid(WEB)) is None


def test_a_clock_that_was_set_back_is_not_health(world: World) -> None:
    """Nothing would be late for as long as it takes the clock to catch up."""
    world.run()
    world.clock.now -= 30 * 86_400
    shown = table(world)
    assert row(shown)[SOURCE] == "-30 d"
    assert row(shown)["problems"].startswith("1 point is from the future: was the clock set back?; 1 point on backup1")
    assert tones(shown)[SOURCE] is Tone.LATE
    with world.session() as session:
        judged = judge(history(session, Scope()), session.config, ())
    assert judged.level is Level.WARNING
    told = "1 point here is from the future: was the clock set back? Nothing is pruned until then"
    assert judged.findings[0].text == told
    world.clock.now += 30 * 86_400 - 60
    assert table(world).tones == {}, "a minute is nothing"


def test_nothing_configured_and_nothing_there(world: World) -> None:
    world.configure(f"api: {{{{node: pve1, token-file: {world.place}/no.token}}}}\njournal-dir: {world.place}/log\n")
    shown = table(world)
    assert {cells[-1] for cells in shown.rows} == {"in no job"}
    for vmid in list(world.node.guests):
        world.node.remove(vmid)
    assert table(world).rows == ()


def test_a_template_is_no_trouble(world: World) -> None:
    world.run()
    world.configure(
        world.config.read_text().replace("guests: [all]", "guests: ['100']").replace("{", "{{").replace("}", "}}")
    )
    world.node.define(300, "template: 1\nname: base\n", running=False)
    assert row(table(world), 300)["problems"] == ""


def test_the_json_says_the_same(world: World) -> None:
    world.run()
    prove(world, "files 20261118T120000Z")
    found = looked(world)
    told: dict[str, Any] = json.loads(json.dumps(status_json(found)))
    web = next(guest for guest in told["guests"] if guest["vmid"] == WEB)
    newest = world.points(TARGET, WEB)[-1]
    assert web["newest"][TARGET] == {
        "point": newest.id, "creation": newest.creation, "age": 0, "consistency": "quiesced",
    }  # fmt: skip
    assert web["due"] == {"at": newest.creation + 3 * 3600, "where": SOURCE}
    assert web["verified"] == {
        "level": "files", "at": 1795003200, "age": 400, "where": SOURCE, "point": world.points("pve1", WEB)[-1].id,
    }  # fmt: skip
    assert web["limits"][SOURCE] == {"warn": 10800, "critical": 93600}
    assert (web["level"], web["problems"]) == ("ok", [])


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Screen]:
    def turn_on() -> Screen:
        made = Screen()
        monkeypatch.setattr(sys, "stdout", made)
        for name, value in (("TERM", "xterm"), ("COLUMNS", "160"), ("LINES", "12")):
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_COLOR", raising=False)
        return made

    return turn_on


def test_colour_is_for_terminals_that_want_it(
    world: World, screen: Callable[[], Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = table(world)
    terminal.print_table(shown)
    here = screen()
    terminal.print_table(shown)
    assert "\x1b[1;31mno point; no point on backup1" in here.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    here = screen()
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.print_table(shown)
    assert "\x1b[31m" not in here.getvalue()
    assert "[1;31m" not in here.getvalue()
    assert "no point" in here.getvalue()


def test_a_screen_is_cleared_filled_and_not_overfilled(world: World, screen: Callable[[], Screen]) -> None:
    world.run()
    shown = table(world)
    many = dataclasses.replace(shown, rows=shown.rows * 20)
    here = screen()
    terminal.redraw("pve1\x1b[2J", many, ["a [red]note"])
    text = here.getvalue()
    assert text.startswith(("\x1b[H\x1b[2J", "\x1b[2J\x1b[H"))
    assert text.count("\n") == 11
    assert "… and " in text
    assert "pve1\\x1b[2J" in text
    here = screen()
    terminal.redraw("pve1", shown, ["a [red]note"])
    assert "a [red]note\n" in here.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_what_is_wrong_can_be_read_on_any_screen(
    world: World, screen: Callable[[], Screen], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Below its row where there is no room beside it: not in a column of seven letters."""
    world.run()
    world.clock.now += 27 * 3600
    here = screen()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.print_table(table(world))
    lines = re.sub("\x1b\\[[0-9;]*m", "", here.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 2 + 3 * (4 if width > 60 else 5)
    text = " ".join(" ".join(line.split()) for line in lines)
    assert text.count("newest point is older than 26 h; newest point on backup1 is older than 26 h") == 3
