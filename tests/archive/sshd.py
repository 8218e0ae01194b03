"""A real sshd on this machine whose one account gets SFTP in one directory and nothing else."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.host.programs import ProcessPrograms
from pve_zfsbackup.host.sftp import Server, Sftp
from pve_zfsbackup.host.store_sftp import SftpStore


@dataclass(slots=True)
class Sshd:
    """`options` are given to internal-sftp, such as `-P rename` to refuse renaming."""

    place: Path
    options: str = ""
    config: str = ""
    command: str = "internal-sftp"  # what every session gets; empty: what it asks for
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def files(self) -> Path:
        return self.place / "box"

    def prepare(self) -> None:
        self.files.mkdir(parents=True)
        for name in ("hostkey", "id"):
            keygen = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.place / name))
            subprocess.run(keygen, check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.pin("hostkey")

    def pin(self, key: str) -> None:
        kind, text, *_ = (self.place / f"{key}.pub").read_text().split()
        (self.place / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {text}\n")

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # privilege separation
        (self.place / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.place}/hostkey\n"
            f"AuthorizedKeysFile {self.place}/id.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"{self._forced}\nSubsystem sftp internal-sftp\n{self.config}\n"
        )
        argv = ("/usr/sbin/sshd", "-D", "-f", str(self.place / "sshd_config"), "-E", str(self.place / "log"))
        self.process = subprocess.Popen(argv, start_new_session=True)
        deadline = time.monotonic() + 20
        while "Server listening" not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    @property
    def _forced(self) -> str:
        return f"ForceCommand {self.command} -d {self.files} {self.options}" if self.command else ""

    @property
    def log(self) -> str:
        path = self.place / "log"
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        """The listener; sessions under way go on."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            (self.place / "log").unlink()
            self.process = None

    def kill_sessions(self) -> None:
        """As if the line were cut, for every session under way."""
        assert self.process is not None
        children = subprocess.run(
            ("pgrep", "-P", str(self.process.pid)), stdout=subprocess.PIPE, text=True, check=False
        ).stdout.split()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)

    def store(self, path: str = "deep/root") -> SftpStore:
        server = Server(
            host="127.0.0.1",
            user=getpass.getuser(),
            port=self.port,
            path=path,
            identity=self.place / "id",
            known_hosts=self.place / "known_hosts",
        )
        return SftpStore(client=Sftp(name="box1", programs=ProcessPrograms(), server=server))


@contextlib.contextmanager
def serving(place: Path, options: str = "", config: str = "", *, command: str = "internal-sftp") -> Iterator[Sshd]:
    sshd = Sshd(place, options, config, command)
    sshd.prepare()
    sshd.start()
    try:
        yield sshd
    finally:
        sshd.stop()
