"""The Proxmox API by `pvesh`, as root on the node: for `setup`, and where there is no token yet.

About a second of Perl loading per call (pve-observed): a way to get started, not for loops.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from typing import Any, Final

from pve_zfsbackup.errors import CommandTimeoutError, PveError, PveUnreachableError
from pve_zfsbackup.host.api import UPID, plain, refusal
from pve_zfsbackup.host.runner import Completed, Runner

TIMEOUT: Final = 120.0
_VERBS: Final = {"GET": "get", "POST": "create", "PUT": "set", "DELETE": "delete"}
_NO_QUORUM: Final = re.compile(r"ipcc_send_rec|cluster not ready|pmxcfs\) not mounted")
_SECRET: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def pvesh_argv(method: str, path: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """The command for one call. Lists repeat their option (pve-facts §f)."""
    argv = ["pvesh", _VERBS[method], path]
    for key, value in plain(params).items():
        for item in value if isinstance(value, list | tuple) else (value,):
            argv += (f"--{key}", str(item))
    return (*argv, "--output-format", "json")


class PveshApi:
    """See `api.Api`. Acts as root@pam; tasks have already ended when their UPID is answered, well or not."""

    parallel = 2  # each call is a second of one core

    def __init__(self, runner: Runner, *, timeout: float = TIMEOUT) -> None:
        self.calls = 0
        self._runner = runner
        self._timeout = timeout
        self._lock = threading.Lock()

    def get(self, path: str, /, **params: Any) -> Any:
        return self.request("GET", path, params)

    def post(self, path: str, /, **params: Any) -> Any:
        return self.request("POST", path, params)

    def put(self, path: str, /, **params: Any) -> Any:
        return self.request("PUT", path, params)

    def delete(self, path: str, /, **params: Any) -> Any:
        return self.request("DELETE", path, params)

    def describe(self) -> str:
        return "pvesh as root"

    def request(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """See `api.Api.request`."""
        with self._lock:
            self.calls += 1
        argv = pvesh_argv(method, path, params or {})
        try:
            done = self._runner.run(argv, timeout=timeout or self._timeout, check=False)
        except CommandTimeoutError as error:
            raise PveUnreachableError(f"pvesh {argv[1]} {path}: {error.message}") from error
        if done.returncode:
            raise _refusal(done)
        return _answer(done.stdout)


def _answer(text: str) -> Any:
    """What a call printed that exited 0: JSON, nothing (null), or a task's log and its UPID.

    The exit status of a failed task is 0 as well; its UPID is answered and `wait_task` reads how it ended.
    Lines of a task on another node arrive joined into one JSON string (pve-facts §f).
    """
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not isinstance(value, str):
        return value
    upids: list[str] = UPID.findall(value)
    if upids:
        return upids[-1]  # a log may name the tasks it started before its own
    if value is text:
        shown = _SECRET.sub("(secret)", text.strip())  # of a token just made
        raise PveError(f"pvesh: its answer is not JSON: {shown[:200]}")
    return value


def _refusal(done: Completed) -> PveError:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if _NO_QUORUM.search(done.stderr):
        return PveUnreachableError(f"pvesh: {lines[-1]}", hint="is pve-cluster running, and has the cluster quorum?")
    for number, line in enumerate(lines):
        if match := re.fullmatch(r"([3-5]\d\d) (.+)", line):
            return refusal(int(match[1]), match[2], _parameters(lines[number + 1 :]))
    message = lines[-1] if lines else f"pvesh: exit status {done.returncode}, no message"
    if re.fullmatch(r"No '\w+' handler defined for '.*'", message):
        return refusal(501, message, {})
    return refusal(500, "; ".join(lines) or message, {})


def _parameters(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(": ") for line in lines if not line.startswith("pvesh "))
    return {key: value for key, separator, value in pairs if separator and " " not in key}
