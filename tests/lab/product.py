"""The product in the lab, as an administrator has it: installed, set up, with a target; and ways to look behind it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from tests.lab import setup
from tests.lab.host import Host, Result
from tests.lab.lab import Lab
from tests.lab.matrix import inject

FORKED = ("python3", "-IS", f"{inject.LIBRARY}/fork.py")
ROOT = "tank/pve-zfsbackup"
CONFIG = "/etc/pve-zfsbackup/config.yaml"
CONFIG_TEXT = f"""\
targets:
  backup1:
    host: backup1
    root: {ROOT}
jobs:
  all:
    guests: [all]
    targets: [backup1]
"""
# A plain account, as an administrator makes one by hand (`setup target` has tests of its own).
ACCOUNT = r"""
id pve-zfsbackup > /dev/null 2>&1 || useradd --create-home --shell /bin/sh pve-zfsbackup
install -d -m 700 -o pve-zfsbackup ~pve-zfsbackup/.ssh
echo "restrict $1" > ~pve-zfsbackup/.ssh/authorized_keys
chown pve-zfsbackup ~pve-zfsbackup/.ssh/authorized_keys
zfs list "$2" > /dev/null 2>&1 ||
  zfs create -o readonly=on -o mountpoint=none -o canmount=off -o volmode=none -o snapdir=hidden "$2"
zfs allow pve-zfsbackup \
  create,mount,receive,send,destroy,hold,release,userprop,readonly,mountpoint,canmount,volmode,snapdir "$2"
"""
# Both sides as they were before the first run: nothing of ours on any dataset, an empty root there.
_FORGET_SOURCE = r"""
zfs list -H -o name -t snapshot,bookmark -r rpool fast | grep -e '@pzb:' -e '#pzb' | while read -r name; do
  zfs destroy "$name"
done
rm -rf /var/lib/pve-zfsbackup/* /run/pve-zfsbackup/*
"""
_FORGET_TARGET = r"""
if zfs list "$1" > /dev/null 2>&1; then
  zfs list -H -o name -t snapshot -r "$1" | xargs -r zfs holds -H | cut -f1,2 | while read -r name tag; do
    zfs release "$tag" "$name"
  done
  zfs destroy -r "$1"
fi
"""
# The content of snapshots, by clones that are destroyed again: a zvol's bytes, a file system's files with their owners,
# modes and times.
_HASH = r"""
tool=$1; shift; count=0
for snapshot; do
  # A new name each time: udev may take the last clone's link away when this one's is already there.
  count=$((count + 1)); dataset=${snapshot%@*}; clone=${dataset%/*}/lab-hash-$$-$count
  if [ "$(zfs get -H -o value type "$dataset")" = volume ]; then
    # Setting volmode where there is a device makes it a second time, and the first one's link goes.
    if [ "$(zfs get -H -o value volmode "${dataset%/*}")" = none ]; then
      zfs clone -o volmode=dev "$snapshot" "$clone"
    else
      zfs clone "$snapshot" "$clone"
    fi
    for i in $(seq 600); do [ -b "/dev/zvol/$clone" ] && break; sleep 0.1; done
    udevadm settle
    sum=$($tool "/dev/zvol/$clone")
  else
    zfs clone -o mountpoint=/mnt/lab-hash -o canmount=on "$snapshot" "$clone"
    sum=$(tar --sort=name --numeric-owner --xattrs --acls -C /mnt/lab-hash -cf - . | $tool)
  fi
  for i in $(seq 100); do zfs destroy "$clone" 2> /dev/null && break; sleep 0.2; done
  if zfs list "$clone" > /dev/null 2>&1; then exit 1; fi
  echo "${sum%% *} $snapshot"
done
"""

# killer.walk with the module of a command loaded once, and not in each attempt.
_WALK = """
import importlib, sys
sys.path.insert(0, "/root")
import killer
importlib.import_module(f"pve_zfsbackup.cli.{sys.argv[1]}")
killer.walk(sys.argv[4:], int(sys.argv[2]), int(sys.argv[3]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """pve-zfsbackup on pve1, replicating to backup1."""

    lab: Lab
    program: tuple[str, ...] = ("pve-zfsbackup",)

    @property
    def pve1(self) -> Host:
        return self.lab.pve1

    @property
    def backup1(self) -> Host:
        return self.lab.backup1

    def run(self, *arguments: str, check: bool = True, timeout: float = 900) -> Result:
        """`pve-zfsbackup …` on pve1."""
        return self.pve1.run((*self.program, *arguments), check=check, timeout=timeout)

    def json(self, *arguments: str, check: bool = True) -> Any:
        return json.loads(self.run(*arguments, "--json", check=check).stdout)

    def points(self, vmid: int, host: str = "source") -> list[dict[str, Any]]:
        """Complete points of a guest on one host, oldest first."""
        found = self.json("list", str(vmid), "--where", host)["points"]
        return [point for point in found if point["complete"]]

    def newest(self) -> dict[tuple[int, str], dict[str, Any]]:
        """The newest complete point of every guest by vmid and host, in one command: each takes seconds here."""
        found = self.json("list")["points"]
        return {(point["vmid"], point["host"]): point for point in found if point["complete"]}

    def configure(self, text: str = CONFIG_TEXT, path: str = CONFIG) -> None:
        self.pve1.write(path, text, mode=0o600)


def connect(lab: Lab) -> Product:
    """Run `setup`, then do by hand what it asks for: the account on the target, the host key, target and job."""
    product = Product(lab=lab)
    lab.pve1.run(("systemctl", "stop", "cron"))  # the package's own hourly run would come in between
    product.run("setup")
    restore(product)
    return product


def quick(product: Product) -> Product:
    """The same, but each run is a fork of the program (matrix/fork.py): loading it takes seconds here."""
    inject.prepare(product.pve1)
    return replace(product, program=FORKED)


def forget(product: Product) -> None:
    """Set both sides back to before the first run, whatever the tests before left: modules share the hosts."""
    product.pve1.script(_FORGET_SOURCE, timeout=900)
    forget_root(product.backup1, ROOT)
    restore(product)


def forget_root(host: Host, root: str) -> None:
    """Take a root of replicas away, with all that is held there; none is well as well."""
    host.script(_FORGET_TARGET, root, timeout=900)


def restore(product: Product) -> None:
    """The account on the target, its host key, and the configuration, as they should be."""
    lab = product.lab
    public = lab.pve1.read("/etc/pve-zfsbackup/id_ed25519.pub").strip()
    lab.backup1.script(ACCOUNT, public, ROOT)
    setup.know(lab.pve1, lab.backup1)
    lab.pve1.run(("cp", "/root/.ssh/known_hosts", "/etc/pve-zfsbackup/known_hosts"))
    product.configure()


def walked(host: Host, module: str, *arguments: str, first: int, stride: int) -> tuple[list[dict[str, Any]], Result]:
    """A command (in cli/`module`) killed again and again on a host that has killer.py, until an attempt ends by itself.
    All attempts as killer.walk tells them, and what they said."""
    command = ("python3", "-c", _WALK, module, str(first), str(stride), *arguments)
    done = host.run(command, timeout=1800)
    attempts = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"kill"')]
    assert len(attempts) > 2, done
    return attempts, done


def hashes(host: Host, snapshots: list[str], tool: str = "b2sum") -> dict[str, str]:
    """Hash of the content of each snapshot. BLAKE2 takes the emulated processor half the time of SHA-256."""
    lines = host.script(_HASH, tool, *snapshots, timeout=900).lines
    return {name: digest for digest, name in (line.split(" ", 1) for line in lines)}


def zfs(host: Host, *arguments: str) -> list[list[str]]:
    """Rows of a `zfs … -H` command."""
    return [line.split("\t") for line in host.run(("zfs", *arguments)).lines]
