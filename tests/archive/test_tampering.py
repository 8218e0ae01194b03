"""Whoever can write to the box: every change is refused, and named."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from pve_zfsbackup.app.archive_drill import drill
from pve_zfsbackup.app.archive_publish import publish_removal
from pve_zfsbackup.app.archive_read import Reader
from pve_zfsbackup.app.archive_restore import choose
from pve_zfsbackup.app.archive_upload import LEAST, Stamina, Waning
from pve_zfsbackup.app.archive_verify import Level, Look, look_at, verify_box
from pve_zfsbackup.app.box import HEADS
from pve_zfsbackup.app.catalog import Catalog
from pve_zfsbackup.app.catalog_memory import MANIFESTS
from pve_zfsbackup.archive.names import NAMESPACE, writer_name
from pve_zfsbackup.archive.outer import Outer
from pve_zfsbackup.archive.text import LIMIT, SIGNATURE_LIMIT
from pve_zfsbackup.errors import BackupError, SealError, StoreError, VerificationError
from pve_zfsbackup.host.seal import Digested, Seal
from pve_zfsbackup.model import Vmid
from tests.archive.bench import Bench, noise, text

pytestmark = pytest.mark.processes


@pytest.fixture
def filled(bench: Bench) -> Bench:
    """A full point and two increments."""
    for number in (1, 2, 3):
        bench.write(number, {"scsi0": noise(number, 300), "scsi1": text(number, 4000)})
    assert verify_box(bench.vault, Level.OPENED, identity=bench.identity, note=print).good
    return bench


def points(bench: Bench) -> list[Path]:
    """Directories of the points, oldest first."""
    return [bench.place / "mnt/root" / content.path for content in bench.catalog().shelves[0].contents]


def problems(bench: Bench, level: Level = Level.LISTED) -> str:
    found = verify_box(bench.vault, level, identity=bench.identity, note=lambda _: None)
    return "\n".join([*found.problems, *(f"{p.path}: {problem}" for p in found.points for problem in p.problems)])


def refused(bench: Bench, catalog: Catalog | None = None) -> str:
    """Why the newest point cannot be restored."""
    with pytest.raises(BackupError) as caught:
        choose(catalog or bench.catalog(), Vmid(100), "20270115T080300Z-0001")
    return str(caught.value)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_larger_than_any_is_told_and_not_fetched(filled: Bench, name: str) -> None:
    path = points(filled)[2] / name
    with open(path, "r+b") as file:
        file.truncate((SIGNATURE_LIMIT if name.endswith(".sig") else LIMIT) + 1)
    filled.store.gets.clear()
    assert f"{path.parent.name}: its manifests are larger" in problems(filled)
    assert filled.store.gets
    assert not [got for got in filled.store.gets if path.parent.name in got]
    assert "20270115T080300Z-0001" in refused(filled)


def test_every_flipped_byte_of_a_segment_is_named(filled: Bench) -> None:
    directory = points(filled)[2]
    content = filled.catalog().shelves[0].contents[2]
    with filled.vault.scratch() as spool:
        reader = Reader(vault=filled.vault, spool=spool, stamina=Stamina(seconds=0))
        for segment in content.signed.outer.segments:
            (path,) = directory.glob(f"seg-{segment.number:06d}-*")
            good = path.read_bytes()
            for at in range(len(good)):
                path.write_bytes(flipped(good, at))
                with pytest.raises(VerificationError, match=path.name):
                    reader.fetch(content, segment)
            path.write_bytes(good)
            reader.fetch(content, segment).unlink()


def test_age_itself_refuses_every_flipped_byte_it_is_given(filled: Bench) -> None:
    """Even if hashes said nothing: the second line."""
    (path,) = points(filled)[2].glob("seg-000001-*")
    good = path.read_bytes()
    with filled.vault.scratch() as spool:
        for at in range(0, len(good), 17):
            (spool / "bad").write_bytes(flipped(good, at))
            with pytest.raises(SealError):
                filled.vault.seal.unseal(spool / "bad", filled.identity, spool / f"plain-{at}", compressed=False)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_flipped_byte_of_a_manifest_is_refused(filled: Bench, name: str) -> None:
    directory = points(filled)[2]
    good = (directory / name).read_bytes()
    before = filled.catalog().shelves[0].contents[2].inner
    for at in range(3, len(good) - 1, max(1, len(good) // 24)):
        (directory / name).write_bytes(flipped(good, at))
        catalog = filled.catalog()
        if name.endswith(".sig") and not catalog.all_problems:
            # White space and line ends of the armour say nothing: the signature is the same, and so is what it signs.
            assert catalog.shelves[0].contents[2].inner == before
            continue
        assert directory.name in "\n".join(catalog.all_problems), at
        refused(filled, catalog)


@pytest.mark.parametrize(
    "pattern", ["manifest.json", "manifest.json.sig", "manifest.age", "manifest.age.sig", "seg-000002-*"]
)
@pytest.mark.parametrize("how", ["removed", "emptied", "truncated", "longer"])
def test_what_is_gone_or_has_another_length_is_named(filled: Bench, pattern: str, how: str) -> None:
    directory = points(filled)[1]
    (path,) = directory.glob(pattern)
    data = path.read_bytes()
    match how:
        case "removed":
            path.unlink()
        case "emptied":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(data[:-1])
        case "longer":
            path.write_bytes(data + b"x")
    if pattern.endswith(".sig") and how in ("longer", "truncated"):
        # What follows the armour, and its last line end, is not part of the signature.
        assert problems(filled) == "" or directory.name in problems(filled)
        return
    assert directory.name in problems(filled)
    assert directory.name in refused(filled) or "missing" in refused(filled)


def test_segments_that_were_swapped_are_named(filled: Bench) -> None:
    one, other = sorted(points(filled)[2].glob("seg-*"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    told = problems(filled, Level.HASHED)
    assert one.name in told
    assert other.name in told


def test_segments_of_equal_length_that_were_swapped_are_named_when_hashed(bench: Bench) -> None:
    bench.write(1, {"scsi0": noise(1, 500), "scsi1": noise(2, 500)})
    one, other = sorted(points(bench)[0].glob("seg-*"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert problems(bench, Level.LISTED) == ""  # as long, and that is all a listing shows
    assert one.name in problems(bench, Level.HASHED)
    assert not verify_box(bench.vault, Level.OPENED, identity=bench.identity, note=print).good


def test_manifests_of_two_points_that_were_swapped_are_refused(filled: Bench) -> None:
    one, other = points(filled)[1:]
    for name in MANIFESTS:
        content = (one / name).read_bytes()
        (one / name).write_bytes((other / name).read_bytes())
        (other / name).write_bytes(content)
    assert f"belongs to {filled.vault.writer}" in problems(filled)
    with pytest.raises(VerificationError):
        choose(filled.catalog(), Vmid(100))


def test_an_inner_manifest_of_another_point_is_refused(filled: Bench) -> None:
    one, other = points(filled)[1:]
    for name in ("manifest.age", "manifest.age.sig"):
        shutil.copy(one / name, other / name)
    assert "manifest.age is not the one manifest.json speaks of" in problems(filled)


def test_an_older_point_put_in_place_of_a_newer_is_refused(filled: Bench) -> None:
    _, older, newest = points(filled)
    for path in newest.iterdir():
        path.unlink()
    for path in older.iterdir():
        shutil.copy(path, newest / path.name)
    assert newest.name in problems(filled)


def test_the_newest_point_removed_is_noticed_by_who_saw_it(filled: Bench) -> None:
    shutil.rmtree(points(filled)[2])
    assert "sequence 2, but 3 was seen before" in problems(filled)
    with pytest.raises(VerificationError, match="newer ones were removed"):
        choose(filled.catalog(), Vmid(100))


def test_the_whole_box_set_back_to_an_older_state_is_noticed(bench: Bench) -> None:
    root = bench.place / "mnt/root"
    bench.write(1, {"scsi0": noise(1, 300)})
    shutil.copytree(root, bench.place / "older")
    bench.write(2, {"scsi0": noise(2, 300)})
    shutil.rmtree(root)
    shutil.copytree(bench.place / "older", root)
    with pytest.raises(VerificationError, match="older state"):
        choose(bench.catalog(), Vmid(100))
    older = choose(bench.catalog(), Vmid(100), older=True)  # a person may want what there is
    assert older.content.signed.outer.sequence == 1


def by_id_alone(bench: Bench) -> Path:
    """What is remembered, as it was before writers were told apart."""
    heads = bench.vault.state / HEADS
    known = json.loads(heads.read_text())
    heads.write_text(json.dumps({name.partition("/")[2]: head for name, head in known.items()}))
    return heads


def test_a_series_remembered_by_its_id_alone_is_not_gone_and_known_by_its_writer_from_then_on(filled: Bench) -> None:
    named = json.loads((filled.vault.state / HEADS).read_text())
    heads = by_id_alone(filled)
    assert problems(filled) == ""
    assert json.loads(heads.read_text()) == named


def test_what_was_remembered_by_its_id_alone_still_tells_an_older_state(filled: Bench) -> None:
    newest = points(filled)[2]
    by_id_alone(filled)
    shutil.rmtree(newest)
    assert "sequence 2, but 3 was seen before" in problems(filled)
    assert "gone" not in problems(filled)
    filled.write(4, {"scsi0": b"x"})  # follows the newest that was seen
    assert filled.catalog().shelves[0].series.head.sequence == 4


def test_a_series_remembered_by_its_id_alone_that_vanished_is_told(filled: Bench) -> None:
    by_id_alone(filled)
    shutil.rmtree(filled.place / "mnt/root" / filled.vault.writer)
    assert "is gone: 3 manifests were seen before" in problems(filled)


def test_a_series_that_vanished_is_told(filled: Bench) -> None:
    shutil.rmtree(filled.place / "mnt/root" / filled.vault.writer)
    assert "is gone: 3 manifests were seen before" in problems(filled)


def test_all_of_a_guest_that_vanished_is_told_by_who_writes_until_it_is_archived_anew(filled: Bench) -> None:
    shutil.rmtree(points(filled)[0].parent)
    (filled.place / "mnt/root" / filled.vault.writer / ("ab" * 16)).mkdir()  # something is left: it is mounted
    key = filled.vault.box.catalog_key_file
    for _ in range(2):
        assert "everything of guest 100 is gone" in " ".join(filled.catalog(own=True, identity=key).all_problems)
    filled.write(4, {"scsi0": b"x"}, parent=False)
    assert filled.catalog(own=True, identity=key).all_problems == ()


@pytest.mark.parametrize("fork", ["previous", "sequence"])
def test_a_history_that_forks_is_not_restored_from_unasked(filled: Bench, fork: str) -> None:
    """Both branches are signed: two nodes with one key, or one that forgot and an older box put in place."""
    root = filled.place / "mnt/root"
    shutil.copytree(root, filled.place / "before")
    filled.write(4, {"scsi0": b"one"})
    forth = filled.catalog().shelves[0].contents[-1].path
    shutil.copytree(root / forth, filled.place / "forth")
    shutil.rmtree(root)
    shutil.copytree(filled.place / "before", root)
    shutil.rmtree(filled.vault.state)
    filled.write(4, {"scsi0": b"other"})
    if fork == "previous":
        filled.write(5, {"scsi0": b"more"})
        shutil.rmtree(root / filled.catalog().shelves[0].contents[-2].path)
    shutil.copytree(filled.place / "forth", root / forth)
    shutil.rmtree(filled.vault.state)  # as on a fresh host
    with pytest.raises(VerificationError, match="two manifests" if fork == "sequence" else "does not follow"):
        choose(filled.catalog(), Vmid(100), "20270115T080200Z-0001")
    assert len(choose(filled.catalog(), Vmid(100), "20270115T080200Z-0001", older=True).chain) == 2


def test_a_point_removed_from_the_middle_is_named_even_by_who_never_saw_it(filled: Bench) -> None:
    victim = points(filled)[1]
    shutil.rmtree(victim)
    shutil.rmtree(filled.vault.state)
    assert f"{victim.name} (sequence 2) is gone" in problems(filled)
    assert "missing" in refused(filled)
    assert len(choose(filled.catalog(), Vmid(100), "20270115T080100Z-0001").chain) == 1  # what is whole still is


def test_a_removed_statement_cannot_bring_back_what_was_removed(filled: Bench) -> None:
    shelf = filled.shelf
    assert shelf is not None
    newest = shelf.contents[-1].signed.outer.point
    publish_removal(filled.vault, Stamina(seconds=0), shelf, [newest], "2027-01-15T09:00:00Z")
    catalog = filled.catalog()
    assert [c.signed.outer.sequence for c in catalog.shelves[0].contents] == [1, 2]
    assert [signed.outer.point for signed in catalog.shelves[0].series.leftover] == [newest]


def test_a_forger_with_the_recipient_but_without_the_key_gets_nowhere(filled: Bench) -> None:
    """age does not say who encrypted (age#59): only the signature does."""
    seal = filled.vault.seal
    seal.new_signing_key(filled.place / "forged", "forger")
    directory = points(filled)[2]
    data = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json.sig").write_bytes(seal.sign(data, filled.place / "forged"))
    assert "signature is not" in problems(filled)


def test_another_nodes_key_does_not_sign_in_this_nodes_name(filled: Bench) -> None:
    """Both are believed, each in its own directory."""
    seal = filled.vault.seal
    seal.new_signing_key(filled.place / "other", "other node")
    public = (filled.place / "other.pub").read_text()
    with filled.vault.box.signers_file.open("a") as file:
        file.write(f'{writer_name(public)} namespaces="{NAMESPACE}" {" ".join(public.split()[:2])}\n')
    directory = points(filled)[2]
    data = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json.sig").write_bytes(seal.sign(data, filled.place / "other"))
    assert "signature is not" in problems(filled)


def test_a_signature_for_another_purpose_does_not_count(filled: Bench) -> None:
    directory = points(filled)[2]
    other = replace(filled.vault.seal, namespace="git")
    data = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json.sig").write_bytes(other.sign(data, filled.vault.box.signing_key_file))
    assert "signature is not" in problems(filled)


@pytest.mark.parametrize("make", [
    lambda root: (root / "w-0000000000000000").mkdir(),
    lambda root: (root / "lost+found").mkdir(),
    lambda root: (root / "a\nb").write_text("x"),
    lambda root: (root / "-rf").mkdir(),
    lambda root: (root / ("0" * 32)).symlink_to("/etc"),
])  # fmt: skip
def test_what_else_lies_there_is_passed_over(filled: Bench, make: Callable[[Path], object]) -> None:
    make(filled.place / "mnt/root")
    make(filled.place / "mnt/root" / filled.vault.writer)
    assert problems(filled) == ""


def test_garbage_where_a_point_could_be_harms_no_other(filled: Bench) -> None:
    place = points(filled)[0].parent / ("ab" * 16)
    place.mkdir()
    for name in ("manifest.json", "manifest.json.sig"):
        (place / name).write_bytes(noise(7, 1000))
    assert "ab" * 16 in problems(filled)
    assert len(choose(filled.catalog(), Vmid(100)).chain) == 3


# Levels


def test_samples_cover_everything_in_one_cycle(filled: Bench) -> None:
    filled.store.gets.clear()
    found = [verify_box(filled.vault, Level.SAMPLED, parts=4, note=print) for _ in range(4)]
    assert [one.part for one in found] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert all(one.good for one in found)
    segments = [path for path in filled.store.gets if "/seg-" in path]
    assert len(segments) == len(set(segments)) == 6


def test_looks_at_one_guest_go_round_by_themselves(filled: Bench) -> None:
    parts = [
        look_at(filled.vault, Look(level=Level.SAMPLED, parts=4, guests=frozenset(guests)), note=print).part
        for guests in ([], [100], [100], [], [], [100])
    ]
    assert parts == ["1 of 4", "1 of 4", "2 of 4", "2 of 4", "3 of 4", "3 of 4"]


def test_a_broken_manifest_is_told_whatever_guest_was_asked_for(filled: Bench) -> None:
    """Nobody can tell whose it is."""
    path = points(filled)[2] / "manifest.age"
    path.write_bytes(flipped(path.read_bytes(), 50))
    look = Look(level=Level.HASHED, identity=filled.identity, guests=frozenset([100]))
    found = look_at(filled.vault, look, note=print)
    assert [bool(point.problems) for point in found.points] == [False, False, True]


def test_a_look_at_a_guest_of_which_nothing_is_there_is_no_success(filled: Bench) -> None:
    look = Look(level=Level.LISTED, identity=filled.identity, guests=frozenset([999]))
    assert look_at(filled.vault, look, note=print).problems == (
        "no point of guest 999 is among those that can be opened",
    )


def test_each_guest_that_was_asked_for_and_is_not_there_is_named(filled: Bench) -> None:
    look = Look(level=Level.LISTED, identity=filled.identity, guests=frozenset([100, 998, 999]))
    found = look_at(filled.vault, look, note=print)
    assert found.problems == ("no point of guests 998, 999 is among those that can be opened",)
    assert len(found.points) == 3


def test_a_spool_that_is_full_is_no_damage_of_the_archive(filled: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a segment is fetched nor where it is opened; remembered as damage, a new full archive followed."""
    usage = shutil.disk_usage(filled.place)

    def unseal(seal: Seal, stored: Path, identity: Path, out: Path, *, compressed: bool) -> None:
        raise SealError("zstd: error 70 : Write error : cannot write block : No space left on device")

    for free in (100, 3000):  # noise of 300 bytes is stored as 500, and text of 4000 bytes in fewer than 3000
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: usage._replace(free=free))
        if free == 3000:
            monkeypatch.setattr(Seal, "unseal", unseal)
        with pytest.raises(BackupError, match="bytes are free"):
            verify_box(filled.vault, Level.OPENED, identity=filled.identity, note=print)
        assert filled.vault.damaged() == {}


def test_neither_is_one_that_was_full_a_moment_ago(filled: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was freed since, by a slice beside it, or where a quota binds: `df` shows room."""

    def unseal(seal: Seal, stored: Path, identity: Path, out: Path, *, compressed: bool) -> None:
        out.write_bytes(b"some of it")
        raise SealError("age failed", stderr="age: error: write /dev/stdout: no space left on device\n")

    monkeypatch.setattr(Seal, "unseal", unseal)
    with pytest.raises(BackupError, match="age failed") as caught:
        verify_box(filled.vault, Level.OPENED, identity=filled.identity, note=print)
    assert "spool-dir" in caught.value.hint
    assert filled.vault.damaged() == {}


def test_what_the_listing_misses_is_not_asked_for_again_and_again(filled: Bench) -> None:
    """Each would be tried for `retry-hours`."""
    filled.boxed(retry_hours=6)
    victim = next(points(filled)[1].glob("seg-*"))
    victim.unlink()
    filled.store.gets.clear()
    assert victim.name[:10] in problems(filled, Level.HASHED)
    assert not [got for got in filled.store.gets if victim.name in got]


def test_a_segment_that_a_box_does_not_give_is_named_and_the_others_are_looked_at(filled: Bench) -> None:
    """A bad sector of a mounted disk, or `Failure` of a server: for ever, and of this file alone."""
    filled.boxed(retry_hours=0)
    victim = next(points(filled)[1].glob("seg-*")).name
    newest = points(filled)[2].name

    def before(verb: str, path: str) -> None:
        if verb == "get" and path.endswith(victim):
            raise StoreError("box1: Input/output error")

    filled.store.before = before
    assert "Input/output error" in problems(filled, Level.OPENED)
    assert [got for got in filled.store.gets if newest in got]
    assert list(filled.vault.damaged()), "nothing is built upon it"
    assert not drill(filled.vault, filled.identity, note=print).problems


def test_the_drill_names_what_a_box_does_not_give(filled: Bench) -> None:
    filled.boxed(retry_hours=0)

    def before(verb: str, path: str) -> None:
        if verb == "get" and "/seg-" in path:
            raise StoreError("box1: Input/output error")

    filled.store.before = before
    (point,) = drill(filled.vault, filled.identity, note=print).points
    assert point.problems == ("box1: Input/output error",)


def test_a_box_that_does_not_answer_any_more_is_no_damage(filled: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(verb: str, path: str) -> None:
        def silent(directories: object) -> NoReturn:
            raise StoreError("box1: no route to host")

        if verb == "get":
            monkeypatch.setattr(filled.store, "list", silent)
            raise StoreError("box1: no route to host")

    filled.boxed(retry_hours=0)
    filled.store.before = gone
    with pytest.raises(StoreError, match="no route"):
        verify_box(filled.vault, Level.HASHED, note=print)
    assert filled.vault.damaged() == {}


def test_what_was_waited_for_one_file_in_vain_is_not_waited_for_the_next() -> None:
    now = [0.0]

    def pause(stop: threading.Event, seconds: float) -> bool:
        now[0] += seconds
        return False

    def fail() -> None:
        raise StoreError("no")

    stamina = Waning(seconds=3600, clock=lambda: now[0], pause=pause)
    spent = []
    for _ in range(3):
        started = now[0]
        with pytest.raises(StoreError):
            stamina.keep_trying(fail, threading.Event())
        spent.append(now[0] - started)
    assert 3000 < spent[0] <= 3600
    assert spent[1] <= 3600 - spent[0] or spent[1] <= LEAST
    assert 0 < spent[2] <= LEAST


def test_segments_that_do_not_open_do_not_fill_the_spool(filled: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lying = []

    def unseal(seal: Seal, stored: Path, identity: Path, out: Path, *, compressed: bool) -> Digested:
        lying.append(sorted(path.name for path in out.parent.iterdir() if path != stored))
        out.write_bytes(b"some of it")
        if compressed:
            raise SealError("zstd: Data corruption detected")
        return Digested(bytes=10, sha256="")

    monkeypatch.setattr(Seal, "unseal", unseal)
    assert not verify_box(filled.vault, Level.OPENED, identity=filled.identity, note=print).good
    assert lying == [[]] * 6


def test_another_writer_who_is_believed_cannot_take_a_series_over(filled: Bench) -> None:
    """By its id, with a sequence higher than any: each writer speaks for itself alone."""
    own, seal = filled.vault, filled.vault.seal
    seal.new_signing_key(filled.place / "other", "other node")
    public = (filled.place / "other.pub").read_text()
    writer = writer_name(public)
    with own.box.signers_file.open("a") as file:
        file.write(f'{writer} namespaces="{NAMESPACE}" {" ".join(public.split()[:2])}\n')
    shelf = filled.shelf
    assert shelf is not None
    outer = replace(
        shelf.contents[-1].signed.outer, what="removal", writer=writer, sequence=(1 << 63) - 1, segments=(), parent="",
        parent_point="", manifest_sha256="", manifest_bytes=0, point="ab" * 16, alive=(),
    )  # fmt: skip
    place = filled.place / "mnt/root" / writer / outer.generation / outer.point
    place.mkdir(parents=True)
    (place / "manifest.json").write_bytes(outer.encode())
    (place / "manifest.json.sig").write_bytes(seal.sign(outer.encode(), filled.place / "other"))
    catalog = filled.catalog()
    assert len(choose(catalog, Vmid(100)).chain) == 3
    assert catalog.all_problems == ()
    filled.write(4, {"scsi0": b"x"})
    assert sorted(len(one.contents) for one in filled.catalog().shelves) == [0, 4]


@pytest.mark.parametrize("theirs", ["broken", "whole"])
def test_another_writer_who_is_believed_says_nothing_of_our_points(filled: Bench, theirs: str) -> None:
    """Neither that they are damaged nor that they were read back, by a point of theirs with the same name."""
    other = Bench(filled.place / "second")
    other.write(1, {"scsi0": b"x"})
    ours, (mine,) = points(filled)[0], points(other)
    with filled.vault.box.signers_file.open("a") as file:
        file.write(other.vault.box.signers_file.read_text())
    outer = replace(Outer.decode((mine / "manifest.json").read_bytes(), "x"), point=ours.name)
    place = filled.place / "mnt/root" / outer.writer / outer.path
    shutil.copytree(mine, place)
    (place / "manifest.json").write_bytes(outer.encode())
    (place / "manifest.json.sig").write_bytes(other.vault.seal.sign(outer.encode(), other.vault.box.signing_key_file))
    before = filled.vault.proven()
    segment = next((place if theirs == "broken" else ours).glob("seg-*"))
    segment.write_bytes(flipped(segment.read_bytes(), 100))
    assert not verify_box(filled.vault, Level.HASHED, note=print).good
    if theirs == "broken":
        assert filled.vault.proven().keys() >= before.keys()
        assert ours.name not in filled.vault.damaged()
    else:
        assert ours.name not in filled.vault.proven()
        assert ours.name in filled.vault.damaged()


def test_a_damaged_segment_is_found_within_one_cycle(filled: Bench) -> None:
    (path,) = points(filled)[0].glob("seg-000001-*")
    path.write_bytes(flipped(path.read_bytes(), 100))
    found = [verify_box(filled.vault, Level.SAMPLED, parts=4, note=print).good for _ in range(4)]
    assert not found[-1], "within the cycle"
    assert found == sorted(found, reverse=True), "and told from then on"


def test_the_drill_opens_the_newest_of_each_guest(filled: Bench) -> None:
    found = drill(filled.vault, filled.identity, note=print)
    (point,) = found.points
    assert found.good
    assert (point.point, point.segments, point.problems) == ("100/20270115T080300Z-0001", 2, ())


def test_the_drill_passes_on_what_is_wrong_in_the_box(filled: Bench) -> None:
    """An identity that opens what is there proves nothing of what was taken away."""
    shutil.rmtree(points(filled)[1])
    found = drill(filled.vault, filled.identity, note=print)
    assert not found.good
    assert any("is gone" in problem for problem in found.problems)


def test_the_drill_fails_loudly_with_another_identity(filled: Bench) -> None:
    filled.vault.seal.new_identity(filled.place / "wrong")
    (point,) = drill(filled.vault, filled.place / "wrong", note=print).points
    assert "no identity matched" in point.problems[0]


def test_the_drill_fails_with_the_nodes_own_key_which_opens_manifests_only(filled: Bench) -> None:
    (point,) = drill(filled.vault, filled.vault.box.catalog_key_file, note=print).points
    assert "no identity matched" in point.problems[0]


def test_a_drill_of_an_empty_box_is_no_success(bench: Bench) -> None:
    with pytest.raises(VerificationError, match="nothing there"):
        drill(bench.vault, bench.identity, note=print)
