"""One run at a time, and a lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pve_zfsbackup.errors import BackupError, ExitCode, GuestBusyError, LockedError
from pve_zfsbackup.host.lock import RESTORE, being_read, held, migration_lock, reading, run_lock
from pve_zfsbackup.model import Vmid


def test_the_second_is_told_who_has_it_at_once(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with run_lock(place, "work"):
        assert (place / "work.lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(LockedError, match=f"process {os.getpid()}") as caught, run_lock(place, "work"):
            pytest.fail("two have the lock")
        assert caught.value.exit_code is ExitCode.LOCKED
        assert (place / "work.lock").read_text() == f"{os.getpid()}\n", "the loser writes nothing"
    with run_lock(place, "work"):
        assert place.stat().st_mode & 0o777 == 0o700


def test_it_is_free_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path, "work"):
        _ = 1 / 0
    with run_lock(tmp_path, "work"):
        assert (tmp_path / "work.lock").exists()


def test_leftovers_of_a_longer_process_number_do_not_show(tmp_path: Path) -> None:
    (tmp_path / "work.lock").write_text("1234567890123\n")
    with run_lock(tmp_path, "work"):
        assert (tmp_path / "work.lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.processes
def test_a_killed_process_leaves_it_free(tmp_path: Path) -> None:
    code = f"import os\nfrom pathlib import Path\nfrom pve_zfsbackup.host.lock import run_lock\n" \
           f"with run_lock(Path({str(tmp_path)!r}), 'work'): os.kill(os.getpid(), 9)"  # fmt: skip
    done = subprocess.run((sys.executable, "-c", code), check=False)
    assert done.returncode == -9
    with run_lock(tmp_path, "work"):
        assert (tmp_path / "work.lock").read_text() == f"{os.getpid()}\n"


def test_any_number_reads_at_once_and_is_seen_until_the_last_one_ends(tmp_path: Path) -> None:
    place = tmp_path / "run"
    assert not being_read(place)
    with reading(place):
        with reading(place), run_lock(place, RESTORE):
            assert being_read(place)
        assert being_read(place)
        assert being_read(place), "to look takes nothing away"
    assert not being_read(place)
    with run_lock(place, RESTORE):
        assert being_read(place)
    assert not being_read(place)


@pytest.mark.processes
def test_a_killed_reader_is_none(tmp_path: Path) -> None:
    code = "import os, sys\nfrom pathlib import Path\nfrom pve_zfsbackup.host.lock import reading\n"
    code += "with reading(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read(); os.kill(os.getpid(), 9)"
    words = (sys.executable, "-c", code, tmp_path)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"in\n"
        assert being_read(tmp_path)
        reader.communicate()
    assert reader.returncode == -9
    assert not being_read(tmp_path)


def test_who_cannot_say_that_he_reads_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(BackupError, match=r"reading\.lock: File exists"), reading(tmp_path / "run"):
        pytest.fail("nobody would see it")


def test_the_migration_lock_is_proxmoxs_own_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "pve-manager/pve-migrate-100"
    with migration_lock(Vmid(100), directory=path.parent), open(path) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_migration_lock_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    with open(tmp_path / "pve-migrate-100", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with (
            pytest.raises(GuestBusyError, match="100: is being migrated"),
            migration_lock(Vmid(100), directory=tmp_path),
        ):
            pytest.fail("two have the lock")
    assert 2.0 <= now[0] < 2.5


def test_a_migration_lock_that_cannot_be_opened_is_no_licence(tmp_path: Path) -> None:
    (tmp_path / "pve-migrate-100").symlink_to("/etc/passwd")
    with pytest.raises(GuestBusyError, match="cannot be taken"), migration_lock(Vmid(100), directory=tmp_path):
        pytest.fail("followed a link")


def test_whether_somebody_is_at_it_can_be_asked(tmp_path: Path) -> None:
    place = tmp_path / "run"
    assert not held(place, "drill"), "nobody ever was"
    with run_lock(place, "drill"):
        assert held(place, "drill")
        assert not held(place, "other")
    assert not held(place, "drill")
