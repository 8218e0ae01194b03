"""`status`, `check`, `metrics` and `report` on bad days: names, clocks, targets and a journal that lie, nothing there.

Whatever happens, they answer; and what is not known is never told as health."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health
from pve_zfsbackup.app.measure import measure
from pve_zfsbackup.app.overview import overview
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.status import status
from pve_zfsbackup.model.health import Level
from pve_zfsbackup.model.proof import VERIFIED
from pve_zfsbackup.report.health import check_lines, checkmk_line, health_json
from pve_zfsbackup.report.metrics import metrics_json, metrics_text
from pve_zfsbackup.report.page import overview_json, report_page
from pve_zfsbackup.report.points import points_json, points_table
from pve_zfsbackup.report.status import status_json, status_table
from tests.fakes.world import REPLICAS, TARGET, WEB, World

EVIL = 'a|b"} 1\npve_zfsbackup_up 0\x1b[2J[red]\u202e</td><script>\udcff'


class Seen:
    """Everything the four say, each of it put through its last step."""

    def __init__(self, world: World) -> None:
        with world.session() as session:
            told, self.health, found = status(session, Scope()), health(session, Scope()), measure(session)
            view, zone = overview(session, Scope()), session.timezone
            self.table = status_table(told, zone)
            self.status: dict[str, Any] = json.loads(json.dumps(status_json(told), allow_nan=False))
            points_table(told.history, zone, disks=True)
            others = (points_json(told.history), health_json(self.health), metrics_json(found), overview_json(view))
            json.dumps(others, allow_nan=False)
            self.lines = [*check_lines(self.health), checkmk_line(self.health)]
            self.metrics = metrics_text(found)
            self.page = report_page(view)
        assert all(line.isprintable() for line in [*self.lines, *self.metrics.splitlines()])
        assert all(cell.isprintable() for row in self.table.rows for cell in row)

    def row(self, vmid: int = WEB) -> dict[str, str]:
        (found,) = (cells for cells in self.table.rows if cells[0] == str(vmid))
        return dict(zip(self.table.columns, found, strict=True))

    @property
    def texts(self) -> list[str]:
        return [f"{item.level.name} {item.about}: {item.text}" for item in self.health.findings]


def rename(world: World, name: str) -> None:
    conf = world.node.etc / "qemu-server/100.conf"
    conf.write_bytes(conf.read_bytes().replace(b"name: web", b"name: " + name.encode("utf-8", "surrogateescape")))


def configure(world: World, old: str, new: str) -> None:
    text = world.config.read_text()
    assert old in text
    world.config.write_text(text.replace(old, new))


@pytest.mark.parametrize("name", ["a|b=1;2;3", "web\t\x1b[2J", "\u202eevil\u2028x", "[red]x[/]", "x" * 5000, ""])
def test_no_name_of_a_guest_is_more_than_a_name(world: World, name: str) -> None:
    rename(world, name)
    world.run()
    seen = Seen(world)
    assert seen.health.level is Level.OK
    assert seen.row()["due"] == "in 3 h"
    assert "<script" not in seen.page
    world.clock.now += 4 * 3600
    late = Seen(world)
    assert late.lines[0].count("|") == 1, "performance data begins once"
    assert late.row()["problems"].startswith("newest point is older than 3 h")


def lie_about_creation(world: World, when: int) -> None:
    for name in REPLICAS.values():
        newest = world.target.datasets[name].newest
        assert newest
        newest.creation = when


@pytest.mark.parametrize("when", [2**62, 10**20, -(10**12), 0])
def test_a_target_that_lies_about_time_spoils_no_answer(world: World, when: int) -> None:
    world.run()
    lie_about_creation(world, when)
    seen = Seen(world)
    assert seen.health.level is not Level.OK
    assert any(f"on {TARGET}" in text for text in seen.texts)
    assert seen.row()["source"] == "0 s"


@pytest.mark.parametrize("value", ["files 99991231T235959Z", "booted 00010101T000000Z", EVIL, "files", "x" * 4000])
def test_a_target_that_lies_about_proofs_puts_off_no_alarm(world: World, value: str) -> None:
    world.run()
    configure(world, "    guests: [all]\n", "    guests: [all]\n    verify-within: 7\n")
    for name in REPLICAS.values():
        newest = world.target.datasets[name].newest
        assert newest
        newest.props[VERIFIED] = value.replace("\n", "")
    told = [text for text in Seen(world).texts if "drill" in text]
    assert len(told) == 3, "one of each guest"


@pytest.mark.parametrize("back", [3 * 3600, 30 * 86_400, 20 * 365 * 86_400])
def test_a_clock_that_was_set_back_is_told_and_hides_nothing(world: World, back: int) -> None:
    """First there is nothing but the future; then the runs stop, and that is seen at once, not when it has come."""
    world.run()
    world.clock.now -= back
    seen = Seen(world)
    assert seen.health.level is Level.WARNING
    assert any("1 point here is from the future" in text for text in seen.texts)
    world.run()
    again = Seen(world)
    assert again.row()["source"] == "0 s", "the newest of those that were made until now"
    assert again.health.level is Level.WARNING
    world.clock.now += 27 * 3600
    if back > 30 * 3600:  # the future has not come meanwhile
        late = Seen(world)
        assert late.health.level is Level.CRITICAL
        assert any(text == "CRITICAL guest 100 web: newest point here is 27.0 h old" for text in late.texts)
        assert "older than 26 h" in late.row()["problems"]


def test_a_run_of_a_wrong_clock_does_not_stay_the_last_one(world: World) -> None:
    world.clock.now += 400 * 86_400
    world.run(Stage.SNAPSHOT)
    world.clock.now -= 400 * 86_400
    world.runner.down[TARGET] = "no route to host"
    world.run()
    with world.session() as session:
        found = measure(session)
    assert {stage: run.failed(stage) for stage, run in found.last.items()} == {
        "snapshot": False, "replicate": True, "prune": True
    }  # fmt: skip
    assert found.last["snapshot"].started < world.clock.now + 1


def test_somebody_elses_root_is_not_ours_however_fresh(world: World) -> None:
    """Another cluster has a guest 100 as well, and replicates it there every hour."""
    world.run()
    world.target.datasets["tank/backups"].props["pve-zfsbackup:owner"] = "pve-0123456789abcdef"
    seen = Seen(world)
    assert seen.health.level is Level.CRITICAL
    assert seen.texts[0].startswith(f"CRITICAL target {TARGET}: {TARGET}: tank/backups belongs to pve-0123456789abcdef")
    assert "tank/backups belongs to" in seen.row()["problems"]


def test_a_silent_target_may_have_the_drill(world: World) -> None:
    world.run()
    configure(world, "    guests: [all]\n", "    guests: [all]\n    verify-within: 7\n")
    world.runner.down[TARGET] = "no route to host"
    seen = Seen(world)
    assert seen.texts == [text for text in seen.texts if "drill" not in text]
    assert seen.health.level is Level.CRITICAL, "that it is silent is told"


def test_a_root_that_is_gone_has_no_points(world: World) -> None:
    world.run()
    for name in sorted(world.target.datasets, reverse=True):
        if name.startswith("tank/backups"):
            world.target.drop(name)
    seen = Seen(world)
    assert f"CRITICAL guest 100 web: no point on {TARGET}" in seen.texts
    assert (seen.health.level, seen.row()[TARGET]) == (Level.CRITICAL, "none")


def test_an_empty_configuration_is_no_health(world: World) -> None:
    world.configure(f"api: {{{{node: pve1, token-file: {world.place}/no.token}}}}\njournal-dir: {world.place}/none\n")
    seen = Seen(world)
    assert "WARNING configuration: no job: nothing is protected" in seen.texts
    for vmid in list(world.node.guests):
        world.node.remove(vmid)
    empty = Seen(world)
    assert empty.health.level is Level.WARNING
    assert empty.table.rows == ()
    world.config.write_text(world.config.read_text() + "failover: {root: tank/backups, source: pve1.example}\n")
    assert Seen(world).health.level is Level.OK, "a host that only receives has no jobs"


def test_a_guest_without_disks_and_one_that_is_only_a_file(world: World) -> None:
    world.node.define(105, "cores: 1\n", running=False)
    world.run()
    seen = Seen(world)
    assert seen.row(105)["due"] == "-"
    assert seen.health.level is Level.OK


JUNK: tuple[Callable[[dict[str, Any]], object], ...] = (
    lambda line: {**line, "seconds": float("nan")}, lambda line: {**line, "seconds": float("inf")},
    lambda line: {**line, "vmid": "x"}, lambda line: {**line, "vmid": 10**30}, lambda line: {**line, "stage": EVIL},
    lambda line: {**line, "message": EVIL, "host": EVIL, "point": EVIL, "guest": EVIL, "level": EVIL},
    lambda line: {**line, "time": "0001-01-01T00:00:00+00:00"}, lambda line: {**line, "time": "9999-12-31T23:59:59Z"},
    lambda line: {**line, "time": 7}, lambda line: {**line, "outcome": []}, lambda line: {**line, "bytes": "many"},
    lambda line: {**line, "point": "100/99991231T235959Z-0001"}, lambda line: {**line, "used": -1, "available": 1e400},
    lambda line: [line], lambda line: None, lambda line: {**line, "exit_code": None},
    lambda line: {**line, "stages": 5},
)  # fmt: skip


def test_a_journal_full_of_junk_is_read_over(world: World) -> None:
    world.run()
    world.run()
    file = world.place / "log/journal.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    drills = [
        {**line, "stage": "verify-drill", "level": "files", "host": ""}
        for line in lines
        if line.get("stage") == "snapshot"
    ]
    good = Seen(world)
    junk = [json.dumps(change(line)) for line in [*lines, *drills] for change in JUNK]
    file.write_text("\n".join([*junk, "{", "\x00\x00", '"', *map(json.dumps, lines)]) + "\n")
    seen = Seen(world)
    assert seen.health.level is good.health.level is Level.OK
    assert seen.row() == good.row()
    assert EVIL not in seen.page
    assert "<script" not in seen.page
    with world.session() as session:
        zone = session.timezone
    assert datetime.fromtimestamp(world.clock.now, zone).strftime("%H:%M") in seen.page
