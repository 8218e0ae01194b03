"""OpenSSH's own `sftp` in batch mode: what it answers is known by its echo, how it fails by its exit status."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.errors import (
    AccessDeniedError,
    CommandTimeoutError,
    HostKeyError,
    HostUnreachableError,
    StoreError,
    VerificationError,
)
from pve_zfsbackup.host.programs import Programs
from pve_zfsbackup.host.sftp_connection import ECHO, Connection, Idle, Watch
from pve_zfsbackup.host.ssh import FASTEST

SFTP_FAILED = 255
SLOWEST = 4 << 10  # bytes per second below which a transfer is given up: who trickles would keep us for ever
PATIENCE = 300.0  # seconds without a byte after which it is
SYNCING = 256 << 10  # bytes per second that a server takes to its disk when it is told to: it is silent meanwhile
WINDOW = 4 << 20  # bytes that sftp may have given away when it stops for its rate: 64 requests of 32 KiB, and buffers


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
            "Ciphers": FASTEST,
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
    """What a batch left behind. `output` by command, in order."""

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
    idle: Idle = field(default_factory=Idle, repr=False, compare=False)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, a connection is used for one batch after another: making one takes as long as many commands."""
        with self.idle.lock:
            self.idle.wanted += 1
        try:
            yield
        finally:
            with self.idle.lock:
                self.idle.wanted -= 1
                left = [] if self.idle.wanted else self.idle.connections
                self.idle.connections = self.idle.connections if self.idle.wanted else []
            for connection in left:
                connection.ended()

    def batch(self, lines: Sequence[str], size: int = 0, into: Sequence[Path] = ()) -> Session:
        """Commands in their order, to the first that fails, in which at most `size` bytes move, those that are fetched
        `into` these files; on a connection that was used before they may be done twice. Raises when the connection
        could not be made or broke, takes too long, or brings more: `HostUnreachableError`, `HostKeyError`,
        `CommandTimeoutError`, `VerificationError`."""
        if not lines:
            return Session(0, (), "")
        rate = self.rate()
        argv = self.server.argv(rate)
        time_out = PATIENCE + size / (min(SLOWEST, rate // 2) if rate else SLOWEST)

        def asked(connection: Connection) -> Session:
            chain = connection.chain
            still = PATIENCE + size / SYNCING + (WINDOW / rate if rate else 0)
            watch = Watch(chain=chain, seconds=time_out, still=still, most=size, into=into)
            return self._asked(connection, lines, watch)

        if used := self.idle.take(argv):
            with contextlib.suppress(HostUnreachableError):  # sftp does not see its line die while it waits
                return asked(used)
        return asked(self._connected(argv))

    def _asked(self, connection: Connection, lines: Sequence[str], watch: Watch) -> Session:
        try:
            with watch.watching():
                answer, whole = connection.ask(lines)
        except BaseException:
            connection.chain.kill()
            connection.ended()
            raise
        answers = tuple(_by_command(answer))
        asked = lines if whole else lines[: len(answers)]
        strange = [_echo(line) for line in asked] != [echo for echo, _ in answers]
        output = tuple((line, told) for line, (_, told) in zip(asked, answers, strict=False))
        late = watch.late or watch.flooded
        if whole and not late and not strange:
            session = Session(0, output, connection.heard())
            self.idle.give(connection)
            return session
        done, text = connection.ended()
        if watch.flooded:
            told = f"box {self.name}: more came than the {watch.most} bytes that should lie there"
            raise VerificationError(told, hint="the box, or what lies between, changed it; another copy is needed")
        if watch.late:
            raise CommandTimeoutError(f"{self.name}: sftp did not come to an end", hint="is the server overloaded?")
        broken = done.returncode == SFTP_FAILED or done.returncode < 0 or not (done.returncode or whole)
        if broken or not (whole or text.strip()):  # told to end, sftp ends with 1, and without a word
            raise self._unreachable(text)
        if strange:
            hint = "has a file in the box a name with a line break? Look at it and remove it"
            raise StoreError(f"{self.name}: sftp answered to what it was not asked", hint=hint)
        return Session(done.returncode, output, text)

    def _connected(self, argv: tuple[str, ...]) -> Connection:
        with contextlib.ExitStack() as stack:
            chain = stack.enter_context(self.programs.opened(argv))
            return Connection(argv=argv, chain=chain, rest=stack.pop_all())

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
        told = f"box {self.name}: sftp to {where} failed: {text}"
        if "Permission denied (" in stderr:
            hint = f"add {self.server.identity}.pub to the account's keys on the box"
            return AccessDeniedError(told, hint=hint, stderr=stderr, returncode=SFTP_FAILED)
        hint = "check that the server is up and takes our key"
        return HostUnreachableError(told, hint=hint, stderr=stderr, returncode=SFTP_FAILED)


def _by_command(output: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Output after each echoed command."""
    for block in f"\n{output}".split(f"\n{ECHO}")[1:]:
        command, *lines = block.split("\n")
        yield command, tuple(line for line in lines if line)


def _echo(line: str) -> str:
    """What sftp shows of a command in the locale that programs of ours have, C."""
    return "".join(chr(byte) if byte < 0x80 else f"\\{byte:03o}" for byte in line.encode("utf-8"))


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
