"""ssh: one connection, no configuration but ours, hostile names quoted once, its own failures told apart."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pve_zfsbackup.errors import CommandError, HostKeyError, HostUnreachableError, ZfsError
from pve_zfsbackup.host import listing, zfs
from pve_zfsbackup.host.runner import Completed, Piped, ProcessRunner
from pve_zfsbackup.host.ssh import Destination, Host, connected
from pve_zfsbackup.model import Dataset

# Seen of OpenSSH 9.2: a session more than MaxSessions goes over a connection of its own, with these words before it.
CROWDED = (
    "mux_client_request_session: session request failed: Session open refused by peer\r\n"
    "ControlSocket /run/pve-zfsbackup/backup1.4711 already exists, disabling multiplexing\r\n"
)


class Ssh:
    """Answers every command the same; `connects` makes the socket as ssh does."""

    def __init__(self, control: Path, returncode: int = 0, stderr: str = "") -> None:
        self.control, self.returncode, self.stderr = control, returncode, stderr
        self.argvs: list[tuple[str, ...]] = []

    def run(self, argv: Sequence[str], **rest: object) -> Completed:
        self.argvs.append(tuple(argv))
        self.control.touch()
        return Completed(argv=tuple(argv), returncode=self.returncode, stdout="", stderr=self.stderr)

    def run_each(self, *args: object, **rest: object) -> list[Completed]:
        raise AssertionError("nothing on the node itself")

    def pipe(self, *args: object, **rest: object) -> Piped:
        raise AssertionError("no stream here")

    def cancel(self) -> None:
        raise AssertionError("nothing to cancel")


def destination(tmp_path: Path) -> Destination:
    return Destination(
        host="backup1.example", user="backup", port=2222, identity=Path("/etc/x/id"),
        known_hosts=Path("/etc/x/known"), control=tmp_path / "run/ssh-b",
    )  # fmt: skip


def host(tmp_path: Path, returncode: int = 0, stderr: str = "") -> tuple[Host, Ssh]:
    place = destination(tmp_path)
    place.control.parent.mkdir()
    runner = Ssh(place.control, returncode, stderr)
    return Host(name="backup1", runner=runner, destination=place), runner


def test_nothing_of_the_users_configuration_counts(tmp_path: Path) -> None:
    argv = destination(tmp_path).argv("zfs list")
    assert argv[:6] == ("ssh", "-F", "none", "-T", "-p", "2222")
    options = {argv[at + 1] for at, word in enumerate(argv) if word == "-o"}
    assert {
        "BatchMode=yes", "StrictHostKeyChecking=yes", "UserKnownHostsFile=/etc/x/known", "GlobalKnownHostsFile=none",
        "IdentitiesOnly=yes", "IdentityFile=/etc/x/id", "ControlMaster=auto", "ForwardAgent=no",
        "ClearAllForwardings=yes", "ServerAliveInterval=15", "ConnectTimeout=10", f"ControlPath={tmp_path}/run/ssh-b",
    } <= options  # fmt: skip
    assert argv[-3:] == ("--", "backup@backup1.example", "zfs list")


def test_a_stream_of_its_own_shares_nothing_but_the_rules(tmp_path: Path) -> None:
    place = destination(tmp_path)
    shared, alone = set(place.argv("x")), set(place.argv("x", alone=True))
    assert alone - shared == {"ControlPath=none"}
    assert shared - alone == {f"ControlPath={tmp_path}/run/ssh-b", "ControlMaster=auto", "ControlPersist=60"}
    assert "Ciphers=^aes128-gcm@openssh.com" in alone


@pytest.mark.processes
@pytest.mark.parametrize("name", ["plain", "a b", "100%h", '"x"', "back\\slash", "c'd", "#e", "tab\tx", "ü"])
def test_any_path_reaches_ssh_as_it_is(tmp_path: Path, name: str) -> None:
    """What the real client makes of our options: `-G` prints it."""
    odd = tmp_path / name
    place = Destination(
        host="h.example", user="u", port=22, identity=odd / "id", known_hosts=odd / "known", control=odd / "c"
    )
    argv = place.argv("zfs list")
    asked = ProcessRunner().run((argv[0], "-G", *argv[1 : argv.index("--")], "u@h.example"))
    told = dict(line.split(" ", 1) for line in asked.stdout.splitlines())
    assert told["userknownhostsfile"] == str(odd / "known")
    assert told["controlpath"] == str(odd / "c")
    assert told["identityfile"].replace("%%", "%") == str(odd / "id"), "ssh expands this one when it opens it"
    assert told["ciphers"].startswith("aes128-gcm@openssh.com,")


def test_commands_joined_for_one_session_stop_at_the_first_that_fails(tmp_path: Path) -> None:
    there, ran = host(tmp_path)
    assert there.run_all([("zfs", "set", "a=b c", "x@y"), ("zfs", "hold", "t", "x@y")]) is None
    assert [argv[-1] for argv in ran.argvs] == ["zfs set 'a=b c' x@y && zfs hold t x@y"]
    ran.returncode, ran.stderr = 1, "cannot open 'x@y': dataset does not exist"
    failed = there.run_all([("zfs", "set", "a=b", "x@y")] * 2)
    assert failed is not None
    assert (failed.argv, failed.returncode) == (("zfs", "set", "a=b", "x@y"), 1)


def test_a_line_stays_short_enough_for_one_argument(tmp_path: Path) -> None:
    there, ran = host(tmp_path)
    there.run_all([("zfs", "set", f"conf={'c' * 9000}", f"x@{number}") for number in range(50)])
    assert 4 < len(ran.argvs) < 10
    assert max(len(argv[-1]) for argv in ran.argvs) < 1 << 17
    assert sum(argv[-1].count("zfs set") for argv in ran.argvs) == 50


def test_on_the_node_itself_there_is_no_shell_to_join_commands(tmp_path: Path) -> None:
    ran = Ssh(tmp_path / "c")
    Host(name="source", runner=ran).run_all([("zfs", "set", "a=b", "x"), ("zfs", "set", "c=d", "y")])
    assert ran.argvs == [("zfs", "set", "a=b", "x"), ("zfs", "set", "c=d", "y")]


@pytest.mark.parametrize(
    "name", ["tank/a b", "tank/$(reboot)", "tank/`id`", "tank/'x", 'tank/"x', "tank/;ls", "tank/a\nb", "-oProxy", "ü"]
)
def test_hostile_names_are_one_word_for_the_other_side(tmp_path: Path, name: str) -> None:
    there, _ = host(tmp_path)
    *_, command = there.argv(("zfs", "destroy", f"{name}@x", f"p={name}"))
    assert shlex.split(command) == ["zfs", "destroy", f"{name}@x", f"p={name}"]


def test_the_nodes_own_commands_are_not_quoted() -> None:
    assert Host(name="source", runner=Ssh(Path("/x"))).argv(("zfs", "list", "a b")) == ("zfs", "list", "a b")


def test_the_result_speaks_of_the_command_not_of_ssh(tmp_path: Path) -> None:
    there, _ = host(tmp_path, 1, "cannot open 'tank/x': dataset does not exist")
    done = there.run(("zfs", "list", "tank/x"), check=False)
    assert done.argv == ("zfs", "list", "tank/x")
    with pytest.raises(CommandError, match="zfs list: cannot open") as caught:
        there.run(("zfs", "list", "tank/x"))
    assert not isinstance(caught.value, HostUnreachableError | ZfsError)


def test_what_ssh_says_of_a_crowded_connection_is_no_word_of_zfs(tmp_path: Path) -> None:
    """It works, over a connection more; only absence may count as absence, and this made a fault of it."""
    there, ran = host(tmp_path, 1, f"{CROWDED}cannot open 'tank/x': dataset does not exist\n")
    assert listing.read_guids(there, [Dataset("tank/x")]) == {"tank/x": frozenset()}
    assert zfs.current_guids(there, ["tank/x@a"]) == {}
    with pytest.raises(CommandError) as caught:
        there.run(("zfs", "list", "tank/x"))
    assert caught.value.message == "zfs list: cannot open 'tank/x': dataset does not exist"
    ran.stderr = CROWDED
    done = there.run_line([("grep", "-vx", "SUSPENDED", "/proc/x"), ("zfs", "list")])
    assert done.stderr == "", "a suspended pool is known by silence"
    ran.returncode = 255
    with pytest.raises(HostUnreachableError, match="disabling multiplexing"):
        there.run(("zfs", "list"))


def test_status_255_means_the_connection_even_when_nothing_is_checked(tmp_path: Path) -> None:
    there, _ = host(tmp_path, 255, "ssh: connect to host backup1.example port 2222: Connection timed out")
    with pytest.raises(HostUnreachableError, match=r"backup@backup1\.example:2222 failed.*timed out") as caught:
        there.run(("zfs", "list"), check=False)
    assert caught.value.transient


def test_255_of_a_local_program_is_its_own() -> None:
    done = Host(name="source", runner=Ssh(Path("/dev/null"), 255)).run(("zfs", "send", "-t", "x"), check=False)
    assert done.returncode == 255


@pytest.mark.parametrize(
    "text",
    [
        "No ED25519 host key is known for backup1.example and you have requested strict checking.\n"
        "Host key verification failed.",
        "@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@\nHost key verification failed.",
    ],
)
def test_an_unknown_or_changed_key_is_for_a_person(tmp_path: Path, text: str) -> None:
    there, _ = host(tmp_path, 255, text)
    with pytest.raises(HostKeyError) as caught:
        there.run(("zfs", "list"))
    assert not caught.value.transient
    assert "/etc/x/known" in caught.value.hint


def test_a_refused_key_names_the_public_one(tmp_path: Path) -> None:
    there, _ = host(tmp_path, 255, "backup@backup1.example: Permission denied (publickey).")
    with pytest.raises(HostUnreachableError) as caught:
        there.run(("zfs", "list"))
    assert "/etc/x/id.pub" in caught.value.hint
    assert not caught.value.transient, "to knock again does not help"


def test_the_connection_is_closed_also_after_a_failure(tmp_path: Path) -> None:
    place = destination(tmp_path)
    runner = Ssh(place.control)
    with pytest.raises(ZeroDivisionError), connected(Host(name="b", runner=runner, destination=place)) as there:
        len(there.run(("zfs", "list")).argv) / 0
    assert "-O" in runner.argvs[-1]
    assert runner.argvs[-1][runner.argvs[-1].index("-O") + 1] == "exit"
    assert place.control.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_is_closed_that_was_not_opened(tmp_path: Path) -> None:
    place = destination(tmp_path)
    runner = Ssh(place.control)
    with connected(Host(name="b", runner=runner, destination=place)):
        pass
    assert not runner.argvs


def test_a_path_too_long_for_a_socket_is_told_before_anything(tmp_path: Path) -> None:
    place = Destination(
        host="h", user="u", port=22, identity=Path("/i"), known_hosts=Path("/k"), control=tmp_path / ("x" * 90)
    )
    with (
        pytest.raises(CommandError, match="too long for a socket"),
        connected(Host(name="b", runner=Ssh(place.control), destination=place)),
    ):
        pytest.fail("connected")


@pytest.mark.processes
@pytest.mark.loopback
def test_what_killed_clients_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    place = destination(tmp_path)
    folder = place.control.parent
    folder.mkdir()
    gone = ProcessRunner().run(("sh", "-c", "echo $$")).stdout.strip()
    here = replace(place, control=folder / f"b.{os.getpid()}")
    bound = {name: socket.socket(socket.AF_UNIX) for name in (f"b.{gone}", f"b.{os.getpid()}", f"c.{gone}", "b.agent")}
    for name, made in bound.items():
        made.bind(str(folder / name))
        made.close()
    (folder / f"b.1{gone}").touch()
    with connected(Host(name="b", runner=Ssh(here.control), destination=here)):
        left = {path.name for path in folder.iterdir()}
    assert left == {f"b.{os.getpid()}", f"c.{gone}", "b.agent", f"b.1{gone}"}


@pytest.mark.processes
@pytest.mark.loopback
def test_a_connection_that_outlives_its_process_for_a_minute_stays(tmp_path: Path) -> None:
    place = destination(tmp_path)
    folder = place.control.parent
    folder.mkdir()
    gone = ProcessRunner().run(("sh", "-c", "echo $$")).stdout.strip()
    here = replace(place, control=folder / f"b.{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(folder / f"b.{gone}"))
        alive.listen()
        with connected(Host(name="b", runner=Ssh(here.control), destination=here)):
            assert (folder / f"b.{gone}").is_socket()
