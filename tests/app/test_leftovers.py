"""A guest that is destroyed while it is sent leaves an interrupted receive on the target: told, then thrown away."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pve_zfsbackup.app.gather import Scope, assign, inventory
from pve_zfsbackup.app.leftovers import _one
from pve_zfsbackup.app.preview import preview
from pve_zfsbackup.app.prune import plan_all, swept
from pve_zfsbackup.app.run import Report, Stage
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import guest_files
from pve_zfsbackup.host.guest_files import defined
from pve_zfsbackup.model import Dataset
from pve_zfsbackup.plan.leftovers import Leftover
from tests.fakes.runner import Fault
from tests.fakes.world import CT, REPLICAS, ROOT, TARGET, World

DAY = 86_400
DISK = "rpool/data/subvol-200-disk-0"
REPLICA = REPLICAS[DISK]


@pytest.fixture
def left(world: World) -> World:
    """The container is gone, and what of it was under way lies there for an hour."""
    world.impatient()
    world.run()
    world.source.write(DISK, 4 << 20)
    world.runner.faults.append(Fault(words=("receive", REPLICA), cut=20_000))
    world.run()
    (world.node.etc / "nodes" / "pve1").mkdir(parents=True)
    world.node.remove(CT)
    del world.source.datasets[DISK]
    world.run()
    assert world.target.datasets[REPLICA].partial
    return world


def after(world: World, days: int) -> Report:
    """A run of `prune` on each of these days; the last."""
    for _ in range(days):
        world.clock.now += DAY - 3600
        report = world.run(Stage.PRUNE)
    return report


def about(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.host == TARGET and result.vmid is None]


def test_it_is_told_after_two_days_and_thrown_away_after_a_week(left: World) -> None:
    kept = {snap.guid for snap in left.target.datasets[REPLICA].snaps.values()}
    assert about(after(left, 1).results) == []
    (told,) = about(after(left, 1).results)
    assert (told.outcome, REPLICA in told.message, "2 days" in told.message) == (Outcome.WARNING, True, True)
    assert f"zfs receive -A {REPLICA}" in told.hint
    assert left.target.datasets[REPLICA].partial
    (gone,) = about(after(left, 5).results)
    assert "was thrown away" in gone.message
    assert not left.target.datasets[REPLICA].partial
    assert {snap.guid for snap in left.target.datasets[REPLICA].snaps.values()} == kept, "its points stay"
    assert about(after(left, 1).results) == []


def test_days_on_which_the_target_was_away_do_not_count(left: World) -> None:
    left.runner.down[TARGET] = "ssh: connect to host backup1.example port 22: No route to host"
    after(left, 8)
    del left.runner.down[TARGET]
    assert about(after(left, 1).results) == []
    assert left.target.datasets[REPLICA].partial
    assert "2 days" in about(after(left, 1).results)[0].message


def test_a_dry_run_tells_and_does_nothing(left: World) -> None:
    after(left, 6)
    before = (left.place / "state" / "partials.json").read_text()
    left.clock.now += 2 * DAY
    with left.session() as session:
        found = inventory(session)
        items, _ = assign(session, found, Scope())
        (told,) = swept(session, plan_all(session, found, items).world, dry=True)
        assert preview(session, Scope(), [Stage.SNAPSHOT, Stage.PRUNE]).partials == (told,)
        assert preview(session, Scope(), [Stage.SNAPSHOT, Stage.REPLICATE]).partials == ()
    assert "is thrown away after 7" in told.message
    assert left.target.datasets[REPLICA].partial
    assert (left.place / "state" / "partials.json").read_text() == before


def test_a_name_that_a_target_made_up_is_no_command_in_the_hint(world: World) -> None:
    left = Leftover(dataset=Dataset("tank/r/$(reboot)/vm-101-disk-0"), token="1-x", stood=3.0 * DAY)
    with world.session() as session:
        told = _one(session, TARGET, left, "prune", dry=False)
    assert "zfs receive -A 'tank/r/$(reboot)/vm-101-disk-0'" in told.hint


@pytest.mark.parametrize(
    ("token", "told"), [("1-other", "went on with it"), ("-", "somebody else has thrown it away")]
)
def test_one_that_is_another_meanwhile_stays(
    left: World, monkeypatch: pytest.MonkeyPatch, token: str, told: str
) -> None:
    after(left, 6)
    monkeypatch.setattr("pve_zfsbackup.app.leftovers.read_resume_token", lambda host, dataset: token)
    (result,) = about(after(left, 1).results)
    assert (result.outcome, told in result.message) == (Outcome.SKIPPED, True)
    assert left.target.datasets[REPLICA].partial


def test_one_that_is_busy_is_tried_again_and_one_that_cannot_be_told(left: World) -> None:
    after(left, 6)
    words = ("receive", "-A")
    left.runner.faults.append(Fault(words=words, answer=(1, f"cannot destroy '{REPLICA}': dataset is busy")))
    (told,) = about(after(left, 1).results)
    assert (told.outcome, "busy" in told.message) == (Outcome.SKIPPED, True)
    left.runner.faults.append(Fault(words=words, answer=(1, "cannot abort: permission denied")))
    (told,) = about(after(left, 1).results)
    assert told.outcome is Outcome.FAILED
    assert "was thrown away" in about(after(left, 1).results)[0].message


@pytest.mark.parametrize(
    ("place", "text", "stays"),
    [
        (f"nodes/pve9/lxc/{CT}.conf", "rootfs: local-zfs:subvol-200-disk-0,size=1G\n", True),
        ("nodes/pve9/qemu-server/999.conf", "[snap]\nscsi3: other:subvol-200-disk-0\n", True),
        (f"nodes/pve9/lxc/{CT}.conf", "rootfs: local-zfs:subvol-200-disk-07,size=1G\n", False),  # its vmid anew
        (f"nodes/pve9/lxc/{CT}.conf.bak", "rootfs: local-zfs:subvol-200-disk-0,size=1G\n", False),
    ],
)
def test_a_disk_that_a_guest_of_any_node_has_is_not_gone(left: World, place: str, text: str, stays: bool) -> None:
    path = left.node.etc / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    after(left, 9)
    assert bool(left.target.datasets[REPLICA].partial) is stays


def test_where_nobody_can_tell_which_guests_there_are_nothing_goes(
    left: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(guest_files.os, "listdir", refused)
        assert about(after(left, 9).results) == []
    (left.node.etc / "local").unlink()
    assert defined("subvol-200-disk-0", left.node.etc)
    assert left.target.datasets[REPLICA].partial


def test_a_root_that_is_nobodys_is_let_alone(left: World) -> None:
    del left.target.datasets[ROOT].props["pve-zfsbackup:owner"]
    assert about(after(left, 9).results) == []
    assert left.target.datasets[REPLICA].partial


def test_an_append_only_target_does_it_itself(left: World) -> None:
    text = left.config.read_text()
    left.config.write_text(text.replace("retries: 0, keep: {keep-last: 3}", "retries: 0, append-only: true"))
    assert about(after(left, 9).results) == []
    assert left.target.datasets[REPLICA].partial
    assert json.loads((left.place / "state" / "partials.json").read_text()) == {}
