"""`check`: is every guest as protected as its jobs promise?"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health, judge
from pve_zfsbackup.app.history import history
from pve_zfsbackup.app.proving import prove
from pve_zfsbackup.app.run import Report, Stage
from pve_zfsbackup.app.status import status
from pve_zfsbackup.errors import CommandTimeoutError, ExitCode, PveError, ZfsError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.pools import read_pools
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import Vmid, parse_selector
from pve_zfsbackup.model.health import Finding, Health, Level, Pool
from pve_zfsbackup.model.proof import VERIFIED
from pve_zfsbackup.model.room import Room
from pve_zfsbackup.report.health import check_lines, checkmk_line, health_json, unknown_line
from pve_zfsbackup.report.status import status_json, status_table
from tests.fakes.runner import HERE, Fault
from tests.fakes.world import CONFIG, TARGET, WEB, World

TIB = 1 << 40
GOOD = (Pool(name="rpool", health="ONLINE", size=TIB, free=TIB // 2),)


def found(world: World, *pools: Pool) -> Health:
    with world.session() as session:
        return judge(history(session, Scope()), session.config, pools or GOOD)


def texts(health: Health) -> list[str]:
    return [f"{item.level.name} {item.about}: {item.text}" for item in health.findings]


def test_fresh_points_everywhere_are_fine(world: World) -> None:
    world.run()
    here = found(world)
    assert here.level is Level.OK
    assert texts(here) == []
    assert {(age.vmid, age.host) for age in here.ages} == {(v, h) for v in (100, 101, 200) for h in ("source", TARGET)}
    assert check_lines(here)[0].startswith("OK - 3 guests protected, oldest newest point 0.")


@pytest.mark.parametrize(
    ("hours", "level"), [(2, Level.OK), (4, Level.WARNING), (25, Level.WARNING), (27, Level.CRITICAL)]
)
def test_age_is_judged_by_the_jobs_limits(world: World, hours: int, level: Level) -> None:
    world.run()
    world.clock.now += hours * 3600
    assert found(world).level is level


def test_a_target_left_behind_is_seen_though_this_node_is_fresh(world: World) -> None:
    world.run()
    for _ in range(5):
        world.run(Stage.SNAPSHOT)
    assert set(texts(found(world))) == {
        f"WARNING guest {guest}: newest point on backup1 is 5.0 h old" for guest in ("100 web", "101 db", "200 files")
    }


def test_no_point_at_all_is_critical(world: World) -> None:
    assert "CRITICAL guest 100 web: no point here" in texts(found(world))
    assert "CRITICAL guest 100 web: no point on backup1" in texts(found(world))


def test_half_a_point_is_no_point(world: World) -> None:
    world.runner.faults.append(Fault(words=("snapshot", "--"), nth=2, error=CommandTimeoutError("no end")))
    world.run(Stage.SNAPSHOT)
    assert "CRITICAL guest 100 web: no point here" in texts(found(world))


def test_a_target_that_does_not_answer_is_told_once(world: World) -> None:
    world.run()
    world.runner.down[TARGET] = "no route to host"
    (finding,) = found(world).findings
    assert (finding.level, finding.about) == (Level.CRITICAL, "target backup1")
    assert "no route to host" in finding.text


def test_what_is_in_no_job_is_a_warning_and_a_template_is_not(world: World) -> None:
    world.run()
    world.configure(
        world.config.read_text()
        .replace("guests: [all]", "guests: ['100', '101']")
        .replace("{", "{{")
        .replace("}", "}}")
    )
    assert texts(found(world)) == ["WARNING guest 200 files: in no job"]
    world.node.define(300, "template: 1\nname: base\n", running=False)
    assert texts(found(world)) == ["WARNING guest 200 files: in no job"]


@pytest.mark.parametrize("rule", ["guests: [all, '!name:files']", "guests: [all]\n    exclude: ['200']"])
def test_a_guest_that_somebody_left_out_is_none_of_it(world: World, rule: str) -> None:
    """It would warn for ever, and whoever gets used to that overlooks the next one."""
    world.run()
    world.config.write_text(world.config.read_text().replace("guests: [all]", rule))
    here = found(world)
    assert texts(here) == []
    left = here.disks[Vmid(200)]
    assert (left.open, left.left_out) == (0, 1)
    with world.session() as session:
        shown = status_table(status(session, Scope()), UTC)
    assert next(row[-1] for row in shown.rows if "files" in str(row)).startswith("job all excludes ")


def test_a_disk_nobody_excluded_is_a_warning(world: World) -> None:
    conf = world.node.etc / "qemu-server/100.conf"
    lines = (
        "scsi2: local:100/vm-100-disk-9.qcow2,size=1G",
        "ide2: none,media=cdrom",
        "scsi3: fast:vm-100-disk-7,backup=0",
    )
    conf.write_text(conf.read_text() + "\n".join(lines) + "\n")
    world.source.add("fast/vm-100-disk-7", zvol=True)
    world.run()
    told = [text for text in texts(found(world)) if "100" in text]
    assert len(told) == 1
    assert told[0].startswith("WARNING guest 100 web: scsi2 not protected: ")


@pytest.mark.parametrize(
    ("jobs", "guests", "told"),
    [
        ((), ("100",), "UNKNOWN guest 100: is no guest of this node any more: `list 100` has its points"),
        (("all",), ("100",), "UNKNOWN guest 100: is no guest of this node any more: `list 100` has its points"),
        (("all",), (), "WARNING job all: means no guest here: `discover` has those there are"),
        ((), ("!100",), "WARNING selection: means no guest here: `discover` has those there are"),
    ],
)
def test_what_was_asked_for_and_is_nobody_is_not_fine(
    world: World, jobs: tuple[str, ...], guests: tuple[str, ...], told: str
) -> None:
    """Its name was changed, or it went away: there is nothing that could be late."""
    world.configure(CONFIG.replace("guests: [all]", "guests: ['name:web*']"))
    world.run()
    scope = Scope(jobs=jobs, guests=tuple(parse_selector(text) for text in guests))
    named = Scope(jobs=jobs, guests=(parse_selector("100"),))
    with world.session() as session:
        assert texts(judge(history(session, named), session.config, GOOD)) == []
    world.node.remove(100)
    world.clock.now += 40 * 86_400
    with world.session() as session:
        assert texts(judge(history(session, scope), session.config, GOOD)) == [told]


def test_guests_that_may_be_hidden_are_unknown(world: World) -> None:
    """They have no findings of their own."""
    world.run()
    world.node.hidden = {100, 200}
    here = found(world)
    assert here.level is Level.UNKNOWN
    (text,) = texts(here)
    assert text.startswith("UNKNOWN guests: ")
    assert "lacks VM.Audit on /vms" in text


@pytest.mark.parametrize(
    ("conf", "line", "told"),
    [
        ("lxc/200", "mp0: /srv/CD-ROM,mp=/data", "bind mount of the host's directory /srv/CD-ROM"),
        ("qemu-server/100", "scsi2: cloud-init:100/vm-100-disk-9.qcow2,size=1G", "cloud-init"),
        ("qemu-server/100", "efidisk0: local-zfs:vm-100-disk-5,size=1M", ""),
    ],
)
def test_a_name_is_no_reason_to_leave_a_disk_out(world: World, conf: str, line: str, told: str) -> None:
    """Paths and names of storages stand in reasons, and may sound like one that needs no word."""
    world.node.storages.append({"storage": "cloud-init", "type": "dir", "path": "/srv/ci", "content": "images"})
    world.source.add("rpool/data/vm-100-disk-5", zvol=True)
    path = world.node.etc / f"{conf}.conf"
    path.write_text(path.read_text() + line + "\n")
    world.run()
    disk = line.partition(":")[0]
    assert [(disk in text, told in text) for text in texts(found(world))] == ([(True, True)] if told else [])
    with world.session() as session:
        listed = status_json(status(session, Scope()))["guests"]
    problems = [text for guest in listed for text in guest["problems"]]
    assert [(disk in text, told in text) for text in problems] == ([(True, True)] if told else [])


def test_a_guest_that_cannot_be_read_is_critical_and_its_points_still_grow_old(world: World) -> None:
    """None of its disks is known, so it would have nothing to be late with."""
    world.run()
    world.clock.now += 40 * 86_400
    fault = Fault(words=("get", "/nodes/pve1/qemu/100/pending"), answer=(2, "Permission check failed"), again=True)
    world.runner.faults.append(fault)
    world.run()
    *late, trouble = [text for text in texts(found(world)) if "guest 100 web" in text]
    assert late == [f"CRITICAL guest 100 web: newest point {where} is 961.0 h old" for where in ("here", "on backup1")]
    assert trouble.startswith("CRITICAL guest 100 web: its configuration cannot be read: ")
    assert "Permission check failed" in trouble


@pytest.mark.parametrize(
    ("pool", "told"),
    [
        (Pool(name="a", health="DEGRADED", size=TIB, free=TIB // 2), ["WARNING pool a: DEGRADED"]),
        (Pool(name="a", health="SUSPENDED", size=TIB, free=TIB // 2), ["CRITICAL pool a: SUSPENDED"]),
        (Pool(name="a", health="FAULTED", size=0, free=0), ["CRITICAL pool a: FAULTED"]),
        (Pool(name="a", health="ONLINE", size=1000, free=140), ["WARNING pool a: 86% full"]),
        (Pool(name="a", health="ONLINE", size=1000, free=40), ["CRITICAL pool a: 96% full"]),
    ],
    ids=lambda value: value.health if isinstance(value, Pool) else "",
)
def test_pools_are_judged(world: World, pool: Pool, told: list[str]) -> None:
    world.run()
    assert texts(found(world, pool)) == told


def filling(world: World, days: int, per_day: int) -> None:
    """The journal of as many days in which the target filled up like that, a run a day."""
    room = next(room for room in measured_rooms(world) if room.host == TARGET)
    lines = []
    for ago in range(days, 0, -1):
        when = datetime.fromtimestamp(world.clock.now - ago * 86_400, UTC).isoformat()
        free = room.available + ago * per_day
        line = {"time": when, "run": "x", "event": "room", "host": TARGET, "dataset": room.dataset, "used": 1}
        lines.append(json.dumps({**line, "available": free}))
    file = world.place / "log/journal.jsonl"
    file.write_text("\n".join(lines) + "\n")


def measured_rooms(world: World) -> tuple[Room, ...]:
    with world.session() as session:
        return tuple(one.room for one in health(session, Scope()).outlooks)


def test_a_run_notes_the_room_it_saw(world: World) -> None:
    world.run()  # it makes the root of the target
    world.run()
    lines = [json.loads(line) for line in (world.place / "log/journal.jsonl").read_text().splitlines()]
    noted = {(line["host"], line["dataset"]) for line in lines if line["event"] == "room"}
    assert noted == {(room.host, room.dataset) for room in measured_rooms(world)}
    assert {("source", "rpool/data"), (TARGET, "tank/backups")} <= noted
    assert all(line["available"] > 0 for line in lines if line["event"] == "room")


@pytest.mark.parametrize(("left", "level"), [(30, Level.OK), (10, Level.WARNING), (2, Level.CRITICAL)])
def test_a_target_that_will_be_full_is_told_before_it_is(world: World, left: int, level: Level) -> None:
    world.run()
    room = next(room for room in measured_rooms(world) if room.host == TARGET)
    filling(world, 10, room.available // left)
    with world.session() as session:
        judged = health(session, Scope())
    assert judged.level is level
    told = [text for text in texts(judged) if "space" in text]
    said = f"space of tank/backups on backup1: full in about {left} days, if it goes on as in the last weeks"
    assert told == ([f"{level.name} {said}"] if level else [])
    assert f"days_to_full_backup1_tank_backups={left}.0;14:;3:;0" in check_lines(judged)[0]


def test_a_journal_that_cannot_be_read_is_unknown(world: World) -> None:
    world.run()
    file = world.place / "log/journal.jsonl"
    file.unlink()
    file.mkdir()
    with world.session() as session:
        assert health(session, Scope()).level is Level.UNKNOWN


def test_the_worst_comes_first_and_decides(world: World) -> None:
    world.run()
    world.clock.now += 4 * 3600
    judged = found(world, Pool(name="z", health="SUSPENDED", size=TIB, free=TIB))
    assert judged.level is Level.CRITICAL
    assert texts(judged)[0] == "CRITICAL pool z: SUSPENDED"


def test_what_cannot_be_asked_is_unknown_and_never_ok(world: World) -> None:
    world.run()
    world.runner.faults.append(Fault(words=("zpool", "list"), answer=(1, "internal error")))
    with world.session() as session:
        here = health(session, Scope())
    assert here.level is Level.UNKNOWN
    world.node.api = "ipcc_send_rec[1] failed"
    with world.session() as session, pytest.raises(PveError):
        health(session, Scope())


def hostile() -> Health:
    finding = Finding(level=Level.CRITICAL, about="guest 1 a|b\nOK - fine", text="x | y=1;;\x1b[2J")
    return Health(findings=(finding,) * 9, ages=(), pools=GOOD, disks={}, answers={}, outlooks=(), now=0)


def test_hostile_names_forge_neither_lines_nor_performance_data() -> None:
    lines = check_lines(hostile())
    assert len(lines) == 10
    assert all(line.isprintable() for line in lines)
    assert [line.count("|") for line in lines] == [1] + [0] * 9
    assert "and 4 more" in lines[0]
    line = checkmk_line(hostile())
    assert line.isprintable()
    assert line.startswith('2 "pve-zfsbackup" used_rpool=50.0%;;;0;100 guest 1 a/b')
    assert unknown_line("a|b\nc", checkmk=False) == r"UNKNOWN - a/b\nc"
    assert unknown_line("a", checkmk=True) == '3 "pve-zfsbackup" - a'


def test_performance_data_is_what_plugins_may_print(world: World) -> None:
    world.run(Stage.SNAPSHOT)
    data = check_lines(found(world))[0].partition(" | ")[2].split(" ")
    assert len(data) == 5
    assert all(re.fullmatch(r"[\w.-]+=[\d.]+(s|%)?;[\d.]*;[\d.]*;[\d.]*(;[\d.]*)?", item) for item in data), data
    assert "without_point_backup1=3;;;0" in data
    assert health_json(found(world))["ages"][0].keys() >= {"vmid", "host", "seconds", "warn", "critical"}


class Answer:
    """A runner whose `zpool list` says this."""

    def __init__(self, text: str) -> None:
        self.text = text

    def run(self, argv: Any, **_: Any) -> Completed:
        return Completed(argv=tuple(argv), returncode=0, stdout=self.text, stderr="")


def test_pools_are_read_as_zpool_writes_them() -> None:
    text = "rpool\tONLINE\t1000\t400\ntank\tFAULTED\t-\t-\n"
    rpool, tank = read_pools(Host(name="here", runner=Answer(text)))  # type: ignore[arg-type]
    assert (rpool.name, rpool.health, rpool.used_share) == ("rpool", "ONLINE", 0.6)
    assert (tank.health, tank.used_share) == ("FAULTED", 1.0)
    with pytest.raises(ZfsError, match="not understood"):
        read_pools(Host(name="here", runner=Answer("garbage")))  # type: ignore[arg-type]


def test_guests_can_be_named(world: World) -> None:
    world.run()
    with world.session() as session:
        here = health(session, Scope(guests=(parse_selector(str(WEB)),)))
    assert {age.vmid for age in here.ages} == {WEB}


# -- devices of pools


def judged_now(world: World) -> Health:
    with world.session() as session:
        return health(session, Scope())


def test_a_device_that_is_lost_alarms_though_its_pool_is_called_online(world: World) -> None:
    """Seen on OpenZFS 2.3.9 until `zpool reopen`."""
    world.run()
    world.source.devices["fast"] = {"vdb": ("ONLINE", ""), "vdc": ("FAULTED", "external device fault")}
    world.target.devices["tank"] = {"sdb": ("REMOVED", ""), "sdc": ("ONLINE", "")}
    assert texts(judged_now(world)) == [
        "WARNING pool fast: vdc FAULTED (external device fault), though the pool is called ONLINE",
        "WARNING pool tank on backup1: sdb REMOVED, though the pool is called ONLINE",
    ]
    world.source.states["fast"] = "DEGRADED"
    assert "WARNING pool fast: DEGRADED: vdc FAULTED (external device fault)" in texts(judged_now(world))


def test_errors_of_devices_warn_and_those_of_data_are_critical(world: World) -> None:
    world.run()
    world.source.bad_sums["fast"] = 7
    world.target.errors["tank"] = "2 data errors, use '-v' for a list"
    judged = judged_now(world)
    assert texts(judged) == [
        "CRITICAL pool tank on backup1: 2 data errors, use '-v' for a list",
        "WARNING pool fast: vda: 0 read, 0 write, 7 checksum errors",
    ]
    (fast,) = (one for one in health_json(judged)["conditions"] if one["pool"] == "fast")
    assert fast == {
        "host": "source", "pool": "fast", "state": "ONLINE", "errors": "",
        "devices": ["vda: 0 read, 0 write, 7 checksum errors"],
    }  # fmt: skip


def test_a_shelf_that_went_dark_is_one_line(world: World) -> None:
    world.run()
    world.source.devices["fast"] = {f"sd{number}": ("UNAVAIL", "") for number in range(60)}
    (told,) = texts(judged_now(world))
    assert told.endswith("; sd4 UNAVAIL; 55 more devices, though the pool is called ONLINE")


def test_the_devices_of_a_suspended_pool_are_not_asked(world: World) -> None:
    world.run()
    world.source.states["fast"] = "SUSPENDED"
    world.runner.ran.clear()
    assert "CRITICAL pool fast: SUSPENDED" in texts(judged_now(world))
    (asked,) = (ran.argv for ran in world.runner.ran if ran.argv[:2] == ("zpool", "status") and ran.host == HERE)
    assert "fast" not in asked


def test_check_costs_one_process_more_and_one_line_on_a_target(world: World) -> None:
    world.run()
    world.runner.ran.clear()
    judged_now(world)
    assert [ran.host for ran in world.runner.ran if "status" in ran.argv] == [HERE, TARGET]


def test_devices_that_cannot_be_asked_are_unknown_but_a_target_may_deny(world: World) -> None:
    world.run()
    world.runner.faults.append(Fault(words=("zpool", "status"), host=TARGET, again=True, answer=(126, "denied")))
    assert texts(judged_now(world)) == []
    world.target.states["tank"] = "DEGRADED"
    judged = judged_now(world)
    assert texts(judged) == ["WARNING pool tank on backup1: DEGRADED"]
    assert [one["devices"] for one in health_json(judged)["conditions"]] == [[], [], None], "nothing is claimed"
    world.runner.faults.append(Fault(words=("zpool", "status"), host=HERE, answer=(1, "permission denied")))
    told = texts(judged_now(world))
    assert "UNKNOWN pool fast: its devices could not be asked: zpool status: permission denied" in told


# -- how long ago a drill passed


def drilled(world: World, value: str, *, target: bool = False, vmid: int = WEB) -> None:
    """As `verify drill` notes it."""
    pools = world.target if target else world.source
    for dataset in pools.datasets.values():
        newest = dataset.newest
        if newest and f"-{vmid}-" in dataset.name:
            newest.props[VERIFIED] = value


def job(world: World, option: str) -> None:
    text = world.config.read_text()
    world.config.write_text(text.replace("    guests: [all]\n", f"    guests: [all]\n    {option}\n"))


OTHERS = ((101, "db"), (200, "files"))


def test_nobody_who_never_drilled_is_bothered(world: World) -> None:
    world.run()
    here = found(world)
    assert texts(here) == []
    assert "never_verified=3;;;0" in check_lines(here)[0]
    assert "verified_age" not in check_lines(here)[0]


@pytest.mark.parametrize(("days", "late"), [(43, False), (45, True)])
def test_drills_that_were_begun_go_on(world: World, days: int, late: bool) -> None:
    """`verify: every` is 30 days, and two weeks are grace."""
    world.run()
    drilled(world, datetime.fromtimestamp(world.clock.now, UTC).strftime("files %Y%m%dT%H%M%SZ"))
    world.clock.now += days * 86_400
    world.run()
    told = texts(found(world))
    never = [f"WARNING guest {vmid} {name}: no drill ever passed: `verify drill {vmid}`" for vmid, name in OTHERS]
    web = f"WARNING guest 100 web: no drill passed for {days} days: `verify drill 100`"
    assert told == ([web, *never] if late else []), "who drills one guest leaves no other out"
    assert f"verified_age={days * 86_400 + 3600}s;3801600;;0 never_verified=2;;;0" in check_lines(found(world))[0]


def test_a_drill_on_any_host_counts_and_the_newest_does(world: World) -> None:
    world.run()
    drilled(world, "files 20260901T000000Z")
    assert any("no drill passed for 78 days" in text for text in texts(found(world)))
    drilled(world, "recognised 20261117T000000Z", target=True)
    assert texts(found(world)) == []
    drilled(world, "points 20261118T000000Z", target=True)
    assert any("no drill passed for 78 days" in text for text in texts(found(world))), "to compare is not to drill"


def test_a_job_says_how_long_and_then_never_is_too_long(world: World) -> None:
    world.run()
    job(world, "verify-within: 7")
    told = [f"WARNING guest {guest}: no drill ever passed" for guest in ("100 web", "101 db", "200 files")]
    assert [text.rpartition(": `")[0] for text in texts(found(world))] == told
    drilled(world, "files 20261112T000000Z")
    assert [text.rpartition(": `")[0] for text in texts(found(world))] == told[1:]
    world.clock.now += 86_400
    world.run()
    assert texts(found(world))[0].startswith("WARNING guest 100 web: no drill passed for 7 days")


def test_a_job_that_says_0_wants_no_word_of_it(world: World) -> None:
    world.run()
    job(world, "verify-within: 0")
    drilled(world, "files 20200101T000000Z")
    assert texts(found(world)) == []


def test_a_drill_that_failed_is_told_once_and_worse(world: World) -> None:
    world.run()
    job(world, "verify-within: 7")
    for vmid in (101, 200):
        drilled(world, "files 20261117T000000Z", vmid=vmid)
    drilled(world, "failed 20260101T000000Z", target=True)
    (told,) = texts(found(world))
    assert told == f"CRITICAL guest 100 web: the last drill on {TARGET} failed: `verify drill` tells more"
    assert health_json(found(world))["verified"][0] == {
        "vmid": 100, "guest": "web", "level": None, "where": None, "seconds": None, "warn": 604800.0,
    }  # fmt: skip


def test_a_drill_from_the_future_is_none(world: World) -> None:
    """A clock that was wrong would put off the alarm for years."""
    world.run()
    job(world, "verify-within: 7")
    drilled(world, "files 20991231T000000Z")
    assert texts(found(world))[0].startswith("WARNING guest 100 web: no drill ever passed")


def judged(world: World) -> list[str]:
    """All of it, journal included, by the clock of this world."""
    for path in (world.place / "log").iterdir():
        os.utime(path, (world.clock.now, world.clock.now))
    with world.session() as session:
        return [text for text in texts(health(session, Scope())) if " stage " in text]


def later(world: World, days: int, *stages: Stage) -> Report:
    world.clock.now += days * 86_400 - 3600
    return world.run(*(stages or (Stage.SNAPSHOT, Stage.REPLICATE)))


def test_a_stage_whose_line_in_cron_is_gone_is_told_until_it_is_done_again(world: World) -> None:
    """What is not pruned or proven grows not old: nothing else would ever be late."""
    world.run()
    later(world, 7)
    assert judged(world) == []
    later(world, 2)
    (text,) = judged(world)
    assert text.startswith("WARNING stage prune: not done for 9 days")
    world.run(Stage.PRUNE)
    assert judged(world) == []
    later(world, 42)
    told = judged(world)
    assert [text[: text.index(" for")] for text in told] == [
        f"WARNING stage {stage}: not done" for stage in ("prune", "verify-points", "verify-pools")
    ]
    assert "at least 51 days" in told[-1], "as far as the journal reaches"
    with world.session() as session:
        prove(session, "verify-points", [Result(stage="verify-points", outcome=Outcome.OK)], lambda end: end)
    assert not [text for text in judged(world) if "verify-points" in text]


def test_a_stage_that_only_fails_is_not_done(world: World) -> None:
    world.run()
    for _ in range(3):
        later(world, 1)
    world.runner.faults.append(Fault(words=("destroy",), answer=(1, "cannot destroy"), again=True))
    assert later(world, 6, Stage.PRUNE).exit_code is ExitCode.FAILED
    assert [text for text in judged(world) if "stage prune" in text]


@pytest.mark.parametrize(
    ("old", "new", "missed"),
    [
        ("keep: {keep-last: 3}", "keep: {}", {"verify-points", "verify-pools"}),
        ("jobs:", "verify: {scrub-every: 0, every: 100}\njobs:", {"prune"}),
        ("targets: [backup1]", "targets: []", {"prune", "verify-pools"}),
    ],
)
def test_only_what_the_configuration_wants_is_missed(world: World, old: str, new: str, missed: set[str]) -> None:
    world.config.write_text(world.config.read_text().replace(old, new))
    world.run(Stage.SNAPSHOT)
    later(world, 52)
    assert {re.findall("stage (\\S+):", text)[0] for text in judged(world)} == missed


def left(world: World) -> None:
    world.run()
    world.node.remove(WEB)
    world.node.owned[WEB] = "pve2"


def missed(world: World, hours: int) -> list[str]:
    """What is told of the other node so many hours later."""
    world.clock.now += hours * 3600
    with world.session() as session:
        return [text for text in texts(health(session, Scope())) if "pve2" in text]


def test_a_guest_that_nobody_goes_on_with_on_its_new_node_is_told(world: World) -> None:
    left(world)
    assert missed(world, 25) == []
    (text,) = missed(world, 2)
    assert text.startswith("WARNING guest 100: is on node pve2 now, and its newest point that is seen here is 27.")


@pytest.mark.parametrize(
    ("old", "new"),
    [("guests: [all]", "guests: [all, '!100']"), ("targets: [backup1]", "targets: []"), ("", "")],
)
def test_a_guest_that_nobody_wants_or_whose_points_are_not_seen_here_is_not(world: World, old: str, new: str) -> None:
    left(world)
    if not old:
        world.runner.down[TARGET] = "no route to host"
    world.config.write_text(world.config.read_text().replace(old, new))
    assert missed(world, 27) == []
