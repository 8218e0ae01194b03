"""OpenSSH's own `sftp` in batch mode: one connection per batch of commands, answers known by their echo."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pve_zfsbackup.errors import CommandTimeoutError, HostKeyError, HostUnreachableError, StoreError
from pve_zfsbackup.host.programs import Programs

SFTP_FAILED = 255
ECHO = "sftp> "
SLOWEST = 32 << 10  # bytes per second below which a transfer is given up
PATIENCE = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How a box is reached. `path` lies below the directory the account starts in."""

    host: str
    user: str
    port: int
    path: str
    identity: Path
    known_hosts: Path
    connect_timeout: int = 15

    def argv(self, rate: int = 0) -> tuple[str, ...]:
        """The client, at so many bytes per second (0: as fast as it goes): no user configuration, our own key and
        known_hosts, and it never asks (reliability S8)."""
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": _quoted(self.known_hosts),
            "GlobalKnownHostsFile": "none",
            "IdentitiesOnly": "yes",
            "IdentityFile": _quoted(self.identity),
            "ControlPath": "none",
            "ConnectTimeout": str(self.connect_timeout),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "LogLevel": "ERROR",
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
        }
        flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        host = f"[{self.host}]" if ":" in self.host else self.host
        limit = ("-l", str(max(1, rate * 8 // 1000))) if rate else ()  # kbit/s
        return ("sftp", "-F", "none", *limit, *flags, "-P", str(self.port), "-b", "-", f"{self.user}@{host}")


@dataclass(frozen=True, slots=True)
class Session:
    """What a batch left behind. `output` by command, as echoed, in order."""

    returncode: int
    output: tuple[tuple[str, tuple[str, ...]], ...]
    stderr: str

    @property
    def last(self) -> str:
        """The command after which it ended."""
        return self.output[-1][0] if self.output else ""

    @property
    def told(self) -> str:
        return "; ".join(self.stderr.strip().splitlines()[-3:]) or f"exit status {self.returncode}, no message"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sftp:
    """The client of one box. `rate` tells the bytes per second one connection may use now, 0 for no limit."""

    name: str
    programs: Programs
    server: Server
    rate: Callable[[], int] = lambda: 0

    def batch(self, lines: Sequence[str], size: int = 0) -> Session:
        """One connection, in which at most `size` bytes move. Raises when it could not be made or broke, or takes too
        long: `HostUnreachableError`, `HostKeyError`, `CommandTimeoutError`."""
        if not lines:
            return Session(0, (), "")
        rate = self.rate()
        argv = self.server.argv(rate)
        slowest = min(SLOWEST, rate // 2) if rate else SLOWEST
        with tempfile.TemporaryFile() as script:
            script.write(("\n".join(lines) + "\n").encode("utf-8"))
            script.seek(0)
            with self.programs.opened(argv, source=script) as chain:
                timer = threading.Timer(PATIENCE + size / slowest, chain.kill)
                timer.daemon = True
                timer.start()
                output = b"".join(iter(lambda: chain.output.read(1 << 16), b"")).decode("utf-8", "replace")
                (done,) = chain.finish()
                late = not timer.is_alive()
                timer.cancel()
        if late and done.returncode:
            raise CommandTimeoutError(f"{self.name}: sftp did not come to an end", hint="is the server overloaded?")
        if done.returncode == SFTP_FAILED or done.returncode < 0:
            raise self._unreachable(done.stderr)
        return Session(done.returncode, tuple(_by_command(output)), done.stderr)

    def _unreachable(self, stderr: str) -> HostKeyError | HostUnreachableError:
        where = f"{self.server.user}@{self.server.host}:{self.server.port}"
        text = "; ".join(stderr.strip().splitlines()[-3:]) or "the connection broke without a message"
        if "Host key verification failed" in stderr or "IDENTIFICATION HAS CHANGED" in stderr:
            return HostKeyError(
                f"box {self.name}: host key of {where} is not the pinned one: {text}",
                hint=f"compare the key by hand, then put the right one into {self.server.known_hosts}",
                stderr=stderr,
                returncode=SFTP_FAILED,
            )
        hint = "check that the server is up and takes our key"
        if "Permission denied" in stderr:
            hint = f"add {self.server.identity}.pub to the account's keys on the box"
        told = f"box {self.name}: sftp to {where} failed: {text}"
        return HostUnreachableError(told, hint=hint, stderr=stderr, returncode=SFTP_FAILED)


def _by_command(output: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Output after each echoed command."""
    for block in f"\n{output}".split(f"\n{ECHO}")[1:]:
        command, *lines = block.split("\n")
        yield command, tuple(line for line in lines if line)


def word(path: Path) -> str:
    """A local path as one word of sftp's own command language."""
    text = str(path)
    if not text.isprintable():
        raise StoreError(f"{text!r}: a path with control characters cannot be given to sftp")
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _quoted(path: Path) -> str:
    """A path as the value of an ssh option: one word, and `%` is no token (ssh_config(5))."""
    text = str(path).replace("%", "%%")
    return text if re.fullmatch(r"[\w/.:+@,=%-]+", text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
