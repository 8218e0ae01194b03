"""A dataset for the time of a check, with whatever is received below it, and its end.

It is destroyed with all that is in it, so it must be ours beyond doubt: made by us under a name nothing else has, never
where something is, marked with its own name as a property of its own, and still the dataset (by guid) that was made.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pve_zfsbackup.errors import VerificationError
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs import PARENT, zfs
from pve_zfsbackup.model import PROPERTY, Dataset

MARK: Final = f"{PROPERTY}scratch"
_NAME: Final = re.compile(r"pzb-scratch-[0-9a-f]{16}\Z")


@contextmanager
def scratch(host: Host, parent: Dataset) -> Iterator[Dataset]:
    """A new dataset below `parent`, which must exist, gone afterwards whatever happened. Raises `ZfsError`."""
    name = f"pzb-scratch-{secrets.token_hex(8)}"
    dataset = Dataset(f"{parent}/{name}")
    options = [part for key, value in (PARENT | {MARK: name}).items() for part in ("-o", f"{key}={value}")]
    zfs(host, "create", *options, "--", dataset)
    guid = _facts(host, dataset)["guid"]
    try:
        yield dataset
    finally:
        _remove(host, dataset, guid)


def sweep(host: Host, parent: Dataset) -> list[Dataset]:
    """Remove what a check that was killed left below `parent`; returns what. Only while no other check is at work."""
    names = zfs(host, "list", "-H", "-d", "1", "-t", "filesystem", "-o", "name", "--", parent).stdout.splitlines()
    left = [Dataset(name) for name in names if _NAME.match(name.rpartition("/")[2])]
    for dataset in left:
        _remove(host, dataset, _facts(host, dataset)["guid"])
    return left


def available(host: Host, dataset: Dataset) -> int:
    """Bytes there is room for."""
    return int(zfs(host, "get", "-Hp", "-o", "value", "available", "--", dataset).stdout)


def _remove(host: Host, dataset: Dataset, guid: str) -> None:
    """Destroy it. Raises `VerificationError`, and leaves it alone, when it is not what we made."""
    found = _facts(host, dataset)
    name = dataset.rpartition("/")[2]
    if not _NAME.match(name) or found.get("guid") != guid or found.get(MARK) != name:
        raise VerificationError(f"{dataset} is no longer the scratch that was made, and stays: look at it")
    zfs(host, "destroy", "-r", "--", dataset, timeout=3600)


def _facts(host: Host, dataset: Dataset) -> dict[str, str]:
    """Its guid, and its mark where it is its own and not inherited."""
    told = zfs(host, "get", "-Hp", "-o", "property,value,source", f"guid,{MARK}", "--", dataset).stdout
    rows = (line.split("\t") for line in told.splitlines())
    return {key: value for key, value, source in rows if key == "guid" or source == "local"}
