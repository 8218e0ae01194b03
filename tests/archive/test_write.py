"""Points into a box and back: what is sent, what is sent again, and what it looks like there."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from dataclasses import replace

import pytest

from pve_zfsbackup.app.archive_read import Reader, require_inner
from pve_zfsbackup.app.archive_restore import choose, streams_of
from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.archive_verify import Level, verify_box
from pve_zfsbackup.app.archive_write import pending
from pve_zfsbackup.errors import (
    BackupError,
    ConfigError,
    HostUnreachableError,
    StoreError,
    StoreForbiddenError,
    StoreFullError,
    ZfsError,
)
from pve_zfsbackup.model import Vmid
from tests.archive.bench import MARKER, Bench, noise, text

pytestmark = pytest.mark.processes
MIB = 1 << 20
FULL = {"scsi0": text(1, 5 * MIB // 2), "scsi1": noise(2, 3 * MIB)}
STEP = {"scsi0": text(3, MIB), "scsi1": noise(4, 1000)}


class Died(BaseException):
    """The process ends here."""


def read_back(bench: Bench, point: str = "") -> dict[str, list[bytes]]:
    """Every stream of every disk of the point, from the box alone."""
    choice = choose(bench.catalog(), Vmid(100), point)
    found: dict[str, list[bytes]] = {}
    with bench.vault.scratch() as spool:
        reader = Reader(vault=bench.vault, spool=spool, stamina=Stamina(seconds=0))
        for key in sorted({stream.key for stream in require_inner(choice.content).streams}):
            for content, stream in streams_of(choice, key):
                file = bench.place / "whole"
                took = ("dd", f"of={file}", "bs=64K", "status=none")
                assert reader.receive(content, stream, bench.identity, took).returncode == 0
                found.setdefault(key, []).append(file.read_bytes())
        assert list(spool.iterdir()) == []
    return found


def test_what_comes_back_is_what_was_sent_at_every_point(bench: Bench) -> None:
    bench.write(1, FULL)
    bench.write(2, STEP)
    bench.write(3, {"scsi0": noise(5, 10), "scsi1": text(6, 100)})
    assert bench.catalog().all_problems == ()
    first, second = "20270115T080100Z-0001", "20270115T080200Z-0001"
    assert read_back(bench, first) == {key: [data] for key, data in FULL.items()}
    assert read_back(bench, second) == {key: [FULL[key], STEP[key]] for key in FULL}
    assert [len(parts) for parts in read_back(bench).values()] == [3, 3]


def test_segments_have_the_size_that_is_configured_and_exact_multiples_leave_no_empty_one(bench: Bench) -> None:
    written = bench.write(1, FULL)
    (content,) = bench.catalog().shelves[0].contents
    segments = require_inner(content).segments
    assert [(s.stream, s.offset, s.bytes) for s in segments[-3:]] == [(2, n * MIB, MIB) for n in range(3)]
    assert sum(s.bytes for s in segments) == sum(map(len, FULL.values())) == written.plain


def test_only_what_shrinks_is_compressed_and_raw_streams_never(bench: Bench) -> None:
    bench.write(1, FULL)
    segments = require_inner(bench.catalog().shelves[0].contents[0]).segments
    assert {s.codec for s in segments if s.stream == 1} == {"zstd"}
    assert {s.codec for s in segments if s.stream == 2} == {"none"}
    assert sum(s.stored_bytes for s in segments if s.stream == 1) < 100_000
    bench.write(2, STEP, raw=True)
    assert {s.codec for s in require_inner(bench.catalog().shelves[0].contents[1]).segments} == {"none"}


def test_nothing_readable_lies_in_the_box(bench: Bench) -> None:
    bench.write(1, FULL)
    bench.write(2, STEP)
    for path, data in bench.files.items():
        assert MARKER not in data
        if not path.endswith("README.txt"):
            assert not re.search(rb"rpool/data|vm-100-|local-zfs|name: web|20270115T", data), path
        assert not re.search("rpool|100|scsi|pzb|2027", re.sub("[0-9a-f]{16,}", "", path)), path


def test_the_spool_is_empty_afterwards_and_never_held_more_than_it_may(bench: Bench) -> None:
    seen: list[int] = []

    def count(verb: str, path: str) -> None:
        if "/seg-" in path:
            seen.append(sum(file.is_file() for file in (bench.place / "spool").glob("pzb-*/*")))

    bench.store.before = count
    bench.write(1, {"scsi0": noise(1, 12 * MIB)})
    assert max(seen) <= bench.vault.box.connections + 1
    assert list((bench.place / "spool").glob("pzb-*")) == []


def test_a_send_that_dies_half_way_costs_only_the_slice_it_died_in(bench: Bench) -> None:
    """Its short slice is no segment: kept, the next attempt would find another one there and begin the point anew."""
    order = bench.order(1, FULL)
    name = order.task.streams[0].snapshot.full_name
    whole = bench.programs.streams[name]
    bench.programs.streams[name] = whole[: 3 * MIB // 2]
    bench.programs.fails[name] = "warning: cannot send: Input/output error"
    with pytest.raises(ZfsError, match="Input/output error"):
        bench.writer.write(order, lambda *told: None)
    bench.programs.streams[name] = whole
    del bench.programs.fails[name]
    written = bench.writer.write(order, lambda *told: None)
    assert written.skipped == 1
    assert read_back(bench) == {key: [data] for key, data in FULL.items()}


def test_a_send_that_wrote_nothing_makes_no_point(bench: Bench) -> None:
    """Whatever it says: no reader would take it."""
    with pytest.raises(BackupError, match="wrote nothing"):
        bench.write(1, {"scsi0": b"", "scsi1": b"x"})
    assert not [path for path in bench.files if "manifest" in path]


def test_a_point_of_more_segments_than_a_manifest_names_is_not_begun(bench: Bench) -> None:
    order = replace(bench.order(1, FULL), estimates=(200_001 * MIB, 0))
    with pytest.raises(BackupError, match="200001 segments"):
        bench.writer.write(order, lambda *told: None)
    assert bench.files == {}


def test_the_guests_configuration_comes_along(bench: Bench) -> None:
    bench.write(1, FULL)
    inner = require_inner(bench.catalog().shelves[0].contents[0])
    assert inner.config == {"conf": "name: web\n# \u00e4 secret note\n", "firewall": "[OPTIONS]\n"}
    assert (inner.vmid, inner.consistency, inner.zfs) == (100, "quiesced", "zfs-2.3.9-1")


# Faults


def test_an_upload_is_tried_again_while_the_stream_waits(bench: Bench) -> None:
    left = [HostUnreachableError("down")] * 7

    def fault(verb: str, path: str) -> None:
        if verb == "put" and "seg-000003" in path and left:
            raise left.pop()

    bench.store.before = fault
    bench.write(1, {"scsi0": noise(1, 6 * MIB)})
    assert bench.naps == [1, 2, 4, 8, 16, 32, 64]
    assert sorted(bench.store.segments) == [f"seg-00000{n}" for n in range(1, 7)]


def test_an_upload_is_given_up_after_the_hours_it_has_and_nothing_is_published(bench: Bench) -> None:
    def fault(verb: str, path: str) -> None:
        if "seg-000002" in path:
            raise StoreError("no")

    bench.store.before = fault
    with pytest.raises(StoreError, match="no"):
        bench.write(1, FULL)
    assert 1000 < sum(bench.naps) <= 3600
    assert max(bench.naps) <= 300
    assert not any("manifest" in path for path in bench.files)
    assert bench.catalog().shelves == []


def test_a_full_box_ends_it_at_once(bench: Bench) -> None:
    def fault(verb: str, path: str) -> None:
        if "seg-000002" in path:
            raise StoreFullError("full")

    bench.store.before = fault
    with pytest.raises(StoreFullError):
        bench.write(1, FULL)
    assert bench.naps == []


def test_a_box_with_too_little_room_is_not_begun(bench: Bench) -> None:
    bench.boxed(segment_mib=1 << 40)
    order = replace(bench.order(1, FULL), estimates=(1 << 61, 1 << 61))
    with pytest.raises(StoreFullError, match="bytes are free"):
        bench.writer.write(order, lambda *told: None)
    assert bench.files == {}


@pytest.mark.parametrize(("raw", "known", "free", "fits"), [
    (False, 0, 3 * MIB, True),  # what is not raw may shrink by half
    (True, 0, 3 * MIB, False),
    (True, 0, 6 * MIB, True),
    (True, 4, 3 * MIB, True),  # of an attempt before
])  # fmt: skip
def test_the_room_that_is_needed_is_reckoned_by_what_is_still_to_come(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, raw: bool, known: int, free: int, fits: bool
) -> None:
    bench.boxed(connections=1)
    order = replace(bench.order(1, FULL, raw=raw), estimates=(5 * MIB // 2, 3 * MIB))
    if known:

        def fault(verb: str, path: str) -> None:
            if verb == "put" and f"seg-{known + 1:06d}" in path:
                raise Died

        bench.store.before = fault
        with pytest.raises(Died):
            bench.writer.write(order, lambda *told: None)
        bench.store.before = lambda verb, path: None
    monkeypatch.setattr(bench.store, "free", lambda: free)
    if fits:
        assert bench.writer.write(order, lambda *told: None).skipped >= known
    else:
        with pytest.raises(StoreFullError, match="bytes are free"):
            bench.writer.write(order, lambda *told: None)


def test_a_spool_without_room_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.store, "free", lambda: None)
    bench.boxed(segment_mib=1 << 40)
    order = replace(bench.order(1, FULL), estimates=(1 << 60, 1 << 60))
    with pytest.raises(StoreFullError, match=re.escape(str(bench.vault.box.spool_dir))):
        bench.writer.write(order, lambda *told: None)
    bench.boxed(segment_mib=1 << 40)
    bench.writer.write(replace(order, estimates=(MIB, MIB)), lambda *told: None)  # it needs no more than there is


def test_a_send_that_fails_at_its_end_publishes_nothing(bench: Bench) -> None:
    order = bench.order(1, FULL)
    name = order.task.streams[1].snapshot.full_name
    bench.programs.fails[name] = "warning: cannot send: Input/output error"
    with pytest.raises(ZfsError, match="Input/output error"):
        bench.writer.write(order, lambda *told: None)
    assert bench.catalog().shelves == []


def test_a_compressor_that_dies_fails_the_point(bench: Bench) -> None:
    (bench.place / "bad").write_text("this is no recipient\n")
    bench.boxed(recipients_file=bench.place / "bad")
    with pytest.raises(BackupError, match="age"):
        bench.write(1, FULL)
    assert not any("manifest" in path for path in bench.files)


def interrupted(bench: Bench, when: str, ending: str) -> None:
    """The process dies at this moment of this file."""

    def fault(verb: str, path: str) -> None:
        if verb == when and (path.endswith(ending) if ending.startswith("/") else ending in path):
            raise Died

    bench.store.before = fault
    with pytest.raises(Died):
        bench.write(1, FULL)
    bench.store.before = lambda verb, path: None
    bench.store.puts.clear()


def test_an_interrupt_ends_transfers_under_way_instead_of_waiting_for_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(bench.programs, "cancel", ended.set)
    uploading = threading.Event()

    def slow(verb: str, path: str) -> None:
        if verb == "put":
            uploading.set()
            assert ended.wait(60), "the transfer was waited for"

    def interrupt(*told: object) -> None:
        if uploading.is_set():
            raise KeyboardInterrupt

    bench.store.before = slow
    with pytest.raises(KeyboardInterrupt):
        bench.writer.write(bench.order(1, FULL), interrupt)
    assert not any("manifest" in path for path in bench.files)


@pytest.mark.parametrize("when", ["put", "after put"])
@pytest.mark.parametrize("number", [1, 2, 4, 6])
def test_after_a_crash_only_what_is_missing_is_sent(bench: Bench, when: str, number: int) -> None:
    bench.boxed(connections=1)
    interrupted(bench, when, f"seg-{number:06d}")
    there = {path.rpartition("/")[2][:10] for path in bench.files if "/seg-" in path}
    known = len(pending(bench.vault, Vmid(100)).read()) - 1
    written = bench.write(1, FULL)
    assert written.skipped == known >= number - 2
    assert len(bench.store.segments) == written.segments - known
    assert len(there) >= known
    assert read_back(bench) == {key: [data] for key, data in FULL.items()}
    assert bench.catalog().all_problems == ()
    assert not (bench.vault.state / "pending/100.jsonl").exists()


@pytest.mark.parametrize("when", ["put", "after put"])
@pytest.mark.parametrize("name", ["manifest.age", "manifest.age.sig", "README.txt", "manifest.json.sig"])
def test_a_crash_at_a_manifest_leaves_no_point_and_costs_no_segment(bench: Bench, when: str, name: str) -> None:
    def fault(verb: str, path: str) -> None:
        if verb == when and path.endswith(f"/{name}"):
            raise Died

    bench.store.before = fault
    with pytest.raises(Died):
        bench.write(1, FULL)
    bench.store.before = lambda verb, path: None
    bench.store.puts.clear()
    assert bench.shelf is None
    written = bench.write(1, FULL)
    assert (bench.store.segments, written.skipped) == ([], written.segments)
    assert read_back(bench) == {key: [data] for key, data in FULL.items()}
    assert bench.catalog().all_problems == ()


def test_a_crash_right_after_publishing_leaves_a_point_that_is_built_upon(bench: Bench) -> None:
    interrupted(bench, "after put", "/manifest.json")
    assert bench.shelf is not None
    written = bench.write(2, STEP)
    assert (written.skipped, written.signed.outer.sequence) == (0, 2)
    assert read_back(bench) == {key: [FULL[key], STEP[key]] for key in FULL}
    assert bench.catalog().all_problems == ()


def test_where_nothing_can_be_removed_a_point_cut_at_its_manifests_begins_anew(bench: Bench) -> None:
    interrupted(bench, "put", "/manifest.json")

    def forbid(verb: str, path: str) -> None:
        if verb == "remove":
            raise StoreForbiddenError("no")

    bench.store.before = forbid
    assert bench.write(1, FULL).skipped == 0
    assert read_back(bench) == {key: [data] for key, data in FULL.items()}


def test_an_outer_manifest_that_was_cut_by_a_server_without_rename_is_made_anew(bench: Bench) -> None:
    interrupted(bench, "put", "/manifest.json")
    directory = bench.file("manifest.age.sig").parent
    (directory / "manifest.json").write_bytes(b"{")
    assert bench.catalog(own=True).all_problems == ()
    written = bench.write(1, FULL)
    assert written.skipped == written.segments
    assert read_back(bench) == {key: [data] for key, data in FULL.items()}


def test_a_stream_that_differs_after_a_crash_starts_anew(bench: Bench) -> None:
    bench.boxed(connections=1)
    interrupted(bench, "put", "seg-000005")
    other = {**FULL, "scsi0": text(9, 5 * MIB // 2)}
    written = bench.write(1, other)
    assert written.skipped == 0
    assert read_back(bench) == {key: [data] for key, data in other.items()}
    assert len(bench.catalog().strays) == 1


def test_a_stream_that_is_shorter_after_a_crash_starts_anew(bench: Bench) -> None:
    bench.boxed(connections=1)
    interrupted(bench, "put", "seg-000006")
    shorter = {"scsi0": FULL["scsi0"], "scsi1": FULL["scsi1"][:MIB]}
    assert bench.write(1, shorter).skipped == 0
    assert read_back(bench) == {key: [data] for key, data in shorter.items()}


def test_what_the_box_lost_since_the_crash_is_sent_again(bench: Bench) -> None:
    bench.boxed(connections=1)
    interrupted(bench, "put", "seg-000004")
    bench.file("seg-000001").unlink()
    bench.file("seg-000002").write_bytes(b"cut")
    bench.write(1, FULL)
    assert {"seg-000001", "seg-000002"} <= set(bench.store.segments)
    assert "seg-000003" not in bench.store.segments
    assert read_back(bench) == {key: [data] for key, data in FULL.items()}


@pytest.mark.parametrize("damage", ["", "{", "[]\n", '{"identity": "x"}\n', "garbage\n{}\n"])
def test_a_damaged_ledger_costs_time_and_nothing_else(bench: Bench, damage: str) -> None:
    bench.boxed(connections=1)
    interrupted(bench, "put", "seg-000005")
    (bench.vault.state / "pending/100.jsonl").write_text(damage)
    assert bench.write(1, FULL).skipped == 0
    assert read_back(bench) == {key: [data] for key, data in FULL.items()}


def test_a_ledger_cut_in_its_last_line_counts_up_to_there(bench: Bench) -> None:
    bench.boxed(connections=1)
    interrupted(bench, "put", "seg-000005")
    path = bench.vault.state / "pending/100.jsonl"
    known = len(path.read_text().splitlines()) - 1
    path.write_text(path.read_text()[:-20])
    assert bench.write(1, FULL).skipped == known - 1 >= 3
    assert read_back(bench) == {key: [data] for key, data in FULL.items()}


def test_other_recipients_start_anew(bench: Bench) -> None:
    bench.boxed(connections=1)
    interrupted(bench, "put", "seg-000005")
    file = bench.vault.box.recipients_file
    file.write_text(file.read_text() * 2)
    assert bench.write(1, FULL).skipped == 0


def test_the_memory_of_this_node_can_be_lost(bench: Bench) -> None:
    """Everything is in the box: the next increment is planned from there."""
    bench.write(1, FULL)
    shutil.rmtree(bench.vault.state)
    written = bench.write(2, STEP)
    assert written.signed.outer.sequence == 2
    assert read_back(bench) == {key: [FULL[key], STEP[key]] for key in FULL}


def test_a_state_directory_that_cannot_be_written_stops_it_before_anything_is_sent(bench: Bench) -> None:
    bench.vault.state.parent.mkdir(parents=True, exist_ok=True)
    bench.vault.state.write_text("a file where a directory should be")
    with pytest.raises(BackupError, match="state"):
        bench.write(1, FULL)
    assert bench.files == {}


def test_the_identity_of_another_safe_opens_nothing_and_says_so(bench: Bench) -> None:
    bench.write(1, FULL)
    other = bench.place / "other"
    bench.vault.seal.new_identity(other)
    catalog = bench.catalog(identity=other)
    assert any("no identity matched" in problem for problem in catalog.all_problems)
    with pytest.raises(ConfigError, match="no point of 100"):
        choose(catalog, Vmid(100))


def test_this_nodes_own_key_opens_manifests_but_no_content(bench: Bench) -> None:
    bench.write(1, FULL)
    catalog = bench.catalog(identity=bench.vault.box.catalog_key_file)
    (content,) = catalog.shelves[0].contents
    assert content.inner is not None
    with bench.vault.scratch() as spool:
        reader = Reader(vault=bench.vault, spool=spool, stamina=Stamina(seconds=0))
        with pytest.raises(BackupError, match="no identity matched"):
            reader.open(content, content.inner.segments[0], bench.vault.box.catalog_key_file)


def test_each_of_several_identities_opens_everything_alone(bench: Bench) -> None:
    second = bench.place / "second"
    recipient = bench.vault.seal.new_identity(second)
    with bench.vault.box.recipients_file.open("a") as file:
        file.write(f"# of the second safe\n{recipient}\n")
    bench.write(1, FULL)
    bench.write(2, STEP)
    (first, alone) = bench.identity, second
    for identity in (first, alone):
        bench.identity = identity
        assert read_back(bench) == {key: [FULL[key], STEP[key]] for key in FULL}
        assert require_inner(bench.catalog().shelves[0].contents[0]).recipients[-1] == recipient
        assert verify_box(bench.vault, Level.OPENED, identity=identity, note=print).good


def test_a_receive_that_fails_waits_for_no_box_that_is_away(bench: Bench) -> None:
    """What was to be fetched next would be tried again for hours."""
    bench.write(1, {"scsi0": noise(1, 5 * MIB)})
    choice = choose(bench.catalog(), Vmid(100))

    def before(verb: str, path: str) -> None:
        if "seg-000003" in path:
            raise HostUnreachableError("box1 does not answer")

    def pause(stop: threading.Event, seconds: float) -> bool:
        return stop.wait(60)

    bench.store.before = before
    ((content, stream),) = streams_of(choice, "scsi0")
    with bench.vault.scratch() as spool:
        stamina = Stamina(seconds=3600, clock=lambda: 0, pause=pause)
        reader = Reader(vault=bench.vault, spool=spool, stamina=stamina)
        begun = time.monotonic()
        assert reader.receive(content, stream, bench.identity, ("false",)).returncode == 1
        assert time.monotonic() - begun < 30
        assert list(spool.iterdir()) == []


def test_what_is_cut_is_on_its_way_while_the_rest_is_still_sent(bench: Bench) -> None:
    begun = threading.Event()
    bench.store.before = lambda verb, path: begun.set() if "seg-000001" in path else None

    def moved(stream: object, total: int, done: bool) -> None:
        if total > 3 * MIB and not done:
            assert begun.wait(60), "the first segment waits for the end of the stream"

    bench.writer.write(bench.order(1, {"scsi0": noise(1, 6 * MIB)}), moved)
    assert begun.is_set()


def test_manifests_are_text_that_tools_can_read_line_by_line(bench: Bench) -> None:
    bench.write(1, FULL)
    (path,) = [path for path in bench.files if path.endswith("manifest.json")]
    lines = bench.files[path].decode("ascii")
    assert json.loads(lines)["format"] == "pve-zfsbackup-archive 1"
    assert len([line for line in lines.splitlines() if line.startswith('{"n":')]) == 6
