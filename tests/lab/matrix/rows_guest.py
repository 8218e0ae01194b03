"""Row 46: a running guest, its agent, its configuration and its node, while a run is at work on it.

The guests have file systems with writers that wait while they are frozen (pve/guestd.py): how long, is part of N1.
"""

from __future__ import annotations

from typing import Any

from tests.lab.matrix import guests
from tests.lab.matrix.context import Context, Done
from tests.lab.matrix.guests import Guest
from tests.lab.matrix.rows import row
from tests.lab.pve.provision import freeze_state

_FILL = r"""
zfs create "$1/filler"
head -c 1M /dev/urandom > /run/matrix/block
while cat /run/matrix/block >> "/$1/filler/data" 2> /dev/null; do :; done
rm /run/matrix/block
zpool sync "$1"
"""


@row("46", "the guest's pool is full", "no point, told; the guest thawed at once, the others have theirs")
def source_full(ctx: Context) -> str:
    ctx.source_pool("src46", 384)
    guest = ctx.running(storages=("src46",), thick=True)
    other = ctx.guest()
    ctx.mark_history()
    ctx.baseline()
    ctx.write(guest, 6, at=1)  # what a snapshot would need room for, beside the room that the disk has reserved
    before = ctx.newest(guest, ctx.pve1)
    ctx.by_hand.add(("create", "src46/filler"))
    ctx.pve1.script(_FILL, "src46")
    done = ctx.run()
    still = _not_frozen(ctx, guest)
    ctx.hand(ctx.pve1, "destroy", "src46/filler")
    roomy = '[ "$(zfs get -Hpo value available "$1")" -gt 50000000 ]'
    ctx.pve1.wait_for(("sh", "-c", roomy, "sh", "src46"))
    told = _told(done, guest)
    ctx.expect(done.code == 1 and told["outcome"] == "failed", f"called a success: {done.short} {told}")
    ctx.expect("space" in told["message"], f"does not speak of space: {told}")
    ctx.expect(_told(done, other)["outcome"] == "ok", f"the other guest: {_told(done, other)}")
    ctx.expect(ctx.newest(guest, ctx.pve1) == before, "there is a snapshot all the same")
    return f"{told['message']} ({told['hint']}); {still}"


# -- what was told --------------------------------------------------------------------------------------------


def _told(done: Done, guest: Guest, stage: str = "snapshot") -> dict[str, Any]:
    """The result of a stage for a guest."""
    found = [one for one in done.report.get("results", ()) if one["stage"] == stage and one["vmid"] == guest.vmid]
    return dict(found[-1]) if found else {"outcome": "none", "message": f"nothing: {done.short}", "hint": ""}


def _not_frozen(ctx: Context, guest: Guest) -> str:
    now = freeze_state(ctx.pve1, guest.vmid, seconds=20)
    ctx.expect(now.agent == "thawed" and not now.blocked, f"still frozen: {now}")
    return f"thawed, stood still for at most {guests.stalled(ctx.pve1, guest.vmid):.0f} s"
