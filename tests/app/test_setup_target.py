"""`setup target` from a node to a played host: preparing, pinning, configuring, checking, and what can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.app.setup_target import Preparation, check, setup_target, target_script
from pve_zfsbackup.app.target_choice import Asked
from pve_zfsbackup.app.target_hostkey import HostKey
from pve_zfsbackup.config import load_config
from pve_zfsbackup.config.example import example_config
from pve_zfsbackup.errors import CommandError, ConfigError, HostUnreachableError
from pve_zfsbackup.host.identity import owner_id
from tests.fakes.target_host import HOST_KEY, TargetHost
from tests.fakes.target_link import NODE_KEY, NOW, TargetLink

pytestmark = pytest.mark.processes
ROOT = "tank/backups/pve1"
USER = "pve-zfsbackup"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG90aGVyb3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm8="
PRINT = HostKey(*HOST_KEY.split()).fingerprint
OTHER_PRINT = HostKey(*OTHER_KEY.split()).fingerprint
HEAD = """\
api: {{node: pve1}}
runtime-dir: {place}/run
targets:
  backup1:
    host: backup1
    root: tank/backups/pve1
    append-only: {append_only}
    identity-file: {place}/id_ed25519
    known-hosts-file: {place}/known_hosts
"""


@pytest.fixture
def link(tmp_path: Path) -> TargetLink:
    return TargetLink(TargetHost(tmp_path / "host").build())


@pytest.fixture
def preparation(link: TargetLink, tmp_path: Path) -> Preparation:
    (place := tmp_path / "node").mkdir(mode=0o700)
    (place / "pve").mkdir()
    (place / "pve/pve-root-ca.pem").write_text("certificate\n")
    config = place / "config.yaml"
    config.write_text(HEAD.format(place=place, append_only="true"))
    config.chmod(0o600)
    return Preparation(
        asked=Asked(name="backup1", admin="root@backup1"),
        config_file=config,
        runner=link,
        pve_root=place / "pve",
        agent="/run/agent",
        now=lambda: NOW,
    )


def asked(preparation: Preparation, **words: Any) -> Preparation:
    return replace(preparation, asked=replace(preparation.asked, **words))


def states(actions: tuple[Action, ...]) -> dict[str, str]:
    return {action.object: action.state for action in actions}


def wrong(actions: tuple[Action, ...]) -> list[Action]:
    return [action for action in actions if action.state in ("failed", "warning")]


def plain(preparation: Preparation) -> None:
    text = preparation.config_file.read_text()
    preparation.config_file.write_text(text.replace("append-only: true", "append-only: false"))


# -- Preparing ------------------------------------------------------------------------------------------------------


def test_from_nothing_to_a_target_that_works(preparation: Preparation, link: TargetLink) -> None:
    done = setup_target(preparation)
    assert wrong(done) == []
    place = preparation.config_file.parent
    assert states(done) | {
        f"ssh key {place}/id_ed25519": "created",
        "user pve-zfsbackup": "created",
        "host key of backup1": "created",
        f"target backup1 in {place}/config.yaml": "right",
        "ssh pve-zfsbackup@backup1": "right",
        "account pve-zfsbackup": "right",
        f"owner of {ROOT}": "right",
        "maintain": "right",
    } == states(done)
    assert (place / "known_hosts").read_text() == f"backup1 {HOST_KEY}\n"
    assert (place / "known_hosts").stat().st_mode & 0o777 == 0o600
    assert link.host.state["datasets"][ROOT]["pve-zfsbackup:owner"] == owner_id(preparation.pve_root)


def test_the_second_time_changes_nothing(preparation: Preparation, link: TargetLink) -> None:
    setup_target(preparation)
    before = (
        link.host.state,
        (preparation.config_file.parent / "known_hosts").read_text(),
        link.host.config.read_text(),
    )
    done = setup_target(preparation)
    assert set(states(done).values()) == {"right"}
    assert before == (
        link.host.state, (preparation.config_file.parent / "known_hosts").read_text(), link.host.config.read_text()
    )  # fmt: skip


def test_the_administrators_own_ssh_is_used_once(preparation: Preparation, link: TargetLink) -> None:
    setup_target(asked(preparation, admin="bob@backup1:2222"))
    (admin,) = [argv for argv in link.ran if argv[0] == "ssh" and "BatchMode=yes" not in argv and "-O" not in argv]
    assert "-F" not in admin, "the administrator's own configuration counts"
    assert admin[admin.index("-o") + 1 :].count("IdentityAgent=/run/agent") == 1
    assert admin[-4:-1] == ("2222", "--", "bob@backup1")
    assert "sudo -n sh -s" in admin[-1]


def test_a_dry_run_changes_nothing(preparation: Preparation, link: TargetLink) -> None:
    first = setup_target(replace(preparation, dry_run=True))
    assert [action.state for action in first] == ["created"]  # without the key there is nothing to prepare
    place = preparation.config_file.parent
    (place / "id_ed25519").write_text("private\n")
    (place / "id_ed25519.pub").write_text(f"{NODE_KEY} root@pve1\n")
    second = setup_target(replace(preparation, dry_run=True))
    assert states(second)["user pve-zfsbackup"] == "created"
    assert states(second)["host key of backup1"] == "created"
    assert link.host.changes == []
    assert not (place / "known_hosts").exists()


def test_the_printed_script_is_what_is_run(preparation: Preparation, link: TargetLink) -> None:
    with pytest.raises(ConfigError, match=r"id_ed25519\.pub is missing"):
        target_script(preparation)
    sent: list[bytes] = []
    run = link.run

    class Listening:
        def run(self, argv: Any, *, input: bytes | None = None, **more: Any) -> Any:
            if input is not None:
                sent.append(input)
            return run(argv, input=input, **more)

    setup_target(replace(preparation, runner=Listening()))  # type: ignore[arg-type]
    assert [text.decode() for text in sent] == [target_script(preparation)]


def test_by_hand_with_the_printed_script(preparation: Preparation, link: TargetLink) -> None:
    byhand = asked(preparation, admin="")
    done = setup_target(byhand)
    assert wrong(done)[0].object == "host key of backup1"
    link.host.run(target_script(byhand))
    assert wrong(setup_target(replace(byhand, accepted=PRINT))) == []
    assert wrong(check(byhand)) == []


def test_a_failure_there_ends_it_before_anything_here(preparation: Preparation, link: TargetLink) -> None:
    (link.host.place / "bin/pve-zfsbackup-receiver").unlink()
    done = setup_target(preparation)
    assert [action.object for action in wrong(done)] == ["pve-zfsbackup-receiver"]
    assert not (preparation.config_file.parent / "known_hosts").exists()


def test_an_administrator_who_cannot_log_in(preparation: Preparation, link: TargetLink) -> None:
    link.down = "root@backup1: Permission denied (publickey,password)."
    with pytest.raises(HostUnreachableError, match="Permission denied") as raised:
        setup_target(preparation)
    assert "--print" in raised.value.hint


def test_a_script_that_was_not_run_is_told(preparation: Preparation, link: TargetLink) -> None:
    link.sudo = "sudo: a password is required"
    with pytest.raises(CommandError, match="did not come to its end: sudo: a password"):
        setup_target(preparation)


# -- The host key ---------------------------------------------------------------------------------------------------


def test_a_changed_host_key_is_never_taken_by_itself(preparation: Preparation, link: TargetLink) -> None:
    setup_target(preparation)
    link.host_key = OTHER_KEY
    (link.host.place / "host_key.pub").write_text(f"{OTHER_KEY}\n")
    (failed,) = wrong(setup_target(preparation))
    assert failed.object == "host key of backup1"
    assert PRINT in failed.detail
    assert failed.command == f"--accept-hostkey {OTHER_PRINT}"
    (unreachable,) = check(preparation)
    assert (unreachable.state, "host key" in unreachable.detail) == ("failed", True)
    assert "--accept-hostkey" in unreachable.command
    done = setup_target(replace(preparation, accepted=OTHER_PRINT))
    assert wrong(done) == []
    known = (preparation.config_file.parent / "known_hosts").read_text()
    assert known == f"backup1 {OTHER_KEY}\n"


def test_an_accepted_key_must_be_the_hosts(preparation: Preparation, link: TargetLink) -> None:
    (failed,) = wrong(setup_target(replace(preparation, accepted=OTHER_PRINT)))
    assert "the accepted key is not there" in failed.detail
    with pytest.raises(ConfigError, match="expected a fingerprint"):
        setup_target(replace(preparation, accepted="SHA256:nonsense"))


@pytest.mark.parametrize("answer", [True, False])
def test_without_an_administrator_a_person_is_asked(preparation: Preparation, link: TargetLink, answer: bool) -> None:
    setup_target(preparation)
    (preparation.config_file.parent / "known_hosts").unlink()
    questions: list[str] = []

    def confirm(question: str) -> bool:
        questions.append(question)
        return answer

    done = setup_target(replace(asked(preparation, admin=""), confirm=confirm))
    assert len(questions) == 1
    assert PRINT in questions[0]
    assert [action.object for action in wrong(done)] == ([] if answer else ["host key of backup1"])


def test_the_keys_of_other_hosts_stay(preparation: Preparation) -> None:
    known = preparation.config_file.parent / "known_hosts"
    known.write_text(f"# mine\nbackup2 {OTHER_KEY}\n[backup1]:2222 {OTHER_KEY}")
    setup_target(preparation)
    assert known.read_text() == f"# mine\nbackup2 {OTHER_KEY}\n[backup1]:2222 {OTHER_KEY}\nbackup1 {HOST_KEY}\n"


def test_a_host_that_shows_no_key(preparation: Preparation, link: TargetLink) -> None:
    link.down = "down"
    with pytest.raises(CommandError, match="Name or service not known"):
        setup_target(asked(preparation, admin=""))


# -- The configuration ----------------------------------------------------------------------------------------------


def test_a_configuration_as_setup_wrote_it_gets_the_target(
    preparation: Preparation, link: TargetLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = fresh(preparation, monkeypatch)
    done = setup_target(new)
    assert states(done)[f"target backup1 in {new.config_file}"] == "created"
    config = load_config(new.config_file)
    target = config.targets["backup1"]
    assert (target.host, target.root, target.append_only, target.port) == ("backup1", ROOT, True, 2222)
    assert config.jobs["all"].targets == ("backup1",)
    text = new.config_file.read_text()
    assert (
        text.replace(
            f"  backup1:\n    host: backup1\n    root: {ROOT}\n    append-only: true\n    port: 2222\n", "", 1
        ).replace("\n    targets: [backup1]\n", "\n#    targets: [backup1]\n", 1)
        == example_config()
    )


def test_a_configuration_of_a_person_is_left(
    preparation: Preparation, link: TargetLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = fresh(preparation, monkeypatch)
    text = f"{new.config_file.read_text()}# mine\n"
    new.config_file.write_text(text)
    (told,) = wrong(setup_target(asked(new, host="u@backup1:2222", plain=True)))
    assert new.config_file.read_text() == text
    assert (told.state, told.command) == (
        "warning", f"targets:\n  backup1:\n    host: backup1\n    root: {ROOT}\n    user: 'u'\n    port: 2222"
    )  # fmt: skip


def test_a_clusters_shared_configuration_is_never_written(
    preparation: Preparation, link: TargetLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one as `setup` made it: what to add is told."""
    new = fresh(preparation, monkeypatch)
    shared = preparation.pve_root / "pve-zfsbackup.yaml"
    shared.write_text(new.config_file.read_text())
    (told,) = wrong(setup_target(replace(new, config_file=shared)))
    assert shared.read_text() == example_config()
    assert told.state == "warning"
    assert "every node of the cluster reads this file" in told.detail
    assert told.command.startswith("targets:\n  backup1:\n    host: backup1\n")


def fresh(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> Preparation:
    """A target that is not configured, with this node's own files in a directory of the test."""
    from pve_zfsbackup.app import target_choice  # noqa: PLC0415
    from pve_zfsbackup.config import Target  # noqa: PLC0415

    place = preparation.config_file.parent
    preparation.config_file.write_text(example_config())

    def new(**given: Any) -> Target:
        return Target(**given)

    chosen = target_choice.choose

    def elsewhere(config: Any, words: Asked) -> Target:
        target = chosen(config, words)
        return replace(target, identity_file=place / "id_ed25519", known_hosts_file=place / "known_hosts")

    def added(text: str, target: Target, file: str) -> str | None:
        usual = new(name="x", host="x", root=target.root)
        files = {"identity_file": usual.identity_file, "known_hosts_file": usual.known_hosts_file}
        return target_choice.added(text, replace(target, **files), file)

    monkeypatch.setattr("pve_zfsbackup.app.setup_target.choose", elsewhere)
    monkeypatch.setattr("pve_zfsbackup.app.setup_target.added", added)
    monkeypatch.setattr("pve_zfsbackup.app.setup_target.node_name", lambda _: "pve1")
    monkeypatch.setattr("pve_zfsbackup.host.ssh.SOCKET_LIMIT", 200)
    monkeypatch.setattr(
        "pve_zfsbackup.app.setup_target.load_config", lambda path: replace(load_config(path), runtime_dir=place / "run")
    )
    return asked(preparation, host="backup1:2222", root=ROOT)


# -- Hostile and wrong words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"name": "new"}, "there is no target new"),
        ({"name": "-oProxyCommand=x"}, "NAME"),
        ({"name": "new", "host": "-oProxyCommand=reboot", "root": ROOT}, "--host"),
        ({"name": "new", "host": "a b", "root": ROOT}, "--host"),
        ({"name": "new", "host": "u$(x)@b", "root": ROOT}, "--host"),
        ({"name": "new", "host": "@b", "root": ROOT}, "--host"),
        ({"name": "new", "host": "b:99999", "root": ROOT}, "--host"),
        ({"name": "new", "host": "b:", "root": ROOT}, "--host"),
        ({"name": "new", "host": "::1", "root": ROOT}, "--host"),
        ({"name": "new", "host": "root@b", "root": ROOT}, "root cannot be held"),
        ({"name": "new", "host": "b", "root": "tank"}, "--root"),
        ({"name": "new", "host": "b", "root": "tank/x@y"}, "--root"),
        ({"name": "new", "host": "b", "root": "tank/x;reboot"}, "--root"),
        ({"name": "new", "host": "b", "root": "tank/x\n"}, "--root"),
        ({"name": "new", "host": "backup1", "root": ROOT}, "same place"),
        ({"clients": '10.0.0.1" ssh-rsa'}, "--from"),
        ({"admin": "-oProxyCommand=reboot"}, "--admin"),
        ({"admin": "root@a;b"}, "--admin"),
        ({"host": "bob@other:2222"}, "user is pve-zfsbackup, not bob"),
        ({"root": "tank/other"}, f"root is {ROOT}, not tank/other"),
        ({"plain": True}, "append-only, not plain"),
    ],
)
def test_words_that_are_refused_before_anything_runs(
    preparation: Preparation, link: TargetLink, words: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        setup_target(asked(preparation, **words))
    assert told in raised.value.message
    assert link.ran == []
    with pytest.raises(ConfigError):
        target_script(asked(preparation, **words))


@pytest.mark.parametrize("host", ["backup1", "pve-zfsbackup@backup1", "backup1:22", "pve-zfsbackup@backup1:22"])
def test_words_that_agree_are_welcome(preparation: Preparation, host: str) -> None:
    assert wrong(setup_target(asked(preparation, host=host, root=ROOT))) == []


# -- Checking -------------------------------------------------------------------------------------------------------

Damage = Callable[[dict[str, Any]], object]


def drift(key: str, value: str) -> Damage:
    return lambda state: state["datasets"][ROOT].update({key: value})


def allowed(*names: str) -> Damage:
    return lambda state: state["allow"][ROOT]["user pve-zfsbackup"].update({"Local+Descendent": list(names)})


APPEND = ("create", "mount", "receive:append", "send", "userprop")


@pytest.mark.parametrize(
    ("damage", "name", "detail", "mend"),
    [
        (drift("readonly", "off"), f"dataset {ROOT}", "readonly is off, not on", f"zfs set readonly=on {ROOT}"),
        (drift("pve-zfsbackup:owner", "pve-other"), f"owner of {ROOT}", "belongs to pve-other", "zfs set"),
        (lambda state: state["datasets"].pop(ROOT), f"dataset {ROOT}", "does not exist", "setup target backup1"),
        (lambda state: state["allow"].clear(), "permissions of pve-zfsbackup", "lacks create,mount", "zfs allow -u"),
        (allowed(*APPEND[:4]), f"permissions of {USER}", "lacks userprop", f"zfs allow -u {USER} userprop {ROOT}"),
        (allowed(*APPEND, "destroy"), f"permissions of {USER}", "destroy", f"zfs unallow -u {USER} destroy"),
        (allowed(*APPEND, "receive"), "permissions of pve-zfsbackup", "more than add: receive", "zfs unallow"),
        (lambda state: state["users"].clear(), f"ssh {USER}@backup1", "Permission denied", "--admin root@backup1"),
    ],
)  # fmt: skip
def test_check_finds_what_is_wrong(
    preparation: Preparation, link: TargetLink, damage: Damage, name: str, detail: str, mend: str
) -> None:
    setup_target(preparation)
    link.host.edit(damage)
    (found,) = [action for action in check(preparation) if action.state == "failed"]
    assert found.object == name
    assert detail in found.detail
    assert mend in found.command


@pytest.mark.parametrize(
    ("fields", "name", "detail"),
    [
        ({"clock": NOW + 3600}, "clock", "3600 s ahead of"),
        ({"clock": NOW - 61}, "clock", "61 s behind"),
        ({"maintained": 0}, "maintain", "has not run"),
        ({"maintained": NOW - 30 * 3600}, "maintain", "30 h ago"),
        ({"state": "DEGRADED"}, "pool tank", "DEGRADED"),
        ({"available": 1 << 30}, f"space on {ROOT}", "less than 10 %"),
        ({"own_zfs": "2.2.7"}, "OpenZFS here", "2.2.7 can damage encrypted data"),
    ],
)
def test_check_warns(
    preparation: Preparation, link: TargetLink, fields: dict[str, Any], name: str, detail: str
) -> None:
    setup_target(preparation)
    for field, value in fields.items():
        setattr(link, field, value)
    (found,) = wrong(check(preparation))
    assert (found.state, found.object) == ("warning", name)
    assert detail in found.detail
    assert found.command


@pytest.mark.parametrize("version", ["2.2.7", "2.3.0", "2.3.2"])
def test_check_warns_of_versions_known_to_corrupt(preparation: Preparation, link: TargetLink, version: str) -> None:
    link.host.edit(lambda state: state.update(zfs=version))
    found = wrong(setup_target(preparation))
    assert [(action.object, action.state) for action in found] == [("OpenZFS on backup1", "warning")]


def test_check_finds_a_missing_feature(preparation: Preparation, link: TargetLink) -> None:
    setup_target(preparation)
    link.features["encryption"] = "disabled"
    del link.features["zstd_compress"]  # nobody uses it
    (found,) = wrong(check(preparation))
    assert (found.state, "lacks encryption" in found.detail) == ("failed", True)
    assert found.command == "ssh root@backup1 zpool set feature@encryption=enabled tank"


def test_check_touches_no_suspended_pool(preparation: Preparation, link: TargetLink) -> None:
    setup_target(preparation)
    link.state = "SUSPENDED"
    link.ran.clear()
    found = check(preparation)
    assert [(action.object, action.state) for action in found][1:] == [("pool tank", "failed")]
    assert not any("zfs list" in argv[-1] or "zpool" in argv[-1] for argv in link.ran)


def test_check_finds_the_wrong_kind_of_account(preparation: Preparation, link: TargetLink) -> None:
    setup_target(preparation)
    plain(preparation)
    found = next(action for action in check(preparation) if action.state == "failed")
    assert (found.object, "put `append-only: true`" in found.detail) == ("account pve-zfsbackup", True)
    setup_target(preparation)
    assert wrong(check(preparation)) == []
    preparation.config_file.write_text(preparation.config_file.read_text().replace("only: false", "only: true"))
    found = next(action for action in check(preparation) if action.state == "failed")
    assert "is a plain one" in found.detail


def test_check_finds_a_receiver_of_another_kind(preparation: Preparation, link: TargetLink) -> None:
    setup_target(preparation)
    link.host.edit(lambda state: state.update(receiver="9.9"))
    (found,) = wrong(check(preparation))
    assert (found.state, "its receiver is 9.9" in found.detail) == ("warning", True)
    (link.host.place / "bin/pve-zfsbackup-receiver").unlink()
    (found,) = check(preparation)
    assert (found.state, "is the package" in found.command) == ("failed", True)


def test_check_changes_nothing(preparation: Preparation, link: TargetLink) -> None:
    setup_target(preparation)
    before = (link.host.state, {path: path.stat().st_mtime_ns for path in preparation.config_file.parent.iterdir()})
    check(preparation)
    assert before == (
        link.host.state, {path: path.stat().st_mtime_ns for path in preparation.config_file.parent.iterdir()}
    )  # fmt: skip


def test_fingerprints_are_those_of_openssh() -> None:
    """As `ssh-keygen -lf` says of these (9.2)."""
    blob = "AAAAC3NzaC1lZDI1NTE5AAAAIH+cz1G4VlWyT93K5EPYol3QGLjLdFcstBxIMm714uMA"
    assert HostKey("ssh-ed25519", blob).fingerprint == "SHA256:FdbERXzLj6ahxIOdJBlLKIiju/slB8mLTbHcigixAnU"
