"""What every store must do, shown on each: a directory, and real sshd with and without what servers refuse."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pve_zfsbackup.errors import (
    AccessDeniedError,
    BackupError,
    HostKeyError,
    HostUnreachableError,
    StoreConflictError,
    StoreError,
    StoreForbiddenError,
    StoreFullError,
    VerificationError,
)
from pve_zfsbackup.host import sftp_connection
from pve_zfsbackup.host.programs import ProcessPrograms
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.sftp import Session, Sftp
from pve_zfsbackup.host.store import Entry, Store, Upload
from pve_zfsbackup.host.store_dir import DirectoryStore
from pve_zfsbackup.host.store_rclone import RcloneStore
from pve_zfsbackup.host.store_sftp import SftpStore, listed
from tests.archive.sshd import Sshd, serving
from tests.lab.lab import TREE

pytestmark = [pytest.mark.processes, pytest.mark.loopback]
SERVERS = {
    "sftp": "",
    "sftp-without-rename": "-P rename,posix-rename",
    "sftp-without-extensions": "-P fsync,statvfs",
}


@dataclass(frozen=True)
class Case:
    store: Store
    files: Path  # what the store's root is
    local: Path

    def upload(self, path: str, data: bytes) -> Upload:
        file = self.local / hashlib.sha256(path.encode() + data).hexdigest()[:16]
        file.write_bytes(data)
        return Upload(file=file, path=path, sha256=hashlib.sha256(data).hexdigest())

    @property
    def lying(self) -> dict[str, bytes]:
        found = (path for path in self.files.rglob("*") if path.is_file())
        return {str(path.relative_to(self.files)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Sshd]]:
    """One of each kind, started when it is needed first."""
    started: dict[str, Sshd] = {}
    with contextlib.ExitStack() as stack:

        def server(kind: str) -> Sshd:
            if kind not in started:
                started[kind] = stack.enter_context(serving(tmp_path_factory.mktemp(kind) / "sshd", SERVERS[kind]))
            return started[kind]

        yield server


@pytest.fixture(params=["directory", "rclone", *SERVERS])
def case(request: pytest.FixtureRequest, tmp_path: Path, servers: Callable[[str], Sshd]) -> Case:
    local = tmp_path / 'my "spöol" *[x]'
    local.mkdir()
    if request.param == "directory":
        mount = tmp_path / "mnt"
        mount.mkdir()
        return Case(DirectoryStore(name="box1", root=mount / "deep/root", mount=mount), mount / "deep/root", local)
    if request.param == "rclone":
        root = tmp_path / "remote/deep"
        config = tmp_path / "rclone.conf"
        config.write_text("")
        remote = f":local:{root}"
        return Case(RcloneStore(name="box1", remote=remote, config=config, programs=ProcessPrograms()), root, local)
    sshd = servers(request.param)
    path = f"deep/{secrets.token_hex(8)}"
    return Case(sshd.store(path), sshd.files / path, local)


def test_a_file_is_there_whole_under_its_name_and_nothing_else(case: Case) -> None:
    case.store.put([case.upload("w/g/a", b"one"), case.upload("w/g/b", b"x" * 300_000), case.upload("w/h/a", b"")])
    assert case.lying == {"w/g/a": b"one", "w/g/b": b"x" * 300_000, "w/h/a": b""}


def test_listing_tells_sizes_and_kinds_and_leaves_out_what_is_not_there(case: Case) -> None:
    case.store.put([case.upload("w/g/a", b"one"), case.upload("w/g/b", b"12345")])
    found = case.store.list(["w", "w/g", "nowhere", "w/g/deeper/still"])
    assert found == {
        "w": {"g": Entry(bytes=found["w"]["g"].bytes, directory=True)},
        "w/g": {"a": Entry(bytes=3), "b": Entry(bytes=5)},
    }


def test_listing_of_a_box_nobody_ever_used_is_empty(case: Case) -> None:
    assert case.store.list(["."]) == {}


def test_listing_tells_an_empty_directory_from_none(case: Case) -> None:
    case.store.put([case.upload("w/a", b"one")])
    case.store.remove(["w/a"])
    assert case.store.list(["w", "v"]) == {"w": {}}


def test_the_same_again_is_fine_and_leaves_no_temporary_file(case: Case) -> None:
    for _ in range(2):
        case.store.put([case.upload("w/a", b"one")])
    assert case.lying == {"w/a": b"one"}


def test_another_file_under_the_name_is_never_replaced(case: Case) -> None:
    case.store.put([case.upload("w/a", b"one")])
    with pytest.raises(StoreConflictError, match="w/a") as caught:
        case.store.put([case.upload("w/a", b"two")])
    assert case.lying == {"w/a": b"one"}
    assert not caught.value.transient


def test_what_is_fetched_is_what_was_put(case: Case, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    case.store.put([case.upload("w/a", data)])
    case.store.get("w/a", case.local / "fetched", len(data))
    assert (case.local / "fetched").read_bytes() == data


def test_what_goes_on_beyond_its_size_is_given_up(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_connection, "WATCH", 0.0)
    data = bytes(5 << 20)
    case.store.put([case.upload("w/a", data), case.upload("w/b", b"one")])
    with pytest.raises(VerificationError) as caught:
        case.store.get("w/a", case.local / "a", 1000)
    assert not caught.value.transient
    with pytest.raises(VerificationError):
        case.store.get_many([("w/b", case.local / "b"), ("w/a", case.local / "c")], 1000)
    case.store.get("w/a", case.local / "d", len(data))
    assert (case.local / "d").read_bytes() == data


def test_fetching_what_is_not_there_is_an_error_that_names_it(case: Case) -> None:
    with pytest.raises(StoreError, match="w/a"):
        case.store.get("w/a", case.local / "fetched", 3)


def test_many_are_fetched_without_those_that_are_gone(case: Case) -> None:
    case.store.put([case.upload("w/a", b"one")])
    case.store.get_many([("w/a", case.local / "a"), ("w/b", case.local / "b"), ("v/c", case.local / "c")], 3)
    assert (case.local / "a").read_bytes() == b"one"
    assert not (case.local / "b").exists()
    assert not (case.local / "c").exists()


def test_removing_leaves_the_others_and_does_not_mind_what_is_gone(case: Case) -> None:
    case.store.put([case.upload("w/a", b"one"), case.upload("w/b", b"two")])
    case.store.remove(["w/a", "w/never", "x/never"])
    assert case.lying == {"w/b": b"two"}


def test_directories_are_removed_when_empty_and_only_then(case: Case) -> None:
    case.store.put([case.upload("w/g/a", b"one")])
    with pytest.raises(StoreError, match="w/g"):
        case.store.remove_directory("w/g")
    case.store.remove(["w/g/a"])
    for _ in range(2):
        case.store.remove_directory("w/g")
    assert case.store.list(["w"]) == {"w": {}}
    case.store.put([case.upload("w/g/a", b"again")])
    assert case.lying == {"w/g/a": b"again"}


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../b", "a b", "a\nrm b", "-rm", "a;b", "", "a*", "./x"])
def test_names_that_are_not_ours_never_reach_a_server(case: Case, path: str) -> None:
    with pytest.raises(StoreError):
        case.store.put([case.upload(path, b"one")])
    assert not case.files.exists()


def test_room_is_told_or_unknown(case: Case) -> None:
    case.store.put([case.upload("w/a", b"one")])
    space = case.store.space()
    assert (space is None) == (case.store.free() is None)
    assert space is None or (space.free > 1 << 20 and (space.size is None or space.size >= space.free))


# What only a server can do


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with serving(tmp_path / "sshd") as server:
        yield server


def upload(place: Path, path: str = "w/a", size: int = 3) -> Upload:
    data = b"x" * size
    (place / "file").write_bytes(data)
    return Upload(file=place / "file", path=path, sha256=hashlib.sha256(data).hexdigest())


def test_a_server_that_is_away_may_come_back(sshd: Sshd, tmp_path: Path) -> None:
    sshd.stop()
    with pytest.raises(HostUnreachableError) as caught:
        sshd.store().put([upload(tmp_path)])
    assert caught.value.transient
    sshd.start()
    sshd.store().put([upload(tmp_path)])


def test_a_changed_host_key_is_refused_and_not_tried_again(sshd: Sshd, tmp_path: Path) -> None:
    sshd.pin("id")  # any other key
    with pytest.raises(HostKeyError, match="not the pinned one") as caught:
        sshd.store().put([upload(tmp_path)])
    assert not caught.value.transient
    assert not list(sshd.files.rglob("*"))


def test_a_key_the_server_does_not_take_is_told(sshd: Sshd, tmp_path: Path) -> None:
    (sshd.place / "id.pub").write_text("")
    with pytest.raises(HostUnreachableError, match="Permission denied"):
        sshd.store().put([upload(tmp_path)])


@pytest.mark.parametrize("call", [
    lambda store, place: store.put([upload(place)]),
    lambda store, place: store.get("w/a", place / "got", 9),
    lambda store, place: store.list(["w"]),
    lambda store, place: store.remove(["w/a"]),
])  # fmt: skip
def test_a_read_only_server_is_an_error_of_the_store(tmp_path: Path, call: Callable[[Store, Path], object]) -> None:
    with serving(tmp_path / "sshd", "-P open,opendir,remove") as server:
        (server.files / "deep/root/w").mkdir(parents=True)
        (server.files / "deep/root/w/a").write_text("something")
        with pytest.raises(BackupError) as caught:
            call(server.store(), tmp_path)
    assert isinstance(caught.value, StoreError)


def test_a_full_box_is_told_as_such_and_not_tried_again(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sshd.store()
    monkeypatch.setattr(type(store), "free", lambda self: 10)
    (sshd.files / "deep").write_text("a file where a directory should be")
    with pytest.raises(StoreFullError, match="no room") as caught:
        store.put([upload(tmp_path, size=1000)])
    assert not caught.value.transient


def test_a_key_that_is_not_taken_is_not_tried_for_hours(sshd: Sshd, tmp_path: Path) -> None:
    (sshd.place / "id.pub").write_text("")
    with pytest.raises(AccessDeniedError) as caught:
        sshd.store().list(["w"])
    assert not caught.value.transient
    assert "id.pub to the account's keys" in caught.value.hint


@pytest.mark.parametrize(("line", "found"), [
    ("-rw-r--r--    1 1000     100             6 Nov 23 22:24 deep/root/w/a", {"a": Entry(bytes=6)}),
    ("drwx------    ? box      domain users 4096 Jan  5  2024 deep/root/w", {"w": Entry(bytes=4096, directory=True)}),
    ("-rw-r--r--    1 a b c    domain users    6 Nov 23 22:24 w/a", {"a": Entry(bytes=6)}),
    ("-rw-r--r--    1 7 users  100  77 Feb 29 00:00 w/my notes", {"my notes": Entry(bytes=77)}),
    ("lrwxrwxrwx    1 0        0               6 Nov 23 22:24 w/link", {}),
    ("total 5", {}),
    ("-rw-r--r--    1 0        0               6", {}),
])  # fmt: skip
def test_a_listing_is_understood_whatever_owners_are_called(line: str, found: dict[str, Entry]) -> None:
    assert dict(listed([line])) == found


class Altered(Sftp):
    """The client, each command for itself, and what a bad server makes of it: `after` each that was good, and
    `instead` of some an answer on stderr."""

    def batch(self, lines: Sequence[str], size: int = 0, into: Sequence[Path] = ()) -> Session:
        output: list[tuple[str, tuple[str, ...]]] = []
        errors = ""
        for line in lines:
            told = self.instead(line)
            done = Session(1, ((line, ()),), told) if told else super().batch([line], size, into)
            output += done.output
            errors += done.stderr
            if done.returncode:
                return Session(done.returncode, tuple(output), errors)
            self.after(line)
        return Session(0, tuple(output), errors)

    def after(self, line: str) -> None: ...

    def instead(self, line: str) -> str:
        return ""


def altered(sshd: Sshd, kind: type[Altered]) -> tuple[SftpStore, Altered]:
    made = sshd.store()
    client = kind(name="box1", programs=made.client.programs, server=made.client.server)
    return SftpStore(client=client), client


def test_a_box_that_lets_nothing_be_removed_is_told_apart(tmp_path: Path) -> None:
    """The server as docs/guide.md describes it."""
    (options,) = re.findall(r"ForceCommand internal-sftp (-P \S+)", (TREE / "docs/guide.md").read_text())
    with serving(tmp_path / "sshd", options) as server:
        store = server.store()
        store.put([upload(tmp_path), replace(upload(tmp_path), path="w/b")])
        store.put([upload(tmp_path)])  # the same again is fine, though what it was brought as stays
        for call in (lambda: store.remove(["w/a", "w/gone"]), lambda: store.remove_directory("w")):
            with pytest.raises(StoreForbiddenError, match="ermission denied") as caught:
                call()
            assert not caught.value.transient
        assert {"a", "b"} <= store.list(["w"])["w"].keys()


@pytest.mark.parametrize(("text", "kind"), [
    ("ERROR : w/a: Couldn't delete: AccessDenied: Access Denied status code: 403", StoreForbiddenError),
    ("ERROR : w/a: Couldn't delete: remove /x/w/a: operation not permitted", StoreForbiddenError),
    ("ERROR : w/a: Couldn't delete: RequestTimeout", StoreError),
])  # fmt: skip
def test_rclone_tells_of_a_store_that_lets_nothing_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[StoreError]
) -> None:
    store = RcloneStore(name="box1", remote="r:x", config=tmp_path / "conf", programs=ProcessPrograms())
    done = Completed(argv=("rclone",), returncode=1, stdout="", stderr=text)
    entry = '[{"Name": "a", "Size": 0, "IsDir": true}]'
    answers = lambda self, *words: (replace(done, returncode=0), entry) if words[0] == "lsjson" else (done, "")  # noqa: E731
    monkeypatch.setattr(RcloneStore, "_run", answers)
    for call in (lambda: store.remove(["w/a"]), lambda: store.remove_directory("w/a")):
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) is kind


def test_what_arrived_short_never_gets_its_name(sshd: Sshd, tmp_path: Path) -> None:
    class Shortening(Altered):
        def after(self, line: str) -> None:
            if line.startswith("put "):
                path = sshd.files / line.rpartition(" ")[2]
                path.write_bytes(path.read_bytes()[:-1])

    store, _ = altered(sshd, Shortening)
    two = [upload(tmp_path), replace(upload(tmp_path), path="w/b")]
    for uploads in (two[:1], two):
        with pytest.raises(StoreError, match="another size") as caught:
            store.put(uploads)
        assert caught.value.transient
        assert [path for path in sshd.files.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_rename_that_fails_once_does_not_take_renaming_away(sshd: Sshd, tmp_path: Path, count: int) -> None:
    class Busy(Altered):
        answers = itertools.chain(['remote rename "a" to "b": Failure\n'], itertools.repeat(""))

        def instead(self, line: str) -> str:
            return next(self.answers) if line.startswith("rename ") else ""

    store, _ = altered(sshd, Busy)
    store.put([upload(tmp_path), replace(upload(tmp_path), path="w/b")][:count])
    assert store._renames
    assert len([path for path in sshd.files.rglob("*") if path.is_file()]) == count


def test_a_rename_that_fails_for_another_reason_each_time_is_an_error(sshd: Sshd, tmp_path: Path) -> None:
    class Busy(Altered):
        answers = itertools.count(1)

        def instead(self, line: str) -> str:
            return f"remote rename: {next(self.answers)}\n" if line.startswith("rename ") else ""

    store, _ = altered(sshd, Busy)
    with pytest.raises(StoreError, match="w/a: remote rename: 2") as caught:
        store.put([upload(tmp_path)])
    assert (caught.value.transient, store._renames) == (True, True)
    assert [path for path in sshd.files.rglob("*") if path.is_file()] == []
