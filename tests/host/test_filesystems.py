"""What is asked of zvols by other programs, while OpenZFS is busy with its pools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.errors import VerificationError
from pve_zfsbackup.host import filesystems
from pve_zfsbackup.host.runner import Completed, ProcessRunner

LOCKED = "mount: /x: mount(2) system call failed: Unknown error 512."
OTHER = "mount: /x: wrong fs type, bad option, bad superblock on /dev/zd16."


class Answers(ProcessRunner):
    """Programs that fail with these words, one after another, and then succeed."""

    def __init__(self, *words: str) -> None:
        super().__init__()
        self.words, self.ran = list(words), 0

    def run(self, argv: Sequence[str], **how: Any) -> Completed:
        self.ran += 1
        said = self.words.pop(0) if self.words else ""
        return Completed(argv=tuple(argv), returncode=32 if said else 0, stdout="", stderr=said)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "PAUSE", 0.0)


@pytest.mark.parametrize("what", ["settle", "checked"])
def test_a_zvol_that_is_locked_for_a_moment_is_asked_again(tmp_path: Path, what: str) -> None:
    runner = Answers(LOCKED, LOCKED)
    if what == "settle":
        filesystems.settle(runner, "/dev/zd16", "ext4", tmp_path)
    else:
        filesystems.checked(runner, "/dev/zd16", "ext4")
    assert runner.ran == (4 if what == "settle" else 3)  # to settle, it is unmounted at the end


def test_a_file_of_the_guest_with_such_a_name_is_no_reason(tmp_path: Path) -> None:
    runner = Answers("Entry 'Unknown error 512' in / (2) has deleted/unused inode 12.  Clear? no")
    with pytest.raises(VerificationError, match="Unknown error 512"):
        filesystems.checked(runner, "/dev/zd16", "ext4")
    assert runner.ran == 1


@pytest.mark.parametrize(("words", "times"), [((OTHER,), 1), ((LOCKED,) * 20, filesystems.TRIES)])
def test_what_stays_or_is_something_else_is_told(tmp_path: Path, words: tuple[str, ...], times: int) -> None:
    runner = Answers(*words)
    with pytest.raises(VerificationError, match="cannot be mounted as ext4"):
        filesystems.settle(runner, "/dev/zd16", "ext4", tmp_path)
    assert runner.ran == times
