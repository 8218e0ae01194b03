"""`make demo`: the whole way on real ZFS, as an administrator walks it, ending with a restored disk that is compared.

Boots the lab, installs the package on pve1, runs setup, discover, run, changes the guests, runs again, lists, and
restores one disk from the replica on backup1. Exit status 0 and `demo: ok` only if the restored bytes are the same.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import product as installed_product
from tests.lab import setup
from tests.lab.host import Result
from tests.lab.lab import TREE, Lab, LabError
from tests.lab.product import Product, hashes
from tests.lab.pve.provision import guest_write, progress

DISK = "local-zfs:vm-100-disk-0"
RESTORED = "rpool/restored-vm-100-disk-0"


def main() -> int:
    """Returns the exit status."""
    started = time.monotonic()
    deb = next(iter(sorted((TREE / "build" / "deb").glob("pve-zfsbackup_*.deb"))), None)
    if deb is None:
        print("demo: no package in build/deb: run `make demo`, which builds it", file=sys.stderr)
        return 2
    try:
        with Lab() as lab:
            say("the simulated Proxmox VE node: API, guests with real disks, real guest agents")
            lab.provision()
            rows = _walk(lab, deb)
    except LabError as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name.ljust(width)}  {value}")
    print(f"\ndemo: ok ({time.monotonic() - started:.0f} s)")
    return 0


def _walk(lab: Lab, deb: Path) -> list[tuple[str, str]]:
    say(f"install {deb.name} on pve1")
    lab.pve1.put(deb, f"/root/{deb.name}")
    lab.pve1.run(("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "-i", f"/root/{deb.name}"), timeout=600)
    say("pve-zfsbackup setup; then by hand: the account on backup1, its host key, a target and a job in config.yaml")
    product = installed_product.connect(lab)
    show(product, "setup")
    show(product, "discover")
    show(product, "run", "-v")
    say("the guests write on")
    before = progress(lab.pve1, 100)
    guest_write(lab.pve1, 100, "demo/data", os.urandom(4 << 20))
    while progress(lab.pve1, 100) == before:  # the writers inside the guest
        pass
    second = product.json("run")
    show(product, "list")
    show(product, "status")
    return [*_restore(product), ("sent by the second run", f"{_sent(second) / 2**20:.1f} MiB")]


def _restore(product: Product) -> list[tuple[str, str]]:
    """One zvol back from the replica, and compared with the snapshot it came from."""
    here, there = product.points(100)[-1], product.points(100, "backup1")[-1]
    source = next(disk["snapshot"] for disk in here["disks"] if disk["volid"] == DISK)
    replica = next(disk["snapshot"] for disk in there["disks"] if disk["volid"] == DISK)
    say(f"restore {replica} from backup1 to {RESTORED} on pve1")
    pull = f"ssh -o BatchMode=yes root@backup1 {shlex.quote(shlex.join(['zfs', 'send', '-L', '-c', replica]))}"
    setup.trust(product.pve1, product.backup1)  # an administrator's own way: the backup account is not for reading
    product.pve1.script(f'{pull} | zfs receive -u -o readonly=on "$1"', RESTORED)
    restored = f"{RESTORED}@{replica.partition('@')[2]}"
    found = hashes(product.pve1, [source, restored], "sha256sum")
    if found[source] != found[restored]:
        raise LabError(f"the restored disk differs: {found}")
    return [
        ("point", here["point"]),
        ("consistency", here["consistency"]),
        ("sha256 of the source", found[source][:32] + "…"),
        ("sha256 of the restored", found[restored][:32] + "… equal"),
    ]


def show(product: Product, *arguments: str) -> Result:
    """Type a command and show what it prints."""
    say(f"pve-zfsbackup {shlex.join(arguments)}")
    result = product.run(*arguments)
    print(result.stdout + result.stderr, flush=True)
    return result


def say(text: str) -> None:
    print(f"\n=== {time.strftime('%H:%M:%S')} {text}", flush=True)


def _sent(report: dict[str, list[dict[str, int]]]) -> int:
    return sum(result["bytes"] for result in report["results"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.SubprocessError as error:
        sys.exit(f"demo: failed: {error}")
