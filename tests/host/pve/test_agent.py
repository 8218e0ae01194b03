"""`host.agent`: recorded answers, and an agent that is slow, hung, dead or of another opinion."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from pve_zfsbackup.errors import (
    AgentError,
    CommandError,
    CommandTimeoutError,
    GuestMissingError,
    PveError,
    PveUnreachableError,
)
from pve_zfsbackup.host import agent
from pve_zfsbackup.host.agent import ApiAgent, QmAgent
from pve_zfsbackup.host.pve import HttpsApi
from pve_zfsbackup.model import Vmid

from .conftest import RecordedRunner, Replay

VM = Vmid(100)
FREEZE = "/nodes/pve1/qemu/100/agent/fsfreeze-freeze"
THAW = "/nodes/pve1/qemu/100/agent/fsfreeze-thaw"
NOT_RUNNING = "500 QEMU guest agent is not running"


@pytest.fixture
def guest(api: HttpsApi) -> ApiAgent:
    return ApiAgent(api, "pve1")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "PAUSE", 0.01)


def test_freeze_and_thaw_answer_counts(replay: Replay, guest: ApiAgent) -> None:
    replay.add("running-fsfreeze-ok")
    replay.add("running-thaw-ok")
    assert agent.freeze(guest, VM) == 2
    assert agent.thaw(guest, VM, within=1).count == 2


def test_ping_and_status(replay: Replay, guest: ApiAgent) -> None:
    replay.add("running-ping-ok")
    replay.add("running-fsfreeze-status")
    agent.ping(guest, VM)
    assert agent.status(guest, VM) == "frozen"
    assert [request[0] for request in replay.requests] == ["POST", "POST"]  # GET is 501 (pve-observed 1)


def test_refused_freeze_is_an_error_inside_200(replay: Replay, guest: ApiAgent) -> None:
    replay.add("running-fsfreeze-refused")
    with pytest.raises(AgentError, match="refuses fsfreeze-freeze: Command guest-fsfreeze-freeze has been disabled"):
        agent.freeze(guest, VM)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("err-fsfreeze-stopped", "VM 100 is not running"),
        ("running-fsfreeze-agent-dead", "QEMU guest agent is not running"),
    ],
)
def test_freeze_that_surely_did_not_happen(replay: Replay, guest: ApiAgent, name: str, message: str) -> None:
    replay.add(name)
    with pytest.raises(AgentError, match=message) as caught:
        agent.freeze(guest, VM)
    assert not caught.value.transient


def test_guest_without_agent(replay: Replay, guest: ApiAgent) -> None:
    replay.add("err-fsfreeze-noagent")
    with pytest.raises(AgentError, match="No QEMU guest agent configured"):
        agent.freeze(guest, Vmid(101))


def test_freeze_that_is_not_allowed(replay: Replay, guest: ApiAgent) -> None:
    replay.add("noperm-fsfreeze")
    with pytest.raises(PveError) as caught:
        agent.freeze(guest, VM)
    assert caught.value.status == 403
    assert not isinstance(caught.value, PveUnreachableError)


def test_guest_that_is_gone(replay: Replay, guest: ApiAgent) -> None:
    replay.add("err-unknown-vm-agent")
    with pytest.raises(GuestMissingError):
        agent.freeze(guest, Vmid(999))


def test_freeze_that_outlives_the_api(replay: Replay, guest: ApiAgent) -> None:
    """596 after 30 s, and the guest freezes anyway (pve-facts §0.3)."""
    replay.add("running-fsfreeze-slow45")
    with pytest.raises(PveUnreachableError) as caught:
        agent.freeze(guest, VM)
    assert caught.value.status == 596


def test_freeze_given_up_by_us(replay: Replay, guest: ApiAgent) -> None:
    replay.silent = True
    begin = time.monotonic()
    with pytest.raises(PveUnreachableError):
        agent.freeze(guest, VM, timeout=0.3)
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize(
    "message",
    [
        "VM 100 qga command 'guest-fsfreeze-freeze' failed - got timeout",
        "VM 100 qmp command 'guest-fsfreeze-freeze' failed - got timeout",
        "something nobody has seen yet",
    ],
)
def test_a_time_out_inside_the_node_leaves_the_outcome_open(replay: Replay, guest: ApiAgent, message: str) -> None:
    replay.add_json("POST", FREEZE, '{"data":null}', status=f"500 {message}")
    with pytest.raises(PveUnreachableError, match=message):
        agent.freeze(guest, VM)


@pytest.mark.parametrize("status", ["302 Found", "404 Not Found", "429 Too Many Requests", "502 Bad Gateway",
                                    "503 Service Unavailable", "504 Gateway Time-out"])  # fmt: skip
def test_what_a_proxy_says_leaves_the_outcome_open(replay: Replay, guest: ApiAgent, status: str) -> None:
    replay.add_json("POST", FREEZE, "{}", status=status)
    with pytest.raises(PveUnreachableError) as caught:
        agent.freeze(guest, VM)
    assert caught.value.status == int(status[:3])


@pytest.mark.parametrize("data", ["", '{"data":{"res', "<html>"])
def test_an_answer_that_is_cut_or_not_understood_leaves_the_outcome_open(
    replay: Replay, guest: ApiAgent, data: str
) -> None:
    replay.add_json("POST", FREEZE, data)
    with pytest.raises(PveUnreachableError, match="not understood"):
        agent.freeze(guest, VM)


@pytest.mark.parametrize("status", [400, 401, 403, 501])
def test_a_refusal_comes_before_anything_reaches_the_guest(replay: Replay, guest: ApiAgent, status: int) -> None:
    replay.add_json("POST", FREEZE, '{"data":null}', status=f"{status} no")
    with pytest.raises(PveError) as caught:
        agent.freeze(guest, VM)
    assert type(caught.value) is PveError
    assert caught.value.status == status


@pytest.mark.parametrize(
    "data", ["null", '{"result":null}', '{"result":"2"}', '{"result":true}', '{"result":{}}', "[]"]
)
def test_only_a_number_is_success(replay: Replay, guest: ApiAgent, data: str) -> None:
    replay.add_json("POST", FREEZE, f'{{"data":{data}}}')
    with pytest.raises(PveUnreachableError):
        agent.freeze(guest, VM)


def test_status_must_be_known(replay: Replay, guest: ApiAgent) -> None:
    replay.add_json("POST", "/nodes/pve1/qemu/100/agent/fsfreeze-status", '{"data":{"result":"unknown"}}')
    with pytest.raises(PveUnreachableError):
        agent.status(guest, VM)


# Thaw


def test_thaw_goes_on_while_a_freeze_is_pending(replay: Replay, guest: ApiAgent) -> None:
    """The agent answers nobody until the freeze is done: "not running", then success (pve-facts §0.4)."""
    for _ in range(3):
        replay.add("running-after-slow-thaw")
    replay.add("running-thaw-ok")
    assert agent.thaw(guest, VM, within=10).count == 2
    assert len(replay.requests) == 4


def test_thaw_gives_up_at_its_end(replay: Replay, guest: ApiAgent) -> None:
    replay.add("running-after-slow-thaw")
    begin = time.monotonic()
    with pytest.raises(AgentError, match="QEMU guest agent is not running"):
        agent.thaw(guest, VM, within=0.5)
    assert 0.4 < time.monotonic() - begin < 5
    assert len(replay.requests) > 1


def test_thaw_survives_every_kind_of_trouble(replay: Replay, guest: ApiAgent) -> None:
    replay.answers["POST", THAW] += [b""]  # connection closed
    replay.add_json("POST", THAW, "", status="595 Connection refused")
    replay.add_json(
        "POST", THAW, '{"data":null}', status="500 VM 100 qga command 'guest-fsfreeze-thaw' failed - got timeout"
    )
    replay.add_json("POST", THAW, '{"data":{"result":{"error":{"class":"GenericError","desc":"busy"}}}}')
    replay.add_json("POST", THAW, '{"data":{"result":1}}')
    assert agent.thaw(guest, VM, within=10).count == 1


@pytest.mark.parametrize("name", ["err-fsfreeze-stopped", "err-unknown-vm-agent"])
def test_guest_that_stopped_or_left_needs_no_thaw(replay: Replay, guest: ApiAgent, name: str) -> None:
    found = replay.add(name)
    vmid = Vmid(int(found.path.split("/")[4]))
    replay.answers["POST", f"/nodes/pve1/qemu/{vmid}/agent/fsfreeze-thaw"].append(found.answer)
    assert agent.thaw(guest, vmid, within=5).count == 0
    assert len(replay.requests) == 1


def test_thaw_that_is_not_allowed_ends_at_once(replay: Replay, guest: ApiAgent) -> None:
    """Somebody else may be able to: the caller shall try `qm` now, not after the deadline."""
    replay.add_json("POST", THAW, '{"data":null}', status="403 Permission check failed (/vms/100, X)")
    with pytest.raises(PveError, match="Permission check failed"):
        agent.thaw(guest, VM, within=5)
    assert len(replay.requests) == 1


# qm


def qm(runner: RecordedRunner, command: str, **answer: Any) -> QmAgent:
    runner.add(("qm", "guest", "cmd", "100", command), **answer)
    return QmAgent(runner)


def test_qm_answers_plain_scalars(runner: RecordedRunner) -> None:
    assert agent.freeze(qm(runner, "fsfreeze-freeze", stdout="2\n"), VM) == 2
    assert agent.status(qm(runner, "fsfreeze-status", stdout="frozen\n"), VM) == "frozen"
    assert agent.thaw(qm(runner, "fsfreeze-thaw", stdout="2\n"), VM, within=1).count == 2
    agent.ping(qm(runner, "ping"), VM)


def test_qm_prints_the_guests_refusal_and_exits_0(runner: RecordedRunner) -> None:
    text = '{\n   "error" : {\n      "class" : "GenericError",\n      "desc" : "has been disabled"\n   }\n}\n'
    with pytest.raises(AgentError, match="refuses fsfreeze-freeze: has been disabled"):
        agent.freeze(qm(runner, "fsfreeze-freeze", stdout=text), VM)


def test_qm_on_a_stopped_guest(runner: RecordedRunner) -> None:
    runner.add_recording("qm-guest-fsfreeze-stopped")
    with pytest.raises(AgentError, match="VM 100 is not running"):
        agent.freeze(QmAgent(runner), VM)


def test_qm_on_a_guest_without_agent(runner: RecordedRunner) -> None:
    runner.add_recording("qm-agent-noagent", argv=("qm", "guest", "cmd", "101", "ping"))
    with pytest.raises(AgentError, match="No QEMU guest agent configured"):
        agent.ping(QmAgent(runner), Vmid(101))


@pytest.mark.parametrize(
    ("stderr", "kind"),
    [
        ("VM 100 qga command 'guest-fsfreeze-freeze' failed - got timeout\n", PveUnreachableError),
        ("VM 100 qga command 'guest-fsfreeze-freeze' failed - got wrong command id\n", PveUnreachableError),
        ("Configuration file 'nodes/pve1/qemu-server/100.conf' does not exist\n", GuestMissingError),
        ("unable to connect to VM 100 qga socket - timeout after 31 retries\n", AgentError),
    ],
)
def test_qm_failures(runner: RecordedRunner, stderr: str, kind: type[PveError]) -> None:
    with pytest.raises(PveError) as caught:
        agent.freeze(qm(runner, "fsfreeze-freeze", returncode=255, stderr=stderr), VM)
    assert type(caught.value) is kind


def test_qm_killed_by_our_time_out_may_have_frozen(runner: RecordedRunner) -> None:
    runner.answers["qm", "guest", "cmd", "100", "fsfreeze-freeze"].append(CommandTimeoutError("qm: no end after 10 s"))
    with pytest.raises(PveUnreachableError, match="no end after 10 s"):
        agent.freeze(QmAgent(runner), VM, timeout=10)


def test_empty_answer_of_freeze_is_no_success(runner: RecordedRunner) -> None:
    with pytest.raises(PveUnreachableError):
        agent.freeze(qm(runner, "fsfreeze-freeze"), VM)


# The time-outs asked for reach the transport


class Recorder:
    def __init__(self, answer: Callable[[str], Any]) -> None:
        self.seen: list[tuple[str, float]] = []
        self.answer = answer

    def call(self, vmid: Vmid, command: str, timeout: float) -> Any:
        self.seen.append((command, timeout))
        return self.answer(command)


def test_time_outs() -> None:
    recorder = Recorder(lambda command: "thawed" if command == "fsfreeze-status" else 1)
    agent.freeze(recorder, VM, timeout=7)
    agent.status(recorder, VM, timeout=2)
    agent.ping(recorder, VM, timeout=3)
    agent.thaw(recorder, VM, within=1)
    assert recorder.seen == [
        ("fsfreeze-freeze", 7),
        ("fsfreeze-status", 2),
        ("ping", 3),
        ("fsfreeze-thaw", agent.TIMEOUT),
    ]


@pytest.mark.parametrize(("limit", "by"), [(10, "api"), (28, "api"), (29, "qm"), (120, "qm")])
def test_what_takes_longer_than_the_api_allows_goes_through_qm(limit: float, by: str) -> None:
    """pveproxy ends a silent call after 30 s, and the freeze goes on without us (pve-facts §0.3)."""
    ways = {"api": Recorder(lambda _: 1), "qm": Recorder(lambda _: 1)}
    agent.freeze(agent.NodeAgent(ways["api"], ways["qm"]), VM, timeout=limit)
    assert [name for name, way in ways.items() if way.seen] == [by]


def silent(_: str) -> Any:
    raise PveUnreachableError("https://127.0.0.1:8006: connection refused")


def nowhere(_: str) -> Any:
    raise CommandError("qm: No such file or directory")


def test_a_guest_is_thawed_by_qm_when_the_api_is_gone() -> None:
    qm = Recorder(lambda _: 2)
    node = agent.NodeAgent(Recorder(silent), qm)
    assert agent.thaw(node, VM, within=1).count == 2
    with pytest.raises(PveUnreachableError):
        agent.freeze(node, VM, timeout=10)
    assert [command for command, _ in qm.seen] == ["fsfreeze-thaw"], "a freeze of unknown fate is not tried twice"


def refused(status: int) -> Callable[[str], Any]:
    def answer(_: str) -> Any:
        raise PveError("Permission check failed (/vms/100, VM.GuestAgent.FileSystemMgmt)", status=status)

    return answer


@pytest.mark.parametrize("status", [401, 403])
def test_a_guest_is_thawed_by_qm_when_the_token_was_revoked_meanwhile(status: int) -> None:
    qm = Recorder(lambda _: 2)
    node = agent.NodeAgent(Recorder(refused(status)), qm)
    assert agent.thaw(node, VM, within=1).count == 2
    with pytest.raises(PveError, match="Permission check failed"):
        agent.freeze(node, VM, timeout=10)
    assert [command for command, _ in qm.seen] == ["fsfreeze-thaw"], "what may not freeze by the API does not by qm"


def test_a_thaw_by_qm_is_repeated_when_the_api_refuses() -> None:
    answers = [PveUnreachableError("qm: no end after 15 s"), AgentError("QEMU guest agent is not running")]

    def late(_: str) -> Any:
        if answers:
            raise answers.pop()
        return 1

    qm = Recorder(late)
    assert agent.thaw(agent.NodeAgent(Recorder(refused(403)), qm), VM, within=5).count == 1
    assert len(qm.seen) == 3


@pytest.mark.parametrize("error", [AgentError("VM 100 is not running"), GuestMissingError("does not exist")])
def test_qm_is_not_asked_what_the_guest_has_answered(error: PveError) -> None:
    def gone(_: str) -> Any:
        raise error

    qm = Recorder(lambda _: 2)
    assert agent.thaw(agent.NodeAgent(Recorder(gone), qm), VM, within=1).count == 0
    assert not qm.seen


@pytest.mark.parametrize("answer", [silent, refused(403)])
def test_without_qm_the_apis_error_is_told(answer: Callable[[str], Any]) -> None:
    with pytest.raises(PveError, match=r"connection refused|Permission check failed"):
        agent.thaw(agent.NodeAgent(Recorder(answer), Recorder(nowhere)), VM, within=0)


# fakepve


def test_fakepve_guest_freezes(fakepve: Any, fake_api: HttpsApi) -> None:
    vm = fakepve.add_vm(100, "web", status="running", config={"agent": "1"})
    vm.agent = {}
    guest = ApiAgent(fake_api, "pve1")
    assert agent.status(guest, VM) == "thawed"
    assert agent.freeze(guest, VM) == 1
    assert agent.status(guest, VM) == "frozen"
    assert agent.thaw(guest, VM, within=5).count == 1
    assert agent.status(guest, VM) == "thawed"
