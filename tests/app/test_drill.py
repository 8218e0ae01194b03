"""Drills: the newest points opened on the node, and what of them stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pve_zfsbackup.app.chains import verify_points
from pve_zfsbackup.app.drill import STAGE, Ground, Rules, as_result, as_told, drill, drilling_alone, on_node, on_target
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.grounds import grounds
from pve_zfsbackup.app.health import judge
from pve_zfsbackup.app.history import history
from pve_zfsbackup.app.proofs import proofs_between
from pve_zfsbackup.app.proving import prove
from pve_zfsbackup.app.run import Stage
from pve_zfsbackup.app.status import status, status_of
from pve_zfsbackup.errors import ConfigError, ExitCode, LockedError, VerificationError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.model import Dataset, parse_selector
from pve_zfsbackup.model.drill import Drilled, Expected
from pve_zfsbackup.model.health import Level as Critical
from pve_zfsbackup.model.proof import VERIFIED, Level, Reading
from pve_zfsbackup.report.points import points_table
from pve_zfsbackup.report.status import status_json, status_table
from tests.fakes.disks import Content, Disks, linux
from tests.fakes.pools import no
from tests.fakes.runner import HERE, Fault, Killed
from tests.fakes.world import CT, DB, ROOT, TARGET, WEB, World

DAY = 86_400.0
RULES = Rules(every=30 * DAY, budget=3600.0, reading=Reading.NONE)
ROOTFS = {"/etc/os-release": 'PRETTY_NAME="Alpine Linux v3.19"\n'}
Call = Callable[..., list[Drilled | Result]]


@pytest.fixture
def contents() -> dict[str, Content]:
    return {
        "rpool/data/vm-100-disk-0": Content(table="gpt", parts=[Content(kind="vfat"), linux("/srv/canary")]),
        "fast/vm-100-disk-0": Content(
            kind="LVM2_member", volumes={"data": Content(kind="xfs"), "s": Content(kind="swap")}
        ),
        "rpool/crypt/vm-101-disk-0": Content(kind="ntfs"),
        "rpool/data/subvol-200-disk-0": Content(files=ROOTFS),
    }


@pytest.fixture
def call(world: World, disks: Disks) -> Call:
    def run(*guests: str, rules: Rules = RULES) -> list[Drilled | Result]:
        with world.session() as session:
            scope = Scope(guests=tuple(parse_selector(text) for text in guests))
            ground = at(disks, on_node(session, scope))
            own = replace(rules, named=bool(guests))
            with drilling_alone(session.config):
                return list(drill(ground, own, session.config, session.now().timestamp()))

    return run


def at(disks: Disks, ground: Ground) -> Ground:
    return replace(ground, bench=disks.bench(ground.bench))


def one(ends: list[Drilled | Result], vmid: int) -> Drilled:
    (found,) = (end for end in ends if isinstance(end, Drilled) and end.vmid == vmid)
    return found


def nothing_is_left(world: World, disks: Disks) -> None:
    for pools in world.hosts:
        assert not [name for name in pools.datasets if "pve-zfsbackup-drill" in name]
    assert (disks.mounted, disks.maps) == ({}, [])


def proof(world: World, name: str, host: str = HERE) -> str:
    newest = world.runner.pools[host].datasets[name].newest
    assert newest
    return newest.props.get(VERIFIED, "")


def test_healthy_guests_pass_and_nothing_stays(world: World, disks: Disks, call: Call) -> None:
    ends = call()
    web, db, ct = (one(ends, vmid).judgement for vmid in (WEB, DB, CT))
    assert (web.level, web.problems) == (Level.FILES, ())
    assert (db.level, db.problems) == (Level.RECOGNISED, ())
    assert db.notes == ("scsi0: ntfs: NTFS: recognised, not mounted",)
    assert (ct.level, ct.problems) == (Level.FILES, ())
    assert one(ends, WEB).contents.system == "Debian GNU/Linux 12"
    assert one(ends, CT).contents.system == "Alpine Linux v3.19"
    nothing_is_left(world, disks)
    assert proof(world, "rpool/data/vm-100-disk-0").startswith("files 2026")
    assert proof(world, "fast/vm-100-disk-0").startswith("files 2026")
    assert proof(world, "rpool/crypt/vm-101-disk-0").startswith("recognised 2026")


def test_no_guest_and_no_dataset_of_the_source_is_touched(world: World, disks: Disks, call: Call) -> None:
    world.runner.ran.clear()
    call()
    changed = {ran.argv[1] for ran in world.runner.changes if ran.argv[0] == "zfs"}
    assert changed == {"create", "clone", "set", "destroy"}
    touched = [ran.argv[-1] for ran in world.runner.changes if ran.argv[:2] in (("zfs", "clone"), ("zfs", "destroy"))]
    assert all(name.partition("/")[2].startswith("pve-zfsbackup-drill") for name in touched)
    assert all(
        {"volmode=full", "canmount=off", "mountpoint=none"} <= set(argv) for argv in world.runner.zfs(HERE, "create")
    )
    assert not [argv for argv in disks.ran if argv[0] in ("vgchange", "lvchange", "vgimport", "zpool")]
    rules = (disks.place / "rules/62-pve-zfsbackup-drill.rules").read_text()
    assert 'DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1"' in rules


def test_a_container_is_cloned_inert_and_in_a_place_of_its_own(world: World, call: Call) -> None:
    call(str(CT))
    (argv,) = (argv for argv in world.runner.zfs(HERE, "clone") if "subvol-200" in argv[-2])
    assert {"canmount=noauto", "readonly=on", "setuid=off", "devices=off", "exec=off"} <= set(argv)


def web_part(disks: Disks) -> Content:
    return disks.contents["rpool/data/vm-100-disk-0"].parts[1]


def wreck_fsck(disks: Disks) -> None:
    web_part(disks).fsck = "Inode 2 has illegal blocks.  Clear? no"


def wreck_mount(disks: Disks) -> None:
    web_part(disks).mount = "wrong fs type, bad option, bad superblock"


def wreck_superblock(disks: Disks) -> None:
    web_part(disks).kind = ""


def wreck_table(disks: Disks) -> None:
    disks.contents["rpool/data/vm-100-disk-0"] = Content()


def wreck_lvm(disks: Disks) -> None:
    disks.contents["fast/vm-100-disk-0"].volumes.clear()


@pytest.mark.parametrize(
    ("wreck", "told"),
    [
        (wreck_fsck, "scsi0 partition 2: ext4: e2fsck: Inode 2 has illegal blocks.  Clear? no"),
        (wreck_mount, "cannot be mounted as ext4: mount: mount: "),
        (wreck_superblock, "scsi0 partition 2: nothing recognised in its 1024 MiB; where that is right, name"),
        (wreck_table, "scsi0: neither a file system nor anything else is recognised there"),
        (wreck_lvm, "scsi1: LVM: LVM finds no volume group on"),
    ],
)
def test_what_is_wrong_is_found_and_no_other_guest_suffers(
    world: World, disks: Disks, call: Call, wreck: Callable[[Disks], None], told: str
) -> None:
    wreck(disks)
    ends = call()
    bad = one(ends, WEB)
    assert bad.judgement.level is Level.FAILED
    assert any(told in problem for problem in bad.judgement.problems), bad.judgement.problems
    assert as_result(bad).outcome is Outcome.FAILED
    assert one(ends, CT).judgement.level is Level.FILES
    assert proof(world, "rpool/data/vm-100-disk-0").startswith("failed ")
    nothing_is_left(world, disks)


def test_a_missing_canary_fails_and_one_that_is_there_does_not(world: World, disks: Disks, call: Call) -> None:
    text = world.config.read_text()
    world.config.write_text(text.replace("    guests: [all]\n", "    guests: [all]\n    verify-files: [/srv/canary]\n"))
    ends = call()
    assert one(ends, WEB).judgement.problems == ()
    assert one(ends, CT).judgement.problems == ("/srv/canary: not there",)
    del web_part(disks).files["/srv/canary"]
    assert one(call(str(WEB)), WEB).judgement.problems == ("/srv/canary: not there",)


def test_without_checking_programs_it_is_said_and_the_rest_is_done(disks: Disks, call: Call) -> None:
    disks.missing = {"e2fsck", "pvs"}
    web = one(call(str(WEB)), WEB).judgement
    assert web.level is Level.FILES
    assert "scsi0 partition 2: ext4: not checked: e2fsck: not installed" in web.notes
    assert "scsi1: LVM: pvs: not installed" in web.notes


def test_a_raw_disk_is_expected_only_where_it_was_said(world: World, disks: Disks, call: Call) -> None:
    disks.contents["rpool/crypt/vm-101-disk-0"] = Content()
    assert one(call(str(DB)), DB).judgement.level is Level.FAILED
    text = world.config.read_text()
    world.config.write_text(text.replace("    guests: [all]\n", "    guests: [all]\n    verify-raw: ['101:scsi*']\n"))
    assert one(call(str(DB)), DB).judgement.level is Level.RECOGNISED


def test_the_longest_waiting_come_first_and_the_rest_waits(world: World, call: Call) -> None:
    call(str(DB))
    world.clock.now += int(31 * DAY)
    call(str(WEB))
    ends = call()
    assert [end.vmid for end in ends if isinstance(end, Drilled)] == [CT, DB]
    assert call() == []
    world.clock.now += int(31 * DAY)
    *_, left = call(rules=replace(RULES, budget=0.0))
    assert isinstance(left, Result)
    assert left.message == "the time is over: 3 guests are left to the next drill: 100, 101, 200"


def test_a_guest_that_cannot_be_drilled_is_told_and_the_others_are(world: World, disks: Disks, call: Call) -> None:
    world.runner.faults.append(Fault(words=("clone",), answer=(1, "cannot create 'x': out of space")))
    ends = call()
    (broken,) = (end for end in ends if isinstance(end, Result))
    assert (broken.vmid, broken.outcome) == (WEB, Outcome.FAILED)
    assert broken.message.startswith("could not be drilled: ")
    assert one(ends, CT).judgement.level is Level.FILES
    assert proof(world, "rpool/data/vm-100-disk-0") == ""
    nothing_is_left(world, disks)


def test_a_guest_that_breaks_its_drill_does_not_take_the_turn_of_the_others(world: World, call: Call) -> None:
    world.runner.faults.append(Fault(words=("clone",), answer=(1, "out of space"), again=True))
    assert [end.vmid for end in call(str(WEB)) if isinstance(end, Result)] == [WEB]
    world.runner.faults.clear()
    world.clock.now += 3600
    assert [end.vmid for end in call()] == [DB, CT, WEB]


def test_where_it_cannot_be_noted_who_was_tried_it_is_told_once_and_all_are_drilled(world: World, call: Call) -> None:
    (world.place / "state/drills.json").mkdir(parents=True)
    ends = call()
    (told,) = (end for end in ends if isinstance(end, Result))
    assert told.outcome is Outcome.WARNING
    assert "drills.json" in told.message
    assert len(ends) == 4


def test_a_link_that_never_comes_ends(disks: Disks, call: Call, world: World) -> None:
    disks.slow = True
    (end,) = call(str(WEB))
    assert isinstance(end, Result)
    assert "did not appear within 60 s" in end.message
    nothing_is_left(world, disks)


def test_a_killed_drill_is_swept_by_the_next(world: World, disks: Disks, call: Call) -> None:
    """Wherever it dies: the next one takes away what lies there, and proves the guests (fault 66)."""
    died = 0
    for at_command in range(4, 60, 3):
        world.runner.ran.clear()
        world.runner.kill_at, world.runner.kill_when = at_command, "after"
        try:
            call(str(WEB))
        except Killed:
            died += 1
        world.runner.revive()
        assert one(call(str(WEB)), WEB).judgement.level is Level.FILES
        nothing_is_left(world, disks)
    assert died > 5


def test_only_what_is_ours_is_swept(world: World, disks: Disks, call: Call) -> None:
    """A dataset of somebody else's below our parent stays, and is named."""
    world.source.add("rpool/pve-zfsbackup-drill")
    world.source.add("rpool/pve-zfsbackup-drill/mine")
    with pytest.raises(VerificationError, match="rpool/pve-zfsbackup-drill/mine: left, and not ours"):
        call()
    assert "rpool/pve-zfsbackup-drill/mine" in world.source.datasets


def test_a_clone_with_another_guid_than_listed_stays(world: World, disks: Disks, call: Call) -> None:
    world.source.add("rpool/pve-zfsbackup-drill")
    clone = world.source.add("rpool/pve-zfsbackup-drill/x-0", zvol=True)
    clone.origin, clone.props["pve-zfsbackup:drill"] = "rpool/data/vm-100-disk-0@gone", "x-0"

    def swap(ran: object) -> None:
        if getattr(ran, "argv", ())[:3] == ("zfs", "get", "-Hp"):
            clone.guid += 1

    world.runner.watchers.append(swap)
    with pytest.raises(VerificationError, match="left, and not ours"):
        call()
    assert clone.name in world.source.datasets


def test_two_at_a_time_do_not_meet(world: World, call: Call) -> None:
    with run_lock(world.place / "run", "drill"), pytest.raises(LockedError):
        call()


def test_a_key_that_is_not_loaded_leaves_the_chain(world: World, call: Call) -> None:
    world.source.datasets["rpool/crypt/vm-101-disk-0"].key = False
    end = one(call(str(DB)), DB)
    assert end.judgement.level is Level.POINTS
    assert end.judgement.notes == ("scsi0: encrypted, and the key is not loaded here: only the chain can be proven",)
    assert as_result(end).outcome is Outcome.SKIPPED


def test_on_a_target_root_drills_the_replicas(world: World, disks: Disks) -> None:
    """No source has a right for it: it is a command of that very host."""
    disks.contents = {
        f"{ROOT}/local-zfs/vm-100-disk-0": linux(),
        f"{ROOT}/fast/vm-100-disk-0": Content(kind="xfs"),
    }
    world.runner.pools[HERE] = world.target  # we are there
    with world.session() as session:
        guests = [parse_selector(str(WEB))]
        ground = at(
            disks, on_target(session.config, world.runner, Dataset(ROOT), guests, Expected(files=("/etc/os-release",)))
        )
        (end,) = drill(ground, replace(RULES, named=True), session.config, session.now().timestamp())
        with pytest.raises(ConfigError, match="only vmids"):
            on_target(session.config, world.runner, Dataset(ROOT), [parse_selector("name:web")], Expected())
        with pytest.raises(ConfigError, match="999: no such guest"):
            on_target(session.config, world.runner, Dataset(ROOT), [parse_selector("999")], Expected())
    assert isinstance(end, Drilled)
    assert (end.judgement.level, end.judgement.problems, end.host) == (Level.FILES, (), "here")
    assert proof(world, f"{ROOT}/local-zfs/vm-100-disk-0", TARGET).startswith("files ")
    nothing_is_left(world, disks)


def received(world: World, text: str) -> None:
    """We are on the backup host, which has a configuration of its own."""
    world.runner.pools[HERE] = world.target
    lines = [line for line in world.config.read_text().splitlines() if "-dir: " in line]
    world.config.write_text("\n".join([*lines, text]))
    world.runner.ran.clear()


def all_drilled(world: World, disks: Disks, *guests: str) -> list[Drilled | Result]:
    ends: list[Drilled | Result] = []
    with world.session() as session:
        for place in grounds(session, Scope(guests=tuple(parse_selector(text) for text in guests))):
            if isinstance(place, Result):
                ends.append(place)
            else:
                ends += drill(at(disks, place), RULES, session.config, session.now().timestamp())
    return ends


def test_a_host_that_only_receives_drills_what_it_received_and_asks_no_proxmox(world: World, disks: Disks) -> None:
    disks.contents = {
        f"{ROOT}/local-zfs/vm-100-disk-0": linux(),
        f"{ROOT}/fast/vm-100-disk-0": Content(kind="xfs"),
        f"{ROOT}/local-zfs/subvol-200-disk-0": Content(files=ROOTFS),
    }
    received(world, f"verify: {{local: [tank/gone, {ROOT}]}}\n")
    gone, *ends = all_drilled(world, disks)
    assert isinstance(gone, Result)
    assert (gone.outcome, gone.host) == (Outcome.FAILED, "here")
    assert gone.message.startswith("tank/gone: ")
    levels = {end.vmid: end.judgement.level for end in ends if isinstance(end, Drilled)}
    assert levels == {WEB: Level.FILES, DB: Level.POINTS, CT: Level.FILES}
    assert not [ran for ran in world.runner.ran if ran.argv[0] == "pvesh"]
    nothing_is_left(world, disks)
    again = [end.vmid for end in all_drilled(world, disks) if isinstance(end, Drilled)]
    assert again == [DB], "the others are not due"
    with pytest.raises(ConfigError, match="this host has no job"):
        all_drilled(world, disks, "100")


def test_its_other_cron_jobs_have_nothing_to_do_there(world: World) -> None:
    received(world, f"verify: {{local: [{ROOT}]}}\n")
    report = world.run()
    assert (report.exit_code, report.results) == (ExitCode.OK, ())
    with world.session() as session:
        assert list(verify_points(session, Scope())) == []
    assert world.runner.ran == []
    assert not (world.place / "log/journal.jsonl").exists()


def test_a_node_drills_both_its_own_guests_and_what_it_received(world: World, disks: Disks) -> None:
    """As where two nodes take each other's replicas."""
    world.source.add("rpool/taken")
    world.config.write_text(world.config.read_text() + "verify: {local: [rpool/taken]}\n")
    assert {end.vmid for end in all_drilled(world, disks) if isinstance(end, Drilled)} == {WEB, DB, CT}
    with world.session() as session:
        places = [place.place for place in grounds(session, Scope()) if isinstance(place, Ground)]
        assert places == ["rpool/taken", "source"]
        named = Scope(guests=(parse_selector("100"),))
        assert [place.place for place in grounds(session, named) if isinstance(place, Ground)] == ["source"]


def test_the_proof_stays_on_the_host_where_it_was_made(world: World, call: Call) -> None:
    """A replica of a proven snapshot is not proven."""
    world.run(Stage.SNAPSHOT)
    call()
    world.run(Stage.REPLICATE)
    assert proof(world, "rpool/data/vm-100-disk-0").startswith("files ")
    assert proof(world, f"{ROOT}/local-zfs/vm-100-disk-0", TARGET) == ""


def test_the_newest_proven_point_is_never_pruned(world: World, call: Call) -> None:
    call()
    (proven,) = world.complete(HERE, WEB)
    for _ in range(5):
        world.write()
        world.run()
    left = world.complete(HERE, WEB)
    assert left[0] == proven
    assert len(left) == 4
    call(str(WEB))
    world.write()
    world.run()
    assert proven not in world.complete(HERE, WEB)


def test_a_failed_drill_is_not_forgotten_with_its_point(world: World, disks: Disks, call: Call) -> None:
    """Retention would turn critical into well by itself."""
    wreck_fsck(disks)
    call(str(WEB))
    (failed,) = world.complete(HERE, WEB)
    for _ in range(5):
        world.write()
        world.run()
    assert world.complete(HERE, WEB)[0] == failed
    with world.session() as session:
        told = [item.text for item in judge(history(session, Scope()), session.config, ()).findings]
    assert told == ["the last drill here failed: `verify drill` tells more"]
    web_part(disks).fsck = ""
    call(str(WEB))
    world.write()
    world.run()
    assert failed not in world.complete(HERE, WEB)


def test_a_failure_of_umount_is_no_silence(world: World, disks: Disks, call: Call) -> None:
    real = disks.run
    world.runner.tools = lambda argv: (
        no(argv, "umount: target is busy.", status=32) if argv[0] == "umount" else real(argv)
    )
    (end,) = call(str(WEB))
    assert isinstance(end, Result)  # the guest's own failure
    assert "busy" in end.message
    with pytest.raises(VerificationError, match="busy"):  # and of every drill after it, until it goes
        call()


def test_a_failed_drill_is_critical_until_one_passes(world: World, disks: Disks, call: Call) -> None:
    wreck_fsck(disks)
    call()
    with world.session() as session:
        here = history(session, Scope())
        told = [item for item in judge(here, session.config, ()).findings if "drill" in item.text]
        assert [(item.level, item.about) for item in told] == [(Critical.CRITICAL, "guest 100 web")]
        assert "the last drill failed" in status_table(status_of(here, session.config), session.timezone).rows[0][-1]
    web_part(disks).fsck = ""
    call(str(WEB))
    with world.session() as session:
        here = history(session, Scope())
        assert not [item for item in judge(here, session.config, ()).findings if "drill" in item.text]
        assert points_table(here, session.timezone).rows[0][-1].startswith("quiesced, files 2026-11-")


def test_drills_are_on_record_and_their_time_is_known(world: World, disks: Disks) -> None:
    """As runs are: for the report, for `status`, for whoever is told of failures."""
    wreck_fsck(disks)
    with world.session() as session, drilling_alone(session.config):
        ground = at(disks, on_node(session, Scope()))
        drills = drill(ground, RULES, session.config, session.now().timestamp())
        proved = prove(session, STAGE, drills, as_result, as_told)
        told = proofs_between(session.config, 0, session.now().timestamp())
        assert [(one.vmid, one.level, one.passed) for one in told] == [
            (WEB, "failed", False), (DB, "recognised", True), (CT, "files", True)
        ]  # fmt: skip
        assert {one.place for one in told} == {"source"}
        assert [result.outcome for result in proved.results] == [Outcome.FAILED, Outcome.OK, Outcome.OK]
        web, db, ct = (guest for guest in status_json(status(session, Scope()))["guests"])
    assert (web["rto"], web["level"]) == ({}, "critical")
    assert db["rto"]["drill"].keys() == {"seconds", "at", "where"}
    assert ct["rto"]["drill"]["seconds"] == round(told[2].seconds, 3)
    assert "verified" in ct
    assert ct["verified"]["level"] == "files"
