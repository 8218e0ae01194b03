"""Pools of a host as `zpool list` tells. It answers for a suspended pool as well, where `zfs` would hang."""

from __future__ import annotations

from pve_zfsbackup.errors import ZfsError
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model.health import Pool

SECONDS = 30.0


def read_pools(host: Host) -> tuple[Pool, ...]:
    """Every imported pool. Raises `ZfsError` for an answer that is none."""
    done = host.run(("zpool", "list", "-Hp", "-o", "name,health,size,free"), timeout=SECONDS)
    pools = []
    for line in done.stdout.splitlines():
        try:
            name, health, size, free = line.split("\t")
            pools.append(Pool(name=name, health=health, size=_number(size), free=_number(free)))
        except ValueError:
            raise ZfsError(f"{host.name}: the answer of zpool is not understood: {line[:200]!r}") from None
    return tuple(pools)


def _number(text: str) -> int:
    return 0 if text == "-" else int(text)  # a pool that is faulted has no numbers
