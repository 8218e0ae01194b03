"""The documentation's commands, as a reader types them: line by line, in the order of the pages.

Executed is every block that has a marker, and the examples of the man pages (tests/documented.py, which also names
where the others are executed). It begins with a node without a configuration and a target that has only its pool. The
node's program is a fork of one that is loaded (matrix/fork.py), but for what needs a terminal.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator

import pytest

from tests.documented import ELSEWHERE, LAST, NOT_SEEN, Block, bare, blocks, filled, typed_examples
from tests.lab import setup
from tests.lab.conftest import DEBS
from tests.lab.host import Host, Result
from tests.lab.product import CONFIG, ROOT, Product, forget, forget_root, quick, restore

pytestmark = pytest.mark.long

PLACE = "/root/docs"  # where the reader sits on the node
SITS = {"pve1": PLACE, "backup1": "/root"}
MAIL = f"{PLACE}/mail"
SENDMAIL = f"#!/bin/sh\nexec cat > {MAIL}\n"
DISK = "rpool/data/vm-100-disk-0"
DATASET = "rpool/vault"  # of the guide's chapter about encryption
RESTORED = "rpool/back"  # of the chapters about boxes
SAFE = "/media/safe"
ACCOUNT = "pve-zfsbackup"
COPY = 9100
BUSY = 4  # exit status: another run is at work
PATIENCE = 60  # times it is typed again
WATCHED = 30  # seconds until Ctrl-C
# As somebody has it who read both chapters, and the names in the man pages' examples.
CONFIGURED = f"""\
targets:
  backup1:
    host: backup1
    root: {ROOT}
    append-only: true
boxes:
  box1:
    host: backup1
    user: box
    path: uploads/docs
jobs:
  all:
    guests: [all]
    targets: [backup1]
  offsite:
    guests: [100]
    targets: [backup1]
    boxes: [box1]
  web:
    guests: [100]
alerts:
  mail: [root]
"""
# What somebody types or pastes who is asked for it.
FED = {"umask 077; cat > /etc/pve-zfsbackup/ops.url": "https://hooks.example.org/x\n"}
AT_TERMINAL = {"pve-zfsbackup status 100 --watch"}
# Exit statuses that are answers. Everything else ends with 0.
ANSWERS = {
    "pve-zfsbackup discover --check": {1},  # guest 106 has a disk that is not on ZFS, and nobody decided so
    "pve-zfsbackup check": {1, 2},  # the same is a warning; pools that other tests filled may be worse; never unknown
    "pve-zfsbackup check --job web": {0, 1, 2},
    "pve-zfsbackup setup target backup1 --check": {0, 1},
    "pve-zfsbackup verify pools": {0, 1},  # those pools, again
    "pve-zfsbackup verify pools --follow": {0, 1},
    "pve-zfsbackup status 100 --watch": {124},  # timeout(1) is who presses Ctrl-C
    "pve-zfsbackup restore 100 --dry-run": {2},  # it is there
    "pve-zfsbackup restore 100 --node pve2 --dry-run": {2, 3},  # there is no such node
    'pve-zfsbackup rollback 100 --at "2026-11-26 14:00" --dry-run': {2, 3},  # it runs, and has no point so old
}
# A sanoid.conf as somebody has who comes from there, and where node exporter's package would put its directory. Nothing
# that is recommended can be fetched.
_PREPARE = r"""
place=$1 safe=$2; shift 2
# Of a session that was cut off:
for dataset; do ! zfs list "$dataset" > /dev/null 2>&1 || zfs destroy -r "$dataset"; done
rm -rf "/etc/pve-zfsbackup/keys/rpool/vault" "$place" "$safe" /root/backup.html
mkdir -p "$place/build/deb" "$place/bin" /etc/sanoid /var/lib/prometheus/node-exporter /var/lib/vz/snippets
mkdir -m 700 -p "$safe"
zfs create -o mountpoint=none rpool/back
rm -f /etc/pve-zfsbackup/config.yaml /etc/pve-zfsbackup/archive* /etc/pve-zfsbackup/ops.url
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
place=$1 safe=$2; shift 2
systemctl disable --now pve-zfsbackup.timer pve-zfsbackup-prune.timer pve-zfsbackup-verify.timer
rm -rf "$place" "$safe" /root/backup.html /usr/sbin/sendmail /etc/sanoid/sanoid.conf /var/lib/prometheus/node-exporter
rm -f /etc/pve-zfsbackup/archive* /etc/pve-zfsbackup/ops.url /var/lib/vz/snippets/pve-zfsbackup
[ ! -e /etc/sanoid/sanoid.conf.before ] || mv /etc/sanoid/sanoid.conf.before /etc/sanoid/sanoid.conf
for dataset; do ! zfs list "$dataset" > /dev/null 2>&1 || zfs destroy -r "$dataset"; done
rm -rf /etc/pve-zfsbackup/keys/rpool/vault
qm set 100 --delete hookscript || :
"""
_COPY = r"""
systemctl stop "pve-guest@$1" 2> /dev/null || :
rm -f "/etc/pve/qemu-server/$1.conf"
zfs list -H -o name -t volume -r rpool fast | grep "/vm-$1-disk-" | while read -r name; do
  for i in $(seq 50); do zfs destroy -r "$name" 2> /dev/null && break; sleep 0.2; done
done
"""
_APT = """
printf 'APT::Install-Recommends "false";\\nAPT::Get::Assume-Yes "true";\\n' > /etc/apt/apt.conf.d/99lab-docs
"""
# The account and what it was given are gone, as before anybody typed anything; the box is empty.
_NO_ACCOUNT = r"""
account=$1
for i in $(seq 20); do pgrep -u "$account" > /dev/null 2>&1 || break; pkill -u "$account" || :; sleep 0.5; done
userdel "$account" 2> /dev/null || :
rm -rf "/home/$account" /srv/box/uploads/docs
"""
# As `setup target` leaves it, for one more root; no run is under way any more.
_LEAVE = r"""
account=$1 root=$2
for i in $(seq 20); do pgrep -u "$account" > /dev/null 2>&1 || break; pkill -u "$account" || :; sleep 0.5; done
getent passwd "$account" > /dev/null ||
  useradd --system --home-dir "/home/$account" --no-create-home --shell /bin/sh "$account"
install -d -m 755 "/home/$account" "/home/$account/.ssh"
find "/home/$account" -maxdepth 1 -type f -delete
zfs list "$root" > /dev/null 2>&1 || zfs create -p -o mountpoint=none "$root"
zfs allow -u "$account" create,mount,receive,send,userprop "$root"
"""


@pytest.fixture(scope="module")
def reader(product: Product, debs: tuple[object, ...]) -> Iterator[Product]:
    """The packages lie where the pages have them; nothing was typed yet."""
    assert debs
    quickly = quick(product)
    forget(product)
    pve1, backup1 = product.pve1, product.backup1
    pve1.script(_PREPARE, PLACE, SAFE, DATASET, RESTORED)
    pve1.write("/usr/sbin/sendmail", SENDMAIL, mode=0o755)
    pve1.write(f"{PLACE}/bin/pve-zfsbackup", f'#!/bin/sh\nexec {shlex.join(quickly.program)} "$@"\n', mode=0o755)
    for deb in sorted(DEBS.glob("*.deb")):
        pve1.put(deb, f"{PLACE}/build/deb/{deb.name}")
        pve1.put(deb, f"{PLACE}/{deb.name}")
        backup1.put(deb, f"/root/{deb.name}")
    pve1.script(_APT)
    backup1.script(_APT)
    forget_root(backup1, ROOT)
    backup1.script(_NO_ACCOUNT, ACCOUNT)
    setup.trust(pve1, backup1)
    try:
        yield quickly
    finally:
        copy_is_gone(pve1)
        pve1.script(_CLEAN, PLACE, SAFE, DATASET, RESTORED)
        forget_root(backup1, "tank/backups")
        forget_root(backup1, ROOT)
        backup1.script(_NO_ACCOUNT, ACCOUNT)
        backup1.script("systemctl disable --now pve-zfsbackup-receiver.timer; rm -f /etc/pve-zfsbackup-receiver.toml")
        for host in (pve1, backup1):
            host.run(("rm", "-f", "/etc/apt/apt.conf.d/99lab-docs"))
        forget(product)


def given(reader: Product, word: str) -> None:
    """What a marker says is the case (tests/documented.py: WORDS)."""
    pve1, backup1 = reader.pve1, reader.backup1
    configured = pve1.run(("cat", CONFIG), check=False).stdout
    if word == "target" and "\n  backup1:" not in configured:
        restore(reader)  # the block that would have made it was not asked for, or failed
    elif word == "box" and "\n  box1:" not in configured:
        reader.configure(CONFIGURED)
        setup.authorize(backup1, pve1.read("/etc/pve-zfsbackup/id_ed25519.pub").strip(), "box")
    elif word == "leave":
        backup1.script(_LEAVE, ACCOUNT, "tank/backups/pve1")
    elif word == "bare":
        forget_root(backup1, "tank/backups")
        backup1.script(_NO_ACCOUNT, ACCOUNT)


def typed(reader: Product, host: Host, line: str) -> Result:
    """A line as it stands, with what the reader fills in."""
    if filled(line) != line:
        line = filled(line, host_key(reader.backup1))
    before = f"export DEBIAN_FRONTEND=noninteractive; cd {SITS[host.name]}"
    if bare(line) in AT_TERMINAL:
        line = f"script -qec {shlex.quote(f'timeout --foreground -s INT {WATCHED} {bare(line)}')} /dev/null"
    elif host.name == "pve1":
        before += f"; PATH={PLACE}/bin:$PATH"
    command = ("sh", "-c", f"{before}\n{line}")
    for _ in range(PATIENCE):
        done = host.run(command, input=FED.get(bare(line)), check=False, timeout=1800)
        if done.returncode != BUSY:
            break
        time.sleep(10)  # as the hint says: a timer that some page enabled may have begun a run
    return done


def host_key(host: Host) -> str:
    """The fingerprint of its ssh host key, as its provider would say it."""
    return host.run(("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub")).stdout.split()[1]


def at_the_end(block: Block) -> bool:
    return any(word in LAST for word in block.words)


FIRST = (*(block for block in blocks() if not at_the_end(block)), *typed_examples())


@pytest.mark.parametrize("block", FIRST, ids=lambda block: block.where)
def test_a_block_does_what_it_says(reader: Product, block: Block) -> None:
    does_what_it_says(reader, block)


def does_what_it_says(reader: Product, block: Block) -> None:
    host = reader.lab.hosts[block.host]
    for word in block.words:
        given(reader, word)
    for line in block.lines:
        if bare(line) in ELSEWHERE or bare(line) in NOT_SEEN:
            continue
        done = typed(reader, host, line)
        told = f"{block.where}: {line}: status {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode in ANSWERS.get(bare(line), {0}), told
        assert "Traceback" not in done.stdout + done.stderr, told
        if secret := re.search(r"AGE-SECRET-KEY-1\w+", done.stdout):  # shown once; the reader carries it into the safe
            reader.pve1.write(f"{SAFE}/box1.key", f"{secret[0]}\n", mode=0o600)


def test_a_copy_is_made_and_started(reader: Product) -> None:
    copy_is_gone(reader.pve1)
    reader.run("restore", "100", "--as", str(COPY), "--start", "--yes")
    assert reader.pve1.run(("qm", "status", str(COPY))).stdout == "status: running\n"
    copy_is_gone(reader.pve1)


def copy_is_gone(host: Host) -> None:
    host.script(_COPY, str(COPY))


def test_a_guest_is_drilled_with_all_its_data_read(reader: Product) -> None:
    told = reader.run("verify", "drill", "100", "--read", "all", "--budget", "2h", "-v")
    proofs = reader.pve1.run(("zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "pve-zfsbackup:verified", DISK)).lines
    assert any(proof.startswith("files ") for proof in proofs), told


def test_what_was_typed_left_what_it_promised(reader: Product) -> None:
    """Points here, there and in the box, a report, metrics, mail, a translated configuration, timers."""
    newest = reader.newest()
    assert {host for vmid, host in newest if vmid == 100} >= {"source", "backup1"}
    host = reader.pve1
    listing = ("zfs", "list", "-H", "-t", "snapshot", "-o", "guid", "-r")
    here, there = host.run((*listing, DISK)).lines, reader.backup1.run((*listing, ROOT)).lines
    assert set(here) & set(there), "and not by our own listing alone"
    assert reader.backup1.script('find "$1" -name manifest.age | wc -l', "/srv/box/uploads/docs").stdout.strip() != "0"
    assert set(here) & set(host.run((*listing, RESTORED)).lines), "out of the box"
    assert "scsi0: " in host.read(f"{PLACE}/100.conf")
    assert "<html" in host.read("/root/backup.html")
    assert "pve_zfsbackup_up 1.0" in host.read("/var/lib/prometheus/node-exporter/pve-zfsbackup.prom")
    assert "Subject: " in host.read(MAIL)
    assert "keep-hourly: 36" in host.read(f"{PLACE}/config.yaml")
    assert "local:snippets/pve-zfsbackup" in host.read("/etc/pve/qemu-server/100.conf")
    assert host.run(("zfs", "get", "-H", "-o", "value", "encryption", DATASET)).stdout.strip() == "aes-256-gcm"
    for unit in ("pve-zfsbackup", "pve-zfsbackup-prune", "pve-zfsbackup-verify"):
        assert host.run(("systemctl", "is-active", f"{unit}.timer")).stdout.strip() == "active"
        assert host.run(("systemctl", "show", "-P", "LoadState", f"{unit}.service")).stdout.strip() == "loaded"
    timer = "pve-zfsbackup-receiver.timer"
    assert reader.backup1.run(("systemctl", "is-active", timer)).stdout.strip() == "active"


@pytest.mark.parametrize("block", [block for block in blocks() if at_the_end(block)], ids=lambda block: block.where)
def test_the_account_is_taken_away_and_made_by_hand(reader: Product, block: Block) -> None:
    does_what_it_says(reader, block)
    there = reader.backup1.run(("getent", "passwd", ACCOUNT), check=False).returncode == 0
    assert there == ("bare" in block.words)
    if there:
        assert "receive:append" in reader.backup1.run(("zfs", "allow", "tank/backups/pve1")).stdout
