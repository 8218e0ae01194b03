"""Where commands run: this host, or another one over ssh: small ones over one shared connection, streams that move
much over connections of their own, because a connection has one thread for its cipher and one TCP window.

Remote command lines are quoted here and nowhere else. The client reads no user configuration (`-F none`),
trusts only our own known_hosts and our own key, and never asks (reliability S8).
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pve_zfsbackup.errors import AccessDeniedError, CommandError, HostKeyError, HostUnreachableError
from pve_zfsbackup.host.pace import Pace
from pve_zfsbackup.host.runner import DEFAULT_TIMEOUT, Completed, Runner, failure

SSH_FAILED = 255  # ssh's own failures (ssh(1), EXIT STATUS)
DENIED = 126  # says a receiver that is older than the question, or a forced command of one's own
KEEP_SECONDS = 60
LINE_LIMIT = 96 << 10  # Linux takes 128 KiB in one argument, and the other side's shell gets the line as one
FASTEST = "^aes128-gcm@openssh.com"  # first where both know it: the fastest on a processor with AES instructions
STALL_SECONDS = 3600.0  # a sparse increment may read for long before its first byte
SOCKET_LIMIT = 90  # sun_path has 108 bytes, and ssh adds a random suffix while it binds
_CROWDED = re.compile(
    r"^(?:mux_client_request_session: .*|ControlSocket .* already exists, disabling multiplexing)\r?\n?", re.MULTILINE
)


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

    def argv(self, line: str, *, alone: bool = False) -> tuple[str, ...]:
        """The client with a command line for the other side; `alone`: not over the shared connection."""
        return (*self._client(alone=alone), "--", f"{self.user}@{self.host}", line)

    def exit_argv(self) -> tuple[str, ...]:
        return (*self._client(), "-O", "exit", "--", f"{self.user}@{self.host}")

    def _client(self, *, alone: bool = False) -> tuple[str, ...]:
        shared = {
            "ControlMaster": "auto",
            "ControlPath": quoted(self.control),
            "ControlPersist": str(KEEP_SECONDS),
        }
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": quoted(self.known_hosts),
            "GlobalKnownHostsFile": "none",
            "IdentitiesOnly": "yes",
            "IdentityFile": quoted(self.identity),
            "Ciphers": FASTEST,
            **({"ControlPath": "none"} if alone else shared),
            "ConnectTimeout": str(self.connect_timeout),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "LogLevel": "ERROR",
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
        }
        flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        return ("ssh", "-F", "none", "-T", "-p", str(self.port), *flags)


def quoted(path: Path) -> str:
    """A path as the value of an ssh option: one word, and `%` is no token (ssh_config(5))."""
    text = str(path).replace("%", "%%")
    return text if re.fullmatch(r"[\w/.:+@,=%-]+", text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How streams travel to a host. `stall` in seconds; `mbuffer` in bytes, 0 for none."""

    stall: float = STALL_SECONDS
    pace: Pace | None = None
    mbuffer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A place where `zfs` runs. `destination` is None for the node itself."""

    name: str
    runner: Runner
    destination: Destination | None = None
    link: Link = field(default_factory=Link)

    def argv(self, command: Sequence[str]) -> tuple[str, ...]:
        return self.destination.argv(shlex.join(command)) if self.destination else tuple(command)

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
        return self._run(command, self.argv(command), timeout=timeout, check=check, input=input)

    def run_each(self, commands: Sequence[Sequence[str]], *, timeout: float = DEFAULT_TIMEOUT) -> list[Completed]:
        """Run commands side by side, on the node itself; how each ended. Raises `CommandTimeoutError`."""
        assert self.destination is None, self.name
        return self.runner.run_each(commands, timeout=timeout)

    def run_all(self, commands: Sequence[Sequence[str]], *, timeout: float = DEFAULT_TIMEOUT) -> Completed | None:
        """Run commands in order, on another host many in one session; returns the first that failed, as if alone.

        Those after it were not run. Raises as `run` does without `check`.
        """
        if self.destination is None:
            ends = (self.run(command, timeout=timeout, check=False) for command in commands)
            return next((done for done in ends if done.returncode), None)
        for batch in _lines(commands):
            line = " && ".join(shlex.join(command) for command in batch)
            done = self._run(batch[0], self.destination.argv(line), timeout=timeout, check=False, input=None)
            if done.returncode:
                return done
        return None

    def _run(
        self, command: Sequence[str], argv: Sequence[str], *, timeout: float, check: bool, input: bytes | None
    ) -> Completed:
        done = self.runner.run(argv, timeout=timeout, check=False, input=input)
        done = Completed(argv=tuple(command), returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)
        if self.destination:
            if done.returncode == SSH_FAILED:
                raise self.unreachable(done)
            done = uncrowded(done)
        if check and done.returncode:
            raise failure(done)
        return done

    def run_line(self, commands: Sequence[Sequence[str]], *, timeout: float = DEFAULT_TIMEOUT) -> Completed:
        """Run commands in one session, each only after the one before succeeded; what all of them say together.

        Raises as `run` does without `check`.
        """
        if self.destination is None:
            done = Completed(argv=(), returncode=0, stdout="", stderr="")
            for command in commands:
                last = self.run(command, timeout=timeout, check=False)
                out, err = done.stdout + last.stdout, done.stderr + last.stderr
                done = Completed(argv=last.argv, returncode=last.returncode, stdout=out, stderr=err)
                if done.returncode:
                    break
            return done
        line = " && ".join(shlex.join(command) for command in commands)
        return self._run(commands[-1], self.destination.argv(line), timeout=timeout, check=False, input=None)

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
        denied = "Permission denied" in done.stderr
        hint = "check that the host is up and that its sshd accepts our key"
        if denied:
            hint = f"add {self.destination.identity}.pub to the account's authorized_keys on the target"
        kind = AccessDeniedError if denied else HostUnreachableError
        return kind(
            f"target {self.name}: ssh to {where} failed: {text}",
            hint=hint,
            stderr=done.stderr,
            returncode=SSH_FAILED,
        )


def uncrowded(done: Completed) -> Completed:
    """Without what ssh says where the shared connection has all the sessions it may have (sshd_config(5),
    MaxSessions): the command went over a connection of its own, and these are no words of its."""
    return done if done.returncode == SSH_FAILED else replace(done, stderr=_CROWDED.sub("", done.stderr))


def _lines(commands: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Commands that fit into one command line together."""
    batch: list[Sequence[str]] = []
    size = 0
    for command in commands:
        length = len(os.fsencode(shlex.join(command))) + 4
        if batch and size + length > LINE_LIMIT:
            yield batch
            batch, size = [], 0
        batch.append(command)
        size += length
    if batch:
        yield batch


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
    _sweep(control)
    try:
        yield host
    finally:
        if control.exists():
            # What was done is done; a connection that does not close ends by itself after KEEP_SECONDS.
            with contextlib.suppress(CommandError):
                host.runner.run(host.destination.exit_argv(), check=False, timeout=15)


def _sweep(control: Path) -> None:
    """Remove the sockets that killed clients of ours left for this target: those of a process that is no more, behind
    which nobody listens. A connection that outlives its process by `KEEP_SECONDS` does."""
    for path in control.parent.glob(f"{glob.escape(control.stem)}.*"):
        pid = path.suffix.removeprefix(".")
        if not pid.isdecimal() or Path("/proc", pid).exists() or not path.is_socket():
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(1)
            try:
                asking.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                continue  # gone meanwhile, or too busy to answer: not dead
