"""The archive stage in whole runs: due, based, protected, expired, restored."""

from __future__ import annotations

import json
import os
import shutil
import syslog
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pve_zfsbackup.app import archive_expire
from pve_zfsbackup.app import box as box_module
from pve_zfsbackup.app.archive import archive
from pve_zfsbackup.app.archive_publish import publish_removal
from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.archive_verify import Level, verify_box
from pve_zfsbackup.app.box import Vault
from pve_zfsbackup.app.gather import Scope, assign, inventory
from pve_zfsbackup.app.health import health
from pve_zfsbackup.app.history import History, history
from pve_zfsbackup.app.preview import preview
from pve_zfsbackup.app.run import ALL_STAGES, Stage
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.setup_box import try_out
from pve_zfsbackup.app.status import Status, status_of
from pve_zfsbackup.errors import BackupError, ConfigError, ExitCode, StoreForbiddenError, StoreFullError
from pve_zfsbackup.events import Outcome
from pve_zfsbackup.host.lock import RESTORE, reading, run_lock
from pve_zfsbackup.host.store import Entry
from pve_zfsbackup.report.points import points_json, points_table
from pve_zfsbackup.report.status import status_json
from tests.archive.bench import FaultyStore
from tests.archive.worldly import Boxed
from tests.fakes.pools import Pools
from tests.fakes.runner import HERE
from tests.fakes.world import CT, DB, WEB, World

pytestmark = pytest.mark.processes
DISKS = {
    WEB: ("rpool/data/vm-100-disk-0", "fast/vm-100-disk-0"),
    DB: ("rpool/crypt/vm-101-disk-0",),
    CT: ("rpool/data/subvol-200-disk-0",),
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_hex: None) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(Session, "now", lambda self: datetime.fromtimestamp(made.clock.now, UTC))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: None)
    return made


@pytest.fixture
def boxed(world: World) -> Boxed:
    return Boxed(world)


def bookmarks(boxed: Boxed, dataset: str) -> list[str]:
    return sorted(name for name in boxed.world.source.datasets[dataset].marks if name.endswith(":box1"))


def archived(report: object) -> list[tuple[Outcome, int | None, str]]:
    results = [result for result in report.results if result.stage == "archive"]  # type: ignore[attr-defined]
    return [(result.outcome, result.vmid, result.message) for result in results]


def test_a_run_archives_every_guest_of_the_job(boxed: Boxed) -> None:
    report = boxed.run()
    assert report.exit_code is ExitCode.OK, report.results
    assert [(outcome, vmid) for outcome, vmid, _ in archived(report)] == [(Outcome.OK, v) for v in (WEB, DB, CT)]
    assert verify_box(boxed.vault, Level.OPENED, identity=boxed.identity, note=print).good
    for vmid in DISKS:
        assert len(boxed.points(vmid)) == 1


def test_the_next_ones_are_increments_and_each_disk_has_one_bookmark(boxed: Boxed) -> None:
    for _ in range(3):
        boxed.world.write()
        boxed.run()
    assert [len(boxed.choose(vmid).chain) for vmid in DISKS] == [3, 3, 3]
    for names in DISKS.values():
        for name in names:
            assert len(bookmarks(boxed, name)) == 1
    assert ["-i" in argv for argv in boxed.programs.sent] == [False] * 4 + [True] * 8
    assert verify_box(boxed.vault, Level.OPENED, identity=boxed.identity, note=print).good


def test_encrypted_disks_leave_raw(boxed: Boxed) -> None:
    boxed.run()
    raw = {argv[-1].partition("@")[0] for argv in boxed.programs.sent if "-w" in argv}
    assert raw == set(DISKS[DB])
    (stream,) = boxed.choose(DB).content.inner.streams  # type: ignore[union-attr]
    assert (stream.raw, stream.to_ivset, stream.flags) == (True, "77", ("-w",))


def test_with_nothing_new_nothing_is_sent(boxed: Boxed) -> None:
    boxed.run()
    boxed.programs.sent.clear()
    report = boxed.run(Stage.ARCHIVE)
    assert {outcome for outcome, _, _ in archived(report)} == {Outcome.SKIPPED}
    assert boxed.programs.sent == []


def test_what_is_not_due_waits(boxed: Boxed) -> None:
    text = boxed.world.config.read_text().replace("every-hours: 0", "every-hours: 4")
    boxed.world.config.write_text(text)
    counts = []
    for _ in range(6):
        boxed.world.write()
        boxed.run()
        counts.append(len(boxed.points(WEB)))
    assert counts == [1, 1, 1, 1, 2, 2]


def test_the_base_survives_pruning_and_only_the_base(boxed: Boxed) -> None:
    boxed.run()
    (base,) = {name.rpartition(":")[0] for name in bookmarks(boxed, DISKS[WEB][0])}
    for _ in range(6):
        boxed.world.write()
        boxed.run(Stage.SNAPSHOT, Stage.REPLICATE, Stage.PRUNE)
    snaps = list(boxed.world.source.datasets[DISKS[WEB][0]].snaps)
    assert base in snaps
    assert len(snaps) == 4  # three that are kept, and the base
    boxed.run(Stage.ARCHIVE)
    boxed.run(Stage.PRUNE)
    assert base not in boxed.world.source.datasets[DISKS[WEB][0]].snaps


def test_the_bookmark_alone_is_base_enough(boxed: Boxed) -> None:
    boxed.run()
    disk = boxed.world.source.datasets[DISKS[WEB][0]]
    disk.snaps.clear()
    boxed.world.write()
    boxed.run(Stage.SNAPSHOT, Stage.ARCHIVE)
    assert len(boxed.choose(WEB).chain) == 2
    assert any("#" in word for argv in boxed.programs.sent for word in argv)


def test_a_disk_that_lost_its_base_goes_in_full_beside_the_increments_and_is_told(boxed: Boxed) -> None:
    boxed.run()
    disk = boxed.world.source.datasets[DISKS[WEB][0]]
    disk.snaps.clear()
    disk.marks.clear()
    boxed.world.write()
    report = boxed.run(Stage.SNAPSHOT, Stage.ARCHIVE)
    (outcome, _, _) = next(entry for entry in archived(report) if entry[1] == WEB)
    assert outcome is Outcome.WARNING
    assert len(boxed.choose(WEB).chain) == 2
    assert verify_box(boxed.vault, Level.OPENED, identity=boxed.identity, note=print).good


def test_history_expires_chain_by_chain_and_what_stays_can_be_restored(boxed: Boxed) -> None:
    text = boxed.world.config.read_text().replace("every-hours: 0", "every-hours: 0\n    full-increments: 2")
    boxed.world.config.write_text(text)
    for _ in range(12):
        boxed.world.write()
        boxed.run()
        verify_box(boxed.vault, Level.HASHED, note=lambda _: None)
    assert len(boxed.points(WEB)) == 6  # the last run did not know yet that its own chain can be read back
    boxed.run(Stage.ARCHIVE)
    points = boxed.points(WEB)
    assert [len(boxed.choose(WEB, point).chain) for point in points] == [1, 2, 3]
    found = verify_box(boxed.vault, Level.OPENED, identity=boxed.identity, note=lambda _: None)
    assert found.good, found.problems
    assert len(list((boxed.world.place / "mnt/root" / boxed.vault.writer).iterdir())) == len(DISKS)


def test_a_chain_that_was_never_read_back_keeps_the_one_before(boxed: Boxed) -> None:
    text = boxed.world.config.read_text().replace("every-hours: 0", "every-hours: 0\n    full-increments: 1")
    boxed.world.config.write_text(text)
    for _ in range(8):
        boxed.world.write()
        boxed.run()
    assert len(boxed.points(CT)) == 4


class Died(BaseException):
    """The process ends here."""


def dying(boxed: Boxed, monkeypatch: pytest.MonkeyPatch, ending: str) -> FaultyStore:
    """The next run dies when a file whose path has this in it came into the box, before it knew of that. Returns what
    counts from then on."""
    text = boxed.world.config.read_text()
    boxed.world.config.write_text(text.replace("spool-dir", "connections: 1\n    spool-dir"))
    made: list[FaultyStore] = []
    armed = [ending]
    make = box_module._store

    def die(verb: str, path: str) -> None:
        if verb == "after put" and armed and armed[0] in path:
            armed.clear()
            raise Died

    def store(*given: object) -> FaultyStore:
        made.append(FaultyStore(make(*given), die))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(box_module, "_store", store)
    with pytest.raises(Died):
        boxed.run(Stage.SNAPSHOT, Stage.ARCHIVE, guests=[str(WEB)])
    counted = FaultyStore(made[-1].inner)
    monkeypatch.setattr(box_module, "_store", lambda *given: counted)
    return counted


@pytest.mark.parametrize("increment", [False, True])
def test_after_a_crash_the_next_run_finishes_the_point_that_was_begun(
    boxed: Boxed, monkeypatch: pytest.MonkeyPatch, increment: bool
) -> None:
    """Though there is a newer one by then: only what is missing is sent, and the newer one follows."""
    if increment:
        boxed.run(Stage.SNAPSHOT, Stage.ARCHIVE)
        for name in DISKS[WEB]:
            boxed.world.source.write(name, 3 << 20)
    store = dying(boxed, monkeypatch, "/seg-000002-")
    (ledger,) = (boxed.vault.state / "pending").glob("*.jsonl")
    there = len(ledger.read_text().splitlines()) - 1
    assert there
    report = boxed.run(Stage.SNAPSHOT, Stage.ARCHIVE, guests=[str(WEB)])
    ((outcome, _, message),) = archived(report)
    assert outcome is Outcome.OK
    segments = int(message.split()[1])
    assert message.endswith(f"{there} there from an earlier attempt")
    assert len(store.segments) == segments - there
    assert not ledger.exists()
    (content,) = [boxed.choose(WEB).content]
    assert content.archived
    before = content.archived.point
    boxed.run(Stage.SNAPSHOT, Stage.ARCHIVE, guests=[str(WEB)])
    assert boxed.points(WEB)[-2] == before
    assert len(boxed.points(WEB)) == 2 + increment
    assert verify_box(boxed.vault, Level.OPENED, identity=boxed.identity, note=print).good


def test_what_was_begun_outlives_pruning_until_it_is_finished(boxed: Boxed, monkeypatch: pytest.MonkeyPatch) -> None:
    store = dying(boxed, monkeypatch, "/seg-000002-")
    (begun,) = boxed.world.source.datasets[DISKS[WEB][0]].snaps
    for _ in range(6):
        boxed.world.write()
        boxed.run(Stage.SNAPSHOT, Stage.REPLICATE, Stage.PRUNE)
    assert begun in boxed.world.source.datasets[DISKS[WEB][0]].snaps
    boxed.run(Stage.ARCHIVE, guests=[str(WEB)])
    assert [point.rpartition("/")[2] for point in boxed.points(WEB)] == [begun.removeprefix("pzb:")]
    assert len(store.segments) > 0


def test_a_begun_point_that_is_gone_from_the_source_gives_way_to_the_newest(
    boxed: Boxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(boxed, monkeypatch, "/seg-000002-")
    for name in DISKS[WEB]:
        boxed.world.source.datasets[name].snaps.clear()
    report = boxed.run(Stage.SNAPSHOT, Stage.ARCHIVE, guests=[str(WEB)])
    ((outcome, _, message),) = archived(report)
    assert (outcome, "earlier attempt" in message) == (Outcome.OK, False)
    assert len(boxed.points(WEB)) == 1


def test_a_guest_restored_from_the_box_alone_is_what_it_was(boxed: Boxed) -> None:
    for _ in range(3):
        boxed.world.write()
        boxed.run()
    point = boxed.points(WEB)[1]
    wanted = {
        name: next(s for s in boxed.world.source.datasets[name].snaps.values() if point.endswith(s.name[4:])).content
        for name in DISKS[WEB]
    }
    boxed.world.source.add("rpool/back")
    disks = boxed.restore(boxed.choose(WEB, point), "rpool/back")
    assert [(disk.key, disk.streams, disk.received) for disk in disks] == [("scsi0", 2, 2), ("scsi1", 2, 2)]
    back = boxed.world.source.datasets["rpool/back/local-zfs/vm-100-disk-0"]
    assert back.content == wanted[DISKS[WEB][0]]
    assert boxed.world.source.datasets["rpool/back/fast/vm-100-disk-0"].content == wanted[DISKS[WEB][1]]
    newest = list(back.snaps.values())[-1]
    assert newest.props["pve-zfsbackup:point"] == point
    again = boxed.restore(boxed.choose(WEB, point), "rpool/back")
    assert [disk.received for disk in again] == [0, 0]
    later = boxed.restore(boxed.choose(WEB), "rpool/back")
    assert [disk.received for disk in later] == [1, 1]


def test_a_restore_overwrites_nothing(boxed: Boxed) -> None:
    boxed.run()
    source: Pools = boxed.world.source
    for name in ("rpool/back", "rpool/back/local-zfs", "rpool/back/local-zfs/vm-100-disk-0"):
        source.add(name, zvol=name.endswith("disk-0"))
    source.write("rpool/back/local-zfs/vm-100-disk-0", 1000)
    with pytest.raises(BackupError, match="none of the states of this archive"):
        boxed.restore(boxed.choose(WEB), "rpool/back")


def test_a_restore_below_what_does_not_exist_says_so(boxed: Boxed) -> None:
    boxed.run()
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        boxed.restore(boxed.choose(WEB), "rpool/nowhere")


def test_a_box_that_lets_nothing_be_removed_is_told_once_and_archived_to_all_the_same(
    boxed: Boxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = boxed.world.config.read_text().replace("every-hours: 0", "every-hours: 0\n    full-increments: 1")
    boxed.world.config.write_text(text.replace("keep: {keep-last: 3}\njobs", "keep: {keep-last: 1}\njobs"))
    make = box_module._store

    def forbid(verb: str, path: str) -> None:
        if verb in {"remove", "rmdir"}:
            raise StoreForbiddenError("no")

    with monkeypatch.context() as patched:
        patched.setattr(box_module, "_store", lambda *given: FaultyStore(make(*given), forbid))
        told = []
        for _ in range(8):
            boxed.world.write()
            report = boxed.run()
            verify_box(boxed.vault, Level.HASHED, note=lambda _: None)
            told.append([message for outcome, _, message in archived(report) if outcome is not Outcome.OK])
        assert [len(messages) for messages in told].count(1) == 1, told
        assert "lets nothing be removed" in str(told)
        assert boxed.vault.only_adds
        before = set((boxed.world.place / "mnt/root").rglob("seg-*"))
        assert try_out(boxed.vault).detail.startswith("takes files and gives them back, lets nothing be removed")
    assert not try_out(boxed.vault).detail.startswith("takes files and gives them back, lets")
    assert not boxed.vault.only_adds
    boxed.run()
    assert not before <= set((boxed.world.place / "mnt/root").rglob("seg-*"))


# Faults


def test_a_box_that_stays_full_does_not_stop_the_pruning_of_the_source(
    boxed: Boxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxed.run()
    make = box_module._store

    def full(verb: str, path: str) -> None:
        if verb == "put":
            raise StoreFullError("full")

    with monkeypatch.context() as patched:
        patched.setattr(box_module, "_store", lambda *given: FaultyStore(make(*given), full))
        for _ in range(12):
            boxed.world.write()
            boxed.run()
    for name in (name for names in DISKS.values() for name in names):
        assert len(bookmarks(boxed, name)) <= 4
        assert len(boxed.world.source.datasets[name].snaps) <= 3 + 4
    boxed.world.write()
    assert boxed.run().exit_code is ExitCode.OK
    assert [len(boxed.choose(vmid).chain) for vmid in DISKS] == [2, 2, 2]
    assert {len(bookmarks(boxed, name)) for names in DISKS.values() for name in names} == {1}


def test_a_box_that_is_away_fails_alone(boxed: Boxed) -> None:
    shutil.rmtree(boxed.world.place / "mnt")
    report = boxed.run()
    assert report.exit_code is ExitCode.PARTIAL
    failed = [result for result in report.results if result.outcome is Outcome.FAILED]
    assert [(result.stage, result.host) for result in failed] == [("archive", "box1")]
    assert "is it mounted?" in failed[0].hint
    assert len(boxed.world.complete("backup1", WEB)) == 1


def test_a_share_that_is_not_mounted_is_not_filled_from_the_beginning(boxed: Boxed) -> None:
    boxed.run()
    shutil.rmtree(boxed.world.place / "mnt/root")  # the mount point alone is left
    boxed.world.write()
    (failed,) = [result for result in boxed.run().results if result.outcome is Outcome.FAILED]
    assert "is empty, although this node archived to it before" in failed.message
    assert list((boxed.world.place / "mnt").iterdir()) == []
    assert len(boxed.world.source.datasets[DISKS[WEB][0]].marks) >= 1


def test_keys_that_are_missing_are_told_with_the_way_to_make_them(boxed: Boxed) -> None:
    boxed.vault.box.recipients_file.unlink()
    report = boxed.run()
    (failed,) = [result for result in report.results if result.outcome is Outcome.FAILED]
    assert "recipients does not exist" in failed.message
    assert "setup box box1" in failed.hint


def test_damage_in_the_box_is_told_and_not_built_upon(boxed: Boxed) -> None:
    boxed.run()
    (path,) = (boxed.world.place / "mnt/root").rglob(f"{boxed.choose(WEB).content.signed.outer.point}/seg-000001-*")
    path.unlink()
    boxed.world.write()
    report = boxed.run()
    messages = [message for outcome, _, message in archived(report) if outcome is Outcome.FAILED]
    assert len(messages) == 1
    assert path.name in messages[0]
    newest = boxed.choose(WEB)
    assert len(newest.chain) == 1  # a new full one
    assert len(boxed.choose(DB).chain) == 2


def test_one_damaged_segment_does_not_fill_the_box_for_ever(boxed: Boxed) -> None:
    """Nothing goes while the newest chain was not read back; then what no rule keeps does, as ever."""
    text = boxed.world.config.read_text().replace("every-hours: 0", "every-hours: 0\n    full-increments: 1")
    boxed.world.config.write_text(text)
    boxed.run()
    damaged = boxed.choose(WEB).content.signed.outer.point
    next((boxed.world.place / "mnt/root").rglob(f"{damaged}/seg-000001-*")).unlink()
    for _ in range(6):
        boxed.world.write()
        boxed.run()
    assert len(boxed.points(WEB)) == 7
    for _ in range(3):
        verify_box(boxed.vault, Level.HASHED, note=lambda _: None)
        boxed.world.write()
        boxed.run()
    verify_box(boxed.vault, Level.HASHED, note=lambda _: None)
    boxed.run(Stage.ARCHIVE)
    assert len(boxed.points(WEB)) <= 4
    assert boxed.run(Stage.ARCHIVE).exit_code is ExitCode.OK
    assert verify_box(boxed.vault, Level.OPENED, identity=boxed.identity, note=lambda _: None).good


def test_a_point_that_lost_its_manifest_is_no_orphan(boxed: Boxed) -> None:
    """Its segments are all that there is of it, and somebody may have the file."""
    boxed.run()
    lost = boxed.choose(WEB).content
    manifest = boxed.world.place / "mnt/root" / lost.path / "manifest.json"
    data = manifest.read_bytes()
    manifest.unlink()
    for _ in range(12):
        boxed.world.write()
        boxed.world.clock.now += 86_400
        told = [message for outcome, _, message in archived(boxed.run()) if outcome is Outcome.FAILED]
        assert any("its manifest.json is gone, and the rest stays" in message for message in told)
    assert {path.name for path in manifest.parent.iterdir()} == set(lost.files) - {"manifest.json"}
    manifest.write_bytes(data)
    assert boxed.choose(WEB, lost.archived.point if lost.archived else "").chain


def test_what_was_gone_and_is_put_back_stays(boxed: Boxed) -> None:
    """No manifest since counts it, and nobody gave it up: a copy, or a snapshot of the provider's, brought it back."""
    for _ in range(3):
        boxed.world.write()
        boxed.run()
    place = boxed.world.place / "mnt/root" / boxed.choose(WEB).content.path
    data = (place / "manifest.json").read_bytes()
    (place / "manifest.json").unlink()
    boxed.world.write()
    boxed.run()
    (place / "manifest.json").write_bytes(data)
    for _ in range(2):
        told = [message for outcome, _, message in archived(boxed.run(Stage.ARCHIVE)) if outcome is Outcome.WARNING]
        assert any("1 points were gone from the box and are back" in message for message in told), told
        assert (place / "manifest.json").read_bytes() == data


def test_a_cut_removal_is_finished(boxed: Boxed) -> None:
    """What is left of a point that was given up is an orphan, though it was known once."""
    text = boxed.world.config.read_text().replace("every-hours: 0", "every-hours: 0\n    full-increments: 1")
    boxed.world.config.write_text(text.replace("{keep-last: 3}", "{keep-last: 1}"))
    boxed.run()
    first = boxed.choose(WEB).content
    while first.path in {content.path for shelf in boxed.catalog.shelves for content in shelf.contents}:
        boxed.world.write()
        verify_box(boxed.vault, Level.HASHED, note=lambda _: None)
        boxed.run()
    left = boxed.world.place / "mnt/root" / first.path
    left.mkdir(parents=True)
    (left / next(name for name in first.files if name.startswith("seg-"))).write_bytes(b"x")
    boxed.run(Stage.ARCHIVE)
    boxed.world.clock.now += 8 * 86_400
    assert boxed.run(Stage.ARCHIVE).exit_code is ExitCode.OK
    assert not left.exists()


def test_a_removal_that_was_cut_twice_is_finished(boxed: Boxed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after it was announced, and again after the manifest went: it passed for a point that lost its manifest."""
    boxed.run()
    boxed.world.write()
    boxed.run()
    shelf = next(shelf for shelf in boxed.catalog.shelves if shelf.archived[-1].vmid == WEB)
    going = shelf.contents[-1]
    vault = boxed.vault
    publish_removal(vault, Stamina(seconds=0), shelf, [going.signed.outer.point], "2027-01-15T09:00:00Z")

    whole = archive_expire._remove

    def cut(vault: Vault, directory: str, files: Mapping[str, Entry]) -> None:
        if directory != going.path:
            whole(vault, directory, files)
            return
        vault.store.remove([f"{directory}/manifest.json"])
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(archive_expire, "_remove", cut)
        boxed.run(Stage.ARCHIVE)
    left = boxed.world.place / "mnt/root" / going.path
    assert left.exists()
    assert not (left / "manifest.json").exists()
    assert boxed.run(Stage.ARCHIVE).exit_code is ExitCode.OK
    boxed.world.clock.now += 8 * 86_400
    assert boxed.run(Stage.ARCHIVE).exit_code is ExitCode.OK
    assert not left.exists()


def test_while_a_restore_is_at_work_nothing_expires(boxed: Boxed) -> None:
    text = boxed.world.config.read_text().replace("every-hours: 0", "every-hours: 0\n    full-increments: 1")
    boxed.world.config.write_text(text)
    for _ in range(6):
        boxed.world.write()
        boxed.run(Stage.SNAPSHOT)
        with boxed.session() as session, run_lock(session.config.runtime_dir, RESTORE):
            boxed.run(Stage.ARCHIVE)
        verify_box(boxed.vault, Level.HASHED, note=lambda _: None)
    assert len(boxed.points(WEB)) == 6
    boxed.run(Stage.ARCHIVE)
    assert len(boxed.points(WEB)) == 4


def test_expiry_that_a_restore_puts_off_is_told_and_alarmed_when_it_never_ends(boxed: Boxed) -> None:
    def told() -> list[tuple[Outcome, bool, str]]:
        results = [result for result in boxed.run(Stage.ARCHIVE).results if "is removed from the box" in result.message]
        assert all(result.host == "box1" for result in results)
        return [(result.outcome, result.alarm, result.message.partition("; ")[2]) for result in results]

    boxed.run(Stage.SNAPSHOT)
    boxed.run(Stage.ARCHIVE)
    with boxed.session() as session, reading(session.config.runtime_dir):
        assert told() == [(Outcome.SKIPPED, False, "")]
        assert told() == [(Outcome.SKIPPED, False, "nothing has been for 1 hours")]
        boxed.world.clock.now += 5 * 86_400
        assert told() == [(Outcome.SKIPPED, False, "nothing has been for 5 days")]
        boxed.world.clock.now += 2 * 86_400
        assert told() == [(Outcome.WARNING, True, "nothing has been for 7 days")]
    assert told() == []
    with boxed.session() as session, reading(session.config.runtime_dir):
        assert told() == [(Outcome.SKIPPED, False, "")], "counted anew"


def test_an_upload_of_weeks_does_not_stop_the_pruning(boxed: Boxed) -> None:
    for _ in range(6):
        boxed.world.write()
        with boxed.session() as session, run_lock(session.config.runtime_dir, "archive"):
            assert boxed.run().exit_code is ExitCode.OK
    assert len(boxed.world.complete(HERE, WEB)) == 3


def test_a_guest_whose_turn_comes_after_weeks_is_archived_as_it_is_then(boxed: Boxed) -> None:
    """Others pruned meanwhile what was its newest point when the stage began."""
    boxed.run(Stage.SNAPSHOT)

    def pruned() -> None:
        for _ in range(4):
            boxed.world.write()
            boxed.run(Stage.SNAPSHOT, Stage.REPLICATE, Stage.PRUNE)

    with boxed.session() as session:
        items, _ = assign(session, found := inventory(session), Scope())
        stage = archive(session, found, items)
        assert next(stage).outcome is Outcome.OK
        pruned()
        assert [result.outcome for result in stage] == [Outcome.OK, Outcome.OK]
    assert boxed.points(CT) == boxed.world.complete(HERE, CT)[-1:]


def test_a_point_that_somebody_removed_is_told_once_and_the_history_goes_on(boxed: Boxed) -> None:
    boxed.run()
    boxed.world.write()
    boxed.run()
    shutil.rmtree(boxed.world.place / "mnt/root" / boxed.choose(WEB).content.path)
    boxed.world.write()
    first = boxed.run()
    assert any("newer ones were removed" in message for _, _, message in archived(first))
    boxed.world.write()
    assert boxed.run().exit_code is ExitCode.OK
    assert len(boxed.choose(WEB).chain) == 2


def test_a_guest_whose_archives_are_all_gone_is_told_once_and_archived_anew(boxed: Boxed) -> None:
    """Also one that no job names any more: it may have been meant."""
    boxed.run()
    for vmid in (WEB, CT):
        shutil.rmtree((boxed.world.place / "mnt/root" / boxed.choose(vmid).content.path).parent)
    for _ in range(2):
        assert any(f"everything of guest {CT} is gone" in text for text in judged(boxed))
    boxed.world.write()
    messages = [message for outcome, _, message in archived(boxed.run(guests=[str(WEB)])) if outcome is Outcome.FAILED]
    assert [message.split(" is gone")[0] for message in messages] == [f"everything of guest {v}" for v in (WEB, CT)]
    boxed.world.write()
    assert boxed.run(guests=[str(WEB)]).exit_code is ExitCode.OK
    assert len(boxed.choose(WEB).chain) == 2


def test_lost_state_is_found_again_in_the_box(boxed: Boxed) -> None:
    boxed.run()
    shutil.rmtree(boxed.vault.state)
    boxed.world.write()
    assert boxed.run().exit_code is ExitCode.OK
    assert [len(boxed.choose(vmid).chain) for vmid in DISKS] == [2, 2, 2]


def test_orphans_go_after_seven_days_and_not_before(boxed: Boxed) -> None:
    boxed.run()
    place = boxed.world.place / "mnt/root" / boxed.vault.writer / ("ab" * 16) / ("cd" * 16)
    place.mkdir(parents=True)
    (place / f"seg-000001-{'0' * 64}").write_bytes(b"x")
    boxed.run(Stage.ARCHIVE)
    boxed.world.clock.now += 6 * 86_400
    boxed.run(Stage.ARCHIVE)
    assert place.exists()
    boxed.world.clock.now += 86_400
    boxed.run(Stage.ARCHIVE)
    assert not place.parent.exists()
    assert verify_box(boxed.vault, Level.HASHED, note=print).good


def test_what_a_killed_attempt_left_beside_a_point_goes_after_seven_days(boxed: Boxed) -> None:
    """A segment that arrived when nobody knew of it any more, and a cut upload; what the manifest names stays."""
    boxed.run()
    place = boxed.world.place / "mnt/root" / boxed.choose(WEB).content.path
    before = {path.name for path in place.iterdir()}
    left = (
        place / f"seg-000001-{'0' * 64}", place / f"tmp-{'a' * 16}", place.parent / f"tmp-{'b' * 16}",
        place / f"seg-000001-{'0' * 64}.1f2e3d4c.partial", place.parent / "restore.sh.1f2e3d4c.partial",
    )  # fmt: skip
    foreign = (
        place / "notes", place / "notes.1f2e3d4c.partial", place / f"seg-000001-{'0' * 64}.partial",
        place / "manifest.json.é1.partial", place / f"manifest.json.{'a' * 99}.partial",
    )  # fmt: skip
    for path in (*left, *foreign):
        path.write_bytes(b"x")
    boxed.run(Stage.ARCHIVE)
    boxed.world.clock.now += 6 * 86_400
    boxed.run(Stage.ARCHIVE)
    assert all(path.exists() for path in left)
    boxed.world.clock.now += 86_400
    boxed.run(Stage.ARCHIVE)
    assert not any(path.exists() for path in left)
    assert {path.name for path in place.iterdir()} == {*before, *(path.name for path in foreign)}
    assert verify_box(boxed.vault, Level.HASHED, note=print).good


def test_what_a_guest_that_went_away_had_under_way_goes_as_well(boxed: Boxed) -> None:
    """Nobody goes on with it: after a month it is an orphan, and a week later it goes. What is under way stays."""
    boxed.run()
    pending = boxed.vault.state / "pending"
    places = {}
    for vmid, generation in ((WEB, "ab" * 16), (9999, "cd" * 16)):
        place = boxed.world.place / "mnt/root" / boxed.vault.writer / generation / ("ef" * 16)
        place.mkdir(parents=True)
        (place / f"seg-000001-{'0' * 64}").write_bytes(b"x")
        line = {"place": {"generation": generation, "point": "ef" * 16, "series": "12" * 16}}
        pending.mkdir(exist_ok=True)
        (pending / f"{vmid}.jsonl").write_text(json.dumps(line) + "\n")
        places[vmid] = place

    def looked_at_after(days: int) -> None:
        boxed.world.clock.now += days * 86_400
        os.utime(pending / f"{WEB}.jsonl", (boxed.world.clock.now,) * 2)
        with boxed.session() as session:
            list(archive_expire.expire(session, boxed.vault, "archive"))

    os.utime(pending / "9999.jsonl", (boxed.world.clock.now,) * 2)
    looked_at_after(29)
    assert (pending / "9999.jsonl").exists()
    looked_at_after(2)
    assert not (pending / "9999.jsonl").exists()
    assert places[9999].exists()
    looked_at_after(8)
    assert not places[9999].exists()
    assert places[WEB].exists()
    assert (pending / f"{WEB}.jsonl").exists()


def looked(boxed: Boxed, only: str = "") -> History:
    with boxed.session() as session:
        return history(session, Scope(), only=only)


def stands(boxed: Boxed) -> Status:
    with boxed.session() as session:
        return status_of(history(session, Scope()), session.config)


def judged(boxed: Boxed) -> list[str]:
    with boxed.session() as session:
        return [
            f"{f.level.name} {f.about}: {f.text}" for f in health(session, Scope()).findings if "pool" not in f.about
        ]


def test_what_lies_in_a_box_is_listed_as_on_any_other_host(boxed: Boxed) -> None:
    for _ in range(2):
        boxed.world.write()
        boxed.run()
    found = looked(boxed, "box1")
    assert found.places == ("box1",)
    listed = [point for point in points_json(found)["archived"] if point["vmid"] == WEB]
    assert [point["point"] for point in listed] == boxed.points(WEB)
    assert [point["increment_to"] for point in listed] == ["", listed[0]["point"]]
    assert [point["read_back"] for point in listed] == [None, None]
    assert verify_box(boxed.vault, Level.OPENED, identity=boxed.identity, note=print).good
    assert verify_box(boxed.vault, Level.HASHED, note=print).good  # says less, so what was opened stays opened
    (row,) = {point["read_back"]["level"] for point in points_json(looked(boxed))["archived"]}
    assert row == "opened"
    table = points_table(looked(boxed, "box1"), UTC)
    assert {cells[2] for cells in table.rows} == {"box1"}
    assert all(", full, opened 20" in cells[-1] or ", increment to 20" in cells[-1] for cells in table.rows)
    status = {guest["vmid"]: guest["newest"] for guest in status_json(stands(boxed))["guests"]}
    assert {name: point["point"] for name, point in status[WEB].items()} == dict.fromkeys(
        ("source", "backup1", "box1"), boxed.points(WEB)[-1]
    )


def test_a_box_left_behind_is_seen(boxed: Boxed) -> None:
    assert judged(boxed) == [
        f"CRITICAL guest {guest}: no point {where}"
        for guest in ("100 web", "101 db", "200 files")
        for where in ("here", "on backup1", "on box1")
    ]
    boxed.run()
    assert judged(boxed) == []
    for _ in range(4):
        boxed.run(Stage.SNAPSHOT, Stage.REPLICATE)
    assert judged(boxed) == [
        f"WARNING guest {guest}: newest point on box1 is 4.0 h old" for guest in ("100 web", "101 db", "200 files")
    ]
    text = boxed.world.config.read_text().replace("every-hours: 0", "every-hours: 4")
    boxed.world.config.write_text(text)
    assert judged(boxed) == []


def test_a_box_that_does_not_answer_is_told_once(boxed: Boxed) -> None:
    boxed.run()
    (boxed.world.place / "mnt").rename(boxed.world.place / "away")
    (told,) = judged(boxed)
    assert told.startswith("CRITICAL box box1: ")
    assert all("box1 does not answer" in guest["problems"] for guest in status_json(stands(boxed))["guests"])


def test_a_damaged_point_is_no_newest_one(boxed: Boxed) -> None:
    for _ in range(2):
        boxed.world.write()
        boxed.run()
    first, second = boxed.choose(WEB).chain
    segment = next((boxed.world.place / "mnt/root" / second.path).glob("seg-000001-*"))
    segment.unlink()
    found = looked(boxed)
    newest = found.newest("box1", WEB)
    assert newest
    assert first.archived
    assert newest.id == first.archived.point
    assert any("seg-000001" in note for note in found.notes)
    assert any(text.startswith("CRITICAL box box1: ") and "seg-000001" in text for text in judged(boxed))


def test_a_point_that_no_longer_reads_is_no_longer_proven(boxed: Boxed) -> None:
    boxed.run()
    assert verify_box(boxed.vault, Level.HASHED, note=print).good
    assert len(boxed.vault.proven()) == 3
    segment = next((boxed.world.place / "mnt/root" / boxed.choose(WEB).content.path).glob("seg-000001-*"))
    data = segment.read_bytes()
    segment.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not verify_box(boxed.vault, Level.HASHED, note=print).good
    assert len(boxed.vault.proven()) == 2


def test_another_archiving_run_is_not_waited_for(boxed: Boxed) -> None:
    boxed.run(Stage.SNAPSHOT)
    with boxed.session() as session, run_lock(session.config.runtime_dir, "archive"):
        report = boxed.run()
    assert any(result.stage == "archive" and result.outcome is Outcome.SKIPPED for result in report.results)
    assert boxed.catalog.shelves == []


def test_a_dry_run_says_what_would_go_and_changes_nothing(boxed: Boxed) -> None:
    boxed.run(Stage.SNAPSHOT)
    with boxed.session() as session:
        shown = preview(session, Scope(), ALL_STAGES)
    would = [(item.guest.vmid, item.would, item.plan.reasons) for item in shown.previews if item.stage is Stage.ARCHIVE]
    assert [vmid for vmid, _, _ in would] == [WEB, DB, CT]
    assert all(text.startswith("archive ") for _, text, _ in would)
    assert would[0][2] == ("full: the first one",)
    assert not (boxed.world.place / "mnt/root").exists()


def test_without_a_box_in_any_job_the_stage_is_not_there(world: World) -> None:
    report = world.run()
    assert {result.stage for result in report.results} == {"snapshot", "replicate", "prune"}
    assert not (world.place / "run/archive.lock").exists()
    lines = [json.loads(line) for line in (world.place / "log/journal.jsonl").read_text().splitlines()]
    assert lines[0]["stages"] == ["snapshot", "replicate", "prune"]
    with pytest.raises(ConfigError, match="no job names a box"):
        world.run(Stage.ARCHIVE)
