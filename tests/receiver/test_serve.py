"""The forced command as a program: what it starts, with what on stdin, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time

import pytest

from pve_zfsbackup import __version__, receiver
from pve_zfsbackup.receiver import DENIED, QUEUED, Site, serve
from tests.receiver.conftest import RECEIVER, ROOT, Target
from tests.receiver.lines import (
    ABORT,
    ALLOWED,
    CREATE,
    DISK,
    GREP,
    LIST,
    OTHER,
    PACKAGE,
    RAW,
    RECEIVE,
    RESUME,
    SET,
    SNAPSHOT,
    STAMP,
    STREAM,
)

pytestmark = pytest.mark.processes
GOOD_PARENT = "readonly\ton\nmountpoint\tnone\nvolmode\tnone\nsnapdir\thidden\n"
TOKEN = ("zfs", "get", "-Hp", "-o", "value", "receive_resume_token")
GUID = ("zfs", "get", "-Hp", "-o", "value", "guid")


def test_every_line_of_the_contract_is_done(target: Target) -> None:
    target.says("zfs", "get", "-Hp", "-o", "property,value", out=GOOD_PARENT)
    target.says(*TOKEN, out="1-abc\n")
    target.says("zfs", "send", "-nvP", out=f"resume token contents:\n\ttoguid = 0x1f\n\ttoname = {SNAPSHOT}\n")
    target.says(*GUID, out="31\n")
    for line in ALLOWED:
        done = target.asked(line, b"stream")
        # No kstat of a pool on this machine: `grep` ends with 2, and nothing follows it.
        expected = 2 if line.startswith(GREP) else QUEUED if line == ABORT else 0
        assert done.returncode == expected, (line, done)
    assert target.argvs.count(["zfs", "receive", "-s", "-u", "--", DISK]) == 6
    assert ["zfs", "receive", "-A", "--", DISK] not in target.argvs


def test_a_stream_goes_out_as_it_is(target: Target) -> None:
    target.says("zfs", "send", "-w", out="the stream")
    done = target.asked(RAW)
    assert (done.returncode, done.stdout) == (0, b"the stream")
    assert target.argvs == [["zfs", "send", "-w", "--", SNAPSHOT]]


@pytest.mark.parametrize(
    "told",
    [
        "",
        "resume token contents:\n\ttoname = tank/backups/pve2/local-zfs/x@pzb:20261123T180000Z-ab12\n",
        "resume token contents:\n\ttoname = tank/secret@pzb:20261123T180000Z-ab12\n",
        f"\ttoname = {DISK}@manual\n",
        f"\ttoname = {SNAPSHOT}\n\ttoname = tank/secret@pzb:20261123T180000Z-ab12\n",
    ],
)
def test_a_token_of_something_else_is_denied(target: Target, told: str) -> None:
    """A token is made by anybody who can write one: what it names decides."""
    target.says("zfs", "send", "-nvP", err=told, status=255)
    done = target.asked(RESUME)
    assert (done.returncode, done.stdout) == (DENIED, b"")
    assert b"the token is of" in done.stderr
    assert target.argvs == [["zfs", "send", "-nvP", "-t", RESUME.split(" ")[-1]]]


def test_a_token_of_ours_goes_on_though_asking_ends_with_an_error(target: Target) -> None:
    target.says("zfs", "send", "-nvP", out=f"\ttoguid = 0x1f\n\ttoname = {SNAPSHOT}\n", status=255)
    target.says(*GUID, out="31\n")
    assert target.asked(RESUME).returncode == 0
    assert target.argvs[-2:] == [[*GUID, "--", SNAPSHOT], RESUME.split(" ")]


@pytest.mark.parametrize("guids", ["", "\ttoguid = 0x1f\n", "\ttoguid = 0x20\n\ttoguid = 0x1f\n", "\ttoguid = x\n"])
def test_a_token_with_a_name_of_ours_and_another_guid_is_denied(target: Target, guids: str) -> None:
    """`zfs send -t` looks for the guid in the whole pool where the snapshot of that name has another."""
    target.says("zfs", "send", "-nvP", out=f"{guids}\ttoname = {SNAPSHOT}\n", status=255)
    target.says(*GUID, out="32\n")
    done = target.asked(RESUME)
    assert (done.returncode, done.stdout) == (DENIED, b"")
    assert RESUME.split(" ") not in target.argvs


def test_programs_get_a_clean_environment_and_our_stdin(target: Target) -> None:
    options = ("--root", ROOT, "--state", str(target.place / "state"), "--bin", str(target.place / "bin"))
    done = target.run(*options, input=b"the stream", SSH_ORIGINAL_COMMAND=RECEIVE, LD_PRELOAD="", EVIL="1", IFS="x")
    assert done.returncode == 0, done
    (started,) = target.started
    assert started["argv"] == RECEIVE.split(" ")
    assert started["stdin"] == "the stream"
    assert set(started["environ"]) - {"LC_CTYPE"} == {"LC_ALL", "TZ", "PATH", "HOME"}


def test_output_and_status_are_the_programs_own(target: Target) -> None:
    target.says("zfs", "list", out="a\tb\n", err="cannot open 'x': dataset does not exist\n", status=1)
    done = target.asked(LIST)
    assert (done.returncode, done.stdout) == (1, b"a\tb\n")
    assert done.stderr == b"cannot open 'x': dataset does not exist\n"


def test_streams_come_one_after_another_on_one_stdin(target: Target) -> None:
    target.says("zfs", "receive", "-s", "-u", "--", DISK, take=len(STREAM))
    done = target.asked(f"{RECEIVE} && zfs receive -s -u -- {OTHER}", STREAM + STREAM + b"2")
    assert done.returncode == 0
    taken = [(started["argv"][-1], started["stdin"].encode("latin-1")) for started in target.started]
    assert taken == [(DISK, STREAM), (OTHER, STREAM + b"2")]


def test_the_first_failure_ends_the_line_with_its_status(target: Target) -> None:
    target.says("zfs", "receive", "-s", "-u", "--", DISK, take=3, status=7, err="cannot receive\n")
    done = target.asked(f"{RECEIVE} && zfs receive -s -u -- {OTHER}", b"onetwo")
    assert (done.returncode, done.stderr) == (7, b"cannot receive\n")
    assert len(target.started) == 1


def test_filters_stand_in_front_of_all_receives(target: Target) -> None:
    target.says("zfs", "receive", "-s", "-u", "--", DISK, take=len(STREAM))
    line = f"zstd -dqc | mbuffer -q -s 128k -m 64M | {{ {RECEIVE} && zfs receive -s -u -- {OTHER}; }}"
    done = target.asked(line, STREAM + STREAM + b"x" * 600_000)
    assert done.returncode == 0, done
    started = {tuple(one["argv"]): one["stdin"] for one in target.started}
    assert started.keys() == {
        ("zstd", "-dqc"),
        ("mbuffer", "-q", "-s", "128k", "-m", "64M"),
        tuple(RECEIVE.split(" ")),
        ("zfs", "receive", "-s", "-u", "--", OTHER),
    }
    assert started[tuple(RECEIVE.split(" "))].encode("latin-1") == STREAM
    assert len(started["zfs", "receive", "-s", "-u", "--", OTHER]) == len(STREAM) + 600_000


@pytest.mark.parametrize("broken", ["zstd", "mbuffer"])
def test_every_status_of_a_pipe_counts(target: Target, broken: str) -> None:
    target.says(broken, status=4)
    done = target.asked(f"zstd -dqc | mbuffer -q -s 128k -m 64M | {RECEIVE}", b"stream")
    assert done.returncode == 4
    assert f"{broken}: exit status 4".encode() in done.stderr


def test_a_receive_that_fails_ends_its_filters_and_gives_the_status(target: Target) -> None:
    target.says("zfs", "receive", take=1, status=3, err="cannot receive\n")
    done = target.asked(f"zstd -dqc | {RECEIVE}", STREAM + b"x" * 4_000_000)
    assert (done.returncode, done.stderr) == (3, b"cannot receive\n")


def test_a_missing_program_is_named_before_anything_starts(target: Target) -> None:
    (target.place / "bin" / "mbuffer").unlink()
    done = target.asked(f"mbuffer -q -s 128k -m 64M | {RECEIVE}", b"stream")
    assert (done.returncode, target.started) == (127, [])
    assert b"mbuffer: not installed on this target" in done.stderr


@pytest.mark.parametrize("line", ["", "sh -i", f"{RECEIVE}; id", f"zfs destroy {SNAPSHOT}", f"{RECEIVE}\u202e\x1b[2J"])
def test_a_denied_line_starts_nothing_and_says_one_line(target: Target, line: str) -> None:
    done = target.asked(line, b"stream")
    assert (done.returncode, done.stdout, target.started) == (DENIED, b"", [])
    assert done.stderr.startswith(b"pve-zfsbackup-receiver: denied: ")
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.isascii()
    assert done.stderr[:-1].decode().isprintable()


def test_bytes_that_are_no_text_are_denied(target: Target) -> None:
    options = [sys.executable, "-I", str(RECEIVER), "--root", ROOT, "--bin", str(target.place / "bin")]
    environ = {b"SSH_ORIGINAL_COMMAND": RECEIVE.encode() + b"\xff\xfe"}
    done = subprocess.run(options, env=environ, capture_output=True, check=False)  # type: ignore[arg-type]
    assert (done.returncode, target.started) == (DENIED, [])


def test_what_is_denied_is_logged_escaped_with_who_it_was(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, str]] = []
    monkeypatch.setattr(receiver.syslog, "syslog", lambda level, text: logged.append((level, text)))
    monkeypatch.setenv("SSH_CONNECTION", "203.0.113.9 50000 10.0.0.1 22")
    assert serve(target.site, "zfs destroy x\nNov 23 root: all is well\x1b[2J") == DENIED
    ((level, text),) = logged
    assert level == receiver.syslog.LOG_WARNING
    assert "203.0.113.9" in text
    assert f"uid {os.geteuid()}" in text
    assert text.isascii()
    assert text.isprintable()


# -- Receive: one snapshot, no properties -----------------------------------------------------------------------------


@pytest.mark.parametrize("line", [RECEIVE, f"zstd -dqc | {RECEIVE}", f"mbuffer -q -s 128k -m 64M | {RECEIVE}"])
@pytest.mark.parametrize("stream", [PACKAGE, b"x" * 24, b"\0" * 100, STREAM[:16] + b"\0" * 100, STREAM[4:] + b"    "])
def test_packages_and_what_is_no_stream_never_reach_zfs(target: Target, line: str, stream: bytes) -> None:
    done = target.asked(line, stream)
    assert done.returncode == DENIED
    assert b"is a package or none at all" in done.stderr
    assert [argv for argv in target.argvs if argv[0] == "zfs"] == []


def test_a_package_behind_a_good_stream_does_not_reach_zfs_either(target: Target) -> None:
    target.says("zfs", "receive", "-s", "-u", "--", DISK, take=len(STREAM))
    done = target.asked(f"{RECEIVE} && zfs receive -s -u -- {OTHER}", STREAM + PACKAGE)
    assert done.returncode == DENIED
    assert [argv[-1] for argv in target.argvs] == [DISK]


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_stream_that_comes_in_drops_is_looked_at_whole_and_not_taken(target: Target, kind: str) -> None:
    """sshd gives a socket; a byte at a time is the worst a network can do."""
    options = ["--root", ROOT, "--state", str(target.place / "state"), "--bin", str(target.place / "bin")]
    argv = [sys.executable, "-I", str(RECEIVER), *options]
    if kind == "socket":
        ours, theirs = (end.detach() for end in socket.socketpair())
    else:
        theirs, ours = os.pipe()
    with subprocess.Popen(argv, stdin=theirs, env={"SSH_ORIGINAL_COMMAND": RECEIVE}) as process:
        os.close(theirs)
        for byte in STREAM:
            os.write(ours, bytes([byte]))
            time.sleep(0.002)
        os.close(ours)
    assert process.returncode == 0
    assert [started["stdin"].encode("latin-1") for started in target.started] == [STREAM]


def test_input_that_cannot_be_looked_at_is_denied(target: Target) -> None:
    options = ["--root", ROOT, "--state", str(target.place / "state"), "--bin", str(target.place / "bin")]
    argv = [sys.executable, "-I", str(RECEIVER), *options]
    with open(os.devnull, "rb") as nothing:
        done = subprocess.run(argv, stdin=nothing, check=False, env={"SSH_ORIGINAL_COMMAND": RECEIVE})
    assert (done.returncode, target.started) == (DENIED, [])


# -- Set: once ------------------------------------------------------------------------------------------------------


def test_a_point_is_written_once(target: Target) -> None:
    assert target.asked(SET).returncode == 0
    assert target.argvs[0] == [
        "zfs", "get", "-Hp", "-s", "local", "-o", "name,value", "pve-zfsbackup:point", "--", SNAPSHOT,
    ]  # fmt: skip
    assert target.argvs[1][:2] == ["zfs", "set"]
    assert "pve-zfsbackup:consistency=crash-consistent: the guest's agent said (\\n)" in target.argvs[1]
    target.says("zfs", "get", "-Hp", "-s", "local", out=f"{SNAPSHOT}\t100/{STAMP}\n")
    again = target.asked(SET)
    assert again.returncode == DENIED
    assert b"a point is written once" in again.stderr
    assert len([argv for argv in target.argvs if argv[1] == "set"]) == 1


def test_nothing_is_set_when_it_is_not_known_whether_it_was(target: Target) -> None:
    target.says("zfs", "get", err="cannot open: dataset does not exist\n", status=1)
    done = target.asked(SET)
    assert done.returncode == 1
    assert [argv[1] for argv in target.argvs] == ["get"]


# -- Create: what is inherited --------------------------------------------------------------------------------------


def test_a_parent_is_made_below_a_root_that_keeps_replicas_inert(target: Target) -> None:
    target.says("zfs", "get", out=GOOD_PARENT)
    assert target.asked(f"{CREATE} {ROOT}/local-zfs").returncode == 0
    assert target.argvs[1] == ["zfs", "create", "-u", "--", f"{ROOT}/local-zfs"]


def test_no_parent_is_made_where_it_would_be_mounted(target: Target) -> None:
    target.says("zfs", "get", out=GOOD_PARENT.replace("mountpoint\tnone", "mountpoint\t/tank"))
    done = target.asked(f"{CREATE} {ROOT}/local-zfs")
    assert done.returncode == 1
    assert f"{ROOT} must have mountpoint=none".encode() in done.stderr
    assert [argv[1] for argv in target.argvs] == ["get"]


# -- Abort: queued --------------------------------------------------------------------------------------------------


def test_an_abort_is_queued_where_nobody_else_can_read_or_forge_it(target: Target) -> None:
    target.says(*TOKEN, out="1-abc\n")
    for _ in range(2):  # a request that is there already is as good as a new one
        done = target.asked(ABORT)
        assert done.returncode == QUEUED
        assert b"queued: `pve-zfsbackup-receiver maintain`" in done.stderr
    own = target.place / "state" / "spool" / str(os.geteuid())
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert [path.name for path in own.iterdir()] == [f"abort:{DISK.replace('/', '%')}"]
    assert all(argv[1] == "get" for argv in target.argvs)


def test_no_abort_is_queued_for_what_was_not_interrupted(target: Target) -> None:
    target.says(*TOKEN, out="-\n")
    done = target.asked(ABORT)
    assert done.returncode == 1
    assert b"does not have any resumable receive state" in done.stderr
    assert list((target.place / "state" / "spool").iterdir()) == []


def test_a_spool_directory_that_somebody_else_can_touch_is_not_used(target: Target) -> None:
    target.says(*TOKEN, out="1-abc\n")
    (target.place / "state" / "spool" / str(os.geteuid())).mkdir(mode=0o755)
    done = target.asked(ABORT)
    assert done.returncode == 1
    assert b"not a directory of this account alone" in done.stderr


def test_a_missing_spool_says_how_it_is_made(target: Target) -> None:
    (target.place / "state" / "spool").rmdir()
    done = target.asked(SET)
    assert done.returncode == 1
    assert b"install -d -m 1733" in done.stderr
    assert target.argvs == []


# -- The pool's state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "status", "out"), [("ONLINE", 0, "ONLINE\n"), ("DEGRADED", 0, "DEGRADED\n")])
def test_the_pools_state_comes_first(
    target: Target, capfd: pytest.CaptureFixture[str], state: str, status: int, out: str
) -> None:
    target.pool(state)
    target.says("zfs", "list", out="rows\n")
    assert serve(target.site, f"{GREP} && {LIST}") == status
    assert capfd.readouterr().out == out + "rows\n"


def test_a_suspended_pool_hangs_nothing(target: Target) -> None:
    target.pool("SUSPENDED")
    assert serve(target.site, f"{GREP} && {LIST}") == 1
    assert target.started == []


def test_a_host_without_that_file_says_so_by_the_status(target: Target) -> None:
    assert serve(target.site, f"{GREP} && {LIST}") == 2
    assert target.started == []


# -- The program ----------------------------------------------------------------------------------------------------


def test_hello_tells_what_is_here(target: Target) -> None:
    target.says("zfs", "version", out="zfs-2.3.9-1\nzfs-kmod-2.3.9-1\n")
    target.says("zfs", "allow", ROOT, out=f"---- Permissions on {ROOT} ----\n")
    (target.place / "state/maintain.json").write_text('{"partials": {}, "finished": 1700000000.5}')
    done = target.asked("hello")
    told = json.loads(done.stdout)
    assert abs(told.pop("time") - time.time()) < 60
    assert told == {
        "receiver": __version__,
        "protocol": 1,
        "root": ROOT,
        "zfs": ["zfs-2.3.9-1", "zfs-kmod-2.3.9-1"],
        "allow": [f"---- Permissions on {ROOT} ----"],
        "maintained": 1700000000,
    }


def test_the_version_is_the_products() -> None:
    assert __version__ == receiver.VERSION


@pytest.mark.parametrize("root", ["tank", "", "tank/../x", "tank/x@y", "/tank", "tank/", "-r"])
def test_a_root_must_be_a_dataset_below_a_pool(target: Target, root: str) -> None:
    site = Site(root=root, bin=target.site.bin, state=target.site.state, kstat=target.site.kstat)
    assert serve(site, "zfs version") == 1
    assert target.started == []


@pytest.mark.parametrize("arguments", [(), ("--root",), ("--state", "/x"), ("--root", "a/b", "sh"), ("--evil", "x")])
def test_wrong_arguments_start_nothing(target: Target, arguments: tuple[str, ...]) -> None:
    done = target.run(*arguments, SSH_ORIGINAL_COMMAND="zfs version")
    assert done.returncode == 3
    assert b"usage:" in done.stderr
