"""The shared connection to a target belongs to one process, and closing it decides nothing."""

from __future__ import annotations

import os

import pytest

from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import CommandTimeoutError, ExitCode
from tests.fakes.world import TARGET, World


def test_a_look_at_the_status_does_not_cut_the_streams_of_a_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.session() as running:
        mine = running.hosts[TARGET].destination
        assert mine is not None
        mine.control.touch()  # ssh made it
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        with world.session() as looking:
            other = looking.hosts[TARGET].destination
            assert other is not None
            other.control.touch()
        assert not other.control.exists(), "it closes its own"
        assert mine.control.exists(), "and nobody else's"


def test_a_connection_that_does_not_close_makes_no_failure_of_a_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = world.runner.run

    def run(argv, **more):  # type: ignore[no-untyped-def]
        if "-O" in argv:
            raise CommandTimeoutError("ssh: no end after 15 s")
        return real(argv, **more)

    monkeypatch.setattr(type(world.runner), "run", lambda self, argv, **more: run(argv, **more))
    assert world.run(Stage.SNAPSHOT, Stage.REPLICATE).exit_code is ExitCode.OK
