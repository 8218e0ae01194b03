"""Roles, users, tokens and ACLs made through the API last and are enforced; setup of the product uses all of them."""

import json
from typing import Any

import pytest
from served import Answer, Served

from tests.lab.pve.usercfg import dump, parse

pytestmark = pytest.mark.loopback

PRIVS = "Datastore.Audit VM.Audit VM.Config.Disk VM.GuestAgent.Audit VM.GuestAgent.FileSystemMgmt"


def run(node: Served, *argv: str) -> Any:
    """Run pvesh, expect success, return its JSON."""
    got = node.command("pvesh", *argv, "--output-format", "json")
    assert (got.code, got.err) == (0, "")
    return json.loads(got.out) if got.out else None


@pytest.fixture
def secret(node: Served) -> str:
    """A role, a user and a privilege-separated token, as `setup` makes them; its secret."""
    run(node, "create", "/access/roles", "--roleid", "Backup", "--privs", PRIVS)
    run(node, "create", "/access/users", "--userid", "zb@pve", "--comment", "made by a test")
    made = run(node, "create", "/access/users/zb@pve/token/zb", "--privsep", "1")
    assert made["full-tokenid"] == "zb@pve!zb"
    return str(made["value"])


def ask(node: Served, secret: str, path: str, method: str = "GET") -> Answer:
    """Ask as the new token."""
    return node.request(method, path, None, authorization=f"PVEAPIToken=zb@pve!zb={secret}")


def test_a_separated_token_needs_the_role_twice(node: Served, secret: str) -> None:
    assert ask(node, secret, "/nodes/pve1/qemu").json == {"data": []}
    assert ask(node, secret, "/access/permissions").json == {"data": {}}
    run(node, "set", "/access/acl", "--path", "/", "--roles", "Backup", "--tokens", "zb@pve!zb")
    assert ask(node, secret, "/access/permissions").json == {"data": {}}
    run(node, "set", "/access/acl", "--path", "/vms", "--roles", "Backup", "--users", "zb@pve")
    held = ask(node, secret, "/access/permissions").json["data"]
    assert set(held) == {"/vms", "/vms/100"}
    assert held["/vms"] == dict.fromkeys(PRIVS.split(), 1)
    assert [vm["vmid"] for vm in ask(node, secret, "/nodes/pve1/qemu").json["data"]] == [100, 101, 102]
    refused = ask(node, secret, "/cluster/status")
    assert (refused.status, refused.reason) == (403, "Permission check failed (/, Sys.Audit)")


def test_images_are_listed_with_config_disk_on_their_owner(node: Served, secret: str) -> None:
    for who in ("--users=zb@pve", "--tokens=zb@pve!zb"):
        run(node, "set", "/access/acl", "--path", "/storage", "--roles", "Backup", who)
        run(node, "set", "/access/acl", "--path", "/vms/100", "--roles", "Backup", who)
    got = ask(node, secret, "/nodes/pve1/storage/local-zfs/content").json["data"]
    assert [item["name"] for item in got] == ["vm-100-disk-0", "vm-100-disk-7"]


def test_everything_lasts_in_the_files(node: Served, secret: str) -> None:
    text = (node.node.etc.root / "user.cfg").read_text()
    assert "role:Backup:" + ",".join(sorted(PRIVS.split())) + ":" in text
    assert dump(parse(text)) == text
    assert f"zb@pve!zb {secret}" in (node.node.etc.root / "priv" / "token.cfg").read_text()
    assert (node.node.etc.root / "priv" / "token.cfg").stat().st_mode & 0o777 == 0o600
    assert [r for r in run(node, "get", "/access/roles") if r["roleid"] == "Backup"] == [
        {"roleid": "Backup", "privs": ",".join(sorted(PRIVS.split())), "special": 0}]


def test_deleting_takes_rights_away(node: Served, secret: str) -> None:
    for who in ("--users=zb@pve", "--tokens=zb@pve!zb"):
        run(node, "set", "/access/acl", "--path", "/vms", "--roles", "Backup", who)
    entries = [e for e in run(node, "get", "/access/acl") if e["path"] == "/vms"]
    assert entries == [
        {"path": "/vms", "type": "token", "ugid": "zb@pve!zb", "roleid": "Backup", "propagate": 1},
        {"path": "/vms", "type": "user", "ugid": "zb@pve", "roleid": "Backup", "propagate": 1}]
    run(node, "set", "/access/acl", "--path", "/vms", "--roles", "Backup", "--tokens", "zb@pve!zb", "--delete", "1")
    assert ask(node, secret, "/nodes/pve1/qemu").json == {"data": []}
    run(node, "delete", "/access/users/zb@pve/token/zb")
    assert ask(node, secret, "/version").status == 401
    run(node, "delete", "/access/users/zb@pve")
    assert not [e for e in run(node, "get", "/access/acl") if e["path"] == "/vms"]


def test_making_things_twice_is_refused(node: Served, secret: str) -> None:
    again = node.command("pvesh", "create", "/access/roles", "--roleid", "Backup")
    assert (again.code, again.err) == (255, "create role failed: role 'Backup' already exists\n")
    again = node.command("pvesh", "create", "/access/users", "--userid", "zb@pve")
    assert (again.code, again.err) == (255, "create user failed: user 'zb@pve' already exists\n")
    again = node.command("pvesh", "create", "/access/users/zb@pve/token/zb")
    assert again.err.startswith("400 Parameter verification failed.\ntokenid: Token already exists.\n")


def test_a_privilege_of_the_other_release_is_invalid(node: Served) -> None:
    got = node.command("pvesh", "create", "/access/roles", "--roleid", "Old", "--privs", "VM.Monitor")
    assert (got.code, got.err) == (255, "create role failed: invalid privilege 'VM.Monitor'\n")


def test_pool_membership_gives_rights_on_its_guests(node: Served, secret: str) -> None:
    run(node, "create", "/pools", "--poolid", "production", "--comment", "lab")
    run(node, "set", "/pools", "--poolid", "production", "--vms", "101,200")
    for who in ("--users=zb@pve", "--tokens=zb@pve!zb"):
        run(node, "set", "/access/acl", "--path", "/pool/production", "--roles", "PVEAuditor", who)
    guests = ask(node, secret, "/cluster/resources?type=vm").json["data"]
    assert {item["id"]: item["pool"] for item in guests} == {"qemu/101": "production", "lxc/200": "production"}
    members = ask(node, secret, "/pools?poolid=production").json["data"][0]["members"]
    assert [item["vmid"] for item in members] == [101, 200]
