"""`app.setup` against a node that answers pvesh from a small user.cfg and HTTPS from fakepve over TLS."""

from __future__ import annotations

import json
import shlex
import stat
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.app.setup import Settings, setup, unsetup
from pve_zfsbackup.app.setup_account import ROLE, USER, Action, privileges
from pve_zfsbackup.config import Api as ApiConfig
from pve_zfsbackup.config import load_config
from pve_zfsbackup.errors import PveError, PveTrustError, PveUnreachableError
from pve_zfsbackup.host.api import Api, read_token
from pve_zfsbackup.host.guests import read_guests
from pve_zfsbackup.host.runner import Completed, ProcessRunner
from pve_zfsbackup.model import Guest, GuestKind

from .conftest import Certificates, RecordedRunner

NINE = {"VM.Audit", "VM.GuestAgent.Audit", "VM.GuestAgent.FileSystemMgmt", "Datastore.Audit", "Pool.Audit", "Sys.Audit"}
EIGHT = {"VM.Audit", "VM.Monitor", "Datastore.Audit", "Pool.Audit", "Sys.Audit"}


@dataclass
class Node:
    """The access part of a node, as pvesh tells and changes it; kept in step with the fake behind HTTPS."""

    fake: Any
    version: str = "9.2.11"
    clustered: bool = False
    roles: dict[str, set[str]] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)  # full id
    acl: set[tuple[str, str, str, str]] = field(default_factory=set)  # path, type, ugid, roleid
    changes: list[tuple[str, ...]] = field(default_factory=list)
    refuse: str = ""  # a verb and path that fail

    def answer(self, argv: tuple[str, ...]) -> Completed:
        if argv[0] == "ssh-keygen":
            return ProcessRunner().run(argv)
        assert argv[0] == "pvesh", argv
        assert argv[-2:] == ("--output-format", "json")
        verb, path = argv[1:3]
        options = dict(zip(argv[3:-2:2], argv[4:-2:2], strict=True))
        params = {key.removeprefix("--"): value for key, value in options.items()}
        if f"{verb} {path}" == self.refuse:
            return Completed(argv=argv, returncode=255, stdout="", stderr="unable to write: Permission denied\n")
        if verb != "get":
            self.changes.append(argv)
        value = getattr(self, f"_{verb}")(path, params)
        self._publish()
        return Completed(argv=argv, returncode=0, stdout="" if value is None else json.dumps(value), stderr="")

    def _get(self, path: str, params: dict[str, str]) -> Any:
        if path == "/version":
            return {"version": self.version}
        if path == "/cluster/status":
            return [{"type": "cluster"}] * self.clustered + [{"type": "node", "name": "pve1"}]
        if path == "/nodes":
            return [{"node": "pve1", "ssl_fingerprint": "AB:CD"}]
        if path == "/access/roles":
            return [
                {"roleid": name, "privs": ",".join(sorted(privs)), "special": 0} for name, privs in self.roles.items()
            ]
        if path == "/access/acl":
            names = ("path", "type", "ugid", "roleid")
            return [{**dict(zip(names, entry, strict=True)), "propagate": 1} for entry in sorted(self.acl)]
        assert (path, params) == ("/access/users", {"full": "1"})
        return [
            {
                "userid": name,
                **user,
                "tokens": [
                    {"tokenid": full.partition("!")[2], "privsep": token["privsep"]}
                    for full, token in self.tokens.items()
                    if full.startswith(f"{name}!")
                ],
            }
            for name, user in self.users.items()
        ]

    def _create(self, path: str, params: dict[str, str]) -> Any:
        if path == "/access/roles":
            self.roles[params["roleid"]] = set(params["privs"].split(","))
            return None
        if path == "/access/users":
            self.users[params["userid"]] = {"enable": 1}
            return None
        user, name = path.removeprefix("/access/users/").split("/token/")
        assert f"{user}!{name}" not in self.tokens
        assert user in self.users
        value = str(uuid.uuid4())
        self.tokens[f"{user}!{name}"] = {"value": value, "privsep": int(params["privsep"])}
        return {"full-tokenid": f"{user}!{name}", "info": {"privsep": params["privsep"]}, "value": value}

    def _set(self, path: str, params: dict[str, str]) -> Any:
        if path == "/access/acl":
            kind = "users" if "users" in params else "tokens"
            known = self.users if kind == "users" else self.tokens
            assert params[kind] in known
            self.acl.add((params["path"], kind[:-1], params[kind], params["roles"]))
        elif path.startswith("/access/roles/"):
            self.roles[path.removeprefix("/access/roles/")] = set(params["privs"].split(","))
        elif "/token/" in path:
            self.tokens[path.removeprefix("/access/users/").replace("/token/", "!")]["privsep"] = int(params["privsep"])
        else:
            self.users[path.removeprefix("/access/users/")].update(enable=int(params["enable"]))

    def _delete(self, path: str, params: dict[str, str]) -> Any:
        if path.startswith("/access/roles/"):
            del self.roles[path.removeprefix("/access/roles/")]
        elif "/token/" in path:
            self.drop(path.removeprefix("/access/users/").replace("/token/", "!"))
        else:
            self.drop(path.removeprefix("/access/users/"))

    def drop(self, name: str) -> None:
        """A user or token, with its tokens and ACL entries."""
        self.users.pop(name, None)
        for full in [full for full in self.tokens if full == name or full.startswith(f"{name}!")]:
            del self.tokens[full]
        self.acl = {entry for entry in self.acl if entry[2] != name and not entry[2].startswith(f"{name}!")}

    def _publish(self) -> None:
        self.fake.apitokens = {full: token["value"] for full, token in self.tokens.items()}
        self.fake.acl = {}
        for path, _, who, role in self.acl:
            # The fake lets a token have what its user has; with privilege separation only its own counts.
            if "!" in who:
                self.fake.grant(who, path, *self.roles.get(role, ()))


@pytest.fixture
def node(fakepve: Any) -> Node:
    fakepve.acl = {}
    fakepve.add_vm(100, "web", config={"scsi0": "local-lvm:vm-100-disk-0"})
    return Node(fakepve)


@pytest.fixture
def settings(fakepve: Any, certificates: Certificates, tmp_path: Path) -> Settings:
    etc = tmp_path / "etc"
    return Settings(
        node="pve1",
        guests=found_guests,
        api=ApiConfig(url=fakepve.url, token_file=etc / "api.token", ca_file=certificates.ca),
        config_file=etc / "config.yaml",
        identity_file=etc / "id_ed25519",
    )


def found_guests(api: Api) -> tuple[Guest, ...]:
    return tuple(
        Guest(vmid=raw.vmid, kind=GuestKind.VM, node=raw.node, name=raw.name, running=False)
        for raw in read_guests(api, "pve1")
    )


@pytest.fixture
def run(node: Node, runner: RecordedRunner) -> Iterator[RecordedRunner]:
    runner.handler = node.answer
    yield runner
    words = " ".join(" ".join(argv) for argv in runner.argvs)
    assert all(token["value"] not in words for token in node.tokens.values())


def by_kind(actions: tuple[Action, ...]) -> list[tuple[str, str]]:
    return [(action.object.split(" ")[0], action.state) for action in actions]


EVERYTHING = ["role", "user", "ACL", "token", "file", "ACL", "API", "ssh", "file"]
REPEATED = ["role", "user", "ACL", "token", "ACL", "API", "ssh", "file"]


def test_first_run_makes_everything(node: Node, run: RecordedRunner, settings: Settings) -> None:
    actions = setup(run, settings)
    expected = [(kind, "right" if kind == "API" else "created") for kind in EVERYTHING]
    assert by_kind(actions) == expected
    assert node.roles == {ROLE: NINE}
    assert node.acl == {("/", "user", USER, ROLE), ("/", "token", f"{USER}!backup", ROLE)}
    assert node.tokens[f"{USER}!backup"]["privsep"] == 1
    token = read_token(settings.api.token_file)
    assert (str(token), token.secret) == (f"{USER}!backup", node.tokens[f"{USER}!backup"]["value"])


def test_files_are_for_root_alone(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    directory = settings.config_file.parent
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes.pop("id_ed25519.pub") & 0o022 == 0
    assert modes == {"api.token": 0o600, "config.yaml": 0o600, "id_ed25519": 0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_first_configuration_can_be_loaded_and_names_the_guests(
    node: Node, run: RecordedRunner, settings: Settings
) -> None:
    setup(run, settings)
    assert load_config(settings.config_file)
    assert "web" in settings.config_file.read_text()


def test_ssh_key_is_one(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    public = settings.identity_file.with_name("id_ed25519.pub").read_text().split()
    assert (public[0], public[2]) == ("ssh-ed25519", "pve-zfsbackup@pve1")
    done = ProcessRunner().run(("ssh-keygen", "-y", "-P", "", "-f", str(settings.identity_file)))
    assert done.stdout.split()[1] == public[1]


def test_second_run_changes_nothing(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    settings.config_file.write_text("# mine\n")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in settings.config_file.parent.iterdir()}
    node.changes.clear()
    actions = setup(run, settings)
    assert by_kind(actions) == [(kind, "right") for kind in REPEATED]
    assert node.changes == []
    assert all(not action.command for action in actions)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in settings.config_file.parent.iterdir()}
    assert after == before


@pytest.mark.parametrize(("version", "expected"), [("8.4.21", EIGHT), ("9.0.10", NINE), ("10.0.1", NINE)])
def test_privileges_of_the_version(
    node: Node, run: RecordedRunner, settings: Settings, version: str, expected: set[str]
) -> None:
    node.version = version
    setup(run, settings)
    assert node.roles[ROLE] == expected


def test_old_version_is_refused_before_anything_is_made(node: Node, run: RecordedRunner, settings: Settings) -> None:
    node.version = "7.4-17"
    with pytest.raises(PveError, match="Proxmox VE 7 is not supported"):
        setup(run, settings)
    assert node.changes == []


def test_upgrade_changes_the_role(node: Node, run: RecordedRunner, settings: Settings) -> None:
    """VM.Monitor is gone in 9 and VM.GuestAgent.* is new."""
    node.version = "8.4.21"
    setup(run, settings)
    node.version = "9.2.11"
    role = setup(run, settings)[0]
    assert (role.state, role.detail) == ("changed", "+VM.GuestAgent.Audit +VM.GuestAgent.FileSystemMgmt -VM.Monitor")
    assert node.roles[ROLE] == NINE


def test_extra_privileges_are_taken_away(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    node.roles[ROLE] |= {"VM.Allocate", "Sys.Modify"}
    role = setup(run, settings)[0]
    assert (role.state, role.detail) == ("changed", "-Sys.Modify -VM.Allocate")
    assert node.roles[ROLE] == NINE


def test_disabled_user_is_enabled(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    node.users[USER]["enable"] = 0
    assert by_kind(setup(run, settings))[1] == ("user", "changed")
    assert node.users[USER]["enable"] == 1


def test_token_without_privilege_separation_gets_it(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    node.tokens[f"{USER}!backup"]["privsep"] = 0
    assert by_kind(setup(run, settings))[3] == ("token", "changed")
    assert node.tokens[f"{USER}!backup"]["privsep"] == 1


def test_missing_acl_is_made_again(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    node.acl.clear()
    assert [entry for entry in by_kind(setup(run, settings)) if entry[0] == "ACL"] == [("ACL", "created")] * 2
    assert len(node.acl) == 2


def lose(settings: Settings) -> None:
    settings.api.token_file.unlink()


def spoil(settings: Settings) -> None:
    settings.api.token_file.write_text("nonsense\n")


def expose(settings: Settings) -> None:
    settings.api.token_file.chmod(0o644)


def replace_secret(settings: Settings) -> None:
    settings.api.token_file.write_text(f"{USER}!backup={uuid.uuid4()}\n")


@pytest.mark.parametrize("harm", [lose, spoil, expose, replace_secret])
def test_token_whose_secret_is_no_use_is_made_again(
    node: Node, run: RecordedRunner, settings: Settings, harm: Any
) -> None:
    setup(run, settings)
    old = node.tokens[f"{USER}!backup"]["value"]
    harm(settings)
    actions = setup(run, settings)
    token = next(action for action in actions if action.object.startswith("token"))
    assert token.state == "created"
    assert token.detail.startswith("again: ")
    assert [line.split()[1] for line in token.command.splitlines()] == ["delete", "create"]
    new = node.tokens[f"{USER}!backup"]["value"]
    assert new != old
    assert read_token(settings.api.token_file).secret == new
    assert ("/", "token", f"{USER}!backup", ROLE) in node.acl


def test_token_that_proxmox_lost_is_made_again(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    node.drop(f"{USER}!backup")
    actions = setup(run, settings)
    assert ("token", "created") in by_kind(actions)
    assert read_token(settings.api.token_file).secret == node.tokens[f"{USER}!backup"]["value"]


def test_token_put_there_by_hand_is_kept(node: Node, run: RecordedRunner, settings: Settings) -> None:
    node.users["me@pve"] = {"enable": 1}
    node.tokens["me@pve!own"] = {"value": str(uuid.uuid4()), "privsep": 1}
    node.roles["Mine"] = NINE
    node.acl.add(("/", "token", "me@pve!own", "Mine"))
    settings.api.token_file.parent.mkdir(mode=0o700)
    settings.api.token_file.write_text(f"me@pve!own={node.tokens['me@pve!own']['value']}\n")
    settings.api.token_file.chmod(0o600)
    actions = setup(run, settings)
    assert by_kind(actions)[:2] == [("token", "kept"), ("API", "right")]
    assert node.changes == []
    assert read_token(settings.api.token_file).user == "me@pve"
    assert unsetup(run, settings) == ()
    assert settings.api.token_file.exists()


# Clusters


def test_each_node_of_a_cluster_has_its_own_token(node: Node, run: RecordedRunner, settings: Settings) -> None:
    node.clustered = True
    setup(run, settings)
    assert list(node.tokens) == [f"{USER}!backup-pve1"]
    assert str(read_token(settings.api.token_file)) == f"{USER}!backup-pve1"


def test_a_node_that_joins_does_not_spoil_the_others_token(node: Node, run: RecordedRunner, settings: Settings) -> None:
    """Its file names `backup` too, but in the cluster's user.cfg that is another node's."""
    setup(run, settings)
    node.clustered = True
    others = node.tokens[f"{USER}!backup"]["value"]
    replace_secret(settings)
    setup(run, settings)
    assert node.tokens[f"{USER}!backup"]["value"] == others
    assert str(read_token(settings.api.token_file)) == f"{USER}!backup-pve1"


def test_token_made_before_the_cluster_stays(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    node.clustered = True
    assert ("token", "right") in by_kind(setup(run, settings))
    assert list(node.tokens) == [f"{USER}!backup"]


# Dry run


def test_dry_run_changes_nothing_and_shows_the_commands(
    node: Node, run: RecordedRunner, settings: Settings, tmp_path: Path
) -> None:
    actions = setup(run, replace(settings, dry_run=True))
    assert node.changes == []
    assert list(tmp_path.iterdir()) == []
    assert [kind for kind, state in by_kind(actions) if state == "created"] == [
        *("role", "user", "ACL", "token", "ACL", "ssh", "file")
    ]
    commands = [shlex.split(line) for action in actions for line in action.command.splitlines()]
    assert [command[:3] for command in commands if command[0] == "pvesh"] == [
        ["pvesh", "create", "/access/roles"],
        ["pvesh", "create", "/access/users"],
        ["pvesh", "set", "/access/acl"],
        ["pvesh", "create", f"/access/users/{USER}/token/backup"],
        ["pvesh", "set", "/access/acl"],
    ]
    assert commands[-1][0] == "ssh-keygen"


def test_commands_shown_are_the_commands_run(node: Node, run: RecordedRunner, settings: Settings) -> None:
    actions = setup(run, settings)
    shown = [tuple(shlex.split(line)) for action in actions for line in action.command.splitlines()]
    assert [argv for argv in shown if argv[0] == "pvesh"] == node.changes


def test_dry_run_of_what_is_right(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    node.roles[ROLE].add("VM.Allocate")
    node.changes.clear()
    actions = setup(run, replace(settings, dry_run=True))
    assert dict(by_kind(actions))["role"] == "changed"
    assert node.roles[ROLE] != NINE
    assert node.changes == []


# Failures


def test_interrupted_setup_is_finished_by_the_next(node: Node, run: RecordedRunner, settings: Settings) -> None:
    for refuse in ("create /access/roles", f"create /access/users/{USER}/token/backup", "set /access/acl"):
        node.refuse = refuse
        with pytest.raises(PveError, match="Permission denied"):
            setup(run, settings)
    node.refuse = ""
    setup(run, settings)
    assert by_kind(setup(run, settings)) == [(kind, "right") for kind in REPEATED]


def test_secret_that_could_not_be_written_is_replaced_next_time(
    node: Node, run: RecordedRunner, settings: Settings
) -> None:
    settings.api.token_file.mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        setup(run, settings)
    assert [path.name for path in settings.api.token_file.parent.iterdir()] == ["api.token"]  # no temporary left
    settings.api.token_file.rmdir()
    setup(run, settings)
    assert read_token(settings.api.token_file).secret == node.tokens[f"{USER}!backup"]["value"]


def test_api_that_does_not_answer_is_said(node: Node, run: RecordedRunner, settings: Settings) -> None:
    with pytest.raises(PveUnreachableError):
        setup(run, replace(settings, api=replace(settings.api, url="https://127.0.0.1:1")))


@pytest.mark.parametrize("status", [403, 500, 596])
def test_trouble_with_the_api_is_no_reason_for_a_new_token(
    node: Node, run: RecordedRunner, settings: Settings, status: int
) -> None:
    setup(run, settings)
    node.changes.clear()
    node.fake.fail("GET", "/version", status, "trouble")
    with pytest.raises(PveError, match="trouble"):
        setup(run, settings)
    assert node.changes == []


def test_node_with_a_certificate_of_its_own(
    node: Node, run: RecordedRunner, settings: Settings, certificates: Certificates
) -> None:
    with pytest.raises(PveTrustError) as caught:
        setup(run, replace(settings, api=replace(settings.api, ca_file=certificates.other_ca)))
    assert "fingerprint: AB:CD" in caught.value.hint
    pinned = replace(settings.api, ca_file=certificates.other_ca, fingerprint=certificates.fingerprint)
    assert ("API", "right") in by_kind(setup(run, replace(settings, api=pinned)))


def test_token_that_lacks_a_privilege_is_an_error(
    node: Node, run: RecordedRunner, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        node, "_publish", lambda: node.fake.apitokens.update({k: t["value"] for k, t in node.tokens.items()})
    )
    with pytest.raises(PveError, match=r"lacks Datastore.Audit, Pool.Audit"):
        setup(run, settings)


def test_no_error_and_no_action_shows_the_secret(node: Node, run: RecordedRunner, settings: Settings) -> None:
    node.refuse = "set /access/acl"
    with pytest.raises(PveError) as caught:
        setup(run, settings)
    node.refuse = ""
    text = "".join(traceback.format_exception(caught.value)) + repr(setup(run, settings))
    assert len(node.tokens) == 1
    assert all(token["value"] not in text for token in node.tokens.values())


# The way back


def test_unsetup_takes_everything_of_ours(node: Node, run: RecordedRunner, settings: Settings) -> None:
    node.users["root@pam"] = {"enable": 1}
    node.tokens["root@pam!t"] = {"value": str(uuid.uuid4()), "privsep": 0}
    node.roles["Other"] = {"VM.Audit"}
    node.acl.add(("/", "user", "root@pam", "Other"))
    setup(run, settings)
    actions = unsetup(run, settings)
    assert by_kind(actions) == [("token", "removed"), ("file", "removed"), ("user", "removed"), ("role", "removed")]
    assert list(node.users) == ["root@pam"]
    assert list(node.tokens) == ["root@pam!t"]
    assert list(node.roles) == ["Other"]
    assert node.acl == {("/", "user", "root@pam", "Other")}
    assert not settings.api.token_file.exists()
    assert settings.config_file.exists()


def test_unsetup_twice(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    unsetup(run, settings)
    assert unsetup(run, settings) == ()


def test_unsetup_leaves_the_account_to_the_other_nodes(node: Node, run: RecordedRunner, settings: Settings) -> None:
    node.clustered = True
    setup(run, settings)
    node.tokens[f"{USER}!backup-pve2"] = {"value": str(uuid.uuid4()), "privsep": 1}
    actions = unsetup(run, settings)
    assert by_kind(actions)[-1] == ("user", "kept")
    assert list(node.tokens) == [f"{USER}!backup-pve2"]
    assert ROLE in node.roles


def test_unsetup_keeps_a_role_that_others_use(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    node.users["friend@pve"] = {"enable": 1}
    node.acl.add(("/", "user", "friend@pve", ROLE))
    assert by_kind(unsetup(run, settings))[-1] == ("role", "kept")
    assert ROLE in node.roles


def test_dry_unsetup(node: Node, run: RecordedRunner, settings: Settings) -> None:
    setup(run, settings)
    node.changes.clear()
    actions = unsetup(run, replace(settings, dry_run=True))
    assert {state for _, state in by_kind(actions)} == {"removed"}
    assert node.changes == []
    assert settings.api.token_file.exists()


def test_privileges_are_those_of_the_fact_sheet() -> None:
    assert privileges(8) == EIGHT
    assert privileges(9) == NINE
