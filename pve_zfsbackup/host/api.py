"""What both transports of the Proxmox API share: the protocol, the token, refusals and tasks.

`pve.HttpsApi` speaks HTTPS with a token, `pvesh.PveshApi` runs `pvesh` as root. Facts: pve-facts §a, §f, §g.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from pve_zfsbackup.errors import ConfigError, GuestMissingError, PveError, PveUnreachableError

UPID: Final = re.compile(  # user may be user@realm!token, the id may be empty (pve-facts §g)
    r"UPID:[A-Za-z0-9-]+:[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:[^:\s\"]+:[^:\s\"]*:[^:\s\"@]+@[^:\s\"]+:"
)
_UUID: Final = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_TOKEN: Final = re.compile(rf"([^\s@!=:/]+@[\w.-]+)!([A-Za-z][\w.-]+)=({_UUID})")
_SETUP: Final = "run `pve-zfsbackup setup`"


class Api(Protocol):
    """Proxmox's API, whatever the transport. Paths are like `/nodes/pve1/qemu`; answers come without `data`.

    Raises `PveUnreachableError` when there was no answer, `PveError` when it was a refusal. A task's start
    answers its UPID, which `wait_task` judges. `parallel` is how many calls at a time make sense.
    """

    parallel: int
    calls: int

    def get(self, path: str, /, **params: Any) -> Any: ...
    def post(self, path: str, /, **params: Any) -> Any: ...
    def put(self, path: str, /, **params: Any) -> Any: ...
    def delete(self, path: str, /, **params: Any) -> Any: ...

    def request(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """One call; `method` is GET, POST, PUT or DELETE, `timeout` in seconds instead of the usual one."""
        ...

    def describe(self) -> str:
        """Transport and place, for people; no secret in it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An API token. The secret shows in no repr."""

    user: str  # user@realm
    name: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.user}!{self.name}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """From `user@realm!name=uuid`. Raises `ConfigError`, without the text."""
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise ConfigError(["not an API token: expected one line user@realm!name=UUID"], hint=_SETUP)
        return cls(user=match[1], name=match[2], secret=match[3])


def read_token(path: Path) -> Token:
    """The token in a file that nobody but its owner may read. Raises `ConfigError`."""
    try:
        with open(path, encoding="utf-8", opener=_no_links) as file:
            info = os.fstat(file.fileno())
            text = file.read(1024)
    except FileNotFoundError:
        raise ConfigError([f"{path}: no API token"], hint=_SETUP) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise ConfigError([f"{path}: others may read this secret"], hint=f"chmod 600 {path}")
    if info.st_uid not in {0, os.geteuid()}:
        raise ConfigError([f"{path}: belongs to uid {info.st_uid}"], hint=f"chown root {path}")
    return Token.parse(text)


def _no_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as the API reads them: booleans as 1 and 0 (pve-facts §a), None left out."""
    return {key: int(value) if isinstance(value, bool) else value for key, value in params.items() if value is not None}


def refusal(status: int, message: str, errors: Mapping[str, Any]) -> PveError:
    """The error for an answer that is none, by its status and, as Proxmox says 500 to most, its text."""
    text = "; ".join([message or f"status {status}", *(f"{key}: {value}" for key, value in sorted(errors.items()))])
    text = " ".join(text.split())
    if 595 <= status <= 599:
        return PveUnreachableError(f"the API gave up: {status} {text}", status=status)
    if re.match(r"Configuration file '.*' does not exist", message):
        return GuestMissingError(text, status=status)
    hints = {401: f"the API token is not valid; {_SETUP}", 403: f"the API token may not do this; {_SETUP}"}
    return PveError(text, status=status, hint=hints.get(status, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task that ended well. Warnings count as success (pve-facts §g)."""

    upid: str
    exitstatus: str

    @property
    def warnings(self) -> int:
        return int(self.exitstatus.partition(": ")[2] or 0) if self.exitstatus.startswith("WARNINGS") else 0


def wait_task(api: Api, node: str, upid: str, timeout: float) -> Task:
    """Wait for a task and judge it by its `exitstatus`: nothing else tells (pve-facts §0.6).

    Raises `PveError` with the task's own text when it failed, `PveUnreachableError` when it runs on after
    `timeout` seconds or its state could not be read.
    """
    deadline = time.monotonic() + timeout
    pause = 0.05
    while True:
        state, problem = _task_state(api, f"/nodes/{node}/tasks/{upid}/status")
        if state.get("status") == "stopped":
            break
        if time.monotonic() > deadline:
            raise problem or PveUnreachableError(f"task {upid} still runs after {timeout:.0f} s")
        time.sleep(pause)
        pause = min(pause * 2, 1.0)
    exitstatus = str(state.get("exitstatus", ""))
    if exitstatus != "OK" and not re.fullmatch(r"WARNINGS: \d+", exitstatus):
        raise PveError(f"task {state.get('type', '')} {state.get('id', '')} failed: {exitstatus or 'no exit status'}")
    return Task(upid=upid, exitstatus=exitstatus)


def _task_state(api: Api, path: str) -> tuple[Mapping[str, Any], PveUnreachableError | None]:
    try:
        return api.get(path), None
    except PveUnreachableError as error:  # the task goes on without us; so does asking
        return {}, error
