"""Files copied out of a hostile file system: all of what they are, and nothing outside of the directory."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.copying import Copier


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "mnt"
    (made / "etc/deep").mkdir(parents=True)
    (made / "etc/fstab").write_text("/dev/sda / ext4\n")
    (made / "etc/deep/key").write_text("secret")
    (made / "etc/deep/key").chmod(0o4750)
    (made / "etc/link").symlink_to("/etc/shadow")
    os.utime(made / "etc/fstab", ns=(1_000_000_007, 2_000_000_009))
    os.utime(made / "etc/deep", ns=(3_000_000_000, 4_000_000_000))
    (made / "etc/deep").chmod(0o750)
    return made


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "out"


def copy(root: Path, into: Path, path: str = "", *, overwrite: bool = False) -> Copier:
    copier = Copier(into=into, overwrite=overwrite)
    copier.copy(root, root / path, "scsi0")
    return copier


def test_a_file_has_its_content_mode_and_times_and_its_directories_theirs(root: Path, into: Path) -> None:
    copied = copy(root, into, "etc/deep/key").copied
    assert (copied.files, copied.bytes, copied.problems) == (1, 6, ())
    key = into / "scsi0/etc/deep/key"
    assert key.read_text() == "secret"
    assert stat.S_IMODE(key.stat().st_mode) == 0o4750
    deep = key.parent.stat()
    assert (stat.S_IMODE(deep.st_mode), deep.st_mtime_ns) == (0o750, 4_000_000_000)
    assert not (into / "scsi0/etc/fstab").exists()


def test_a_tree_is_copied_with_its_links_as_links(root: Path, into: Path) -> None:
    copied = copy(root, into, "etc").copied
    assert (copied.files, copied.problems) == (3, ())
    out = into / "scsi0/etc"
    assert os.readlink(out / "link") == "/etc/shadow"
    assert (out / "fstab").stat().st_mtime_ns == 2_000_000_009
    assert sorted(path.name for path in out.rglob("*")) == ["deep", "fstab", "key", "link"]


def test_only_we_may_enter_what_was_copied(root: Path, into: Path) -> None:
    """A setuid program of a guest's must not become one of this host's."""
    into.mkdir(mode=0o777)
    into.chmod(0o777)
    copy(root, into)
    assert stat.S_IMODE((into / "scsi0").stat().st_mode) == 0o700
    (into / "scsi0").chmod(0o755)
    with pytest.raises(BackupError, match="others of this host may enter it"):
        copy(root, into)


def test_what_is_there_stays_unless_told(root: Path, into: Path) -> None:
    copy(root, into)
    out = into / "scsi0/etc/fstab"
    out.write_text("mine")
    again = copy(root, into).copied
    assert again.files == 0
    assert "scsi0:/etc/fstab: is there already, and stays: --overwrite replaces it" in again.problems
    assert out.read_text() == "mine"
    assert copy(root, into, "etc/fstab", overwrite=True).copied.problems == ()
    assert out.read_text() == "/dev/sda / ext4\n"


def test_no_link_in_the_directory_is_followed(root: Path, into: Path, tmp_path: Path) -> None:
    """An earlier copy, or somebody, left a link where a directory or a file is to go."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "fstab").write_text("of the host")
    (into / "scsi0").mkdir(parents=True, mode=0o700)
    (into / "scsi0").chmod(0o700)
    (into / "scsi0/etc").symlink_to(outside)
    for overwrite in (False, True):
        copied = copy(root, into, "etc/fstab", overwrite=overwrite).copied
        assert copied.problems == ("scsi0:/etc: something else is there already, and stays",)
    (into / "scsi0/etc").unlink()
    (into / "scsi0/etc").mkdir()
    (into / "scsi0/etc/fstab").symlink_to(outside / "fstab")
    copy(root, into, "etc/fstab", overwrite=True)
    assert not (into / "scsi0/etc/fstab").is_symlink()
    assert (outside / "fstab").read_text() == "of the host"


def test_a_directory_that_is_a_link_is_refused(root: Path, into: Path, tmp_path: Path) -> None:
    into.mkdir()
    (into / "scsi0").symlink_to(tmp_path)
    with pytest.raises(BackupError, match="no directory"):
        copy(root, into)


def test_a_link_of_the_guest_never_becomes_a_way(root: Path, into: Path, tmp_path: Path) -> None:
    """First a link is copied, then the guest's point of another time has a directory of that name."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "srv").symlink_to(outside)
    copy(root, into, "srv")
    (root / "srv").unlink()
    (root / "srv").mkdir()
    (root / "srv/authorized_keys").write_text("evil")
    copied = copy(root, into, "srv", overwrite=True).copied
    assert copied.problems == ("scsi0:/srv: something else is there already, and stays",)
    assert list(outside.iterdir()) == []


def test_devices_pipes_and_sockets_are_told_and_not_opened(root: Path, into: Path) -> None:
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "sock"))
    copied = copy(root, into).copied
    told = "neither a file nor a directory nor a link: not copied"
    assert set(copied.problems) == {f"scsi0:/pipe: {told}", f"scsi0:/sock: {told}"}
    assert copied.files == 3


def test_hostile_names_are_copied_and_told_without_escapes(root: Path, into: Path) -> None:
    names = ["-rf", "a\nb", "\x1b[2J", os.fsdecode(b"\xff\xfe"), "x" * 255, "$(reboot)"]
    for name in names:
        (root / "etc" / name).write_text("x")
    assert copy(root, into).copied.problems == ()
    assert set(names) <= set(os.listdir(into / "scsi0/etc"))
    assert any("etc/\\x1b[2J: is there" in problem for problem in copy(root, into).copied.problems)


def test_holes_stay_holes(root: Path, into: Path) -> None:
    with open(root / "sparse", "wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
        file.truncate(128 << 20)
    copy(root, into, "sparse")
    out = into / "scsi0/sparse"
    assert out.stat().st_size == 128 << 20
    assert out.stat().st_blocks * 512 < 16 << 20
    assert out.read_bytes()[64 << 20 :][:4] == b"end\0"


def test_what_cannot_be_read_leaves_no_half_and_the_rest_is_copied(
    root: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = root / "etc/big"
    big.write_bytes(b"x" * (3 << 20))
    real, reads = os.read, []

    def broken(handle: int, count: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{handle}") == str(big):
            reads.append(count)
            if len(reads) > 1:
                raise OSError(errno.EIO, "Input/output error")
        return real(handle, count)

    monkeypatch.setattr(os, "read", broken)
    copied = copy(root, into).copied
    assert copied.problems == ("scsi0:/etc/big: Input/output error",)
    assert copied.files == 3
    assert sorted(os.listdir(into / "scsi0")) == ["etc"]
    assert not (into / "scsi0/etc/big").exists()


def test_a_full_disk_ends_it_and_what_was_whole_stays(
    root: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if data == b"secret":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    (root / "etc/a").write_text("first")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(BackupError, match="No space left on device: what was copied until then stays"):
        copy(root, into)
    assert [path.name for path in (into / "scsi0").rglob("*") if path.is_file()] == ["a"]


def test_what_a_killed_copy_left_goes_with_the_next(root: Path, into: Path) -> None:
    copy(root, into, "etc/fstab")
    (into / "scsi0/.pve-zfsbackup-0123456789abcdef.part").write_text("half")
    (into / "scsi0/.pve-zfsbackup-mine.part").write_text("kept")
    copy(root, into, "etc/deep")
    assert sorted(os.listdir(into / "scsi0")) == [".pve-zfsbackup-mine.part", "etc"]


def test_attributes_are_kept_and_what_is_lost_is_told_once(
    root: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, bytes] = {}
    attributes = {"system.posix_acl_access": b"acl", "user.note": b"hello"}

    def setxattr(handle: int, name: str, value: bytes) -> None:
        if name.startswith("system."):
            raise OSError(errno.ENOTSUP, "Operation not supported")
        kept[name] = value

    monkeypatch.setattr(os, "listxattr", lambda path, follow_symlinks: list(attributes))
    monkeypatch.setattr(os, "getxattr", lambda path, name, follow_symlinks: attributes[name])
    monkeypatch.setattr(os, "setxattr", setxattr)
    copied = copy(root, into).copied
    assert kept == {"user.note": b"hello"}
    assert copied.lost == ("attribute system.posix_acl_access: Operation not supported",)
    assert copied.problems == ()


def test_real_attributes_of_real_files_are_kept(root: Path, into: Path) -> None:
    try:
        os.setxattr(root / "etc/fstab", "user.note", b"hello")
    except OSError as error:
        pytest.skip(f"this file system has no attributes: {error.strerror}")
    copied = copy(root, into).copied
    assert os.getxattr(into / "scsi0/etc/fstab", "user.note") == b"hello"
    assert not [text for text in copied.lost if "user.note" in text]


def test_a_deep_tree_does_not_end_it(root: Path, into: Path) -> None:
    """Deeper than a path may be long: what can be named is copied, what cannot is told."""
    handle = os.open(root, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=handle)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    copied = copy(root, into).copied
    assert (copied.files, len(copied.problems)) == (3, 1)
    assert copied.problems[0].endswith("File name too long")


def test_the_directory_must_have_a_place(root: Path, into: Path) -> None:
    with pytest.raises(BackupError, match="No such file or directory"):
        copy(root, into / "a/b")
