"""Ways to break things on the lab's hosts: streams, the link, pools. The product gets no test hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.host import Host
from tests.lab.machine import LabError
from tests.lab.pve.provision import TARGET, set_agent

LAY = Path(__file__).with_name("lay.py")
FORK = Path(__file__).with_name("fork.py")
LIBRARY = "/usr/local/lib/matrix"
RUN = "/run/matrix"
SECRET = f"{RUN}/canary"
CANARY = "PZB-MATRIX-CANARY-5d1e7c02"
_PLACE = {"send": "/usr/local/sbin/zfs", "receive": "/usr/local/bin/zfs"}
_WRAPPER = """#!/bin/sh
[ "$1" = {verb} ] || exec /usr/sbin/zfs "$@"
case "$2" in -n*|-A) exec /usr/sbin/zfs "$@" ;; esac
exec python3 -IS {library}/lay.py '{mode}' '{argument}' '{once}' "$@"
"""
_SERVE = r"""
stamp="$(stat -c %Z /usr/lib/python3/dist-packages/pve_zfsbackup/cli) $(cksum < "$1")"  # when it was installed
[ "$(cat /run/matrix/fork.stamp 2> /dev/null)" != "$stamp" ] || ! systemctl -q is-active matrix-fork || exit 0
systemctl stop matrix-fork 2> /dev/null || :
rm -f /run/matrix/fork.sock
systemd-run -q --collect --unit matrix-fork python3 "$1" serve
for i in $(seq 300); do [ -S /run/matrix/fork.sock ] && break; sleep 0.2; done
[ -S /run/matrix/fork.sock ] || { systemctl status matrix-fork >&2; exit 1; }
echo "$stamp" > /run/matrix/fork.stamp
"""
_LINK = ("OUTPUT -o eth1", "INPUT -i eth1")


def prepare(host: Host) -> None:
    """Once per boot of a host."""
    host.script('mkdir -p "$1"; install -d -m 1777 "$2"; systemctl -q disable --now cron || :', LIBRARY, RUN)
    host.put(LAY, f"{LIBRARY}/lay.py")
    host.run(("chmod", "755", LIBRARY, f"{LIBRARY}/lay.py"))
    host.write(SECRET, CANARY, mode=0o600)
    if host.name == "pve1":
        serve(host)


def serve(host: Host) -> None:
    """Load the product of a host, so that its runs are forks (fork.py)."""
    host.put(FORK, f"{LIBRARY}/fork.py")
    host.script(_SERVE, f"{LIBRARY}/fork.py")


def lay(host: Host, verb: str, mode: str, argument: object = "", *, once: bool = False) -> None:
    """Put a layer over `zfs send` or `zfs receive` of a host (lay.py has the modes)."""
    host.script('rm -f "$1/reached" "$1/go" "$1/used"', RUN)
    text = _WRAPPER.format(verb=verb, library=LIBRARY, mode=mode, argument=argument, once=int(once))
    host.write(_PLACE[verb], text, mode=0o755)


def unlay(*hosts: Host) -> None:
    for host in hosts:
        host.run(("rm", "-f", *_PLACE.values(), f"{RUN}/reached", f"{RUN}/go", f"{RUN}/used"))


_BEFORE = """#!/bin/sh
if [ "$1" = snapshot ] && mkdir {run}/before-snapshot 2> /dev/null; then
{text}
fi
exec /usr/sbin/zfs "$@"
"""


@contextmanager
def before_snapshot(host: Host, text: str) -> Iterator[None]:
    """Run lines of sh once when the product is about to make a snapshot: a guest that it froze is frozen then."""
    host.script('rm -rf "$1/before-snapshot"', RUN)
    host.write(_PLACE["send"], _BEFORE.format(run=RUN, text=text), mode=0o755)
    try:
        yield
    finally:
        host.run(("rm", "-rf", _PLACE["send"], f"{RUN}/before-snapshot"))


_HALTED = """#!/bin/sh
if [ "$1" = {verb} ] && (set -C; : > {run}/used) 2> /dev/null; then
  touch {run}/reached
  for i in $(seq 1200); do [ -e {run}/go ] && break; sleep 0.1; done
  echo 'matrix: refused' >&2
  exit 1
fi
exec /usr/sbin/zfs "$@"
"""


@contextmanager
def halted(host: Host, verb: str) -> Iterator[None]:
    """The first `zfs <verb>` on a target stands at a gate, and is refused behind it: nothing more of its session is
    done. Those beside it go on."""
    host.script('rm -f "$1/reached" "$1/go" "$1/used"', RUN)
    host.write(_PLACE["receive"], _HALTED.format(run=RUN, verb=verb), mode=0o755)
    try:
        yield
    finally:
        go(host)
        host.wait_for(("sh", "-c", '! pgrep -f "^/bin/sh $1 $2( |$)" > /dev/null', "sh", _PLACE["receive"], verb))
        unlay(host)


def reached(host: Host, *, timeout: float = 120) -> None:
    """Wait until a stream stands at its gate."""
    host.wait_for(("test", "-e", f"{RUN}/reached"), timeout=timeout)


def go(host: Host) -> None:
    """Open the gate."""
    host.run(("touch", f"{RUN}/go"))


# -- Proxmox and its guests -------------------------------------------------------------------------------------


@contextmanager
def agent(host: Host, vmid: int, mode: str) -> Iterator[None]:
    """A running guest's agent is in a mode (set_agent has them), and well again afterwards."""
    set_agent(host, vmid, mode)
    try:
        yield
    finally:
        set_agent(host, vmid, "ok")


@contextmanager
def migrating(host: Host, vmid: int) -> Iterator[None]:
    """Proxmox's lock of a guest that moves is somebody's."""
    unit = f"matrix-migrate-{vmid}"
    host.script(
        'mkdir -p /var/lock/pve-manager; systemd-run -q --collect --unit "$1" flock "$2" sleep 600\n'
        'for i in $(seq 100); do flock -n "$2" true || exit 0; sleep 0.1; done; exit 1',
        unit, f"/var/lock/pve-manager/pve-migrate-{vmid}",
    )  # fmt: skip
    try:
        yield
    finally:
        host.run(("systemctl", "stop", unit))


@contextmanager
def no_quorum(host: Host) -> Iterator[Callable[[], list[str]]]:
    """/etc/pve as pmxcfs shows it without quorum (pve/pmxcfs.py). Yields what tells the changes that were refused."""
    log = f"{RUN}/pmxcfs.log"
    host.script(
        'modprobe fuse; : > "$2"; systemd-run -q --collect --unit matrix-quorum python3 -IS "$1" /etc/pve "$2"\n'
        "for i in $(seq 100); do grep -q '^pmxcfs /etc/pve ' /proc/mounts && exit 0; sleep 0.1; done\n"
        "systemctl status matrix-quorum >&2; exit 1",
        f"{TARGET}/pmxcfs.py", log,
    )  # fmt: skip
    try:
        yield lambda: host.read(log).splitlines()
    finally:
        host.run(("systemctl", "stop", "matrix-quorum"))
        host.wait_for(("sh", "-c", "! grep -q '^pmxcfs /etc/pve ' /proc/mounts"))


# -- the link between the hosts -------------------------------------------------------------------------------


@contextmanager
def blackhole(host: Host) -> Iterator[None]:
    """Nothing passes the link, nobody is told. The way by which the lab reaches the host is another one."""
    for rule in _LINK:
        host.run(("iptables", "-w", "-I", *rule.split(), "-j", "DROP"))
    try:
        yield
    finally:
        for rule in _LINK:
            host.run(("iptables", "-w", "-D", *rule.split(), "-j", "DROP"))


@contextmanager
def loss(host: Host, percent: int) -> Iterator[None]:
    """So much of what the host sends over the link is lost."""
    host.run(("tc", "qdisc", "add", "dev", "eth1", "root", "netem", "loss", f"{percent}%"))
    try:
        yield
    finally:
        host.run(("tc", "qdisc", "del", "dev", "eth1", "root"))


def reset(host: Host, peer: Host, *, port: str = "dport") -> int:
    """Reset all ssh connections to a peer (`sport`: those it has to us); how many there were."""
    done = host.run(("ss", "-K", "-t", "-n", "-H", "dst", peer.address, port, "=", ":22"))
    return len(done.lines)


# -- pools in files -------------------------------------------------------------------------------------------

_POOL = r"""
name=$1; mib=$2; shift 2
modprobe loop; modprobe dm-mod
truncate -s "${mib}M" "/var/tmp/$name.img"
device=$(losetup -f --show "/var/tmp/$name.img")
echo "0 $(blockdev --getsz "$device") linear $device 0" > "/run/matrix/$name.table"
dmsetup create "$name" "/run/matrix/$name.table"
for i in $(seq 100); do [ -b "/dev/mapper/$name" ] && break; sleep 0.1; done
zpool create -f -o ashift=12 -O compression=on -O atime=off "$@" "$name" "/dev/mapper/$name"
"""
_DROP = r"""
zpool destroy -f "$1"
for i in $(seq 50); do dmsetup remove "$1" && break; sleep 0.2; done
losetup -j "/var/tmp/$1.img" | cut -d: -f1 | xargs -r losetup -d
rm -f "/var/tmp/$1.img" "/run/matrix/$1.table"
"""
_TABLE = r"""
dmsetup suspend --noflush --nolockfs "$1"
dmsetup load "$1" "$2"
dmsetup resume "$1"
"""


@contextmanager
def pool(host: Host, name: str, mib: int, *options: str) -> Iterator[str]:
    """A pool of its own on a host, in a file, with a device in between that can fail."""
    host.script(_POOL, name, str(mib), *options)
    try:
        yield name
    finally:
        host.script(_DROP, name)


def fail_device(host: Host, name: str) -> None:
    """From now on every access to the pool's device is an error: the pool suspends at its next write."""
    host.script(
        'sed "s/linear.*/error/" "/run/matrix/$1.table" > "/run/matrix/$1.error"\n' + _TABLE,
        name, f"/run/matrix/{name}.error",
    )  # fmt: skip


def mend_device(host: Host, name: str) -> None:
    """The device works again, and the pool goes on."""
    host.script(_TABLE + 'zpool clear "$1"', name, f"/run/matrix/{name}.table")


def wait_state(host: Host, name: str, wanted: str, *, timeout: float = 60) -> None:
    """Wait for a pool's state (ONLINE, DEGRADED, SUSPENDED)."""
    host.wait_for(("grep", "-qx", wanted, f"/proc/spl/kstat/zfs/{name}/state"), timeout=timeout)


def poll(what: str, question: Callable[[], object], *, timeout: float) -> None:
    """Ask until the answer is yes. LabError names what never came true."""
    deadline = time.monotonic() + timeout
    while not question():
        if time.monotonic() > deadline:
            raise LabError(f"never came true within {timeout:g} s: {what}")
        time.sleep(0.2)
