"""Which features of a pool a full stream needs, so that a target without them is told before anything is sent.

From `setup_featureflags` of dmu_send.c and `recv_begin_check_feature_flags_impl` of dmu_recv.c (OpenZFS 2.1 to master,
read 2026-11): the sender flags what its dataset, or for lz4 its pool, has active; the receiver's pool must have it
enabled. What a dataset has active is no property: it is taken from those that make it so, and only where the source's
pool says that somebody uses the feature at all. What this overlooks the receive refuses by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pve_zfsbackup.model import Volume

LARGE: Final = 128 << 10  # the largest block without large_blocks
_Test = Callable[[Volume], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolProps:
    """What `zpool get all` said: of each pool of the source, and of the target's. Empty where nothing is known."""

    source: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    target: Mapping[str, str] = field(default_factory=dict)


def _large_blocks(volume: Volume) -> bool:
    sizes = (volume.props.get(name, "") for name in ("recordsize", "volblocksize"))
    return any(size.isdigit() and int(size) > LARGE for size in sizes)


def _zstd(volume: Volume) -> bool:
    return volume.props.get("compression", "").startswith("zstd")


def _large_dnode(volume: Volume) -> bool:
    return volume.props.get("dnodesize", "legacy") not in ("legacy", "")


def _raw(volume: Volume) -> bool:
    return volume.encrypted


# Embedded blocks are never sent (`-e` is not used); raw streams have none, for encryption excludes them.
_NEEDS: Final[Mapping[str, _Test]] = {
    "lz4_compress": lambda volume: True,  # `-c` and `-w`: whenever the pool uses it
    "zstd_compress": _zstd,
    "large_blocks": _large_blocks,  # `-L`, and `-w` implies it
    "large_dnode": _large_dnode,
    "encryption": _raw,
}


def missing(volume: Volume, pools: PoolProps) -> tuple[str, ...]:
    """The features a stream of this volume needs and the target's pool has not enabled; none where it is not known."""
    here = pools.source.get(volume.name.partition("/")[0], {})
    if not here or not any(name.startswith("feature@") for name in pools.target):
        return ()
    return tuple(
        name
        for name, needs in _NEEDS.items()
        if here.get(f"feature@{name}") == "active"
        and needs(volume)
        and pools.target.get(f"feature@{name}") not in ("enabled", "active")
    )


def read_only(pools: PoolProps) -> bool:
    """Whether the target's pool was imported read-only: nothing can be received."""
    return pools.target.get("readonly") == "on"
