"""The state of pools, read without touching them: a command that meets a suspended pool hangs, even against SIGKILL
(openzfs #6138, reliability §1 "Suspended pool")."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import PoolSuspendedError
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import ONLINE, SUSPENDED, Dataset

KSTAT: Final = Path("/proc/spl/kstat/zfs")
_OBJSET: Final = re.compile(r"^dataset_name\s+\d+\s+(\S+)$", re.M)
Version = tuple[int, int, int]


def pool_of(dataset: str) -> str:
    return dataset.partition("/")[0]


def local_states(datasets: Iterable[Dataset], kstat: Path) -> dict[str, str]:
    """The states of the pools of these datasets, as far as this host tells: ONLINE, DEGRADED, SUSPENDED, …"""
    found = {}
    for pool in sorted({pool_of(name) for name in datasets}):
        try:
            found[pool] = (kstat / pool / "state").read_text("ascii", "replace").strip()
        except OSError:
            continue  # not imported, or a ZFS without the file: `zfs list` will say what there is
    return found


def opened(datasets: Iterable[Dataset], kstat: Path) -> int:
    """How many file systems and volumes right below these datasets are mounted, or have a device, here: there are at
    least as many. Costs no program."""
    parents, count = set(datasets), 0
    for pool in {pool_of(name) for name in parents}:
        with contextlib.suppress(OSError):  # not imported, or not told; what is told is enough
            for entry in (kstat / pool).glob("objset-*"):
                with contextlib.suppress(OSError):  # it was just unmounted
                    found = _OBJSET.search(entry.read_text("utf-8", "replace"))
                    count += bool(found and found[1].rpartition("/")[0] in parents)
    return count


def state_argv(pool: str) -> tuple[str, ...]:
    """Prints the state and succeeds, unless the pool is suspended (1) or has no such file (2)."""
    return ("grep", "-vx", SUSPENDED, f"{KSTAT}/{pool}/state")


def suspended(host: Host, pool: str) -> PoolSuspendedError:
    return PoolSuspendedError(
        f"{host.name}: pool {pool} is suspended: its devices do not answer, and whatever touched it would hang",
        hint=f"on {host.name}: `zpool status {pool}`, then bring the devices back and `zpool clear {pool}`",
    )


def told(states: Mapping[str, str]) -> list[str]:
    """What is not as it should be with the pools of this node."""
    return [
        f"pool {pool} is {state}: `zpool status {pool}` tells more"
        for pool, state in sorted(states.items())
        if state != ONLINE
    ]


def pool_properties(host: Host, pool: str) -> dict[str, str]:
    """All properties of a pool, features included: `feature@lz4_compress` is disabled, enabled or active."""
    done = host.run(("zpool", "get", "-Hp", "-o", "property,value", "all", "--", pool), check=False)
    if done.returncode:
        raise classified(done)
    pairs = (line.partition("\t") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def version(lines: Iterable[str]) -> Version:
    """Of the lines of `zfs version`, the older of tools and kernel module; (0, 0, 0) when not understood."""
    found = [re.match(r"zfs-(?:kmod-)?(\d+)\.(\d+)\.(\d+)", line) for line in lines]
    return min(((int(m[1]), int(m[2]), int(m[3])) for m in found if m), default=(0, 0, 0))
