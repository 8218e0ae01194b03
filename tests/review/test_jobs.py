"""Two jobs with one guest: what one of them wants kept is kept, whichever of them is named."""

from __future__ import annotations

import pytest

from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import ExitCode
from tests.fakes.pools import Pools
from tests.fakes.runner import HERE
from tests.fakes.world import CT, DB, TARGET, WEB, World, assert_replicated


@pytest.fixture
def jobs(world: World) -> World:
    """Job `long` keeps guest 101 longer and sends it to a second target, to which job `all` does not send."""
    world.runner.pools["backup2"] = Pools("backup2", world.clock)
    world.runner.pools["backup2"].pool("tank")
    world.runner.addresses["backup2.example"] = "backup2"
    text = world.config.read_text()
    other = "  backup2: {host: backup2.example, root: tank/backups, parallel: 1, keep: {keep-last: 9}}\njobs:\n"
    long = "  long: {guests: [101], targets: [backup2], keep: {keep-last: 9}}\n"
    world.config.write_text(text.replace("jobs:\n", other + long))
    return world


def test_pruning_one_job_keeps_what_another_job_keeps(jobs: World) -> None:
    for _ in range(6):
        jobs.write()
        assert jobs.run().exit_code is ExitCode.OK
    jobs.run(Stage.PRUNE, jobs=["all"])
    assert (len(jobs.complete(HERE, DB)), len(jobs.complete(HERE, WEB))) == (6, 3)


def test_running_one_job_keeps_the_base_on_the_targets_of_the_other(jobs: World) -> None:
    text = jobs.config.read_text()
    jobs.config.write_text(text.replace("[backup2], keep: {keep-last: 9}", "[backup2], keep: {keep-last: 2}"))
    assert jobs.run().exit_code is ExitCode.OK
    (base,) = jobs.complete("backup2", DB)
    for _ in range(5):
        jobs.write()
        assert jobs.run(jobs=["all"]).exit_code is ExitCode.OK
    assert jobs.complete("backup2", DB) == [base], "only the named job's targets are sent to"
    assert base in jobs.complete(HERE, DB)
    jobs.runner.ran.clear()
    assert jobs.run(jobs=["long"]).exit_code is ExitCode.OK
    sends = [argv for argv in jobs.runner.zfs(HERE, "send") if "-nvP" not in argv]
    assert all("-i" in argv or "-I" in argv for argv in sends)
    assert jobs.complete("backup2", DB)[-1] == jobs.complete(HERE, DB)[-1]
    assert jobs.run().exit_code is ExitCode.OK
    assert_replicated(jobs, (WEB, DB, CT))


def test_the_guests_of_a_named_job_alone_are_touched(jobs: World) -> None:
    jobs.run(jobs=["long"])
    assert jobs.complete(HERE, DB)
    assert not jobs.complete(HERE, WEB)
    assert not jobs.complete(TARGET, DB)
