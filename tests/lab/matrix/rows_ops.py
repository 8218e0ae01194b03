"""Rows 12, 15 and 68: clocks, the configuration, and silence.

Clocks are those of both hosts: creation times, by which retention and ages go, are the kernel's (tests/lab/month.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.lab.lab import TREE
from tests.lab.matrix import inject, state
from tests.lab.matrix.context import STAGES, Context, Done
from tests.lab.matrix.rows import row

HOUR, DAY = 3600, 86_400
PRUNING = ("run", *STAGES, "--stage", "prune")
FUTURE = "from the future"
MAILS = f"{inject.RUN}/mails"
SENDMAIL = f'#!/bin/sh\nmkdir -p {MAILS}\nexec cat > "{MAILS}/$(date +%s%N).mail"\n'
RECEIVER = "/etc/pve-zfsbackup-receiver.toml"
_RECEIVER = r"""
DEBIAN_FRONTEND=noninteractive dpkg -i "$1" > /dev/null 2>&1
systemctl stop cron
"""
_NO_RECEIVER = "rm -f /etc/pve-zfsbackup-receiver.toml; dpkg --purge pve-zfsbackup-receiver > /dev/null 2>&1 || :"


@contextmanager
def clocks(ctx: Context) -> Iterator[Callable[[float], None]]:
    """Sets both hosts' clocks, to so many seconds from the present; at the end, whatever happened, they are right."""

    def move(seconds: float) -> None:
        for host in (ctx.pve1, ctx.backup1):
            host.run(("date", "-u", "-s", f"@{int(time.time() + seconds)}"))

    try:
        yield move
    finally:
        move(0)


def more(ctx: Context, text: str) -> None:
    """Add to the row's configuration."""
    ctx.product.configure(ctx.pve1.read(ctx.config) + text, ctx.config)


def mailed(ctx: Context) -> Callable[[], str]:
    """Alerts go by mail, and the mails into files; returns what reads all that came."""
    ctx.stack.callback(ctx.pve1.run, ("rm", "-rf", "/usr/sbin/sendmail", MAILS))
    ctx.pve1.script('rm -rf "$1"', MAILS)
    ctx.pve1.write("/usr/sbin/sendmail", SENDMAIL, mode=0o755)
    more(ctx, "alerts: {mail: [root]}\n")
    return lambda: ctx.pve1.script('[ ! -d "$1" ] || cat "$1"/*.mail', MAILS).stdout.replace("=\n", "")


def receiver(ctx: Context, policy: str = "") -> None:
    """The receiver's package on the target, with the row's root."""
    ctx.stack.callback(ctx.backup1.script, _NO_RECEIVER)
    deb = next(iter(sorted((TREE / "build" / "deb").glob("pve-zfsbackup-receiver_*.deb"))))
    ctx.backup1.put(deb, f"/root/{deb.name}")
    ctx.backup1.script(_RECEIVER, f"/root/{deb.name}", timeout=600)
    ctx.backup1.write(RECEIVER, f'[roots."{ctx.root}"]\n{policy}')


def good(ctx: Context, done: Done, what: str) -> None:
    ctx.expect(done.code == 0, f"{what}: {done.short}; {done.told[:300]}")


def here(ctx: Context) -> list[str]:
    """The points of the row's guests on the source."""
    return [point for point in state.points(ctx.states()[0], "rpool", 1) if int(point.split("/")[0]) in _vmids(ctx)]


def _vmids(ctx: Context) -> set[int]:
    return {guest.vmid for guest in ctx.guests}


# -- clocks


@row("12", "clocks two hours back", "nothing is pruned, somebody is told; when they are right again it heals")
def clock_back(ctx: Context) -> str:
    ctx.keep = "{keep-last: 1}"
    ctx.configure()
    mails = mailed(ctx)
    guest = ctx.guest()
    ctx.baseline()
    (first,) = ctx.points()
    ctx.write(guest, 1)
    ctx.baseline()
    with clocks(ctx) as move:
        move(-2 * HOUR)
        ctx.write(guest, 1)
        good(ctx, ctx.run(*PRUNING), "the run with the wrong clock")
        ctx.publish()
        ctx.expect(len(here(ctx)) == len(ctx.points()) == 3, f"three points were made: {here(ctx)}, {ctx.points()}")
        told = mails()
        ctx.expect(FUTURE in told, f"the run told nobody: {told[-300:]!r}")
        found = ctx.run("check")
        ctx.expect(found.code >= 1 and FUTURE in str(found.report), f"check says nothing: {found.code} {found.report}")
    good(ctx, ctx.run(*PRUNING[:1], "--stage", "prune"), "pruning with the right clock")
    ctx.expect(first not in ctx.points() + here(ctx), "the control: the rules do prune when the clock is right")
    ctx.lost.add(first)
    ctx.expect("well again" in mails(), "the recovery was not told")
    return "pruned nothing, told by mail and check; with the right clock it pruned, and told that too"


def _one_hold(ctx: Context) -> None:
    """`maintain` holds everything, as on a target that looks after itself; this root's source does that."""
    for entry in state.below(ctx.states()[1], ctx.root):
        for snapshot in state.snapshots(ctx.states()[1], entry.name)[:-1]:
            if snapshot.userrefs:
                ctx.hand(ctx.backup1, "release", "pve-zfsbackup", snapshot.name)


# -- configuration

_OPEN = (
    ('chmod 666 "$1"', "lets others write it"),
    ('chmod 620 "$1"', "lets others write it"),
    ('chown nobody "$1"', "owned by uid"),
)


@row("15", "a configuration that others can write", "refused and told before anything is done; its advice mends it")
def writable_config(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest, 1)
    for command, told in _OPEN:
        ctx.pve1.script(command, ctx.config)
        with ctx.pve1.executed() as record:
            done = ctx.run()
        ctx.expect(done.code == 3 and told in done.stderr, f"{command}: {done.short}")
        ctx.expect(not record.count("zfs") and not record.count("ssh"), f"{command}: something was run")
        advice = f"chown root:root {ctx.config} && chmod go-w {ctx.config}"
        ctx.expect(advice in done.stderr, f"{command}: no advice: {done.stderr}")
        ctx.pve1.script(advice)
        good(ctx, ctx.run("status"), "after its advice was followed")
    for path, why in _planted(ctx):
        refused = ctx.pve1.run((*ctx.watched(())[:-1], path), check=False)
        ctx.expect(refused.returncode == 3 and why in refused.stderr, f"{path}: {refused}")
        ctx.outputs.append(refused.stderr)
    return "refused with 3: mode 666, 620, another's file, another's directory, a link; nothing was run"


def _planted(ctx: Context) -> Iterator[tuple[str, str]]:
    """The configuration where others can put another in its place, and a link to it."""
    folder = f"{inject.RUN}/open"
    ctx.stack.callback(ctx.pve1.run, ("rm", "-rf", folder, f"{ctx.config}.link"))
    ctx.pve1.script('mkdir -m 777 "$2"; cp -p "$1" "$2/config.yaml"; ln -s "$1" "$1.link"', ctx.config, folder)
    yield f"{folder}/config.yaml", "lets others write it"
    yield f"{ctx.config}.link", "a symbolic link"


# -- silence


@row("68", "cron never runs", "check alarms on the node, and the receiver's on the target, whatever the source says")
def silence(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    receiver(ctx)
    quiet = ("pve-zfsbackup-receiver", "check")
    ctx.expect(not _late(ctx, guest.vmid), "check alarms while all is well")
    ctx.backup1.run(("pve-zfsbackup-receiver", "maintain"))
    _one_hold(ctx)
    before = ctx.backup1.run(quiet, check=False)
    ctx.expect(before.returncode == 0, f"the receiver's check while all is well: {before}")
    with clocks(ctx) as move:
        move(4 * HOUR)
        late = _late(ctx, guest.vmid)
        ctx.expect({level for level, _ in late} == {"warning"} and len(late) == 2, f"after four hours: {late}")
        move(3 * DAY)
        late = _late(ctx, guest.vmid)
        ctx.expect({level for level, _ in late} == {"critical"} and len(late) == 2, f"after three days: {late}")
        done = ctx.run("check")
        ctx.expect(done.code == 2, f"check after three days: {done.short}")
        there = ctx.backup1.run(quiet, check=False)
        ctx.expect(there.returncode == 2 and "has gone quiet" in there.stdout, f"the receiver's check: {there}")
    told = "; ".join(text for _, text in late)
    return f"after 4 h warnings, after 3 days: {told}; on the target: {there.stdout.split('|')[0].strip()}"


def _late(ctx: Context, vmid: int) -> list[tuple[str, str]]:
    """What `check` finds late of a guest: how bad, and its words."""
    found = ctx.run("check").report["findings"]
    return [(one["level"], one["text"]) for one in found if _is_age(one, vmid)]


def _is_age(found: dict[str, str], vmid: int) -> bool:
    return found["about"].startswith(f"guest {vmid}") and found["text"].endswith("h old")
