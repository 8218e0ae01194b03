"""Rows 12-15, 23 and 66-68: clocks, the configuration, forbidden commands, a killed drill, who is told, and silence.

Clocks are those of both hosts: creation times, by which retention and ages go, are the kernel's (tests/lab/month.py).
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

from tests.lab import test_receiver
from tests.lab.lab import TREE
from tests.lab.matrix import criteria, guests, inject, state
from tests.lab.matrix.context import STAGES, Context, Done
from tests.lab.matrix.guests import Guest
from tests.lab.matrix.rows import row
from tests.receiver import test_grammar

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


@row(
    "13",
    "clocks years ahead",
    "rules count points, not years; at ten the run refuses, and so does maintain, at its cap",
)
def clock_ahead(ctx: Context) -> str:
    """By 700 days the node's certificate is good still, by 3650 neither it nor, with Proxmox, its authority's."""
    ctx.keep = "{keep-last: 4}"
    ctx.configure()
    mails = mailed(ctx)
    guest = ctx.guest()
    for _ in range(2):
        ctx.write(guest, 1)
        good(ctx, ctx.run(), "a run before")
    ctx.write(guest, 1)
    ctx.baseline()
    receiver(ctx, "keep-last = 1\nminimum-count = 1\n")
    maintain = ("pve-zfsbackup-receiver", "maintain")
    with clocks(ctx) as move:
        move(700 * DAY)
        good(ctx, ctx.run(*PRUNING), "the run 700 days ahead")
        ctx.publish()
        ctx.expect(len(here(ctx)) == len(ctx.points()) == 4, f"a point went: {here(ctx)}, {ctx.points()}")
        move(3650 * DAY)
        refused = ctx.run(*PRUNING)
        ctx.expect(refused.code == 2 and "certificate" in refused.stderr, f"ten years ahead: {refused.short}")
        ctx.expect("certificate" in mails(), "nobody was told that the run refused")
        done = ctx.backup1.run(maintain, check=False)
        ctx.expect(done.returncode == 1 and "max-share" in done.stderr, f"maintain did not refuse: {done}")
        ctx.expect(len(here(ctx)) == len(ctx.points()) == 4, f"a point went: {here(ctx)}, {ctx.points()}")
    _one_hold(ctx)
    good(ctx, ctx.run(*PRUNING), "the run with the right clock again")
    ctx.publish()
    ctx.expect(len(here(ctx)) == len(ctx.points()) == 5, f"pruned beside a point of the future: {ctx.points()}")
    ctx.expect(FUTURE in mails(), "nobody was told of the point from the future")
    return (
        f"700 days ahead nothing more goes; ten years ahead the run ends with {refused.code}, told, and maintain says "
        f"{done.stderr.strip()[:160]}; back again nothing is pruned beside the point of the future, which is told"
    )


def _one_hold(ctx: Context) -> None:
    """`maintain` holds everything, as on a target that looks after itself; this root's source does that."""
    for entry in state.below(ctx.states()[1], ctx.root):
        for snapshot in state.snapshots(ctx.states()[1], entry.name)[:-1]:
            if snapshot.userrefs:
                ctx.hand(ctx.backup1, "release", "pve-zfsbackup", snapshot.name)


# Around each change, at 01:00 UTC in Berlin; and what an hourly rule keeps of it. In October ten past two comes twice,
# in one hour, as Proxmox counts.
_TIMES = ("00:10", "01:10", "02:10")
_KEPT = {3: _TIMES, 10: _TIMES[1:]}


@row("14", "the clock changes to and from summer time", "no name twice, every point there, pruned by local hours")
def summer_time(ctx: Context) -> str:
    ctx.keep = "{keep-hourly: 24}"
    ctx.configure()
    more(ctx, "timezone: Europe/Berlin\n")
    guest = ctx.guest()
    made: list[str] = []
    with clocks(ctx) as move:
        for day in _changes(datetime.now(UTC)):
            for at in _TIMES:
                move(_seconds(day, at) - time.time())
                ctx.write(guest, 1)
                good(ctx, ctx.run(), f"the run at {day} {at}")
            ctx.publish()
            before = ctx.points()
            new = [point for point in before if point not in made]
            _all_there(ctx, new, day, _TIMES)
            ctx.expect(set(before) == set(here(ctx)), f"not the same on both sides: {before}, {here(ctx)}")
            good(ctx, ctx.run("run", "--stage", "prune"), f"pruning on {day}")
            stay = [point for point, at in zip(new, _TIMES, strict=True) if at in _KEPT[day.month]]
            ctx.lost |= set(new) - set(stay)
            made += stay
            ctx.expect(set(ctx.points()) == set(here(ctx)) == set(made), f"{ctx.points()} stay, expected {made}")
    return f"{2 * len(_TIMES)} points made, their names are UTC; {len(made)} of them stay, one for each local hour"


def _changes(now: datetime) -> list[date]:
    """The next two last Sundays of March and October, as the European Union has it: within the node's certificate."""
    found = []
    for year in (now.year, now.year + 1):
        for month in (3, 10):
            last = date(year, month, 31)
            found.append(last - timedelta(days=(last.weekday() + 1) % 7))
    return [day for day in found if day > now.date()][:2]


def _seconds(day: date, at: str) -> float:
    return datetime.fromisoformat(f"{day}T{at}:00").replace(tzinfo=UTC).timestamp()


def _all_there(ctx: Context, points: Sequence[str], day: date, times: Sequence[str]) -> None:
    """One point for each run, in order, with the time of that run in its name."""
    names = [f"{day:%Y%m%d}T{at.replace(':', '')}" for at in times]
    found = [point.partition("/")[2][:13] for point in points]
    ctx.expect(found == names, f"on {day} there are {points}, expected one for each of {names}")


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


# -- forbidden commands

COMMANDS = int(os.environ.get("PZB_MATRIX_COMMANDS", "200"))
_KEY = f"{inject.RUN}/forbidden"
_LINE = 'restrict,command="pve-zfsbackup-receiver --root {root}" {key}'
# Reads lines as JSON; asks each of the target with the key, one after another; tells status and first words of stderr.
_ASK = r"""
import json, subprocess, sys
key, account, *host = sys.argv[1:]
ssh = ["ssh", "-F", "none", "-T", "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
       "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=/etc/pve-zfsbackup/known_hosts",
       "-o", "ControlMaster=auto", "-o", f"ControlPath={key}.control", "-o", "ControlPersist=30",
       "--", f"{account}@backup1"]
for line in map(json.loads, sys.stdin):
    done = subprocess.run([*ssh, line], stdin=subprocess.DEVNULL, capture_output=True)
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    print(json.dumps([done.returncode, out[:200], err[:200]]))
subprocess.run([*ssh[:-2], "-O", "exit", *ssh[-2:]], capture_output=True)
"""


@row("23", "forbidden commands to the receiver", "each denied and logged, nothing changed (10,000: tests/receiver)")
def forbidden(ctx: Context) -> str:
    """Hand-made attacks and mutated lines of the contract, by ssh as the account that sources have: what is delegated
    to it here would let it destroy, so that nothing but the forced command stands. Unit tests have ten thousand
    mutations (tests/receiver/test_grammar.py), the lab's test_receiver.py the walls behind."""
    guest = ctx.guest()
    ctx.baseline()
    receiver(ctx)
    ctx.stack.callback(ctx.pve1.script, 'rm -f "$1" "$1".*', _KEY)
    ctx.pve1.script('ssh-keygen -q -t ed25519 -N "" -f "$1"', _KEY)
    keys = "/home/pve-zfsbackup/.ssh/authorized_keys"
    text = _LINE.format(root=ctx.root, key=ctx.pve1.read(f"{_KEY}.pub").strip())
    ctx.backup1.script('printf "%s\n" "$2" >> "$1"', keys, text)
    lines = [*_attacks(ctx, guest), *_mutated(ctx, COMMANDS)]
    (allowed,) = _asked(ctx, ["hello"])
    ctx.expect(allowed[0] == 0 and ctx.root in allowed[1], f"the control: what is allowed was answered {allowed}")
    before, since = _everything(ctx), ctx.backup1.run(("date", "+%s")).stdout.strip()
    answers = _asked(ctx, lines)
    for line, (code, out, err) in zip(lines, answers, strict=True):
        ctx.expect(code == 126 and not out and "denied: " in err, f"{line[:200]!r} was answered {(code, out, err)}")
    ctx.expect(_everything(ctx) == before, "something on the target changed")
    select = ("-t", "pve-zfsbackup-receiver", "SYSLOG_FACILITY=4", "-o", "cat")
    logged = ctx.backup1.run(("journalctl", "-q", f"--since=@{since}", *select)).lines
    denied = [line for line in logged if "denied: " in line]
    ctx.expect(len(denied) >= len(lines), f"{len(denied)} of {len(lines)} were logged")
    return f"{len(lines)} commands by ssh as the source's account: all denied with 126 and logged, the pool as it was"


def _attacks(ctx: Context, guest: Guest) -> list[str]:
    """Those of test_receiver.py upon this row's root; not the marks, which are denied by what stands there."""
    names = {test_receiver.ZVOL: ctx.replica(guest), test_receiver.ROOT: ctx.root, test_receiver.OTHER: "tank/matrix"}
    found = [line for line in test_receiver.ATTACKS if not line.startswith("zfs set pve-zfsbackup:point=")]
    for old, new in names.items():
        found = [line.replace(old, new) for line in found]
    return [*found, f"zfs destroy {ctx.newest(guest, ctx.backup1)}", f"zfs destroy -r {ctx.replica(guest)}"]


def _mutated(ctx: Context, count: int) -> list[str]:
    """Lines of the contract with something done to them, which a shell would not find harmless; as ssh can say them."""
    chance, found = random.Random(test_grammar.SEED), []
    while len(found) < count:
        line = test_grammar.mutated(chance)
        if line.strip() and "\0" not in line and len(line) < 100_000 and not test_grammar.harmless(line):
            found.append(line.encode(errors="replace").decode().replace(test_grammar.ROOT, ctx.root))
    return found


def _asked(ctx: Context, lines: Sequence[str]) -> list[tuple[int, str, str]]:
    argv = ("python3", "-c", _ASK, _KEY, "pve-zfsbackup")
    done = ctx.pve1.run(argv, input="\n".join(map(json.dumps, lines)) + "\n", timeout=1500)
    return [tuple(json.loads(line)) for line in done.lines]


def _everything(ctx: Context) -> str:
    return ctx.backup1.script(test_receiver._STATE, ctx.root, "tank/matrix").stdout


# -- a killed drill

# LVM on a partition beside an ext4: partitions are mapped, the volume group is read, both are mounted.
_FILL = r"""
d=/dev/zvol/$1; at=$(mktemp -d)
parted -s "$d" mklabel gpt mkpart a 1MiB 20MiB mkpart b 20MiB 100% 2> /dev/null
for i in $(seq 600); do [ -b "$d-part2" ] && break; sleep 0.1; done; udevadm settle
mkfs.ext4 -q -F "$d-part1"; mount "$d-part1" "$at"; mkdir "$at/etc"; echo ID=lab > "$at/etc/os-release"; umount "$at"
pvcreate -q "$d-part2"; vgcreate -q matrixvg "$d-part2"; lvcreate -q -Wn -y -l 100%FREE -n root matrixvg
mkfs.ext4 -q /dev/matrixvg/root; mount /dev/matrixvg/root "$at"; mkdir "$at/srv"; date > "$at/srv/date"; umount "$at"
vgchange -q -an matrixvg; rmdir "$at"; zpool sync
"""
# As Proxmox has it: else the host takes each clone's volume group for one of its own, and holds the clone.
_NOT_OURS = r"""
cp /etc/lvm/lvmlocal.conf /run/matrix/lvmlocal.conf
echo 'devices { global_filter=["r|/dev/zd.*|"] }' >> /etc/lvm/lvmlocal.conf
"""
_LEFT = r"""
grep -E 'pve-zfsbackup(-drill|/drill)|matrix-66/drill' /proc/mounts | cut -d" " -f1,2 || :
dmsetup ls | grep -E 'pve-zfsbackup|matrixvg' || :
zfs list -H -o name -t filesystem,volume | grep pve-zfsbackup-drill || :
losetup -a
"""
# What is there when the drill is killed; each a little later in it than the one before.
_MOMENTS = {
    "its first clone": "zfs list -H -o name | grep -q 'pve-zfsbackup-drill/'",
    "a map of a volume": "dmsetup ls | grep -q pve-zfsbackup-drill",
    "a mount": "grep -q '/drill/' /proc/self/mountinfo",
}
_KILL = r"""
for i in $(seq 3000); do if eval "$1"; then kill -9 "$(cat /run/matrix/product.pid)"; exit 0; fi; sleep 0.02; done
exit 1
"""


@row("66", "a drill killed by kill -9", "the next one sweeps: no clone, volume or mount is left, and it passes")
def drill_killed(ctx: Context) -> str:
    guest = ctx.guest(mib=64)
    ctx.pve1.script(_FILL, guest.disk, timeout=600)
    ctx.stack.callback(ctx.pve1.run, ("cp", "/run/matrix/lvmlocal.conf", "/etc/lvm/lvmlocal.conf"))
    ctx.pve1.script(_NOT_OURS)
    ctx.baseline()
    drill = ("verify", "drill", str(guest.vmid))
    seen = []
    for moment, there in _MOMENTS.items():
        ctx.pve1.run(("rm", "-f", "/run/matrix/product.pid"))
        running = ctx.start(*drill)
        ctx.pve1.script(_KILL, there, timeout=200)
        killed = running.end()
        ctx.expect(killed.code == 137, f"{moment}: not killed: {killed.short}")
        left = ctx.pve1.script(_LEFT).lines
        ctx.expect(left, f"{moment}: nothing was left, so that there was nothing to sweep")
        seen.append(f"at {moment}: {len(left)} left")
        done = ctx.run(*drill)
        good(ctx, done, f"{moment}: the drill after it")
        told = str(done.report)
        ctx.expect(
            "a drill was killed: destroyed rpool/pve-zfsbackup-drill" in told, f"{moment}: not told: {told[:400]}"
        )
        ctx.expect([one["problems"] for one in done.report["drills"]] == [[]], f"{moment}: {told[:400]}")
        ctx.expect(not (left := ctx.pve1.script(_LEFT).lines), f"{moment}: left: {left}")
    return "; ".join(seen) + "; each swept by the next drill, which passed"


# -- services that are told

PORT = 8444
CERTIFICATE = "/usr/local/share/ca-certificates/matrix.crt"
HOOK = f"{inject.RUN}/hook"
# A service that does what stands in the file `mode`; `seen` has every request.
_SERVICE = r"""
import http.server, json, ssl, sys, time
place, port = sys.argv[1], int(sys.argv[2])

class Service(http.server.BaseHTTPRequestHandler):
    def answer(self):
        mode = open(f"{place}/mode").read().strip()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        with open(f"{place}/seen", "a") as file:
            file.write(json.dumps([mode, self.command, self.path, body]) + "\n")
        if mode == "hang":
            time.sleep(3600)
        elif mode == "stall":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\nx")
            time.sleep(3600)
        elif mode == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
            while True:
                self.wfile.write(b"x")
                time.sleep(3)
        self.send_response({"redirect": 302, "fail": 500}.get(mode, 200))
        if mode == "redirect":
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET = answer

    def log_message(self, *words):
        pass

server = http.server.ThreadingHTTPServer(("", port), Service)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{place}/cert.pem", f"{place}/key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
_SERVE = r"""
cd "$1"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -days 90 \
  -subj /CN=service -addext "subjectAltName=IP:$2" -addext keyUsage=critical,digitalSignature,keyCertSign 2> /dev/null
cp cert.pem "$4"; echo take > mode
systemd-run -q --collect --unit matrix-hook python3 "$1/service.py" "$1" "$3"
update-ca-certificates > /dev/null 2>&1
"""
_UNSERVE = r"""
systemctl stop matrix-hook || :
rm -rf "$1" "$2"; update-ca-certificates > /dev/null 2>&1
"""
_BROKEN = ("hang", "stall", "drip", "redirect", "fail")


@row("67", "the service for alerts hangs, drips, redirects or fails", "runs go on unaffected; told later, each once")
def service_broken(ctx: Context) -> str:
    guest = ctx.guest()
    url = _service(ctx)
    ctx.baseline()
    broken = ctx.base_vmid + 9  # a guest whose disk is not there: its point fails, and that is to be told
    ctx.stack.callback(guests.remove, ctx.pve1, broken)
    lost = Guest(vmid=broken, disks=(), volids=(f"local-zfs:vm-{broken}-disk-0",))
    guests.configure(ctx.pve1, lost)
    seconds = {}
    for mode in _BROKEN:
        ctx.pve1.write(f"{HOOK}/mode", mode)
        ctx.write(guest, 1)
        done = ctx.run()
        seconds[mode] = done.seconds
        ctx.expect(done.code == 1, f"{mode}: {done.short}")
        sent = [one for one in done.report["results"] if (one["stage"], one["outcome"]) == ("replicate", "ok")]
        ctx.expect(guest.vmid in [one["vmid"] for one in sent], f"{mode}: the other guest: {done.told[:300]}")
        ctx.expect("webhook ops" in done.stderr, f"{mode}: that it was not told is not said: {done.stderr[:300]}")
        ctx.expect(url not in done.stderr + str(done.report), f"{mode}: the address is told")
    ctx.expect(max(seconds.values()) < 90, f"a run was held up: {seconds}")
    ctx.pve1.write(f"{HOOK}/mode", "take")
    guests.remove(ctx.pve1, broken)
    good(ctx, ctx.run(), "the run with the service back")
    ctx.publish()
    ctx.expect(len(ctx.points()) == len(_BROKEN) + 2, f"points are missing: {ctx.points()}")
    asked = [json.loads(line) for line in ctx.pve1.read(f"{HOOK}/seen").splitlines()]
    ctx.expect({mode for mode, *_ in asked} == {*_BROKEN, "take"}, f"the service was asked: {asked}")
    ctx.expect(all(how == "POST" and path == "/T0PSECRET" for _, how, path, _ in asked), f"a redirect led on: {asked}")
    taken = [json.loads(body) for mode, _, _, body in asked if mode == "take"]
    tellings = [known["tellings"] for body in taken for known in body["problems"]]
    ctx.expect(tellings == [1, 2, 3], f"after all of it was told: {taken}")
    return f"seconds of each run: { {mode: round(took) for mode, took in seconds.items()} }; later told, in order, once"


def _service(ctx: Context) -> str:
    """Start it, and let the row's alerts go there. Its address, which is a secret."""
    url = f"https://{ctx.pve1.address}:{PORT}/T0PSECRET"
    ctx.stack.callback(_fork_anew, ctx)
    ctx.stack.callback(ctx.pve1.script, _UNSERVE, HOOK, CERTIFICATE)
    ctx.pve1.script('rm -rf "$1"', HOOK)
    ctx.pve1.write(f"{HOOK}/service.py", _SERVICE)
    ctx.pve1.write(f"{HOOK}/url", f"{url}\n", mode=0o600)
    ctx.pve1.script(_SERVE, HOOK, ctx.pve1.address, str(PORT), CERTIFICATE)
    ctx.pve1.wait_for(("curl", "-fsk", url))
    ctx.pve1.write(f"{HOOK}/seen", "")
    _fork_anew(ctx)
    more(ctx, f"webhooks: {{ops: {{type: generic, url-file: {HOOK}/url}}}}\n")
    ctx.before["secrets"] = [*criteria.planted(ctx), "T0PSECRET"]
    return url


def _fork_anew(ctx: Context) -> None:
    """The program that is forked has read the certificates when it was loaded."""
    ctx.pve1.run(("rm", "-f", f"{inject.RUN}/fork.stamp"))
    inject.serve(ctx.pve1)


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
