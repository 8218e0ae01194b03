"""The `zfs` commands that change something, one function each, on whichever host; streams are in pipeline.py.

Never `-F`, `-R` or `-r`, never a name where an identity is meant: what is destroyed is looked up by guid first.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from pve_zfsbackup.errors import (
    BackupError,
    CommandTimeoutError,
    DatasetNotFoundError,
    QueuedError,
)
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import PROPERTY, SOURCE, Bookmark, Dataset, Guid, Resume, Send, Snapshot

_Item = TypeVar("_Item")
# Nothing else may count as it: a failure to mark would pass for a point.
_TAG = re.compile(r"^cannot (hold|release)\b.*: (tag already exists|no such tag) on this dataset$")
TIMEOUT = 300.0  # seconds
BATCH = 400  # snapshots in one command: over ssh it is one argument, and Linux takes 128 KiB in one
QUEUED = 75  # EX_TEMPFAIL of an append-only target: its maintenance will do it
BOOKMARKS = b"""\
local names, failed = (...)["argv"], {}
for i = 1, #names, 2 do
  local code = zfs.sync.bookmark(names[i], names[i + 1])
  if code ~= 0 then failed[names[i + 1]] = code end
end
return failed
"""
# Inert replicas: nothing mounts, shares or scans them (DESIGN §3.5). `canmount` does not inherit.
PARENT = {"readonly": "on", "mountpoint": "none", "canmount": "off", "volmode": "none", "snapdir": "hidden"}


def zfs(host: Host, *argv: str, timeout: float = TIMEOUT) -> Completed:
    """Run `zfs …` on the host; raises the classified error when it fails."""
    done = host.run(("zfs", *argv), check=False, timeout=timeout)
    if done.returncode:
        raise classified(done)
    return done


def snapshot(host: Host, pools: Sequence[Sequence[Dataset]], name: str, properties: Mapping[str, str]) -> None:
    """All datasets of each pool at one instant, properties included: one command, one transaction group. The pools side
    by side, because a guest may stand still for it. Only on the node itself.

    Raises for the first pool that failed; the others have their snapshots then.
    """
    options = [part for key, value in properties.items() for part in ("-o", f"{key}={value}")]
    argvs = [("zfs", "snapshot", *options, "--", *(f"{dataset}@{name}" for dataset in disks)) for disks in pools]
    for disks, done in zip(pools, host.run_each(argvs, timeout=TIMEOUT), strict=True):
        if done.returncode:  # "cannot create snapshots : out of space": it names none of them, and no pool
            pool = disks[0].partition("/")[0]
            raise classified(replace(done, stderr=done.stderr.replace("snapshots : ", f"snapshots in {pool}: ")))


def set_properties(host: Host, names: Sequence[str], properties: Mapping[str, str]) -> None:
    set_many(host, [(names, properties)])


def set_many(host: Host, groups: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> None:
    """Set properties of several groups of snapshots, in as few sessions as fit. What fails leaves those after it."""
    if failed := host.run_all(set_commands(groups)):
        raise classified(failed)


def set_commands(groups: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> list[tuple[str, ...]]:
    return [
        ("zfs", "set", *(f"{key}={value}" for key, value in properties.items()), *batch)
        for names, properties in groups
        for batch in batches(names)
    ]


def hold_commands(verb: str, tag: str, snapshots: Sequence[Snapshot]) -> list[tuple[str, ...]]:
    """`verb` is hold or release."""
    return [("zfs", verb, tag, *batch) for batch in batches([snapshot.full_name for snapshot in snapshots])]


def is_settled(failed: Completed, verbs: Sequence[str] = ("hold", "release")) -> bool:
    """Whether a hold that is there already, or gone already, was all that failed: the rest of a release is done."""
    told = [line for line in failed.stderr.splitlines() if line.startswith("cannot ")]  # ssh may have its say, too
    return bool(told) and all((found := _TAG.search(line)) and found[1] in verbs for line in told)


def create_parent(host: Host, dataset: Dataset, owner: str = "") -> None:
    """Make a container for replicas; one that exists is left as it is. The root has an owner."""
    properties = PARENT | ({f"{PROPERTY}owner": owner} if owner else {})
    options = [part for key, value in properties.items() for part in ("-o", f"{key}={value}")]
    done = host.run(("zfs", "create", *options, "--", dataset), check=False)
    if done.returncode and "dataset already exists" not in done.stderr:
        raise classified(done)


def send_argv(step: Send | Resume, *, estimate: bool = False) -> tuple[str, ...]:
    """The sending command. Encrypted data leaves only raw; plain data as it lies on disk (`-L -c`).
    What leaves this node is raw whatever a token says: flags are joined (libzfs_sendrecv.c, OpenZFS 2.0 to 2.4)."""
    head = ("zfs", "send", *(("-nvP",) if estimate else ()))
    if isinstance(step, Resume):
        return (*head, *(("-w",) if step.raw and step.host != SOURCE else ()), "-t", step.token)
    flags = ("-w",) if step.raw else ("-L", "-c")
    if step.base is None:
        return (*head, *flags, "--", step.snapshot.full_name)
    return (*head, *flags, "-I" if step.through else "-i", step.base.full_name, "--", step.snapshot.full_name)


def estimate(host: Host, step: Send | Resume) -> int:
    """Bytes the stream will have, as `zfs send -nvP` reckons; 0 when it does not say. Nobody waits for it long: from a
    bookmark without `bookmark_written` it goes through the whole send (zfs_ioc_send_space of zfs_ioctl.c)."""
    sizes: list[str] = []
    with contextlib.suppress(CommandTimeoutError):
        done = zfs(host, *send_argv(step, estimate=True)[1:], timeout=60.0)
        sizes = [line.split("\t")[-1] for line in (done.stdout + done.stderr).splitlines() if line.startswith("size")]
    return int(sizes[-1]) if sizes else 0


def compress_ratios(host: Host, datasets: Sequence[Dataset]) -> dict[Dataset, float]:
    """How much smaller ZFS made their blocks; those that do not say are left out. Raises nothing."""
    found: dict[Dataset, float] = {}
    for batch in batches(datasets):
        with contextlib.suppress(BackupError):
            done = host.run(("zfs", "get", "-Hp", "-o", "name,value", "compressratio", "--", *batch), check=False)
            pairs = (line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 1)
            found |= {Dataset(name): float(value) for name, value in pairs if value.replace(".", "", 1).isdigit()}
    return found


def receive_argv(step: Send | Resume) -> tuple[str, ...]:
    """Resumable, never mounted, never forced."""
    origin = ("-o", f"origin={step.origin}") if isinstance(step, Send) and step.origin else ()
    return ("zfs", "receive", "-s", "-u", *origin, "--", step.dataset)


def abort_receive(host: Host, dataset: Dataset) -> None:
    """Throw away what an interrupted receive left. Raises `QueuedError` where the target will do it itself."""
    done = host.run(("zfs", "receive", "-A", "--", dataset), check=False)
    if done.returncode == QUEUED:
        raise QueuedError(
            f"{dataset}: to throw away the interrupted receive is queued on {host.name}",
            hint="its own maintenance does it (pve-zfsbackup-receiver maintain); the run after that goes on",
            stderr=done.stderr,
            returncode=done.returncode,
        )
    if done.returncode:
        raise classified(done)


def hold(host: Host, tag: str, snapshots: Sequence[Snapshot]) -> None:
    """Hold all; those that carry the tag already are fine."""
    _each(host, "hold", tag, snapshots, tolerated="tag already exists")


def release(host: Host, tag: str, snapshots: Sequence[Snapshot]) -> None:
    """Release all; those without the tag are fine."""
    _each(host, "release", tag, snapshots, tolerated="no such tag")


def _each(host: Host, verb: str, tag: str, snapshots: Sequence[Snapshot], *, tolerated: str) -> None:
    for names in batches([snapshot.full_name for snapshot in snapshots]):
        done = host.run(("zfs", verb, tag, *names), check=False)
        fine = not done.returncode or is_settled(done, ("release",))
        for name in names if not fine else ():  # one by one tells which, whatever the batch did
            single = done if len(names) == 1 else host.run(("zfs", verb, tag, name), check=False)
            if single.returncode and tolerated not in single.stderr:
                raise classified(single)


def create_bookmark(host: Host, snapshot: Snapshot, name: str) -> None:
    done = host.run(("zfs", "bookmark", snapshot.full_name, f"{snapshot.dataset}#{name}"), check=False)
    if done.returncode and "bookmark exists" not in done.stderr:
        raise classified(done)


def create_bookmarks(host: Host, wanted: Sequence[tuple[Snapshot, str]]) -> frozenset[str]:
    """Make many bookmarks on this host in one transaction group of each pool; the full names of those that were made.

    Raises nothing: whoever makes those that are missing one by one learns why. Each `zfs bookmark` waits for
    a transaction group, a channel program (zfs-program(8)) once.
    """
    made: set[str] = set()
    for pool in sorted({snapshot.dataset.partition("/")[0] for snapshot, _ in wanted}):
        own = [(s.full_name, f"{s.dataset}#{name}") for s, name in wanted if s.dataset.partition("/")[0] == pool]
        for batch in batches(own) if len(own) > 1 and host.destination is None else ():
            argv = ("zfs", "program", "-j", pool, "-", *(name for pair in batch for name in pair))
            with contextlib.suppress(BackupError):  # whether they were made is seen at their disk's turn
                done = host.run(argv, check=False, input=BOOKMARKS)
                made |= _made(done, [bookmark for _, bookmark in batch])
    return frozenset(made)


def _made(done: Completed, bookmarks: Sequence[str]) -> set[str]:
    try:
        failed = json.loads(done.stdout)["return"] if not done.returncode else bookmarks
    except (ValueError, KeyError, TypeError):
        return set()
    return {name for name in bookmarks if name not in failed}


def destroy_bookmark(host: Host, bookmark: Bookmark) -> None:
    with contextlib.suppress(DatasetNotFoundError):  # gone is what was wanted
        zfs(host, "destroy", bookmark.full_name)


def current_guids(host: Host, names: Iterable[str]) -> dict[str, Guid]:
    """The guids these snapshots have now; those that no longer exist are left out."""
    found: dict[str, Guid] = {}
    for batch in batches(list(names)):
        done = host.run(("zfs", "get", "-Hp", "-o", "name,value", "guid", *batch), check=False)
        told = done.stderr.splitlines()
        # Without a word nothing is known to be gone: it was killed, not answered.
        if done.returncode and (not told or any("dataset does not exist" not in line for line in told)):
            raise classified(done)
        found |= {name: Guid(guid) for name, guid in (line.split("\t") for line in done.stdout.splitlines())}
    return found


def batches(items: Sequence[_Item], size: int = BATCH) -> Iterator[Sequence[_Item]]:
    """Parts of at most so many."""
    return (items[start : start + size] for start in range(0, len(items), size))
