"""Every trap of Proxmox that was found (pve-facts §0 and its checklist, pve-observed) and the tests that hold it.

A line without a test fails here, and so does a test that is gone. What is no affair of this program says why.
"""

from __future__ import annotations

import builtins
import os
import re
import syslog
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.app.restore import Request, carry_out, prepare, restoring_alone
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Target
from pve_zfsbackup.errors import ExitCode
from pve_zfsbackup.model import Vmid
from tests.fakes.runner import HERE
from tests.fakes.world import CT, REPLICAS, TARGET, WEB, World

TESTS = Path(__file__).parent

# Line -> tests, as `path::function` below tests/.
FACTS: dict[str, tuple[str, ...]] = {
    # pve-facts §0
    "0.1 newer bookmarks and snapshots block a rollback": (
        "plan/test_foreign.py::test_a_bookmark_alone_blocks_and_one_of_the_snapshot_itself_does_not",
        "plan/test_foreign.py::test_the_newest_snapshot_of_proxmox_is_blocked_by_what_is_newer",
        "app/test_unblock.py::test_ours_go_and_proxmoxs_and_older_ones_stay",
    ),
    "0.2 agent errors come as HTTP 200": (
        "host/pve/test_agent.py::test_refused_freeze_is_an_error_inside_200",
        "host/test_quiesce.py::test_a_refusing_agent_leaves_a_crash_consistent_point",
    ),
    "0.3 the API's freeze is cut at 30 s and goes on; root uses qm": (
        "host/pve/test_agent.py::test_freeze_that_outlives_the_api",
        "host/pve/test_agent.py::test_what_takes_longer_than_the_api_allows_goes_through_qm",
        "host/test_quiesce.py::test_a_freeze_whose_answer_was_lost_is_thawed",
        "pvesim/test_https.py::test_a_slow_freeze_is_cut_by_the_proxy_but_goes_on",
    ),
    "0.4 thaw fails while a freeze is pending": (
        "host/pve/test_agent.py::test_thaw_goes_on_while_a_freeze_is_pending",
        "host/test_quiesce.py::test_a_thaw_that_is_not_heard_is_repeated",
    ),
    "0.5 storage content is empty for an auditor": (
        "pvesim/test_access.py::test_images_are_listed_with_config_disk_on_their_owner",
        "test_pve_facts.py::test_storage_content_is_never_asked",
    ),
    "0.6 pvesh exits 0 when its task failed": (
        "host/pve/test_pvesh.py::test_failed_task_is_known_by_its_status_alone",
        "pvesim/test_cli.py::test_pvesh_exits_zero_when_its_task_failed_and_qm_does_not",
    ),
    "0.7 bookworm's proxmoxer has no time-out and loses errors": (
        "host/pve/test_pve.py::test_server_that_never_answers",
        "host/pve/test_pve.py::test_time_out_of_one_call",
        "host/pve/test_pve.py::test_recorded_refusal",
    ),
    "0.8 offline migration takes snapshots along, live migration loses them": (
        "plan/test_points.py::test_a_migrated_guests_disks_of_one_name_are_told_apart_by_where_their_storages_are",
        "plan/test_points.py::test_without_a_known_guid_storage_and_volume_name_decide",
        "test_pve_facts.py::test_after_an_offline_migration_the_new_owner_goes_on",
        "test_pve_facts.py::test_after_a_live_migration_a_new_generation_begins",
    ),
    "0.9 a NIC without bridge is not isolated: what a drill starts has none": (
        "plan/test_boot.py::test_nothing_of_it_reaches_beyond_the_guest",
        "app/test_boot.py::test_a_guest_that_comes_up_is_booted_and_gone",
    ),
    "0.10 a received subvol lacks acltype, xattr and refquota": (
        "test_pve_facts.py::test_a_point_knows_them",
        "app/test_restore.py::test_a_container_gets_back_what_a_stream_does_not_carry",
        "app/test_rollback.py::test_a_containers_properties_stay",
    ),
    # the checklist of the simulator
    "errors are reason phrases, message is optional": (
        "host/pve/test_pve.py::test_old_server_tells_the_message_by_the_reason_alone",
    ),
    "401 comes 3 s late and without a body": ("pvesim/test_https.py::test_refused_login_has_no_body_and_comes_late",),
    "a connection is closed after an error": ("host/pve/test_pve.py::test_recorded_refusal",),
    "a missing guest is 500": (
        "host/pve/test_agent.py::test_guest_that_is_gone",
        "host/pve/test_guests.py::test_guest_that_vanishes_meanwhile_is_left_out_with_a_note",
    ),
    "cluster/resources is stale": (
        "pvesim/test_https.py::test_resources_differ_from_the_recorded_stale_ones_only_where_those_were_stale",
        "host/pve/test_guests.py::test_recorded_guests",
    ),
    "pending against current configuration": ("host/pve/test_guests.py::test_pending_and_current_are_kept_apart",),
    "strings and numbers are mixed": ("host/pve/test_guests.py::test_recorded_guests",),
    "a UPID has a token user and nine digits": ("host/pve/test_pve.py::test_upids",),
    "WARNINGS: n is success": ("host/pve/test_pve.py::test_warnings_are_success",),
    "pmxcfs: no quorum, EFBIG, EPERM, standalone: no run writes there, a restore tells the reason": (
        "app/test_restore.py::test_what_pmxcfs_refuses_is_told_by_its_reason_and_leaves_no_file",
        "app/test_restore.py::test_without_quorum_nothing_is_received_in_vain",
        "host/pve/test_setup.py::test_first_run_makes_everything",
        "host/pve/test_setup.py::test_each_node_of_a_cluster_has_its_own_token",
        "test_cli.py::test_the_clusters_configuration_serves_where_the_node_has_none",
        "host/pve/test_pvesh.py::test_cluster_file_system_down",
        "app/test_snapshot.py::test_an_unmounted_cluster_file_system_is_told_as_that",
        "test_pve_facts.py::test_without_quorum_points_are_made_all_the_same",
        "test_config_files.py::test_config_as_pmxcfs_shows_it_is_read",
        "test_config_files.py::test_too_big_a_file_is_not_read",
    ),
    "a migration moves the configuration between calls": (
        "app/test_snapshot.py::test_a_guest_that_leaves_before_its_turn_is_told_and_no_failure",
        "app/test_snapshot.py::test_a_guest_under_way_is_not_frozen_and_left_to_the_next_run",
    ),
    # pve-observed: what a client written from documentation would get wrong
    "observed 1: success of a freeze is a number; status is POST": (
        "host/pve/test_agent.py::test_only_a_number_is_success",
        "host/pve/test_agent.py::test_ping_and_status",
    ),
    "observed 2: 596 with an empty body, an immediate thaw is refused": (
        "host/pve/test_agent.py::test_freeze_that_outlives_the_api",
        "host/pve/test_agent.py::test_thaw_goes_on_while_a_freeze_is_pending",
    ),
    "observed 3: only exitstatus tells; exit codes are zero or not": (
        "host/pve/test_pve.py::test_any_other_end_is_failure",
        "host/pve/test_pvesh.py::test_exit_status_counts_even_with_an_answer",
    ),
    "observed 4: no ACL is 200 and empty lists": (
        "host/pve/test_guests.py::test_token_without_permissions_is_not_an_empty_node",
        "host/pve/test_guests.py::test_token_that_sees_only_some_guests_is_told_of",
    ),
    "observed 5: 500 not 404, 501, late 401, 400 with errors, an error that is no JSON": (
        "host/pve/test_pve.py::test_recorded_refusal",
        "pvesim/test_https.py::test_broken_json_gives_an_error_that_is_none",
    ),
    "observed 6: memory is a string or a number; held volumes are freed with status 0": (
        "host/pve/test_guests.py::test_recorded_guests",
        "pvesim/test_https.py::test_a_held_volume_is_freed_by_a_task_that_fails",
    ),
    "observed 7: vzdump's hook has no DUMPDIR in job-init and no TARGET yet": (
        "test_hook_scripts.py::test_a_whole_job_arrives_with_its_argv",
    ),
    "observed 8: root's authorized_keys are a link into /etc/pve": ("test_pve_facts.py::test_no_key_of_ours_is_roots",),
    "observed 9: connections are accepted and never answered": (
        "host/pve/test_pve.py::test_server_that_never_answers",
    ),
    "observed 10: pvesh costs a hundred times an HTTPS call": (
        "host/pve/test_guests.py::test_one_call_per_guest",
        "host/pve/test_guests.py::test_guests_are_read_concurrently",
    ),
    "observed 11: Proxmox's own snapshot is one command per disk, ours one per pool": (
        "app/test_run.py::test_disks_of_one_pool_are_one_command_and_each_pool_has_one",
    ),
    "observed: a held snapshot leaves lock: snapshot-delete; destroys stop halfway": (
        "pvesim/test_cli.py::test_a_hold_leaves_the_vm_locked",
        "test_pve_facts.py::test_nothing_is_ever_held_on_the_source",
        "app/test_snapshot.py::test_a_lock_that_stays_is_told_by_its_name",
    ),
    "observed: a foreign newer snapshot blocks the whole guest": (
        "plan/test_foreign.py::test_one_disk_is_enough",
        "plan/test_foreign.py::test_a_disk_we_do_not_protect_counts",
    ),
    "observed: rollback asks for the newest snapshot, other hands' too": (
        "app/test_unblock.py::test_a_named_snapshot_and_what_else_stands_in_the_way",
    ),
    "observed: dependent clones keep Proxmox from removing a volume": (
        "app/test_drill.py::test_healthy_guests_pass_and_nothing_stays",
        "app/test_drill.py::test_a_killed_drill_is_swept_by_the_next",
        "app/test_files.py::test_a_killed_call_is_swept_by_the_next",
        "app/test_unblock.py::test_a_snapshot_of_ours_in_use_is_a_conflict_and_nothing_goes",
        "plan/test_prune.py::test_holds_and_clones_protect",
        "host/test_zfs_errors.py::test_captured_messages",
    ),
    "observed: names that look like Proxmox's are Proxmox's": (
        "test_pve_facts.py::test_no_name_of_ours_counts_as_proxmoxs",
        "app/test_drill.py::test_no_guest_and_no_dataset_of_the_source_is_touched",
    ),
    "§d: PVE 8 thaws other people's freezes": (
        "host/test_quiesce.py::test_a_guest_thawed_by_somebody_else_is_not_called_quiesced",
    ),
    "§d: a guest that somebody froze is not ours to thaw": (
        "host/test_quiesce.py::test_somebody_elses_freeze_is_not_ours_to_thaw",
    ),
    "§d: Windows gives up a freeze after 10 s": (
        "host/test_quiesce.py::test_a_windows_guest_that_let_writes_through_is_not_called_quiesced",
    ),
    "§d: the migration lock is held from freeze to thaw": (
        "app/test_snapshot.py::test_proxmox_waits_while_a_guest_is_frozen_and_no_longer",
        "host/test_lock.py::test_the_migration_lock_is_not_waited_for_long",
    ),
    "§e: one script per job, an empty environment, our failure is not the backup's": (
        "test_hook_scripts.py::test_the_dispatcher_runs_the_administrators_scripts_and_ours",
        "test_hook_scripts.py::test_only_what_the_configuration_wants_fails_a_backup",
        "app/test_hooks.py::test_a_job_gives_each_guest_a_point_at_the_end_of_its_backup",
    ),
    "§c: names of others are nobody's business": (
        "plan/test_foreign.py::test_owner",
        "app/test_unblock.py::test_snapshots_of_others_are_left_alone",
    ),
    "§j: pvesr's jobs are seen": (
        "app/test_unblock.py::test_discover_and_status_tell_what_we_block_and_who_else_replicates",
    ),
}
# The simulator checklist of pve-facts, word for word, and the lines above that hold each item.
CHECKLIST = (
    "Reason-phrase errors + optional `message`; 3 s on 401; close on ≥400; 500 (not 404) for missing guests; "
    "200-with-error agent replies; freeze that outlives a 596; ping-gated thaw; stale /cluster/resources; "
    "pending-vs-current config; auditor's empty content list; string/number mix; UPID with token user and 9-digit "
    "pstart; `WARNINGS: n`; pvesh exit 0 on failed task; pmxcfs EACCES/EFBIG/EPERM and standalone mode; rollback "
    "blocked by newer snapshot (clean) vs newer bookmark (lock left); migration moving the conf between calls"
)
HELD = {
    "Reason-phrase errors + optional `message`": "errors are reason phrases, message is optional",
    "3 s on 401": "401 comes 3 s late and without a body",
    "close on ≥400": "a connection is closed after an error",
    "500 (not 404) for missing guests": "a missing guest is 500",
    "200-with-error agent replies": "0.2 agent errors come as HTTP 200",
    "freeze that outlives a 596": "0.3 the API's freeze is cut at 30 s and goes on; root uses qm",
    "ping-gated thaw": "0.4 thaw fails while a freeze is pending",
    "stale /cluster/resources": "cluster/resources is stale",
    "pending-vs-current config": "pending against current configuration",
    "auditor's empty content list": "0.5 storage content is empty for an auditor",
    "string/number mix": "strings and numbers are mixed",
    "UPID with token user and 9-digit pstart": "a UPID has a token user and nine digits",
    "`WARNINGS: n`": "WARNINGS: n is success",
    "pvesh exit 0 on failed task": "0.6 pvesh exits 0 when its task failed",
    "pmxcfs EACCES/EFBIG/EPERM and standalone mode": (
        "pmxcfs: no quorum, EFBIG, EPERM, standalone: no run writes there, a restore tells the reason"
    ),
    "rollback blocked by newer snapshot (clean) vs newer bookmark (lock left)": (
        "0.1 newer bookmarks and snapshots block a rollback"
    ),
    "migration moving the conf between calls": "a migration moves the configuration between calls",
}


@pytest.mark.parametrize("line", FACTS, ids=lambda line: re.sub(r"\W+", "-", line)[:60])
def test_each_line_has_its_tests(line: str) -> None:
    assert FACTS[line]
    for entry in FACTS[line]:
        path, _, function = entry.partition("::")
        text = (TESTS / path).read_text(encoding="utf-8")
        assert re.search(rf"(?m)^def {function}\(", text), f"{entry} is gone"


def test_every_finding_of_the_fact_sheet_is_named() -> None:
    named = {line.split()[0] for line in FACTS}
    assert {f"0.{number}" for number in range(1, 11)} <= named
    observed = {match[1] for line in FACTS if (match := re.match(r"observed (\d+):", line))}
    assert observed == {str(number) for number in range(1, 12)}


def test_every_item_of_the_simulator_checklist_is_held() -> None:
    assert set(HELD) == set(CHECKLIST.split("; "))
    assert set(HELD.values()) <= set(FACTS)


# -- what no other test holds


ZVOL = "rpool/data/vm-100-disk-0"
PROXMOXS = re.compile(r"(vm|base|subvol|basevol)-[0-9]+-\S+\Z")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(made.clock.now, UTC))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(syslog, "syslog", lambda *words: None)
    return made


def test_storage_content_is_never_asked(world: World) -> None:
    """An auditor's token would be told that there is nothing (§0.5): the datasets come from ZFS."""
    world.run()
    asked = [ran.argv[2] for ran in world.runner.ran if ran.argv[0] == "pvesh"]
    assert "/storage" in asked
    assert not [path for path in asked if path.endswith("/content")]


def test_nothing_is_ever_held_on_the_source(world: World) -> None:
    """A hold there breaks Proxmox's own deleting halfway (observed)."""
    for _ in range(2):
        world.run()
        world.write()
    assert not world.runner.zfs(HERE, "hold", "release")


def test_after_an_offline_migration_the_new_owner_goes_on(world: World) -> None:
    """`send -R` brings snapshots with their guids and properties; the dataset is another one, bookmarks are lost."""
    world.run()
    for name in ("rpool/data/vm-100-disk-0", "fast/vm-100-disk-0"):
        moved = world.source.datasets[name]
        moved.guid += 1
        moved.marks.clear()
        world.source.snap(f"{name}@__migration__")
        del moved.snaps["__migration__"]
    world.runner.ran.clear()
    world.write()
    report = world.run(guests=["100"])
    assert report.exit_code is ExitCode.OK, report.results
    sends = [argv for argv in world.runner.zfs(HERE, "send") if "-nvP" not in argv]
    assert sends
    assert all("-i" in argv or "-I" in argv for argv in sends)
    assert world.complete(TARGET, WEB)[-1] == world.complete(HERE, WEB)[-1]
    assert not [name for name in world.target.datasets if "-g" in name.rpartition("/")[2]]


def test_after_a_live_migration_a_new_generation_begins(world: World) -> None:
    """The mirror makes a new zvol without our snapshots: a full stream beside the old replica, which stays."""
    world.run()
    world.source.drop(ZVOL)
    world.source.add(ZVOL, zvol=True)
    old = dict(world.target.datasets[REPLICAS[ZVOL]].snaps)
    world.write()
    report = world.run(guests=["100"])
    assert report.exit_code is ExitCode.OK, report.results
    assert any("new generation" in result.message for result in report.results)
    assert dict(world.target.datasets[REPLICAS[ZVOL]].snaps) == old
    assert world.complete(TARGET, WEB)[-1] == world.complete(HERE, WEB)[-1]


def test_no_name_of_ours_counts_as_proxmoxs(world: World) -> None:
    """Right below a storage's dataset `vm-100-anything` is guest 100's: a rescan attaches it, a removal destroys it."""
    storages = {str(entry["pool"]) for entry in world.node.storages if entry["type"] == "zfspool"}
    world.run()
    world.guest(WEB).running = False
    world.runner.ran.clear()
    with world.session() as session, restoring_alone(session):
        for request in (Request(vmid=Vmid(WEB), new=300), Request(vmid=Vmid(WEB), replace=WEB)):
            carry_out(session, prepare(session, request))
    made = {ran.argv[-1] for ran in world.runner.ran if ran.host == HERE and ran.argv[:1] == ("zfs",)
            and ran.argv[1] in ("create", "clone", "receive", "rename")}  # fmt: skip
    seen = {name for name in made if name.rpartition("/")[0] in storages and PROXMOXS.match(name.rpartition("/")[2])}
    placed = {f"{pool}/vm-{vmid}-disk-{number}" for pool in storages for vmid, number in ((300, 0), (WEB, 1))}
    assert seen == {name for name in placed if "crypt" not in name}, "only what the guests have now"
    assert {name for name in made - seen if "/pzb-restore/" in name}
    assert {name for name in made - seen if "/pzb-aside/" in name}


def test_a_replicas_name_has_no_node_in_it(world: World) -> None:
    world.run()
    assert not [name for name in world.target.datasets if "pve1" in name]


def test_a_point_knows_them(world: World) -> None:
    """What a receive does not bring back travels as a property of the point."""
    world.source.datasets["rpool/data/subvol-200-disk-0"].props |= {"acltype": "posix", "refquota": "1073741824"}
    world.run()
    (point,) = world.points(TARGET, CT)
    replica = world.target.get(point.snapshots["rootfs"].full_name)
    assert "refquota" in replica.props["pve-zfsbackup:props"]


def test_without_quorum_points_are_made_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/pve can be read then; whatever would write there gets EACCES, root or not."""
    etc, opened, opened_low = str(world.node.etc), builtins.open, os.open

    def guarded(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if str(path).startswith(etc) and set(mode) & set("wax+"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *rest, **more)

    def guarded_low(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if str(path).startswith(etc) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(13, "Permission denied", str(path))
        return opened_low(path, flags, *rest, **more)

    monkeypatch.setattr(builtins, "open", guarded)
    monkeypatch.setattr(os, "open", guarded_low)
    assert world.run().exit_code is ExitCode.OK


def test_no_key_of_ours_is_roots() -> None:
    """`pvecm updatecerts` moves root's authorized_keys to /etc/pve/priv, where they go with pmxcfs."""
    target = Target(name="t", host="h", root="tank/x")  # type: ignore[arg-type]
    assert target.user != "root"
    assert not str(target.identity_file).startswith(("/root/", "/etc/pve/"))
