"""What the canaries that were planted in a guest say of a point of it."""

from __future__ import annotations

from collections.abc import Sequence

from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.canary import SETTLED, Planted, digest, parse_canary, stamp


def canary_problem(planted: Sequence[Planted], found: Sequence[str], creation: int) -> str:
    """What is wrong, or "". The newest one planted before the point was made must be there, or one that was planted
    since then, right before the point, and may or may not have reached the disk."""
    settled = [one for one in planted if one.sure and one.at + SETTLED <= creation]
    if not settled:
        damaged = [text for text in found if parse_canary(text) is None]
        return "the canary is damaged, or somebody else's file" if damaged else ""
    due = max(settled, key=lambda one: one.at)
    good = {one.digest for one in planted if due.at <= one.at <= creation}
    if any(digest(text) in good for text in found):
        return ""
    again = "if the guest was restored or rolled back since, or lost it, plant it again"
    if not found:
        return f"the canary planted at {stamp(due.at)} is not there: {again}"
    told = ", ".join(stamp(own.planted) if (own := parse_canary(text)) else "none of ours" for text in found)
    return f"the canary planted at {stamp(due.at)} is not there, but another one ({told}): {again}"


def canary_notes(found: Sequence[str], vmid: Vmid, creation: int) -> tuple[str, ...]:
    """What is told of those that are there."""
    known = [own for text in found if (own := parse_canary(text))]
    told = [f"canary: planted {stamp(own.planted)}, {max(0, creation - own.planted) // 3600} h before" for own in known]
    told += [f"canary: of guest {own.vmid}: a copy of it?" for own in known if own.vmid != vmid]
    return tuple(dict.fromkeys(told))
