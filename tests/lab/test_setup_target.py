"""`setup target` on real hosts: from a bare one to a first replica over an account that nobody made by hand.

The tests go on from each other. Root on pve1 is the administrator; account and root are of these tests alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import install
from tests.lab.host import Host, Result
from tests.lab.matrix import inject
from tests.lab.product import FORKED
from tests.lab.setup import trust

TARGET = "setup1"
ACCOUNT = "pzb-setup"
ROOT = "tank/setup/pve1"
GUEST = "200"
CONFIG = "/root/setup-target.yaml"
KEYS = f"/home/{ACCOUNT}/.ssh/authorized_keys"
KNOWN = "/etc/pve-zfsbackup/known_hosts"
RECEIVER = "/etc/pve-zfsbackup-receiver.toml"
WHERE = ("--host", f"{ACCOUNT}@backup1", "--root", ROOT)
APPEND = "create,mount,receive:append,send,userprop"
# Everything of a target that `setup target` answers for.
_STATE = r"""
getent passwd "$1" | cut -d: -f1,6,7
getent shadow "$1" | cut -d: -f2
for path in "/home/$1" "/home/$1/.ssh" "/home/$1/.ssh/authorized_keys"; do stat -c '%n %a %U:%G' "$path"; done
cat "/home/$1/.ssh/authorized_keys" /etc/pve-zfsbackup-receiver.toml
zfs get -Hp -s local -o name,property,value -r all "${2%/*}"
zfs allow "$2"
stat -c '%n %a %U:%G' /var/lib/pve-zfsbackup-receiver /var/lib/pve-zfsbackup-receiver/spool
"""
_FORGET = r"""
account=$1 root=$2
pkill -u "$account" || :
userdel "$account" 2> /dev/null || :
rm -rf "/home/$account"
for snapshot in $(zfs list -H -r -t snapshot -o name "${root%/*}" 2> /dev/null); do
  for tag in $(zfs holds -H "$snapshot" | cut -f2); do zfs release "$tag" "$snapshot"; done
done
! zfs list "${root%/*}" > /dev/null 2>&1 || zfs destroy -r "${root%/*}"
policy=/etc/pve-zfsbackup-receiver.toml
rm -f $policy
[ ! -e $policy.before ] || cp $policy.before $policy
"""
_POINTS = r"""
for name in $(zfs list -H -r -t snapshot,bookmark -o name rpool fast | grep -e '@pzb:' -e '#.*pzb' || :); do
  zfs destroy "$name"
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """pve1 with the product, and what it prepares."""

    pve1: Host
    backup1: Host

    def setup(self, *words: str, check: bool = True) -> Result:
        command = (*FORKED, "setup", "target", TARGET, *words, "--config", CONFIG)
        return self.pve1.run(command, check=check)

    def actions(self, *words: str, check: bool = True) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(self.setup(*words, "--json", check=check).stdout)["actions"]
        return found

    def prepare(self) -> list[dict[str, str]]:
        return self.actions("--admin", "root@backup1")

    def wrong(self) -> list[dict[str, str]]:
        """What `--check` finds to be wrong; its exit status says so, too."""
        done = self.setup("--check", "--json", check=False)
        found = [action for action in json.loads(done.stdout)["actions"] if action["state"] == "failed"]
        assert done.returncode == (1 if found else 0), done
        return found

    def state(self) -> str:
        return self.backup1.script(_STATE, ACCOUNT, ROOT).stdout

    def product(self, *words: str) -> Any:
        return json.loads(self.pve1.run((*FORKED, *words, "--json", "--config", CONFIG), timeout=900).stdout)


@pytest.fixture(scope="module")
def node(pve1: Host, backup1: Host, installed: Host, debs: tuple[Path, ...]) -> Iterator[Node]:
    """The product and its generated configuration here, the receiver's package and an ordinary root there."""
    assert installed is pve1
    install(backup1, debs, "pve-zfsbackup-receiver")
    backup1.script('[ ! -e "$1" ] || [ -e "$1.before" ] || cp "$1" "$1.before"', RECEIVER)
    backup1.script(_FORGET, ACCOUNT, ROOT)  # a run that was cut off may have left it
    pve1.run(("systemctl", "stop", "cron"))
    inject.prepare(pve1)
    pve1.run(("pve-zfsbackup", "setup"))
    trust(pve1, backup1)
    known = pve1.read(KNOWN) if pve1.run(("test", "-e", KNOWN), check=False).returncode == 0 else ""
    example = "from pve_zfsbackup.config.example import example_config; print(example_config(), end='')"
    pve1.write(CONFIG, pve1.run(("python3", "-c", example)).stdout, mode=0o600)
    yield Node(pve1=pve1, backup1=backup1)
    pve1.write(KNOWN, known, mode=0o600)  # whatever a test that failed left there
    backup1.script(_FORGET, ACCOUNT, ROOT)
    pve1.script(_POINTS)


def test_from_a_bare_host_to_a_first_replica(node: Node) -> None:
    dry = node.actions(*WHERE, "--admin", "root@backup1", "--dry-run")
    assert [action["state"] for action in dry if action["state"] == "failed"] == []
    assert node.backup1.run(("getent", "passwd", ACCOUNT), check=False).returncode == 2, "that was a dry run"
    done = node.actions(*WHERE, "--admin", "root@backup1")
    assert [action for action in done if action["state"] == "failed"] == []
    states = {action["object"]: action["state"] for action in done}
    for name in (f"user {ACCOUNT}", f"dataset {ROOT}", f"permissions of {ACCOUNT}", f"{RECEIVER}, {ROOT}"):
        assert states[name] in ("created", "right"), (name, states)
    assert states[f"target {TARGET} in {CONFIG}"] == "created"
    assert [action["state"] for action in dry] == [action["state"] for action in done[: len(dry)]]

    node.product("snapshot", GUEST)
    report = node.product("replicate", GUEST)
    assert report["exit_code"] == 0, report
    points = node.product("list", GUEST, "--where", TARGET)["points"]
    assert [point["complete"] for point in points] == [True]
    assert node.backup1.run(("zfs", "get", "-H", "-o", "value", "pve-zfsbackup:owner", ROOT)).stdout.startswith("pve-")


def test_the_second_time_changes_nothing(node: Node) -> None:
    node.backup1.run(("pve-zfsbackup-receiver", "maintain"))
    before = node.state()
    done = node.prepare()
    assert {action["state"] for action in done} == {"right"}, done
    assert node.state() == before
    assert node.wrong() == []
    assert node.state() == before, "a check only looks"


@pytest.mark.long
def test_a_dataset_that_was_changed(node: Node) -> None:
    node.backup1.run(("zfs", "set", "readonly=off", ROOT))
    (found,) = node.wrong()
    assert (found["object"], found["detail"]) == (f"dataset {ROOT}", "readonly is off, not on")
    node.pve1.run(("sh", "-c", found["command"]))
    assert node.wrong() == []


@pytest.mark.long
def test_permissions_that_are_gone_and_too_many(node: Node) -> None:
    node.backup1.run(("zfs", "unallow", "-u", ACCOUNT, "receive:append,userprop", ROOT))
    (found,) = node.wrong()
    assert found["detail"] == f"lacks receive:append,userprop on {ROOT}"
    node.pve1.run(("sh", "-c", found["command"]))
    assert node.wrong() == []
    node.backup1.run(("zfs", "allow", "-u", ACCOUNT, "destroy,rollback", ROOT))
    (found,) = node.wrong()
    assert found["detail"] == "it could more than add: destroy,rollback"
    done = [action["state"] for action in node.prepare() if action["object"] == f"permissions of {ACCOUNT}"]
    assert done == ["changed", "right"], "taken away, and looked at from here"
    assert node.wrong() == []


@pytest.mark.long
def test_a_key_that_is_gone(node: Node) -> None:
    line = node.backup1.read(KEYS)
    node.backup1.write(KEYS, "# nobody\n")
    (found,) = node.wrong()
    assert (found["object"], "Permission denied" in found["detail"]) == (f"ssh {ACCOUNT}@backup1", True)
    node.prepare()
    assert node.backup1.read(KEYS) == f"# nobody\n{line}"
    assert node.wrong() == []
    node.backup1.write(KEYS, line)


@pytest.mark.long
def test_the_root_of_somebody_else(node: Node) -> None:
    owner = node.backup1.run(("zfs", "get", "-H", "-o", "value", "pve-zfsbackup:owner", ROOT)).stdout.strip()
    node.backup1.run(("zfs", "set", "pve-zfsbackup:owner=pve-0123456789abcdef", ROOT))
    (found,) = node.wrong()
    assert (found["object"], "pve-0123456789abcdef" in found["detail"]) == (f"owner of {ROOT}", True)
    refused = node.setup("--admin", "root@backup1", check=False)
    assert (refused.returncode, "belongs to pve-0123456789abcdef" in refused.stdout) == (1, True)
    node.backup1.run(("zfs", "set", f"pve-zfsbackup:owner={owner}", ROOT))
    assert node.wrong() == []


@pytest.mark.long
def test_another_host_key_is_refused_until_a_person_accepts_it(node: Node) -> None:
    known = node.pve1.read(KNOWN)
    kind, blob = node.backup1.read("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
    node.pve1.script('ssh-keygen -q -t ed25519 -N "" -f /root/stranger && cut -d" " -f1,2 /root/stranger.pub')
    stranger = node.pve1.read("/root/stranger.pub").split()[:2]
    node.pve1.write(KNOWN, f"backup1 {' '.join(stranger)}\n", mode=0o600)
    (found,) = node.wrong()
    assert "host key" in found["detail"]
    refused = node.setup("--admin", "root@backup1", check=False)
    assert (refused.returncode, "--accept-hostkey SHA256:" in refused.stdout) == (1, True)
    shown = node.backup1.run(("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub")).stdout.split()[1]
    node.setup("--accept-hostkey", shown)
    assert node.pve1.read(KNOWN) == f"backup1 {kind} {blob}\n"
    node.pve1.script("rm -f /root/stranger /root/stranger.pub")
    node.pve1.write(KNOWN, known, mode=0o600)
    assert node.wrong() == []


@pytest.mark.long
def test_the_printed_script_by_hand_makes_the_same(node: Node) -> None:
    node.backup1.script(_FORGET, ACCOUNT, ROOT)
    node.prepare()
    before = node.state()
    node.backup1.script(_FORGET, ACCOUNT, ROOT)
    script = node.setup("--print").stdout
    node.backup1.write("/root/target.sh", script)
    told = node.backup1.run(("sh", "/root/target.sh")).stdout
    assert f"created\tuser {ACCOUNT}\t" in told
    assert node.state() == before
    again = node.backup1.run(("sh", "/root/target.sh")).stdout
    assert {line.split("\t")[0] for line in again.splitlines()} == {"right", "hostkey", "end"}
    assert node.state() == before
    assert node.wrong() == []


@pytest.mark.long
def test_without_the_receiver_nothing_is_done(node: Node) -> None:
    node.backup1.run(("chmod", "-x", "/usr/bin/pve-zfsbackup-receiver"))
    before = node.state()
    refused = node.setup("--admin", "root@backup1", check=False)
    assert (refused.returncode, "not installed" in refused.stdout) == (1, True)
    (found,) = node.wrong()
    assert "setup target" in found["command"]
    assert node.state() == before
    node.backup1.run(("chmod", "+x", "/usr/bin/pve-zfsbackup-receiver"))
    assert node.wrong() == []


def test_an_account_without_the_forced_command_is_noticed(node: Node) -> None:
    line = node.backup1.read(KEYS)
    key = line.partition('" ')[2]
    node.backup1.write(KEYS, f"restrict {key}")
    found = node.wrong()
    assert "is a plain one" in found[0]["detail"]
    assert {a["object"].split()[0]: a["state"] for a in node.prepare()}["key"] == "changed"
    assert node.backup1.read(KEYS) == line
    assert node.wrong() == []
