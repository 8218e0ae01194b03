"""`make matrix [ROWS=16,24-31]`: boot the lab, run the rows, write build/matrix.json and a table.

Exit status 0 only when every row that a lab can do has passed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.lab import product as installed_product
from tests.lab.image import ImageError
from tests.lab.lab import TREE, Lab, borrowed
from tests.lab.machine import LabError
from tests.lab.matrix import (
    criteria,
    inject,
    rows_archive,
    rows_guest,
    rows_link,
    rows_ops,
    rows_process,
    rows_source,
    rows_target,
)
from tests.lab.matrix.context import Context, Done, UnexpectedError
from tests.lab.matrix.rows import REGISTRY
from tests.lab.matrix.table import Outcome, Row, summary, table
from tests.lab.product import Product

MODULES = (rows_process, rows_link, rows_target, rows_source, rows_archive, rows_guest, rows_ops)
RESULT = TREE / "build" / "matrix.json"
_ADVICE = re.compile(r"\bon backup1[^:]*: (zfs .+)")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.matrix", description=__doc__)
    parser.add_argument("rows", nargs="?", default="", help="numbers and ranges; all without")
    parser.add_argument("--fast", action="store_true", help="only the fast rows")
    chosen = parser.parse_args(arguments)
    try:
        picked = REGISTRY.chosen(chosen.rows, fast=chosen.fast)
    except ValueError as error:
        parser.error(str(error))
    try:
        with borrowed() as lab:
            outcomes = run(installed(lab), picked, RESULT)
    except (LabError, ImageError) as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 2
    return 0 if outcomes and all(outcome.result != "failed" for outcome in outcomes) else 1


def installed(lab: Lab) -> Product:
    """The lab provisioned, with the built package installed and set up. LabError when there is none."""
    deb = next(iter(sorted((TREE / "build" / "deb").glob("pve-zfsbackup_*.deb"))), None)
    if deb is None:
        raise LabError("no package in build/deb: `make deb` builds it")
    lab.provision()
    lab.pve1.put(deb, f"/root/{deb.name}")
    lab.pve1.run(("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "-i", f"/root/{deb.name}"), timeout=600)
    return installed_product.connect(lab)


def work(product: Product, text: str, result: Path) -> list[Outcome]:
    """Rows against a product that is there already."""
    return run(product, REGISTRY.chosen(text), result)


def run(product: Product, picked: Sequence[Row], result: Path) -> list[Outcome]:
    """The rows one after another; the file is written anew after each, so that a break loses none."""
    for host in (product.pve1, product.backup1):
        inject.prepare(host)
    outcomes: list[Outcome] = []
    for row in picked:
        print(f"== {row.number} {row.fault}", flush=True)
        outcomes.append(perform(product, row))
        print(table(outcomes[-1:]), flush=True)
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps([outcome.json() for outcome in outcomes], indent=1) + "\n")
    print(f"\n{table(outcomes)}\n\n{summary(outcomes)}", flush=True)
    return outcomes


def perform(product: Product, row: Row) -> Outcome:
    """One row from nothing to nothing. Whatever goes wrong is the row's, and the next one goes on."""
    outcome = Outcome(row=row)
    if row.impossible:
        return outcome
    started = time.monotonic()
    ctx = Context(product=product, row=row, outcome=outcome)
    try:
        ctx.prepare()
        _break_and_look(ctx)
    except Exception as error:
        _contradict(outcome, error)
    finally:
        try:
            ctx.clean()
        except Exception as error:
            _contradict(outcome, error, "cleaning up: ")
    outcome.seconds = time.monotonic() - started
    return outcome


def _break_and_look(ctx: Context) -> None:
    try:
        ctx.outcome.seen = ctx.row.function(ctx)
    except (UnexpectedError, LabError) as error:
        _contradict(ctx.outcome, error)
    for host in (ctx.pve1, ctx.backup1):
        if not host.machine.running:
            ctx.boot(host)
    inject.unlay(ctx.pve1, ctx.backup1)
    criteria.check(ctx, final=False)
    done = criteria.next_run(ctx)
    if ctx.row.conflict:
        done = _resolve(ctx, done)
    for judge in ctx.judge:
        try:
            judge(done)
        except UnexpectedError as error:
            _contradict(ctx.outcome, error)
    ctx.outcome.seen += f"; next run: exit {done.code}, {done.sent >> 10} KiB" if ctx.outcome.seen else ""
    with suppress(UnexpectedError):  # the criteria say it better
        ctx.publish()
    criteria.check(ctx, final=True)


def _resolve(ctx: Context, done: Done) -> Done:
    """Do what the advice says, to the letter; the run after that must succeed. That run."""
    commands = [match[1] for text in done.advice if (match := _ADVICE.search(text))]
    for text in commands:
        names = {word.partition("@")[0] for word in shlex.split(text) if "/" in word}
        ctx.by_hand |= {("*", name) for name in names}
        ctx.backup1.script(text)
        ctx.patch(*names)
    if not commands:
        ctx.outcome.complain("n3", f"the advice names no command: {done.advice}")
    ctx.lost |= ctx.lost_by_advice
    after = ctx.run()
    if after.code:
        ctx.outcome.complain("n3", f"although the advice was followed: {after.short}")
    return after


def _contradict(outcome: Outcome, error: Exception, what: str = "") -> None:
    text = str(error) if isinstance(error, UnexpectedError) else f"{type(error).__name__}: {error}"
    told = f"{what}{' '.join(text.split())}"[:600]
    outcome.contradiction = f"{outcome.contradiction}; {told}" if outcome.contradiction else told


if __name__ == "__main__":
    os.chdir(TREE)
    sys.exit(main(sys.argv[1:]))
