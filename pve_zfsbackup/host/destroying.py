"""Snapshots go: looked up by guid first, never by name alone, never `-r`, never what is not ours."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from pve_zfsbackup.errors import BackupError, DatasetNotFoundError, HostUnreachableError, VerificationError
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs import TIMEOUT, batches, current_guids
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import Dataset, Snapshot

TOGETHER = 10  # datasets that are pruned at the same time
AT_ONCE: Final = 150  # snapshots in one channel program, and so in one transaction group: the pool waits for it
# Look and deed in one transaction group: no time lies between them. What it answers are the names that are left.
# Lua's numbers are signed, unlike a guid, and a word that begins with a minus would be an option (zfs-program(8)).
DESTROY: Final = b"""\
local names, left = (...)["argv"], {}
for i = 1, #names, 2 do
  local name = names[i]
  if zfs.exists(name) and ("=" .. zfs.get_prop(name, "guid") ~= names[i + 1] or zfs.sync.destroy(name) ~= 0) then
    left[name] = 1
  end
end
return left
"""


def destroy(host: Host, snapshots: Sequence[Snapshot]) -> list[tuple[Snapshot, Exception]]:
    """Destroy snapshots after checking each guid; returns those that could not be, and why.

    Some datasets at a time, so that hardly any time lies between the look and the deed. Raises `HostUnreachableError`,
    and what goes wrong with a single dataset as a whole; of many datasets the others go on.
    """
    if foreign := [snap.full_name for snap in snapshots if snap.point is None]:
        raise VerificationError(f"{foreign[0]} is not ours and will not be destroyed")
    found: dict[Dataset, list[Snapshot]] = defaultdict(list)
    for snap in snapshots if host.destination else _left_of(host, snapshots):
        found[snap.dataset].append(snap)
    groups = list(found.values())
    failed: list[tuple[Snapshot, Exception]] = []
    for start in range(0, len(groups), TOGETHER):
        try:
            failed += _destroy_some(host, groups[start : start + TOGETHER])
        except HostUnreachableError:
            raise  # the other datasets are there as well
        except BackupError:
            if len(groups) == 1:
                raise
            for own in groups[start : start + TOGETHER]:
                failed += _destroy_alone(host, own)
    return failed


def _left_of(host: Host, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Destroy what can be without a word, on this host; returns the others, of which commands tell why they stay.

    Raises nothing: a channel program that fails has perhaps destroyed some, and the rest are looked at again.
    """
    left: list[Snapshot] = []
    for pool in sorted({snap.dataset.partition("/")[0] for snap in snapshots}):
        own = [snap for snap in snapshots if snap.dataset.partition("/")[0] == pool]
        for batch in batches(own, AT_ONCE):
            words = (word for snap in batch for word in (snap.full_name, f"={_signed(int(snap.guid))}"))
            try:
                argv = ("zfs", "program", "-j", pool, "-", *words)
                done = host.run(argv, check=False, timeout=TIMEOUT, input=DESTROY)
                names = [snap.full_name for snap in batch] if done.returncode else json.loads(done.stdout)["return"]
                left += [snap for snap in batch if snap.full_name in names]
            except (BackupError, ValueError, KeyError, TypeError):
                left += batch
    return left


def _signed(guid: int) -> int:
    return guid - (1 << 64) if guid >> 63 else guid


def _destroy_alone(host: Host, own: Sequence[Snapshot]) -> list[tuple[Snapshot, Exception]]:
    try:
        return _destroy_some(host, [own])
    except HostUnreachableError:
        raise
    except BackupError as error:
        return [(snap, error) for snap in own]


def _destroy_some(host: Host, groups: Sequence[Sequence[Snapshot]]) -> list[tuple[Snapshot, Exception]]:
    """The batch of a dataset is all or nothing (one held member stalls all): after a failure they go one by one."""
    parts: list[Sequence[Snapshot]] = []
    failed: list[tuple[Snapshot, Exception]] = []
    guids = current_guids(host, (snap.full_name for own in groups for snap in own))
    for own in groups:
        for snap in own:
            if guids.get(snap.full_name, snap.guid) != snap.guid:
                told = f"{snap.full_name}: guid is {guids[snap.full_name]}, planned was {snap.guid}"
                failed.append((snap, VerificationError(told)))
        parts += batches([snap for snap in own if guids.get(snap.full_name) == snap.guid])
    if host.destination and len(parts) > 1:
        if host.run_all([("zfs", "destroy", _together(batch)) for batch in parts]) is None:
            return failed
        left = current_guids(host, (snap.full_name for batch in parts for snap in batch))
        parts = [[snap for snap in batch if left.get(snap.full_name) == snap.guid] for batch in parts]
    for batch in parts:
        failed += _destroy_batch(host, batch) if batch else ()
    return failed


def _together(batch: Sequence[Snapshot]) -> str:
    return f"{batch[0].dataset}@{','.join(snap.name for snap in batch)}"


def _destroy_batch(host: Host, batch: Sequence[Snapshot]) -> list[tuple[Snapshot, Exception]]:
    done = host.run(("zfs", "destroy", _together(batch)), check=False)
    failed: list[tuple[Snapshot, Exception]] = []
    for snap in batch if done.returncode else ():
        single = host.run(("zfs", "destroy", snap.full_name), check=False)
        if single.returncode:
            error = classified(single)
            if not isinstance(error, DatasetNotFoundError):
                failed.append((snap, error))
    return failed
