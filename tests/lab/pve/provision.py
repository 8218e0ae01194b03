"""Make hosts of the lab Proxmox VE nodes, and what tests do to their guests.

    provision(lab)                        pve1 with the lab's guests; repeatable
    make_node(host, {"data": "tank/d"})   another host, without guests; unmake_node() takes it back
    guest_write(host, 100, "note", b"x")  a file in a running guest, synced
    freeze_state(host, 100)               what the agent says and what the writers really do
    set_agent(host, 100, "hang")          ok, hang, dead, refuse; set_slow_freeze() for the 596 case
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.host import Host
    from tests.lab.lab import Lab

HERE = Path(__file__).resolve().parent
TARGET = "/opt/pvesim/pve"
RUNNING = (100, 101, 104, 106)
"""VMs that run from the start; container 200 counts as running, too."""

_SERVER = """[Unit]
Description=Simulated Proxmox VE node
After=network.target lab-pools.service

[Service]
Environment=PYTHONPATH=/opt/pvesim
ExecStartPre=-/usr/sbin/zfs load-key -a
ExecStartPre=-/bin/rm -f /run/pvesim/cli.sock
ExecStart=/opt/fakepve/bin/python -m pve.server --node {name} --address {address}
Restart=no

[Install]
WantedBy=multi-user.target
"""
_GUEST = """[Unit]
Description=Running VM %i of the lab
After=pvesim.service lab-pools.service

[Service]
ExecStart=/usr/bin/python3 -IS {target}/guestd.py %i
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
TimeoutStopSec=60

[Install]
WantedBy=multi-user.target
"""
_INSTALL = r"""
for name in pvesh qm pct; do install -m 755 "$1/thin.py" "/usr/bin/$name"; done
for name in info freeze unfreeze; do install -m 755 "$1/lxc.sh" "/usr/bin/lxc-$name"; done
mkdir -p /etc/pve /run/lxc
systemctl daemon-reload
"""
_GUESTS = r"""
echo 'd /run/lxc 0755
f /run/lxc/200.running' > /etc/tmpfiles.d/pvesim.conf
python3 -I "$1/make_guests.py"
"""
_STORAGES = r"""
for dataset; do zfs list "$dataset" > /dev/null 2>&1 || zfs create "$dataset"; done
echo 'd /run/lxc 0755' > /etc/tmpfiles.d/pvesim.conf
"""
_STORAGE = """zfspool: {name}
\tpool {dataset}
\tcontent images,rootdir
\tmountpoint /{dataset}
\tsparse 1

"""
_SERVE = r"""
systemctl -q enable pvesim "$@"
systemctl restart pvesim
[ $# = 0 ] || systemctl start "$@"
"""
_UNMAKE = r"""
for unit in $(systemctl list-units --plain --no-legend 'pve-guest@*' | cut -d' ' -f1); do systemctl stop "$unit"; done
systemctl -q disable --now pvesim 2> /dev/null || :
rm -f /etc/systemd/system/pvesim.service /etc/systemd/system/pve-guest@.service /etc/tmpfiles.d/pvesim.conf
rm -rf "$(dirname "$1")" /etc/pve /run/lxc /run/pvesim /run/qemu-server /usr/bin/pvesh /usr/bin/qm /usr/bin/pct
rm -f /usr/bin/lxc-info /usr/bin/lxc-freeze /usr/bin/lxc-unfreeze
systemctl daemon-reload
"""
_READY = """
for i in $(seq 600); do
  missing=; [ -S /run/pvesim/cli.sock ] && systemctl -q is-active pvesim || missing=pvesim
  for v; do [ -e "/run/qemu-server/$v.pid" ] || missing="$missing pve-guest@$v"; done
  [ -z "$missing" ] && exit 0
  systemctl -q is-failed $missing && break
  sleep 0.2
done
systemctl --no-pager status $missing >&2
exit 1
"""


def provision(lab: Lab) -> None:
    """Make pve1 a node with the lab's guests, and start them. Repeating it updates code and keeps all guests."""
    _install(lab.pve1)
    lab.pve1.script(_GUESTS, TARGET)
    _serve(lab.pve1, RUNNING)


def make_node(host: Host, storages: Mapping[str, str]) -> None:
    """Make a host a node without guests, whose storages (name: ZFS dataset, made if it is missing) are these."""
    _install(host)
    host.script(_STORAGES, *storages.values())
    sections = (_STORAGE.format(name=name, dataset=dataset) for name, dataset in storages.items())
    host.write("/etc/pve/storage.cfg", "".join(sections), mode=0o640)
    _serve(host, ())


def unmake_node(host: Host) -> None:
    """Stop the node and its guests and take its files away; the datasets stay. Harmless where there is no node."""
    host.script(_UNMAKE, TARGET)


def _install(host: Host) -> None:
    host.run(("mkdir", "-p", TARGET))
    host.put(HERE, str(Path(TARGET).parent))
    host.write("/etc/systemd/system/pvesim.service", _SERVER.format(name=host.name, address=host.address))
    host.write("/etc/systemd/system/pve-guest@.service", _GUEST.format(target=TARGET))
    host.script(_INSTALL, TARGET)


def _serve(host: Host, vmids: tuple[int, ...]) -> None:
    host.script(_SERVE, *(f"pve-guest@{vmid}" for vmid in vmids))
    wait_ready(host, vmids)


def wait_ready(host: Host, vmids: tuple[int, ...] = RUNNING) -> None:
    """Wait until the API answers and the given VMs run (also after a reboot)."""
    host.run(("sh", "-c", _READY, "sh", *(str(v) for v in vmids)))


# -- guests ---------------------------------------------------------------------------------------------------


def guest_root(host: Host, vmid: int, disk: str = "scsi0") -> str:
    """Path on the host under which the file system of a running VM's disk can be reached."""
    return f"/proc/{host.read(f'/run/qemu-server/{vmid}.pid').strip()}/root/guest/{disk}"


def guest_write(host: Host, vmid: int, path: str, content: bytes, *, disk: str = "scsi0") -> None:
    """Write a file in a running VM and sync it. `path` is relative to the disk's file system."""
    text = 'mkdir -p "$(dirname "$1")"; cat > "$1"; sync "$1"'
    host.run(("sh", "-euc", text, "sh", f"{guest_root(host, vmid, disk)}/{path}"), input=content)


def guest_read(host: Host, vmid: int, path: str, *, disk: str = "scsi0") -> str:
    """Content of a text file in a running VM."""
    return host.read(f"{guest_root(host, vmid, disk)}/{path}")


def stop_guest(host: Host, vmid: int) -> None:
    """Switch a VM off; its disks are free afterwards."""
    host.run(("systemctl", "stop", f"pve-guest@{vmid}"))


def start_guest(host: Host, vmid: int) -> None:
    """Switch a VM on and wait until it runs."""
    host.run(("systemctl", "start", f"pve-guest@{vmid}"))
    wait_ready(host, (vmid,))


def start_container(host: Host, vmid: int, places: Mapping[str, str]) -> None:
    """Have processes run in a container that stands still when it is frozen: a writer per directory, by name."""
    words = [f"{name}={directory}" for name, directory in places.items()]
    unit = ("systemd-run", "--quiet", "--collect", f"--unit=pve-container@{vmid}")
    host.run((*unit, "python3", "-IS", f"{TARGET}/ctd.py", str(vmid), *words))
    host.wait_for(("sh", "-ec", 'for name; do test -s "/run/pvesim/$name.progress"; done', "sh",
                   *(f"{vmid}-{name}" for name in places)))  # fmt: skip


def stop_container(host: Host, vmid: int, places: Mapping[str, str]) -> None:
    """End them, thawed."""
    host.run(("lxc-unfreeze", "-n", str(vmid)), check=False)
    host.run(("systemctl", "stop", f"pve-container@{vmid}"))
    host.run(("rm", "-f", *(f"/run/pvesim/{vmid}-{name}.progress" for name in places)))


@dataclass(frozen=True, kw_only=True)
class FreezeState:
    """`agent`: frozen, thawed or the error text. `blocked`: whether no writer of the VM got a sync done meanwhile."""

    agent: str
    blocked: bool


def progress(host: Host, vmid: int) -> int:
    """How many rounds the VM's writers have synced so far."""
    return sum(int(line) for line in host.run(("sh", "-c", f"cat /run/pvesim/{vmid}-*.progress")).lines)


def freeze_state(host: Host, vmid: int, *, seconds: float = 5.0) -> FreezeState:
    """Look at the agent's word and, for some seconds, at the writers' deeds."""
    answer = host.run(("qm", "guest", "cmd", str(vmid), "fsfreeze-status"), check=False)
    before = progress(host, vmid)
    deadline = time.monotonic() + seconds
    after = before
    while after == before and time.monotonic() < deadline:
        after = progress(host, vmid)
    return FreezeState(agent=(answer.stdout or answer.stderr).strip(), blocked=after == before)


def thaw(host: Host, vmid: int) -> None:
    """Thaw a VM whatever state its agent is in (cleaning up after a test)."""
    set_agent(host, vmid, "ok")
    host.run(("qm", "guest", "cmd", str(vmid), "fsfreeze-thaw"))


def set_agent(host: Host, vmid: int, mode: str) -> None:
    """ok; hang (SIGSTOP: connects but never answers); dead (no process); refuse (freeze is disabled)."""
    host.write(f"/run/pvesim/{vmid}.agent", mode + "\n")
    host.run(("systemctl", "reload", f"pve-guest@{vmid}"))
    ready = {"hang": 'grep -q "State:.T" /proc/$p/status', "dead": "test -z $p"}.get(mode, "test -S $2 && test -n $p")
    text = f'for i in $(seq 100); do p=$(pgrep -f "qemu-ga .*$2 " || :); {ready} && exit 0; sleep 0.1; done; exit 1'
    host.run(("sh", "-c", text, "sh", str(vmid), f"/run/qemu-server/{vmid}.qga"))


def set_slow_freeze(host: Host, vmid: int, seconds: int) -> None:
    """Let each freeze of the VM take so long (by qemu-ga's hook); 0 for a normal one."""
    host.write(f"/run/pvesim/{vmid}.slow", f"{seconds}\n" if seconds else "")


def set_lock(host: Host, vmid: int, lock: str | None, *, kind: str = "qemu") -> None:
    """Give a guest a configuration lock such as backup or migrate, or take it away."""
    path = f"/etc/pve/{'qemu-server' if kind == 'qemu' else 'lxc'}/{vmid}.conf"
    head, sep, tail = host.read(path).partition("\n\n[")
    lines = [line for line in head.rstrip("\n").split("\n") if not line.startswith("lock: ")]
    lines += [f"lock: {lock}"] if lock else []
    host.write(path, "\n".join(lines) + ("\n\n[" + tail if sep else "\n"), mode=0o640)


def recreate_disk(host: Host, vmid: int, dataset: str, mib: int) -> None:
    """Destroy a disk of a VM with all its snapshots and make a new, empty-looking one of the same name."""
    running = host.run(("systemctl", "is-active", f"pve-guest@{vmid}"), check=False).stdout.strip() == "active"
    if running:
        stop_guest(host, vmid)
    host.script(
        'zfs destroy -r "$1"; zfs create -s -V "$2" "$1"\n'
        'for i in $(seq 300); do [ -e "/dev/zvol/$1" ] && break; sleep 0.1; done\n'
        'mkfs.ext4 -q -E nodiscard "/dev/zvol/$1"',
        dataset, f"{mib * 1024}k",
    )
    if running:
        start_guest(host, vmid)


def pvesh(host: Host, *argv: str) -> object:
    """Run `pvesh` with JSON output; None when it printed nothing."""
    out = host.run(("pvesh", *argv, "--output-format", "json")).stdout
    return json.loads(out) if out else None
