"""Rows 36-47: what happens to the source between two runs, and during one."""

from __future__ import annotations

from tests.lab.matrix import guests, inject
from tests.lab.matrix.boxes import NAME, Box
from tests.lab.matrix.context import STAGES, Context
from tests.lab.matrix.guests import Guest
from tests.lab.matrix.rows import row

_AWAY = r"""
zfs list -H -o name -r tank | grep "^tank/vm-$1" | while read -r name; do
  zfs list -H -r -t snapshot -o name "$name" | xargs -rn1 zfs release pve-zfsbackup || :
  zfs destroy -r "$name"
done
"""

# As Proxmox does it (pve-facts §c, pve-observed): a task that is listed, the disks first with six tries and a second
# between them, and only then the configuration.
_QM_DESTROY = r"""
mkdir -p /var/log/pve/tasks
start=$(cut -d ' ' -f 22 /proc/$$/stat)
upid=$(printf 'UPID:pve1:%08X:%08X:%08X:qmdestroy:%s:root@pam:' $$ "$start" "$(date +%s)" "$2")
echo "$upid 0" >> /var/log/pve/tasks/active
tries=0
for i in 1 2 3 4 5 6; do
  if zfs destroy -r "$1"; then tries=$i; break; fi
  sleep 1
done
rm "/etc/pve/qemu-server/$2.conf"
sed -i "s/^$upid 0$/$upid 1 $(printf %08X "$(date +%s)") OK/" /var/log/pve/tasks/active
echo "$tries"
"""


@row("36", "base snapshot deleted on the source", "goes on from the bookmark")
def base_deleted(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.hand(ctx.pve1, "destroy", ctx.newest(guest, ctx.pve1))
    ctx.write(guest, 1)
    ctx.sends_less_than(2, "from the bookmark")
    return "only the bookmark is left on the source"


@row("37", "base and bookmarks gone from the source", "a new generation, told; the old one kept")
def nothing_in_common(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    mine = [e for e in ctx.states()[0].values() if e.dataset == guest.disk and (e.ours or e.mark_of)]
    for entry in mine:
        ctx.hand(ctx.pve1, "destroy", entry.name)
    ctx.apart = True
    return f"{len(mine)} snapshots and bookmarks destroyed"


@row("38", "source rolled back", "older common base: a conflict with its evidence", conflict=True)
def rolled_back(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    first = ctx.newest(guest, ctx.pve1)
    ctx.write(guest, 2)
    ctx.baseline()
    lost = ctx.points()[-1]
    ctx.hand(ctx.pve1, "rollback", "-r", first)
    done = ctx.run()
    ctx.expect(done.code != 0 and done.advice, f"{done.short}")
    ctx.expect(lost in ctx.points(), "the newer point on the target did not survive")
    ctx.lost_by_advice.add(lost)
    return done.short


@row("39", "guest recreated under its vmid", "a new generation, told; the old one restorable")
def recreated(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.by_hand.add(("destroy", guest.disk))
    guests.remove(ctx.pve1, guest.vmid)
    guests.make(ctx.pve1, guest.vmid)
    ctx.patch(guest.disk)
    ctx.apart = True
    return "destroyed and made again"


@row("40", "disk moved to another storage (a new zvol)", "a new generation, told; the old one kept")
def moved(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    new = f"fast/vm-{guest.vmid}-disk-0"
    ctx.by_hand |= {("create", new), ("destroy", guest.disk)}
    ctx.pve1.script(
        'zfs create -s -V 24M "$2"; for i in $(seq 300); do [ -b "/dev/zvol/$2" ] && break; sleep 0.1; done\n'
        'dd if="/dev/zvol/$1" of="/dev/zvol/$2" bs=1M conv=fsync status=none; udevadm settle; zfs destroy -r "$1"',
        guest.disk, new,
    )  # fmt: skip
    ctx.guests.clear()
    after = ctx.own(Guest(vmid=guest.vmid, disks=(new,), volids=(f"fast:vm-{guest.vmid}-disk-0",)))
    guests.configure(ctx.pve1, after)
    ctx.patch(guest.disk, new)
    ctx.apart = True
    return f"{guest.disk} is now {new}"


@row(
    "41",
    "snapshot vanishes between plan and send",
    "that disk fails or is planned anew; the next run is right",
)
def vanishes(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    ctx.write(guest, 1)
    ctx.run("snapshot")
    name = ctx.newest(guest, ctx.pve1)
    inject.lay(ctx.pve1, "send", "gone", name, once=True)
    done = ctx.run("replicate")
    gone = ctx.pve1.run(("zfs", "list", name), check=False).returncode != 0
    ctx.expect(gone, "it did not vanish")
    return done.short


@row("42", "key unloaded on the source", "raw sends work all the same")
def key_unloaded(ctx: Context) -> str:
    guest = _own_key(ctx, "k42")
    ctx.baseline()
    ctx.write(guest, 2)
    ctx.hand(ctx.pve1, "unload-key", guest.disk)
    done = ctx.run()
    ctx.hand(ctx.pve1, "load-key", guest.disk)
    ctx.pve1.wait_for(("test", "-b", f"/dev/zvol/{guest.disk}"))
    ctx.expect(done.code == 0, done.short)
    ctx.publish()
    return f"{done.short}, {len(ctx.ledger)} points on the target"


@row("43", "change-key, then incremental", "all points open with the new key, the old archive with the old one")
def change_key(ctx: Context) -> str:
    guest = _own_key(ctx, "k43")
    box = Box(ctx)
    ctx.baseline()
    (old,) = box.points()
    ctx.write(guest, 2)
    ctx.pve1.script('head -c 32 /dev/urandom > "$1"', f"{inject.RUN}/k43b")
    ctx.hand(ctx.pve1, "change-key", "-o", f"keylocation=file://{inject.RUN}/k43b", guest.disk)
    done = ctx.run()
    ctx.expect(done.code == 0, done.short)
    ctx.key = ctx.pve1.run(("base64", "-w0", f"{inject.RUN}/k43b")).stdout
    ctx.publish()
    back = "fast/matrix-43"
    ctx.stack.callback(ctx.pve1.script, 'if zfs list "$1"; then zfs destroy -r "$1"; fi', back)
    ctx.pve1.run(("zfs", "create", "-o", "canmount=off", back))
    which = (str(guest.vmid), "--from", NAME, "--identity", f"{box.keys}/identity", "--point", old["point"])
    restored = ctx.run("restore", *which, "--to", back, "--config-dir", ctx.directory)
    ctx.expect(restored.code == 0, f"from the box: {restored.short} {restored.told[:300]}")
    made = ctx.pve1.run(("zfs", "list", "-Ho", "name", "-r", back)).lines
    ctx.by_hand |= {("*", name) for name in made}  # asked for where nothing else of ours lies
    disk = made[-1]
    opens = {
        key: ctx.pve1.run(("zfs", "load-key", "-n", "-L", f"file://{inject.RUN}/{key}", disk), check=False).returncode
        for key in ("k43", "k43b")
    }
    ctx.pve1.run(("zfs", "destroy", "-r", back))
    ctx.expect(opens["k43"] == 0 and opens["k43b"] != 0, f"the archive of before opens with: {opens}")
    return f"{done.short}; both points are opened with the new key below, the archive of before with the old one"


@row("44", "raw and not raw in one replica", "refused before anything is sent", conflict=True)
def mixed(ctx: Context) -> str:
    guest = ctx.guest()
    ctx.baseline()
    newest = ctx.newest(guest, ctx.pve1)
    moved_to = f"rpool/crypt/vm-{guest.vmid}-disk-0"
    ctx.by_hand |= {("*", moved_to), ("*", guest.disk)}
    ctx.pve1.script(
        'zfs send -p "$1" | zfs receive -u -x encryption "$2"; udevadm settle; zfs destroy -r "${1%@*}"',
        newest,
        moved_to,
    )
    ctx.guests.clear()
    after = ctx.own(Guest(vmid=guest.vmid, disks=(moved_to,), volids=(f"crypt:vm-{guest.vmid}-disk-0",)))
    guests.configure(ctx.pve1, after)
    ctx.patch(guest.disk, moved_to)
    ctx.pve1.wait_for(("test", "-b", f"/dev/zvol/{moved_to}"))
    ctx.write(after, 1)
    ctx.key = ctx.crypt_key()
    done = ctx.run()
    ctx.expect(done.code != 0 and done.advice and done.sent == 0, f"{done.short} {done.told[:300]}")
    ctx.lost_by_advice |= set(ctx.ledger)
    ctx.stack.callback(ctx.backup1.script, _AWAY, str(guest.vmid))
    return done.short


@row("45", "recordsize 1M in the middle of a chain", "equal content")
def larger_records(ctx: Context) -> str:
    guest = ctx.own(guests.make_container(ctx.pve1, ctx.base_vmid))
    ctx.baseline()
    ctx.hand(ctx.pve1, "set", "recordsize=1M", guest.disk)
    ctx.write(guest, 4)
    done = ctx.run()
    ctx.expect(done.code == 0, done.short)
    ctx.publish()
    ctx.write(guest, 3, at=2)
    return f"{done.short}, {done.sent >> 20} MiB with large records"


_A_WEEK_LATER = r"""
python3 - "$1" << 'EOF'
import json, sys
with open(sys.argv[1]) as file:
    known = json.load(file)
aged = {t: {d: [token, stood + 8 * 86400, seen] for d, (token, stood, seen) in own.items()} for t, own in known.items()}
with open(sys.argv[1], "w") as file:
    json.dump(aged, file)
EOF
"""


@row("47", "guest deleted while its disk is sent", "the stream is given up, Proxmox's next try works; old point kept")
def deleted_during_send(ctx: Context) -> str:
    ctx.guest()
    victim = ctx.guest()
    ctx.baseline()
    ctx.write(victim)
    with ctx.held_at(3, "run", str(victim.vmid), *STAGES) as running:
        ctx.by_hand.add(("destroy", victim.disk))
        tries = int(ctx.pve1.script(_QM_DESTROY, victim.disk, str(victim.vmid)).lines[-1])
        inject.go(ctx.pve1)
        done = running.end()
    if not tries:
        guests.remove(ctx.pve1, victim.vmid)
    ctx.patch(victim.disk)
    ctx.expect(tries, f"busy for all six tries; the run: {done.short}")
    ctx.expect(done.code == 0 and "given up" in done.told, f"does not say so: {done.short} {done.told[:300]}")
    ctx.run("prune")
    ctx.pve1.script(_A_WEEK_LATER, f"{ctx.directory}/state/partials.json")
    swept = [result["message"] for result in ctx.run("prune").report.get("results", ()) if result["stage"] == "prune"]
    thrown = [message for message in swept if "was thrown away" in message]
    ctx.expect(len(thrown) == 1, f"its partial receive a week later: {swept}")
    return f"destroyed at try {tries}; the run: {done.told[:200]}; a week later: {thrown}"


def _own_key(ctx: Context, name: str) -> Guest:
    """A guest whose disk is its own encryption root."""
    path = f"{inject.RUN}/{name}"
    ctx.pve1.script('head -c 32 /dev/urandom > "$1"', path)
    ctx.key = ctx.pve1.run(("base64", "-w0", path)).stdout
    options = ("-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{path}")
    return ctx.guest(options=options)
