"""File systems of guests on devices of ours: checked by their own programs, mounted where nobody else looks.

A point of a running guest is like a disk after a power cut. So each is mounted once as a boot would mount it, which
lets it go on in its journal (on the clone, which is thrown away), then checked, then mounted for reading only.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import VerificationError
from pve_zfsbackup.host.runner import Completed, Runner, failure
from pve_zfsbackup.model import printable

HOURS: Final = 3600.0
# What they say of any file system.
_CHATTER: Final = re.compile(
    r"Phase \d|Pass \d|- |No modify flag|e2fsck \d|Opening filesystem|\[\d/\d\]|WARNING: .* read"
)
# As mount and e2fsck say it of the device. The checks also print names that the guest chose, but never so.
_LOCKED: Final = re.compile(r"Unknown error 512(\.?| while trying to open \S+)$", re.MULTILINE)
TRIES: Final = 10
PAUSE: Final = 1.0  # seconds
# `errors=continue`: a file system that says `errors=panic` would take this host with it.
_ALWAYS: Final = "ro,nosuid,nodev,noexec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How file systems of a kind are checked and mounted. `check` empty: there is no check that only reads."""

    check: tuple[str, ...] = ()
    boot: str = ""  # options that let it go on in its journal; "" when its check does without
    look: str = ""
    type: str = ""  # as mount has it, if not blkid's


_EXT: Final = Kind(check=("e2fsck", "-f", "-n"), boot="errors=continue", look="noload,errors=continue", type="ext4")
KINDS: Final[Mapping[str, Kind]] = {
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "xfs": Kind(check=("xfs_repair", "-n"), boot="nouuid", look="norecovery,nouuid"),
    "btrfs": Kind(check=("btrfs", "check", "--readonly")),
    "vfat": Kind(),
}
KNOWN: Final[Mapping[str, str]] = {  # and why nobody looks into them
    "ntfs": "NTFS: recognised, not mounted",
    "BitLocker": "BitLocker: encrypted by the guest",
    "crypto_LUKS": "LUKS: encrypted by the guest",
    "zfs_member": "a ZFS pool of the guest's: never imported here",
    "linux_raid_member": "a part of a software RAID of the guest's: never assembled here",
    "swap": "swap",
    "swsuspend": "swap with a hibernated system",
    "LVM2_member": "a physical volume of LVM",
    "ReFS": "ReFS: recognised, not mounted",
    "ufs": "UFS: recognised, not mounted",
    "exfat": "exFAT: recognised, not mounted",
    "iso9660": "an ISO image",
    "squashfs": "squashfs: recognised, not mounted",
    "bcache": "bcache: recognised, not opened",
    "DM_integrity": "dm-integrity: recognised, not opened",
    "VMFS_volume_member": "VMFS: recognised, not mounted",
    "ambivalent": "more than one kind of content at once",
}


@contextlib.contextmanager
def opened(runner: Runner, device: str, kind: str, where: Path) -> Iterator[Path]:
    """The file system on a device, mounted for reading only. Raises `VerificationError` when that fails."""
    how = KINDS[kind]
    _mount(runner, device, how.type or kind, how.look, where)
    try:
        yield where
    finally:
        _unmount(runner, where)


def settle(runner: Runner, device: str, kind: str, where: Path) -> None:
    """Let it go on in its journal, as the next boot would. Raises `VerificationError` when it cannot be mounted."""
    how = KINDS[kind]
    if how.boot:
        _mount(runner, device, how.type or kind, how.boot, where)
        _unmount(runner, where)


def checked(runner: Runner, device: str, kind: str) -> None:
    """Run its checking program, which changes nothing. Raises `VerificationError` with what it finds, and
    `NotInstalledError` when there is no such program here."""
    argv = KINDS[kind].check
    if not argv:
        return
    done = _opening(runner, (*argv, device), 12 * HOURS)
    if done.returncode:
        lines = (line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines())
        told = [printable(line) for line in lines if line and not _CHATTER.match(line)]
        shown = "; ".join(told[:3]) or f"exit status {done.returncode}"
        raise VerificationError(f"{argv[0]}: {shown}"[:500])


def _mount(runner: Runner, device: str, kind: str, options: str, where: Path) -> None:
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = f"{_ALWAYS},{options}" if options else _ALWAYS
    done = _opening(runner, ("mount", "-t", kind, "-o", own, "--", device, str(where)), HOURS)
    if done.returncode:
        raise VerificationError(f"cannot be mounted as {kind}: {failure(done).message}")


def _opening(runner: Runner, argv: tuple[str, ...], timeout: float) -> Completed:
    """Run a program that opens a zvol. While the kernel's list of pools is locked, which is short but not rare beside
    other work, OpenZFS answers with an error that no program should ever see (ERESTARTSYS: seen in the lab)."""
    for _ in range(TRIES):
        done = runner.run(argv, check=False, timeout=timeout)
        if not done.returncode or not _LOCKED.search(done.stderr.rstrip() or done.stdout):
            break
        time.sleep(PAUSE)
    return done


def _unmount(runner: Runner, where: Path) -> None:
    runner.run(("umount", "--", str(where)), timeout=600)
