"""Whole runs of the product against an append-only target: every line that ssh was given is one the receiver takes."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pve_zfsbackup.app.restore import Request, carry_out, prepare
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.receiver import parse
from tests.fakes.runner import Fault
from tests.fakes.world import ROOT, WEB, World

PLAIN = "keep: {keep-last: 3}}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> World:
    made = World(tmp_path)
    made.target.add("tank/backups")  # as `setup target` leaves it: the account may not make its own root
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(made.clock.now, UTC))
    return made


def append_only(world: World, *options: str) -> None:
    text = world.config.read_text()
    assert PLAIN in text
    world.config.write_text(text.replace(PLAIN, ", ".join(("append-only: true", *options)) + "}", 1))


def verbs(world: World) -> set[str]:
    """What the lines ask for; raises for one that the receiver would deny."""
    requests = [parse(line, ROOT) for line in world.runner.lines]
    return {" ".join(command.words[:2]) for request in requests for command in request.commands}


@pytest.mark.parametrize("options", [(), ("compress: zstd", "mbuffer: 16M"), ("mbuffer: 4G",), ("parallel: 4",)])
def test_first_run_increments_and_nothing_new(world: World, options: tuple[str, ...]) -> None:
    world.config.write_text(
        world.config.read_text().replace("parallel: 1, ", "" if "parallel: 4" in options else "parallel: 1, ")
    )
    append_only(world, *options)
    for _ in range(3):
        world.run()
        world.write()
    world.run(Stage.REPLICATE)
    assert world.complete("backup1", WEB) != []
    assert {"zfs list", "zfs create", "zfs receive", "zfs set"} <= verbs(world)


def test_interrupted_streams_and_their_aborts(world: World) -> None:
    append_only(world)
    world.impatient()
    chance = random.Random(5)
    for _ in range(12):
        world.write()
        world.runner.faults.append(Fault(words=("send",), nth=chance.randrange(1, 5), cut=chance.randrange(1, 70_000)))
        world.run()
        world.runner.faults.clear()
        if chance.random() < 0.5:  # the snapshot that was on its way is gone: its token is of no use any more
            for dataset in world.source.datasets.values():
                if dataset.newest:
                    del dataset.snaps[dataset.newest.name]
        world.run(Stage.REPLICATE)
    asked = verbs(world)
    assert "zfs receive" in asked
    assert any("receive -A" in line for line in world.runner.lines), "no abort was asked for: these faults are too mild"


def test_a_restore_reads_back_what_was_sent(world: World) -> None:
    append_only(world)
    world.run()
    newest = world.complete("backup1", WEB)[-1]
    for name in [name for name in world.source.datasets if "-100-disk" in name]:
        world.source.drop(name)
    world.node.remove(WEB)
    size = world.target.datasets["tank/backups/local-zfs/vm-100-disk-0"].refer
    world.runner.faults.append(Fault(words=("send",), host="backup1", cut=size // 2))
    with world.session() as session:
        found = prepare(session, Request(vmid=Vmid(WEB)))
        carry_out(session, found)
    assert found.plan.origin.point.id == newest
    assert {"zfs send"} <= verbs(world)
    assert any(line.startswith("zfs send -t ") for line in world.runner.lines), "the broken stream was resumed"
