"""The target's ssh host key in our own known_hosts: put there once, from what is known to be right, and never changed
without being told which (reliability §3, S8)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import CommandError
from pve_zfsbackup.host.private import write_private
from pve_zfsbackup.host.runner import Runner

_KINDS: Final = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
_BLOB: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}\Z")
FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?\Z")
SCAN_SECONDS: Final = 15


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host's public key: type and base64 text."""

    kind: str
    blob: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def host_keys(pairs: Sequence[tuple[str, str]]) -> tuple[HostKey, ...]:
    """Those of the pairs (type and text) that are keys, the best first."""
    found = []
    for kind, blob in pairs:
        if kind in _KINDS and _BLOB.match(blob):
            try:
                base64.b64decode(blob, validate=True)
            except binascii.Error:
                continue
            found.append(HostKey(kind, blob))
    return tuple(sorted(set(found), key=lambda key: _KINDS.index(key.kind)))


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHosts:
    """One host in a known_hosts file of ours."""

    runner: Runner
    file: Path
    host: str
    port: int

    @property
    def name(self) -> str:
        """As ssh looks it up."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"

    def pinned(self) -> tuple[HostKey, ...]:
        """The keys that are pinned for the host. Raises `CommandError`."""
        if not self.file.exists():
            return ()
        # Status 1: not found.
        done = self.runner.run(("ssh-keygen", "-F", self.name, "-f", str(self.file)), check=False)
        if done.returncode not in (0, 1):
            raise CommandError(f"ssh-keygen -F: {done.stderr.strip()}", hint=f"look at {self.file}")
        lines = [line.split() for line in done.stdout.splitlines() if line.strip() and line[0] not in "#@"]
        return host_keys([(words[1], words[2]) for words in lines if len(words) >= 3])

    def scan(self) -> tuple[HostKey, ...]:
        """What answers there shows: known to be right by nobody yet. Raises `CommandError`."""
        argv = ("ssh-keyscan", "-T", str(SCAN_SECONDS), "-p", str(self.port), "--", self.host)
        done = self.runner.run(argv, check=False, timeout=4 * SCAN_SECONDS)
        words = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
        found = host_keys([(parts[1], parts[2]) for parts in words if len(parts) >= 3])
        if not found:
            told = "; ".join(line for line in done.stderr.splitlines() if not line.startswith("#"))
            raise CommandError(
                f"{self.name}: no ssh host key came: {told or 'no answer'}",
                hint="check name, port, and that its sshd runs",
            )
        return found

    def pin(self, key: HostKey) -> None:
        """Put the key there, in place of others of the host; other lines stay as they are."""
        if self.pinned():
            self.runner.run(("ssh-keygen", "-q", "-R", self.name, "-f", str(self.file)))
        text = self.file.read_text(encoding="utf-8", errors="surrogateescape") if self.file.exists() else ""
        if text and not text.endswith("\n"):
            text += "\n"
        write_private(self.file, f"{text}{self.name} {key.kind} {key.blob}\n")
