"""When a root is full, judged by what was available there in the last weeks.

One value a day, and the median of the slopes between all pairs of days (Theil-Sen): a large guest that went, or a great
pruning, does not turn it over, as it would a line through all values; nor does what is pruned once a week.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median

from pve_zfsbackup.model.room import Outlook, Room

DAY = 86_400.0
ENOUGH_DAYS = 5  # below, what a weekday does is taken for a trend
HORIZON_DAYS = 3650.0  # beyond, it is as good as never


def outlook(now: Room, before: Iterable[Room]) -> Outlook:
    """The forecast for one root; `before` may have those of others as well."""
    own = [room for room in before if (room.host, room.dataset) == (now.host, now.dataset)]
    days = _daily([*own, now])
    if len(days) < ENOUGH_DAYS:
        return Outlook(room=now)
    slopes = [(b.available - a.available) / ((b.at - a.at) / DAY) for a, b in combinations(days, 2)]
    per_day = -median(slopes)
    left = now.available / per_day if per_day > 0 else None
    if left is not None and left >= HORIZON_DAYS:
        left = None
    return Outlook(room=now, known=True, per_day=per_day, days=left)


def _daily(rooms: Sequence[Room]) -> list[Room]:
    """The last value of each day, oldest first."""
    return list({int(room.at // DAY): room for room in sorted(rooms, key=lambda room: room.at)}.values())
