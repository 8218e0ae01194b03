"""How streams travel, on real ZFS over real ssh: a rate holds for what is on the wire, and a buffer is there where runs
saw that it pays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.matrix import guests
from tests.lab.product import CONFIG_TEXT, Product, hashes

pytestmark = pytest.mark.long

VMID = 945
ROOT = "tank/pve-zfsbackup/wire"
CONFIG = "/root/wire/config.yaml"
PLACE = "/root/wire"
_TEXT = """
yes "a line that packs well" | head -c "$2" |
  dd of="/dev/zvol/$1" bs=1M iflag=fullblock conv=notrunc,fsync status=none
"""


@pytest.fixture
def guest(product: Product) -> Iterator[guests.Guest]:
    product.pve1.script('rm -rf "$1"; mkdir -m 700 "$1"', PLACE)
    guests.remove(product.pve1, VMID)
    made = guests.make(product.pve1, VMID, mib=120)
    product.pve1.run(("zfs", "set", "compression=off", made.disk))
    yield made
    guests.remove(product.pve1, VMID)
    product.pve1.script('rm -rf "$1"', PLACE)
    text = 'zfs list -H -o name -t snapshot -r "$1" | xargs -r zfs holds -H | cut -f1,2 | while read -r name tag; do\n'
    product.backup1.script(text + '  zfs release "$tag" "$name"; done; zfs destroy -r "$1"', ROOT)


def replicated(product: Product, guest: guests.Guest, options: str) -> dict[str, Any]:
    """What a run with these options of the target told of the guest's stream; what arrived is what was sent."""
    text = CONFIG_TEXT.replace("root: tank/pve-zfsbackup", f"root: {ROOT}\n{options}").replace("[all]", f"[{VMID}]")
    folders = "".join(f"{name}-dir: {PLACE}/{name}\n" for name in ("state", "journal", "runtime"))
    product.configure(text + folders, CONFIG)
    stages = ("--stage", "snapshot", "--stage", "replicate")
    report = json.loads(product.run("run", *stages, "--config", CONFIG, "--json").stdout)
    (result,) = [result for result in report["results"] if result["stage"] == "replicate"]
    snapshots = product.pve1.run(("zfs", "list", "-Hp", "-d1", "-t", "snapshot", "-o", "name", guest.disk)).lines
    newest = snapshots[-1]
    replica = f"{ROOT}/local-zfs/{newest.rpartition('/')[2]}"
    here, there = (hashes(host, [name]) for host, name in ((product.pve1, newest), (product.backup1, replica)))
    assert here[newest] == there[replica]
    return dict(result)


def test_a_rate_holds_for_what_is_on_the_wire(product: Product, guest: guests.Guest) -> None:
    """24 MiB that pack to nothing need 48 s at 512 KiB a second as they are."""
    product.pve1.script(_TEXT, guest.disk, str(24 << 20))
    packed = replicated(product, guest, "    rate: 512K\n    compress: zstd\n")
    assert packed["bytes"] > 24 << 20
    assert packed["seconds"] < 35
    product.pve1.script(_TEXT.replace("a line", "another one"), guest.disk, str(12 << 20))
    plain = replicated(product, guest, "    rate: 512K\n")
    assert plain["bytes"] > 12 << 20
    assert plain["seconds"] > 23


def test_a_large_stream_has_a_buffer_where_runs_saw_that_it_pays(product: Product, guest: guests.Guest) -> None:
    guests.write(product.pve1, guest.disk, 96)
    now = int(product.pve1.run(("date", "+%s")).stdout)
    product.pve1.write(f"{PLACE}/state/links.json", json.dumps({"backup1": {"gain": 0.5, "gain-at": now}}))
    with product.pve1.executed() as here, product.backup1.executed() as there:
        replicated(product, guest, "")
    assert (here.count("mbuffer"), there.count("mbuffer")) == (1, 0)
    guests.write(product.pve1, guest.disk, 2)
    with product.pve1.executed() as here:
        replicated(product, guest, "")
    assert here.count("mbuffer") == 0, "a small one has none"
