"""How the planner grows: `python -m tests.bench.scale` plans ever larger worlds and writes build/scale.json and .svg.

Each size runs in a process of its own, so that its peak memory is its own. The listings are read from what
`zfs list` would print; everything is replicated once already, a new point is to be sent, and history to be pruned.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

from pve_zfsbackup.host.rows import TARGET_COLUMNS, volumes
from pve_zfsbackup.model import (
    SOURCE,
    Conflict,
    Dataset,
    Destroy,
    Disk,
    Guid,
    Keep,
    Listing,
    Plan,
    PointDisk,
    Send,
    Vmid,
    encode_disks,
)
from pve_zfsbackup.plan.fitting import crowded_out
from pve_zfsbackup.plan.pairing import compare
from pve_zfsbackup.plan.prune import PrunePolicy, plan_prune, survey
from pve_zfsbackup.plan.replication import ReplicationPolicy, plan_replication

SIZES = ((10, 100), (100, 100), (1000, 100), (10_000, 100))  # datasets, snapshots of each, on both sides
DISKS = 2  # of a guest
HOST, ROOT, POOL = "backup1", Dataset("tank/backups"), "rpool/data"
START = 1_795_000_000
MAX_SECONDS, MAX_BYTES = 20.0, 3 << 29
BUILD = Path(__file__).parents[2] / "build"


def disk(number: int) -> Disk:
    vmid, index = 100 + number // DISKS, number % DISKS
    name = f"vm-{vmid}-disk-{index}"
    return Disk(
        key=f"scsi{index}", volid=f"local-zfs:{name}", storage="local-zfs", volume=name,
        dataset=Dataset(f"{POOL}/{name}"),
    )  # fmt: skip


def rows(host: str, datasets: int, snapshots: int) -> Iterator[str]:
    """What `zfs list` prints: on the target everything but the newest point, the last there held."""
    here = host == SOURCE
    top = POOL if here else f"{ROOT}/local-zfs"
    for name in (top,) if here else (ROOT, top):
        yield row(type="filesystem", name=name, guid=len(name), createtxg=1, creation=START, used=0, referenced=0)
    for number in range(datasets):
        own = disk(number)
        vmid = 100 + number // DISKS
        guests = range(number - number % DISKS, min(number - number % DISKS + DISKS, datasets))
        of_point = (PointDisk(key=disk(n).key, volid=disk(n).volid, guid=Guid(str(10**12 + n))) for n in guests)
        disks = encode_disks(of_point)
        guid = 10**12 + number if here else 10**13 + number
        sizes = {"used": 1 << 30, "referenced": 1 << 30}
        yield row(type="volume", name=f"{top}/{own.volume}", guid=guid, createtxg=9, creation=START, available=1 << 50,
                  **sizes)  # fmt: skip
        for age in range(snapshots - (0 if here else 1)):
            when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(START + 3600 * age))
            stamp = f"{when}-{(age + vmid * 31) % 65536:04x}"
            snapshot = {
                "type": "snapshot", "name": f"{top}/{own.volume}@pzb:{stamp}",
                "guid": (number * 1_000_003 + age * 7_919_000_001) % 2**64 + 2**40,
                "createtxg": 100 + age * 50, "creation": START + 3600 * age, "used": 4096, "referenced": 1 << 30,
                "written": 1 << 20, "pve-zfsbackup:point": f"{vmid}/{stamp}", "pve-zfsbackup:disks": disks,
                "pve-zfsbackup:consistency": "quiesced", "userrefs": int(not here and age == snapshots - 2),
            }  # fmt: skip
            if not here:
                snapshot["pve-zfsbackup:volume"] = 10**12 + number
            yield row(**snapshot)
            if here and age == snapshots - 2:
                marked = {key: snapshot[key] for key in ("guid", "createtxg", "creation")}
                yield row(type="bookmark", name=f"{top}/{own.volume}#pzb:{stamp}:{HOST}", **marked)


def row(**cells: object) -> str:
    return "\t".join(str(cells.get(column, "-")) for column in TARGET_COLUMNS)


def measure(datasets: int, snapshots: int) -> dict[str, float]:
    """Plan one world in this process. Raises when the plan is not what it must be."""
    world = {
        host: Listing(host=host, volumes=volumes(rows(host, datasets, snapshots), TARGET_COLUMNS))
        for host in (SOURCE, HOST)
    }
    listed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.process_time()
    sides = compare(world[SOURCE], world[HOST])
    policy = ReplicationPolicy(host=HOST, root=ROOT, hold_tag="pve-zfsbackup", limited=True)
    sends, conflicts, plans = 0, list[Conflict](), defaultdict[Vmid, list[Plan]](list)
    for number in range(datasets):
        plan = plan_replication(disk(number), sides, policy)
        sends += sum(isinstance(step, Send) and step.base is not None for step in plan.steps)
        conflicts += plan.conflicts
        plans[Vmid(100 + number // DISKS)].append(plan)
    conflicts += crowded_out(plans, sides, policy).values()
    replicated = time.process_time()
    del sides, plans
    seen = survey(world)
    keep = (Keep(last=10, daily=3),)
    rules = PrunePolicy(keep={SOURCE: keep, HOST: keep})
    destroyed = 0
    for vmid in range(100, 100 + (datasets + DISKS - 1) // DISKS):
        pruned = plan_prune(Vmid(vmid), seen, rules, tz=UTC, now=START + 3600 * snapshots)
        destroyed += sum(isinstance(step, Destroy) for step in pruned.plan.steps)
    ended = time.process_time()
    if (sends, conflicts) != (datasets, []) or not destroyed:
        raise SystemExit(f"not a plan: {sends} increments of {datasets}, {destroyed} destroyed, {conflicts[:1]}")
    return {
        "datasets": datasets, "snapshots": datasets * snapshots, "replicate_seconds": round(replicated - began, 3),
        "prune_seconds": round(ended - replicated, 3), "seconds": round(ended - began, 3), "listed_bytes": listed,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def svg(results: list[dict[str, float]]) -> str:
    """Seconds over snapshots, both logarithmic: linear growth is the grey line."""
    left, top, width, height = 80, 50, 560, 360
    font = 'font-family="sans-serif" font-size="12"'

    def place(exponent: float, low: int, high: int, length: int) -> float:
        return (exponent - low) / (high - low) * length

    def at(snapshots: float, seconds: float) -> str:
        x = left + place(math.log10(snapshots), 3, 6, width)
        return f"{x:.1f},{top + height - place(math.log10(seconds), -2, 2, height):.1f}"

    title = "planning: CPU seconds over snapshots per side"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 40}" height="{top + height + 60}">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="24" {font} font-weight="bold">{title}</text>',
    ]
    for power in range(3, 7):
        x = left + place(power, 3, 6, width)
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + height}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + height + 20}" text-anchor="middle" {font}>10^{power}</text>')
    for power in range(-2, 3):
        y = top + height - place(power, -2, 2, height)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" {font}>{10.0**power:g} s</text>')
    last = results[-1]
    slope = last["seconds"] / last["snapshots"]
    ideal = " ".join(at(10**power, max(0.01, slope * 10**power)) for power in (3, 4, 5, 6))
    parts.append(f'<polyline points="{ideal}" fill="none" stroke="#aaaaaa" stroke-dasharray="6 4"/>')
    for key, colour in (("seconds", "#1f77b4"), ("replicate_seconds", "#4c9a5f"), ("prune_seconds", "#e8963a")):
        points = [at(result["snapshots"], max(0.01, result[key])) for result in results]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" fill="{colour}"/>' for p in points]
        y = top + 16 + 18 * (("seconds", "replicate_seconds", "prune_seconds").index(key))
        parts.append(f'<text x="{left + 12}" y="{y}" fill="{colour}" {font}>{key.removesuffix("_seconds")}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, type=int, metavar=("DATASETS", "SNAPSHOTS"))
    one = parser.parse_args().one
    if one:
        print(json.dumps(measure(*one)))
        return 0
    results = []
    for datasets, snapshots in SIZES:
        command = (sys.executable, "-m", "tests.bench.scale", "--one", str(datasets), str(snapshots))
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout))
        told = "{snapshots:>9} snapshots: replicate {replicate_seconds:8.3f} s, prune {prune_seconds:8.3f} s"
        print(told.format(**results[-1]) + f", peak {results[-1]['peak_bytes'] / 2**20:.0f} MiB")
    last = results[-1]
    good = last["seconds"] <= MAX_SECONDS and last["peak_bytes"] <= MAX_BYTES
    BUILD.mkdir(exist_ok=True)
    (BUILD / "scale.json").write_text(json.dumps({"format": 1, "good": good, "results": results}, indent=2) + "\n")
    (BUILD / "scale.svg").write_text(svg(results))
    print(f"{'reached' if good else 'MISSED'}: {last['seconds']:.1f} of {MAX_SECONDS:g} s, "
          f"{last['peak_bytes'] / 2**30:.2f} of {MAX_BYTES / 2**30:g} GiB")  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
