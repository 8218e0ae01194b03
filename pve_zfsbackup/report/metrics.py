"""Health and runs as Prometheus reads them from a file (node exporter's textfile collector). Loaded by `metrics` alone.

Instants, not ages: a file that is not written any more would show ages that stand still, while `time() - instant`
goes on growing. docs/monitoring.md lists every metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pve_zfsbackup import __version__
from pve_zfsbackup.app.measure import Measured
from pve_zfsbackup.app.proofs import Recovery
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.model import printable
from pve_zfsbackup.model.alerts import HeldBack
from pve_zfsbackup.model.health import Condition, Health, Level
from pve_zfsbackup.model.proof import Level as Proven
from pve_zfsbackup.model.room import Outlook
from pve_zfsbackup.model.stages import DRILL
from pve_zfsbackup.report.format import FORMAT

PREFIX: Final = "pve_zfsbackup_"
_GUEST: Final = ("vmid", "guest")
_PLACE: Final = (*_GUEST, "where")
METRICS: Final[dict[str, tuple[tuple[str, ...], str]]] = {  # name -> labels, meaning
    "up": ((), "1 when the guests and their datasets could be asked"),
    "info": (("version", "node"), "always 1"),
    "collected_timestamp_seconds": ((), "when these figures were collected"),
    "level": ((), "what check says: 0 ok, 1 warning, 2 critical, 3 unknown"),
    "findings": (("level",), "what check finds wrong"),
    "host_up": (("where",), "1 when this node's ZFS (source) or the target answered"),
    "points": (_PLACE, "complete recovery points of a guest"),
    "newest_point_timestamp_seconds": (_PLACE, "creation of the newest complete point"),
    "newest_point_bytes": (_PLACE, "what the newest complete point refers to: as much a restore writes"),
    "newest_point_consistency": ((*_PLACE, "consistency"), "always 1; how the newest complete point was taken"),
    "warn_age_seconds": (_PLACE, "age of the newest point above which check warns: the recovery point objective"),
    "critical_age_seconds": (_PLACE, "age of the newest point above which check is critical"),
    "measured_rpo_seconds": (
        _PLACE, "how much work would have been lost at the worst moment of the last week, had only that place been left"
    ),
    "measured_rto_seconds": (
        (*_PLACE, "by"),
        "how long the last drill, boot in a drill or restore of the whole guest took that went well, from that place",
    ),
    "verified_timestamp_seconds": (_GUEST, "when a drill of the guest last passed, on any host"),
    "verified_level": (_GUEST, "what that drill found good: 2 disks that are recognised, 3 files, 4 the guest booted"),
    "verify_within_seconds": (_GUEST, "time since then above which check warns; none where nobody expects drills"),
    "drill_failed": (_PLACE, "1 where the last drill failed"),
    "disks": ((*_GUEST, "protection"), "disks: protected; unprotected though nobody decided so; left out on purpose"),
    "pool_online": (("pool",), "1 when the pool of this node is ONLINE"),
    "pool_state": (("pool", "state"), "always 1; the state zpool tells"),
    "pool_bad_devices": (("where", "pool"), "devices that are not ONLINE, whatever the pool is called"),
    "pool_device_errors": (("where", "pool"), "read, write and checksum errors counted on its devices"),
    "pool_damaged": (("where", "pool"), "1 when ZFS knows of data in it that it cannot read"),
    "pool_size_bytes": (("pool",), "size of the pool"),
    "pool_free_bytes": (("pool",), "free space of the pool"),
    "available_bytes": (("where", "dataset"), "what is available to the points there, quotas counted in"),
    "used_bytes": (("where", "dataset"), "what is used below that root; of a box, by all that lies there"),
    "room_timestamp_seconds": (("where", "dataset"), "when that was seen; of a box (dataset is empty) by the last run"),
    "days_to_full": (("where", "dataset"), "until it is full, going on as in the last weeks; none where it does not"),
    "stage_overdue": (("stage",), "1 when check warns that nobody did the stage for too long"),
    "last_run_timestamp_seconds": (("stage",), "end of the last run that had this stage"),
    "last_run_seconds": (("stage",), "how long that run took, with all its stages"),
    "last_run_failed": (("stage",), "1 when the stage failed for a guest or target in it, or the run broke off"),
    "last_run_results": (("stage", "outcome"), "how the stage ended for so many guests and targets in it"),
    "last_run_bytes": (("stage",), "bytes sent in it"),
    "last_success_timestamp_seconds": (("stage",), "end of the last run in which nothing of this stage failed"),
    "alerts_held_back": (("service",), "messages that wait because the service did not take them"),
    "problems_lasting": ((), "problems that were told and are not over"),
}
Sample = tuple[str, tuple[str, ...], float]  # name without the prefix, label values, value


def metrics_text(found: Measured) -> str:
    """The exposition format, with HELP and TYPE of every metric that has a value."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(found))
    return generate_latest(registry).decode("utf-8")


def metrics_json(found: Measured) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "metrics": [
            {"name": PREFIX + name, "labels": dict(zip(METRICS[name][0], values, strict=True)), "value": value}
            for name, values, value in samples(found)
        ],
    }


class _Collected(Collector):
    def __init__(self, found: Measured) -> None:
        self._found = found

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = {
            name: GaugeMetricFamily(PREFIX + name, text, labels=labels) for name, (labels, text) in METRICS.items()
        }
        for name, values, value in samples(self._found):
            families[name].add_metric([printable(text) for text in values], value)
        yield from (family for family in families.values() if family.samples)


def samples(found: Measured) -> Iterator[Sample]:
    """Every value, by the name of its metric."""
    yield "up", (), found.health is not None
    yield "info", (__version__, found.node), 1
    yield "collected_timestamp_seconds", (), found.at
    if found.health:
        yield from _of_health(found.health)
        yield from _of_measured(found.health, found.recovery)
    yield from _of_runs(found)
    if found.held:
        yield from _of_alerts(found.held)


def _of_health(health: Health) -> Iterator[Sample]:
    yield "level", (), int(health.level)
    for level in (Level.WARNING, Level.CRITICAL, Level.UNKNOWN):
        yield "findings", (level.name.lower(),), sum(finding.level is level for finding in health.findings)
    for host, answered in health.answers.items():
        yield "host_up", (host,), answered
    for age in health.ages:
        place = (str(age.vmid), age.guest, age.host)
        yield "points", place, age.points
        yield "warn_age_seconds", place, age.warn
        yield "critical_age_seconds", place, age.critical
        if age.seconds is not None:
            yield "newest_point_timestamp_seconds", place, health.now - age.seconds
            yield "newest_point_bytes", place, age.bytes
            yield "newest_point_consistency", (*place, age.consistency.partition(":")[0]), 1
    yield from _of_drills(health)
    for vmid, disks in health.disks.items():
        guest = (str(vmid), disks.guest)
        yield "disks", (*guest, "protected"), disks.protected
        yield "disks", (*guest, "unprotected"), disks.open
        yield "disks", (*guest, "left-out"), disks.left_out
    for pool in health.pools:
        yield "pool_online", (pool.name,), pool.health == "ONLINE"
        yield "pool_state", (pool.name, pool.health), 1
        yield "pool_size_bytes", (pool.name,), pool.size
        yield "pool_free_bytes", (pool.name,), pool.free
    for due in health.stages:
        yield "stage_overdue", (due.stage,), due.late(health.now)
    for pool_there, condition in health.conditions.items():
        yield from _of_condition(pool_there, condition)
    for outlook in health.outlooks:
        yield from _of_outlook(outlook)


def _of_drills(health: Health) -> Iterator[Sample]:
    for one in health.verified:
        if one.last:
            yield "verified_timestamp_seconds", (str(one.vmid), one.guest), one.last.at
            yield "verified_level", (str(one.vmid), one.guest), Proven(one.last.level).rank
        if one.limit is not None:
            yield "verify_within_seconds", (str(one.vmid), one.guest), one.limit
        for host in sorted({age.host for age in health.ages if age.vmid == one.vmid}):
            yield "drill_failed", (str(one.vmid), one.guest, host), (one.vmid, host) in health.failed


def _of_condition(place: tuple[str, str], condition: Condition) -> Iterator[Sample]:
    if condition.known:
        yield "pool_bad_devices", place, sum(not device.there for device in condition.devices)
        yield "pool_device_errors", place, sum(device.errors for device in condition.devices)
        yield "pool_damaged", place, bool(condition.errors)


def _of_measured(health: Health, recovery: Recovery) -> Iterator[Sample]:
    for age in health.ages:
        worst = recovery.rpo.get((age.vmid, age.host))
        if worst is not None:
            yield "measured_rpo_seconds", (str(age.vmid), age.guest, age.host), max(worst, age.seconds or 0)
    for one in health.verified:
        for proof in recovery.rto.get(one.vmid, ()):
            by = "drill" if proof.stage == DRILL else proof.stage
            yield "measured_rto_seconds", (str(one.vmid), one.guest, proof.place, by), proof.seconds


def _of_outlook(one: Outlook) -> Iterator[Sample]:
    place = (one.room.host, one.room.dataset)
    yield "available_bytes", place, one.room.available
    if one.room.dataset or one.room.used:  # not every box tells
        yield "used_bytes", place, one.room.used
    yield "room_timestamp_seconds", place, one.room.at
    if one.days is not None:
        yield "days_to_full", place, one.days


def _of_runs(found: Measured) -> Iterator[Sample]:
    for stage, run in found.last.items():
        told = run.stages[stage]
        yield "last_run_timestamp_seconds", (stage,), run.ended or run.started
        yield "last_run_seconds", (stage,), run.seconds
        yield "last_run_failed", (stage,), run.failed(stage)
        yield "last_run_bytes", (stage,), told.bytes
        for outcome in Outcome:
            yield "last_run_results", (stage, outcome.value), told.outcomes.get(outcome.value, 0)
    for stage, run in found.good.items():
        yield "last_success_timestamp_seconds", (stage,), run.ended or run.started


def _of_alerts(held: HeldBack) -> Iterator[Sample]:
    yield "problems_lasting", (), held.lasting
    for service, count in held.waiting.items():
        yield "alerts_held_back", (service,), count
