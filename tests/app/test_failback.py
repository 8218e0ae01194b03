"""`failback` in memory: what travels, what is put aside, that the role changes hands last, and that it converges."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import pytest

from pve_zfsbackup.app.failback import Given, failback
from pve_zfsbackup.app.failback_way import prepare, source_host
from pve_zfsbackup.app.restore import restoring_alone
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.cli import roles
from pve_zfsbackup.errors import BackupError, ExitCode, RoleError, VerificationError
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.plan.failback import Failback
from pve_zfsbackup.plan.failover import HOLD
from pve_zfsbackup.plan.takeover import FAILOVER
from pve_zfsbackup.report.failover import failback_json, failback_lines
from tests.app.test_failover import CRYPT, FASTDISK, ROOTDISK, copy_of, take
from tests.fakes.pools import Keys
from tests.fakes.runner import HERE, Fault, Killed, Ran
from tests.fakes.second import FIRST, Second
from tests.fakes.world import DB, TARGET, WEB, World

HOME, FASTHOME = "rpool/data/vm-100-disk-0", "fast/vm-100-disk-0"


def give(second: Second, vmid: int = WEB, *, start: bool = False) -> Given:
    with second.session() as session, restoring_alone(session), source_host(session) as host:
        way = prepare(session, host, Vmid(vmid))
        assert way.plan.conflicts == (), way.plan.conflicts
        return failback(way, start=start)


def away(second: Second, vmid: int = WEB) -> None:
    """Taken over, and written to on both sides since: here by the guest, there before the power went."""
    take(second, vmid)
    second.first.guest(vmid).running = False
    for name in ("tank/data/vm-100-disk-0", "ssd/vm-100-disk-0"):
        if vmid == WEB:
            second.pools.write(name)


@pytest.fixture
def second(world: World) -> Second:
    for _ in range(2):
        world.write()
        world.run()
    world.write()
    made = Second(world)
    made.pools.datasets[CRYPT].key = True
    return made


def here(second: Second, name: str) -> tuple[str, ...]:
    return second.pools.datasets[name].content


def test_what_was_written_here_is_there_and_what_was_written_there_is_kept(second: Second) -> None:
    away(second)
    world = second.first
    lost = {name: world.source.datasets[name].content for name in (HOME, FASTHOME)}
    done = give(second)
    for name, mine in ((HOME, "tank/data/vm-100-disk-0"), (FASTHOME, "ssd/vm-100-disk-0")):
        assert world.source.datasets[name].content == here(second, mine)
        (aside,) = [ds for ds in world.source.datasets.values() if "pzb-aside/100/" in ds.name and
                    ds.name.startswith(name.rpartition("/")[0])]  # fmt: skip
        assert aside.content == lost[name]
        assert aside.props["pve-zfsbackup:aside"].startswith(f"{aside.guid},")
        assert aside.props["pve-zfsbackup:aside"].endswith(",failback")
    assert done.moved < done.full / 2
    assert not second.node.guests[WEB].running
    assert second.node.options[WEB] == {"onboot": "0"}
    assert not any("pzb-restore" in name for name in world.source.datasets)
    assert not any(label.startswith("pzb-failback") for pools in (world.source, second.pools)
                   for ds in pools.datasets.values() for label in ds.snaps)  # fmt: skip
    assert world.node.rescanned == [str(WEB)]
    assert "went home" in "\n".join(failback_lines(done))
    assert failback_json(done)["done"] is True


def test_what_is_set_on_a_disk_at_home_stays_so(second: Second) -> None:
    """What takes its name is a clone of the common snapshot, and has nothing of its own."""
    world = second.first
    world.source.datasets[HOME].props |= {"sync": "always", "logbias": "throughput"}
    away(second)
    give(second)
    made = world.source.datasets[HOME].props
    assert (made["sync"], made["logbias"]) == ("always", "throughput")
    assert "sync" not in world.source.datasets[FASTHOME].props


def test_the_role_is_handed_back_and_replication_goes_on_from_the_same_base(second: Second) -> None:
    away(second)
    give(second, start=True)
    world = second.first
    assert world.guest(WEB).running
    assert all(FAILOVER not in world.target.datasets[name].props for name in (ROOTDISK, FASTDISK))
    assert not any(HOLD in snap.holds for ds in second.pools.datasets.values() for snap in ds.snaps.values())
    world.write()
    world.runner.ran.clear()
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert not world.results(report, Outcome.FAILED), world.results(report, Outcome.FAILED)
    sends = [argv for argv in world.runner.zfs(HERE, "send") if "-100-" in argv[-1] and "-nvP" not in argv]
    assert sends
    assert all({"-i", "-I"} & set(argv) for argv in sends), sends
    assert world.complete(TARGET, WEB)[-1] == world.complete(HERE, WEB)[-1]


def test_where_it_does_not_start_the_same_command_tries_again(second: Second) -> None:
    away(second)
    second.runner.faults = [Fault(words=("qm", "start", str(WEB)), answer=(255, "no memory")) for _ in range(2)]
    for tries in range(2):
        done = give(second, start=True)
        assert (done.done, done.started) == (True, False), tries
        assert done.error.startswith("does not start on pve1.example: ")
        assert "no memory" in done.error
        assert "the same command tries again" in "\n".join(failback_lines(done))
        assert failback_json(done)["error"] == done.error
        assert not marked(second, WEB), "it is at home all the same"
    assert {name.partition("@")[0] for name in traces(second)} == set(MINE[WEB].values()), "on the copy alone"
    assert give(second, start=True).started
    assert second.first.guest(WEB).running
    assert traces(second) == []


def test_a_guest_that_does_not_start_is_a_failure_in_part(
    second: Second, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away(second)
    second.runner.faults = [Fault(words=("qm", "start", str(WEB)), answer=(255, "no memory"))]
    monkeypatch.setattr(roles, "session_of", lambda path, emit: second.session())
    given = {"vmid": WEB, "root": "", "source": "", "start": True, "dry_run": False, "config_path": second.config}
    call = functools.partial(roles.failback_command.callback, **given, as_json=False, verbose=False)
    assert call() == ExitCode.PARTIAL
    assert "guest 100 does not start on pve1.example: " in capsys.readouterr().out
    assert call() == ExitCode.OK


def test_repeated_where_it_was_started_by_hand_it_only_cleans_up(second: Second) -> None:
    away(second)
    second.runner.faults = [Fault(words=("qm", "start", str(WEB)), again=True, answer=(255, "no memory"))]
    assert give(second, start=True).error
    second.first.guest(WEB).running = True
    done = give(second, start=True)
    assert (done.started, done.error) == (True, "")
    assert traces(second) == []


def test_most_travels_while_the_guest_runs_and_the_rest_after_it_stopped(second: Second) -> None:
    away(second)
    running: list[bool] = []
    second.runner.watchers.append(
        lambda ran: running.append(second.node.guests[WEB].running) if ran.argv[:2] == ("zfs", "send") else None
    )
    give(second)
    assert running == [True, True, False, False]


def test_an_encrypted_disk_goes_home_whole_beside_the_old_one(second: Second) -> None:
    key = Keys(keyformat="raw", secret=b"x" * 32)
    second.pools.datasets[CRYPT].keys = key
    away(second, DB)
    second.pools.write("tank/data/vm-101-disk-0")
    done = give(second, DB)
    disk = second.first.source.datasets["rpool/crypt/vm-101-disk-0"]
    assert disk.content == here(second, "tank/data/vm-101-disk-0")
    sends = [argv for argv in second.runner.zfs(HERE, "send") if "vm-101" in argv[-1]]
    assert "-i" not in sends[0]
    assert all("-w" in argv for argv in sends)
    assert any("pzb-aside/101" in note for note in done.notes)


@pytest.mark.parametrize(
    ("wreck", "match"),
    [
        (lambda s: setattr(s.first.guest(WEB), "running", True), "runs on pve1.example as well"),
        (lambda s: s.first.node.remove(WEB), "does not have it"),
        (lambda s: s.pools.datasets[ROOTDISK].props.update({FAILOVER: "x"}), "not this node's"),
        (lambda s: s.node.remove(WEB), "is not here"),
    ],
)
def test_refused_before_anything_is_touched(second: Second, wreck: Callable[[Second], None], match: str) -> None:
    away(second)
    wreck(second)
    if match == "not this node's":
        second.pools.datasets[FASTDISK].props.pop(FAILOVER)
    second.runner.ran.clear()
    with pytest.raises(RoleError, match=match):
        give(second)
    assert not second.runner.changes


def test_a_guest_nobody_took_over_and_a_disk_without_a_common_snapshot(second: Second) -> None:
    with pytest.raises(RoleError, match="nobody took it over"):
        give(second)
    away(second)
    for label in list(second.first.source.datasets[HOME].snaps):
        del second.first.source.datasets[HOME].snaps[label]
    with second.session() as session, source_host(session) as host:
        way = prepare(session, host, Vmid(WEB))
    assert [conflict.kind for conflict in way.plan.conflicts] == ["no-common-base"]


def plan_of(second: Second) -> Failback:
    with second.session() as session, source_host(session) as host:
        return prepare(session, host, Vmid(WEB)).plan


def reconfigure(second: Second, change: Callable[[str], str]) -> None:
    path = second.node.etc / f"qemu-server/{WEB}.conf"
    path.write_text(change(path.read_text()))


def test_a_disk_that_was_added_here_is_no_less_than_a_reason_to_ask(second: Second) -> None:
    away(second)
    second.pools.add("tank/data/vm-100-disk-7", zvol=True)
    reconfigure(second, lambda text: text + "scsi2: local-zfs:vm-100-disk-7,size=1G\nide2: none,media=cdrom\n")
    (conflict,) = plan_of(second).conflicts
    assert (conflict.kind, conflict.object) == ("added-disk", "guest 100 scsi2")
    assert "local-zfs:vm-100-disk-7 was not made of the point" in conflict.message
    assert "copy tank/data/vm-100-disk-7 to a storage there" in conflict.resolve
    assert "qm set 100 --delete scsi2" in conflict.resolve
    reconfigure(second, lambda text: text.replace("scsi2:", "unused0:"))
    assert "unused0: local-zfs:vm-100-disk-7 is not attached, and stays here" in plan_of(second).notes
    assert "unused0: local-zfs:vm-100-disk-7 is not attached, and stays here" in give(second).notes


def test_a_disk_that_is_not_seen_here_is_not_left_behind(second: Second) -> None:
    away(second)
    del second.pools.datasets["ssd/vm-100-disk-0"]
    (conflict,) = plan_of(second).conflicts
    assert (conflict.kind, conflict.object) == ("added-disk", "guest 100 scsi1")
    assert "dataset ssd/vm-100-disk-0 does not exist" in conflict.message


def test_what_else_was_changed_here_stays_as_it_is_at_home_and_is_told(second: Second) -> None:
    away(second)
    assert plan_of(second).notes == ()
    reconfigure(second, lambda text: text.replace("cores: 2", "cores: 8").replace("scsi1:", "unused0:") + "cpu: host\n")
    told = give(second).notes
    assert "cores: 8 here, and stays 2 on the source: change it there" in told
    assert "cpu: host here, and stays not set on the source: change it there" in told
    assert not [note for note in told if note.startswith("scsi1: does not come")], "detached, it goes home all the same"


def test_a_disk_that_was_removed_here_stays_attached_at_home_and_is_told(second: Second) -> None:
    away(second)
    reconfigure(second, lambda text: "".join(line for line in text.splitlines(True) if not line.startswith("scsi1")))
    stays = "scsi1: does not come from here: on the source it stays attached as it was (fast:vm-100-disk-0)"
    assert stays in plan_of(second).notes


def test_snapshots_of_proxmox_that_stay_with_the_old_disks_are_named(second: Second) -> None:
    world = second.first
    base = world.source.datasets[HOME].newest
    assert base
    for name in ("mine", "before-upgrade"):
        for disk in (HOME, FASTHOME):
            world.source.snap(f"{disk}@{name}")
    world.source.datasets[HOME].snaps["old"] = dataclasses.replace(base, name="old", createtxg=1, guid=1)
    world.node.snapshots[WEB] = [{"name": "old", "snaptime": 1}, {"name": "before-upgrade", "snaptime": 2}]
    away(second)
    told = (
        "Proxmox's snapshot before-upgrade on the source goes aside with the old disks: the guest cannot be rolled "
        "back to it any more, and it goes by qm delsnapshot 100 before-upgrade --force"
    )
    assert plan_of(second).notes == (told,), "`old` comes along, `mine` is none of Proxmox's"
    assert told in give(second).notes
    assert "old" in world.source.datasets[HOME].snaps


def test_of_an_encrypted_disk_all_of_proxmoxs_snapshots_stay_behind(second: Second) -> None:
    second.first.node.snapshots[DB] = [{"name": "old", "snaptime": 1}]
    disk = second.first.source.datasets["rpool/crypt/vm-101-disk-0"]
    assert disk.newest
    disk.snaps["old"] = dataclasses.replace(disk.newest, name="old", createtxg=1, guid=1)
    second.pools.datasets[CRYPT].keys = Keys(keyformat="raw", secret=b"x" * 32)
    away(second, DB)
    with second.session() as session, source_host(session) as host:
        (note,) = prepare(session, host, Vmid(DB)).plan.notes
    assert note.startswith("Proxmox's snapshot old on the source goes aside")


def test_a_guest_that_does_not_shut_down_stays_here_and_the_role_with_it(second: Second) -> None:
    away(second)
    second.node.guests[WEB].agent = "deaf"
    with pytest.raises(BackupError, match="does not shut down"):
        give(second)
    assert second.node.guests[WEB].running
    assert FAILOVER in second.pools.datasets[ROOTDISK].props
    assert second.first.source.datasets[HOME].content != here(second, "tank/data/vm-100-disk-0")


def at_home(second: Second) -> dict[str, bool]:
    """Which disks on the source have what was written here."""
    return {
        name: second.first.source.datasets[name].content == here(second, mine)
        for name, mine in ((HOME, "tank/data/vm-100-disk-0"), (FASTHOME, "ssd/vm-100-disk-0"))
    }


@pytest.mark.parametrize("exchanged", [0, 1])
def test_started_at_home_meanwhile_no_disk_is_taken_from_under_it(second: Second, exchanged: int) -> None:
    """It booted with `onboot`, or somebody pressed Start, hours after the first look."""
    away(second)
    node = second.first.guest(WEB)
    words = ("zfs", "rename") if exchanged else ("zfs", "send")
    second.runner.watchers.append(lambda ran: setattr(node, "running", True) if ran.argv[:2] == words else None)
    with pytest.raises(RoleError, match=r"runs on pve1.example as well \(status: running\)"):
        give(second)
    assert sum(at_home(second).values()) == exchanged
    assert FAILOVER in second.pools.datasets[ROOTDISK].props, "the role stays here"
    second.runner.watchers.clear()
    node.running = False
    give(second)
    assert all(at_home(second).values())


@pytest.mark.parametrize("moment", ["before the exchange", "before the role"])
def test_started_here_meanwhile_neither_disk_nor_role_goes_home_without_what_it_writes(
    second: Second, moment: str
) -> None:
    away(second)
    words = ("qm", "disk") if moment == "before the role" else ("zfs", "send")
    state = second.node.guests[WEB]

    def start(ran: Ran) -> None:
        state.running |= ran.argv[:2] == words

    second.runner.watchers.append(start)
    with pytest.raises(BackupError, match="guest 100: runs, and stays here"):
        give(second)
    assert all(at_home(second).values()) is (moment == "before the role")
    assert FAILOVER in second.pools.datasets[ROOTDISK].props
    second.runner.watchers.clear()
    if moment == "before the exchange":
        second.pools.write("tank/data/vm-100-disk-0")
    give(second)
    assert all(at_home(second).values())
    assert not marked(second, WEB)


def test_written_to_after_a_disk_went_home_is_not_overlooked(second: Second) -> None:
    away(second)
    second.runner.faults = [Fault(words=("rename", f"{FASTHOME}"), answer=(1, "dataset is busy"))]
    with pytest.raises(BackupError):
        give(second)
    done = [name for name, mine in ((HOME, "tank/data/vm-100-disk-0"), (FASTHOME, "ssd/vm-100-disk-0"))
            if second.first.source.datasets[name].content == here(second, mine)]  # fmt: skip
    assert done
    second.runner.faults.clear()
    for mine in ("tank/data/vm-100-disk-0", "ssd/vm-100-disk-0"):
        second.pools.write(mine)
    with pytest.raises(VerificationError, match="written to after it had gone home"):
        give(second)


@pytest.mark.parametrize("cut", [1, 20_000])
@pytest.mark.parametrize("key", ["scsi0", "scsi1"])
def test_cut_in_its_first_stream_a_disk_still_comes_as_what_changed(second: Second, key: str, cut: int) -> None:
    away(second)
    pool = {"scsi0": "rpool/data", "scsi1": "fast"}[key]
    second.runner.faults = [Fault(words=("receive", f"{pool}/pzb-restore/100-failback/{key}"), cut=cut)]
    with pytest.raises(BackupError):
        give(second)
    assert second.runner.faults[0].seen
    second.runner.faults.clear()
    second.runner.ran.clear()
    give(second)
    sends = [argv for argv in second.runner.zfs(HERE, "send") if "-nvP" not in argv]
    assert all("-i" in argv for argv in sends), sends
    world = second.first
    for name, mine in MINE[WEB].items():
        assert world.source.datasets[name].content == here(second, mine)
    world.write()
    world.runner.ran.clear()
    assert not world.results(world.run(Stage.SNAPSHOT, Stage.REPLICATE), Outcome.FAILED)
    sends = [argv for argv in world.runner.zfs(HERE, "send") if "-100-" in argv[-1] and "-nvP" not in argv]
    assert all({"-i", "-I"} & set(argv) for argv in sends), "the base came along"


MINE = {
    WEB: {HOME: "tank/data/vm-100-disk-0", FASTHOME: "ssd/vm-100-disk-0"},
    DB: {"rpool/crypt/vm-101-disk-0": "tank/data/vm-101-disk-0"},
}


@pytest.mark.parametrize("vmid", [WEB, DB])
def test_killed_anywhere_and_repeated_it_converges_and_no_old_disk_is_lost(second: Second, vmid: int) -> None:
    one_key(second)
    away(second, vmid)
    lost = {name: second.first.source.datasets[name].content for name in MINE[vmid]}
    for at in range(1, 400, 3):
        twin = taken_copy(second, vmid)
        twin.runner.kill_at, twin.runner.kill_when = at, ("before", "after")[at // 3 % 2]
        try:
            give(twin, vmid)
        except Killed:
            twin.runner.revive()
        else:
            assert at > 30
            return
        contents = [ds.content for ds in twin.first.source.datasets.values()]
        assert all(content in contents for content in lost.values()), at
        if traces(twin) or marked(twin, vmid):
            give(twin, vmid)
        assert traces(twin) == []
        assert not marked(twin, vmid)
        assert twin.node.options[vmid] == {"onboot": "0"}, at
        for name, mine in MINE[vmid].items():
            assert twin.first.source.datasets[name].content == here(twin, mine), at
            assert twin.first.source.datasets[name].keys is None, "that of its storage"
        contents = [ds.content for ds in twin.first.source.datasets.values()]
        assert all(content in contents for content in lost.values()), at


def one_key(second: Second) -> None:
    """The storage and the replica, which was sent raw, have the same; there it lies in a file."""
    key, file = Keys(keyformat="raw", secret=b"x" * 32), "/root/crypt.key"
    second.pools.datasets[CRYPT].keys = key
    storage = second.first.source.datasets["rpool/crypt"]
    storage.keys, storage.keylocation = key, f"file://{file}"
    second.first.source.key_files = {file: key.secret}


def traces(second: Second) -> list[str]:
    """What a failback makes only for itself, on both sides."""
    pools = (second.pools, second.first.source)
    snaps = [(f"{ds.name}@{label}", snap) for all_ in pools for ds in all_.datasets.values()
             for label, snap in ds.snaps.items()]  # fmt: skip
    return [name for name, snap in snaps if "@pzb-failback" in name or HOLD in snap.holds]


def marked(second: Second, vmid: int) -> bool:
    names = (ROOTDISK, FASTDISK) if vmid == WEB else (CRYPT,)
    return any(FAILOVER in second.pools.datasets[name].props for name in names)


def taken_copy(second: Second, vmid: int = WEB) -> Second:
    """A parallel world in which the guest is away as well."""
    made = copy_of(second, fresh=False)
    made.first.guest(vmid).running = False
    made.node.guests[vmid].running = True
    assert made.runner.pools[FIRST] is made.first.source
    return made
