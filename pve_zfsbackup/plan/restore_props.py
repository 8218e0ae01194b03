"""Which properties of a restored dataset differ from what the point says they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pve_zfsbackup.model import Volume

# In this order: a reservation is the last, because it may find no room. volsize and volblocksize are in the stream.
_SETTABLE: Final = {
    "volume": ("compression", "refreservation"),
    "filesystem": (
        "recordsize", "compression", "acltype", "xattr", "dnodesize", "quota", "refquota", "refreservation",
    ),
}  # fmt: skip
_NONE: Final = {"quota", "refquota", "refreservation"}


def to_set(volume: Volume, wanted: Mapping[str, str]) -> dict[str, str]:
    """What has to be set on the dataset; `wanted` is what the point recorded of it."""
    found: dict[str, str] = {}
    for name in _SETTABLE[volume.type]:
        value = wanted.get(name, "")
        if value and value != volume.props.get(name, ""):
            found[name] = "none" if name in _NONE and value == "0" else value
    return found
