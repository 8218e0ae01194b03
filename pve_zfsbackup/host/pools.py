"""Pools of a host as `zpool` tells. `zpool list` answers for a suspended pool as well, where `zfs` would hang.

Devices are read from the text of `zpool status -p`, which is the same from OpenZFS 2.1 to 2.4 (`print_status_config`):
JSON came with 2.3, and `zpool list -v` has no errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from pve_zfsbackup.errors import ZfsError
from pve_zfsbackup.host.runner import failure
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model.health import Condition, Device, Pool, Scan

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


def scan_of(host: Host, pool: str, *, restricted: bool = False) -> Scan:
    """What `zpool status` says of errors and of the last scrub; a receiver sets the time zone itself. Raises
    `CommandError` when the account may not ask, and `ZfsError` for an answer that is none."""
    line = ("zpool", "status", "-p", "--", pool)
    done = host.run(line if restricted else ("env", "TZ=UTC", *line), timeout=SECONDS)
    return read_scan(done.stdout)


def conditions_of(host: Host, pools: Sequence[str]) -> dict[str, Condition]:
    """What `zpool status` says of pools, in one call; none of them may be suspended. A pool that is gone is missing.
    Raises `CommandError` where it says nothing of any."""
    done = host.run(("zpool", "status", "-p", "--", *pools), check=False, timeout=SECONDS)
    found = read_conditions(done.stdout)
    if done.returncode and not found:
        raise failure(done)
    return found


def read_conditions(text: str) -> dict[str, Condition]:
    """From the text of `zpool status -p`, by pool."""
    _, *parts = re.split(r"^ *pool: ", text, flags=re.MULTILINE)
    return {part.partition("\n")[0]: _condition(part) for part in parts}


def _condition(text: str) -> Condition:
    state = re.search(r"^ *state: (\S+)$", text, re.MULTILINE)
    errors = re.search(r"^errors: (.*)$", text, re.MULTILINE)
    if state is None:
        raise ZfsError(f"the answer of zpool status is not understood: {text[:200]!r}")
    return Condition(
        state=state[1],
        errors="" if errors is None or errors[1] == "No known data errors" else errors[1],
        devices=tuple(_to_be_told(list(_rows(text)))),
    )


def _rows(text: str) -> Iterator[tuple[int, Device]]:
    """The pool's own row and those of its devices, each with its indent. ZFS pads names by their bytes, and states
    stand where the header has STATE: there alone, so that no name passes for a state."""
    lines = iter(text.encode("utf-8", "replace").split(b"\n"))
    column = next((line.index(b" STATE") + 1 for line in lines if re.match(rb"\tNAME +STATE ", line)), 0)
    for line in lines:
        if not line.startswith(b"\t"):
            return
        if len(line) <= column:
            continue  # the heading of logs, cache, spares, …
        name = line[1:column].decode("utf-8", "replace").strip()
        told = line[column:].decode("utf-8", "replace").rstrip()
        cells = re.fullmatch(r"([A-Z]+)(?: +(\d+) +(\d+) +(\d+))?(?: +(.*))?", told)
        device = Device(name=name, state="not understood", why=told)
        if cells and line[column - 1 : column] == b" ":
            read, write, checksum = (int(count or 0) for count in cells.group(2, 3, 4))
            device = Device(name=name, state=cells[1], why=cells[5] or "", read=read, write=write, checksum=checksum)
        yield len(line) - len(line[1:].lstrip(b" ")), device


def _to_be_told(rows: Sequence[tuple[int, Device]]) -> Iterator[Device]:
    """Of the pool itself only errors, as its state is told beside; of a group no state that a device in it explains."""
    for number, (_, device) in enumerate(rows):
        told = number == 0 or device.there or not all(other.there for other in _below(rows, number))
        if device.errors or not told:
            yield device


def _below(rows: Sequence[tuple[int, Device]], number: int) -> Iterator[Device]:
    for indent, device in rows[number + 1 :]:
        if indent <= rows[number][0]:
            return
        yield device


def read_scan(text: str) -> Scan:
    """From the text of `zpool status -p` of one pool, with its times in UTC."""
    found = _condition(text)
    told = re.search(r"^ *scan: (.*(?:\n\t.*)*)", text, re.MULTILINE)
    scan = told[1] if told else ""
    ended = re.match(r"scrub repaired .* with (\d+) errors on (.+)$", scan, re.MULTILINE)
    share = re.search(r"([\d.]+)% done", scan)
    return Scan(
        state=found.state,
        errors=found.errors,
        devices=found.devices,
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
