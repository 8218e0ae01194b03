"""OpenSSH's own `sftp` in batch mode: answers known by their echo, connections that are used again."""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.errors import (
    AccessDeniedError,
    CommandTimeoutError,
    HostKeyError,
    HostUnreachableError,
    StoreError,
)
from pve_zfsbackup.host.programs import Chain, Programs, write_all
from pve_zfsbackup.host.runner import Completed

SFTP_FAILED = 255
ECHO = "sftp> "
SLOWEST = 32 << 10  # bytes per second below which a transfer is given up
PATIENCE = 300.0
GOODBYE = 5.0  # seconds to end in when there is nothing more to do
IDLE = 20.0  # seconds after which a connection is not used again: what lies between may have forgotten it
PORTION = 32 << 10  # bytes of commands given at once: less than a pipe holds


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


@dataclass(slots=True, kw_only=True)
class _Connection:
    """One running client. `rest` keeps what it is made of until it ends; `known` are the bytes of its stderr that were
    looked at."""

    argv: tuple[str, ...]
    chain: Chain
    rest: contextlib.ExitStack
    known: int = 0
    used: float = 0.0

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self.used <= IDLE and not self.chain.ended()

    def ask(self, lines: Sequence[str]) -> tuple[str, bool]:
        """What it answers to these commands, and whether it did them all: batch mode ends at the first that fails."""
        answer = b""
        for portion in _portions(lines):
            # A comment is echoed, too, when its turn comes; nobody else can know its text.
            mark = f"# {secrets.token_hex(16)}"
            with contextlib.suppress(BrokenPipeError):  # its answer says why
                write_all(self.chain.feed, ("\n".join([*portion, mark]) + "\n").encode("utf-8"))
            answer, whole = self._until(f"{ECHO}{mark}\n".encode("ascii"), answer)
            if not whole:
                return answer.decode("utf-8", "replace"), False
        return answer.decode("utf-8", "replace"), True

    def _until(self, end: bytes, answer: bytes) -> tuple[bytes, bool]:
        parts, last = [answer], b""
        while data := self.chain.output.read(1 << 16):
            last = (last + data)[-(len(data) + len(end)) :]
            parts.append(data)
            if end in last:
                return b"".join(parts).removesuffix(end), True
        return b"".join(parts), False

    def heard(self) -> str:
        """What it wrote to stderr since this was last asked."""
        data, self.known = self.chain.said(self.known)
        return data.decode("utf-8", "replace")

    def ended(self) -> tuple[Completed, str]:
        """How it ended, which it does by itself or because it gets no more commands; and what it said of that."""
        timer = threading.Timer(GOODBYE, self.chain.kill)
        timer.daemon = True
        timer.start()
        with self.rest:
            (done,) = self.chain.finish()
            timer.cancel()
            return done, self.heard()


@dataclass(slots=True)
class _Idle:
    """Connections that wait for their next batch, while somebody wants them kept."""

    wanted: int = 0
    connections: list[_Connection] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, argv: tuple[str, ...]) -> _Connection | None:
        """One with this command line that was used just now. Others, and those that are too old, are ended first: a
        box takes only so many."""
        with self.lock:
            fit = [one for one in self.connections if one.argv == argv and one.fresh]
            old = [one for one in self.connections if one not in fit]
            taken = fit.pop() if fit else None
            self.connections = fit
        for one in old:
            one.ended()
        return taken

    def give(self, connection: _Connection) -> None:
        connection.used = time.monotonic()
        with self.lock:
            if self.wanted:
                self.connections.append(connection)
                return
        connection.ended()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sftp:
    """The client of one box. `rate` tells the bytes per second one connection may use now, 0 for no limit."""

    name: str
    programs: Programs
    server: Server
    rate: Callable[[], int] = lambda: 0
    idle: _Idle = field(default_factory=_Idle, repr=False, compare=False)

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

    def batch(self, lines: Sequence[str], size: int = 0) -> Session:
        """Commands in their order, to the first that fails, in which at most `size` bytes move; on a connection that
        was used before they may be done twice. Raises when the connection could not be made or broke, or takes too
        long: `HostUnreachableError`, `HostKeyError`, `CommandTimeoutError`."""
        if not lines:
            return Session(0, (), "")
        rate = self.rate()
        argv = self.server.argv(rate)
        time_out = PATIENCE + size / (min(SLOWEST, rate // 2) if rate else SLOWEST)
        if used := self.idle.take(argv):
            with contextlib.suppress(HostUnreachableError):  # sftp does not see its line die while it waits
                return self._asked(used, lines, time_out)
        return self._asked(self._connected(argv), lines, time_out)

    def _asked(self, connection: _Connection, lines: Sequence[str], time_out: float) -> Session:
        timer = threading.Timer(time_out, connection.chain.kill)
        timer.daemon = True
        try:
            timer.start()
            answer, whole = connection.ask(lines)
            late = not timer.is_alive()
            timer.cancel()
        except BaseException:
            timer.cancel()
            connection.chain.kill()
            connection.ended()
            raise
        answers = tuple(_by_command(answer))
        asked = lines if whole else lines[: len(answers)]
        strange = [_echo(line) for line in asked] != [echo for echo, _ in answers]
        output = tuple((line, told) for line, (_, told) in zip(asked, answers, strict=False))
        if whole and not late and not strange:
            session = Session(0, output, connection.heard())
            self.idle.give(connection)
            return session
        done, text = connection.ended()
        if late:
            raise CommandTimeoutError(f"{self.name}: sftp did not come to an end", hint="is the server overloaded?")
        if done.returncode == SFTP_FAILED or done.returncode < 0 or not (done.returncode or whole):
            raise self._unreachable(text)
        if strange:
            hint = "has a file in the box a name with a line break? Look at it and remove it"
            raise StoreError(f"{self.name}: sftp answered to what it was not asked", hint=hint)
        return Session(done.returncode, output, text)

    def _connected(self, argv: tuple[str, ...]) -> _Connection:
        with contextlib.ExitStack() as stack:
            chain = stack.enter_context(self.programs.opened(argv))
            return _Connection(argv=argv, chain=chain, rest=stack.pop_all())

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


def _portions(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    portion: list[str] = []
    for line in lines:
        if portion and sum(map(len, portion)) + len(line) > PORTION:
            yield portion
            portion = []
        portion.append(line)
    yield portion


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
