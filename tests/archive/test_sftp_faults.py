"""Archiving over a real sshd that fails (matrix rows 56, 61, 62): cut, away, full of connections, refusing."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.app.archive_upload import Stamina
from pve_zfsbackup.app.archive_verify import Level, verify_box
from pve_zfsbackup.app.archive_write import Writer, Written
from pve_zfsbackup.archive.outer import digest
from pve_zfsbackup.errors import HostKeyError
from pve_zfsbackup.host.store import Upload
from pve_zfsbackup.host.store_sftp import SftpStore
from tests.archive.bench import Bench, FaultyStore, noise
from tests.archive.sshd import Sshd, serving

pytestmark = [pytest.mark.processes, pytest.mark.loopback]
MIB = 1 << 20
DISKS = {"scsi0": noise(1, 5 * MIB), "scsi1": noise(2, MIB)}


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with serving(tmp_path / "sshd") as server:
        yield server


def to(bench: Bench, sshd: Sshd) -> FaultyStore:
    store = FaultyStore(sshd.store("archive"))
    bench.store = store
    bench.vault = replace(bench.vault, store=store)
    return store


def write(bench: Bench, number: int = 1) -> Written:
    """With real pauses, short ones."""

    def pause(stop: threading.Event, seconds: float) -> bool:
        bench.naps.append(seconds)
        return stop.wait(0.2)

    writer: Writer = replace(bench.writer, stamina=Stamina(seconds=600, pause=pause))
    return writer.write(bench.order(number, DISKS), lambda *told: None)


def test_everything_over_sftp(bench: Bench, sshd: Sshd) -> None:
    to(bench, sshd)
    for number in (1, 2):
        write(bench, number)
    found = verify_box(bench.vault, Level.OPENED, identity=bench.identity, note=print)
    assert found.good, found
    assert [point.segments for point in found.points] == [6, 6]


@pytest.mark.parametrize("options", ["-P rename,posix-rename", "-P fsync,statvfs"])
def test_a_server_that_refuses_what_it_may_gets_the_same(bench: Bench, tmp_path: Path, options: str) -> None:
    with serving(tmp_path / "sshd", options) as sshd:
        to(bench, sshd)
        write(bench)
        assert verify_box(bench.vault, Level.OPENED, identity=bench.identity, note=print).good
        assert not list(sshd.files.rglob("tmp-*"))


def test_cut_in_the_middle_of_a_segment_only_that_one_is_sent_again(bench: Bench, sshd: Sshd) -> None:
    store = to(bench, sshd)
    bench.boxed(connections=1)
    cuts = iter([0.05, 0.1, 0.15])

    def cut(verb: str, path: str) -> None:
        if verb == "put" and "seg-000003" in path and (seconds := next(cuts, 0)):
            threading.Timer(seconds, sshd.kill_sessions).start()

    store.before = cut
    write(bench)
    names = store.segments
    assert sorted(names) == [f"seg-{number:06d}" for number in range(1, 7)]  # each arrived once
    assert len(bench.naps) <= 3
    assert verify_box(bench.vault, Level.OPENED, identity=bench.identity, note=print).good


def test_a_server_that_goes_away_for_a_while_is_waited_for(bench: Bench, sshd: Sshd) -> None:
    store = to(bench, sshd)
    puts = itertools.count(1)

    def away(verb: str, path: str) -> None:
        if verb == "put" and next(puts) == 3:
            sshd.kill_sessions()
            sshd.stop()
            threading.Timer(1.0, sshd.start).start()

    store.before = away
    write(bench)
    assert bench.naps
    assert verify_box(bench.vault, Level.HASHED, note=print).good


def test_a_rate_holds_the_uploads_back(bench: Bench, sshd: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(noise(1, MIB))
    upload = Upload(file=file, path="w/a", sha256=digest(file.read_bytes()))
    store = sshd.store("archive")
    slow = SftpStore(client=replace(store.client, rate=lambda: 300_000))
    begun = time.monotonic()
    slow.put([upload])
    assert time.monotonic() - begun > 2.0
    assert (sshd.files / "archive/w/a").read_bytes() == file.read_bytes()


def test_a_limit_of_connections_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    with serving(tmp_path / "sshd", config="MaxStartups 1:100:1") as sshd:
        to(bench, sshd)
        bench.boxed(connections=4)
        write(bench)
        assert verify_box(bench.vault, Level.OPENED, identity=bench.identity, note=print).good


def test_a_changed_host_key_in_the_middle_ends_it_at_once(bench: Bench, sshd: Sshd) -> None:
    store = to(bench, sshd)
    puts = itertools.count(1)

    def changed(verb: str, path: str) -> None:
        if verb == "put" and next(puts) == 3:
            sshd.pin("id")
            sshd.kill_sessions()

    store.before = changed
    with pytest.raises(HostKeyError):
        write(bench)
    assert len(bench.naps) <= bench.vault.box.connections  # those that were in use when they were cut
    sshd.pin("hostkey")
    assert write(bench).skipped >= 1
