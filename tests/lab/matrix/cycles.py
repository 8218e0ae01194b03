"""`python3 -m tests.lab.matrix.cycles [50]`: run, kill, run, over and over, with reboots of the target in between.

Shown at the end: no divergence, no leaked hold, no partial receive, as many bookmarks as there should be, and a
memory that does not grow. Points are pruned on both sides in each run, so that nothing else grows either.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.lab.lab import TREE, Lab
from tests.lab.matrix import criteria, guests, inject
from tests.lab.matrix.__main__ import installed
from tests.lab.matrix.context import Context, UnexpectedError
from tests.lab.matrix.rows_process import KILLER
from tests.lab.matrix.table import Outcome, Row, table
from tests.lab.product import Product

RESULT = TREE / "build" / "cycles.json"
REBOOT_EVERY = 10
ACTIONS = 45  # about what one run does; a kill beyond its end is a run that was not killed
GROWTH = 1.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One of them. `at` is what the kill came before; `rss` the peak memory (KiB) of the run after it."""

    number: int
    at: str
    codes: tuple[int, ...]
    rss: int
    seconds: float


def flat(sizes: Sequence[int]) -> bool:
    """Whether the last third needs no more memory than the first, but for the noise."""
    third = max(1, len(sizes) // 3)
    first, last = sizes[:third], sizes[-third:]
    return sum(last) / len(last) <= GROWTH * sum(first) / len(first)


def cycles(ctx: Context, count: int, *, seed: int = 20261123) -> list[Cycle]:
    """Write, run with a kill, run again; every REBOOT_EVERY-th time the target reboots, or loses its power."""
    chance = random.Random(seed)
    guest = ctx.guest()
    ctx.pve1.put(KILLER, "/root/killer.py")
    done = []
    for number in range(1, count + 1):
        started = time.monotonic()
        guests.write(ctx.pve1, guest.disk, 1, at=chance.randrange(2, 23))
        step = str(chance.randrange(1, ACTIONS))
        command = ("python3", "/root/killer.py", step, step, "100000", "0", "run", "--config", ctx.config)
        told = ctx.pve1.run(command, check=False, timeout=600)
        rows = [json.loads(line) for line in told.lines if line.startswith('{"kill"')]
        ctx.expect(told.returncode == 0 and rows, f"cycle {number}: {told.lines[-2:]} {told.stderr[-400:]}")
        codes = tuple(row.get("again", row.get("code", -1)) for row in rows)
        ctx.expect(not any(codes), f"cycle {number}, killed at {step}: exit {codes}: {told.stderr[-400:]}")
        seconds = time.monotonic() - started
        cycle = Cycle(
            number=number, at=rows[0]["at"] or "(not killed)", codes=codes, rss=rows[0]["rss"], seconds=seconds
        )
        print(f"{number:>3} {seconds:5.0f} s {cycle.rss >> 10:>4} MiB  killed before: {cycle.at[:80]}", flush=True)
        done.append(cycle)
        if number % REBOOT_EVERY == 0:
            print(f"    {'power cut' if number % (2 * REBOOT_EVERY) == 0 else 'reboot'} of backup1", flush=True)
            if number % (2 * REBOOT_EVERY) == 0:
                ctx.power_cut(ctx.backup1)
            else:
                ctx.backup1.shut_down()
                ctx.boot(ctx.backup1)
    return done


def show(product: Product, count: int) -> Outcome:
    """All of it, and the criteria at the end."""
    row = Row(
        number="50",
        fault=f"{count} cycles of run, kill and run with reboots of the target",
        expected="no divergence, no leaked hold, no partial receive, memory flat",
        function=lambda _: "",
    )
    outcome = Outcome(row=row)
    ctx = Context(product=product, row=row, outcome=outcome, keep="{keep-last: 4}")
    started = time.monotonic()
    for host in (product.pve1, product.backup1):
        inject.prepare(host)
    done: list[Cycle] = []
    try:
        ctx.prepare()
        done = cycles(ctx, count)
        sizes = [cycle.rss for cycle in done]
        ctx.expect(flat(sizes), f"memory grew: {[size >> 10 for size in sizes]} MiB")
        outcome.seen = f"{len(done)} cycles, peak memory {min(sizes) >> 10} to {max(sizes) >> 10} MiB"
        ctx.publish()
        criteria.check(ctx, final=False)
        criteria.next_run(ctx)
        ctx.publish()
        criteria.check(ctx, final=True)
    except UnexpectedError as error:
        outcome.contradiction = str(error)
    finally:
        ctx.clean()
    outcome.seconds = time.monotonic() - started
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    kept = [{"number": c.number, "at": c.at, "codes": c.codes, "rss_kib": c.rss, "seconds": round(c.seconds, 1)}
            for c in done]  # fmt: skip
    RESULT.write_text(json.dumps({**outcome.json(), "cycles": kept}, indent=1) + "\n")
    print(table([outcome]), flush=True)
    return outcome


def main(arguments: Sequence[str]) -> int:
    count = int(arguments[0]) if arguments else 50
    with Lab() as lab:
        return 0 if show(installed(lab), count).result == "passed" else 1


if __name__ == "__main__":
    os.chdir(TREE)
    sys.exit(main(sys.argv[1:]))
