"""Rows 16-22: the link, and what comes through it."""

from __future__ import annotations

from tests.lab.matrix import inject
from tests.lab.matrix.context import Context
from tests.lab.matrix.guests import Guest
from tests.lab.matrix.rows import row

_CLIENTS = r"""
ss -tnpH state established dst "$1" dport = :22 | sed -n "s/.*pid=\([0-9]*\).*/\1/p" | sort -u | xargs -r kill -9
"""


@row("16", "link goes dead while a stream is under way", "the run ends by itself, the next one resumes")
def dead_link(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    with ctx.held_at(4) as running:
        ctx.arrived(guest)
        with inject.blackhole(ctx.pve1):
            inject.go(ctx.pve1)
            done = running.end(580)
    ctx.expect(done.code != 0, f"called a success: {done.told[:200]}")
    # The target's ssh server learns of the dead connection after hours only; here it is told.
    inject.reset(ctx.backup1, ctx.pve1, port="sport")
    ctx.wait_token(guest)
    ctx.resumes(8)
    return f"{done.short} after {done.seconds:.0f} s"


@row("17", "20 connection resets in one replication", "progress after each, and an end")
def resets(ctx: Context) -> str:
    guest = ctx.guest(mib=40)
    ctx.baseline()
    ctx.write(guest, 24)
    inject.lay(ctx.pve1, "send", "slow", 2 << 20)
    count, runs, codes, progress = 0, 0, [], [0]
    while count < 20 and runs < 25:
        running = ctx.start()
        runs += 1
        while running.process.poll() is None and count < 20:
            if ctx.moving(400_000):
                count += inject.reset(ctx.pve1, ctx.backup1) > 0
                progress.append(ctx.received(guest) or progress[-1])
        done = running.end(300)
        codes.append(done.code)
        if done.code == 0:
            break
    ctx.expect(progress == sorted(progress), f"what was received went back: {progress}")
    ctx.expect(count >= 10, f"only {count} resets hit a stream in {runs} runs (exit codes {codes})")
    return f"{count} resets in {runs} runs, exit codes {codes}; received {[n >> 20 for n in progress]} MiB"


@row("18", "30 % of the packets lost", "completes")
def lossy(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest, 1)
    with inject.loss(ctx.pve1, 30):
        done = ctx.run(timeout=580)
    ctx.expect(done.code == 0, done.short)
    return f"complete after {done.seconds:.0f} s"


@row("19", "the old receive still lives when the next run comes", "busy, waits, then resumes")
def old_receive(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    with ctx.held_at(4) as running:
        ctx.arrived(guest)
        with inject.blackhole(ctx.pve1):
            ctx.pve1.script(_CLIENTS, ctx.backup1.address)
            inject.reset(ctx.pve1, ctx.backup1)  # else the kernel says goodbye for them as soon as it can
            running.signal("KILL")
            running.process.wait()
    alive = ctx.backup1.run(("pgrep", "-fc", "^(/usr/sbin/)?zfs receive"), check=False).stdout.strip()
    ctx.expect(alive != "0", "the old receive did not survive, so nothing was shown")
    done = ctx.run()
    ctx.expect(done.code != 0, f"called a success: {done.told[:200]}")
    inject.reset(ctx.backup1, ctx.pve1, port="sport")
    ctx.backup1.wait_for(("sh", "-c", "! pgrep -f '^(/usr/sbin/)?zfs receive'"))
    return f"with the old one alive: {done.short} after {done.seconds:.0f} s"


def _damaged(ctx: Context, guest: Guest, mode: str) -> str:
    """The first stream of a run damaged in its middle, with another guest behind it; then every stream at once."""
    other = ctx.guest()
    ctx.write(other, 1)
    inject.lay(ctx.pve1, "send", mode, 1 << 20, once=True)
    first = ctx.run()
    ctx.pve1.run(("test", "-e", f"{inject.RUN}/used"))
    there = {point.partition("/")[0] for point in ctx.points()}
    ctx.expect(str(other.vmid) in there, f"the guest behind the damaged stream got no point: {first.short}")
    for changed in (guest, other):
        ctx.write(changed, 2, at=12)
    before = ctx.points()
    inject.lay(ctx.pve1, "send", mode, 1000)  # before the first block: no attempt gets any further
    done = ctx.run()
    inject.unlay(ctx.pve1)
    ctx.expect(done.code != 0, f"called a success: {done.told[:200]}")
    ctx.expect(ctx.points() == before, "a point of a damaged stream is listed on the target")
    return f"damaged once: {first.short}; always: {done.short}"


@row("20", "a bit flipped in the pipe", "receive rejects it; the old point intact")
def flipped(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    return _damaged(ctx, guest, "flip")


@row("21", "stream cut short, sender ends with 0", "not counted as success")
def cut_short(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    return _damaged(ctx, guest, "cut")


@row("22", "host key of the target changed", "refused, told, nothing sent")
def new_host_key(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest, 1)
    ctx.backup1.script(
        "cd /etc/ssh; mkdir -p /root/keys; mv ssh_host_*_key* /root/keys/\n"
        "ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key; systemctl reload ssh"
    )
    try:
        done = ctx.run()
    finally:
        ctx.backup1.script("rm /etc/ssh/ssh_host_*_key*; mv /root/keys/* /etc/ssh/; systemctl reload ssh")
    ctx.expect(done.code != 0, f"called a success: {done.told[:200]}")
    ctx.expect("key" in done.short and done.advice, f"says too little: {done.short}")
    ctx.expect(done.sent == 0, f"{done.sent} bytes were sent")
    return done.short
