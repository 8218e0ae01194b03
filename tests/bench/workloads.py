"""The workloads: what is prepared, what is measured, what must have come of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.bench import history, trees
from tests.bench.contenders import KEPT, OURS, SOURCE, Contender, Tree
from tests.bench.results import Run
from tests.lab.executed import Exec
from tests.lab.host import Host
from tests.lab.image import say
from tests.lab.product import Product

POINTS = 50
LIMIT = 1800.0  # seconds for one command


@dataclass(slots=True, kw_only=True)
class Bench:
    """Measures commands on pve1 and collects the runs. `note` is called after each with all runs so far."""

    product: Product
    contenders: Sequence[Contender]
    repeat: int
    note: Callable[[Sequence[Run]], None]
    runs: list[Run] = field(default_factory=list)

    @property
    def pve1(self) -> Host:
        return self.product.pve1

    @property
    def backup1(self) -> Host:
        return self.product.backup1

    def turns(self) -> Iterator[tuple[int, Contender]]:
        """Every contender in every repetition, each time another one first."""
        for repetition in range(self.repeat):
            first = repetition % len(self.contenders)
            for contender in (*self.contenders[first:], *self.contenders[:first]):
                trees.forget(self.pve1, self.backup1)
                yield repetition, contender

    def measure(
        self, what: tuple[str, str, Contender, int], command: tuple[str, ...], wrong: Callable[[], Iterator[str]]
    ) -> None:
        """Run the command, look at what came of it, and note the run."""
        workload, phase, contender, repetition = what
        trees.settle(self.pve1)
        load = os.getloadavg()[0]
        measured = ("python3", "-I", "/opt/bench/measure.py", str(LIMIT), *command)
        with self.pve1.executed() as here, self.backup1.executed() as there:
            told = json.loads(self.pve1.run(measured, timeout=LIMIT + 60).stdout)
        started = [item for item in here.execs if item.pid != told["pid"]]
        faults = [f"status {told['status']}: {(told['err'] or told['out']).strip()[-300:]}"] if told["status"] else []
        programs: dict[str, int] = {}
        for item in started:
            programs[item.name] = programs.get(item.name, 0) + 1
        run = Run(
            workload=workload, phase=phase, contender=contender.name, repetition=repetition,
            seconds=told["seconds"], cpu=told["cpu"], processes=len(started) + len(there.execs), here=programs,
            sessions=sum(map(_is_session, there.execs)), connections=there.count("sshd-session"),
            largest=told["largest"], tree=told["tree"], load=load, void="; ".join([*faults, *wrong()]),
        )  # fmt: skip
        self.runs.append(run)
        say(f"bench: {workload} {phase} {contender.name}: {run.seconds:.1f} s {run.void and 'VOID: ' + run.void}")
        self.note(self.runs)


def _is_session(item: Exec) -> bool:
    """The login shell of a session: sshd starts it by the path of the account, others find theirs below /usr."""
    return item.path in ("/bin/bash", "/bin/sh")


def replication(bench: Bench, workload: str, names: tuple[str, ...], *, first_only: bool = False) -> None:
    """W1 and W2: first full, 10 % changed, nothing new."""
    trees.make(bench.pve1, names)
    for repetition, contender in bench.turns():
        tree = _snapshotted(bench, contender, Tree(names=names))
        _replicate(bench, (workload, "full", contender, repetition), tree)
        if first_only:
            continue
        trees.change(bench.pve1, names)
        tree = _snapshotted(bench, contender, tree)
        _replicate(bench, (workload, "changed", contender, repetition), tree)
        _replicate(bench, (workload, "nothing new", contender, repetition), tree, nothing=True)
        if contender is OURS:
            _alone(bench, workload, repetition)


def _replicate(bench: Bench, what: tuple[str, str, Contender, int], tree: Tree, *, nothing: bool = False) -> None:
    contender = what[2]

    def wrong() -> Iterator[str]:
        return trees.replicated(bench.pve1, bench.backup1, contender, 2 if tree.base else 1)

    bench.measure(what, contender.replicate(tree, nothing=nothing), wrong)


def _snapshotted(bench: Bench, contender: Contender, tree: Tree) -> Tree:
    """New snapshots of all datasets, made in the contender's own way if it will not take others."""
    if contender is OURS:
        bench.product.run("snapshot", timeout=LIMIT)
        return replace(tree, base="ours" if tree.new else "", new="ours")
    new = time.strftime("bench-%Y%m%d%H%M%S", time.gmtime())
    trees.snapshot(bench.pve1, tree.names, new)
    return replace(tree, base=tree.new, new=new)


def _alone(bench: Bench, workload: str, repetition: int) -> None:
    """How much of ours is Python and the API: the floor has neither."""
    for part in ("--version", "discover"):
        contender = replace(OURS, name=f"pve-zfsbackup {part}")
        command = ("pve-zfsbackup", part)
        bench.measure((workload, "nothing new", contender, repetition), command, lambda: iter(()))


def prune(bench: Bench, workload: str, names: tuple[str, ...]) -> None:
    """W3: of POINTS snapshots of each dataset the newest KEPT stay."""
    trees.make(bench.pve1, names)
    for repetition, contender in bench.turns():
        history.make(bench.pve1, contender, names, POINTS)
        before = trees.snapshots(bench.pve1, SOURCE)
        pruned = tuple(name for name, _ in next(iter(before.values()))[:-KEPT])

        def wrong(before: dict[str, list[tuple[str, str]]] = before) -> Iterator[str]:
            after = trees.snapshots(bench.pve1, SOURCE)
            for name, own in before.items():
                if len(own) != POINTS:
                    yield f"{name} had {len(own)} snapshots"
                if after.get(name) != own[-KEPT:]:
                    yield f"{name} has {len(after.get(name, ()))} snapshots, not exactly the newest {KEPT}"

        command = contender.prune(Tree(names=names, pruned=pruned))
        bench.measure((workload, "", contender, repetition), command, wrong)


def snapshot(bench: Bench, workload: str, names: tuple[str, ...]) -> None:
    """W4: one new snapshot of every dataset."""
    trees.make(bench.pve1, names)
    for repetition, contender in bench.turns():

        def wrong() -> Iterator[str]:
            after = trees.snapshots(bench.pve1, SOURCE)
            if set(after) != {f"{SOURCE}/{name}" for name in names} or any(len(own) != 1 for own in after.values()):
                yield f"{len(after)} of {len(names)} datasets have a snapshot, and not each exactly one"

        bench.measure((workload, "", contender, repetition), contender.snapshot(Tree(names=names)), wrong)


WORKLOADS: dict[str, Callable[[Bench, str], None]] = {
    "w1-20": lambda bench, name: replication(bench, name, trees.names(20)),
    "w1-100": lambda bench, name: replication(bench, name, trees.names(100)),
    "w2": lambda bench, name: replication(bench, name, trees.names(1, volume=True), first_only=True),
    "w3": lambda bench, name: prune(bench, name, trees.names(40)),
    "w4": lambda bench, name: snapshot(bench, name, trees.names(100)),
}
