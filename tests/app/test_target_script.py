"""The script that makes a host a target: run by a real shell on a host that is played."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.app.setup_account import Action
from pve_zfsbackup.app.target_script import PublicKey, Told, Wanted, read_answer, script
from pve_zfsbackup.config import DEFAULT_KEEP
from pve_zfsbackup.errors import CommandError
from pve_zfsbackup.model import Dataset
from tests.fakes.target_host import HOST_KEY, TargetHost

pytestmark = pytest.mark.processes
ROOT = "tank/backups/pve1"
BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIG5vZGVrZXlub2Rla2V5bm9kZWtleW5vZGVrZXlub2Rla2V5"
KEY = PublicKey(kind="ssh-ed25519", blob=BLOB, comment="pve-zfsbackup@pve1")
WANTED = Wanted(
    account="pve-zfsbackup", root=Dataset(ROOT), append_only=True, key=KEY, owner="pve-0123", keep=DEFAULT_KEEP
)
PLAIN = replace(WANTED, append_only=False)
INERT = {"readonly": "on", "mountpoint": "none", "canmount": "off", "volmode": "none", "snapdir": "hidden"}
OWNER = "pve-zfsbackup:owner"


@pytest.fixture
def host(tmp_path: Path) -> TargetHost:
    return TargetHost(tmp_path).build()


def made(host: TargetHost, wanted: Wanted = WANTED, *arguments: str) -> Told:
    done = host.run(script(wanted), *arguments)
    assert done.stderr == ""
    told = read_answer(done.stdout, "backup1")
    assert done.returncode == int(any(action.state == "failed" for action in told.actions))
    return told


def states(told: Told) -> dict[str, str]:
    return {action.object: action.state for action in told.actions}


def failure(host: TargetHost, wanted: Wanted = WANTED) -> Action:
    """The one thing that stands in the way; nothing was changed."""
    before = (host.state, sorted(host.place.rglob("*")), host.keys().exists() and host.keys().read_text())
    told = made(host, wanted)
    assert before == (host.state, sorted(host.place.rglob("*")), host.keys().exists() and host.keys().read_text())
    (failed,) = [action for action in told.actions if action.state != "right"]
    assert failed.state == "failed", "nothing was done, and nothing is told as done"
    return failed


def line(host: TargetHost, root: str = ROOT) -> str:
    command = f"{host.place}/bin/pve-zfsbackup-receiver --root {root}"
    return f'restrict,command="{command}" ssh-ed25519 {BLOB} pve-zfsbackup@pve1'


def test_a_bare_host_becomes_a_target(host: TargetHost) -> None:
    told = made(host)
    assert states(told) == {
        "OpenZFS": "right",
        "pve-zfsbackup-receiver": "right",
        f"directory {host.place}/state/spool": "created",
        "user pve-zfsbackup": "created",
        "key pve-zfsbackup@pve1": "created",
        f"dataset {ROOT}": "created",
        "permissions of pve-zfsbackup": "created",
        f"{host.config}, {ROOT}": "created",
    }
    state = host.state
    assert state["users"]["pve-zfsbackup"] == {
        "uid": 990, "home": str(host.home()), "shell": "/bin/sh", "password": "*"
    }  # fmt: skip
    assert state["datasets"]["tank/backups"] == INERT
    assert state["datasets"][ROOT] == {**INERT, OWNER: "pve-0123"}
    assert state["allow"] == {
        ROOT: {"user pve-zfsbackup": {"Local+Descendent": ["create", "mount", "receive:append", "send", "userprop"]}}
    }
    assert host.keys().read_text() == f"{line(host)}\n"
    assert [path.stat().st_mode & 0o777 for path in (host.home(), host.keys().parent, host.keys())] == [
        0o755, 0o755, 0o644
    ]  # fmt: skip
    assert (host.place / "state/spool").stat().st_mode & 0o7777 == 0o1733
    assert tomllib.loads(host.config.read_text())["roots"] == {
        ROOT: {
            "account": "pve-zfsbackup", "keep-hourly": 24, "keep-daily": 7, "keep-weekly": 4, "keep-monthly": 12
        }
    }  # fmt: skip
    assert told.host_keys == (tuple(HOST_KEY.split()),)


@pytest.mark.parametrize("wanted", [WANTED, PLAIN])
def test_the_second_time_changes_nothing(host: TargetHost, wanted: Wanted) -> None:
    made(host, wanted)
    changes = host.changes
    told = made(host, wanted)
    assert set(states(told).values()) == {"right"}
    assert host.changes == changes
    assert [action.command for action in told.actions if action.command] == []


def test_a_dry_run_tells_the_commands_and_runs_none(host: TargetHost) -> None:
    told = made(host, WANTED, "--dry-run")
    assert (host.changes, host.keys().exists(), host.config.exists()) == ([], False, False)
    done = made(host)
    assert [(a.object, a.state, a.command) for a in told.actions] == [
        (a.object, a.state, a.command) for a in done.actions
    ]
    user = next(action for action in told.actions if action.object.startswith("user"))
    assert user.command.startswith("useradd --system --home-dir")


def test_a_plain_account_is_not_held_to_the_receiver(host: TargetHost) -> None:
    (host.place / "bin/pve-zfsbackup-receiver").unlink()
    told = made(host, PLAIN)
    assert host.keys().read_text() == f"restrict ssh-ed25519 {BLOB} pve-zfsbackup@pve1\n"
    allowed = host.state["allow"][ROOT]["user pve-zfsbackup"]["Local+Descendent"]
    assert {"destroy", "hold", "release", "receive"} <= set(allowed)
    assert not host.config.exists()
    assert "pve-zfsbackup-receiver" not in states(told)


def test_the_addresses_are_in_the_key(host: TargetHost) -> None:
    made(host, replace(WANTED, clients="10.0.0.0/8,fe80::1"))
    assert ',from="10.0.0.0/8,fe80::1" ssh-ed25519' in host.keys().read_text()


def test_an_older_openzfs_gets_the_older_permission_and_says_what_that_means(host: TargetHost) -> None:
    host.edit(lambda state: state.update(zfs="2.2.7"))
    told = made(host)
    assert "receive" in host.state["allow"][ROOT]["user pve-zfsbackup"]["Local+Descendent"]
    detail = next(action.detail for action in told.actions if action.object.startswith("permissions"))
    assert "no receive:append" in detail


def test_what_is_drifted_is_put_right_and_only_that(host: TargetHost) -> None:
    made(host)

    def drift(state: dict) -> None:  # type: ignore[type-arg]
        state["datasets"][ROOT]["readonly"] = "off"
        reaches = state["allow"][ROOT]["user pve-zfsbackup"]
        reaches["Local+Descendent"] = ["create", "destroy", "receive:append", "send", "userprop"]
        reaches["Local"] = ["mount"]
        state["allow"][ROOT]["user bob"] = {"Local+Descendent": ["destroy"]}
        state["changes"] = []

    host.edit(drift)
    told = made(host)
    changed = {name for name, state in states(told).items() if state == "changed"}
    assert changed == {f"dataset {ROOT}", "permissions of pve-zfsbackup"}
    assert host.changes == [
        f"zfs set readonly=on {ROOT}",
        f"zfs allow -u pve-zfsbackup mount {ROOT}",
        f"zfs unallow -u pve-zfsbackup destroy {ROOT}",
    ]
    assert host.state["allow"][ROOT]["user bob"] == {"Local+Descendent": ["destroy"]}


def test_permissions_from_above_are_not_ours_to_take(host: TargetHost) -> None:
    host.edit(lambda state: state["allow"].update(tank={"everyone": {"Local+Descendent": ["destroy", "mount"]}}))
    assert "destroy (everyone)" in failure(host).detail
    made(host, PLAIN)


def test_a_plain_account_becomes_append_only(host: TargetHost) -> None:
    made(host, PLAIN)
    told = made(host)
    key = next(action for action in told.actions if action.object.startswith("key"))
    assert (key.state, "it was: restrict ssh-ed25519" in key.detail) == ("changed", True)
    assert host.keys().read_text() == f"{line(host)}\n"
    assert host.state["allow"][ROOT]["user pve-zfsbackup"]["Local+Descendent"] == [
        "create", "mount", "receive:append", "send", "userprop"
    ]  # fmt: skip


# -- Keys -----------------------------------------------------------------------------------------------------------


def test_other_keys_stay_as_they_are(host: TargetHost) -> None:
    host.account()
    others = "# a comment\nssh-ed25519 AAAAother pve-zfsbackup@pve2\n\nssh-rsa AAAAB3 bob@desk $(reboot)\n"
    host.keys().write_text(others)
    made(host)
    assert host.keys().read_text() == f"{others}{line(host)}\n"


def test_a_line_of_ours_that_differs_is_shown_and_replaced(host: TargetHost) -> None:
    host.account()
    old = f'restrict,command="/opt/receiver --root {ROOT}" ssh-ed25519 {BLOB} pve-zfsbackup@old'
    host.keys().write_text(f"{old}\nssh-rsa AAAAB3 bob@desk\n")
    told = made(host)
    key = next(action for action in told.actions if action.object.startswith("key"))
    assert key.state == "changed"
    assert old in key.detail
    assert host.keys().read_text() == f"ssh-rsa AAAAB3 bob@desk\n{line(host)}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"ssh-ed25519 {BLOB} bob@desk", "not ours"),
        (f"ssh-ed25519 {BLOB} pve-zfsbackup@pve1", "not ours"),  # unrestricted: somebody meant that
        (f'restrict,command="/usr/bin/x --root tank/other" ssh-ed25519 {BLOB} pve-zfsbackup@pve1', "another root"),
        (f"restrict ssh-ed25519 {BLOB} pve-zfsbackup@a\nrestrict ssh-ed25519 {BLOB} pve-zfsbackup@b", "more than once"),
    ],
)
def test_a_line_with_our_key_that_is_not_ours_is_left(host: TargetHost, text: str, told: str) -> None:
    host.account()
    host.keys().write_text(f"{text}\n")
    failed = failure(host)
    assert failed.object == "key pve-zfsbackup@pve1"
    assert told in failed.detail


def test_keys_that_the_account_could_change_hold_it_to_nothing(host: TargetHost) -> None:
    host.account()
    host.keys().parent.chmod(0o777)
    assert f"chown root: {host.keys().parent}" in failure(host).detail
    assert "the line for" in failure(host, PLAIN).detail
    host.keys().write_text(f"restrict ssh-ed25519 {BLOB} pve-zfsbackup@pve1\n")
    made(host, PLAIN)


def test_nothing_is_written_through_a_link(host: TargetHost, tmp_path: Path) -> None:
    host.account()
    (elsewhere := tmp_path / "elsewhere").mkdir()
    host.keys().parent.rmdir()
    host.keys().parent.symlink_to(elsewhere)
    assert str(host.keys().parent) in failure(host, PLAIN).detail
    assert list(elsewhere.iterdir()) == []


def test_sshd_says_where_keys_are(host: TargetHost) -> None:
    (place := host.place / "etc/keys").mkdir()
    host.edit(lambda state: state.update(keysfile=f"{place}/%u"))
    told = made(host, replace(PLAIN, account="backup"))
    where = next(action for action in told.actions if action.object.startswith("key"))
    unsafe = Path("/tmp").stat().st_mode & 0o002 and str(place).startswith("/tmp/")
    assert where.state == ("failed" if unsafe else "created")  # a directory of everybody's is above it
    assert str(place / "backup") in where.detail


# -- What stands in the way -----------------------------------------------------------------------------------------


def test_without_a_receiver_nothing_is_done(host: TargetHost) -> None:
    (host.place / "bin/pve-zfsbackup-receiver").unlink()
    failed = failure(host)
    assert (failed.object, "install the package" in failed.detail) == ("pve-zfsbackup-receiver", True)


def test_without_zfs_nothing_is_done(host: TargetHost) -> None:
    (host.place / "bin/zfs").unlink()
    assert "no zfs command" in failure(host).detail


def test_a_pool_that_is_missing_or_suspended(host: TargetHost) -> None:
    assert "not imported" in failure(host, replace(WANTED, root=Dataset("other/x"))).detail
    (host.place / "kstat/tank/state").write_text("SUSPENDED\n")
    assert "suspended" in failure(host).detail


def test_an_openzfs_that_is_too_old(host: TargetHost) -> None:
    host.edit(lambda state: state.update(zfs="2.0.7"))
    assert "2.1 is needed" in failure(host).detail


def test_not_root(host: TargetHost) -> None:
    host.edit(lambda state: state.update(uid=1000))
    assert failure(host).detail == "needs root"


def test_the_root_of_another_source(host: TargetHost) -> None:
    host.edit(lambda state: state["datasets"].update({"tank/backups": {}, ROOT: {**INERT, OWNER: "pve-9999"}}))
    assert "belongs to pve-9999" in failure(host).detail


@pytest.mark.parametrize("below", [ROOT, f"{ROOT}/x"])
def test_a_root_within_a_root(host: TargetHost, below: str) -> None:
    above = {**INERT, OWNER: "pve-9999"}
    host.edit(lambda state: state["datasets"].update({"tank/backups": above, ROOT: {}}))
    assert "pve-9999" in failure(host, replace(WANTED, root=Dataset(below))).detail


@pytest.mark.parametrize("used", [{ROOT: {"mounted": "yes"}}, {ROOT: {}, f"{ROOT}/home": {}}])
def test_a_dataset_in_use_is_not_taken_over(host: TargetHost, used: dict[str, dict[str, str]]) -> None:
    host.edit(lambda state: state["datasets"].update({"tank/backups": {}, **used}))
    assert "in use and not ours" in failure(host).detail


def test_a_dataset_as_readme_makes_it_is_taken_over(host: TargetHost) -> None:
    host.edit(lambda state: state["datasets"].update({"tank/backups": {}, ROOT: INERT, f"{ROOT}/local-zfs": {}}))
    made(host)
    assert host.state["datasets"][ROOT][OWNER] == "pve-0123"


def test_accounts_that_cannot_be_used(host: TargetHost) -> None:
    host.account(uid=0)
    assert "is root" in failure(host).detail
    host.edit(lambda state: state["users"]["pve-zfsbackup"].update(uid=1001, shell="/usr/sbin/nologin"))
    host.home().chmod(0o777)
    assert any(a.state == "failed" and "its shell is" in a.detail for a in made(host).actions)
    host.home().chmod(0o755)
    assert states(made(host))["user pve-zfsbackup"] == "changed"
    assert host.state["users"]["pve-zfsbackup"]["shell"] == "/bin/sh"
    host.edit(lambda state: state["users"]["pve-zfsbackup"].update(password="$6$x"))
    assert states(made(host))["user pve-zfsbackup"] == "warning"


def test_a_home_that_is_there_before_its_account(host: TargetHost) -> None:
    host.home().mkdir()
    host.home().chmod(0o777)
    assert "move it away" in failure(host).detail


def test_the_policy_of_others_stays(host: TargetHost) -> None:
    host.config.write_text('# mine\n[roots."tank/other"]\nkeep-daily = 3\n')
    made(host)
    assert host.config.read_text().startswith('# mine\n[roots."tank/other"]\nkeep-daily = 3\n\n[roots.')
    assert tomllib.loads(host.config.read_text())["roots"].keys() == {"tank/other", ROOT}


@pytest.mark.parametrize(
    ("text", "told"), [(f'[roots."{ROOT}"]\naccount = "bob"\n', "not pve-zfsbackup"), ("[roots\n", "cannot be read")]
)
def test_a_policy_that_does_not_fit(host: TargetHost, text: str, told: str) -> None:
    host.config.write_text(text)
    assert told in failure(host).detail


def test_a_command_that_fails_ends_it_and_the_next_run_goes_on(host: TargetHost) -> None:
    host.edit(lambda state: state.update(broken="create"))
    told = made(host)
    assert told.actions[-1] == Action(
        object=f"dataset {ROOT}",
        state="failed",
        detail="cannot: create is broken",
        command=told.actions[-1].command,
    )
    assert "zfs create" in told.actions[-1].command
    host.edit(lambda state: state.pop("broken"))
    assert states(made(host))[f"dataset {ROOT}"] == "created"
    assert set(states(made(host)).values()) == {"right"}


# -- The text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [WANTED, PLAIN, replace(WANTED, clients="10.0.0.0/8")])
def test_shells_and_their_critics_take_it(wanted: Wanted, tmp_path: Path) -> None:
    (file := tmp_path / "target.sh").write_text(script(wanted))
    subprocess.run(("/bin/sh", "-n", file), check=True)
    if critic := shutil.which("shellcheck"):  # not among the build dependencies
        done = subprocess.run((critic, file), capture_output=True, text=True, check=False)
        assert done.stdout == ""


def test_half_a_script_does_nothing(host: TargetHost) -> None:
    text = script(WANTED)
    done = host.run(text[: text.rindex("main ")])
    assert (done.stdout, host.changes) == ("", [])


@pytest.mark.parametrize("text", ["", "right\tOpenZFS\t2.3\t\n", "bash: sh: not found\n"])
def test_an_answer_without_its_end_is_none(text: str) -> None:
    with pytest.raises(CommandError, match="did not come to its end"):
        read_answer(text, "backup1")


@pytest.mark.parametrize(
    ("text", "comment"),
    [
        (f"ssh-ed25519 {BLOB} pve-zfsbackup@pve1\n", "pve-zfsbackup@pve1"),
        (f"ssh-ed25519 {BLOB}", "pve-zfsbackup@node"),
        (f"ssh-ed25519 {BLOB} root's `key`", "pve-zfsbackup@root-s--key-"),
    ],
)
def test_public_keys(text: str, comment: str) -> None:
    assert PublicKey.parse(text) == PublicKey(kind="ssh-ed25519", blob=BLOB, comment=comment)


@pytest.mark.parametrize("text", ["", "x", f"ssh-ed25519 {BLOB};reboot", f"a {BLOB}", f"ssh-rsa {BLOB}\nssh-rsa A"])
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(ValueError, match="expected one ssh public key"):
        PublicKey.parse(text)
