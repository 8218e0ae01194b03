"""Paths inside of what a guest left: links lead nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pve_zfsbackup.errors import VerificationError
from pve_zfsbackup.host.inside import find, find_below, read_device, read_files, subvolumes, system_name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "mnt"
    for folder in ("etc", "usr/lib", "srv/data"):
        (made / folder).mkdir(parents=True)
    (made / "usr/lib/os-release").write_text('NAME=x\nPRETTY_NAME="Debian\x1b[2J 12"\n')
    (made / "etc/os-release").symlink_to("../usr/lib/os-release")
    (made / "srv/data/canary").write_text("alive")
    (tmp_path / "secret").write_text("of the host")
    return made


def test_a_file_is_found_through_links_as_the_guest_sees_them(root: Path) -> None:
    (root / "opt").symlink_to("/srv")
    assert find(root, "/etc/os-release") == root / "usr/lib/os-release"
    assert find(root, "/opt/data/canary") == root / "srv/data/canary"
    assert find(root, "/srv/none") is None
    assert find(root, "/srv/data/canary/below") is None


@pytest.mark.parametrize("aim", ["../../../../secret", "/../secret", "/proc/self/root/etc/passwd", "loop"])
def test_no_link_leads_out_of_the_root(root: Path, aim: str) -> None:
    (root / "loop").symlink_to(aim)
    assert find(root, "/loop") is None
    assert find(root, "/../../secret") is None


def test_a_file_system_of_a_guest_may_be_mounted_anywhere_there(root: Path) -> None:
    assert find_below(root / "srv", "/srv/data/canary") == root / "srv/data/canary"
    assert find_below(root / "srv/data", "/srv/data/canary") == root / "srv/data/canary"
    assert find_below(root, "/srv/data/other") is None


def test_a_system_tells_its_name_without_escapes(root: Path) -> None:
    assert system_name(root) == "Debian\\x1b[2J 12"
    (root / "usr/lib/os-release").unlink()
    assert system_name(root) is None
    (root / "etc/os-release").unlink()
    (root / "etc/os-release").mkdir()
    assert system_name(root) is None


def test_files_are_read_whole_and_nothing_else_is_opened(root: Path) -> None:
    os.mkfifo(root / "pipe")  # opening it would wait for ever
    (root / "out").symlink_to("/etc/passwd")
    assert read_files(root, everything=True)[0] == 2
    for number in range(200):
        (root / f"f{number}").write_bytes(b"x" * 10)
    assert read_files(root, everything=False)[0] == 64
    assert read_files(root, everything=True) == (202, 2000 + 5 + len('NAME=x\nPRETTY_NAME="Debian\x1b[2J 12"\n'))


def test_what_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def broken(path: str, flags: int, *rest: int) -> int:
        if str(path).endswith("canary"):
            raise OSError(5, "Input/output error")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", broken)
    with pytest.raises(VerificationError, match=r"file srv/data/canary: cannot be read: Input/output error"):
        read_files(root, everything=True)


def test_a_device_is_read_whole_or_in_places(tmp_path: Path) -> None:
    device = tmp_path / "zd0"
    device.write_bytes(b"x" * (5 << 20) + b"end")
    assert read_device(device, everything=True) == (5 << 20) + 3
    assert 2 << 20 <= read_device(device, everything=False) <= 66 << 20


def test_subvolumes_are_directories_with_the_inode_of_btrfs(root: Path) -> None:
    assert subvolumes(root) == []
