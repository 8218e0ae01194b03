"""Where commands run: this host, or another one over a single multiplexed ssh connection.

Remote command lines are quoted here and nowhere else. The client reads no user configuration (`-F none`),
trusts only our own known_hosts and our own key, and never asks (reliability S8).
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pve_zfsbackup.errors import CommandError, HostKeyError, HostUnreachableError
from pve_zfsbackup.host.runner import DEFAULT_TIMEOUT, Completed, Runner, failure

SSH_FAILED = 255  # ssh's own failures (ssh(1), EXIT STATUS)
KEEP_SECONDS = 60
SOCKET_LIMIT = 90  # sun_path has 108 bytes, and ssh adds a random suffix while it binds


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """How a target is reached. `control` is the socket of the shared connection, inside our 0700 directory."""

    host: str
    user: str
    port: int
    identity: Path
    known_hosts: Path
    control: Path
    connect_timeout: int = 10

    def argv(self, command: Sequence[str]) -> tuple[str, ...]:
        return (*self._client(), "--", f"{self.user}@{self.host}", shlex.join(command))

    def exit_argv(self) -> tuple[str, ...]:
        return (*self._client(), "-O", "exit", "--", f"{self.user}@{self.host}")

    def _client(self) -> tuple[str, ...]:
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "none",
            "IdentitiesOnly": "yes",
            "IdentityFile": str(self.identity),
            "ControlMaster": "auto",
            "ControlPath": str(self.control),
            "ControlPersist": str(KEEP_SECONDS),
            "ConnectTimeout": str(self.connect_timeout),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "LogLevel": "ERROR",
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
        }
        flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        return ("ssh", "-F", "none", "-T", "-p", str(self.port), *flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A place where `zfs` runs. `destination` is None for the node itself."""

    name: str
    runner: Runner
    destination: Destination | None = None

    def argv(self, command: Sequence[str]) -> tuple[str, ...]:
        return self.destination.argv(command) if self.destination else tuple(command)

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        check: bool = True,
        input: bytes | None = None,
    ) -> Completed:
        """Run a command there. Raises `HostUnreachableError`, `HostKeyError`, `CommandTimeoutError`, and
        `CommandError` if it fails and `check` is set."""
        done = self.runner.run(self.argv(command), timeout=timeout, check=False, input=input)
        done = Completed(
            argv=tuple(command), returncode=done.returncode, stdout=done.stdout, stderr=done.stderr
        )
        if self.destination and done.returncode == SSH_FAILED:
            raise self.unreachable(done)
        if check and done.returncode:
            raise failure(done)
        return done

    def unreachable(self, done: Completed) -> CommandError:
        """Why ssh itself failed."""
        assert self.destination is not None
        where = f"{self.destination.user}@{self.destination.host}:{self.destination.port}"
        text = "; ".join(done.stderr.strip().splitlines()[-3:]) or "no message"
        if "Host key verification failed" in done.stderr or "IDENTIFICATION HAS CHANGED" in done.stderr:
            return HostKeyError(
                f"target {self.name}: host key of {where} is not the pinned one: {text}",
                hint=f"compare the key by hand, then put the right one into {self.destination.known_hosts}",
                stderr=done.stderr,
                returncode=SSH_FAILED,
            )
        hint = "check that the host is up and that its sshd accepts our key"
        if "Permission denied" in done.stderr:
            hint = f"add {self.destination.identity}.pub to the account's authorized_keys on the target"
        return HostUnreachableError(
            f"target {self.name}: ssh to {where} failed: {text}",
            hint=hint,
            stderr=done.stderr,
            returncode=SSH_FAILED,
        )


@contextlib.contextmanager
def connected(host: Host) -> Iterator[Host]:
    """The host with its shared connection, which is closed at the end whatever happened."""
    if host.destination is None:
        yield host
        return
    control = host.destination.control
    if len(os.fsencode(control)) > SOCKET_LIMIT:
        raise CommandError(f"{control}: path too long for a socket", hint="shorten runtime-dir")
    control.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield host
    finally:
        if control.exists():
            # What was done is done; a connection that does not close ends by itself after KEEP_SECONDS.
            with contextlib.suppress(CommandError):
                host.runner.run(host.destination.exit_argv(), check=False, timeout=15)
