"""What destroying snapshots would free, as `zfs destroy -nvp` says it: exact for any set of one dataset.

The figures of single snapshots do not add up: what two of them share is in neither. So all that would go from a
dataset is asked for in one command, neighbours as a range (`a%c`), and never summed up from parts.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from itertools import groupby

from pve_zfsbackup.host.ssh import LINE_LIMIT, Host
from pve_zfsbackup.model import Snapshot, Volume

Group = tuple[Volume, Collection[Snapshot]]
TIMEOUT = 900.0


def freed(host: Host, groups: Sequence[Group]) -> list[int | None]:
    """For each dataset with some of its snapshots: the bytes that destroying them together would free.

    One process per dataset, on another host many in one session. None where the host does not say: a snapshot that is
    gone or has clones, or more ranges than one command takes.
    """
    found: list[int | None] = [None] * len(groups)
    asked = [(index, argv) for index, group in enumerate(groups) if (argv := _argv(*group))]
    while asked:
        batch = _batch(asked)
        done = host.run_line([argv for _, argv in batch], timeout=TIMEOUT)
        told = [int(line.split("\t")[1]) for line in done.stdout.splitlines() if line.startswith("reclaim\t")]
        for (index, _), count in zip(batch, told, strict=False):
            found[index] = count
        # The first that said nothing failed; those behind it were not asked.
        asked = asked[min(len(told) + 1, len(batch)) :]
    return found


def ranges(volume: Volume, snapshots: Collection[Snapshot]) -> list[str]:
    """The snapshots as `zfs destroy` takes them: `first%last` where nothing else lies in between."""
    names = {snapshot.name for snapshot in snapshots}
    runs = (list(run) for meant, run in groupby(volume.snapshots, key=lambda snapshot: snapshot.name in names) if meant)
    return [run[0].name if len(run) == 1 else f"{run[0].name}%{run[-1].name}" for run in runs]


def _argv(volume: Volume, snapshots: Collection[Snapshot]) -> tuple[str, ...]:
    parts = ranges(volume, snapshots)
    argv = ("zfs", "destroy", "-nvp", f"{volume.name}@{','.join(parts)}")
    return argv if parts and len(shlex.join(argv)) < LINE_LIMIT else ()


def _batch(asked: Sequence[tuple[int, tuple[str, ...]]]) -> Sequence[tuple[int, tuple[str, ...]]]:
    """As many as fit into one command line."""
    size = 0
    for count, (_, argv) in enumerate(asked):
        size += len(shlex.join(argv)) + 4
        if size > LINE_LIMIT:
            return asked[: max(count, 1)]
    return asked
