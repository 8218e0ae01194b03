"""`host.pve` and `host.api` over real TLS on loopback, on recorded answers of Proxmox VE 9.2.11 and on fakepve."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import pytest

from pve_zfsbackup.errors import (
    ConfigError,
    GuestMissingError,
    PveError,
    PveTrustError,
    PveUnreachableError,
)
from pve_zfsbackup.host.api import UPID, Token, plain, read_token, refusal, wait_task
from pve_zfsbackup.host.pve import HttpsApi

from .conftest import SECRET, TOKEN, Certificates, Replay, recording

MISSING = "Configuration file 'nodes/pve1/qemu-server/{}.conf' does not exist"
REFUSED = [
    ("bad-secret", PveError, 401, "Authentication failed!"),
    ("no-auth", PveError, 401, "No ticket"),
    ("malformed-token", PveError, 401, "Authentication failed!"),
    ("noperm-cluster-status", PveError, 403, "Permission check failed (/, Sys.Audit)"),
    ("noperm-unknown-vm", PveError, 403, "Permission check failed (/vms/999, VM.Audit)"),
    (
        "noperm-fsfreeze",
        PveError,
        403,
        "Permission check failed (/vms/100, VM.GuestAgent.FileSystemMgmt|VM.GuestAgent.Unrestricted)",
    ),
    ("err-unknown-vm", GuestMissingError, 500, MISSING.format(999)),
    ("err-unknown-vm-agent", GuestMissingError, 500, MISSING.format(999)),
    ("err-ct-as-vm", GuestMissingError, 500, MISSING.format(200)),
    (
        "err-badnode",
        PveError,
        500,
        "hostname lookup 'nosuch' failed - failed to get address info for: nosuch: Name or service not known",
    ),
    ("err-badstorage", PveError, 500, "storage 'nope' does not exist"),
    ("err-badvmid", PveError, 400, "Parameter verification failed.; vmid: type check ('integer') failed - got 'abc'"),
    (
        "err-missing-param",
        PveError,
        400,
        "Parameter verification failed.; snapname: property is missing and it is not optional",
    ),
    (
        "err-badparam",
        PveError,
        400,
        "Parameter verification failed.; nosuch: property is not defined in schema and the schema does not allow "
        "additional properties",
    ),
    ("err-task-unknown", PveError, 400, "Parameter verification failed.; upid: no such task"),
    ("err-method", PveError, 501, "Method 'DELETE /nodes/pve1/qemu/100/config' not implemented"),
    ("err-agent-badcmd", PveError, 501, "Method 'POST /nodes/pve1/qemu/100/agent/nosuch' not implemented"),
    ("err-fsfreeze-noagent", PveError, 500, "No QEMU guest agent configured"),
    ("err-fsfreeze-stopped", PveError, 500, "VM 100 is not running"),
    ("running-fsfreeze-agent-dead", PveError, 500, "QEMU guest agent is not running"),
    ("put-config-bad-digest", PveError, 500, "checksum mismatch (file change by other user?)"),
    ("running-fsfreeze-slow45", PveUnreachableError, 596, "the API gave up: 596 Connection timed out"),
    (
        "err-badjson",
        PveError,
        500,
        "malformed JSON string, neither tag, array, object, number, string or atom, at character offset 12 (before "
        '"(end of string)") at /usr/share/perl5/PVE/APIServer/AnyEvent.pm line 934.',
    ),
]


def query(path: str) -> dict[str, str]:
    return dict(parse_qsl(path.partition("?")[2]))


@pytest.mark.parametrize(("name", "kind", "status", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_recorded_refusal(
    replay: Replay, api: HttpsApi, name: str, kind: type[PveError], status: int, message: str
) -> None:
    found = replay.add(name)
    with pytest.raises(PveError) as caught:
        api.request(found.method, found.path.partition("?")[0], query(found.path))
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert caught.value.message == message
    assert ("setup" in caught.value.hint) == (status in {401, 403})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("version", {"repoid": "14a22df35955d97d", "version": "9.2.11", "release": "9.2"}),
        ("put-config", None),
        ("noperm-nodes-pve1-qemu", []),
        ("access-permissions-t2", {}),
        ("running-fsfreeze-ok", {"result": 2}),
        ("running-ping-ok", {"result": {}}),
        (
            "running-fsfreeze-refused",
            {"result": {"error": {"class": "GenericError", "desc": "Command guest-fsfreeze-freeze has been disabled"}}},
        ),
        ("task-post-snapshot", "UPID:pve1:000018E2:00043918:6B038563:qmsnapshot:102:root@pam!t1:"),
    ],
)
def test_recorded_answer(replay: Replay, api: HttpsApi, name: str, expected: Any) -> None:
    found = replay.add(name)
    assert api.request(found.method, found.path) == expected


def test_old_server_tells_the_message_by_the_reason_alone(replay: Replay, api: HttpsApi) -> None:
    """Before pve-http-server 5.2 the body had no `message` (pve-facts §a)."""
    replay.add_json("GET", "/x", '{"data":null,"errors":{"vmid":"bad"}}', status="400 Parameter verification failed.")
    with pytest.raises(PveError, match=r"Parameter verification failed\.; vmid: bad") as caught:
        api.get("/x")
    assert caught.value.status == 400


@pytest.mark.parametrize("status", [595, 597, 598, 599])
def test_proxy_faults_are_no_answer(status: int) -> None:
    error = refusal(status, "No route to host", {})
    assert isinstance(error, PveUnreachableError)
    assert error.transient
    assert error.status == status


def test_refusal_is_not_transient() -> None:
    assert not refusal(500, "VM is locked (backup)", {}).transient


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<ht>",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n{}xx",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 301 Moved\r\nLocation: /api2/json/version\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /api2/json/version\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_no_proxmox_answer_is_an_error_and_no_redirect_is_followed(
    replay: Replay, api: HttpsApi, answer: bytes
) -> None:
    replay.answers["GET", "/x"].append(answer)
    replay.add("version")
    with pytest.raises(PveError):
        api.get("/x")
    assert len(replay.requests) == 1


def test_truncated_answer_is_no_answer(replay: Replay, api: HttpsApi) -> None:
    replay.answers["POST", "/x"].append(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    replay.answers["POST", "/y"].append(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\nConnection: close\r\n\r\n"
        b'{"data":[1,'
    )
    for path in ("/x", "/y"):
        with pytest.raises(PveUnreachableError):
            api.post(path)


# Trust


def test_right_authority_is_accepted(replay: Replay, certificates: Certificates) -> None:
    """Also though it has no keyUsage extension, as Proxmox's own."""
    replay.add("version")
    with HttpsApi(replay.url, TOKEN, ca_file=certificates.ca) as api:
        assert api.get("/version")["version"] == "9.2.11"


def test_wrong_authority_is_refused(replay: Replay, certificates: Certificates) -> None:
    with HttpsApi(replay.url, TOKEN, ca_file=certificates.other_ca) as api, pytest.raises(PveTrustError) as caught:
        api.get("/version")
    assert "certificate" in caught.value.message
    assert not caught.value.transient
    assert replay.requests == []


def test_self_made_authority_is_unknown_to_the_system(replay: Replay) -> None:
    with HttpsApi(replay.url, TOKEN) as api, pytest.raises(PveTrustError):
        api.get("/version")
    assert replay.requests == []


def test_wrong_name_is_refused(certificates: Certificates) -> None:
    """The certificate is the authority's, but another node's."""
    stranger = Replay(certificates, stranger=True)
    try:
        with HttpsApi(stranger.url, TOKEN, ca_file=certificates.ca) as api, pytest.raises(PveTrustError):
            api.get("/version")
        assert stranger.requests == []
        assert stranger.connections == 1
    finally:
        stranger.close()


def test_right_name_is_accepted(replay: Replay, certificates: Certificates) -> None:
    replay.add("version")
    with HttpsApi(replay.url.replace("127.0.0.1", "localhost"), TOKEN, ca_file=certificates.ca) as api:
        assert api.get("/version")["version"] == "9.2.11"


@pytest.mark.parametrize("colons", [True, False])
def test_pinned_fingerprint_is_enough(replay: Replay, certificates: Certificates, colons: bool) -> None:
    replay.add("version")
    digits = certificates.fingerprint
    pin = ":".join(digits[i : i + 2] for i in range(0, 64, 2)).upper() if colons else digits
    with HttpsApi(replay.url, TOKEN, fingerprint=pin) as api:
        assert api.get("/version")["version"] == "9.2.11"


def test_wrong_fingerprint_is_refused_even_with_the_right_authority(replay: Replay, certificates: Certificates) -> None:
    api = HttpsApi(replay.url, TOKEN, ca_file=certificates.ca, fingerprint="ab" * 32)
    with api, pytest.raises(PveTrustError, match=r"(?i)fingerprint"):
        api.get("/version")
    assert replay.requests == []


@pytest.mark.parametrize("pinned", [True, False])
def test_a_handshake_that_breaks_off_says_nothing_of_trust(
    replay: Replay, certificates: Certificates, pinned: bool
) -> None:
    replay.add("version")
    trust = {"fingerprint": certificates.fingerprint} if pinned else {"ca_file": certificates.ca}
    replay.rude = 1
    with HttpsApi(replay.url, TOKEN, **trust) as api:  # type: ignore[arg-type]
        assert api.get("/version")["version"] == "9.2.11", "asked once more"
    replay.rude = 99
    with HttpsApi(replay.url, TOKEN, **trust) as api, pytest.raises(PveUnreachableError) as caught:  # type: ignore[arg-type]
        api.get("/version")
    assert not isinstance(caught.value, PveTrustError)
    assert caught.value.transient


@pytest.mark.parametrize("pin", ["ab", "ab" * 16, "ab" * 20, "zz" * 32])
def test_only_sha256_fingerprints(pin: str) -> None:
    with pytest.raises(ConfigError, match="not a sha256 fingerprint"):
        HttpsApi("https://127.0.0.1:8006", TOKEN, fingerprint=pin)


def test_missing_ca_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a CA certificate"):
        HttpsApi("https://127.0.0.1:8006", TOKEN, ca_file=tmp_path / "none.pem")


@pytest.mark.parametrize("url", ["http://pve1:8006", "pve1", "https://", "https://u:p@pve1", "https://pve1/api2"])
def test_only_addresses_of_an_api(url: str) -> None:
    with pytest.raises(ConfigError, match="not the address of an API"):
        HttpsApi(url, TOKEN)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://pve1", "https://pve1:8006"),
        ("https://pve1:443/", "https://pve1:443"),
        ("https://[fe80::1]:8006", "https://[fe80::1]:8006"),
    ],
)
def test_address(url: str, expected: str) -> None:
    assert HttpsApi(url, TOKEN).describe() == f"{expected} as pve-zfsbackup@pve!backup"


# Time


def test_server_that_never_answers(replay: Replay, certificates: Certificates) -> None:
    """pveproxy whose workers cannot start accepts and says nothing (pve-observed 9)."""
    replay.silent = True
    with HttpsApi(replay.url, TOKEN, ca_file=certificates.ca, timeout=0.5) as api:
        begin = time.monotonic()
        with pytest.raises(PveUnreachableError, match="no answer in time"):
            api.post("/nodes/pve1/qemu/100/agent/fsfreeze-freeze")
        assert time.monotonic() - begin < 3
    assert len(replay.requests) == 1


def test_time_out_of_one_call(replay: Replay, api: HttpsApi) -> None:
    replay.silent = True
    begin = time.monotonic()
    with pytest.raises(PveUnreachableError):
        api.request("POST", "/x", timeout=0.3)
    assert time.monotonic() - begin < 3


def test_a_time_out_is_for_the_handshake_and_the_answer_together(replay: Replay, api: HttpsApi) -> None:
    replay.handshake, replay.silent = 1.8, True
    begin = time.monotonic()
    with pytest.raises(PveUnreachableError):
        api.request("POST", "/x", timeout=2.0)
    assert time.monotonic() - begin < 3.4


def test_nobody_listens(certificates: Certificates) -> None:
    api = HttpsApi("https://127.0.0.1:1", TOKEN, ca_file=certificates.ca)
    with api, pytest.raises(PveUnreachableError, match="refused") as caught:
        api.get("/version")
    assert caught.value.transient


# Connections


def test_one_connection_for_sequential_calls(replay: Replay, api: HttpsApi) -> None:
    replay.add("version")
    for _ in range(20):
        api.get("/version")
    assert replay.connections == 1
    assert api.calls == 20


def test_few_connections_for_many_threads(replay: Replay, api: HttpsApi) -> None:
    replay.add("version")
    with ThreadPoolExecutor(8) as threads:
        versions = list(threads.map(lambda _: api.get("/version")["version"], range(200)))
    assert set(versions) == {"9.2.11"}
    assert len(replay.requests) == 200
    assert replay.connections <= 8


def test_time_outs_of_threads_do_not_mix(replay: Replay, api: HttpsApi) -> None:
    replay.add("version")
    barrier = threading.Barrier(2)

    def call(timeout: float) -> str:
        barrier.wait(5)
        return str(api.request("GET", "/version", timeout=timeout)["version"])

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(call, [0.9, 5.0])) == ["9.2.11", "9.2.11"]


def test_broken_idle_connection_is_replaced_for_reading(replay: Replay, api: HttpsApi) -> None:
    replay.add("version")
    replay.drop_after = 1
    for _ in range(5):
        assert api.get("/version")["version"] == "9.2.11"


def test_a_write_is_never_sent_twice(replay: Replay, api: HttpsApi) -> None:
    replay.answers["POST", "/x"].append(b"")  # closes without an answer
    with pytest.raises(PveUnreachableError):
        api.post("/x")
    assert [request[:2] for request in replay.requests] == [("POST", "/x")]


def test_a_read_is_sent_twice_at_most(replay: Replay, api: HttpsApi) -> None:
    replay.answers["GET", "/x"].append(b"")
    with pytest.raises(PveUnreachableError):
        api.get("/x")
    assert len(replay.requests) == 2


# What is sent


def test_parameters(replay: Replay, api: HttpsApi) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        replay.add_json(method, "/x", '{"data":null}')
    params: dict[str, Any] = {"path": "/", "full": True, "propagate": False, "none": None, "n": 5, "text": "a=b&c ü"}
    api.get("/x", **params)
    api.post("/x", **params)
    api.put("/x", **params)
    api.delete("/x", **params)
    expected = {"path": ["/"], "full": ["1"], "propagate": ["0"], "n": ["5"], "text": ["a=b&c ü"]}
    for method, target, body in replay.requests:
        query = target.partition("?")[2]
        in_query = method in {"GET", "DELETE"}
        assert parse_qs(query if in_query else body.decode()) == expected, method
        assert (body == b"") == in_query  # a body of GET or DELETE is answered 501


def test_path_is_quoted(replay: Replay, api: HttpsApi) -> None:
    upid = "UPID:pve1:000018E2:00043918:6B038563:qmsnapshot:102:root@pam!t1:"
    replay.add_json("GET", f"/nodes/pve1/tasks/{upid}/status", '{"data":1}')
    replay.add_json("GET", "/a%3Fb%23c%25%20d", '{"data":2}')
    assert api.get(f"/nodes/pve1/tasks/{upid}/status") == 1
    assert api.get("/a?b#c% d") == 2


def test_empty_post_has_no_body(replay: Replay, api: HttpsApi) -> None:
    replay.add_json("POST", "/x", '{"data":null}')
    assert api.post("/x") is None
    assert "content-length: 0" in replay.heads[0].lower()


def test_token_goes_in_the_header(replay: Replay, api: HttpsApi) -> None:
    replay.add("version")
    api.get("/version")
    assert f"Authorization: PVEAPIToken=pve-zfsbackup@pve!backup={SECRET}\r\n" in replay.heads[0]
    assert "cookie" not in replay.heads[0].lower()


def test_environment_is_ignored(
    replay: Replay, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login evil password evil\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(certificates.other_ca))
    replay.add("version")
    with HttpsApi(replay.url, TOKEN, ca_file=certificates.ca) as api:
        assert api.get("/version")["version"] == "9.2.11"
    assert SECRET in replay.heads[0]


# The secret


def _failing(replay: Replay, certificates: Certificates) -> Iterator[HttpsApi]:
    yield HttpsApi(replay.url, TOKEN, ca_file=certificates.ca, timeout=0.3)
    yield HttpsApi(replay.url, TOKEN, ca_file=certificates.other_ca, timeout=0.3)
    yield HttpsApi(replay.url, TOKEN, fingerprint="ab" * 32, timeout=0.3)
    yield HttpsApi("https://127.0.0.1:1", TOKEN, timeout=0.3)


def test_no_exception_holds_the_secret(replay: Replay, certificates: Certificates) -> None:
    replay.silent = True
    for api in _failing(replay, certificates):
        with pytest.raises(PveUnreachableError) as caught:
            api.post("/x", password="".join(("hunt", "er2")))
        error = caught.value
        assert error.__cause__ is None
        assert error.__context__ is None
        text = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))
        assert SECRET not in text
        assert "hunter2" not in text


def test_no_repr_and_no_log_holds_the_secret(replay: Replay, api: HttpsApi, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    replay.add_json("POST", "/x", '{"data":{"value":"top"}}')
    api.post("/x", password="hunter2")
    assert SECRET not in repr(TOKEN) + str(TOKEN) + repr(api) + api.describe()
    assert "/x" in caplog.text  # urllib3's own line: the log was listened to
    for word in (SECRET, "hunter2", "top"):
        assert word not in caplog.text


def test_warnings_of_urllib3_stay_on() -> None:
    """proxmoxer switches them off for the whole process when imported."""
    code = (
        "import warnings; before = list(warnings.filters)\n"
        "import requests, pve_zfsbackup.host.pve, urllib3\n"
        "names = [f[2].__name__ for f in warnings.filters if f[0] == 'ignore' and f not in before]\n"
        "print(sorted(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "InsecureRequestWarning" not in done.stdout
    assert "HTTPWarning" not in done.stdout


# Token files


def _token_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "api.token"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_token_file(tmp_path: Path) -> None:
    token = read_token(_token_file(tmp_path, f"pve-zfsbackup@pve!backup={SECRET}\n"))
    assert token == TOKEN


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_token_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="others may read"):
        read_token(_token_file(tmp_path, f"u@pve!tok={SECRET}", mode))


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECRET,
        f"backup={SECRET}",
        f"u@pve!tok={SECRET}\nu@pve!tok={SECRET}",
        f"u@pve!tok={SECRET}x",
        f"u@pve!tok\r\nX:={SECRET}",
    ],
)
def test_malformed_token_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_token(_token_file(tmp_path, text))
    assert SECRET not in str(caught.value)


def test_missing_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no API token") as caught:
        read_token(tmp_path / "none")
    assert "setup" in caught.value.hint


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(_token_file(tmp_path, f"u@pve!tok={SECRET}"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_token_of_another_user_is_refused(tmp_path: Path) -> None:
    path = _token_file(tmp_path, f"u@pve!tok={SECRET}")
    os.chown(path, 12345, 0)
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        read_token(path)


# Tasks


def test_task_that_ends_well(replay: Replay, api: HttpsApi) -> None:
    found = replay.add("task-status-late")
    task = wait_task(api, "pve1", found.path.split("/")[4], 5)
    assert task.exitstatus == "OK"
    assert task.warnings == 0


def test_task_is_waited_for_and_its_failure_raised(replay: Replay, api: HttpsApi) -> None:
    """The call that started it was answered 200, and pvesh exits 0 for the same (pve-observed 3)."""
    early, late = recording("task-status-early"), recording("task-rollback-status")
    assert early.path == late.path
    replay.answers[early.method, early.path] += [early.answer, early.answer, late.answer]
    with pytest.raises(PveError, match="'api1' is not most recent snapshot on 'local-zfs:vm-102-disk-2'"):
        wait_task(api, "pve1", early.path.split("/")[4], 5)
    assert len(replay.requests) == 3


def test_task_of_a_held_snapshot_fails(replay: Replay, api: HttpsApi) -> None:
    found = replay.add("post-free-held-status")
    with pytest.raises(PveError, match="it's being held"):
        wait_task(api, "pve1", found.path.split("/")[4], 5)


def test_warnings_are_success(replay: Replay, api: HttpsApi) -> None:
    replay.add_json("GET", "/nodes/n/tasks/U/status", '{"data":{"status":"stopped","exitstatus":"WARNINGS: 3"}}')
    assert wait_task(api, "n", "U", 5).warnings == 3


@pytest.mark.parametrize("end", ['"exitstatus":"unexpected status"', '"exitstatus":"WARNINGS"', '"x":1'])
def test_any_other_end_is_failure(replay: Replay, api: HttpsApi, end: str) -> None:
    replay.add_json("GET", "/nodes/n/tasks/U/status", f'{{"data":{{"status":"stopped",{end}}}}}')
    with pytest.raises(PveError):
        wait_task(api, "n", "U", 5)


def test_task_that_does_not_end(replay: Replay, api: HttpsApi) -> None:
    replay.add_json("GET", "/nodes/n/tasks/U/status", '{"data":{"status":"running"}}')
    with pytest.raises(PveUnreachableError, match="still runs"):
        wait_task(api, "n", "U", 0.2)


def test_waiting_survives_an_unreachable_api(replay: Replay, api: HttpsApi) -> None:
    replay.add_json("GET", "/nodes/n/tasks/U/status", "", status="595 No route to host")
    replay.add_json("GET", "/nodes/n/tasks/U/status", '{"data":{"status":"stopped","exitstatus":"OK"}}')
    assert wait_task(api, "n", "U", 5).exitstatus == "OK"


@pytest.mark.parametrize(
    "upid",
    [
        "UPID:pve1:000018E2:00043918:6B038563:qmsnapshot:102:root@pam!t1:",
        "UPID:pve1:00000B8F:000239731:6B038045:vzdump::root@pam:",
        "UPID:pve1:00001938:00044ED5:6B03859B:imgdel:100@local-zfs:root@pam!t1:",
    ],
)
def test_upids(upid: str) -> None:
    assert UPID.findall(f'log "{upid}" more') == [upid]


def test_plain() -> None:
    assert plain({"a": True, "b": None, "c": "x", "d": 2}) == {"a": 1, "c": "x", "d": 2}


# fakepve: another implementation of the same API


def test_fakepve_write_is_read_back(fakepve: Any, fake_api: HttpsApi) -> None:
    fakepve.add_vm(100, "web", config={"scsi0": "local-lvm:vm-100-disk-0"})
    fake_api.put("/nodes/pve1/qemu/100/config", description="x & y = ü")
    assert fake_api.get("/nodes/pve1/qemu/100/config")["description"] == "x & y = ü"


def test_fakepve_task(fakepve: Any, fake_api: HttpsApi) -> None:
    fakepve.add_vm(100, "web", config={"scsi0": "local-lvm:vm-100-disk-0"})
    upid = fake_api.post("/nodes/pve1/qemu/100/status/start")
    assert wait_task(fake_api, "pve1", upid, 10).exitstatus == "OK"


def test_fakepve_refuses_a_wrong_secret(fakepve: Any, certificates: Certificates) -> None:
    fakepve.apitokens[str(TOKEN)] = "another"
    with HttpsApi(fakepve.url, TOKEN, ca_file=certificates.ca) as api, pytest.raises(PveError) as caught:
        api.get("/version")
    assert caught.value.status == 401


def test_token_parse_keeps_realm_and_name() -> None:
    assert str(Token.parse(f"a.b@pam!x-1={SECRET}")) == "a.b@pam!x-1"
