"""One run at a time, and a lock that dies with its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pve_zfsbackup.errors import ExitCode, LockedError
from pve_zfsbackup.host.lock import run_lock


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
