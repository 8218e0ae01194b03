"""Rows 24-35: what happens to a target and to the replicas on it."""

from __future__ import annotations

from tests.lab.matrix import guests, inject
from tests.lab.matrix.context import Context
from tests.lab.matrix.rows import row
from tests.lab.product import ACCOUNT

_FILL = r"""
available=$(zfs get -Hp -o value available "$1")
zfs create -o mountpoint=none -o reservation=$((available - 1048576)) "$1/filler"
"""
_DIRTY = r"""
zfs set volmode=dev "$1"; zfs set readonly=off "$1"
for i in $(seq 300); do [ -b "/dev/zvol/$1" ] && break; sleep 0.1; done
head -c 65536 /dev/urandom | dd of="/dev/zvol/$1" bs=64k seek=40 conv=notrunc,fsync status=none
zpool sync "${1%%/*}"
zfs inherit volmode "$1"; zfs inherit readonly "$1"
"""


@row("24", "target full in the middle of a receive", "told; the base stays; goes on when there is space")
def full(ctx: Context) -> str:
    ctx.on_pool("small", 512)
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest, 12)
    with ctx.held_at(3) as running:
        ctx.arrived(guest)
        ctx.by_hand.add(("create", "small/filler"))
        ctx.backup1.script(_FILL, "small")
        inject.go(ctx.pve1)
        done = running.end()
    again = ctx.run("replicate")
    ctx.hand(ctx.backup1, "destroy", "small/filler")
    ctx.expect(done.code != 0 and again.code != 0, f"called a success: {done.told[:200]} / {again.told[:200]}")
    ctx.expect(
        "space" in done.short or "space" in again.short, f"does not speak of space: {done.short} / {again.short}"
    )
    return f"{done.short}; tried again while full: {again.short}"


@row("25", "quota on the target's root", "told; the base stays; goes on when it is raised")
def quota(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    used = ctx.backup1.run(("zfs", "get", "-Hp", "-o", "value", "used", ctx.root)).stdout.strip()
    ctx.hand(ctx.backup1, "set", f"quota={int(used) + (2 << 20)}", ctx.root)
    done = ctx.run()
    ctx.hand(ctx.backup1, "set", "quota=none", ctx.root)
    ctx.expect(done.code != 0, f"called a success: {done.told[:200]}")
    ctx.expect("quota" in done.short.lower() or "space" in done.short, f"does not speak of it: {done.short}")
    return done.short


@row("25a", "snapshot_limit, then filesystem_limit, of the target's root reached",
     "told before anything is sent; goes on when it is raised")  # fmt: skip
def limits(ctx: Context) -> str:
    """Real ones: OpenZFS counts only below a limit, and it binds only accounts that may not set it."""
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    snapshots = _at_limit(ctx, "snapshot", guest)
    ctx.baseline()
    ctx.apart = True  # the new guest was never there: whether it is, is judged after the next run
    filesystems = _at_limit(ctx, "filesystem", ctx.guest())
    return f"{snapshots}; {filesystems}"


def _at_limit(ctx: Context, what: str, guest: guests.Guest) -> str:
    """A run while there may not be one more of these. Afterwards there is no limit."""
    limit = f"{what}_limit"
    ctx.hand(ctx.backup1, "set", f"{limit}=100000", ctx.root)
    count = ctx.backup1.run(("zfs", "get", "-Hp", "-o", "value", f"{what}_count", ctx.root)).stdout.strip()
    ctx.hand(ctx.backup1, "set", f"{limit}={count}", ctx.root)
    with ctx.pve1.executed() as record:
        done = ctx.run()
    ctx.hand(ctx.backup1, "set", f"{limit}=none", ctx.root)
    sends = [program.arguments for program in record.of("zfs") if (program.arguments or ())[1:2] == ("send",)]
    sent = [words for words in sends if words and guest.disk in words[-1]]
    ctx.expect(done.code != 0, f"called a success at {limit}={count}: {done.told[:200]}")
    ctx.expect(f"{limit} of {ctx.root}" in done.short, f"does not name it: {done.short}")
    ctx.expect(any(f"zfs get {limit}" in text for text in done.advice), f"does not say what to do: {done.advice}")
    ctx.expect(not sent, f"sent all the same: {sent}")
    return f"{limit}={count}: {done.short}"


@row("26", "replica written by hand", "a conflict, never a forced rollback", conflict=True)
def written(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    replica = ctx.replica(guest)
    ctx.by_hand |= {("set", replica)}
    ctx.backup1.script(_DIRTY, replica)
    ctx.write(guest, 1)
    done = ctx.run()
    ctx.expect(done.code != 0 and done.advice, f"{done.short}")
    return done.short


@row("27", "an administrator's snapshot on the replica", "a conflict; the snapshot stays", conflict=True)
def foreign_snapshot(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    name = f"{ctx.replica(guest)}@by-hand"
    ctx.hand(ctx.backup1, "snapshot", name)
    ctx.write(guest, 1)
    done = ctx.run()
    ctx.expect(done.code != 0 and "by-hand" in str(done.report), f"{done.short}")
    ctx.backup1.run(("zfs", "list", name))
    return done.short


@row("28", "the base on the target destroyed", "told; goes on from the older base once that is rolled back to",
     conflict=True)  # fmt: skip
def base_destroyed(ctx: Context) -> str:
    """What the destroyed snapshot had stays in the replica itself, so that it "has been modified since the most recent
    snapshot": a receive takes no increment before a rollback (zfs-receive(8)), and nothing is rolled back from here."""
    guest = ctx.guest()
    ctx.baseline()
    older = ctx.newest(guest, ctx.backup1)
    ctx.write(guest, 2)
    ctx.baseline()
    newest = ctx.newest(guest, ctx.backup1)
    ctx.lost.add(ctx.points()[-1])
    ctx.hand(ctx.backup1, "release", "pve-zfsbackup", newest)
    ctx.hand(ctx.backup1, "destroy", newest)
    done = ctx.run()
    ctx.expect(any(f"zfs rollback {older}" in text for text in done.advice), f"{done.short}: {done.advice}")
    ctx.sends_less_than(4, "from the older base")
    return done.short


@row("29", "replica renamed", "followed by guid or an error, no silent full stream")
def renamed(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest, 1)
    ctx.hand(ctx.backup1, "rename", ctx.replica(guest), f"{ctx.root}/local-zfs/elsewhere")
    ctx.sends_less_than(2, "into the renamed replica")
    return "renamed within the root"


@row("29a", "replica renamed out of the root", "told, not silently sent in full")
def moved_out(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    away = f"tank/away-{ctx.base_vmid}"
    ctx.hand(ctx.backup1, "rename", ctx.replica(guest), away)
    ctx.stack.callback(ctx.backup1.script, 'zfs release pve-zfsbackup "$1" || :; zfs destroy -r "${1%@*}"',
                       f"{away}@{ctx.newest(guest, ctx.pve1).partition('@')[2]}")  # fmt: skip
    ctx.lost |= set(ctx.ledger)
    ctx.apart = True
    done = ctx.run("replicate")
    ctx.expect("in full" in done.told or done.code, f"said nothing: {done.told[:300]}")
    return f"exit {done.code}: {done.told[:200]}"


@row("30", "token whose snapshot is gone from the source", "aborted once, planned anew")
def stale_token(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest)
    with ctx.held_at(4) as running:
        ctx.arrived(guest)
        running.signal("KILL")
        running.process.wait()
    ctx.wait_token(guest)
    ctx.pve1.wait_for(("sh", "-c", "! pgrep -f '^(/usr/sbin/)?zfs send'"))
    name = ctx.newest(guest, ctx.pve1)
    ctx.hand(ctx.pve1, "destroy", name)
    return f"{name} destroyed while its token is on the target"


@row("31", "token of the other mode (a plain stream of an encrypted disk)", "thrown away, sent raw")
def token_of_other_mode(ctx: Context) -> str:
    ctx.key = ctx.crypt_key()
    ctx.guest(storages=("crypt",))
    ctx.baseline()
    other = ctx.guest(storages=("crypt",))
    ctx.write(other, 4)
    ctx.run("snapshot", str(other.vmid))
    replica = ctx.replica(other)
    ctx.by_hand |= {("receive", replica), ("destroy", replica)}  # what lies there alone goes as a whole
    ctx.apart = True
    ctx.pipe(f"zfs send -L -c {ctx.newest(other, ctx.pve1)} | head -c 3000000", f"zfs receive -s -u {replica}")
    ctx.expect(ctx.token(other), "no token was made")
    ctx.patch(replica)
    return "a partial receive that is not raw stands where the raw one belongs"


@row("32", "pool of the target suspended", "told, nothing hangs")
def suspended(ctx: Context) -> str:
    ctx.on_pool("small", 512)
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest, 2)
    inject.fail_device(ctx.backup1, "small")
    try:
        ctx.backup1.script("nohup zfs set x:y=z small/matrix > /dev/null 2>&1 < /dev/null &")
        inject.wait_state(ctx.backup1, "small", "SUSPENDED")
        done = ctx.run(timeout=240)
        status = ctx.run("status", timeout=120)
    finally:
        inject.mend_device(ctx.backup1, "small")
        inject.wait_state(ctx.backup1, "small", "ONLINE")
    ctx.by_hand.add(("set", "small/matrix"))
    ctx.expect(done.code != 0 and "suspend" in done.short.lower(), f"does not say it: {done.short}")
    ctx.expect(status.report.get("unreachable"), f"status does not show it: {status.short}")
    return f"{done.short} after {done.seconds:.0f} s; status after {status.seconds:.0f} s"


@row("33", "one disk of the target's mirror gives I/O errors", "goes on and warns")
def degraded(ctx: Context) -> str:
    ctx.on_pool("small", 512)
    ctx.backup1.script(
        "truncate -s 512M /var/tmp/small2.img; zpool attach -w small /dev/mapper/small /var/tmp/small2.img"
    )
    ctx.stack.callback(ctx.backup1.run, ("rm", "-f", "/var/tmp/small2.img"))
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest, 2)
    inject.fail_device(ctx.backup1, "small")
    try:
        ctx.backup1.script("for i in 1 2 3; do zfs set x:y=$i small/matrix; zpool sync small; done", timeout=60)
        # OpenZFS 2.3.9 faults the device, and says ONLINE of its pool until it looks at all of them again.
        ctx.backup1.script("zpool offline -f small /dev/mapper/small", timeout=60)
        looked = ctx.run("check").report["findings"]
        ctx.backup1.script("zpool reopen small", timeout=60)
        inject.wait_state(ctx.backup1, "small", "DEGRADED")
        done = ctx.run(timeout=240)
    finally:
        inject.mend_device(ctx.backup1, "small")
        inject.wait_state(ctx.backup1, "small", "ONLINE")
    ctx.by_hand.add(("set", "small/matrix"))
    ctx.expect(done.code == 0, f"did not go on: {done.short}")
    ctx.expect("degraded" in done.told.lower(), f"does not warn: {done.told[:300]}")
    lost = [one["text"] for one in looked if one["about"].startswith("pool small on ") and "FAULTED" in one["text"]]
    ctx.expect(lost, f"check does not see the device: {looked}")
    return f"{done.told[:200]}; check: {lost[0]}"


@row("34", "a block of the source cannot be read (checksum)", "fails, nothing is published, told")
def unreadable_source(ctx: Context) -> str:
    ctx.source_pool("bad", 256)
    guest = ctx.guest(storages=("bad",), mib=16)
    ctx.baseline()
    before = ctx.points()
    ctx.write(guest, 4, at=4)
    place = ctx.damage(guest, "bad", at=5)
    try:
        done = ctx.run()
    finally:
        ctx.repair("bad", place)
    ctx.expect(done.code != 0, f"called a success: {done.told[:200]}")
    ctx.expect(ctx.points() == before, "a point of an unreadable disk is listed on the target")
    return done.short


@row("35", "receiver's pool lacks features", "a permanent error that names it, no retry")
def too_old(ctx: Context) -> str:
    guest = ctx.guest(options=("-o", "compression=zstd"))
    ctx.baseline()
    ctx.pve1.script(
        'yes matrix | head -c 4000000 | dd of="/dev/zvol/$1" bs=1M seek=6 conv=fsync status=none', guest.disk
    )
    ctx.patch(guest.disk)
    with inject.pool(ctx.backup1, "old", 256, "-d"):
        public = ctx.pve1.read("/etc/pve-zfsbackup/id_ed25519.pub").strip()
        ctx.backup1.run(("zfs", "create", "-o", "mountpoint=none", "old/matrix"))
        ctx.backup1.script(ACCOUNT, public, "old/matrix/r35")
        ctx.configure(root="old/matrix/r35")
        done = ctx.run()
        ctx.configure()
        left = ctx.backup1.run(("zfs", "list", "-H", "-t", "snapshot", "-r", "old")).lines
    ctx.expect(done.code != 0 and done.advice, f"{done.short} {done.told[:200]}")
    ctx.expect("feature" in done.short or "upgrade" in done.short, f"does not name it: {done.short}")
    ctx.expect(not left, f"something was received: {left}")
    guests.write(ctx.pve1, guest.disk, 1)
    ctx.patch(guest.disk)
    return f"{done.short} after {done.seconds:.0f} s"
