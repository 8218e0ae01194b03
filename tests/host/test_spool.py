"""What a kill leaves in the spool may be a guest's plaintext: it does not stay."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.spool import spooled

_HANGS = """
import signal, sys
from pathlib import Path
from pve_zfsbackup.host.spool import spooled
with spooled(Path(sys.argv[1])) as place:
    (place / "plain").write_text("secret")
    print(place, flush=True)
    signal.pause()
"""


def lying(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name != ".spool.lock")


def test_it_is_gone_afterwards_and_for_its_owner_only(tmp_path: Path) -> None:
    with spooled(tmp_path / "a/spool") as place:
        (place / "plain").write_text("secret")
        assert place.stat().st_mode & 0o077 == 0
        assert place.parent.stat().st_mode & 0o077 == 0
    assert lying(tmp_path / "a/spool") == []


def test_it_is_gone_after_a_failure_too(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), spooled(tmp_path) as place:
        (place / "not" / "there").write_text("secret")
    assert lying(tmp_path) == []


@pytest.mark.processes
def test_what_a_kill_left_goes_with_the_next_and_what_is_in_use_stays(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", _HANGS, str(tmp_path))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        left = Path(other.stdout.readline().strip())
        with spooled(tmp_path):
            assert (left / "plain").read_text() == "secret", "its owner is at work"
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert left.exists()
    with spooled(tmp_path) as place, spooled(tmp_path) as inner:
        assert lying(tmp_path) == sorted(f"{path.name}{end}" for path in (place, inner) for end in ("", ".lock"))


def test_what_was_killed_while_it_was_made_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def mkdir(path: Path, *told: object, **more: object) -> None:
        real(path, *told, **more)  # type: ignore[arg-type]
        if path.name.startswith("pzb-spool-"):
            raise Killed

    real = Path.mkdir
    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", mkdir)
        with pytest.raises(Killed), spooled(tmp_path):
            pass
    assert len(lying(tmp_path)) == 2
    with spooled(tmp_path):
        pass
    assert lying(tmp_path) == []


def test_what_cannot_be_removed_at_once_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS keeps a file while a program that outlived the kill has it open."""
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *told, **more: None)
        with spooled(tmp_path) as left:
            (left / "plain").write_text("secret")
        with spooled(tmp_path):
            assert left.exists()
    with spooled(tmp_path):
        assert not left.exists()
    assert lying(tmp_path) == []


def test_what_went_wrong_is_told_also_where_nothing_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(BackupError, match="the cause"), spooled(tmp_path):
        raise BackupError("the cause")


def test_a_file_system_that_locks_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(BackupError, match="No locks available"), spooled(tmp_path):
        pass


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "pzb-spool-file").write_text("without a lock of ours")
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "pzb-spool-link.lock").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pzb-spool-link").mkdir()
    with spooled(tmp_path):
        pass
    assert lying(tmp_path) == ["elsewhere", "mine", "pzb-spool-file", "pzb-spool-link", "pzb-spool-link.lock"]


def test_where_nothing_can_be_made_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackupError, match="Not a directory"), spooled(tmp_path / "file" / "spool"):
        pass
