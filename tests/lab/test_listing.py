"""On real OpenZFS: what several programs list beside each other is what one lists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.host import Host
from tests.lab.product import Product

PARENT = "rpool/many"
_MAKE = r"""
zfs create "$1"
for number in $(seq 30); do
  zfs create -s -V 8M "$1/vm-$number-disk-0"
  zfs create "$1/subvol-$number-disk-0"
  set -- "$@" "$1/subvol-$number-disk-0@a" "$1/vm-$number-disk-0@a"
done
zfs create "$1/subvol-1-disk-0/deeper"
parent=$1; shift
zfs snapshot "$parent@a" "$parent/subvol-1-disk-0/deeper@a" "$@"
zfs hold kept "$parent/vm-1-disk-0@a"
zfs clone "$parent/vm-2-disk-0@a" "$parent/vm-99-disk-0"
for name in "$parent" "$parent/vm-1-disk-0" "$parent/subvol-1-disk-0"; do zfs bookmark "$name@a" "$name#m"; done
zpool sync "${parent%%/*}"
"""
_LIST = r"""
import sys
from dataclasses import replace
from pve_zfsbackup.host import listing
from pve_zfsbackup.host.health import KSTAT, opened
from pve_zfsbackup.host.runner import ProcessRunner
from pve_zfsbackup.host.ssh import Host

def still(found):
    # Without what the guests of the node change meanwhile, on datasets of their own as well.
    return {name: replace(volume, used=0, available=0, refer=0, written=0) for name, volume in found.volumes.items()}

class Counted(ProcessRunner):
    count = 0
    def run(self, *arguments, **options):
        Counted.count += 1
        return super().run(*arguments, **options)

host = Host(name="source", runner=Counted())
for roots in ([sys.argv[1]], ["rpool", sys.argv[1], sys.argv[1] + "/subvol-1-disk-0", "rpool/none"]):
    one = listing.list_host(host, roots, depth=listing.DISK_DEPTH, columns=listing.SOURCE_COLUMNS)
    Counted.count = 0
    many = listing.list_source(host, roots)
    assert Counted.count > 5, Counted.count
    told = [(a, b) for a, b in zip(still(one).items(), still(many).items()) if a != b]
    assert (still(many), many.roots) == (still(one), one.roots), told[:3]
    assert sum(len(volume.snapshots) for volume in many.volumes.values()) > 60
    assert opened(roots, KSTAT) >= 60
"""


@pytest.fixture
def many(product: Product) -> Iterator[Host]:
    product.pve1.script(_MAKE, PARENT, timeout=300)
    yield product.pve1
    product.pve1.script('zfs release kept "$1/vm-1-disk-0@a"; zfs destroy -R "$1"', PARENT, timeout=300)


def test_many_disks_are_listed_as_one_program_lists_them(many: Host) -> None:
    many.run(("python3", "-I", "-", PARENT), input=_LIST, timeout=300)
