"""Rows 1-11: processes that die, hosts that lose power, stages that lie."""

from __future__ import annotations

import json
from pathlib import Path

from tests.lab.matrix import inject, state
from tests.lab.matrix.context import STAGES, Context
from tests.lab.matrix.guests import Guest
from tests.lab.matrix.rows import row

KILLER = Path(__file__).parents[1] / "killer.py"
MANY = 8  # disks: more than FEW of host/settling.py, so that they are settled in sessions side by side
HALTED = 3  # of them at most in one of these sessions


@row("1", "kill -9 at every step (one in four)", "each rerun converges")
def killed(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest, 1)
    ctx.pve1.put(KILLER, "/root/killer.py")
    command = ("python3", "/root/killer.py", "1", "1", "4", "0", "run", *STAGES, "--config", ctx.config)
    done = ctx.pve1.run(command, check=False, timeout=900)
    steps = [json.loads(line) for line in done.lines if line.startswith('{"kill"')]
    ctx.expect(done.returncode == 0 and steps and steps[-1].get("unreached"), f"{done.lines[-2:]} {done.stderr[-300:]}")
    killed_at = steps[:-1]
    ctx.expect(len(killed_at) >= 5, f"only {len(killed_at)} kills were reached")
    return f"killed before {len(killed_at)} of {steps[-1]['kill']} actions, each rerun ended with 0"


@row("1a", "kill -9 while the points of many disks are settled side by side", "each rerun completes them; no hold left")
def killed_while_settling(ctx: Context) -> str:
    """One of the sessions stands before a command of its own, and never does it; the others come to their end."""
    guest = ctx.guest(storages=("local-zfs",) * MANY, mib=16)
    ctx.baseline()
    seen: list[str] = []
    for number, verb in enumerate(("set", "hold", "release")):
        ctx.write(guest, 1, at=8 + number)
        with inject.halted(ctx.backup1, verb):
            running = ctx.start()
            inject.reached(ctx.backup1)
            inject.poll("the sessions beside it to end", lambda: _settled(ctx, guest)[2] <= HALTED, timeout=90)
            running.signal("KILL")
            running.end(60)
        marked, held, old = _settled(ctx, guest)
        ctx.expect(
            {"set": 0 < marked < MANY, "hold": marked == MANY > held > 0, "release": held == MANY > old > 0}[verb],
            f"before {verb}: {marked} of {MANY} disks are marked, {held} held, {old} of the point before are held",
        )
        done = ctx.run()
        ctx.expect(done.code == 0, f"the run after the kill before {verb} failed: {done.short}")
        ctx.expect(_settled(ctx, guest) == (MANY, MANY, 0), f"after {verb} and another run: {_settled(ctx, guest)}")
        ctx.expect(not _unmarked(ctx, guest), f"never marked: {_unmarked(ctx, guest)}")
        seen.append(f"{verb}: {marked} marked, {held} held, {old} old ones held")
    return f"{MANY} disks, killed before {'; '.join(seen)}; each rerun completed them"


def _replicas(ctx: Context, guest: Guest) -> list[list[state.Entry]]:
    """What lies on each replica of the guest, oldest first."""
    target = ctx.states()[1]
    return [state.snapshots(target, ctx.replica(guest, number)) for number in range(len(guest.disks))]


def _settled(ctx: Context, guest: Guest) -> tuple[int, int, int]:
    """Replicas whose newest snapshot is marked, and held; and those on which an older one is held."""
    found = _replicas(ctx, guest)
    marked, held = sum(snaps[-1].ours for snaps in found), sum(bool(snaps[-1].userrefs) for snaps in found)
    return marked, held, sum(any(snap.userrefs for snap in snaps[:-1]) for snaps in found)


def _unmarked(ctx: Context, guest: Guest) -> list[str]:
    return [snap.name for snaps in _replicas(ctx, guest) for snap in snaps if not snap.ours]


@row("3", "SIGTERM while a stream is under way", "clean exit, token kept, the next run goes on from it")
def terminated(ctx: Context) -> str:
    """Of an encrypted disk: what goes on is raw as well."""
    ctx.key = ctx.crypt_key()
    guest = ctx.guest(storages=("crypt",))
    ctx.baseline()
    ctx.write(guest)
    with ctx.held_at(4) as running:
        ctx.arrived(guest)
        running.signal("TERM")
        done = running.end(60)
    ctx.expect(done.code not in (0, -9, 137, 143), f"exit status {done.code}")
    ctx.wait_token(guest)
    ctx.resumes(8)
    return f"exit {done.code} within {done.seconds:.0f} s of its start, token kept"


@row("4", "power cut of the source while sending", "base found again; incremental or resumed")
def source_loses_power(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    with ctx.held_at(4) as running:
        ctx.arrived(guest)
        ctx.power_cut(ctx.pve1)
        running.process.kill()
        running.process.wait()
    # The target learns of it when its own ssh server gives the dead connection up; sshd's default is two hours.
    inject.reset(ctx.backup1, ctx.pve1, port="sport")
    ctx.wait_token(guest)
    ctx.resumes(8)
    return "source up again, partial receive and base still there"


@row("5", "power cut of the target while receiving", "the run fails in time, the next one resumes")
def target_loses_power(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    with ctx.held_at(4) as running:
        ctx.arrived(guest)
        ctx.power_cut(ctx.backup1)
        inject.go(ctx.pve1)
        done = running.end(400)
    token = ctx.token(guest)
    if token:
        ctx.resumes(8)
    return f"{done.short} after {done.seconds:.0f} s; partial receive {'kept' if token else 'not kept (never synced)'}"


@row("6", "receive done, its reply lost", "known by guid; nothing is sent again")
def reply_lost(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    inject.lay(ctx.backup1, "receive", "lost", once=True)
    done = ctx.run()
    ctx.backup1.run(("test", "-e", f"{inject.RUN}/used"))
    name = ctx.newest(guest, ctx.pve1).partition("@")[2]
    there = ctx.newest(guest, ctx.backup1)
    ctx.expect(there.endswith(name), f"the point is not there: newest is {there}")
    ctx.sends_less_than(2, f"the run with the lost reply sent {done.sent >> 20} MiB; the next sent")
    ctx.expect(done.sent < 12 << 20, f"{done.sent} bytes sent for 8 MiB: sent twice within the run")
    return f"{done.short}; the snapshot is on the target"


@row("8", "one stage of the pipe fails or lies, the others end with 0", "the whole step fails")
def stage_fails(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    seen: list[str] = []
    stages = ((ctx.pve1, "send", "fail"), (ctx.backup1, "receive", "refuse"), (ctx.backup1, "receive", "swallow"))
    for host, verb, mode in stages:
        ctx.write(guest, 2, at=4 + 2 * len(seen))
        inject.lay(host, verb, mode, 1000)
        done = ctx.run()
        inject.unlay(host)
        ctx.expect(done.code != 0, f"{verb} {mode}: the run called it a success: {done.told[:200]}")
        seen.append(f"{verb} {mode}: {done.short[:120]}")
    return "; ".join(seen)


@row("11", "two runs at once", "one defers with its own exit status, nothing is done twice", fast=True)
def two_at_once(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    with ctx.held_at(2) as running:
        other = ctx.run("replicate")
        inject.go(ctx.pve1)
        done = running.end()
    ctx.expect(other.code == 4, f"the second ended with {other.code}: {other.short}")
    ctx.expect(done.code == 0, f"the first was disturbed: {done.short}")
    return f"the second: {other.short[:160]}; the first: exit {done.code}"
