"""Pools of a host as `zpool list` tells. It answers for a suspended pool as well, where `zfs` would hang."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from pve_zfsbackup.errors import ZfsError
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model.health import Pool, Scan

SECONDS = 30.0
CLEAN = ("0", "0", "0")


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


def scan_of(host: Host, pool: str) -> Scan:
    """What `zpool status` says of errors and of the last scrub. Raises `CommandError` when the account may not ask, and
    `ZfsError` for an answer that is none."""
    done = host.run(("env", "TZ=UTC", "zpool", "status", "-p", pool), timeout=SECONDS)
    return read_scan(done.stdout)


def read_scan(text: str) -> Scan:
    """From the text of `zpool status -p` of one pool, with its times in UTC."""
    state = re.search(r"^ *state: (\S+)$", text, re.MULTILINE)
    errors = re.search(r"^errors: (.*)$", text, re.MULTILINE)
    if state is None:
        raise ZfsError(f"the answer of zpool status is not understood: {text[:200]!r}")
    told = re.search(r"^ *scan: (.*(?:\n\t.*)*)", text, re.MULTILINE)
    scan = told[1] if told else ""
    ended = re.match(r"scrub repaired .* with (\d+) errors on (.+)$", scan, re.MULTILINE)
    share = re.search(r"([\d.]+)% done", scan)
    counters = re.findall(r"^\t +(\S+) +[A-Z]+ +(\d+) +(\d+) +(\d+)", text, re.MULTILINE)
    return Scan(
        state=state[1],
        errors="" if errors is None or errors[1] == "No known data errors" else errors[1],
        devices=tuple(
            f"{name}: {r} read, {w} write, {c} checksum errors" for name, r, w, c in counters if (r, w, c) != CLEAN
        ),
        ended=_utc(ended[2]) if ended else None,
        found=int(ended[1]) if ended else 0,
        running=scan.startswith("scrub in progress"),
        done=float(share[1]) if share else 0.0,
    )


def _utc(text: str) -> int:
    try:
        return int(datetime.strptime(text.strip(), "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise ZfsError(f"the time of a scrub is not understood: {text!r}") from None


def start_scrub(host: Host, pool: str) -> None:
    """Raises `ZfsError` when the pool may not or cannot be scrubbed."""
    done = host.run(("zpool", "scrub", pool), check=False, timeout=SECONDS)
    if done.returncode:
        raise ZfsError(f"pool {pool}: cannot be scrubbed: {done.stderr.strip()}", hint="see `zpool status`")
