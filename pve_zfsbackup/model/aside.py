"""Datasets that lost their place to a restore, a rollback, a failover or a failback, and lie aside until somebody gives
them up: nothing of ours destroys them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model.names import PROPERTY, Dataset, Guid, Vmid
from pve_zfsbackup.model.restore import ASIDE

ASIDE_MARK: Final = f"{PROPERTY}aside"
_MARK: Final = re.compile(r"(\d{1,20}),(\d{1,11}),([a-z]{1,20})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class PutAside:
    """`by` is the command that put it there, `since` in seconds since the epoch, `bytes` what destroying it frees."""

    dataset: Dataset
    vmid: Vmid
    by: str
    since: int
    bytes: int

    @property
    def look(self) -> str:
        return shlex.join(("zfs", "list", "-r", "-t", "all", "-o", "name,used,creation", self.dataset))

    @property
    def remove(self) -> str:
        return shlex.join(("zfs", "destroy", "-r", self.dataset))


def aside_mark(guid: Guid, since: int, by: str) -> str:
    """It names the dataset: neither what inherits it nor a copy is taken for put aside."""
    return f"{guid},{since},{by}"


def read_aside(dataset: Dataset, guid: Guid, used: int, mark: str) -> PutAside | None:
    """What the mark says of a dataset; None for one that does not lie aside, or that we did not put there."""
    place, _, vmid = dataset.rpartition("/")[0].rpartition("/")
    match = _MARK.fullmatch(mark)
    if not match or match[1] != guid or not place.endswith(f"/{ASIDE}") or not re.fullmatch("[0-9]{3,9}", vmid):
        return None
    return PutAside(dataset=dataset, vmid=Vmid(int(vmid)), by=match[3], since=int(match[2]), bytes=used)
