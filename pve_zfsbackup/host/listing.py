"""One listing per host: everything the planners need. In one process and one round trip, but for a node of many disks,
where several processes share the work."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import BackupError, DatasetNotFoundError, ZfsError
from pve_zfsbackup.host.health import KSTAT, local_states, opened, pool_of, state_argv, suspended
from pve_zfsbackup.host.rows import LIMITS, SOURCE_COLUMNS, TARGET_COLUMNS, volumes
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.ssh import DENIED, Host
from pve_zfsbackup.host.zfs import BATCH
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import PROPERTY, SUSPENDED, TUNING_PROPS, Dataset, Guid, Listing, Snapshot
from pve_zfsbackup.model.proof import VERIFIED

LIST_TIMEOUT = 900.0
DISK_DEPTH: Final = 2  # <pool of the storage>/<volume>, and the volume's snapshots
MANY: Final = 20  # datasets from which on several processes list them
SHARE: Final = 10  # datasets that are worth the start of a process
SHARE_MOST: Final = 2000  # names are arguments, of which Linux takes 2 MiB
AT_ONCE: Final = 4  # of these processes
_MISSING = re.compile(r"cannot open '([^']+)': dataset does not exist")


def list_host(
    host: Host,
    roots: Sequence[Dataset],
    *,
    depth: int | None = None,
    columns: Sequence[str] = TARGET_COLUMNS,
) -> Listing:
    """List the roots with all below them: `depth` as in `zfs list -d`, None for everything.

    A root that does not exist is left out of `Listing.roots`; every other trouble raises, because only
    "dataset does not exist" means absence (reliability §1).
    """
    if not roots:
        return Listing(host=host.name)
    done = host.run(_argv(roots, depth, columns), check=False, timeout=LIST_TIMEOUT)
    return _listing(host, roots, done, done.stdout.splitlines(), columns)


def list_source(host: Host, roots: Sequence[Dataset], *, kstat: Path = KSTAT) -> Listing:
    """The disks of this node and the roots they lie below, with what a restore needs; a suspended pool is left out, for
    it would hang the rest.

    For every snapshot the kernel gathers all that is known of it, whatever is asked for: a fifth of the time for the
    name, the guid and the createtxg alone (seen on OpenZFS 2.3.9). Many are shared by several processes.
    """
    states = local_states(roots, kstat)
    live = [root for root in roots if states.get(pool_of(root)) != SUSPENDED]
    if opened(live, kstat) < MANY:
        return replace(list_host(host, live, depth=DISK_DEPTH, columns=SOURCE_COLUMNS), health=states)
    return replace(_list_beside(host, live), health=states)


def _list_beside(host: Host, roots: Sequence[Dataset]) -> Listing:
    """What `list_host` tells to the depth of the disks, by some processes beside each other. Raises the same."""
    names = ("zfs", "list", "-H", "-d", str(DISK_DEPTH - 1), "-t", "filesystem,volume", "-o", "name", "--", *roots)
    end = time.monotonic() + LIST_TIMEOUT  # of all together: a pool that hangs would hang each
    named = host.run(names, check=False, timeout=LIST_TIMEOUT)
    missing = _missing(named)
    disks = sorted(set(map(Dataset, named.stdout.splitlines())) - set(roots))
    size = min(SHARE_MOST, max(SHARE, -(-len(disks) // (2 * AT_ONCE))))
    shares = [roots, *(disks[start : start + size] for start in range(0, len(disks), size))]

    def listed(share: Sequence[Dataset]) -> Completed:
        return host.run(_argv(share, 1, SOURCE_COLUMNS), check=False, timeout=max(1.0, end - time.monotonic()))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        try:
            ends = list(threads.map(listed, shares))
        except Exception:
            raise
        except BaseException:
            host.runner.cancel()  # leaving the block waits for all of them
            raise
    for done in ends:
        missing |= _missing(done)
    # Below the roots lie the disks once more, and one that went away meanwhile is here without its snapshots.
    of_roots = (line for line in ends[0].stdout.splitlines() if _named(line) in (None, *roots))
    with _readable(host):
        found = volumes((*of_roots, *(line for done in ends[1:] for line in done.stdout.splitlines())), SOURCE_COLUMNS)
    return Listing(host=host.name, volumes=found, roots=frozenset(r for r in roots if r not in missing))


def _named(line: str) -> str | None:
    """The dataset a row of `SOURCE_COLUMNS` is about; None for what is no such row, and is not passed over."""
    cells = line.split("\t")
    return re.split("[@#]", cells[SOURCE_COLUMNS.index("name")])[0] if len(cells) == len(SOURCE_COLUMNS) else None


def list_target(host: Host, root: Dataset) -> Listing:
    """The root of a target and the state of its pool, in one round trip that never meets a suspended pool.

    Raises `PoolSuspendedError`, and what `list_host` does.
    """
    pool, columns = pool_of(root), TARGET_COLUMNS
    done = host.run_line((state_argv(pool), _argv([root], None, columns)), timeout=LIST_TIMEOUT)
    if done.returncode == DENIED:  # its receiver is from before the limits: they are not told, and the rest is
        columns = tuple(name for name in TARGET_COLUMNS if name not in LIMITS)
        done = host.run_line((state_argv(pool), _argv([root], None, columns)), timeout=LIST_TIMEOUT)
    lines = done.stdout.splitlines()
    if not lines and done.returncode == 1 and not done.stderr.strip():
        raise suspended(host, pool)
    if not lines and done.returncode in (2, 127):  # no such file, or no grep: not one that knows the pool's state
        return list_host(host, [root])
    return replace(_listing(host, [root], done, lines[1:], columns), health={pool: "".join(lines[:1]).strip()})


def _argv(roots: Sequence[Dataset], depth: int | None, columns: Sequence[str]) -> tuple[str, ...]:
    reach = ("-r",) if depth is None else ("-d", str(depth))
    return ("zfs", "list", "-Hp", *reach, "-t", "all", "-o", ",".join(columns), "--", *roots)


def _listing(
    host: Host, roots: Sequence[Dataset], done: Completed, lines: Sequence[str], columns: Sequence[str]
) -> Listing:
    missing = _missing(done)
    with _readable(host):
        found = volumes(lines, columns)
    return Listing(host=host.name, volumes=found, roots=frozenset(r for r in roots if r not in missing))


def _missing(done: Completed) -> set[str]:
    """What `zfs list` was asked for that does not exist. Raises when anything else went wrong."""
    missing = set(_MISSING.findall(done.stderr))
    if done.returncode:
        unexplained = [line for line in done.stderr.splitlines() if line.strip() and not _MISSING.search(line)]
        if unexplained or not missing or done.returncode != 1:  # a killed one answers half
            raise classified(done)
    return missing


def guids_argv(datasets: Iterable[Dataset]) -> tuple[str, ...]:
    """Asks for the guids of all snapshots of these datasets."""
    return ("zfs", "list", "-Hp", "-d", "1", "-t", "snapshot", "-o", "name,guid", "--", *sorted(set(datasets)))


def told_guids(text: str) -> dict[Dataset, frozenset[Guid]]:
    """What `guids_argv` answered, by dataset. ValueError when it is no such answer."""
    found: dict[Dataset, set[Guid]] = {}
    for line in text.splitlines():
        name, guid = line.split("\t")
        found.setdefault(Dataset(name.partition("@")[0]), set()).add(Guid(guid))
    return {name: frozenset(guids) for name, guids in found.items()}


def read_guids(host: Host, datasets: Iterable[Dataset]) -> dict[Dataset, frozenset[Guid]]:
    """The guids of all snapshots of these datasets, read now; none for one that does not exist."""
    names = sorted(set(datasets))
    found = {name: frozenset[Guid]() for name in names}
    for start in range(0, len(names), BATCH):
        done = host.run(guids_argv(names[start : start + BATCH]), check=False, timeout=LIST_TIMEOUT)
        if done.returncode and not _only_missing(done):
            raise classified(done)
        with _readable(host):
            found |= told_guids(done.stdout)
    return found


def read_written(host: Host, dataset: Dataset) -> int | None:
    """Bytes written to a dataset since its newest snapshot; None where that cannot be told."""
    argv = ("zfs", "list", "-Hp", "-d", "0", "-t", "filesystem,volume", "-o", "written", "--", dataset)
    try:
        text = host.run(argv, check=False).stdout.strip()
    except BackupError:
        return None
    return int(text) if text.isdigit() else None


def read_resume_token(host: Host, dataset: Dataset) -> str:
    """The token of a dataset, read now; "-" for none. Raises `ZfsError` and what `Host.run` does."""
    done = host.run(("zfs", "list", "-Hp", "-d", "0", "-o", "receive_resume_token", "--", dataset), check=False)
    if done.returncode:
        raise classified(done)
    return done.stdout.strip()


def tuned(host: Host, datasets: Iterable[Dataset]) -> dict[Dataset, dict[str, str]]:
    """What somebody set of `TUNING_PROPS` on each of these datasets itself, by hand or by `receive -p`; nothing for one
    that does not exist."""
    names = sorted(set(datasets))
    found: dict[Dataset, dict[str, str]] = {name: {} for name in names}
    ask = ("zfs", "get", "-Hp", "-s", "local,received", "-o", "name,property,value", ",".join(TUNING_PROPS), "--")
    for start in range(0, len(names), BATCH):
        done = host.run((*ask, *names[start : start + BATCH]), check=False, timeout=LIST_TIMEOUT)
        if done.returncode and not _only_missing(done):
            raise classified(done)
        with _readable(host):
            for line in done.stdout.splitlines():
                name, key, value = line.split("\t", 2)
                found[Dataset(name)][key] = value
    return found


def _only_missing(done: Completed) -> bool:
    """Whether all that went wrong is that datasets do not exist (any more)."""
    told = [line for line in done.stderr.splitlines() if line.strip()]
    return done.returncode == 1 and bool(told) and all(map(_MISSING.search, told))


def point_properties(host: Host, snapshots: Sequence[Snapshot]) -> dict[str, dict[str, str]]:
    """All of our properties of each snapshot, by its full name; what was proven of it holds for this host alone."""
    if not snapshots:
        return {}
    names = [snapshot.full_name for snapshot in snapshots]
    argv = ("zfs", "get", "-Hp", "-s", "local", "-o", "name,property,value", "all", "--", *names)
    done = host.run(argv, check=False)
    if done.returncode:
        raise classified(done)
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    with _readable(host):
        for line in done.stdout.splitlines():
            name, key, value = line.split("\t", 2)
            if key.startswith(PROPERTY) and key != VERIFIED:
                found[name][key] = value
    return found


@contextlib.contextmanager
def _readable(host: Host) -> Iterator[None]:
    """A host whose answer is garbage has failed like one that says an error: that host, and no other."""
    try:
        yield
    except (ValueError, KeyError) as error:
        raise ZfsError(f"{host.name}: the answer of zfs is not understood: {str(error)[:200]}") from None


def require(listing: Listing, root: Dataset) -> None:
    """Raise `DatasetNotFoundError` unless the root was found."""
    if root not in listing.roots:
        raise DatasetNotFoundError(f"{listing.host}: dataset {root} does not exist")
