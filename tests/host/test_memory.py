"""Small files that outlive a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.memory import recall, remember


def test_what_is_remembered_is_recalled_and_is_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "state/x.json"
    remember(path, {"a": [1, "ü\u2028"]})
    assert recall(path) == {"a": [1, "ü\u2028"]}
    assert path.stat().st_mode & 0o777 == 0o600
    remember(path, {"b": 2})
    assert recall(path) == {"b": 2}
    assert os.listdir(path.parent) == ["x.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\udcff"])
def test_what_is_damaged_or_missing_is_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    assert recall(path) == {}
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert recall(path) == {}


def test_a_full_disk_keeps_the_old_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    remember(path, {"a": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackupError, match="No space left"):
        remember(path, {"a": 2})
    assert recall(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]
