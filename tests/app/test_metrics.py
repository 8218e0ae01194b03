"""`metrics`: the judgement of `check` and the last runs, as Prometheus reads them; and what we ship for it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.health import health
from pve_zfsbackup.app.measure import Measured, measure, nothing_measured
from pve_zfsbackup.app.proving import restore_on_record
from pve_zfsbackup.app.restore import Request, prepare
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.memory import remember
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.proof import VERIFIED
from pve_zfsbackup.report.metrics import METRICS, PREFIX, metrics_json, metrics_text
from tests.fakes.runner import Fault
from tests.fakes.world import TARGET, World

DOCS = Path(__file__).parent.parent.parent / "docs"
RULES, DASHBOARD = DOCS / "examples/prometheus-rules.yaml", DOCS / "examples/grafana-dashboard.json"
Values = dict[tuple[str, ...], float]


def measured(world: World) -> Measured:
    with world.session() as session:
        return measure(session)


def read(found: Measured) -> dict[str, Values]:
    """By Prometheus' own parser: name without the prefix -> label values in the order of METRICS -> value."""
    told: dict[str, Values] = {}
    for family in text_string_to_metric_families(metrics_text(found)):
        for sample in family.samples:
            name = sample.name.removeprefix(PREFIX)
            labels, _ = METRICS[name]
            assert set(labels) == set(sample.labels), name
            told.setdefault(name, {})[tuple(sample.labels[label] for label in labels)] = sample.value
    return told


def test_everything_that_is_well(world: World) -> None:
    world.run()
    found = measured(world)
    told = read(found)
    web = ("100", "web")
    newest = world.points(TARGET, 100)[-1]
    assert told["up"] == {(): 1}
    assert told["host_up"] == {("source",): 1, (TARGET,): 1}
    assert told["points"][(*web, TARGET)] == 1
    assert told["newest_point_timestamp_seconds"][(*web, TARGET)] == newest.creation
    assert told["newest_point_bytes"][(*web, TARGET)] == sum(s.refer for s in newest.snapshots.values()) > 0
    assert told["newest_point_consistency"][(*web, "source", "quiesced")] == 1
    assert told["newest_point_consistency"][("200", "files", TARGET, "crash-consistent")] == 1, "the why is no label"
    assert told["warn_age_seconds"][(*web, "source")] == 3 * 3600
    assert told["critical_age_seconds"][(*web, "source")] == 26 * 3600
    assert {key[-1]: value for key, value in told["disks"].items() if key[0] == "100"} == {
        "protected": 2, "unprotected": 0, "left-out": 0,
    }  # fmt: skip
    assert told["last_run_failed"] == {("snapshot",): 0, ("replicate",): 0, ("prune",): 0}
    assert told["last_run_bytes"][("replicate",)] > 4 << 20
    assert told["last_run_results"][("snapshot", "ok")] == 3
    assert told["last_success_timestamp_seconds"] == told["last_run_timestamp_seconds"]
    assert told["problems_lasting"] == {(): 0}
    assert found.errors == ()


def test_it_is_the_judgement_of_check(world: World) -> None:
    world.run()
    world.clock.now += 4 * 3600
    world.node.define(103, "cores: 1\nname: alone\nscsi0: local:103/vm-103-disk-0.qcow2,size=1G\n", running=False)
    with world.session() as session:
        judged = health(session, Scope())
    told = read(measured(world))
    assert told["level"] == {(): int(judged.level)} == {(): 1}
    assert sum(told["findings"].values()) == len(judged.findings)
    assert told["disks"][("103", "alone", "unprotected")] == 1
    assert told["pool_free_bytes"] == {(pool.name,): pool.free for pool in judged.pools}


def test_a_device_that_is_lost_counts_though_its_pool_is_called_online(world: World) -> None:
    world.run()
    world.source.devices["fast"] = {"vdb": ("ONLINE", ""), "vdc": ("FAULTED", "external device fault")}
    world.source.bad_sums["rpool"] = 7
    world.target.errors["tank"] = "2 data errors, use '-v' for a list"
    told = read(measured(world))
    assert told["pool_online"] == {("rpool",): 1, ("fast",): 1}
    places = [("source", "rpool"), ("source", "fast"), (TARGET, "tank")]
    assert [told["pool_bad_devices"][place] for place in places] == [0, 1, 0]
    assert [told["pool_device_errors"][place] for place in places] == [7, 0, 0]
    assert [told["pool_damaged"][place] for place in places] == [0, 0, 1]


def test_an_instant_does_not_stand_still_when_nothing_is_written_any_more(world: World) -> None:
    """The same point an hour later is the same value: Prometheus itself makes an age of it."""
    world.run()
    before = read(measured(world))["newest_point_timestamp_seconds"]
    world.clock.now += 3600
    assert read(measured(world))["newest_point_timestamp_seconds"] == before


def test_a_guest_without_a_point_and_a_silent_target(world: World) -> None:
    world.runner.down[TARGET] = "no route to host"
    world.run(Stage.SNAPSHOT)
    told = read(measured(world))
    assert told["host_up"] == {("source",): 1, (TARGET,): 0}
    assert {key[2] for key in told["points"]} == {"source"}, "of what did not answer nothing is claimed"
    world.runner.down.clear()
    told = read(measured(world))
    assert told["points"][("100", "web", TARGET)] == 0
    assert ("100", "web", TARGET) not in told["newest_point_timestamp_seconds"]


def test_a_stage_that_is_not_done_any_more_alarms_until_it_is(world: World) -> None:
    """The time of its last run vanishes with the lines of the journal that are looked at: no alarm may hang on that."""
    world.run()
    assert set(read(measured(world))["stage_overdue"].values()) == {0}
    world.clock.now += 40 * 86_400
    world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    os.utime(world.place / "log/journal.jsonl", (world.clock.now, world.clock.now))
    told = read(measured(world))
    assert told["stage_overdue"] == {("prune",): 1, ("verify-points",): 0, ("verify-pools",): 0}
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    (rule,) = [rule["expr"] for rule in rules if rule["alert"] == "BackupStageOverdue"]
    assert rule == "pve_zfsbackup_stage_overdue == 1"


def test_a_failing_stage_keeps_the_time_of_its_last_success(world: World) -> None:
    world.run()
    good = measured(world)
    world.runner.faults.append(Fault(words=("receive",), answer=(1, "out of space")))
    world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    bad = measured(world)
    told = read(bad)
    assert told["last_run_failed"] == {("snapshot",): 0, ("replicate",): 1, ("prune",): 0}
    assert bad.good["replicate"] == good.good["replicate"]
    assert bad.good["snapshot"] == bad.last["snapshot"] != good.last["snapshot"]


def test_drills_and_what_recovery_would_take_and_lose(world: World) -> None:
    world.run()
    for name in ("rpool/data/vm-100-disk-0", "fast/vm-100-disk-0"):
        newest = world.source.datasets[name].newest
        assert newest
        newest.props[VERIFIED] = "files 20261118T000000Z"
    for _ in range(4):
        world.run(Stage.SNAPSHOT)
    world.run()
    newest = world.source.datasets["rpool/crypt/vm-101-disk-0"].newest
    assert newest
    newest.props[VERIFIED] = "failed 20261118T000000Z"
    with world.session() as session:
        restore_on_record(session, prepare(session, Request(vmid=Vmid(100), new=300)))
    told = read(measured(world))
    assert told["verified_timestamp_seconds"] == {("100", "web"): 1794960000}
    assert told["verify_within_seconds"] == {("100", "web"): 44 * 86_400, ("101", "db"): 44 * 86_400}
    assert told["verified_level"] == {("100", "web"): 3}, "files"
    assert [place for place, value in told["drill_failed"].items() if value] == [("101", "db", "source")]
    assert told["measured_rpo_seconds"][("100", "web", "source")] == 3600
    assert told["measured_rpo_seconds"][("100", "web", TARGET)] == 5 * 3600, "right before the last one arrived"
    assert told["measured_rto_seconds"].keys() == {("100", "web", "source", "restore")}
    assert "restore" not in {stage for stage, *_ in told["last_run_failed"]}
    world.clock.now += 7 * 3600
    assert read(measured(world))["measured_rpo_seconds"][("100", "web", TARGET)] == 7 * 3600, "and now"


def test_alerts_that_wait_are_counted_by_service(world: World) -> None:
    world.configure(world.config.read_text().replace("{", "{{").replace("}", "}}") + "alerts: {{mail: [root]}}\n")
    entry = {"service": "mail", "since": 0, "alert": {"node": "pve1", "news": [], "recovered": []}}
    remember(world.place / "state/alerts.json", {"known": {}, "good": {}, "waiting": [entry, entry]})
    assert read(measured(world))["alerts_held_back"] == {("mail",): 2}


def test_where_nothing_can_be_asked_the_runs_are_still_told(world: World) -> None:
    world.run()
    world.node.api = "ipcc_send_rec[1] failed"
    found = measured(world)
    told = read(found)
    assert told["up"] == {(): 0}
    assert "points" not in told
    assert "level" not in told
    assert told["last_run_failed"][("snapshot",)] == 0
    assert [error.message for error in found.errors] != []
    assert read(nothing_measured(BackupError("no configuration"), 12.5))["collected_timestamp_seconds"] == {(): 12}


def test_hostile_names_forge_no_metric(world: World) -> None:
    world.run()
    evil = 'a"} 1\npve_zfsbackup_up{x="\\\x1b[2J\udcff'
    found = measured(world)
    assert found.health
    ages = tuple(dataclasses.replace(age, guest=evil) for age in found.health.ages)
    forged = dataclasses.replace(found, node=evil, health=dataclasses.replace(found.health, ages=ages))
    told = read(forged)
    assert told["up"] == {(): 1}
    text = metrics_text(forged)
    assert all(line.isprintable() for line in text.splitlines())
    assert "a\\\"} 1\\\\npve_zfsbackup_up" in text


def test_json_has_the_same_values(world: World) -> None:
    world.run()
    found = measured(world)
    listed = metrics_json(found)
    text = read(found)
    assert listed["format"] == 1
    assert len(listed["metrics"]) == sum(len(values) for values in text.values())
    json.dumps(listed)


# -- what is shipped beside it


def expressions() -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable)


def test_every_metric_of_the_rules_and_the_dashboard_exists() -> None:
    used = 0
    for text in expressions():
        for name, selector in re.findall(rf"{PREFIX}(\w+)(?:{{([^}}]*)}})?", text):
            labels = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\"", selector))
            assert name in METRICS, f"{name} in {text}"
            assert labels <= {"instance", *METRICS[name][0]}, text
            used += 1
    assert used > 20


def test_labels_named_in_texts_of_rules_come_from_their_metrics() -> None:
    rules: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    for rule in rules:
        names = re.findall(rf"{PREFIX}(\w+)", rule["expr"])
        known = {"instance"}.union(*(METRICS[name][0] for name in names))
        summary = rule["annotations"]["summary"]
        assert set(re.findall(r"\$labels\.(\w+)", summary)) <= known, rule["alert"]
        assert summary.count("{{") == summary.count("}}")
    assert len({rule["alert"] for rule in rules}) == len(rules)


def test_every_metric_is_in_the_manual_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]*) \| (.+) \|$", (DOCS / "monitoring.md").read_text(), re.MULTILINE)
    listed = {name: (tuple(filter(None, labels.split(", "))), text) for name, labels, text in rows}
    assert listed == METRICS


ELSEWHERE = {  # metrics the dashboard does not draw, and why
    "info": "a version is no graph",
    "collected_timestamp_seconds": "the alert BackupNotWatched: a dashboard that nobody feeds is empty anyway",
    "findings": "State has the worst of them; which they are, no metric tells",
    "warn_age_seconds": "a limit, for the alert BackupPointOld",
    "critical_age_seconds": "a limit, for the alert BackupPointVeryOld",
    "newest_point_bytes": "for questions by hand: how much a restore writes",
    "pool_online": "State and the alerts",
    "pool_state": "State and the alerts",
    "pool_bad_devices": "the alert BackupPoolDeviceLost",
    "pool_device_errors": "the alert BackupPoolErrors",
    "pool_damaged": "the alert BackupPoolErrors",
    "available_bytes": "Days to full is drawn of it",
    "used_bytes": "Days to full is drawn of it",
    "room_timestamp_seconds": "for questions by hand: a box that no run reaches is told by its points",
    "last_run_timestamp_seconds": "for questions by hand",
    "stage_overdue": "the alert BackupStageOverdue",
    "verified_level": "the alert BackupVerifiedLittle",
    "last_run_failed": "the alert BackupStageFailing; Failed in a run says how much",
    "last_success_timestamp_seconds": "for questions by hand",
}


def test_every_metric_is_drawn_or_left_out_on_purpose() -> None:
    drawn = set(re.findall(rf"{PREFIX}(\w+)", DASHBOARD.read_text()))
    assert drawn | ELSEWHERE.keys() == METRICS.keys()
    assert not drawn & ELSEWHERE.keys()


def test_the_panels_of_the_dashboard_lie_beside_each_other() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = [
        (panel["gridPos"]["x"] + right, panel["gridPos"]["y"] + down)
        for panel in panels
        for right in range(panel["gridPos"]["w"])
        for down in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places)), "two panels overlap"
    assert max(x for x, _ in places) == 23, "the grid has 24 columns"
    assert len({panel["id"] for panel in panels}) == len(panels)
