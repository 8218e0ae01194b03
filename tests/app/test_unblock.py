"""Making way for a rollback by Proxmox: what goes, what stays, what it costs, and how replication goes on."""

from __future__ import annotations

import pytest

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.history import discover, history
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.unblock import Unblocked, unblock
from pve_zfsbackup.errors import ExitCode, GuestMissingError, LockedError
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.proof import VERIFIED
from pve_zfsbackup.report.status import problems
from pve_zfsbackup.report.unblock import unblock_json, unblock_lines
from tests.fakes.runner import HERE
from tests.fakes.world import DB, REPLICAS, TARGET, WEB, World
from tests.fakes.zfs import FakeZfs

ZVOL, FAST = "rpool/data/vm-100-disk-0", "fast/vm-100-disk-0"


def proxmox_snapshot(world: World, name: str, when: int) -> None:
    """As qm makes it: one snapshot per disk, one after another."""
    for dataset in (ZVOL, FAST):
        world.source.snap(f"{dataset}@{name}")
    world.node.snapshots.setdefault(WEB, []).append({"name": name, "snaptime": when, "vmstate": 0})


def call(world: World, name: str = "", *, dry_run: bool = False) -> Unblocked:
    with world.session() as session:
        return unblock(session, Vmid(WEB), name, dry_run=dry_run)


def names(world: World, dataset: str = ZVOL) -> list[str]:
    return list(world.source.datasets[dataset].snaps)


def can_roll_back(world: World, name: str) -> bool:
    """What Proxmox checks, and what `zfs rollback` without -r checks after it."""
    for dataset in (world.source.datasets[ZVOL], world.source.datasets[FAST]):
        goal = dataset.snaps[name].createtxg
        if any(snap.createtxg > goal for snap in dataset.snaps.values()):
            return False
        if any(mark.createtxg > goal for mark in dataset.marks.values()):
            return False
    return True


@pytest.fixture
def history_of(world: World) -> World:
    """Two points, Proxmox's snapshot, two points: all on both sides."""
    for _ in range(2):
        world.run()
        world.write()
    proxmox_snapshot(world, "before-upgrade", 17)
    for _ in range(2):
        world.write()
        assert world.run(Stage.SNAPSHOT, Stage.REPLICATE).exit_code is ExitCode.OK
    return world


def test_ours_go_and_proxmoxs_and_older_ones_stay(history_of: World) -> None:
    world = history_of
    before, others = names(world), names(world, "rpool/crypt/vm-101-disk-0")
    assert not can_roll_back(world, "before-upgrade")
    shown = call(world)
    assert shown.done
    assert can_roll_back(world, "before-upgrade")
    assert names(world) == before[:3]
    assert names(world, "rpool/crypt/vm-101-disk-0") == others, "another guest"
    assert [str(point)[:4] for point in shown.plan.points] == ["100/", "100/"]
    assert "now: qm rollback 100 before-upgrade" in list(unblock_lines(shown))


def test_a_dry_run_tells_the_same_and_does_nothing(history_of: World) -> None:
    world = history_of
    before = names(world)
    world.runner.ran.clear()
    dry = call(world, dry_run=True)
    assert not dry.done
    assert not world.runner.changes
    assert names(world) == before
    real = call(world)
    assert dry.plan == real.plan
    assert {key: value for key, value in unblock_json(dry).items() if key != "done"} == {
        key: value for key, value in unblock_json(real).items() if key != "done"
    }


def test_what_it_costs_is_told(history_of: World) -> None:
    """The older base stays on both sides, but the target has points the source will not know any more."""
    world = history_of
    (point, *_) = world.points(HERE, WEB)[1:]
    shown = call(world, dry_run=True)
    sends = {send.disk: send for send in shown.plan.sends}
    assert sorted(sends) == [FAST, ZVOL]
    assert sends[ZVOL].base in (f"{ZVOL}@{point.snapshots['scsi0'].name}", sends[ZVOL].base)
    assert sends[ZVOL].base.startswith(ZVOL)
    assert len(sends[ZVOL].surplus) == 2
    told = "\n".join(unblock_lines(shown))
    assert f"backup1: {ZVOL} goes on from {sends[ZVOL].base}, once the 2 newer snapshots of" in told
    assert f"zfs rollback -r {REPLICAS[ZVOL]}@{point.snapshots['scsi0'].name}" in told


def test_a_point_that_a_drill_found_good_is_named_as_that(history_of: World) -> None:
    world = history_of
    *_, good, newest = world.points(HERE, WEB)
    for snapshot in good.snapshots.values():
        world.source.get(snapshot.full_name).props[VERIFIED] = "files 20261118T110640Z"
    told = list(unblock_lines(call(world, dry_run=True)))
    assert f"would be lost on this node: recovery point {good.id}, which a drill found good" in told
    assert f"would be lost on this node: recovery point {newest.id}" in told


def test_after_it_the_guest_goes_on_from_the_older_base(history_of: World) -> None:
    """What the answer says to do on the target is enough: nothing is sent in full."""
    world = history_of
    shown = call(world)
    for send in shown.plan.sends:
        for name in send.surplus:
            snap = world.target.get(name)
            snap.holds.clear()
            del world.target.datasets[send.replica].snaps[name.partition("@")[2]]
    world.runner.ran.clear()
    world.write()
    assert world.run().exit_code is ExitCode.OK
    sends = [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv and ZVOL in " ".join(argv)]
    assert sends
    assert all("-i" in argv or "-I" in argv for argv in sends)
    assert world.complete(TARGET, WEB)[-1] == world.complete(HERE, WEB)[-1]


def test_without_an_older_base_the_next_send_is_told_to_be_full(world: World) -> None:
    proxmox_snapshot(world, "fresh", 1)
    world.run()
    shown = call(world)
    assert [send.base for send in shown.plan.sends] == ["", ""]
    assert "has no older base: the next send is a full one" in "\n".join(unblock_lines(shown))
    assert can_roll_back(world, "fresh")
    world.write()
    assert world.run().exit_code is ExitCode.OK
    assert world.complete(TARGET, WEB)[-1] == world.complete(HERE, WEB)[-1]


def test_a_box_whose_base_goes_is_told(history_of: World) -> None:
    """An archive goes on from its bookmark only: without it the next one is a full one, of hours and money."""
    world = history_of
    text = world.config.read_text()
    world.config.write_text(
        f"{text}boxes:\n  box1: {{host: /mnt/a}}\n  box2: {{host: /mnt/b}}\n  box3: {{host: /mnt/c}}\n"
    )
    points = world.points(HERE, WEB)
    for dataset, key in ((ZVOL, "scsi0"), (FAST, "scsi1")):
        first, last = (point.snapshots[key].name for point in (points[0], points[-1]))
        # The newer one of box2 is of an archive that was cut off.
        for name, box in ((last, "box1"), (last, "box2"), (first, "box2"), (first, "box3")):
            FakeZfs(world.source).run(("zfs", "bookmark", f"{dataset}@{name}", f"{dataset}#{name}:{box}"), None)
    shown = call(world)
    told = [line for line in unblock_lines(shown) if line.startswith("box")]
    assert told == [f"box1: the next archive of guest 100 is a full one: it has no older base of {FAST}, {ZVOL}"]
    assert unblock_json(shown)["next-archives"] == [{"box": "box1", "full": [FAST, ZVOL]}]
    left = {mark for name in (ZVOL, FAST) for mark in world.source.datasets[name].marks}
    assert {name.rpartition(":")[2] for name in left} >= {"box2", "box3"}
    assert "box1" not in {name.rpartition(":")[2] for name in left}


def test_a_named_snapshot_and_what_else_stands_in_the_way(history_of: World) -> None:
    world = history_of
    proxmox_snapshot(world, "later", 18)
    world.source.snap(f"{ZVOL}@__replicate_100-0_1795000000__")
    shown = call(world, "before-upgrade")
    assert shown.plan.remaining == (f"{FAST}@later", f"{ZVOL}@later"), "pvesr's go by themselves"
    assert f"{ZVOL}@later" in {f"{ZVOL}@{name}" for name in names(world)}, "Proxmox's own are Proxmox's to remove"
    assert f"still in the way, and not ours: {ZVOL}@later" in list(unblock_lines(shown))
    assert not any(line.startswith("now: ") for line in unblock_lines(shown))


def test_the_newest_is_meant_when_none_is_named(history_of: World) -> None:
    proxmox_snapshot(history_of, "later", 18)
    assert call(history_of, dry_run=True).plan.snapshot == "later"


def test_what_proxmox_does_not_know_is_not_guessed(history_of: World) -> None:
    with pytest.raises(GuestMissingError, match="no snapshot befor") as caught:
        call(history_of, "befor")
    assert "before-upgrade" in caught.value.hint
    with history_of.session() as session:
        with pytest.raises(GuestMissingError, match="no snapshot of it"):
            unblock(session, Vmid(DB))
        with pytest.raises(GuestMissingError, match="no such guest"):
            unblock(session, Vmid(999))


def test_a_snapshot_of_ours_in_use_is_a_conflict_and_nothing_goes(history_of: World) -> None:
    world = history_of
    list(world.source.datasets[ZVOL].snaps.values())[-1].holds.add("drill")
    before = names(world)
    shown = call(world)
    assert [conflict.kind for conflict in shown.plan.conflicts] == ["in-use"]
    assert not shown.done
    assert names(world) == before
    assert "is held" in "\n".join(unblock_lines(shown))


def test_a_silent_target_is_told(history_of: World) -> None:
    history_of.runner.down[TARGET] = "ssh: No route to host"
    shown = call(history_of)
    assert shown.done
    assert shown.plan.unknown == (TARGET,)
    assert any(line.startswith("backup1: not known, it did not answer") for line in unblock_lines(shown))


@pytest.mark.parametrize("work", ["snapshot", "replicate", "archive"])
def test_not_while_a_run_is_at_work(history_of: World, work: str) -> None:
    before = names(history_of)
    with run_lock(history_of.place / "run", work):
        with pytest.raises(LockedError):
            call(history_of)
        assert call(history_of, dry_run=True).plan.points
    assert names(history_of) == before


# -- seen beforehand


def test_discover_and_status_tell_what_we_block_and_who_else_replicates(history_of: World) -> None:
    history_of.node.replications = [
        {"id": "100-0", "guest": "100", "jobnum": 0, "target": "pve2", "type": "local"},
        {"id": "101-0", "guest": 101, "target": "pve2", "type": "local", "disable": 1},
    ]
    with history_of.session() as session:
        found = discover(session)
        known = history(session, Scope())
    for entry in (*found.guests, *known.coverage):
        blocked = entry.guest.vmid == WEB
        assert dict(entry.blocked) == ({"before-upgrade": 2} if blocked else {})
        assert entry.replicated == (("pve2",) if blocked else ())
        assert any("unblock-rollback 100 before-upgrade" in note for note in entry.notes) is blocked
        told = "; ".join(problems(known, entry))
        assert ("cannot roll back to before-upgrade" in told) is ("pvesr replicates it to pve2" in told) is blocked


def test_pvesr_that_cannot_be_read_is_a_note(world: World) -> None:
    world.node.replications = None  # type: ignore[assignment]
    with world.session() as session:
        assert discover(session).guests


def test_snapshots_of_others_are_left_alone(world: World) -> None:
    theirs = ("__replicate_100-0_1795000000__", "__migration__", "vzdump", "rep_x_2026-11-23_18:00:01", "before",
              "autodaily261123180000")  # fmt: skip
    kept = {}
    for number in range(8):
        if number < len(theirs):
            kept[theirs[number]] = world.source.snap(f"{ZVOL}@{theirs[number]}")
        world.write()
        assert world.run().exit_code is ExitCode.OK
    snaps = world.source.datasets[ZVOL].snaps
    assert all(snaps[name] is snap for name, snap in kept.items())
    assert len(snaps) == len(theirs) + 3, "ours are pruned around them"
