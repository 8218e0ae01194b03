"""Rows 46, 50, 51, 52: a running guest, its agent, its configuration and its node, while a run is at work on it.

The guests have file systems with writers that wait while they are frozen (pve/guestd.py): how long, is part of N1.
"""

from __future__ import annotations

import json
from typing import Any

from tests.lab.matrix import guests, inject
from tests.lab.matrix.context import Context, Done
from tests.lab.matrix.guests import Guest
from tests.lab.matrix.rows import row
from tests.lab.pve.provision import freeze_state, set_lock

HOOK = f"{inject.LIBRARY}/hook"  # /run may be mounted noexec
ELSEWHERE = "rpool/node2"  # the disks of guests that have left pve1
_FILL = r"""
zfs create "$1/filler"
head -c 1M /dev/urandom > /run/matrix/block
while cat /run/matrix/block >> "/$1/filler/data" 2> /dev/null; do :; done
rm /run/matrix/block
zpool sync "$1"
"""
# Offline migration, as Proxmox does it (pve-facts §c, §j): everything of the disk travels, its bookmarks do not.
_MIGRATE = r"""
from=$1; to=$2; conf=$3; new=$4
zfs snapshot "$from@__migration__"
zfs send -R "$from@__migration__" | zfs receive -u "$to"
zfs destroy "$to@__migration__"
udevadm settle
for i in $(seq 50); do zfs destroy -r "$from" && break; sleep 0.2; done
mkdir -p "$(dirname "$new")"
mv "$conf" "$new"
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


@row("50", "already frozen by somebody else", "left frozen; the point says so, `require` fails")
def already_frozen(ctx: Context) -> str:
    guest = ctx.running()
    ctx.baseline()
    ctx.pve1.run(("qm", "guest", "cmd", str(guest.vmid), "fsfreeze-freeze"))
    try:
        done = ctx.run("snapshot")
        told = _crash_consistent(ctx, done, guest)
        ctx.expect("already frozen by somebody else" in told, f"does not say why: {told}")
        _job(ctx, "quiesce: require")
        refused = ctx.run("snapshot")
        ctx.expect(refused.code == 2 and "frozen" in refused.short, refused.short)
        _job(ctx)
        swept = ctx.run("thaw")
        now = freeze_state(ctx.pve1, guest.vmid, seconds=10)
        ctx.expect(now.agent == "frozen" and now.blocked, f"thawed what was not ours: {now}, thaw: {swept.report}")
    finally:
        ctx.pve1.run(("qm", "guest", "cmd", str(guest.vmid), "fsfreeze-thaw"))
        guests.watch(ctx.pve1, guest.vmid)  # how long it stood still so far was the lab's doing
    ctx.judge.append(lambda done: _quiesced(ctx, done, guest))
    return f"{told}; still frozen after two runs and `thaw`; with require: {refused.short}"


@row("51", "guest locked by Proxmox", "waited for, then left to the next run and told; the others have their points")
def locked(ctx: Context) -> str:
    guest, other = ctx.running(), ctx.guest()
    _job(ctx, "lock-wait: 0")
    ctx.baseline()
    before = ctx.newest(guest, ctx.pve1)
    set_lock(ctx.pve1, guest.vmid, "backup")
    try:
        done = ctx.run("snapshot")
        told = _told(done, guest)
        ctx.expect(done.code == 1 and told["outcome"] == "failed" and told["hint"], f"{done.short} {told}")
        ctx.expect("locked (backup)" in told["message"], f"does not say why: {told}")
        ctx.expect(_told(done, other)["outcome"] == "ok", f"the other guest: {_told(done, other)}")
        ctx.expect(ctx.newest(guest, ctx.pve1) == before, "a point of a locked guest")
        _job(ctx, "lock-wait: 120")
        others = ctx.newest(other, ctx.pve1)
        running = ctx.start("snapshot")
        inject.poll("the other guest has its point", lambda: ctx.newest(other, ctx.pve1) != others, timeout=60)
    finally:
        set_lock(ctx.pve1, guest.vmid, None)
    waited = running.end()
    ctx.expect(waited.code == 0, f"although the lock went while it waited: {waited.short}")
    _quiesced(ctx, waited, guest)
    return f"{told['message']}; unlocked while a run waited: point after {waited.seconds:.0f} s"


@row("52", "guest migrates while a run is at work", "Proxmox's lock keeps us off; who has left is told, and no failure")
def migrates(ctx: Context) -> str:
    """Away with all it has, between the list and its turn, and back before the next run: offline migration keeps our
    snapshots, so that both ways go on incrementally. A second node that goes on is not here: its target is the same."""
    guest, mover = ctx.running(), ctx.guest(mib=32)
    ctx.write(mover, 16)  # a full stream shall be seen as one
    _job(ctx, "lock-wait: 0")
    ctx.baseline()
    before = ctx.newest(guest, ctx.pve1)
    with inject.migrating(ctx.pve1, guest.vmid):
        done = ctx.run("snapshot", str(guest.vmid))
    kept_off = _told(done, guest)
    ctx.expect(done.code == 2 and kept_off["outcome"] == "failed" and kept_off["hint"], f"{done.short} {kept_off}")
    ctx.expect("migrated" in kept_off["message"], f"does not say why: {kept_off}")
    ctx.expect(ctx.newest(guest, ctx.pve1) == before, "a point of a guest that migrates")
    stood = guests.stalled(ctx.pve1, guest.vmid)
    ctx.expect(stood < 15, f"was frozen for {stood:.0f} s")

    away = f"{ELSEWHERE}/{mover.disk.rpartition('/')[2]}"
    ctx.by_hand |= {("*", mover.disk), ("*", away), ("*", ELSEWHERE)}
    ctx.pve1.run(("zfs", "create", "-o", "mountpoint=none", ELSEWHERE))
    ctx.stack.callback(ctx.pve1.script, 'zfs destroy -r "$1"; rm -rf /etc/pve/nodes/pve2', ELSEWHERE)
    conf, there = (f"/etc/pve/{place}/qemu-server/{mover.vmid}.conf" for place in ("nodes/pve1", "nodes/pve2"))
    _hook(ctx, "before-snapshot", mover, _MIGRATE, mover.disk, away, conf, there)
    done = ctx.run()
    _hook(ctx)
    left = _told(done, mover)
    ctx.expect(done.code == 0 and left["outcome"] == "warning", f"leaving is no failure: {done.short} {left}")
    ctx.expect("left this node" in left["message"], f"does not say what became of it: {left}")
    _quiesced(ctx, done, guest)
    ctx.pve1.script(_MIGRATE, away, mover.disk, there, conf)
    ctx.pve1.wait_for(("test", "-b", f"/dev/zvol/{mover.disk}"))
    ctx.patch(mover.disk, away, ELSEWHERE)
    ctx.sends_less_than(12, "from the snapshots that came along")
    return f"lock held: {kept_off['message']}; left mid-run: {left['message']}; and back again"


# -- what was told --------------------------------------------------------------------------------------------


def _told(done: Done, guest: Guest, stage: str = "snapshot") -> dict[str, Any]:
    """The result of a stage for a guest."""
    found = [one for one in done.report.get("results", ()) if one["stage"] == stage and one["vmid"] == guest.vmid]
    return dict(found[-1]) if found else {"outcome": "none", "message": f"nothing: {done.short}", "hint": ""}


def _crash_consistent(ctx: Context, done: Done, guest: Guest) -> str:
    """What the point of a run claims, which ended well and made no quiesced one."""
    told = _told(done, guest)
    ctx.expect(done.code == 0 and told["outcome"] == "warning", f"{done.short} {told}")
    ctx.expect("crash-consistent: " in told["message"], f"claims more than it should: {told}")
    return str(told["message"])


def _quiesced(ctx: Context, done: Done, guest: Guest) -> None:
    told = _told(done, guest)
    ctx.expect(told["outcome"] == "ok" and "quiesced" in told["message"], f"not quiesced: {told}")


def _not_frozen(ctx: Context, guest: Guest) -> str:
    now = freeze_state(ctx.pve1, guest.vmid, seconds=20)
    ctx.expect(now.agent == "thawed" and not now.blocked, f"still frozen: {now}")
    return f"thawed, stood still for at most {guests.stalled(ctx.pve1, guest.vmid):.0f} s"


# -- what is done to them -------------------------------------------------------------------------------------


def _job(ctx: Context, *lines: str) -> None:
    """The row's job with these lines beside the usual ones."""
    ctx.job = lines
    ctx.configure()


def _hook(ctx: Context, name: str = "", guest: Guest | None = None, text: str = "", *arguments: str) -> None:
    """Have lines of sh run once as a hook of the product, when it is a guest's turn; without a name, no more."""
    ctx.job, ctx.more = (), ()
    if guest:
        once = f'[ "$PZB_VMID" = {guest.vmid} ] && mkdir {HOOK}.done 2> /dev/null || exit 0\n'
        ctx.pve1.write(HOOK, f"#!/bin/sh -eu\n{once}{text}", mode=0o755)
        ctx.pve1.script('rm -rf "$1.done"', HOOK)
        words = json.dumps([HOOK, *arguments])
        if name == "before-freeze":  # a key of the job
            ctx.job = (f"{name}: {words}",)
        else:
            ctx.more = ("hooks:", f"  {name}: {words}")
    else:
        ctx.pve1.run(("test", "-d", f"{HOOK}.done"))  # else nothing was injected
    ctx.configure()
