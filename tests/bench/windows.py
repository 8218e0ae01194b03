"""How long a guest stands still: `python -m tests.bench.windows [TIMES]`, in the lab (50 times each).

Guest 100 has its disks in two pools, a real agent and writers in its file systems. In turn are measured, on the node:
bare `zfs snapshot`s of its disks; ours, as the point records it, from before the freeze until after the thaw; and the
same by hand, `pvesh create …/agent/fsfreeze-freeze`, the snapshots, `fsfreeze-thaw`. Issue 4 asks for a median of ours
of at most 3 times the bare snapshots, and a p99 of at most a second. Results go to build/windows.json.

PZB_LAB_ATTACH: the run of a lab that is up already.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence

from tests.lab import product as installed_product
from tests.lab.lab import TREE, borrowed
from tests.lab.matrix.__main__ import installed
from tests.lab.product import Product

RESULT = TREE / "build" / "windows.json"
VMID = "100"
DISKS = ("rpool/data/vm-100-disk-0", "fast/vm-100-disk-0")
TIMES_BARE = 3.0
P99 = 1000.0  # milliseconds
# Milliseconds of the snapshots alone; $1 is what names them.
_BARE = r"""
name=$1; shift
begun=$(date +%s%N)
for disk; do zfs snapshot "$disk@$name"; done
echo $((($(date +%s%N) - begun) / 1000000))
for disk; do zfs destroy "$disk@$name"; done
"""
# The same between a freeze and a thaw as an administrator's script has them.
_BY_HAND = r"""
name=$1 agent=/nodes/$(hostname)/qemu/$2/agent; shift 2
begun=$(date +%s%N)
pvesh create "$agent/fsfreeze-freeze" > /dev/null
for disk; do zfs snapshot "$disk@$name"; done
pvesh create "$agent/fsfreeze-thaw" > /dev/null
echo $((($(date +%s%N) - begun) / 1000000))
for disk; do zfs destroy "$disk@$name"; done
"""


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 when both limits are kept and every point is a quiesced one."""
    times = int(arguments[0]) if arguments else 50
    with borrowed() as lab:
        product = installed_product.quick(installed(lab))
        installed_product.forget(product)
        found = measure(product, times)
        installed_product.forget(product)
    told = {name: distribution(values) for name, values in found.items()}
    ratio = told["ours"]["median"] / told["bare"]["median"]
    good = ratio <= TIMES_BARE and told["ours"]["p99"] <= P99
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    whole = {"times": times, "milliseconds": found, "ratio": ratio, "good": good}
    RESULT.write_text(json.dumps(whole, indent=1) + "\n")
    for name, numbers in told.items():
        print(f"{name:8}" + "".join(f"  {word} {value:6.0f} ms" for word, value in numbers.items()))
    print(f"median of ours: {ratio:.1f} times the bare snapshots (at most {TIMES_BARE:.0f}); p99 at most {P99:.0f} ms")
    return 0 if good else 1


def measure(product: Product, times: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"bare": [], "ours": [], "by hand": []}
    product.run("snapshot", VMID)
    for number in range(times):
        found["bare"].append(float(product.pve1.script(_BARE, f"bare{number}", *DISKS).stdout))
        product.run("snapshot", VMID)
        found["by hand"].append(float(product.pve1.script(_BY_HAND, f"hand{number}", VMID, *DISKS).stdout))
    points = product.points(int(VMID))[1:]
    assert len(points) == times, f"{len(points)} points of {times}"
    assert {point["consistency"] for point in points} == {"quiesced"}, "every one was a freeze that held"
    found["ours"] = [float(point["window"]) for point in points]
    return found


def distribution(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "least": ordered[0],
        "median": statistics.median(ordered),
        "p90": ordered[round(last * 0.9)],
        "p99": ordered[round(last * 0.99)],
        "most": ordered[-1],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
