"""`host.pvesh` on what the real pvesh of Proxmox VE 9.2.11 printed."""

from __future__ import annotations

import pytest

from pve_zfsbackup.errors import CommandTimeoutError, GuestMissingError, PveError, PveUnreachableError
from pve_zfsbackup.host.api import wait_task
from pve_zfsbackup.host.pvesh import PveshApi, pvesh_argv

from .conftest import RecordedRunner

JSON = ("--output-format", "json")
REFUSED = [
    ("pvesh-err-badparam-value", PveError, 400, "Parameter verification failed.; type: value 'bogus' does not have"),
    ("pvesh-err-badvmid", PveError, 400, "Parameter verification failed.; vmid: type check ('integer') failed"),
    ("pvesh-err-badparam", PveError, 400, "unable to parse option"),
    ("pvesh-err-badpath", PveError, 501, "No 'get' handler defined for '/nosuch'"),
    ("pvesh-err-method", PveError, 501, "No 'delete' handler defined for '/nodes/pve1/qemu/100/config'"),
    ("pvesh-err-fsfreeze-get", PveError, 501, "No 'get' handler defined for"),
    ("pvesh-err-unknown-vm-json", GuestMissingError, 500, "Configuration file 'nodes/pve1/qemu-server/999.conf' does"),
    ("pvesh-err-badnode", PveError, 500, "hostname lookup 'nosuch' failed"),
    ("pvesh-err-badstorage", PveError, 500, "storage 'nope' does not exist"),
    ("pvesh-err-fsfreeze-noagent", PveError, 500, "No QEMU guest agent configured"),
    ("pvesh-err-fsfreeze-stopped", PveError, 500, "VM 100 is not running"),
]
METHODS = {"get": "GET", "create": "POST", "set": "PUT", "delete": "DELETE"}


def ask(runner: RecordedRunner, argv: tuple[str, ...]) -> object:
    """Make the call that a recorded command line stands for."""
    options = [word for word in argv[3:] if word not in JSON]
    params = {key.removeprefix("--"): value for key, value in zip(options[::2], options[1::2], strict=True)}
    return PveshApi(runner).request(METHODS[argv[1]], argv[2], params)


@pytest.mark.parametrize(("name", "kind", "status", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_recorded_refusal(runner: RecordedRunner, name: str, kind: type[PveError], status: int, message: str) -> None:
    argv = runner.add_recording(name)
    with pytest.raises(PveError) as caught:
        ask(runner, argv)
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert caught.value.message.startswith(message)
    assert "[OPTIONS]" not in caught.value.message


def test_recorded_answers(runner: RecordedRunner) -> None:
    assert ask(runner, runner.add_recording("pvesh-version")) == {
        "release": "9.2",
        "repoid": "14a22df35955d97d",
        "version": "9.2.11",
    }
    config = ask(
        runner,
        runner.add_recording(
            "pvesh-qemu-config-current", argv=("pvesh", "get", "/nodes/pve1/qemu/102/config", "--current", "1", *JSON)
        ),
    )
    assert isinstance(config, dict)
    assert config["description"] == "x\nline2"


@pytest.mark.parametrize("name", ["pvesh-locked-snapshot", "pvesh-rollback-foreign"])
def test_failed_task_is_known_by_its_status_alone(runner: RecordedRunner, name: str) -> None:
    """pvesh exits 0 for it (pve-observed 3)."""
    argv = runner.add_recording(name)
    upid = ask(runner, argv)
    assert isinstance(upid, str)
    assert upid.startswith("UPID:pve1:")
    runner.add(
        ("pvesh", "get", f"/nodes/pve1/tasks/{upid}/status", *JSON),
        stdout='{"status":"stopped","exitstatus":"VM is locked (snapshot-delete)","type":"qmsnapshot","id":"100"}',
    )
    with pytest.raises(PveError, match=r"task qmsnapshot 100 failed: VM is locked \(snapshot-delete\)"):
        wait_task(PveshApi(runner), "pve1", upid, 5)


@pytest.mark.parametrize(
    "text",
    [
        'snapshotting\nUPID:pve1:00000AAA:00000BBB:6B000000:qmigrate:1:root@pam: started\n"{upid}"\n',
        '"{upid}"\n',
        '"starting {upid}"',  # from another node: lines joined without newlines
        "half a line {upid}",
    ],
)
def test_upid_is_found_wherever_it_is(runner: RecordedRunner, text: str) -> None:
    upid = "UPID:pve1:00000B8F:000239731:6B038045:qmsnapshot:100:root@pam!t1:"
    runner.add(("pvesh", "create", "/x", *JSON), stdout=text.format(upid=upid), stderr="some text of the task\n")
    assert PveshApi(runner).post("/x") == upid


def test_null_prints_nothing(runner: RecordedRunner) -> None:
    runner.add(("pvesh", "set", "/x", *JSON), stdout="\n")
    assert PveshApi(runner).put("/x") is None


def test_scalar(runner: RecordedRunner) -> None:
    runner.add(("pvesh", "get", "/cluster/nextid", *JSON), stdout='"104"\n')
    assert PveshApi(runner).get("/cluster/nextid") == "104"


def test_what_is_not_json_is_an_error(runner: RecordedRunner) -> None:
    runner.add(("pvesh", "get", "/x", *JSON), stdout="+---+\n| a |\n")
    with pytest.raises(PveError, match="not JSON"):
        PveshApi(runner).get("/x")


def test_warnings_beside_an_answer_do_not_matter(runner: RecordedRunner) -> None:
    """proxmoxer's own local backend makes an exception of them (pve-facts §f)."""
    runner.add(("pvesh", "get", "/x", *JSON), stdout="[]", stderr="perl: warning: Setting locale failed.\n")
    assert PveshApi(runner).get("/x") == []


def test_exit_status_counts_even_with_an_answer(runner: RecordedRunner) -> None:
    runner.add(("pvesh", "get", "/x", *JSON), stdout="[]", returncode=1)
    with pytest.raises(PveError, match="exit status 1, no message"):
        PveshApi(runner).get("/x")


@pytest.mark.parametrize(
    "stderr",
    [
        "ipcc_send_rec[1] failed: Connection refused\nUnable to load access control list: Connection refused\n",
        "cluster not ready - no quorum?\n",
        "pve configuration filesystem (pmxcfs) not mounted\n",
    ],
)
def test_cluster_file_system_down(runner: RecordedRunner, stderr: str) -> None:
    runner.add(("pvesh", "get", "/x", *JSON), returncode=111, stderr=stderr)
    with pytest.raises(PveUnreachableError) as caught:
        PveshApi(runner).get("/x")
    assert caught.value.transient
    assert "pve-cluster" in caught.value.hint


def test_not_root(runner: RecordedRunner) -> None:
    runner.add(("pvesh", "get", "/x", *JSON), returncode=255, stderr="please run as root\n")
    with pytest.raises(PveError, match="please run as root"):
        PveshApi(runner).get("/x")


def test_time_out_leaves_the_outcome_open(runner: RecordedRunner) -> None:
    runner.answers["pvesh", "create", "/x", *JSON].append(CommandTimeoutError("pvesh: no end after 5 s"))
    with pytest.raises(PveUnreachableError, match="no end after 5 s"):
        PveshApi(runner).post("/x")


def test_argv() -> None:
    params = {"roles": "R", "propagate": True, "none": None, "delete": ["a", "b"], "comment": "a 'b' $(c)"}
    assert pvesh_argv("PUT", "/access/acl", params) == (
        *("pvesh", "set", "/access/acl", "--roles", "R", "--propagate", "1", "--delete", "a", "--delete", "b"),
        *("--comment", "a 'b' $(c)", "--output-format", "json"),
    )


def test_calls_are_counted(runner: RecordedRunner) -> None:
    runner.add(("pvesh", "get", "/x", *JSON), stdout="[]")
    api = PveshApi(runner)
    api.get("/x")
    api.get("/x")
    assert api.calls == len(runner.argvs) == 2
