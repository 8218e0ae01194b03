"""Clones of a point's snapshots, to look into them: made, waited for, and taken away again.

A bench is a parent dataset of ours in each pool and a directory for mounts. What lies there is known by place, mark and
guid, and taken away by one function: at the end, and before the next use, because the last one may have been killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import BackupError, CommandError, VerificationError, ZfsError
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.health import pool_of
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import PROPERTY, Dataset, Guid, Snapshot

MARK: Final = f"{PROPERTY}drill"
LINK_SECONDS: Final = 60.0  # the link in /dev/zvol lags (openzfs #8669, #12507)
BUSY_SECONDS: Final = 30.0  # udev opens what it has just heard of
PAUSE: Final = 0.2
# Volumes inherit `full`: said of a clone itself it makes the device a second time, and the first one's link goes.
_PARENT: Final = ("-o", "canmount=off", "-o", "mountpoint=none", "-o", "volmode=full")
MOUNTS: Final = Path("/proc/self/mountinfo")
# Nothing of the host shall act by itself on what a guest left in its disks: no LVM, md, multipath or desktop.
UDEV_RULE: Final = """\
# Written by pve-zfsbackup: disks of guests that are looked into are nobody else's business.
SUBSYSTEM=="block", SYMLINK=="zvol/*/pve-zfsbackup-*", ENV{SYSTEMD_READY}="0", ENV{UDISKS_IGNORE}="1", \\
  ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where points are opened on this host. Whoever uses it has a lock for its `name`: what lies there is leftover."""

    host: Host
    place: Path  # a directory of ours for mounts; nobody else may look into it
    name: str = "drill"
    devices: Path = Path("/dev/zvol")
    rules: Path = Path("/run/udev/rules.d")
    mounts: Path = field(default=MOUNTS)

    @property
    def prefix(self) -> str:
        return f"pve-zfsbackup-{self.name}"

    def parent(self, pool: str) -> Dataset:
        return Dataset(f"{pool}/{self.prefix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A clone of one disk: a block device, or a mounted file system."""

    dataset: Dataset
    origin: Snapshot
    path: Path
    volume: bool


@contextlib.contextmanager
def cloned(bench: Bench, disks: Mapping[str, tuple[Snapshot, bool]]) -> Iterator[dict[str, Clone]]:
    """Clones of these snapshots, by key; `True` marks a volume. Taken away at the end, whatever happened inside.

    A clone of a volume can be written: a file system that was in use goes on in its own journal, as after a restore.
    Raises when one cannot be made, or does not appear within a minute; and `VerificationError` when something of
    it is left at the end.
    """
    pools = sorted({pool_of(snapshot.dataset) for snapshot, _ in disks.values()})
    _shield(bench)
    try:
        for pool in pools:
            zfs.zfs(bench.host, "create", *_PARENT, "--", bench.parent(pool))
        run = secrets.token_hex(4)
        made = {
            key: _clone(bench, f"{run}-{number}", snapshot, volume=volume)
            for number, (key, (snapshot, volume)) in enumerate(sorted(disks.items()))
        }
        yield made
    except BaseException:
        with contextlib.suppress(BackupError):  # the first error tells more; the next use sweeps again
            sweep(bench, pools)
        raise
    sweep(bench, pools)


def _clone(bench: Bench, name: str, snapshot: Snapshot, *, volume: bool) -> Clone:
    dataset = Dataset(f"{bench.parent(pool_of(snapshot.dataset))}/{name}")
    path = bench.devices / dataset if volume else bench.place / name
    inert = {"canmount": "noauto", "readonly": "on", "setuid": "off", "devices": "off", "exec": "off"}
    own = {} if volume else {"mountpoint": str(path), **inert}
    options = [part for key, value in {MARK: name, **own}.items() for part in ("-o", f"{key}={value}")]
    zfs.zfs(bench.host, "clone", *options, "--", snapshot.full_name, dataset)
    if volume:
        _wait(bench, path)
    else:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        bench.place.chmod(0o700)
        zfs.zfs(bench.host, "mount", "--", dataset)
    return Clone(dataset=dataset, origin=snapshot, path=path, volume=volume)


def _wait(bench: Bench, path: Path) -> None:
    """Until the device is there and has a size."""
    deadline = time.monotonic() + LINK_SECONDS
    while not _usable(path):
        if time.monotonic() > deadline:
            raise VerificationError(
                f"{path}: did not appear within {LINK_SECONDS:.0f} s", hint="is udev running, and `modprobe zfs` done?"
            )
        _settle(bench)
        time.sleep(PAUSE)
    _settle(bench)  # its partitions come after it


def _usable(path: Path) -> bool:
    try:
        with open(path, "rb") as device:
            return device.seek(0, os.SEEK_END) > 0
    except OSError:
        return False


def _settle(bench: Bench) -> None:
    with contextlib.suppress(CommandError):  # without udev nothing is to be waited for
        bench.host.run(("udevadm", "settle", "--timeout=10"), timeout=20, check=False)


def _shield(bench: Bench) -> None:
    """Keep udev's other rules away from the clones. It stays until the next boot: a rule that fits nothing is none."""
    rule = bench.rules / f"62-{bench.prefix}.rules"
    try:
        if rule.exists() and rule.read_text("ascii") == UDEV_RULE:
            return
        rule.parent.mkdir(parents=True, exist_ok=True)
        rule.write_text(UDEV_RULE, encoding="ascii")
    except OSError as error:
        raise VerificationError(
            f"{rule}: {error.strerror}: without it this host might activate volumes of a guest", hint="run this as root"
        ) from None
    with contextlib.suppress(CommandError):
        bench.host.run(("udevadm", "control", "--reload"), timeout=20, check=False)


# -- taking away


def sweep(bench: Bench, pools: Iterable[str]) -> list[str]:
    """Unmount, unmap and destroy what lies on the bench; returns what was taken away.

    Only what is ours: mounts below our directory, maps with our name, clones below our parent with our mark whose
    guid is still the one that was listed. Raises `VerificationError` when something does not go.
    """
    told = [*_unmount(bench), *_unmap(bench)]
    for pool in pools:
        told += _destroy(bench, pool)
    with contextlib.suppress(FileNotFoundError):
        for left in bench.place.iterdir():
            with contextlib.suppress(OSError):  # a mount that did not go has been told
                left.rmdir()
    return told


def _unmount(bench: Bench) -> Iterator[str]:
    for path in reversed(mounted_below(bench)):
        _again(bench, ("umount", "--", path))
        yield f"unmounted {path}"


def mounted_below(bench: Bench) -> list[str]:
    """Mount points below our directory, in the order they were mounted (proc(5), mountinfo)."""
    place = f"{bench.place}/"
    fields = (line.split(" ") for line in bench.mounts.read_text("utf-8", "surrogateescape").splitlines())
    paths = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), entry[4]) for entry in fields)
    return [path for path in paths if path.startswith(place)]


def _unmap(bench: Bench) -> Iterator[str]:
    for name in maps(bench):
        _again(bench, ("dmsetup", "remove", "--noudevsync", name))
        yield f"removed the map {name}"


def maps(bench: Bench) -> list[str]:
    """Device-mapper devices with our name."""
    try:
        done = bench.host.run(("dmsetup", "ls"), check=False, timeout=60)
    except CommandError:
        return []  # no dmsetup, no maps of ours
    names = (line.split("\t")[0].strip() for line in done.stdout.splitlines())
    return sorted(name for name in names if name.startswith(f"{bench.prefix}-"))


def _destroy(bench: Bench, pool: str) -> Iterator[str]:
    parent = bench.parent(pool)
    found = listed(bench, parent)
    for name, guid, ours in found:
        if not ours:
            continue
        if zfs.current_guids(bench.host, [name]).get(name) == guid:
            _again(bench, ("zfs", "destroy", name))
            yield f"destroyed {name}"
    if found or _exists(bench, parent):
        left = [name for name, _, _ in listed(bench, parent)]
        if left:
            raise VerificationError(f"{', '.join(left)}: left, and not ours", hint=f"look at `zfs list -r {parent}`")
        _again(bench, ("zfs", "destroy", parent))


def listed(bench: Bench, parent: Dataset) -> list[tuple[str, Guid, bool]]:
    """What lies below our parent: name, guid, and whether it is a clone with our mark on itself."""
    argv = ("zfs", "list", "-Hp", "-r", "-t", "filesystem,volume", "-o", f"name,guid,origin,{MARK}", "--", parent)
    done = bench.host.run(argv, check=False)
    if done.returncode:
        if "does not exist" in done.stderr:
            return []
        raise ZfsError(f"{parent}: cannot be listed: {done.stderr.strip()}")
    # A mark with a tab or a line break in it is not ours, and the rest of its line is no dataset.
    rows = [row for line in done.stdout.split("\n") if len(row := line.split("\t", 3)) == 4]
    return [
        (name, Guid(guid), origin not in ("", "-") and name == f"{parent}/{mark}")
        for name, guid, origin, mark in rows
        if name != parent
    ]


def _exists(bench: Bench, parent: Dataset) -> bool:
    return bool(zfs.current_guids(bench.host, [parent]))


def _again(bench: Bench, argv: Sequence[str]) -> None:
    """Run what may find a device busy for moments. Raises `VerificationError` when it stays so."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        done = bench.host.run(argv, check=False)
        if not done.returncode:
            return
        if time.monotonic() > deadline or "busy" not in done.stderr.lower():
            raise VerificationError(
                f"{' '.join(argv)}: {done.stderr.strip()}", hint="the next drill tries to take it away again"
            )
        _settle(bench)
        time.sleep(PAUSE)
