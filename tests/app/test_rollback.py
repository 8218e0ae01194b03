"""`rollback` in a cluster in memory: disks in place with the content of a point, nothing lost, replication goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.app.gather import inventory
from pve_zfsbackup.app.restore import Request, carry_out, prepare
from pve_zfsbackup.app.rollback import RolledBack, prepare_rollback, roll_back, rolling_alone
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import BackupError, ConfigError, GuestBusyError
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.model import Conflict, Vmid, decode_props
from pve_zfsbackup.plan.points import points_of
from tests.fakes.pools import Clock, Pools
from tests.fakes.runner import HERE, Fault, Killed, Ran
from tests.fakes.world import CT, DB, TARGET, WEB, World

WEB_DISKS = ("fast/vm-100-disk-0", "rpool/data/vm-100-disk-0")


def back(world: World, vmid: int, at: str) -> RolledBack:
    with world.session() as session, rolling_alone(session):
        plan = prepare_rollback(session, Vmid(vmid), at)
        assert plan.conflicts == ()
        return roll_back(session, plan)


def conflict(world: World, vmid: int, at: str) -> str:
    with world.session() as session:
        (found,) = prepare_rollback(session, Vmid(vmid), at).conflicts
    return found.kind


def here(world: World, vmid: int) -> list[str]:
    with world.session() as session:
        found = points_of(inventory(session).listing, Vmid(vmid))
    return [point.id for point in found if point.complete]


@pytest.fixture
def old(world: World) -> World:
    for _ in range(3):
        world.run()
        world.write()
    world.guest(WEB).running = world.guest(DB).running = world.guest(CT).running = False
    world.runner.revive()
    return world


def test_the_disks_have_the_content_of_the_point_and_everything_else_is_kept(old: World) -> None:
    points = old.complete(HERE, WEB)
    wanted = {name: next(s for s in ds.snaps.values() if s.props["pve-zfsbackup:point"] == points[1])
              for name in WEB_DISKS for ds in [old.source.datasets[name]]}  # fmt: skip
    heads = {name: old.source.datasets[name].content for name in WEB_DISKS}
    guids = {snap.guid for name in WEB_DISKS for snap in old.source.datasets[name].snaps.values()}
    text = (old.node.etc / "qemu-server/100.conf").read_text()
    done = back(old, WEB, points[1])
    assert done.plan.newer == (points[2],)
    for disk in done.plan.disks:
        now = old.source.datasets[disk.dataset]
        assert now.content == wanted[disk.dataset].content
        assert now.origin == ""
        assert disk.aside is not None
        aside = old.source.datasets[disk.aside]
        assert aside.content == heads[disk.dataset]
    assert here(old, WEB) == points[:2], "the history up to the point is the disk's own, complete"
    now_there = {snap.guid for ds in old.source.datasets.values() for snap in ds.snaps.values()}
    assert guids <= now_there
    assert (old.node.etc / "qemu-server/100.conf").read_text() == text, "unlocked, and as it was"
    assert not [name for name in old.source.datasets if "pzb-restore" in name]


def test_what_is_set_on_a_disk_itself_stays_so(old: World) -> None:
    """The disk in place is a clone from then on, and a clone has nothing of its own."""
    points, disk = old.complete(HERE, WEB), old.source.datasets[WEB_DISKS[0]]
    disk.props |= {"sync": "always", "primarycache": "metadata"}
    done = back(old, WEB, points[1])
    assert done.notes == ()
    assert old.source.datasets[WEB_DISKS[0]] is not disk
    made = old.source.datasets[WEB_DISKS[0]].props
    assert (made["sync"], made["primarycache"]) == ("always", "metadata")
    assert "sync" not in old.source.datasets[WEB_DISKS[1]].props
    safe = prepare_of(old, done.safety or "")
    assert safe["scsi1"]["sync"] == "always", "and the safety point knows of it"


def prepare_of(world: World, point: str) -> dict[str, dict[str, str]]:
    snaps = [snap for ds in world.source.datasets.values() for snap in ds.snaps.values()]
    own = next(snap.props for snap in snaps if snap.props.get("pve-zfsbackup:point") == point)
    return decode_props(own["pve-zfsbackup:props"])


def test_the_way_back_from_a_rollback_is_the_safety_point(old: World) -> None:
    heads = {name: old.source.datasets[name].content for name in WEB_DISKS}
    done = back(old, WEB, old.complete(HERE, WEB)[0])
    assert done.safety is not None
    with old.session() as session:
        found = prepare(session, Request(vmid=Vmid(WEB), replace=WEB, at=done.safety, where="source"))
        assert found.plan.conflicts == ()
        carry_out(session, found)
    made = [disk.dataset for disk in found.plan.disks]
    assert sorted(old.source.datasets[name].content for name in made) == sorted(heads.values())


@pytest.mark.parametrize("first", ["rollback", "restore"])
def test_a_second_time_to_the_same_point_is_no_less_a_rollback(old: World, first: str) -> None:
    """The upgrade was tried again, and failed again: the marks of the first way back are no reason to do nothing."""
    point = old.complete(HERE, WEB)[-1]
    if first == "rollback":
        disks = {disk.dataset for disk in back(old, WEB, point).plan.disks}
    else:
        with old.session() as session:
            found = prepare(session, Request(vmid=Vmid(WEB), replace=WEB, at=point, where=TARGET))
            disks = {disk.dataset for disk in carry_out(session, found).plan.disks}
    wanted = {name: old.source.datasets[name].content for name in disks}
    for name in disks:
        old.source.write(name, 1 << 20)
    spoilt = [old.source.datasets[name].content for name in disks]
    done = back(old, WEB, point)
    assert {disk.dataset for disk in done.plan.disks} == disks
    assert {name: old.source.datasets[name].content for name in disks} == wanted
    assert all(content in [ds.content for ds in old.source.datasets.values()] for content in spoilt), "nothing is lost"
    assert here(old, WEB)[-1] == point


@pytest.mark.parametrize("number", [0, 1, 2])
def test_replication_goes_on_and_loses_nothing(old: World, number: int) -> None:
    points = old.complete(TARGET, WEB)
    back(old, WEB, points[number])
    old.runner.revive()
    for _ in range(2):
        old.write()
        report = old.run(Stage.SNAPSHOT, Stage.REPLICATE)
        assert old.results(report, Outcome.FAILED) == []
    assert set(points) <= set(old.complete(TARGET, WEB))
    assert old.complete(TARGET, WEB)[-1] == here(old, WEB)[-1]
    generations = [name for name in old.target.datasets if "vm-100" in name and "-g" in name]
    assert len(generations) == (0 if number == 2 else 2), "to the newest common point: by an increment"
    for name in WEB_DISKS:
        now = old.source.datasets[name]
        replicas = [ds for ds in old.target.datasets.values() if now.newest and now.newest.name in ds.snaps]
        assert any(ds.snaps[now.newest.name].content == now.newest.content for ds in replicas if now.newest)
    assert old.results(old.run(), Outcome.FAILED) == []


def test_what_proxmox_knows_is_not_rolled_back_over(old: World) -> None:
    points = old.complete(HERE, WEB)
    old.source.snap("rpool/data/vm-100-disk-0@before-upgrade")
    old.node.snapshots[WEB] = [{"name": "before-upgrade", "snaptime": 1}]
    assert conflict(old, WEB, points[1]) == "proxmox-snapshot"
    del old.node.snapshots[WEB]  # nobody's but an administrator's own: it goes aside
    done = back(old, WEB, points[1])
    assert done.plan.others == ("rpool/data/vm-100-disk-0@before-upgrade",)
    assert any("before-upgrade" in ds.snaps for ds in old.source.datasets.values())


def test_a_guest_that_runs_or_is_locked_is_left_alone(old: World) -> None:
    points = old.complete(HERE, WEB)
    old.guest(WEB).running = True
    assert conflict(old, WEB, points[1]) == "running"
    old.guest(WEB).running = False
    path = old.node.etc / "qemu-server/100.conf"
    text = path.read_text()
    path.write_text("lock: rollback\n" + text)
    assert conflict(old, WEB, points[1]) == "locked", "Proxmox's own rollback, not ours"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no such point"):
        conflict(old, WEB, "100/20200101T000000Z-0000")
    path.write_text(text.replace("scsi1: fast:vm-100-disk-0", "scsi1: fast:vm-100-disk-7"))
    assert conflict(old, WEB, points[1]) == "other-disks"


@pytest.mark.parametrize("begun", [False, True])
def test_started_before_it_is_locked_it_keeps_its_disks(old: World, begun: bool) -> None:
    """`begun`: a try was cut off between its two disks. Then the lock stays: like this it must not start again."""
    path, point = old.node.etc / "qemu-server/100.conf", old.complete(HERE, WEB)[0]
    text = path.read_text()
    if begun:
        old.runner.faults = [Fault(words=("zfs", "rename"), nth=3, answer=(1, "dataset is busy"))]
        with pytest.raises(BackupError, match="busy"):
            back(old, WEB, point)
        old.runner.faults.clear()
        path.write_text(text)  # `qm unlock`
    disks = {name: ds.guid for name, ds in old.source.datasets.items() if "pzb-restore" not in name}

    def start(ran: Ran) -> None:
        old.guest(WEB).running |= ran.argv[:2] == ("zfs", "create")

    old.runner.watchers.append(start)
    with pytest.raises(GuestBusyError, match="was started meanwhile"):
        back(old, WEB, point)
    old.runner.watchers.clear()
    assert {name: ds.guid for name, ds in old.source.datasets.items() if "pzb-restore" not in name} == disks
    assert ("lock: rollback" in path.read_text()) is begun
    assert begun or path.read_text() == text
    assert any("pzb-restore" in name for name in old.source.datasets) is begun
    old.guest(WEB).running = False
    assert back(old, WEB, point).done
    assert path.read_text() == text


@pytest.mark.parametrize("error", [None, KeyboardInterrupt("SIGTERM")])
@pytest.mark.parametrize("again", [False, True])
def test_a_lock_that_stays_is_told_with_what_takes_it_off(
    old: World, error: BaseException | None, again: bool
) -> None:
    point = old.complete(HERE, WEB)[0]
    for _ in range(1 + again):
        old.runner.faults = [Fault(words=("zfs", "promote"), answer=None if error else (1, "no"), error=error)]
        with pytest.raises((BackupError, KeyboardInterrupt)) as caught:
            back(old, WEB, point)
    told = caught.value.hint if isinstance(caught.value, BackupError) else " ".join(caught.value.__notes__)
    assert "guest 100 stays locked" in told
    assert "the same command goes on" in told
    assert "to take the lock off: qm unlock 100" in told
    old.runner.faults.clear()
    assert back(old, WEB, point).done


def test_a_lock_of_somebody_else_is_not_told_as_ours(old: World) -> None:
    def late(ran: Ran) -> None:
        if ran.argv[:2] == ("zfs", "create"):
            old.node.lock(WEB, "backup")

    old.runner.watchers.append(late)
    with pytest.raises(BackupError) as caught:
        back(old, WEB, old.complete(HERE, WEB)[0])
    assert "stays locked" not in caught.value.hint
    assert old.node.locked(WEB) == "backup"


def test_a_configuration_edited_meanwhile_stops_it(old: World) -> None:
    with old.session() as session:
        plan = prepare_rollback(session, Vmid(WEB), old.complete(HERE, WEB)[0])
        path = old.node.etc / "qemu-server/100.conf"
        path.write_text(path.read_text() + "memory: 512\n")
        with pytest.raises(BackupError, match="changed"):
            roll_back(session, plan)


def test_a_containers_properties_stay(old: World) -> None:
    name = "rpool/data/subvol-200-disk-0"
    wanted = {"acltype": "posix", "refquota": "1073741824", "recordsize": "16384"}
    old.source.datasets[name].props.update(wanted)
    old.run()
    back(old, CT, old.complete(HERE, CT)[-1])
    now = old.source.datasets[name]
    assert {key: value for key, value in now.props.items() if key in wanted} == wanted


def test_an_encrypted_disk_stays_what_it_is(old: World) -> None:
    back(old, DB, old.complete(HERE, DB)[0])
    now = old.source.datasets["rpool/crypt/vm-101-disk-0"]
    assert (now.crypt, now.key) == ("aes-256-gcm", True)
    report = old.run()
    assert old.results(report, Outcome.FAILED) == []


def restored(world: World, **options: Any) -> None:
    """The database's guest by a restore, which leaves its disk the key it was sent with; the key is loaded since."""
    with world.session() as session:
        found = prepare(session, Request(vmid=Vmid(DB), where=TARGET, **options))
        assert found.plan.conflicts == ()
        (disk,) = carry_out(session, found).plan.disks
    made = world.source.datasets[disk.dataset]
    assert made.keys or made is world.source.encryption_root(made)
    made.key = True
    for _ in range(2):
        world.run(Stage.SNAPSHOT)
        world.write()
    world.runner.revive()


def refused(world: World, vmid: int) -> Conflict:
    world.guest(vmid).running = False
    world.runner.ran.clear()
    with world.session() as session:
        plan = prepare_rollback(session, Vmid(vmid), here(world, vmid)[-2])
    assert not world.runner.changes
    (found,) = plan.conflicts
    return found


def test_a_disk_with_a_key_of_its_own_is_refused_until_it_uses_that_of_its_storage(old: World) -> None:
    """After `promote` the clone is the encryption root, out of which the old disk cannot be renamed: the guest stayed
    locked, halfway."""
    name = "rpool/crypt/vm-101-disk-0"
    old.node.remove(DB)
    old.source.drop(name)
    restored(old)
    found = refused(old, DB)
    assert (found.kind, found.object) == ("own-key", "guest 101 scsi0")
    assert f"zfs change-key -i {name};" in found.resolve
    assert found.evidence == (f"encryptionroot {name}; of rpool/crypt: rpool/crypt",)
    old.source.datasets[name].keys = None  # change-key -i
    assert back(old, DB, here(old, DB)[-2]).done


def test_a_disk_with_a_key_of_its_own_in_a_plain_storage_is_for_a_restore(old: World) -> None:
    restored(old, new=301, storages={"crypt": "local-zfs"})
    found = refused(old, 301)
    assert found.kind == "own-key"
    assert "--replace 301` makes the guest anew" in found.resolve
    assert found.evidence == ("encryptionroot rpool/data/vm-301-disk-0; of rpool/data: not encrypted",)


def two_points(place: Path, clock: Clock) -> World:
    place.mkdir()
    world = World(place, clock=clock)
    for vmid, name in ((CT, "rpool/data/subvol-200-disk-0"), (DB, "rpool/crypt/vm-101-disk-0")):
        world.node.remove(vmid)
        world.source.drop(name)
    for _ in range(2):
        world.run()
        world.write()
    world.runner.revive()
    return world


def twin(world: World, place: Path) -> World:
    made = world.copy(place)
    made.guest(WEB).running = False
    return made


def snapshots(pools: Pools) -> set[tuple[int, tuple[str, ...]]]:
    return {(snap.guid, snap.content) for ds in pools.datasets.values() for snap in ds.snaps.values()}


@pytest.mark.parametrize("again", [False, True])
def test_killed_at_every_command_and_repeated_it_converges(tmp_path: Path, world: World, again: bool) -> None:
    """And whenever the guest may start, its disks are all as before or all of the point. `again`: they were rolled back
    to it before."""
    first = two_points(tmp_path / "first", world.clock)
    points = first.complete(HERE, WEB)
    if again:
        first.guest(WEB).running = False
        back(first, WEB, points[0])
        first.write()
        first.runner.revive()
    heads = {name: first.source.datasets[name].content for name in WEB_DISKS}
    goal = {name: next(iter(first.source.datasets[name].snaps.values())).content for name in WEB_DISKS}
    whole = twin(first, tmp_path / "whole")
    back(whole, WEB, points[0])
    count = len(whole.runner.counted)
    assert count > 40
    for at in range(1, count + 1):
        broken = twin(first, tmp_path / str(at))
        kept = snapshots(broken.source) | snapshots(broken.target)
        broken.runner.kill_at = at
        with pytest.raises(Killed):
            back(broken, WEB, points[0])
        broken.runner.revive()
        if "lock:" not in (broken.node.etc / "qemu-server/100.conf").read_text():
            now = {name: broken.source.datasets[name].content for name in WEB_DISKS}
            assert now in (heads, goal), f"mixed after command {at}"
        back(broken, WEB, points[0])
        assert {name: broken.source.datasets[name].content for name in WEB_DISKS} == goal
        assert kept <= snapshots(broken.source) | snapshots(broken.target), "a snapshot was lost"
        texts = [ds.content for ds in broken.source.datasets.values()]
        assert all(head in texts for head in heads.values()), "what was there is gone"
        assert not [name for name in broken.source.datasets if "pzb-restore/" in name]
        assert "lock:" not in (broken.node.etc / "qemu-server/100.conf").read_text()
        report = broken.run(Stage.SNAPSHOT, Stage.REPLICATE)
        assert broken.results(report, Outcome.FAILED) == []
