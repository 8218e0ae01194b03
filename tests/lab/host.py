"""A running lab host as the tests see it: run a command, move a file, pull the plug.

All commands of one host share one ssh connection (a new one costs more than a second under emulation).
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.executed import Executed, recording
from tests.lab.machine import LabError, Machine

BOOT_TIMEOUT = 240.0
"""Seconds until a host must answer; about 30 s alone, more when others use the processors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command left. Text is UTF-8; bytes that are not arrive as surrogates and survive a round trip."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()


class CommandError(LabError):
    """A command on a host ended with another status than 0."""

    def __init__(self, host: str, result: Result) -> None:
        self.result = result
        output = f"{result.stdout}{result.stderr}".strip()
        super().__init__(f"{host}: {shlex.join(result.argv)}: status {result.returncode}\n{output}")


@dataclass(slots=True, kw_only=True)
class Host:
    """One host of the lab. Methods raise LabError when the host does not answer, CommandError for a bad status."""

    machine: Machine
    _master: subprocess.Popen[bytes] | None = field(init=False, default=None)

    @property
    def name(self) -> str:
        return self.machine.spec.name

    @property
    def address(self) -> str:
        """Address on the link between the hosts."""
        return self.machine.spec.address

    # -- commands ---------------------------------------------------------------------------------------------

    def run(
        self, argv: Sequence[str], *, input: str | bytes | None = None, check: bool = True, timeout: float = 300
    ) -> Result:
        """Run a program as root; `argv` reaches it unchanged. `timeout` in seconds, then LabError."""
        self._connect()
        data = input.encode("utf-8", "surrogateescape") if isinstance(input, str) else input
        command = (*self._ssh("-o", "ControlMaster=no"), "root@127.0.0.1", shlex.join(argv))
        try:
            done = subprocess.run(command, input=data or b"", capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.name}: {shlex.join(argv)}: no end within {timeout:g} s") from error
        out, err = (stream.decode("utf-8", "surrogateescape") for stream in (done.stdout, done.stderr))
        result = Result(argv=tuple(argv), returncode=done.returncode, stdout=out, stderr=err)
        if done.returncode == 255 and not self._connected:
            time.sleep(1)  # a dying QEMU outlives its connections a little
            fate = f"\n{self.machine.fate}" if self.machine.died else ""
            raise LabError(f"{self.name}: the connection broke while running {shlex.join(argv)}: {err.strip()}{fate}")
        if check and done.returncode != 0:
            raise CommandError(self.name, result)
        return result

    def script(self, text: str, *arguments: str, check: bool = True, timeout: float = 300) -> Result:
        """Run a `sh -eu` script; hostile text goes into `arguments` ("$1" …), never into the script."""
        return self.run(("sh", "-eu", "-s", "--", *arguments), input=text, check=check, timeout=timeout)

    def spawn(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program and return at once; the caller ends it. Its three streams are pipes."""
        self._connect()
        command = (*self._ssh("-o", "ControlMaster=no"), "root@127.0.0.1", shlex.join(argv))
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)

    def wait_for(self, argv: Sequence[str], *, timeout: float = 60) -> Result:
        """Repeat a command until it succeeds: for states the host reaches by itself. LabError after `timeout` s."""
        deadline = time.monotonic() + timeout
        while True:
            result = self.run(argv, check=False)
            if result.returncode == 0:
                return result
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: {shlex.join(argv)} never succeeded: {result.stderr.strip()}")

    @contextmanager
    def executed(self) -> Iterator[Executed]:
        """Collect every program this host executes inside the `with` block; read it after the block."""
        with recording(self) as record:
            yield record

    # -- files ------------------------------------------------------------------------------------------------

    def put(self, local: Path, remote: str) -> None:
        """Copy a file or a directory to the host."""
        self._copy(str(local), f"root@127.0.0.1:{remote}")

    def get(self, remote: str, local: Path) -> None:
        """Copy a file or a directory from the host."""
        self._copy(f"root@127.0.0.1:{remote}", str(local))

    def write(self, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """Write a file whole, with its mode from the first byte, its directories made as needed."""
        text = (
            'd=$(dirname "$1"); mkdir -p "$d"; t=$(mktemp "$d/.lab.XXXXXX"); cat > "$t"; chmod "$2" "$t"; mv "$t" "$1"'
        )
        self.run(("sh", "-euc", text, "sh", path, f"{mode:o}"), input=content)

    def read(self, path: str) -> str:
        """Content of a text file."""
        return self.run(("cat", "--", path)).stdout

    # -- power ------------------------------------------------------------------------------------------------

    def boot(self, *, timeout: float = BOOT_TIMEOUT) -> None:
        """Switch on and wait until root can log in; pools that exist are imported by then."""
        self.machine.start()
        self.wait_up(timeout)

    def power_off(self) -> None:
        """Cut the power. Disks keep what was synced; boot() brings the host back."""
        self.machine.kill()
        self._disconnect()

    def shut_down(self, *, timeout: float = 120) -> None:
        """Switch off in an orderly way."""
        self.run(("systemctl", "--no-block", "poweroff"))
        self._disconnect()
        self.machine.wait_off(timeout)

    def reboot(self) -> None:
        """Shut down in an orderly way and boot again with the same disks."""
        self.shut_down()
        self.boot()

    def wait_up(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait (seconds) until ssh answers and root can log in; LabError names the log when it does not."""
        deadline = time.monotonic() + timeout
        while not _ssh_answers(self.machine.port):
            if not self.machine.running:
                raise LabError(self.machine.fate)
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} did not come up in {timeout:g} s; see {self.machine.serial_log}")
            time.sleep(0.3)
        self._connect()

    # -- the connection ---------------------------------------------------------------------------------------

    @property
    def shell_command(self) -> tuple[str, ...]:
        """Command line with which a person logs in as root."""
        return (*self._identity(), "-p", str(self.machine.port), "root@127.0.0.1")

    def _identity(self) -> tuple[str, ...]:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes")
        flags = tuple(part for option in options for part in ("-o", option))
        return ("ssh", "-F", "none", "-i", str(self.machine.image.key), *flags)

    @property
    def _control(self) -> Path:
        owner = f"-{os.getpid()}" if self.machine.attached else ""
        return self.machine.run / f"{self.name}{owner}.ssh"

    def _ssh(self, *options: str) -> tuple[str, ...]:
        shared = ("-o", f"ControlPath={self._control}", "-o", "BatchMode=yes", "-o", "ConnectTimeout=60")
        return (*self._identity(), *shared, "-p", str(self.machine.port), *options)

    def _copy(self, source: str, target: str) -> None:
        self._connect()
        options = (*self._ssh()[1:-2], "-P", str(self.machine.port))
        done = subprocess.run(("scp", "-q", "-r", "-p", *options, source, target), capture_output=True, check=False)
        if done.returncode != 0:
            raise LabError(f"{self.name}: copying {source} to {target}: {done.stderr.decode(errors='replace')}")

    @property
    def _connected(self) -> bool:
        return self._master is not None and self._master.poll() is None and self._control.exists()

    def _connect(self) -> None:
        if self._connected:
            return
        if not self.machine.running:
            raise LabError(self.machine.fate)
        self._disconnect()
        command = (*self._ssh("-M", "-N"), "root@127.0.0.1")
        null = subprocess.DEVNULL
        # A session of its own: Ctrl-C in the terminal must not cut the connection before the tidy end.
        self._master = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
        deadline = time.monotonic() + 90
        while not self._control.exists():
            if self._master.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"{self.name}: root cannot log in; see {self.machine.serial_log}")
            time.sleep(0.05)

    def _disconnect(self) -> None:
        if self._master is not None:
            self._master.kill()
            self._master.wait(timeout=30)
            self._master = None
        self._control.unlink(missing_ok=True)


def _ssh_answers(port: int) -> bool:
    """Whether an ssh server greets: QEMU accepts connections itself, long before the host listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
            probe.settimeout(5)
            return probe.recv(4) == b"SSH-"
    except OSError:
        return False
