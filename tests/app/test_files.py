"""Single files of a point: listed and copied out of clones, of which nothing stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.app.drill import Rules, drill
from pve_zfsbackup.app.drill import on_node as drill_ground
from pve_zfsbackup.app.files import Browsed, Opening, Request, at_root, browse, on_node
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.errors import BackupError, ConfigError, LockedError, VerificationError
from pve_zfsbackup.events import Result
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.model import Dataset, Vmid, parse_selector
from pve_zfsbackup.model.files import EntryKind, file_system_name, parse_sought
from pve_zfsbackup.model.proof import Reading
from pve_zfsbackup.report.files import files_json, problem_lines
from tests.fakes.disks import Content, Disks, linux
from tests.fakes.runner import HERE, Killed
from tests.fakes.world import CT, DB, ROOT, TARGET, WEB, World

Call = Callable[..., Browsed]


@pytest.fixture
def contents() -> dict[str, Content]:
    system = linux("/etc/fstab", "/srv/own", "/boot/old")
    system.files["/etc/evil"] = "-> ../../../../../../etc/passwd"
    return {
        "rpool/data/vm-100-disk-0": Content(
            table="gpt", parts=[Content(kind="vfat", files={"/grub.cfg": "menu"}), system]
        ),
        "fast/vm-100-disk-0": Content(
            kind="LVM2_member",
            volumes={"data": Content(kind="xfs", files={"/www/index.html": "hi"}), "s": Content(kind="swap")},
        ),
        "rpool/crypt/vm-101-disk-0": Content(kind="ntfs"),
        "rpool/data/subvol-200-disk-0": Content(files={"/etc/hosts": "127.0.0.1"}),
    }


def here(disks: Disks, opening: Opening) -> Opening:
    return replace(opening, bench=disks.bench(opening.bench))


@pytest.fixture
def call(world: World, disks: Disks) -> Call:
    def run(vmid: int, *paths: str, **more: object) -> Browsed:
        request = replace(Request(vmid=Vmid(vmid), paths=paths), **more)  # type: ignore[arg-type]
        with world.session() as session:
            return browse(here(disks, on_node(session, request)), request, session.config)

    return run


def nothing_is_left(world: World, disks: Disks) -> None:
    for pools in world.hosts:
        assert not [name for name in pools.datasets if "pve-zfsbackup-files" in name]
    assert (disks.mounted, disks.maps) == ({}, [])


def names(browsed: Browsed) -> dict[str, list[str]]:
    return {shown.file_system: [entry.name for entry in shown.entries] for shown in browsed.found.shown}


def test_without_a_path_the_tops_of_all_file_systems_are_listed(world: World, disks: Disks, call: Call) -> None:
    browsed = call(WEB)
    assert names(browsed) == {
        "scsi0-part1": ["grub.cfg"], "scsi0-part2": ["boot", "etc", "srv", "usr"], "scsi1-vg0-data": ["www"],
    }  # fmt: skip
    assert [(one.disk, one.place, one.kind) for one in browsed.found.file_systems][2] == ("scsi1", "LV vg0/data", "xfs")
    assert [look.kind for look in browsed.found.looks if look.state == "unopened"] == ["LVM2_member", "swap"]
    assert list(problem_lines(browsed)) == []
    nothing_is_left(world, disks)


def test_a_path_is_listed_with_what_it_is_and_links_lead_nowhere_else(call: Call) -> None:
    (shown,) = call(WEB, "/etc").found.shown
    assert (shown.file_system, shown.path) == ("scsi0-part2", "/etc")
    kinds = {entry.name: (entry.kind, entry.aim) for entry in shown.entries}
    assert kinds["evil"] == (EntryKind.LINK, "../../../../../../etc/passwd")
    assert kinds["fstab"] == (EntryKind.FILE, "")
    (release,) = call(WEB, "/etc/os-release").found.shown
    assert release.path == "/usr/lib/os-release"
    assert call(WEB, "/etc/evil").found.missing == ("/etc/evil",)  # as the guest sees it, there is none


def test_a_path_is_where_the_guest_has_it_or_where_its_file_system_may_be_mounted(call: Call) -> None:
    assert names(call(WEB, "/boot/grub.cfg")) == {"scsi0-part1": ["grub.cfg"]}
    assert names(call(WEB, "/var/www/index.html")) == {"scsi1-vg0-data": ["index.html"]}
    assert names(call(WEB, "/boot")) == {"scsi0-part2": ["old"]}
    assert names(call(WEB, "scsi0-part1:/")) == {"scsi0-part1": ["grub.cfg"]}
    assert call(WEB, "scsi0-part1:/boot/grub.cfg").found.missing == ("scsi0-part1:/boot/grub.cfg",)
    assert call(WEB, "other:/etc").found.missing == ("other:/etc",)


def test_what_is_named_is_copied_and_what_is_not_there_is_told(
    world: World, disks: Disks, call: Call, tmp_path: Path
) -> None:
    into = tmp_path / "out"
    browsed = call(WEB, "/etc/fstab", "/www", "/none", into=into)
    copied = browsed.found.copied
    assert copied
    assert (copied.files, copied.problems) == (2, ())
    assert (into / "scsi0-part2/etc/fstab").read_text() == "x"
    assert (into / "scsi1-vg0-data/www/index.html").read_text() == "hi"
    assert not (into / "scsi0-part1").exists()
    assert list(problem_lines(browsed)) == ["/none: in no file system of this point"]
    nothing_is_left(world, disks)
    again = call(WEB, "/etc/fstab", into=into).found.copied
    assert again
    assert (again.files, len(again.problems)) == (0, 1)


def test_a_container_is_opened_as_it_is(world: World, disks: Disks, call: Call, tmp_path: Path) -> None:
    browsed = call(CT, "/etc/hosts", into=tmp_path / "out")
    assert (tmp_path / "out/rootfs/etc/hosts").read_text() == "127.0.0.1"
    assert files_json(browsed)["copied"]["files"] == 1
    nothing_is_left(world, disks)


def test_only_named_disks_are_opened(disks: Disks, call: Call) -> None:
    assert set(names(call(WEB, disks=frozenset({"scsi1"})))) == {"scsi1-vg0-data"}
    with pytest.raises(ConfigError, match="has no disk scsi7"):
        call(WEB, disks=frozenset({"scsi7"}))


def test_what_cannot_be_opened_is_named_and_the_rest_is_listed(disks: Disks, call: Call) -> None:
    disks.contents["rpool/data/vm-100-disk-0"].parts[1].mount = "bad superblock"
    browsed = call(WEB)
    assert set(names(browsed)) == {"scsi0-part1", "scsi1-vg0-data"}
    assert any("bad superblock" in line for line in problem_lines(browsed))
    browsed = call(DB)
    assert names(browsed) == {}
    assert [look.text for look in browsed.found.looks] == ["NTFS: recognised, not mounted"]


def test_a_key_that_is_not_loaded_is_asked_for(world: World, call: Call) -> None:
    world.source.datasets["rpool/crypt/vm-101-disk-0"].key = False
    with pytest.raises(BackupError, match="zfs load-key rpool/crypt/vm-101-disk-0"):
        call(DB)


def test_nothing_but_clones_is_touched(world: World, call: Call, tmp_path: Path) -> None:
    world.runner.ran.clear()
    call(WEB, "/etc", into=tmp_path / "out")
    assert {ran.argv[1] for ran in world.runner.changes if ran.argv[0] == "zfs"} == {"create", "clone", "destroy"}
    touched = [ran.argv[-1] for ran in world.runner.changes if ran.argv[:2] in (("zfs", "clone"), ("zfs", "destroy"))]
    assert all(name.partition("/")[2].startswith("pve-zfsbackup-files") for name in touched)


def test_a_killed_call_is_swept_by_the_next(world: World, disks: Disks, call: Call) -> None:
    """Wherever it dies (fault 66)."""
    died = 0
    for at_command in range(9, 50, 6):
        world.runner.ran.clear()
        world.runner.kill_at, world.runner.kill_when = at_command, "after"
        try:
            call(WEB)
        except Killed:
            died += 1
        world.runner.revive()
        assert len(names(call(WEB))) == 3
        nothing_is_left(world, disks)
    assert died > 4


def test_a_killed_call_is_swept_by_a_drill(world: World, disks: Disks, call: Call) -> None:
    world.runner.ran.clear()
    world.runner.kill_at, world.runner.kill_when = 26, "after"
    with pytest.raises(Killed):
        call(WEB)
    world.runner.revive()
    rules = Rules(every=1.0, budget=3600.0, reading=Reading.NONE, named=True)
    with world.session() as session:
        ground = drill_ground(session, Scope(guests=(parse_selector(str(CT)),)))
        ground = replace(ground, bench=disks.bench(ground.bench))
        with run_lock(world.place / "run", "files"):  # one is at work: it is left alone
            assert not [end for end in drill(ground, rules, session.config) if "killed" in getattr(end, "message", "")]
        disks.place.joinpath("files").mkdir()
        ends = list(drill(ground, rules, session.config))
    told = [end.message for end in ends if isinstance(end, Result) and "killed" in end.message]
    assert any("a `restore --files` was killed: destroyed rpool/pve-zfsbackup-files/" in text for text in told)


def test_only_what_is_ours_is_swept(world: World, call: Call) -> None:
    world.source.add("rpool/pve-zfsbackup-files")
    world.source.add("rpool/pve-zfsbackup-files/mine")
    with pytest.raises(VerificationError, match="rpool/pve-zfsbackup-files/mine: left, and not ours"):
        call(WEB)
    assert "rpool/pve-zfsbackup-files/mine" in world.source.datasets


def test_two_at_a_time_do_not_meet_but_a_drill_is_waited_for_by_nobody(world: World, call: Call) -> None:
    with run_lock(world.place / "run", "drill"):
        assert call(CT).found.shown
    with run_lock(world.place / "run", "files"), pytest.raises(LockedError):
        call(CT)


def test_a_point_of_a_target_is_refused_with_the_way_there(world: World, disks: Disks) -> None:
    with world.session() as session:
        with pytest.raises(ConfigError) as refused:
            on_node(session, Request(vmid=Vmid(WEB), where=TARGET))
        assert f"restore 100 --files --local {ROOT} --at " in refused.value.hint
        with pytest.raises(ConfigError, match="no host or box named nowhere"):
            on_node(session, Request(vmid=Vmid(WEB), where="nowhere"))


def test_on_a_target_root_opens_the_replicas(world: World, disks: Disks) -> None:
    disks.contents = {f"{ROOT}/local-zfs/vm-100-disk-0": linux(), f"{ROOT}/fast/vm-100-disk-0": Content(kind="xfs")}
    world.runner.pools[HERE] = world.target  # we are there
    with world.session() as session:
        request = Request(vmid=Vmid(WEB), paths=("/etc/os-release",))
        opening = at_root(session.config, world.runner, Dataset(ROOT), request, session.timezone)
        browsed = browse(here(disks, opening), request, session.config)
        with pytest.raises(ConfigError, match="guest 999: there is no such point"):
            at_root(session.config, world.runner, Dataset(ROOT), Request(vmid=Vmid(999)), session.timezone)
    assert names(browsed) == {"scsi0": ["os-release"]}
    nothing_is_left(world, disks)


def test_a_path_begins_with_a_slash(call: Call) -> None:
    for text in ("etc/fstab", "scsi0:etc", ":/etc"):
        with pytest.raises(ConfigError, match="a path begins with /"):
            call(WEB, text)
    assert parse_sought("/a:/b").path == "/a:/b"


def test_file_systems_have_names_that_are_harmless_and_their_own() -> None:
    assert file_system_name("scsi0", "", ()) == "scsi0"
    assert file_system_name("scsi0", "partition 2", ()) == "scsi0-part2"
    assert file_system_name("scsi0 scsi1", "LV vg/root", ()) == "scsi0-scsi1-vg-root"
    assert file_system_name("scsi0", "LV ../..", ()) == "scsi0-..-.."
    assert file_system_name("", "LV ../../etc", ()) == "etc"
    assert file_system_name("scsi0", "LV a/$(x)\n", {"scsi0-a-x", "scsi0-a-x-2"}) == "scsi0-a-x-3"
