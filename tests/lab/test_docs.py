"""The documentation's commands on pve1, as a reader types them: line by line, in the order of the pages.

Executed is every block that has a marker (tests/documented.py). What has none needs what this node has not, and is
walked through elsewhere: `setup target` (test_setup_target.py), boxes and `key drill` (test_archive.py), drills and
single files (test_drill.py), restores that ask (test_restore.py), failover (test_failover.py), the receiver by hand
(test_receiver.py); or has words for the reader to fill in (keys.md). What is typed at a terminal until Ctrl-C has its
tests in tests/test_cli.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.documented import Block, blocks
from tests.lab.product import Product, forget

pytestmark = pytest.mark.long

PLACE = "/root/docs"  # where the reader sits
MAIL = f"{PLACE}/mail"
SENDMAIL = f"#!/bin/sh\nexec cat > {MAIL}\n"
DATASET = "rpool/vault"  # of the guide's chapter about encryption
# What is done already, or cannot be here. Each stands in a marked block, for the reader does it.
EXEMPT = {
    "make deb": "the fixture `debs` has made them",
    "apt install ./build/deb/pve-zfsbackup_*.deb": "the fixture `installed` did it by dpkg: the lab has no network",
    "apt install prometheus-node-exporter python3-prometheus-client": "no network; the library is in the image",
    "pve-zfsbackup status 100 --watch": "a terminal, and a person who ends it",
    "systemctl enable --now pve-zfsbackup-receiver.timer": "belongs on the target",
}
# Exit statuses that are answers. Everything else ends with 0.
ANSWERS = {
    "pve-zfsbackup discover --check": {1},  # guest 106 has a disk that is not on ZFS, and nobody decided so
    "pve-zfsbackup check": {1, 2},  # the same is a warning; pools that other tests filled may be worse; never unknown
}
# A sanoid.conf as somebody has who comes from there, and where node exporter's package would put its directory.
_PREPARE = r"""
! zfs list "$2" > /dev/null 2>&1 || zfs destroy "$2"  # of a session that was cut off
rm -rf "/etc/pve-zfsbackup/keys/$2" "$1"; mkdir -p "$1" /etc/sanoid /var/lib/prometheus/node-exporter
rm -f /root/backup.html
[ ! -e /etc/sanoid/sanoid.conf ] || mv /etc/sanoid/sanoid.conf /etc/sanoid/sanoid.conf.before
cat > /etc/sanoid/sanoid.conf <<'CONF'
[rpool/data]
	use_template = production
	recursive = yes
[template_production]
	hourly = 36
	daily = 30
	monthly = 3
	autosnap = yes
	autoprune = yes
CONF
"""
_CLEAN = r"""
systemctl disable --now pve-zfsbackup.timer pve-zfsbackup-prune.timer pve-zfsbackup-verify.timer
rm -rf "$1" /root/backup.html /usr/sbin/sendmail /etc/sanoid/sanoid.conf /var/lib/prometheus/node-exporter
[ ! -e /etc/sanoid/sanoid.conf.before ] || mv /etc/sanoid/sanoid.conf.before /etc/sanoid/sanoid.conf
! zfs list "$2" > /dev/null 2>&1 || zfs destroy "$2"
rm -rf "/etc/pve-zfsbackup/keys/$2"
"""


@pytest.fixture(scope="module")
def reader(product: Product) -> Iterator[Product]:
    """A node with `setup` done and a target configured, before its first point; nothing else was typed yet."""
    forget(product)
    pve1 = product.pve1
    pve1.script(_PREPARE, PLACE, DATASET)
    pve1.write("/usr/sbin/sendmail", SENDMAIL, mode=0o755)
    try:
        yield product
    finally:
        pve1.script(_CLEAN, PLACE, DATASET)
        forget(product)


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.where)
def test_a_block_does_what_it_says(reader: Product, block: Block) -> None:
    assert block.host == "pve1"
    for line in block.lines:
        command, _, _ = line.partition("  #")
        if command.strip() in EXEMPT:
            continue
        done = reader.pve1.run(("sh", "-c", f"cd {PLACE} && {line}"), check=False, timeout=1800)
        told = f"{block.where}: {line}: status {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode in ANSWERS.get(command.strip(), {0}), told
        assert "Traceback" not in done.stderr, told


def test_what_was_typed_left_what_it_promised(reader: Product) -> None:
    """After all blocks: points here and there, a report, metrics, mail, a translated configuration, timers."""
    newest = reader.newest()
    assert {host for vmid, host in newest if vmid == 100} == {"source", "backup1"}
    host = reader.pve1
    assert "<html" in host.read("/root/backup.html")
    assert "pve_zfsbackup_up 1.0" in host.read("/var/lib/prometheus/node-exporter/pve-zfsbackup.prom")
    assert "Subject: " in host.read(MAIL)
    assert "keep-hourly: 36" in host.read(f"{PLACE}/config.yaml")
    assert host.run(("zfs", "get", "-H", "-o", "value", "encryption", DATASET)).stdout.strip() == "aes-256-gcm"
    for unit in ("pve-zfsbackup", "pve-zfsbackup-prune", "pve-zfsbackup-verify"):
        assert host.run(("systemctl", "is-active", f"{unit}.timer")).stdout.strip() == "active"
        assert host.run(("systemctl", "show", "-P", "LoadState", f"{unit}.service")).stdout.strip() == "loaded"
