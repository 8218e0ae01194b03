"""restore.sh, as it lies in the box, with the programs it names: only `zfs` is a script that keeps what it is given."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.app.archive_publish import publish_removal
from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.archive.names import NAMESPACE, writer_name
from pve_zfsbackup.archive.outer import Outer
from pve_zfsbackup.archive.text import LIMIT
from tests.archive.bench import Bench, noise, text

pytestmark = pytest.mark.processes
MIB = 1 << 20
FULL = {"scsi0": text(1, 3 * MIB // 2), "scsi1": noise(2, 2 * MIB)}
STEP = {"scsi0": text(3, MIB), "scsi1": noise(4, 1000)}
ZFS = """#!/bin/sh
[ "$1 $2 $3 $4" = "receive -s -u --" ] || exit 9
n=$(ls "$PLACE" | wc -l)
cat >"$PLACE/$(printf %02d "$n")-$(echo "$5" | tr / _)"
"""


@pytest.fixture
def filled(bench: Bench) -> Bench:
    bench.write(1, FULL)
    bench.write(2, STEP)
    bench.write(3, {**STEP, "scsi2": text(5, 2000)})  # a disk that was added: in full beside increments
    return bench


def script(
    bench: Bench, *arguments: str, shell: str = "sh", path: Path | None = None, generation: Path | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    tools = bench.place / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "zfs").write_text(ZFS)
    (tools / "zfs").chmod(0o755)
    (bench.place / "taken").mkdir(exist_ok=True)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}", "PLACE": str(bench.place / "taken"), "TMPDIR": str(bench.place),
    }  # fmt: skip
    if generation:
        environment["GENERATION"] = str(generation)
    (bench.place / "home").mkdir(exist_ok=True)
    environment["HOME"] = str(bench.place / "home")
    verb, *rest = arguments
    keys = (str(bench.identity), str(bench.vault.box.signers_file))
    argv = (shell, str(path or bench.file("restore.sh")), verb, *keys, *rest)
    return subprocess.run(argv, env=environment, cwd=cwd or bench.place, capture_output=True, text=True, check=False)


def taken(bench: Bench) -> list[tuple[str, bytes]]:
    found = sorted((bench.place / "taken").iterdir())
    return [(path.name[3:], path.read_bytes()) for path in found]


def sequence(manifest: Path) -> int:
    return int(json.loads(manifest.read_text())["sequence"])


def names(bench: Bench) -> list[str]:
    return [content.signed.outer.point for content in bench.catalog().shelves[0].contents]


def test_list_shows_every_point(filled: Bench) -> None:
    done = script(filled, "list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == names(filled)
    assert "100/20270115T080300Z-0001" in lines[2]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_every_stream_of_every_disk_arrives_byte_for_byte(filled: Bench, shell: str) -> None:
    done = script(filled, "restore", names(filled)[2], "tank/back", shell=shell)
    assert done.returncode == 0, done.stderr
    assert taken(filled) == [
        ("tank_back_scsi0", FULL["scsi0"]), ("tank_back_scsi0", STEP["scsi0"]), ("tank_back_scsi0", STEP["scsi0"]),
        ("tank_back_scsi1", FULL["scsi1"]), ("tank_back_scsi1", STEP["scsi1"]), ("tank_back_scsi1", STEP["scsi1"]),
        ("tank_back_scsi2", text(5, 2000)),
    ]  # fmt: skip
    config = json.loads((filled.place / f"guest-{names(filled)[2]}.json").read_text())
    assert config["conf"].startswith("name: web\n")


def test_an_older_point_takes_no_more_than_it_needs(filled: Bench) -> None:
    assert script(filled, "restore", names(filled)[0], "tank/back").returncode == 0
    assert taken(filled) == [("tank_back_scsi0", FULL["scsi0"]), ("tank_back_scsi1", FULL["scsi1"])]


def test_a_copy_of_ones_own_reads_the_generation_it_is_told(filled: Bench) -> None:
    """Nobody signed the one in the box."""
    own = filled.place / "safe.sh"
    shutil.copy(filled.file("restore.sh"), own)
    generation = filled.file("restore.sh").parent
    filled.file("restore.sh").write_text("#!/bin/sh\nexit 9\n")
    done = script(filled, "list", path=own, generation=generation)
    assert (done.returncode, [line.split()[0] for line in done.stdout.splitlines()]) == (0, names(filled))


def test_the_configuration_is_not_written_into_the_box(filled: Bench) -> None:
    name = names(filled)[0]
    done = script(filled, "restore", name, "tank/back", cwd=filled.file("restore.sh").parent)
    assert done.returncode == 0, done.stderr
    assert (filled.place / "home" / f"guest-{name}.json").exists()
    assert not list((filled.place / "mnt").rglob("guest-*"))


def test_a_directory_above_that_only_begins_like_a_writer_is_none(filled: Bench) -> None:
    generation = filled.file("restore.sh").parent
    copied = shutil.copytree(generation, filled.place / "w-drive" / generation.name)
    done = script(filled, "list", path=copied / "restore.sh")
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_left_behind_in_the_temporary_directory(filled: Bench) -> None:
    script(filled, "restore", names(filled)[0], "tank/back")
    assert list(filled.place.glob("pzb-restore*")) == []


@pytest.mark.parametrize("victim", ["manifest.json", "manifest.json.sig", "manifest.age", "manifest.age.sig"])
def test_a_changed_manifest_stops_it_before_anything_is_received(filled: Bench, victim: str) -> None:
    path = filled.place / "mnt/root" / filled.catalog().shelves[0].contents[0].path / victim
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    done = script(filled, "restore", path.parent.name, "tank/back")
    assert done.returncode == 1
    assert path.parent.name in done.stderr
    assert taken(filled) == []


def test_a_changed_segment_stops_it_and_its_bytes_reach_nobody(filled: Bench) -> None:
    name = names(filled)[0]
    path = filled.file(f"{name}/seg-000002")
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    done = script(filled, "restore", name, "tank/back")
    assert done.returncode == 1
    assert "segment 2 is damaged" in done.stderr
    (cut,) = taken(filled)
    assert cut[1] == FULL["scsi0"][:MIB]  # what came before, in whole segments: zfs refuses it as incomplete


def test_a_missing_parent_is_named(filled: Bench) -> None:
    first, second, _ = names(filled)
    path = filled.file(f"{first}/manifest.json.sig").with_name("manifest.json")
    path.unlink()
    done = script(filled, "restore", second, "tank/back")
    assert done.returncode == 1
    assert f"{first} is missing" in done.stderr


def test_the_wrong_identity_is_told(filled: Bench) -> None:
    filled.identity.unlink()
    filled.vault.seal.new_identity(filled.identity)
    done = script(filled, "list")
    assert "the identity does not open it" in done.stderr


def test_list_tells_what_is_wrong_and_shows_the_others(filled: Bench) -> None:
    first, second, third = names(filled)
    filled.file(f"{first}/manifest.age.sig").write_bytes(b"-----BEGIN")
    done = script(filled, "list")
    assert done.returncode == 1
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        [first, "NOT", "GOOD"], [second, "guest", "and"], [third, "guest", "and"],
    ]  # fmt: skip
    assert "the signature of manifest.age is not good" in done.stderr


def test_list_tells_of_a_point_that_is_gone_and_of_segments(filled: Bench) -> None:
    first, second, third = names(filled)
    shutil.rmtree(filled.file(f"{second}/manifest.age.sig").parent)
    filled.file(f"{first}/seg-000002").unlink()
    done = script(filled, "list")
    assert done.returncode == 1
    assert f"{first}: segment 2 is missing" in done.stderr
    assert f"{second} is gone, although manifest {third} says that it is alive" in done.stderr


def test_list_believes_a_statement_about_what_was_removed(filled: Bench) -> None:
    shelf = filled.shelf
    assert shelf is not None
    newest = names(filled)[2]
    publish_removal(filled.vault, Stamina(seconds=0), shelf, [newest], "2027-01-15T09:00:00Z")
    shutil.rmtree(filled.file(f"{newest}/manifest.age.sig").parent)
    done = script(filled, "list")
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 2)


def test_a_segment_that_is_missing_stops_it_before_anything_is_received(filled: Bench) -> None:
    first, _, third = names(filled)
    filled.file(f"{first}/seg-000003").unlink()
    done = script(filled, "restore", third, "tank/back")
    assert done.returncode == 1
    assert f"{first}: segment 3 is missing" in done.stderr
    assert taken(filled) == []


def test_a_huge_signature_is_not_read(filled: Bench) -> None:
    name = names(filled)[0]
    with open(filled.file(f"{name}/manifest.json.sig"), "r+b") as file:
        file.truncate(9 << 20)
    done = script(filled, "restore", name, "tank/back")
    assert "too large" in done.stderr
    assert taken(filled) == []


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ('"sequence":3', r'"sequence":3\c'),
        ('"sequence":3', '"sequence":1 x'),
        ('"sequence":3', '"sequence":$(touch x)'),
        ('"what":"point"', '"what":"* [ -z"'),
        ('"what":"point"', '"what":"removal"'),
    ],
)
def test_what_nobody_signed_hides_no_point_and_does_nothing(filled: Bench, member: str, value: str) -> None:
    first, second, third = names(filled)
    path = filled.file(f"{third}/manifest.json.sig").with_name("manifest.json")
    path.write_text(path.read_text().replace(member, value, 1))
    done = script(filled, "list")
    assert done.returncode == 1
    assert sorted(line.split()[:3] for line in done.stdout.splitlines()) == sorted(
        [[first, "guest", "and"], [second, "guest", "and"], [third, "NOT", "GOOD"]]
    )
    assert f"{third}: the signature of manifest.json is not good" in done.stderr
    assert list(filled.place.rglob("x")) == []


@pytest.mark.parametrize("how", ["empty", "a directory", "a link to nowhere", "too large"])
def test_a_newest_manifest_that_is_none_is_told(filled: Bench, how: str) -> None:
    newest = names(filled)[2]
    path = filled.file(f"{newest}/manifest.json.sig").with_name("manifest.json")
    if how == "too large":
        with path.open("r+b") as file:
            file.truncate(LIMIT + 1)
    else:
        path.unlink()
        make = {"empty": path.touch, "a directory": path.mkdir, "a link to nowhere": lambda: path.symlink_to("nowhere")}
        make[how]()
    done = script(filled, "list")
    assert done.returncode == 1
    assert f"{newest}  NOT GOOD" in done.stdout
    assert len(done.stdout.splitlines()) == 3


def test_what_has_no_name_of_a_point_is_passed_over(filled: Bench) -> None:
    place = filled.file("restore.sh").parent
    for name in (f"{names(filled)[0]} - Copy", " ", "a\nb", "-n", "*", "\x1b[2J"):
        shutil.copytree(place / names(filled)[0], place / name)
    done = script(filled, "list")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)
    assert "- Copy is passed over" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("copied", [False, True])
def test_nobody_else_who_is_believed_signs_in_this_writers_place(filled: Bench, copied: bool) -> None:
    """Also where the generation lies elsewhere, and no directory above it has the writer's name."""
    seal = filled.vault.seal
    place = filled.file("restore.sh").parent
    if copied:
        place = place.rename(filled.place / place.name)
    seal.new_signing_key(filled.place / "other", "other node")
    public = (filled.place / "other.pub").read_text()
    writer = writer_name(public)
    with filled.vault.box.signers_file.open("a") as file:
        file.write(f'{writer} namespaces="{NAMESPACE}" {" ".join(public.split()[:2])}\n')
    first, _, newest = [path.parent.name for path in sorted(place.glob("*/manifest.json"), key=sequence)]
    text = (place / newest / "manifest.json").read_bytes()
    outer = replace(
        Outer.decode(text, newest), what="removal", writer=writer, sequence=9, segments=(), parent="", parent_point="",
        manifest_sha256="", manifest_bytes=0, point="ab" * 16, alive=(),
    )  # fmt: skip
    (place / outer.point).mkdir()
    (place / outer.point / "manifest.json").write_bytes(outer.encode())
    (place / outer.point / "manifest.json.sig").write_bytes(seal.sign(outer.encode(), filled.place / "other"))
    shutil.rmtree(place / first)
    done = script(filled, "list", path=place / "restore.sh")
    assert done.returncode == 1
    assert f"{outer.point}: signed by {writer}, and what lies here is of {filled.vault.writer}" in done.stderr
    assert f"{first} is gone" in done.stderr


def test_what_is_written_in_properties_names_no_stream(bench: Bench) -> None:
    order = bench.order(1, {"scsi0": b"one"})
    facts = [replace(about, properties={"org:note": "a\nb\\c"}) for about in order.facts]
    written = bench.writer.write(replace(order, facts=tuple(facts)), lambda *told: None)
    done = script(bench, "restore", written.signed.outer.point, "tank/back")
    assert (done.returncode, taken(bench)) == (0, [("tank_back_scsi0", b"one")]), done.stderr


def test_a_configuration_that_cannot_be_written_is_told_before_anything_is_received(filled: Bench) -> None:
    newest = names(filled)[2]
    (filled.place / f"guest-{newest}.json").mkdir()
    done = script(filled, "restore", newest, "tank/back")
    assert done.returncode == 1
    assert f"guest-{newest}.json cannot be written" in done.stderr
    assert taken(filled) == []


@pytest.mark.parametrize(
    "arguments", [("restore",), ("restore", "../..", "tank"), ("restore", "0" * 32, "tank"), ("x",)]
)
def test_wrong_arguments_do_nothing(filled: Bench, arguments: tuple[str, ...]) -> None:
    done = script(filled, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("restore.sh: ")
    assert taken(filled) == []


def test_the_script_is_plain_posix(bench: Bench) -> None:
    bench.write(1, {"scsi0": b"x"})
    path: Path = bench.file("restore.sh")
    assert path.read_text().startswith("#!/bin/sh\n")
    assert "[[" not in path.read_text().replace("[[:", "")
    assert subprocess.run(("dash", "-n", str(path)), check=False).returncode == 0
