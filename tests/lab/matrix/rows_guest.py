"""Rows 2, 46, 48-55: a running guest, its agent, its configuration and its node, while a run is at work on it.

The guests have file systems with writers that wait while they are frozen (pve/guestd.py): how long, is part of N1.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.lab.matrix import guests, inject
from tests.lab.matrix.context import Context, Done
from tests.lab.matrix.criteria import FROZEN
from tests.lab.matrix.guests import Guest
from tests.lab.matrix.rows import row
from tests.lab.product import FORKED
from tests.lab.pve.provision import freeze_state, set_lock, set_slow_freeze, wait_ready

TOKEN = "/etc/pve-zfsbackup/api.token"
LAB = Path(__file__).parents[1]
HOOK = f"{inject.LIBRARY}/hook"  # /run may be mounted noexec
ELSEWHERE = "rpool/node2"  # the disks of guests that have left pve1
_HUNG = r"""
echo hang > /run/pvesim/{vmid}.agent; systemctl reload pve-guest@{vmid}; sleep 1
setsid sh -c 'sleep {seconds}; echo ok > /run/pvesim/{vmid}.agent; systemctl reload pve-guest@{vmid}' > /dev/null 2>&1 &
"""
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
_FORGE = r"""
cd /etc/pve/local
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=pve1 \
  -addext 'subjectAltName=DNS:pve1,DNS:localhost,IP:127.0.0.1' \
  -keyout pveproxy-ssl.key -out pveproxy-ssl.pem 2> /dev/null
systemctl restart pvesim
openssl x509 -in pveproxy-ssl.pem -noout -fingerprint -sha256
"""


@row("2", "killed at every point of the freeze window", "thawed within 30 s each time, though nobody runs any more")
def killed_frozen(ctx: Context) -> str:
    guest = ctx.running()
    ctx.baseline()
    for name in ("killer.py", "freeze_killer.py"):
        ctx.pve1.put(LAB / name, f"/root/{name}")
    vmid = str(guest.vmid)
    command = ("python3", "/root/freeze_killer.py", "normal", vmid, "snapshot", vmid, "--config", ctx.config)
    done = ctx.pve1.run(command, check=False, timeout=900)
    rows = [json.loads(line) for line in done.lines if line.startswith('{"kill"')]
    ctx.expect(done.returncode == 0 and rows and rows[-1]["code"] == 0, f"{done.lines[-2:]} {done.stderr[-300:]}")
    killed = rows[:-1]
    ctx.expect(all(one["thawed"] is not None for one in rows), f"never thawed: {rows}")
    longest = [max(one["stalled"].values()) for one in killed]
    ctx.expect(max(longest) <= FROZEN, f"stood still for {max(longest)} s: {rows}")
    frozen = [seconds for seconds in longest if seconds >= 8]  # the watchdog comes 20 s after it was armed
    ctx.expect(len(frozen) >= 2, f"hardly ever killed while frozen: {rows}")
    return (
        f"killed before {len(killed)} actions of the window, {len(frozen)} times with the guest frozen: its writers "
        f"waited at most {max(longest):.0f} s; the run after the last ended with 0"
    )


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


@row("48", "guest agent hung, from before or in the window", "bounded; `prefer` says so in the point, `require` fails")
def agent_hung(ctx: Context) -> str:
    guest = ctx.running()
    usual = ctx.baseline().seconds
    with inject.agent(ctx.pve1, guest.vmid, "hang"):
        done = ctx.run("snapshot")
        told = _crash_consistent(ctx, done, guest)
        ctx.expect("does not answer" in told, f"does not say why: {told}")
        ctx.expect(done.seconds <= usual + 30, f"took {done.seconds:.0f} s, {usual:.0f} s without the fault")
        before = ctx.newest(guest, ctx.pve1)
        _job(ctx, "quiesce: require")
        refused = ctx.run("snapshot")
        _job(ctx)
        why = _told(refused, guest)
        ctx.expect(refused.code == 2 and why["outcome"] == "failed" and why["hint"], f"{refused.short} {why}")
        ctx.expect(ctx.newest(guest, ctx.pve1) == before, "a point although quiescing was required")
    with inject.before_snapshot(ctx.pve1, _HUNG.format(vmid=guest.vmid, seconds=12)):
        within = ctx.run("snapshot")
    late = _told(within, guest)["message"]
    # Of the thaws that wait for the agent the first proves the freeze by its count, and the others find nothing frozen:
    # it depends on the moment whose answer is still listened to.
    ctx.expect(within.code == 0 and ("quiesced" in late or "crash-consistent: " in late), f"{within.short} {late}")
    ctx.judge.append(lambda done: _quiesced(ctx, done, guest))
    return f"hung before: {told}; with require: {why['message']}; hung for 12 s while frozen: {late}"


@row("49", "freeze works, but comes after its time-out", "given up, thawed all the same; the point says so")
def late_freeze(ctx: Context) -> str:
    guest = ctx.running()
    ctx.baseline()
    seen = []
    for limit, takes in ((10, 14), (20, 33)):  # 33 s: beyond what pveproxy lets through
        _job(ctx, f"freeze-limit: {limit}")
        set_slow_freeze(ctx.pve1, guest.vmid, takes)
        try:
            done = ctx.run("snapshot")
        finally:
            set_slow_freeze(ctx.pve1, guest.vmid, 0)
        told = _crash_consistent(ctx, done, guest)
        ctx.expect("given up" in told, f"does not say why: {told}")
        seen.append(f"limit {limit} s, freeze {takes} s: {told}, {_not_frozen(ctx, guest)}")
    _job(ctx)
    ctx.judge.append(lambda done: _quiesced(ctx, done, guest))
    return "; ".join(seen)


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


@row("53", "quorum lost: /etc/pve can only be read", "points go on and nothing is written there; a restore is refused")
def quorum_lost(ctx: Context) -> str:
    guest = ctx.running()
    ctx.baseline()
    ctx.write(guest, 1, at=1)
    copy = guest.vmid + 7
    with inject.no_quorum(ctx.pve1) as attempts:
        done = ctx.run()
        ctx.expect(done.code == 0, f"points need no quorum: {done.short}")
        _quiesced(ctx, done, guest)
        ctx.expect(not attempts(), f"wanted to write: {attempts()}")
        began = ctx.states()[0]
        refused = ctx.run("restore", str(guest.vmid), "--as", str(copy), "--yes")
        after = ctx.states()[0]
        ctx.expect(refused.code not in (0, 99), f"restored without quorum: {refused.report}")
        told = " ".join(f"{refused.report or ''} {refused.stderr}".split())
        ctx.expect("quorum" in told, f"does not say why: {told}")
        made = sorted(after.keys() - began.keys())
        ctx.expect(not made, f"received in vain: {made}")
    ctx.pve1.run(("test", "!", "-e", f"/etc/pve/qemu-server/{copy}.conf"))
    return f"run: exit {done.code}, nothing written below /etc/pve; restore: exit {refused.code}: {told[:300]}"


@row("54", "disk added, and another detached, while a run is at work", "points have the disks that are there then")
def disks_change(ctx: Context) -> str:
    """Added between the list and the guest's turn: planned anew. Detached while it is about to be frozen: the point
    that was made of both is taken back."""
    guest = ctx.running()
    ctx.baseline()
    disk, volid = (name.replace("-disk-0", "-disk-1") for name in (guest.disk, guest.volids[0]))
    conf = f"/etc/pve/qemu-server/{guest.vmid}.conf"
    ctx.hand(ctx.pve1, "create", "-s", "-V", "8M", disk)
    ctx.pve1.wait_for(("test", "-b", f"/dev/zvol/{disk}"))
    guests.write(ctx.pve1, disk, 2)
    _hook(ctx, "before-snapshot", guest, 'echo "scsi1: $1,size=8M" >> "$2"', volid, conf)
    added = ctx.run()
    _hook(ctx)
    ctx.guests[:] = [replace(guest, disks=(*guest.disks, disk), volids=(*guest.volids, volid))]
    ctx.patch(disk)
    _quiesced(ctx, added, guest)
    ctx.expect(_disks_of_newest(ctx, guest) == {guest.disk, disk}, f"the point has {_disks_of_newest(ctx, guest)}")
    ctx.before.pop("replicas")  # the new disk's replica is expected to be new
    ctx.publish()
    before = len(_snapshots(ctx, guest))
    _hook(ctx, "before-freeze", guest, 'sed -i "s/^scsi1: \\([^,]*\\),.*/unused0: \\1/" "$1"', conf)
    detached = ctx.run("snapshot")
    _hook(ctx)
    ctx.guests[:] = [guest]
    _quiesced(ctx, detached, guest)
    made = len(_snapshots(ctx, guest)) - before
    ctx.expect(made == 1, f"{made} new snapshots of the disk that stayed: the point of both was not taken back")
    ctx.expect(_disks_of_newest(ctx, guest) == {guest.disk}, f"the point has {_disks_of_newest(ctx, guest)}")
    return f"added: {_told(added, guest)['message']}; detached: {_told(detached, guest)['message']}"


@row("55", "API token revoked; TLS certificate exchanged", "nothing is done, told; right after what the hint says")
def not_trusted(ctx: Context) -> str:
    guest = ctx.running()
    ctx.baseline()
    before = ctx.newest(guest, ctx.pve1)
    token, _, secret = ctx.pve1.read(TOKEN).strip().partition("=")
    ctx.before["secrets"] = [secret, *ctx.pve1.read("/etc/pve-zfsbackup/id_ed25519").splitlines()[2:4]]
    user, _, name = token.partition("!")
    ctx.pve1.run(("pvesh", "delete", f"/access/users/{user}/token/{name}"))
    try:
        revoked = _failed_closed(ctx, guest, before)
    finally:
        ctx.pve1.run((*FORKED, "setup"))
    ctx.expect("token" in revoked and "setup" in revoked, f"does not say what to do: {revoked}")
    fresh = ctx.pve1.read(TOKEN).strip().partition("=")[2]
    ctx.expect(fresh != secret, "the same secret again")
    ctx.before["secrets"].append(fresh)
    try:
        fingerprint = ctx.pve1.script(_FORGE).stdout.strip().partition("=")[2]
        wait_ready(ctx.pve1, ())
        exchanged = _failed_closed(ctx, guest, before)
        ctx.expect("certificate" in exchanged and "fingerprint" in exchanged, f"does not say what to do: {exchanged}")
        ctx.more = ("api:", f"  fingerprint: {fingerprint}")
        ctx.configure()
        pinned = ctx.run("snapshot")
        ctx.expect(pinned.code == 0, f"although the certificate is pinned: {pinned.short}")
    finally:
        ctx.pve1.script("cd /etc/pve/local; rm -f pveproxy-ssl.pem pveproxy-ssl.key; systemctl restart pvesim")
        wait_ready(ctx.pve1, ())
        ctx.more = ()
        ctx.configure()
    return f"revoked: {revoked}; exchanged: {exchanged}; pinned: exit {pinned.code}"


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


def _failed_closed(ctx: Context, guest: Guest, before: str) -> str:
    """A run that could not trust or was not trusted: exit 2, nothing made, `status` claims nothing either."""
    done, status = ctx.run(), ctx.run("status")
    told = " ".join(f"{done.report.get('error', '')} {done.report.get('hint', '')} {done.stderr}".split())
    ctx.expect(done.code == 2 and told, f"{done.short} {done.report}")
    ctx.expect(status.code != 0, f"status: exit {status.code}: {status.report}")
    ctx.expect(ctx.newest(guest, ctx.pve1) == before, "a point was made all the same")
    return told[:400]


def _disks_of_newest(ctx: Context, guest: Guest) -> set[str]:
    """The datasets that the newest point of the guest has on the source."""
    ours = [e for e in ctx.states()[0].values() if e.ours and e.point.startswith(f"{guest.vmid}/")]
    newest = max(ours, key=lambda entry: entry.createtxg).point
    return {entry.dataset for entry in ours if entry.point == newest}


def _snapshots(ctx: Context, guest: Guest) -> list[str]:
    return [e.name for e in ctx.states()[0].values() if e.dataset == guest.disk and e.ours]


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
