"""The QEMU guest agent: freeze, thaw, status, ping, through the API or through `qm` on the node.

Two kinds of failure, and the difference decides whether a guest must be thawed: `AgentError` means the guest
certainly did not do it; `PveUnreachableError` means nobody knows, it may do it any moment (pve-facts §0.2-4, §d).
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from pve_zfsbackup.errors import (
    AgentError,
    CommandError,
    CommandTimeoutError,
    GuestMissingError,
    PveError,
    PveUnreachableError,
)
from pve_zfsbackup.host.api import Api, refusal
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.model import Vmid, printable

TIMEOUT: Final = 15.0  # the pre-check's ping takes 3 s, the command itself 5 s
FREEZE_TIMEOUT: Final = 35.0  # the API answers 596 after 30 s
API_LIMIT: Final = 28.0  # the longest time-out that pveproxy's 30 s leave alone
PAUSE: Final = 0.5
TOLD: Final = 200  # characters of what a guest says that are repeated

# Checked before anything reaches the guest; "not running" also while another command occupies the agent.
_ABSENT: Final = re.compile(
    r"No QEMU guest agent configured|QEMU guest agent is not running|VM \d+ (is )?not running|"
    r"unable to connect to VM \d+ qga socket"
)
_REFUSALS: Final = {400, 401, 403, 501}  # parameters, token, permission, no such call
_STOPPED: Final = re.compile(r"(VM|CT) \d+ (is )?not running")
# Windows' VSS holds writes for about 10 s; told at the thaw, when it is too late (reliability §2).
_NOT_HELD: Final = re.compile(r"hold writes")

LET_GO: Final = "frozen at the thaw: somebody else may have thawed the guest before the snapshot"


class Agent(Protocol):
    """A way to the guest agents of one node."""

    def call(self, vmid: Vmid, command: str, timeout: float) -> Any:
        """The agent's answer. Raises `AgentError`, `PveUnreachableError`, or another `PveError` as a refusal."""
        ...


class ApiAgent:
    """Through the API. A freeze is cut at 30 s there, though it goes on in the guest (pve-facts §0.3)."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node

    def call(self, vmid: Vmid, command: str, timeout: float) -> Any:
        path = f"/nodes/{self._node}/qemu/{vmid}/agent/{command}"
        try:
            answer = self._api.request("POST", path, timeout=timeout)
        except PveUnreachableError:
            raise
        except PveError as error:
            raise _classify(error) from None
        if not isinstance(answer, dict) or "result" not in answer:
            raise PveUnreachableError(f"vm {vmid} {command}: the answer has no result")
        return _result(vmid, command, answer["result"])


class QmAgent:
    """Through `qm guest cmd`, as root on the node: slower to start, without the API's limit of 30 s."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def call(self, vmid: Vmid, command: str, timeout: float) -> Any:
        argv = ("qm", "guest", "cmd", str(vmid), command)
        try:
            done = self._runner.run(argv, timeout=timeout, check=False)
        except CommandTimeoutError as error:
            raise PveUnreachableError(f"vm {vmid} {command}: {error.message}") from error
        if done.returncode:
            raise _classify(refusal(500, done.stderr.strip(), {}))
        text = done.stdout.strip()
        try:
            result = json.loads(text) if text else {}  # an empty object prints nothing, as of ping
        except ValueError:
            result = text  # a scalar prints plain: thawed
        return _result(vmid, command, result)


class NodeAgent:
    """The API, but `qm` where a command may take longer than the API lets it, and for a thaw that the API does not
    answer or allow: pveproxy may be gone, or the token revoked, with the guest still frozen."""

    def __init__(self, api: Agent, qm: Agent) -> None:
        self._api = api
        self._qm = qm

    def call(self, vmid: Vmid, command: str, timeout: float) -> Any:
        if timeout > API_LIMIT:
            return self._qm.call(vmid, command, timeout)
        try:
            return self._api.call(vmid, command, timeout)
        except (AgentError, GuestMissingError):
            raise  # the guest's own answer: qm would hear the same
        except PveError as error:
            if command != "fsfreeze-thaw":
                raise
            try:
                return self._qm.call(vmid, command, timeout)
            except CommandError:
                raise error from None  # there is no qm: this is not the node


@dataclass(frozen=True, slots=True, kw_only=True)
class Thawed:
    """A guest that certainly is not frozen any more. `broken` says when it was not frozen all the time before."""

    count: int  # file systems that it found frozen
    broken: str = ""

    def doubt(self, frozen: int) -> str:
        """What speaks against a freeze of so many file systems having lasted until the thaw; empty when nothing does.
        Not known is not proven.

        The thaw itself tells: qemu-ga counts what it let go as it counted what it froze. Asking before would let the
        guest stand still for one call longer, and leave the time between unproven.
        """
        if not frozen:
            return "the guest agent found nothing to freeze"
        if self.broken or self.count >= frozen:
            return self.broken
        # PVE 8 thaws without asking whose freeze it was (pve-facts §d).
        left = f"only {self.count} of {frozen} file systems were still" if self.count else "nothing was still"
        return f"{left} {LET_GO}"


def ping(agent: Agent, vmid: Vmid, *, timeout: float = TIMEOUT) -> None:
    """Return when the agent answers."""
    agent.call(vmid, "ping", timeout)


def status(agent: Agent, vmid: Vmid, *, timeout: float = TIMEOUT) -> Literal["thawed", "frozen"]:
    """What the agent believes: `frozen` also when somebody else froze the guest."""
    answer = agent.call(vmid, "fsfreeze-status", timeout)
    if answer == "frozen":
        return "frozen"
    if answer == "thawed":
        return "thawed"
    raise PveUnreachableError(f"vm {vmid}: fsfreeze-status is neither frozen nor thawed")


def freeze(agent: Agent, vmid: Vmid, *, timeout: float = FREEZE_TIMEOUT) -> int:
    """Freeze the guest's file systems; returns how many. A number is the only success (pve-facts §0.2).

    Raises `AgentError` or another `PveError` when the guest is not frozen by this call, and
    `PveUnreachableError` when it may be, now or later: then thaw.
    """
    return _count(vmid, "fsfreeze-freeze", agent.call(vmid, "fsfreeze-freeze", timeout))


def thaw(agent: Agent, vmid: Vmid, *, within: float) -> Thawed:
    """Thaw, again and again for `within` seconds until the guest says it did.

    While a freeze is pending the agent answers nobody, and thaw fails with "not running" (pve-facts §0.4):
    that is no end. A stopped or vanished guest counts as thawed, 0 file systems; so does one that says that it
    could not hold writes: it let them through long ago. Raises the last error.
    """
    deadline = time.monotonic() + within
    while True:
        try:
            return Thawed(count=_count(vmid, "fsfreeze-thaw", agent.call(vmid, "fsfreeze-thaw", TIMEOUT)))
        except GuestMissingError:
            return Thawed(count=0)
        except (AgentError, PveUnreachableError) as error:
            if isinstance(error, AgentError) and _STOPPED.search(error.message):
                return Thawed(count=0)
            if isinstance(error, AgentError) and _NOT_HELD.search(error.message):
                return Thawed(count=1, broken="the guest could not hold its writes back until the snapshot was done")
            if time.monotonic() + PAUSE > deadline:
                raise
        time.sleep(PAUSE)


def _count(vmid: Vmid, command: str, answer: Any) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    raise PveUnreachableError(f"vm {vmid} {command}: the answer is no count of file systems")


def _result(vmid: Vmid, command: str, result: Any) -> Any:
    """The agent's answer, or its own error, which comes as a success: HTTP 200, exit status 0."""
    if isinstance(result, dict) and isinstance(result.get("error"), dict):
        error = result["error"]
        told = printable(str(error.get("desc") or error.get("class")))[:TOLD]  # the guest's own words: hostile
        raise AgentError(f"vm {vmid}: the guest agent refuses {command}: {told}", status=200)
    return result


def _classify(error: PveError) -> PveError:
    """An error of the API or of qm, from the view of the guest: did it act? What is not known to come before anything
    reaches the guest (also of a proxy, or an answer that was cut) leaves that open."""
    if _ABSENT.search(error.message):
        return AgentError(error.message, status=error.status)
    if error.status in _REFUSALS or isinstance(error, GuestMissingError):
        return error
    return PveUnreachableError(error.message, status=error.status)
