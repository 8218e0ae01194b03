"""The restricted account on real ZFS and a real sshd: what its key can do, what it cannot, and what the target does.

The tests go on from each other. The source's side is played by backup1 itself: a key, a client and datasets of its own.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pve_zfsbackup.host.pools import read_conditions
from tests.lab.conftest import install
from tests.lab.host import Host, Result

ROOT = "tank/backups/pve1"
OTHER = "tank/backups/pve2"
SOURCE = "tank/receiver-source"
ACCOUNT = "pzb-pve1"
DISKS = {"vm-100-disk-0": "100", "subvol-200-disk-0": "200"}
ZVOL = f"{ROOT}/local-zfs/vm-100-disk-0"
SUBVOL = f"{ROOT}/local-zfs/subvol-200-disk-0"
STAMPS = [f"20261123T18000{n}Z-ab1{n}" for n in range(10)]
CREATE = "zfs create -o readonly=on -o mountpoint=none -o canmount=off -o volmode=none -o snapdir=hidden --"
CONFIG = "/etc/pve-zfsbackup-receiver.toml"
STATE = "/var/lib/pve-zfsbackup-receiver"
KEY = "/root/receiver-key"

_ACCOUNT = r"""
account=$1 root=$2 other=$3 source=$4 key=$5
useradd --create-home --shell /bin/sh "$account"
ssh-keygen -q -t ed25519 -N '' -f "$key"
install -d -m 755 -o "$account" "/home/$account/.ssh"
printf 'restrict,command="pve-zfsbackup-receiver --root %s" %s\n' "$root" "$(cat "$key.pub")" \
  > "/home/$account/.ssh/authorized_keys"
printf '127.0.0.1 %s\n' "$(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)" > "$key.known"
for name in "$root" "$other"; do
  zfs create -p -o readonly=on -o mountpoint=none -o canmount=off -o volmode=none -o snapdir=hidden "$name"
done
zfs allow "$account" receive:append "$root" 2> /dev/null && append=yes || zfs allow "$account" receive "$root"
zfs allow "$account" create,mount,send,userprop "$root"
zfs create -o mountpoint=none "$source"
zfs create -V 32M -s -o volmode=dev "$source/vm-100-disk-0"
zfs create -o mountpoint=/mnt/receiver-source "$source/subvol-200-disk-0"
zfs create "$other/secret"
zfs snapshot "$other/secret@kept"
echo "${append:-no}"
"""
# What a test may not change by being denied: every dataset, snapshot and hold of the pool, and all properties.
_STATE = r"""
zfs list -Hp -r -t all -o name,guid,createtxg,userrefs,pve-zfsbackup:point tank
zfs get -Hp -s local,received -o name,property,value,source -r -t filesystem,volume,snapshot all "$1" "$2"
zfs list -H -r -t snapshot -o name tank | xargs -r zfs holds -H | cut -f1,2
"""


@dataclass(frozen=True, slots=True)
class Account:
    """A source that has the key, and the target that it reaches with it."""

    host: Host
    append: bool  # OpenZFS here knows `receive:append`

    @property
    def right(self) -> str:
        return "receive:append" if self.append else "receive"

    def ask(self, line: str, *, stream: str = "", into: str = "", check: bool = True) -> Result:
        """Send a command line; `stream` is a shell command whose output is its stdin, `into` one that takes what it
        writes."""
        client = (
            "ssh -F none -T -o BatchMode=yes -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=none "
            f"-o UserKnownHostsFile={KEY}.known -o IdentitiesOnly=yes -i {KEY} -o LogLevel=ERROR "
            f"-o ControlMaster=auto -o ControlPath={KEY}.control -o ControlPersist=60 {ACCOUNT}@127.0.0.1"
        )
        script = f'{stream or "true"} | {client} "$1"' if stream else f'{client} "$1" < /dev/null'
        script = f"set -o pipefail; {script} | {{ {into}; }}" if into else script
        return self.host.run(("bash", "-c", script, "bash", line), check=check)

    def beyond(self, *argv: str, stream: str = "") -> Result:
        """As the account, but past the forced command: only what ZFS itself allows it is left."""
        return self.host.script(
            f'{stream or "true"} | setpriv --reuid "$0" --regid "$0" --clear-groups -- "$@"'.replace('"$0"', ACCOUNT),
            *argv,
            check=False,
        )

    def state(self) -> str:
        return self.host.script(_STATE, ROOT, OTHER).stdout

    def snapshot(self, number: int) -> None:
        """A new instant on the source, with something new written into both disks."""
        self.host.script(
            'dd if=/dev/urandom of="/dev/zvol/$1/vm-100-disk-0" bs=1M count=1 seek="$3" conv=notrunc status=none\n'
            'head -c 300000 /dev/urandom > "/mnt/receiver-source/$3"\n'
            'zfs snapshot "$1/vm-100-disk-0@pzb:$2" "$1/subvol-200-disk-0@pzb:$2"',
            SOURCE,
            STAMPS[number],
            str(number),
        )

    def send(self, disk: str, number: int, base: int | None = None, flags: str = "") -> str:
        """The shell command that sends one disk."""
        since = "" if base is None else f"-i @pzb:{STAMPS[base]}"
        return f"zfs send -L -c {flags} {since} {SOURCE}/{disk}@pzb:{STAMPS[number]}"

    def replicate(self, number: int, base: int | None = None) -> None:
        """Both disks in one session, then marked: as the product does it."""
        streams = "; ".join(self.send(disk, number, base) for disk in DISKS)
        receives = " && ".join(f"zfs receive -s -u -- {ROOT}/local-zfs/{disk}" for disk in DISKS)
        self.ask(receives, stream=f"{{ {streams}; }}")
        self.ask(" && ".join(mark(disk, number) for disk in DISKS))

    def maintain(self, policy: str, *options: str, check: bool = True) -> dict[str, object]:
        """One run of maintenance over ROOT."""
        self.host.write(CONFIG, f'[roots."{ROOT}"]\naccount = "{ACCOUNT}"\n{policy}')
        done = self.host.run(("pve-zfsbackup-receiver", "maintain", "--json", *options), check=check)
        (report,) = json.loads(done.stdout)["roots"]
        assert isinstance(report, dict)
        return report

    def snapshots(self, dataset: str) -> list[str]:
        return self.host.run(("zfs", "list", "-H", "-d", "1", "-t", "snapshot", "-o", "name", dataset)).lines

    def held(self) -> set[str]:
        names = [name for disk in DISKS for name in self.snapshots(f"{ROOT}/local-zfs/{disk}")]
        lines = self.host.run(("zfs", "holds", "-H", *names)).lines
        return {line.split("\t")[0] for line in lines if line.split("\t")[1] == "pve-zfsbackup"}


def mark(disk: str, number: int, extra: str = "") -> str:
    vmid, stamp = DISKS[disk], STAMPS[number]
    properties = {
        "point": f"{vmid}/{stamp}",
        "disks": f"x0=local-zfs:{disk}#17",
        "consistency": "crash-consistent: it's a test",
        "volume": "17",
        **({"conf": extra} if extra else {}),
    }
    pairs = [f"pve-zfsbackup:{key}={value}" for key, value in properties.items()]
    return shlex.join(("zfs", "set", *pairs, f"{ROOT}/local-zfs/{disk}@pzb:{stamp}"))


@pytest.fixture(scope="module")
def account(backup1: Host, debs: tuple[Path, ...]) -> Account:
    """The package installed on a host without Proxmox, and a source that has replicated its first point."""
    install(backup1, debs, "pve-zfsbackup-receiver")
    backup1.run(("systemctl", "stop", "cron"))
    append = backup1.script(_ACCOUNT, ACCOUNT, ROOT, OTHER, SOURCE, KEY).lines[-1] == "yes"
    backup1.wait_for(("test", "-b", f"/dev/zvol/{SOURCE}/vm-100-disk-0"))
    made = Account(backup1, append)
    made.snapshot(0)
    made.ask(f"{CREATE} {ROOT}/local-zfs")
    made.replicate(0)
    return made


# -- What the contract has ------------------------------------------------------------------------------------------


def test_the_account_reads_what_a_source_must_know(account: Account) -> None:
    told = json.loads(account.ask("hello").stdout)
    assert told["root"] == ROOT
    assert any(line.startswith("zfs-kmod-") for line in told["zfs"])
    assert account.ask("zfs version").stdout.startswith("zfs-")
    assert "health\tONLINE" in account.ask("zpool get -Hp -o property,value all -- tank").stdout
    status = account.ask("zpool status -p -- tank").stdout
    assert [name for name, found in read_conditions(status).items() if found.state == "ONLINE"] == ["tank"]
    columns = "type,name,guid,createtxg,creation,userrefs,clones,receive_resume_token,pve-zfsbackup:point"
    line = f"grep -vx SUSPENDED /proc/spl/kstat/zfs/tank/state && zfs list -Hp -r -t all -o {columns} -- {ROOT}"
    first, *rows = account.ask(line).lines
    assert first == "ONLINE"
    assert {row.split("\t")[1].partition("@")[0] for row in rows} == {ROOT, f"{ROOT}/local-zfs", ZVOL, SUBVOL}
    guids = account.ask(f"zfs list -Hp -d 1 -t snapshot -o name,guid -- {ZVOL} {SUBVOL}")
    assert {row.split("\t")[0] for row in guids.lines} == {f"{ZVOL}@pzb:{STAMPS[0]}", f"{SUBVOL}@pzb:{STAMPS[0]}"}


def test_a_parent_inherits_what_keeps_replicas_inert(account: Account) -> None:
    values = account.host.run(
        ("zfs", "get", "-H", "-o", "value", "readonly,mountpoint,volmode,snapdir", f"{ROOT}/local-zfs")
    )
    assert values.lines == ["on", "none", "none", "hidden"]
    again = account.ask(f"{CREATE} {ROOT}/local-zfs", check=False)
    assert again.returncode != 0
    assert "dataset already exists" in again.stderr


def test_replicas_arrive_whole_marked_and_unmounted(account: Account) -> None:
    for disk, vmid in DISKS.items():
        pair = [f"{SOURCE}/{disk}@pzb:{STAMPS[0]}", f"{ROOT}/local-zfs/{disk}@pzb:{STAMPS[0]}"]
        guids = account.host.run(("zfs", "get", "-Hp", "-o", "value", "guid", *pair)).lines
        assert guids[0] == guids[1]
        point = account.host.run(("zfs", "get", "-H", "-o", "value,source", "pve-zfsbackup:point", pair[1])).stdout
        assert point.strip() == f"{vmid}/{STAMPS[0]}\tlocal"
    assert account.host.run(("zfs", "get", "-H", "-o", "value", "mounted", SUBVOL)).stdout.strip() == "no"
    account.host.run(("test", "!", "-e", f"/dev/zvol/{ZVOL}"))


def test_increments_go_through_filters(account: Account) -> None:
    account.snapshot(1)
    streams = "; ".join(account.send(disk, 1, 0) for disk in DISKS)
    receives = " && ".join(f"zfs receive -s -u -- {ROOT}/local-zfs/{disk}" for disk in DISKS)
    account.ask(f"zstd -dqc | mbuffer -q -s 128k -m 16M | {{ {receives}; }}", stream=f"{{ {streams}; }} | zstd -qc -3")
    account.ask(" && ".join(mark(disk, 1) for disk in DISKS))
    assert len(account.snapshots(ZVOL)) == len(account.snapshots(SUBVOL)) == 2


def test_several_steps_of_a_disk_come_in_one_session(account: Account) -> None:
    for number in (2, 3):
        account.snapshot(number)
    for disk in DISKS:
        receive = f"zfs receive -s -u -- {ROOT}/local-zfs/{disk}"
        streams = f"{{ {account.send(disk, 2, 1)}; {account.send(disk, 3, 2)}; }}"
        account.ask(f"{receive} && {receive} && {mark(disk, 2)} && {mark(disk, 3)}", stream=streams)
    assert len(account.snapshots(ZVOL)) == 4


def test_an_interrupted_receive_goes_on_by_its_token(account: Account) -> None:
    account.snapshot(4)
    cut = account.ask(
        f"zfs receive -s -u -- {ZVOL}", stream=f"{account.send('vm-100-disk-0', 4, 3)} | head -c 500000", check=False
    )
    assert cut.returncode != 0
    token = _token(account, ZVOL)
    assert token != "-"
    foreign = account.ask(f"zfs send -t {token}", check=False)  # it names a snapshot of the source, outside the root
    assert (foreign.returncode, foreign.stdout) == (126, "")
    account.ask(f"zfs receive -s -u -- {ZVOL}", stream=f"zfs send -t {token}")
    account.ask(f"zfs receive -s -u -- {SUBVOL}", stream=account.send("subvol-200-disk-0", 4, 3))
    account.ask(" && ".join(mark(disk, 4) for disk in DISKS))
    assert account.snapshots(ZVOL)[-1] == f"{ZVOL}@pzb:{STAMPS[4]}"


@pytest.mark.parametrize("flags", ["-w", "-L -c"])
@pytest.mark.parametrize("disk", DISKS)
def test_what_a_source_sent_comes_back_to_it(account: Account, disk: str, flags: str) -> None:
    """Every form of `zfs send` that the grammar has: in full, an increment, and on from where it was cut."""
    points = [f"{ROOT}/local-zfs/{disk}@pzb:{STAMPS[number]}" for number in (0, 3, 4)]
    copy = f"{SOURCE}/back"
    receive = f"zfs receive -s -u {copy}"
    account.ask(f"zfs send {flags} -- {points[0]}", into=receive)
    account.ask(f"zfs send {flags} -i {points[0]} -- {points[1]}", into=receive)
    line = f"zfs send {flags} -i {points[1]} -- {points[2]}"
    cut = account.ask(line, into=f"head -c 200000 | {receive}", check=False)
    assert cut.returncode != 0
    token = _token(account, copy)
    assert token != "-"
    account.ask(f"zfs send -t {token}", into=receive)
    names = [f"{name}@pzb:{STAMPS[number]}" for name in (copy, f"{SOURCE}/{disk}") for number in (0, 3, 4)]
    guids = account.host.run(("zfs", "get", "-Hp", "-o", "value", "guid", *names)).lines
    assert guids[:3] == guids[3:]
    account.host.run(("zfs", "destroy", "-r", copy))


def _token(account: Account, dataset: str) -> str:
    return account.host.run(("zfs", "get", "-H", "-o", "value", "receive_resume_token", dataset)).stdout.strip()


# -- What a taken-over source can do with the key -------------------------------------------------------------------

POINT = f"{ZVOL}@pzb:{STAMPS[0]}"
ATTACKS = (
    "sh -i",
    "",
    f"zfs destroy {POINT}",
    f"zfs destroy -r {ROOT}",
    f"zfs destroy {ZVOL}@pzb:{STAMPS[0]}%pzb:{STAMPS[4]}",
    f"zfs rollback -r {POINT}",
    f"zfs rename {ZVOL} {ZVOL}x",
    f"zfs rename {POINT} @x",
    f"zfs mount {SUBVOL}",
    f"zfs snapshot {ZVOL}@x",
    f"zfs clone {POINT} {ROOT}/clone",
    f"zfs hold x {POINT}",
    f"zfs release pve-zfsbackup {POINT}",
    f"zfs send {OTHER}/secret@kept",
    f"zfs send {POINT}",
    f"zfs get all {OTHER}/secret",
    f"zfs list -Hp -r -t all -o name -- {OTHER}",
    "zfs list -Hp -r -t all -o name -- tank",
    f"zfs list -Hp -r -t all -o name,mountpoint,sharenfs -- {ROOT}",
    f"zfs set readonly=off {ZVOL}",
    f"zfs set mountpoint=/etc {SUBVOL}",
    f"zfs set pve-zfsbackup:point=100/{STAMPS[0]} readonly=off {POINT}",
    f"zfs set pve-zfsbackup:point=100/{STAMPS[0]} {ZVOL}",
    f"zfs set pve-zfsbackup:point=100/{STAMPS[1]} {POINT}",
    f"zfs set pve-zfsbackup:volume=1 {POINT}",
    mark("vm-100-disk-0", 0),
    mark("vm-100-disk-0", 0, "eJy"),
    f"zfs inherit pve-zfsbackup:point {POINT}",
    f"zfs allow everyone destroy {ROOT}",
    f"zfs receive -F -s -u -- {ZVOL}",
    f"zfs receive -s -u -F -- {ZVOL}",
    f"zfs receive -s -u -o readonly=off -- {ROOT}/x",
    f"zfs receive -s -u -- {OTHER}/x",
    f"zfs receive -s -u -- {ROOT}",
    f"zfs receive -s -u -- {ROOT}/../pve2/x",
    f"zfs receive -A -- {OTHER}/secret",
    f"zfs receive -s -u -- {ZVOL}; id",
    f"zfs receive -s -u -- {ZVOL} && id",
    f"zfs receive -s -u -- {ROOT}/$(id)",
    f"zfs receive -s -u -- {ROOT}/x > /etc/passwd",
    f"{CREATE} {OTHER}/x",
    f"{CREATE.replace('mountpoint=none', 'mountpoint=/etc')} {ROOT}/x",
    "zpool destroy tank",
    "zpool get -Hp -o property,value all -- rpool",
    "cat /etc/shadow",
    "grep -vx SUSPENDED /etc/shadow",
    "pve-zfsbackup-receiver maintain",
    "scp -t /tmp",
    "/usr/lib/openssh/sftp-server",
    "mbuffer -q -s 128k -m 16M -o /tmp/x | zfs receive -s -u -- " + ZVOL,
)


def test_every_attack_is_denied_logged_and_changes_nothing(account: Account) -> None:
    before = account.state()
    since = account.host.run(("date", "+%s")).stdout.strip()
    with account.host.executed() as record:
        for line in ATTACKS:
            done = account.ask(line, check=False)
            assert done.returncode == 126, (line, done)
            assert done.stderr.startswith("pve-zfsbackup-receiver: denied: "), (line, done)
            assert done.stdout == ""
    # Only the two that are a second `set` look whether the point is marked; nothing is run for the others.
    assert record.count("zfs") == 2
    assert record.count("zpool") == record.count("id") == 0
    assert account.state() == before
    logged = account.host.run(
        ("journalctl", "-q", f"--since=@{since}", "-t", "pve-zfsbackup-receiver", "SYSLOG_FACILITY=4", "-o", "cat")
    )
    assert len(logged.lines) == len(ATTACKS)
    assert all("denied: " in line and "127.0.0.1" in line for line in logged.lines)


def test_nothing_but_the_one_command_comes_with_the_key(account: Account) -> None:
    """No terminal, no forwarding, no other subsystem."""
    options = f"-F none -o BatchMode=yes -o UserKnownHostsFile={KEY}.known -o IdentitiesOnly=yes -i {KEY}"
    script = f"ssh {options} -o ExitOnForwardFailure=yes %s {ACCOUNT}@127.0.0.1 %s < /dev/null"
    for flags, line in (("-tt", "id"), ("-N -R 7777:127.0.0.1:22", ""), ("-W 127.0.0.1:22", ""), ("-s", "sftp")):
        done = account.host.run(("timeout", "90", "bash", "-c", script % (flags, line)), check=False)
        assert done.returncode not in (0, 124), (flags, done)
        assert "uid=" not in done.stdout


def test_a_stream_cannot_bring_or_change_properties(account: Account) -> None:
    """`zfs receive` lets a package change properties of snapshots that are there already, and takes them away from
    those that `set` marked: packages are denied before `zfs` sees them."""
    account.host.script(
        # noauto: what this tries on the target must not happen to this very host.
        "zfs clone -o canmount=noauto -o mountpoint=/etc -o sharenfs=on -o readonly=off "
        '-o pve-zfsbackup:point=666/x "$1/subvol-200-disk-0@pzb:$2" "$1/evil"; zfs snapshot "$1/evil@pzb:$3"',
        SOURCE,
        STAMPS[4],
        STAMPS[9],
    )
    account.host.run(("zfs", "set", "pve-zfsbackup:point=666/x", f"{SOURCE}/vm-100-disk-0@pzb:{STAMPS[0]}"))
    account.snapshot(5)
    before = account.state()
    new, newest = f"{SOURCE}/evil@pzb:{STAMPS[9]}", f"{SOURCE}/vm-100-disk-0@pzb:{STAMPS[5]}"
    since = f"@pzb:{STAMPS[4]}"
    for stream, name in (
        (f"zfs send -p {new}", f"{ROOT}/local-zfs/evil"),
        (f"zfs send -R {new}", f"{ROOT}/local-zfs/evil"),
        (f"zfs send -p -i {since} {newest}", ZVOL),
        (f"zfs send -R -i {since} {newest}", ZVOL),
        (f"zfs send -R -I {since} {newest}", ZVOL),
        (f"zfs send -I @pzb:{STAMPS[3]} {newest}", ZVOL),
        ("head -c 100000 /dev/urandom", ZVOL),
    ):
        for line in (f"zfs receive -s -u -- {name}", f"mbuffer -q -s 128k -m 16M | zfs receive -s -u -- {name}"):
            done = account.ask(line, stream=stream, check=False)
            assert done.returncode == 126, (stream, done)
            assert "is a package or none at all" in done.stderr
    assert account.state() == before
    account.host.script('zfs destroy "$1/evil@pzb:$2"; zfs destroy "$1/evil"', SOURCE, STAMPS[9])


def test_why_packages_are_denied(account: Account) -> None:
    """The control of the test above: past the forced command one does take a point's marks away."""
    copy = f"{ROOT}/local-zfs/control"
    stream = f"zfs send -L -c {SOURCE}/vm-100-disk-0@pzb:{STAMPS[3]}"
    account.ask(f"zfs receive -s -u -- {copy}", stream=stream)
    account.host.run(("zfs", "set", "pve-zfsbackup:volume=17", f"{copy}@pzb:{STAMPS[3]}"))
    package = f"zfs send -R -I @pzb:{STAMPS[3]} {SOURCE}/vm-100-disk-0@pzb:{STAMPS[5]}"
    account.beyond("zfs", "receive", "-s", "-u", copy, stream=package)
    assert not any("pve-zfsbackup:volume" in line for line in _local(account, f"{copy}@pzb:{STAMPS[3]}"))
    account.host.run(("zfs", "destroy", "-r", copy))


def _local(account: Account, name: str) -> list[str]:
    return sorted(account.host.run(("zfs", "get", "-Hp", "-s", "local", "all", name)).lines)


def test_past_the_forced_command_zfs_itself_stands(account: Account) -> None:
    """Delegation is the second wall: the account without its forced command cannot destroy either."""
    before = account.state()
    attacks = (
        ("zfs", "destroy", POINT),
        ("zfs", "rollback", "-r", POINT),
        ("zfs", "rename", ZVOL, f"{ROOT}/x"),
        ("zfs", "mount", SUBVOL),
        ("zfs", "snapshot", f"{ZVOL}@x"),
        ("zfs", "hold", "x", POINT),
        ("zfs", "set", "readonly=off", ZVOL),
        ("zfs", "set", "mountpoint=/etc", SUBVOL),
        ("zfs", "allow", "everyone", "destroy", ROOT),
        ("zfs", "receive", "-A", ZVOL),
        ("zfs", "create", f"{OTHER}/x"),
        ("zfs", "destroy", "-r", OTHER),
        ("zpool", "export", "tank"),
    )
    for argv in attacks:
        done = account.beyond(*argv)
        assert done.returncode != 0, argv
    assert account.state() == before


def test_a_marked_point_cannot_be_overwritten_by_force(account: Account) -> None:
    """`receive -F` past the forced command: `receive:append` stops it, and so do the holds where there is none."""
    report = account.maintain('minimum-age = "7d"\n')
    assert report["problems"] == []
    before = account.snapshots(ZVOL)
    assert len(before) >= 5
    account.host.run(("zfs", "snapshot", f"{SOURCE}/vm-100-disk-0@evil"))
    stream = f"zfs send -i @pzb:{STAMPS[1]} {SOURCE}/vm-100-disk-0@evil"
    try:
        done = account.beyond("zfs", "receive", "-F", "-u", ZVOL, stream=stream)
        assert done.returncode != 0, done
        assert account.snapshots(ZVOL) == before, done
        if account.append:
            assert "permission denied" in done.stderr
            account.host.script('zfs unallow "$1" receive:append "$2"; zfs allow "$1" receive "$2"', ACCOUNT, ROOT)
            done = account.beyond("zfs", "receive", "-F", "-u", ZVOL, stream=stream)
            assert done.returncode != 0, done
        assert account.snapshots(ZVOL) == before, done
    finally:
        account.host.script('zfs unallow "$1" receive "$2"; zfs allow "$1" "$3" "$2"', ACCOUNT, ROOT, account.right)
        account.host.run(("zfs", "destroy", f"{SOURCE}/vm-100-disk-0@evil"))


def test_the_spool_is_closed_to_other_accounts(account: Account) -> None:
    own = f"{STATE}/spool/{account.host.run(('id', '-u', ACCOUNT)).stdout.strip()}"
    account.host.run(("test", "-d", own))
    for argv in (("ls", own), ("touch", f"{own}/abort:x"), ("ls", f"{STATE}/spool"), ("rm", "-r", own)):
        done = account.host.run(("setpriv", "--reuid", "nobody", "--clear-groups", "--", *argv), check=False)
        assert done.returncode != 0, argv
        assert "Permission denied" in done.stderr or "not permitted" in done.stderr


# -- What the target does itself ------------------------------------------------------------------------------------


def test_an_abort_is_queued_and_done_by_the_target(account: Account) -> None:
    account.snapshot(6)
    newest = account.snapshots(ZVOL)[-1].partition("@")[2]
    base = STAMPS.index(newest.removeprefix("pzb:"))
    cut = f"{account.send('vm-100-disk-0', 6, base)} | head -c 500000"
    account.ask(f"zfs receive -s -u -- {ZVOL}", stream=cut, check=False)
    assert _token(account, ZVOL) != "-"
    asked = account.ask(f"zfs receive -A -- {ZVOL}", check=False)
    assert asked.returncode == 75
    assert "queued" in asked.stderr
    assert _token(account, ZVOL) != "-", "the account itself must not be able to do it"
    before = account.snapshots(ZVOL)
    report = account.maintain("")
    assert report["aborted"] == [ZVOL], report
    assert _token(account, ZVOL) == "-"
    assert account.snapshots(ZVOL) == before
    nothing = account.ask(f"zfs receive -A -- {ZVOL}", check=False)
    assert nothing.returncode == 1
    account.ask(f"zfs receive -s -u -- {ZVOL}", stream=account.send("vm-100-disk-0", 6, base))


def test_a_first_receive_that_was_interrupted_is_aborted_when_stale(account: Account) -> None:
    name = f"{ROOT}/local-zfs/half"
    stream = f"zfs send -L -c {SOURCE}/vm-100-disk-0@pzb:{STAMPS[0]} | head -c 300000"
    account.ask(f"zfs receive -s -u -- {name}", stream=stream, check=False)
    assert _token(account, name) != "-"
    assert account.maintain("")["aborted"] == []
    report = account.maintain('stale-partials = "0m"\n')
    assert report["aborted"] == [name], report
    assert account.host.run(("zfs", "list", name), check=False).returncode != 0


def test_maintenance_meets_a_receive_under_way(account: Account) -> None:
    name = f"{ROOT}/local-zfs/slow"
    pipe = f"(zfs send -L -c {SOURCE}/vm-100-disk-0@pzb:{STAMPS[0]} | head -c 300000; sleep 25) | {_client()}"
    process = account.host.spawn(("bash", "-c", f'{pipe} "$1"', "bash", f"zfs receive -s -u -- {name}"))
    try:
        account.host.wait_for(("zfs", "list", name))
        report = account.maintain('stale-partials = "0m"\n')
        assert report["problems"] == [], report
        assert account.host.run(("zfs", "list", name), check=False).returncode == 0
    finally:
        process.communicate(timeout=120)
    assert account.maintain('stale-partials = "0m"\n')["problems"] == []


def _client() -> str:
    return (
        f"ssh -F none -T -o BatchMode=yes -o UserKnownHostsFile={KEY}.known -o IdentitiesOnly=yes -i {KEY} "
        f"{ACCOUNT}@127.0.0.1"
    )


def test_every_point_is_held_and_nobody_else_can_let_go(account: Account) -> None:
    report = account.maintain("")
    assert report["problems"] == []
    marked = {f"{ROOT}/local-zfs/{disk}@pzb:{STAMPS[number]}" for disk in DISKS for number in range(5)}
    assert marked <= account.held()
    assert account.beyond("zfs", "release", "pve-zfsbackup", POINT).returncode != 0
    assert account.maintain("")["held"] == 0


def test_points_go_by_the_targets_policy_and_by_it_alone(account: Account) -> None:
    everything = {disk: account.snapshots(f"{ROOT}/local-zfs/{disk}") for disk in DISKS}
    account.host.run(("zfs", "snapshot", f"{SUBVOL}@foreign"))
    assert account.maintain("keep-last = 2\n")["destroyed"] == []  # all are younger than a week
    refused = account.maintain('keep-last = 2\nminimum-age = "0m"\nminimum-count = 1\n', check=False)
    assert refused["destroyed"] == []
    assert any("max-share" in str(problem) for problem in refused["problems"])  # type: ignore[attr-defined]
    dry = account.maintain('keep-last = 2\nminimum-age = "0m"\nminimum-count = 3\nmax-share = 100\n', "--dry-run")
    assert {disk: account.snapshots(f"{ROOT}/local-zfs/{disk}") for disk in DISKS}["vm-100-disk-0"] == everything[
        "vm-100-disk-0"
    ]
    done = account.maintain('keep-last = 2\nminimum-age = "0m"\nminimum-count = 3\nmax-share = 100\n')
    assert done["destroyed"] == dry["destroyed"]
    assert done["problems"] == []
    assert sorted(str(point) for point in done["destroyed"]) == sorted(  # type: ignore[attr-defined]
        f"{vmid}/{STAMPS[number]}" for vmid in DISKS.values() for number in (0, 1)
    )
    left = account.snapshots(SUBVOL)
    assert f"{SUBVOL}@foreign" in left
    assert f"{SUBVOL}@pzb:{STAMPS[2]}" in left
    account.host.run(("zfs", "destroy", f"{SUBVOL}@foreign"))


def test_replication_goes_on_after_all_of_that(account: Account) -> None:
    for disk in DISKS:
        newest = account.snapshots(f"{ROOT}/local-zfs/{disk}")[-1].partition("@pzb:")[2]
        stream = account.send(disk, 6, STAMPS.index(newest)) if newest != STAMPS[6] else ""
        if stream:
            account.ask(f"zfs receive -s -u -- {ROOT}/local-zfs/{disk}", stream=stream)
        account.ask(mark(disk, 6))
        assert account.snapshots(f"{ROOT}/local-zfs/{disk}")[-1].endswith(STAMPS[6])


# -- Monitoring -----------------------------------------------------------------------------------------------------


def check(account: Account, policy: str = "") -> tuple[int, str]:
    """As a monitoring account without privileges runs it."""
    account.host.write(CONFIG, f'[roots."{ROOT}"]\naccount = "{ACCOUNT}"\n{policy}')
    argv = ("setpriv", "--reuid", "nobody", "--clear-groups", "--", "pve-zfsbackup-receiver", "check")
    done = account.host.run(argv, check=False)
    assert len(done.lines) == 1, done
    return done.returncode, done.stdout


def test_check_says_ok_and_alarms_when_the_source_is_quiet(account: Account) -> None:
    status, line = check(account)
    assert status == 0, line
    assert re.match(rf"RECEIVER OK - {ROOT}: 2 guests, newest point .* old \| '{ROOT} age'=\d+s;", line)
    assert re.search(r"'pool tank used'=\d+%;85;95;0;100 'pool tank bad devices'=0;1;;0$", line.strip())
    status, line = check(account, "warn-full = 0\n")
    assert (status, re.search(r"pool tank is \d+ % full", line) is not None) == (1, True), line
    status, line = check(account, 'warn-age = "0m"\n')
    assert (status, "has gone quiet" in line) == (1, True)
    status, line = check(account, 'warn-age = "0m"\ncrit-age = "0m"\n')
    assert (status, "has gone quiet" in line) == (2, True)
    status, line = check(account, 'guest-warn-age = "0m"\n')
    assert (status, "guest 100" in line) == (1, True)


def test_check_alarms_when_the_root_is_gone(account: Account) -> None:
    account.host.write(CONFIG, '[roots."tank/backups/none"]\n')
    done = account.host.run(("pve-zfsbackup-receiver", "check"), check=False)
    assert done.returncode == 2
    assert "does not exist" in done.stdout


def test_crons_line_is_silent(account: Account) -> None:
    account.host.write(CONFIG, f'[roots."{ROOT}"]\naccount = "{ACCOUNT}"\n')
    text = account.host.read("/etc/cron.d/pve-zfsbackup-receiver")
    (line,) = [line for line in text.splitlines() if " root " in line]
    done = account.host.run(("sh", "-c", "sleep() { :; }; " + line.partition(" root ")[2]))  # it spreads the load
    assert (done.stdout, done.stderr) == ("", "")


@pytest.fixture(scope="module", autouse=True)
def cleaned(backup1: Host) -> Iterator[None]:
    """The hosts are shared: what these tests made is gone afterwards."""
    yield
    backup1.script(_CLEAN, ACCOUNT, SOURCE, KEY, check=False, timeout=600)


_CLEAN = r"""
zfs list -H -r -t snapshot -o name tank/backups | while read -r name; do zfs release pve-zfsbackup "$name" || :; done
zfs destroy -r tank/backups
for i in $(seq 50); do zfs destroy -r "$2" 2> /dev/null && break; sleep 0.2; done
ssh -o ControlPath="$3.control" -O exit x || :
pkill -u "$1" || :
userdel -r "$1" || :
dpkg --purge pve-zfsbackup-receiver
rm -f "$3" "$3.pub" "$3.known"
"""
