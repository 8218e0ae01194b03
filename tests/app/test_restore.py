"""`restore` in a cluster in memory: what is made, what is left alone, and that any interruption converges."""

from __future__ import annotations

import errno
import os
import random
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pve_zfsbackup.app.gather import inventory
from pve_zfsbackup.app.restore import (
    Prepared,
    Request,
    Restored,
    _save,
    carry_out,
    prepare,
    restoring_alone,
    tell_elsewhere,
)
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.errors import BackupError, ConfigError, ExitCode, GuestBusyError, PveError
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.proof import VERIFIED
from pve_zfsbackup.plan.points import points_of
from pve_zfsbackup.report.restore import restore_json, restore_lines
from tests.fakes.pools import Clock, Keys, Pools
from tests.fakes.runner import HERE, Fault, Killed, Ran
from tests.fakes.world import CT, DB, TARGET, WEB, World

WEB_DISKS = ("rpool/data/vm-100-disk-0", "fast/vm-100-disk-0")


def prepared(world: World, vmid: int, **options: Any) -> Prepared:
    with world.session() as session:
        return prepare(session, Request(vmid=Vmid(vmid), **options))


def restore(world: World, vmid: int, *, start: bool = False, **options: Any) -> Restored:
    with world.session() as session, restoring_alone(session):
        found = prepare(session, Request(vmid=Vmid(vmid), **options))
        assert found.plan.conflicts == ()
        return carry_out(session, found, start=start)


def conflict(world: World, vmid: int, **options: Any) -> str:
    (found,) = prepared(world, vmid, **options).plan.conflicts
    return found.kind


def config(world: World, vmid: int) -> dict[str, str]:
    text = next(world.node.etc.glob(f"*/{vmid}.conf")).read_text()
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def dataset_of(world: World, line: str) -> str:
    """The dataset a drive's line names."""
    storage, volume = line.partition(",")[0].split(":")
    pools = {str(entry["storage"]): str(entry.get("pool")) for entry in world.node.storages}
    return f"{pools[storage]}/{volume}"


def content(world: World, vmid: int, key: str) -> tuple[str, ...]:
    return world.source.datasets[dataset_of(world, config(world, vmid)[key])].content


def here(world: World, vmid: int) -> list[str]:
    """The complete points of a guest on the node, as every command sees them."""
    with world.session() as session:
        found = points_of(inventory(session).listing, Vmid(vmid))
    return [point.id for point in found if point.complete]


def lost(world: World, vmid: int) -> None:
    """The guest is gone from the node, disks and all."""
    for name in [name for name in world.source.datasets if f"-{vmid}-disk" in name]:
        world.source.drop(name)
    world.node.remove(vmid)


def no_work_left(world: World) -> None:
    assert [name for name in world.source.datasets if "pzb-restore" in name] == []


@pytest.fixture
def old(world: World) -> World:
    """Three points of every guest on both sides, and something written since."""
    for _ in range(3):
        world.run()
        world.write()
    world.runner.revive()
    return world


def test_a_lost_guest_is_made_anew_from_the_target(old: World) -> None:
    before = {name: old.source.datasets[name].snaps for name in WEB_DISKS}
    was = config(old, WEB)
    lost(old, WEB)
    done = restore(old, WEB, start=True)
    assert done.plan.origin.host == TARGET
    assert config(old, WEB) == was, "nothing of it changes, as nothing else has its addresses"
    for key, name in (("scsi0", WEB_DISKS[0]), ("scsi1", WEB_DISKS[1])):
        newest = max(before[name].values(), key=lambda snap: snap.createtxg)
        made = old.source.datasets[dataset_of(old, config(old, WEB)[key])]
        assert made.content == newest.content
        assert [snap.guid for snap in made.snaps.values()] == [newest.guid]
    assert old.guest(WEB).running
    assert old.node.rescanned == [str(WEB)]
    no_work_left(old)


def test_one_that_does_not_start_is_restored_all_the_same(old: World) -> None:
    lost(old, WEB)
    old.runner.faults = [Fault(words=("qm", "start", str(WEB)), answer=(255, "no memory"))]
    done = restore(old, WEB, start=True)
    assert done.done
    assert "no memory" in done.error
    assert any("guest 100 is restored, and does not start: " in line for line in restore_lines(done))
    assert restore_json(done)["error"] == done.error
    no_work_left(old)


def test_a_disk_is_laid_beside_a_guest_that_runs_which_is_no_trouble(old: World) -> None:
    done = restore(old, WEB, start=True, disks=frozenset({"scsi1"}))
    assert (done.done, done.error) == (True, "")
    assert ("qm", "start", str(WEB)) not in [ran.argv for ran in old.runner.ran]


def test_without_quorum_nothing_is_received_in_vain(old: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is written last, and could not be: /etc/pve shows no write bit then (pve-facts §h)."""
    lost(old, WEB)
    local, lstat = old.node.etc / "local", os.lstat

    def shown(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        found = lstat(path, *rest, **more)
        if str(path) != str(local):
            return found
        return os.stat_result((found.st_mode & ~0o222, *found[1:]))

    before = set(old.source.datasets)
    with monkeypatch.context() as patched:
        patched.setattr(os, "lstat", shown)
        with pytest.raises(PveError, match="quorum"):
            restore(old, WEB)
    assert set(old.source.datasets) == before
    restore(old, WEB)


def test_after_that_replication_goes_on_by_an_increment(old: World) -> None:
    lost(old, WEB)
    point = restore(old, WEB).plan.origin.point.id
    assert old.complete(HERE, WEB) == [point], "the point that was restored is one here again"
    for name in WEB_DISKS:
        old.source.write(name)
    old.runner.revive()
    report = old.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert report.exit_code is ExitCode.OK
    sends = [argv for argv in old.runner.zfs(HERE, "send") if "-100-" in argv[-1] and "-nvP" not in argv]
    assert len(sends) == 2
    assert all("-i" in argv or "-I" in argv for argv in sends)
    assert not [name for name in old.target.datasets if "vm-100" in name and "-g" in name], "no new generation"
    assert old.complete(TARGET, WEB)[-1] == old.complete(HERE, WEB)[-1]


def test_an_older_point_goes_on_in_a_new_generation_and_nothing_is_lost(old: World) -> None:
    points = old.complete(TARGET, WEB)
    lost(old, WEB)
    restore(old, WEB, at=points[0])
    for name in WEB_DISKS:
        old.source.write(name)
    asked = []
    for _ in range(2):
        old.runner.ran.clear()
        report = old.run(Stage.SNAPSHOT, Stage.REPLICATE)
        assert old.results(report, Outcome.FAILED) == []
        asked.append(any(ran.argv[:2] == ("zpool", "get") for ran in old.runner.ran))
    assert asked == [True, False], "pools are asked for their features before the full streams"
    assert set(points) <= set(old.complete(TARGET, WEB)), "what is newer than the restored point stays there"
    assert old.complete(TARGET, WEB)[-1] == old.complete(HERE, WEB)[-1]
    assert len([name for name in old.target.datasets if "vm-100" in name and "-g" in name]) == 2
    assert old.run().exit_code is ExitCode.OK


def test_a_copy_beside_its_original_has_addresses_of_its_own(old: World) -> None:
    text = "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nonboot: 1\nvmgenid: 0d3c0f9e-1111-4222-8333-444455556666\n"
    smbios = "smbios1: uuid=0d3c0f9e-aaaa-4222-8333-444455556666\nlock: backup\nunused0: local-zfs:vm-100-disk-9\n"
    path = old.node.etc / "qemu-server/100.conf"
    path.write_text(path.read_text() + text + smbios.replace("lock: backup\n", ""))
    old.run(Stage.SNAPSHOT)
    done = restore(old, WEB, new=300)
    assert done.plan.origin.host == "source"
    made, was = config(old, 300), config(old, WEB)
    assert re.fullmatch(r"virtio=BC:24:11(:[0-9A-F]{2}){3},bridge=vmbr0", made["net0"])
    assert made["net0"] != was["net0"]
    assert made["vmgenid"] != was["vmgenid"]
    assert made["smbios1"] != was["smbios1"]
    assert made["scsi0"] == "local-zfs:vm-300-disk-0,size=1G"
    assert made["scsi1"] == "fast:vm-300-disk-0,size=1G"
    assert "onboot" not in made
    assert "unused0" not in made
    assert was["onboot"] == "1", "the original is left alone"
    for key in ("scsi0", "scsi1"):
        copy = old.source.datasets[dataset_of(old, made[key])]
        assert copy.content == content(old, WEB, key)
        assert copy.origin == "", "not a clone: either guest can be removed"
        assert copy.snaps == {}, "the original's snapshot is no point of the copy, and nobody would prune it"
    report = old.run()
    assert report.exit_code is ExitCode.OK, "the copy is a guest like any other"
    assert old.complete(TARGET, 300)


def firewalled(world: World, vmid: int, text: str = "[OPTIONS]\nenable: 1\n") -> Path:
    """The guest gets a firewall file, and a point that carries it."""
    path = world.node.etc / f"firewall/{vmid}.fw"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    world.run(guests=[str(vmid)])
    return path


def test_its_firewall_file_comes_back(old: World) -> None:
    path = firewalled(old, WEB)
    lost(old, WEB)
    path.unlink()
    assert restore(old, WEB).notes == ()
    assert path.read_text() == "[OPTIONS]\nenable: 1\n"
    restore(old, WEB, new=300)
    assert (path.parent / "300.fw").read_text() == "[OPTIONS]\nenable: 1\n", "a copy is as open as its original"


def test_a_replaced_guests_firewall_file_is_kept_aside(old: World) -> None:
    path = firewalled(old, WEB)
    path.write_text("[RULES]\n")
    old.guest(WEB).running = False
    done = restore(old, WEB, replace=WEB)
    assert path.read_text() == "[OPTIONS]\nenable: 1\n"
    (aside,) = [Path(name) for name in done.saved if name.endswith(".fw")]
    assert aside.read_text() == "[RULES]\n"


@pytest.mark.parametrize("carried", [True, False])
def test_a_firewall_file_that_no_guest_has_is_kept_and_not_handed_on(old: World, carried: bool) -> None:
    """Nobody removed it with its guest. Whose it was is not known; what it lets in is not what the point lets in."""
    folder = old.node.etc / "firewall"
    folder.mkdir(exist_ok=True)
    if carried:
        firewalled(old, WEB)
    stale = folder / "300.fw"
    stale.write_text("[RULES]\nIN ACCEPT\n")
    done = restore(old, WEB, new=300)
    (kept,) = done.saved
    assert Path(kept).read_text() == "[RULES]\nIN ACCEPT\n"
    assert f"{stale} was there although there was no guest 300; it is not the new guest's: kept as {kept}" in done.notes
    assert stale.exists() is carried
    if carried:
        assert stale.read_text() == "[OPTIONS]\nenable: 1\n"


def test_what_may_be_the_guests_own_firewall_file_stays(old: World) -> None:
    """The point had no room for it, or it is the very same."""
    for text in ("[OPTIONS]\nenable: 1\n", random.Random(1).randbytes(60_000).hex()):
        path = firewalled(old, WEB, text)
        lost(old, WEB)
        done = restore(old, WEB, where=TARGET)
        assert path.read_text() == text
        assert done.saved == ()
        assert not [note for note in done.notes if "not the new guest's" in note]


def test_a_firewall_file_the_point_had_no_room_for_is_told(old: World) -> None:
    path = firewalled(old, WEB, random.Random(1).randbytes(60_000).hex())
    lost(old, WEB)
    path.unlink()
    assert restore(old, WEB).notes == (
        "the point has no firewall file of the guest, which was too large for it: put it back by hand",
    )
    assert not path.exists()


def test_under_another_number_it_is_a_copy_also_where_the_original_is_not_known(old: World) -> None:
    """A node at a second site, and one that lost its guests: the original may run on at home, with these addresses."""
    path = old.node.etc / "qemu-server/100.conf"
    path.write_text(path.read_text() + "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nonboot: 1\n")
    old.run()
    lost(old, WEB)
    done = restore(old, WEB, new=300)
    made = config(old, 300)
    assert done.plan.copy
    assert made["net0"] != "virtio=BC:24:11:00:00:01,bridge=vmbr0"
    assert "onboot" not in made
    assert all(old.source.datasets[dataset_of(old, made[key])].snaps == {} for key in ("scsi0", "scsi1"))
    assert here(old, WEB) == [], "no point of a guest that is not here"


def test_that_the_last_drill_of_the_point_failed_is_said_first(old: World) -> None:
    assert not [line for line in restore_lines(Restored(plan=prepared(old, WEB, new=300).plan)) if "DRILL" in line]
    for name in WEB_DISKS:
        newest = old.source.datasets[name].newest
        assert newest
        newest.props[VERIFIED] = "failed 20261118T110640Z"
    shown = Restored(plan=prepared(old, WEB, new=300).plan)
    told = restore_lines(shown)
    assert told[1].startswith("ITS LAST DRILL FAILED (2026-11-18 11:06:40Z): `pve-zfsbackup list 100` shows others")
    assert restore_json(shown)["verified"] == {"level": "failed", "at": 1795000000}


def test_it_is_put_into_its_pool_and_proxmox_looks_at_its_disks(old: World) -> None:
    old.node.members[CT] = "production"
    old.run(guests=["200"])
    restore(old, CT, new=300)
    assert old.node.pools == [("production", "300")]
    assert old.node.rescanned == ["300"]
    assert ("pct", "rescan", "--vmid", "300") in [ran.argv for ran in old.runner.ran]


def test_a_guest_that_exists_is_not_overwritten(old: World) -> None:
    before = {name: ds.guid for name, ds in old.source.datasets.items()}
    old.guest(WEB).running = False
    assert conflict(old, WEB) == "guest-exists"
    assert conflict(old, WEB, new=DB) == "guest-exists"
    old.guest(WEB).running = True
    assert conflict(old, WEB, replace=WEB) == "running"
    old.guest(WEB).running = False
    path = old.node.etc / "qemu-server/100.conf"
    path.write_text("lock: migrate\n" + path.read_text())
    assert conflict(old, WEB, replace=WEB) == "locked"
    with pytest.raises(ConfigError, match="two different guests"):
        prepared(old, WEB, replace=WEB, new=300)
    assert {name: ds.guid for name, ds in old.source.datasets.items()} == before


def test_replaced_by_name_its_old_disks_are_kept_aside(old: World) -> None:
    points = old.complete(HERE, WEB)
    was = {name: old.source.datasets[name] for name in WEB_DISKS}
    written = {name: ds.content for name, ds in was.items()}
    text = (old.node.etc / "qemu-server/100.conf").read_text()
    old.guest(WEB).running = False
    done = restore(old, WEB, replace=WEB, at=points[0], where="source")
    assert [old_.dataset for old_ in done.plan.aside] == sorted(WEB_DISKS)
    for old_ in done.plan.aside:
        aside = old.source.datasets[old_.to]
        assert aside is was[old_.dataset]
        assert aside.content == written[old_.dataset]
        assert len(aside.snaps) == 3
    made = config(old, WEB)
    assert made["scsi0"] == "local-zfs:vm-100-disk-1,size=1G", "no name is used twice: one step makes the switch"
    assert Path(done.saved[0]).read_text() == text
    assert here(old, WEB) == [points[0]], "what was put aside counts no more"
    again = prepared(old, WEB, new=300, at=points[2], where="source")
    assert "pzb-aside" in again.plan.disks[0].snapshot.dataset, "what was put aside can be restored from"
    for _ in range(2):
        report = old.run()
        assert old.results(report, Outcome.FAILED) == []
    assert old.complete(TARGET, WEB)[-1] == old.complete(HERE, WEB)[-1]
    no_work_left(old)


def test_a_configuration_that_is_kept_is_never_written_over(old: World) -> None:
    """Restored twice from the same point, only the first file has what the guest was like before all this."""
    path = old.node.etc / "qemu-server/100.conf"
    old.guest(WEB).running = False
    point = old.complete(HERE, WEB)[0]
    texts = []
    kept = []
    for number in range(3):
        texts.append(f"#written by hand {number}\n{path.read_text()}")
        path.write_text(texts[-1])
        kept += restore(old, WEB, replace=WEB, at=point).saved
    assert [Path(name).read_text() for name in kept] == texts
    path.write_text(texts[0])
    with old.session() as session:
        again = prepare(session, Request(vmid=Vmid(WEB), replace=WEB, at=point))
        assert _save(session, again) == (kept[0],), "cut off and repeated, it is kept once"


def test_one_disk_is_exchanged_or_laid_beside(old: World) -> None:
    old.guest(WEB).running = False
    point = old.complete(HERE, WEB)[1]
    beside = restore(old, WEB, disks=frozenset({"scsi1"}), at=point)
    assert config(old, WEB)["scsi1"] == "fast:vm-100-disk-0,size=1G"
    assert [disk.dataset for disk in beside.plan.disks] == ["fast/vm-100-disk-1"]
    assert old.node.rescanned == [str(WEB)], "Proxmox makes it an unused disk"
    exchanged = restore(old, WEB, disks=frozenset({"scsi1"}), at=point, replace=WEB)
    assert config(old, WEB)["scsi1"] == "fast:vm-100-disk-2,size=1G"
    assert config(old, WEB)["scsi0"] == "local-zfs:vm-100-disk-0,size=1G"
    assert [aside.dataset for aside in exchanged.plan.aside] == ["fast/vm-100-disk-0"]
    assert conflict(old, WEB, disks=frozenset({"scsi7"})) == "no-disk"


@pytest.mark.parametrize("of", ["scsi0", "scsi1"])
def test_proxmoxs_snapshots_of_a_guest_stay_or_are_told_before_they_go(old: World, of: str) -> None:
    path = old.node.etc / "qemu-server/100.conf"
    section = f"\n[before-upgrade]\n{of}: {config(old, WEB)[of]}\nsnaptime: 1\n"
    path.write_text(path.read_text() + "parent: before-upgrade\n" + section)
    old.guest(WEB).running = False
    options = {"disks": frozenset({"scsi1"}), "at": old.complete(HERE, WEB)[1], "replace": WEB}
    told = [note for note in prepared(old, WEB, **options).plan.notes if "(before-upgrade)" in note]
    done = restore(old, WEB, **options)
    text = path.read_text()
    assert "scsi1: fast:vm-100-disk-1,size=1G\n" in text.partition("[")[0]
    assert [aside.dataset for aside in done.plan.aside] == ["fast/vm-100-disk-0"]
    if of == "scsi0":
        assert told == []
        assert text.endswith(section)
        assert "parent: before-upgrade\n" in text
        whole = prepared(old, WEB, replace=WEB, where=TARGET).plan
        assert ["(before-upgrade)" in note for note in whole.notes] == [True], "all disks go aside"
    else:
        assert len(told) == 1
        assert "before-upgrade" not in text, "it could be neither rolled back to nor removed"


def test_a_container_gets_back_what_a_stream_does_not_carry(old: World) -> None:
    name = "rpool/data/subvol-200-disk-0"
    wanted = {"acltype": "posix", "xattr": "sa", "refquota": "1073741824", "recordsize": "16384"}
    old.source.datasets[name].props.update(wanted)
    old.run()
    lost(old, CT)
    restore(old, CT, start=True)
    made = old.source.datasets[dataset_of(old, config(old, CT)["rootfs"])]
    assert {key: value for key, value in made.props.items() if key in wanted} == {
        key: value for key, value in wanted.items() if key != "xattr"
    }, "xattr is so by itself here"
    assert old.guest(CT).running


def test_what_somebody_set_on_a_disk_itself_comes_back_and_what_it_inherits_does_not(old: World) -> None:
    """A pool for tests with `sync=disabled` leaves its guests when they are restored elsewhere; a database's disk with
    `sync=always` does not."""
    first, second = (old.source.datasets[name] for name in WEB_DISKS)
    first.props |= {"sync": "always", "logbias": "throughput", "reservation": "1048576", "dedup": "on"}
    old.source.datasets["fast"].props["sync"] = "disabled"
    old.run()
    lost(old, WEB)
    del old.source.datasets["fast"].props["sync"]
    plan = prepared(old, WEB).plan
    line = next(line for line in restore_lines(Restored(plan=plan)) if "scsi0" in line)
    assert "; sync=always; logbias=throughput; reservation=1048576)" in line
    assert restore_json(Restored(plan=plan))["disks"][0]["tuned"]["sync"] == "always"
    assert restore(old, WEB).notes == ()
    made = old.source.datasets[WEB_DISKS[0]].props
    assert {name: made[name] for name in ("sync", "logbias", "reservation")} == {
        "sync": "always", "logbias": "throughput", "reservation": "1048576",
    }  # fmt: skip
    assert "dedup" not in made
    assert not {"sync", "logbias"} & old.source.datasets[second.name].props.keys()


def test_what_does_not_take_here_is_told_and_the_guest_is_made(old: World) -> None:
    old.source.datasets[WEB_DISKS[0]].props |= {"special_small_blocks": "16384", "sync": "always"}
    old.run()
    lost(old, WEB)
    told = "cannot set property for 'x': 'special_small_blocks' does not apply to datasets of this type"
    old.runner.faults.append(Fault(words=("set", "special_small_blocks=16384"), answer=(1, told)))
    (note,) = restore(old, WEB, start=True).notes
    assert note.startswith(f"{WEB_DISKS[0]} does not take what its disk had set, special_small_blocks=16384: ")
    assert old.guest(WEB).running
    assert old.source.datasets[WEB_DISKS[0]].props["sync"] == "always"


def locked(world: World) -> None:
    """The storage `crypt` has a key of its own, in a file."""
    crypt = world.source.datasets["rpool/crypt"]
    crypt.keys, crypt.keylocation = Keys(keyformat="raw", secret=bytes(32)), "file:///root/crypt.key"
    world.source.key_files = {"/root/crypt.key": bytes(32)}


def test_encrypted_disks_travel_raw_and_use_the_storages_key_again(world: World) -> None:
    locked(world)
    world.run()
    lost(world, DB)
    done = restore(world, DB)
    assert done.plan.disks[0].raw
    made = world.source.datasets["rpool/crypt/vm-101-disk-0"]
    assert (made.crypt, made.key, made.keys) == ("aes-256-gcm", True, None)
    assert done.notes == ()
    assert all("-w" in argv for argv in world.runner.zfs(TARGET, "send"))


def test_a_key_that_is_not_in_a_file_is_left_to_a_person(old: World) -> None:
    lost(old, DB)
    done = restore(old, DB)
    (note,) = done.notes
    assert "zfs load-key rpool/crypt/vm-101-disk-0" in note
    assert "zfs change-key -i rpool/crypt/vm-101-disk-0" in note


def test_encrypted_disks_on_another_storage_say_what_key_they_need(old: World) -> None:
    done = restore(old, DB, new=301, storages={"crypt": "local-zfs"})
    assert "its key is not loaded: zfs load-key rpool/data/vm-301-disk-0" in done.notes[0]
    assert old.source.datasets["rpool/data/vm-301-disk-0"].crypt == "aes-256-gcm"


def test_what_stands_in_the_way_is_told_before_anything_is_done(old: World) -> None:
    assert conflict(old, DB, new=300, storages={"crypt": "nowhere"}) == "storage"
    assert conflict(old, DB, new=300, storages={"": "local"}) == "storage"
    assert conflict(old, CT, new=300, storages={"": "fast"}) == "storage", "takes images only"
    old.source.room = 1 << 10
    assert conflict(old, DB, new=300) == "no-room"
    with pytest.raises(ConfigError, match="no point"):
        prepared(old, WEB, at="2001-01-01")
    with pytest.raises(ConfigError, match="no host or box named"):
        prepared(old, WEB, where="moon")
    assert not old.runner.zfs("", "send", "receive", "create", "rename")


def test_at_takes_a_time_or_a_point(old: World) -> None:
    points = old.points(HERE, WEB)
    wanted = points[1]
    later = datetime.fromtimestamp(wanted.creation + 60, UTC)
    berlin = later.astimezone(ZoneInfo("Europe/Berlin")).strftime("%Y-%m-%d %H:%M:%S")  # as the configuration says
    for at in (wanted.id, wanted.stamp, later.isoformat(), berlin):
        assert prepared(old, WEB, new=300, at=at).plan.origin.point.id == wanted.id


def test_the_point_it_reads_for_hours_is_not_pruned_meanwhile(old: World) -> None:
    """It is the oldest that is kept, and the next run would take it away before its second disk was read."""
    oldest = old.complete(HERE, WEB)[0]
    with old.session() as session, restoring_alone(session):
        found = prepare(session, Request(vmid=Vmid(WEB), new=Vmid(300), at=oldest, where="source"))
        for _ in range(2):
            report = old.run()
        assert [result.message for result in old.results(report, Outcome.SKIPPED) if "restore" in result.message]
        carry_out(session, found)
    assert list(old.node.etc.glob("*/300.conf"))
    old.run()
    assert oldest not in old.complete(HERE, WEB)


def test_what_was_made_while_a_clock_was_wrong_is_not_the_newest_for_years(old: World) -> None:
    old.clock.now += 10 * 365 * 86_400
    old.run(Stage.SNAPSHOT, Stage.REPLICATE)
    ahead = old.complete(TARGET, WEB)[-1]
    old.clock.now -= 10 * 365 * 86_400
    for _ in range(2):
        old.write()
        old.run(Stage.SNAPSHOT, Stage.REPLICATE)
    newest = old.complete(TARGET, WEB)[-2]
    assert newest != ahead
    for where in ("source", TARGET):
        assert prepared(old, WEB, new=300, where=where).plan.origin.point.id == newest
        assert prepared(old, WEB, new=300, where=where, at=ahead).plan.origin.point.id == ahead


def put_aside_long_ago(world: World) -> None:
    """A restore of then put the guest's disks aside; it was backed up since, and is gone now."""
    world.guest(WEB).running = False
    restore(world, WEB, replace=WEB, at=world.complete(HERE, WEB)[0])
    for _ in range(4):
        world.run()
        world.write()
    for name in [name for name in world.source.datasets if "-100-disk" in name and "pzb-aside" not in name]:
        world.source.drop(name)
    world.node.remove(WEB)


def test_what_was_put_aside_long_ago_is_not_preferred_for_being_near(old: World) -> None:
    put_aside_long_ago(old)
    newest = old.complete(TARGET, WEB)[-1]
    origin = prepared(old, WEB).plan.origin
    assert (origin.host, origin.point.id) == (TARGET, newest)
    plan = prepared(old, WEB, where="source").plan
    (note,) = [note for note in plan.notes if "aside" in note]
    assert note.startswith("the point lies in what was put aside here: fast/pzb-aside/100/")
    aside = plan.origin.point
    named = prepared(old, WEB, at=aside.id).plan.origin
    assert (named.host, named.point.id) == ("source", aside.id)
    old.runner.down[TARGET] = "Connection refused"
    told = prepared(old, WEB).plan
    assert told.origin.point.id == aside.id
    assert len(told.notes) == 2, "both that it lies aside, and that a newer one may be where nobody answered"


def test_a_target_that_is_behind_is_passed_over(old: World) -> None:
    """Of equals the nearer one is taken, and the first of the targets."""
    old.runner.pools["backup2"] = Pools("backup2", old.clock)
    old.runner.pools["backup2"].pool("tank")
    old.runner.addresses["backup2.example"] = "backup2"
    text = old.config.read_text()
    other = "  backup2: {host: backup2.example, root: tank/backups, keep: {keep-last: 3}}\njobs:\n"
    old.config.write_text(text.replace("jobs:\n", other).replace("[backup1]", "[backup1, backup2]"))
    old.run()
    assert prepared(old, WEB, new=300).plan.origin.host == "source"
    lost(old, WEB)
    assert prepared(old, WEB).plan.origin.host == TARGET
    at = datetime.fromtimestamp(old.clock.now, UTC).isoformat()
    newest = old.complete(TARGET, WEB)[-1]
    for name in [name for name in old.target.datasets if "vm-100-disk" in name]:
        snaps = old.target.datasets[name].snaps
        del snaps[max(snaps, key=lambda one: snaps[one].createtxg)]
    for options in ({}, {"at": at}):
        origin = prepared(old, WEB, **options).plan.origin
        assert (origin.host, origin.point.id) == ("backup2", newest)
    assert prepared(old, WEB, where=TARGET).plan.origin.point.id == old.complete(TARGET, WEB)[-1] != newest


def test_cut_off_while_the_old_disks_go_aside_it_takes_the_same_point_again(old: World) -> None:
    """It is not on a target yet, and half of it lies aside already."""
    old.run(Stage.SNAPSHOT)
    old.guest(WEB).running = False
    newest = old.complete(HERE, WEB)[-1]
    old.runner.faults.append(Fault(words=("rename", WEB_DISKS[0]), answer=(1, "cannot rename: out of space")))
    with pytest.raises(BackupError):
        restore(old, WEB, replace=WEB)
    assert [name for name in old.source.datasets if "pzb-aside/100/" in name]
    old.runner.faults.clear()
    again = restore(old, WEB, replace=WEB)
    assert again.plan.origin.point.id == newest
    assert all(disk.placed for disk in again.plan.disks)
    no_work_left(old)


def test_a_target_that_does_not_answer_is_told_and_another_is_taken(old: World) -> None:
    assert prepared(old, WEB, new=300).plan.notes == ()
    old.runner.down[TARGET] = "ssh: connect to host backup1.example port 22: Connection refused"
    plan = prepared(old, WEB, new=300).plan
    assert plan.origin.host == "source"
    (note,) = plan.notes
    assert note.startswith("backup1 did not answer, and may have a newer point: ")
    assert "Connection refused" in note
    point = plan.origin.point.id
    assert prepared(old, WEB, new=300, at=point).plan.notes == (), "by its name it is the same everywhere"
    with pytest.raises(BackupError, match="Connection refused"):
        prepared(old, WEB, new=300, where=TARGET)


def test_a_stream_that_breaks_goes_on_where_it_was(old: World) -> None:
    lost(old, WEB)
    size = old.target.datasets["tank/backups/local-zfs/vm-100-disk-0"].refer
    old.runner.faults.append(Fault(words=("send",), host=TARGET, cut=size // 2))
    restore(old, WEB)
    sends = old.runner.zfs(TARGET, "send")
    assert any("-t" in argv for argv in sends), sends
    no_work_left(old)


def test_a_foreign_dataset_under_the_places_name_is_left_alone(old: World) -> None:
    old.source.add("rpool/data/pzb-restore")
    with pytest.raises(BackupError, match="is not ours"):
        restore(old, WEB, new=300)
    assert "rpool/data/pzb-restore" in old.source.datasets
    assert not list(old.node.etc.glob("*/300.conf"))


def test_a_configuration_changed_meanwhile_is_not_overwritten(old: World) -> None:
    old.guest(WEB).running = False
    with old.session() as session:
        found = prepare(session, Request(vmid=Vmid(WEB), replace=WEB))
        path = old.node.etc / "qemu-server/100.conf"
        path.write_text(path.read_text() + "memory: 512\n")
        with pytest.raises(BackupError, match="was changed meanwhile"):
            carry_out(session, found)
    assert config(old, WEB)["memory"] == "512"
    assert "rpool/data/vm-100-disk-0" in old.source.datasets
    restore(old, WEB, replace=WEB)
    no_work_left(old)


@pytest.mark.parametrize("moment", ["before", "at the last"])
def test_a_guest_that_was_started_meanwhile_keeps_its_disks(old: World, moment: str) -> None:
    """Its disks are marked before the switch, which takes seconds: in them somebody may start it."""
    old.guest(WEB).running = False
    path = old.node.etc / "qemu-server/100.conf"
    text, was = path.read_text(), old.source.datasets[WEB_DISKS[0]]

    def watch(ran: Ran) -> None:
        words = " ".join(ran.argv)
        if ("aside:" in words) if moment == "at the last" else ran.argv[:2] == ("zfs", "rename"):
            old.guest(WEB).running = True

    old.runner.watchers.append(watch)
    with pytest.raises(GuestBusyError, match="was started meanwhile"):
        restore(old, WEB, replace=WEB)
    old.runner.watchers.clear()
    assert path.read_text() == text
    assert was.name == WEB_DISKS[0], "what it runs on is not put aside"
    assert conflict(old, WEB, replace=WEB) == "running"
    old.guest(WEB).running = False
    restore(old, WEB, replace=WEB)
    no_work_left(old)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EFBIG, "takes files of up to 1 MiB"),
        (errno.ENOSPC, "128 MiB in all"),
        (errno.EPERM, "not for the want of a quorum"),
        (errno.EACCES, "pvecm status"),
        (errno.EIO, "pve-cluster"),
    ],
)
@pytest.mark.parametrize("call", ["write", "rename"])
def test_what_pmxcfs_refuses_is_told_by_its_reason_and_leaves_no_file(
    old: World, monkeypatch: pytest.MonkeyPatch, number: int, told: str, call: str
) -> None:
    """The quorum may go, or the file system fill up, while hours of disks are received (pve-facts §h)."""
    lost(old, WEB)
    write, rename = Path.write_bytes, os.replace

    def written(path: Path, data: bytes) -> int:
        if ".tmp." not in path.name or call == "rename":
            return write(path, data)
        write(path, data[:10])
        raise OSError(number, os.strerror(number))

    def renamed(source: Path, target: Path) -> None:
        if str(target).startswith(str(old.node.etc)) and call == "rename":
            raise OSError(number, os.strerror(number))
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", written)
        patched.setattr(os, "replace", renamed)
        with pytest.raises(PveError, match=f"100.conf: cannot be written: {os.strerror(number)}") as caught:
            restore(old, WEB)
    assert told in caught.value.hint
    assert [path.name for path in old.node.etc.rglob("*100*")] == [], "neither a half file nor one beside it"
    restore(old, WEB)
    no_work_left(old)


# -- On another node of the cluster


def told(world: World, vmid: int, node: str = "pve2", **options: Any) -> Restored:
    world.runner.revive()
    with world.session() as session:
        done = tell_elsewhere(session, Request(vmid=Vmid(vmid), **options), node)
    assert not done.done
    assert world.runner.changes == []
    assert not world.runner.zfs(HERE, "send", "receive", "create")
    return done


@pytest.fixture
def cluster(old: World) -> World:
    """pve2 is there with the storage `local-zfs` as well; `fast` and `crypt` are of pve1 only; pve3 is off."""
    old.node.cluster = {"pve2": "online", "pve3": "offline"}
    old.node.storages = [
        {**entry, "nodes": "pve1"} if entry["storage"] in ("fast", "crypt") else entry for entry in old.node.storages
    ]
    return old


def test_what_another_node_has_to_do_is_told_as_a_command(cluster: World) -> None:
    lost(cluster, WEB)
    plan = told(cluster, WEB, storages={"fast": "local-zfs"}).plan
    assert plan.conflicts == ()
    assert plan.disks == ()
    point = cluster.complete(TARGET, WEB)[-1]
    words = ["restore", "100", "--at", point, "--from", TARGET, "--storage", "fast:local-zfs"]
    assert list(plan.command) == ["pve-zfsbackup", *words]
    shown = restore_lines(Restored(plan=plan))
    assert shown[-1] == "  " + " ".join(plan.command)
    assert "Nothing was done here" in shown[-2]


def test_the_command_says_all_that_was_asked_for(cluster: World) -> None:
    point = cluster.complete(TARGET, WEB)[0]
    plan = told(cluster, WEB, new=300, at=point, disks=frozenset({"scsi0"})).plan
    assert plan.command[3:] == ("--at", point, "--from", TARGET, "--as", "300", "--disk", "scsi0")
    cluster.node.owned[900] = "pve2"
    replaced = told(cluster, WEB, replace=900, storages={"": "local-zfs"}).plan
    assert replaced.command[7:] == ("--replace", "900", "--storage", "local-zfs")


@pytest.mark.parametrize(
    ("options", "kinds", "message"),
    [
        ({"node": "pve4"}, ["node"], "is not in this cluster"),
        ({"node": "pve3"}, ["node"], "is offline"),
        ({"new": 300}, ["storage"], "storage fast is not available on node pve2"),
        ({"storages": {"": "local-zfs"}}, ["guest-elsewhere"], "is on node pve1"),
        ({"storages": {"": "local-zfs"}, "new": 900}, ["guest-exists"], "exists on node pve2"),
        ({"storages": {"": "local-zfs"}, "replace": 300}, ["no-guest"], "there is none that could be replaced"),
        ({"storages": {"": "local-zfs"}, "disks": frozenset({"scsi7"})}, ["no-disk"], "the point has no disk scsi7"),
    ],
)
def test_what_can_be_known_from_here_is_judged_before_anybody_goes_there(
    cluster: World, options: dict[str, Any], kinds: list[str], message: str
) -> None:
    cluster.node.owned[900] = "pve2"
    plan = told(cluster, WEB, **options).plan
    assert [one.kind for one in plan.conflicts] == kinds
    assert message in plan.conflicts[0].message
    assert plan.command == ()


def test_points_of_this_node_are_none_for_another(cluster: World) -> None:
    with pytest.raises(ConfigError, match="which node pve2 cannot read"):
        told(cluster, WEB, where="source")
    for name in [name for name in cluster.target.datasets if "vm-100" in name]:
        cluster.target.drop(name)
    with pytest.raises(ConfigError, match="no point to restore") as caught:
        told(cluster, WEB)
    assert "source: what lies on this node, no other node can read" in caught.value.message


def test_a_guest_that_is_elsewhere_says_where_to_ask(cluster: World) -> None:
    lost(cluster, WEB)
    cluster.node.owned[WEB] = "pve2"
    (found,) = prepared(cluster, WEB).plan.conflicts
    assert found.kind == "guest-elsewhere"
    assert found.resolve.startswith("--node pve2 tells how")


@pytest.mark.parametrize("vmid", [WEB, CT])
def test_a_guest_of_a_lost_node_is_taken_over_by_its_configuration(cluster: World, vmid: int) -> None:
    """What stays of it in the cluster is its file; with the file here, and no disk, it is replaced by name."""
    folder = "qemu-server" if vmid == WEB else "lxc"
    path = cluster.node.etc / f"{folder}/{vmid}.conf"
    text = path.read_text()
    lost(cluster, vmid)
    cluster.node.owned[vmid] = "pve3"
    (found,) = prepared(cluster, vmid).plan.conflicts
    assert (found.kind, found.message) == ("guest-elsewhere", "is on node pve3, which is offline")
    move = f"mv /etc/pve/nodes/pve3/{folder}/{vmid}.conf /etc/pve/nodes/pve1/{folder}/"
    assert found.resolve.startswith(f"if pve3 is off for certain: `{move}`, then --replace {vmid}; --as")
    (copy,) = prepared(cluster, DB, new=vmid).plan.conflicts
    assert "mv " not in copy.resolve, "of another guest nothing is known of what was there"
    del cluster.node.owned[vmid]
    path.write_text(text)
    done = restore(cluster, vmid, replace=vmid, start=True, storages={"fast": "local-zfs"})
    assert done.plan.aside == ()
    keys = ("scsi0", "scsi1") if vmid == WEB else ("rootfs",)
    assert all(dataset_of(cluster, config(cluster, vmid)[key]) in cluster.source.datasets for key in keys)
    assert cluster.guest(vmid).running


# -- Killed anywhere


def two_points(place: Path, clock: Clock, way: str) -> World:
    """One guest with disks in two pools, stopped, with a history on both sides."""
    place.mkdir()
    world = World(place, clock=clock)
    for vmid, name in ((CT, "rpool/data/subvol-200-disk-0"), (DB, "rpool/crypt/vm-101-disk-0")):
        world.node.remove(vmid)
        world.source.drop(name)
    for _ in range(2):
        world.run()
        world.write()
    if way == "lost":
        lost(world, WEB)
    if way == "again":  # what the guest has was made of the very point, and written to since
        world.guest(WEB).running = False
        restore(world, WEB, **WAYS[way])
        for name in [name for name in world.source.datasets if f"-{WEB}-disk" in name and "pzb-aside" not in name]:
            world.source.write(name, 1 << 20)
    world.runner.revive()
    return world


def twin(world: World, place: Path) -> World:
    made = world.copy(place)
    if WEB in made.node.guests:
        made.guest(WEB).running = False
    return made


def snapshots(pools: Pools) -> set[tuple[int, tuple[str, ...]]]:
    return {(snap.guid, snap.content) for ds in pools.datasets.values() for snap in ds.snaps.values()}


WAYS: dict[str, dict[str, Any]] = {
    "lost": {},
    "replace": {"replace": WEB, "where": "source"},
    "replace-from-target": {"replace": WEB, "where": TARGET},
    "copy": {"new": 300},
    "disk": {"disks": frozenset({"scsi1"}), "replace": WEB},
    "again": {"replace": WEB, "where": TARGET},
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_every_command_and_repeated_it_converges(tmp_path: Path, world: World, way: str) -> None:
    """And between any two commands a guest that exists has all its old disks, or all its new ones."""
    first = two_points(tmp_path / "first", world.clock, way)
    whole = twin(first, tmp_path / "whole")
    restore(whole, WEB, **WAYS[way])
    ran = whole.runner.counted
    amid = [at for at, one in enumerate(ran, 1) if one.argv[1] == "send" and "-nvP" not in one.argv]
    places = [(at, "before") for at in range(1, len(ran) + 1)] + [(at, "amid") for at in amid]
    assert len(places) > 40
    assert amid
    for at, when in places:
        _killed(twin(first, tmp_path / f"{when}{at}"), at, when, WAYS[way])


def _killed(world: World, at: int, when: str, options: dict[str, Any]) -> None:
    vmid = int(options.get("new", WEB))
    kept = snapshots(world.target) | snapshots(world.source)
    heads = {ds.guid: ds.content for ds in world.source.datasets.values() if "disk" in ds.name}
    world.runner.kill_at, world.runner.kill_when = at, when
    with pytest.raises(Killed):
        restore(world, WEB, **options)
    world.runner.revive()
    _all_or_nothing(world, vmid)
    found = prepared(world, WEB, **options).plan.conflicts
    if found:  # all was done, but for an empty place
        assert [one.kind for one in found] == ["guest-exists"]
        assert list(world.node.etc.glob(f"*/{vmid}.conf"))
    else:
        restore(world, WEB, **options)
    assert [name for name in world.source.datasets if "pzb-restore/" in name] == [], f"work is left, {when} {at}"
    assert kept - snapshots(world.source) - snapshots(world.target) == set(), "a snapshot was lost"
    now = {ds.guid: ds.content for ds in world.source.datasets.values()}
    assert all(now.get(guid) == text for guid, text in heads.items()), "an old disk was lost"
    _all_or_nothing(world, vmid)
    made = [name for name in world.source.datasets if f"-{vmid}-disk" in name and "pzb-aside" not in name]
    assert len(made) == 2, f"something was made twice, {when} {at}: {made}"
    report = world.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert world.results(report, Outcome.FAILED) == []


def _all_or_nothing(world: World, vmid: int) -> None:
    if not list(world.node.etc.glob(f"*/{vmid}.conf")):
        return
    names = [dataset_of(world, config(world, vmid)[key]) for key in ("scsi0", "scsi1")]
    assert all(name in world.source.datasets for name in names), names
