"""Compression, encryption and signatures, by the programs people can use without us: zstd, age, ssh-keygen."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pve_zfsbackup.errors import CommandError, SealError, VerificationError
from pve_zfsbackup.host.programs import Programs, raise_first, write_all
from pve_zfsbackup.host.runner import Completed, Runner, failure

CHUNK = 1 << 20
LEVEL = "-3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Digested:
    """What went through: its bytes and their sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """`namespace` keeps our signatures apart from every other one of the same key."""

    runner: Runner
    programs: Programs
    namespace: str

    @contextlib.contextmanager
    def sealing(self, recipients: Sequence[Path], out: Path, *, compress: bool) -> Iterator[Callable[[bytes], None]]:
        """Take plaintext, write it compressed and encrypted to a new file. Raises `SealError` when a program fails;
        then the file is not to be used."""
        age = ("age", "--encrypt", *(part for file in recipients for part in ("-R", str(file))))
        argvs = (("zstd", "-q", "-c", "-T0", LEVEL), age) if compress else (age,)
        with open(out, "xb") as sink, self.programs.opened(*argvs, sink=sink) as chain:
            broken = False

            def feed(data: bytes) -> None:
                nonlocal broken
                try:
                    write_all(chain.feed, data)
                except BrokenPipeError:
                    broken = True
                    _raise(chain.finish())
                    raise SealError(f"{out.name}: {argvs[0][0]} ended before its input did") from None

            yield feed
            if not broken:
                _raise(chain.finish())

    def unseal(self, stored: Path, identity: Path, out: Path, *, compressed: bool) -> Digested:
        """Decrypt and decompress a whole segment into a new file. Raises `SealError`."""
        age = ("age", "--decrypt", "-i", str(identity))
        argvs = (age, ("zstd", "-q", "-d", "-c")) if compressed else (age,)
        total, hashed = 0, hashlib.sha256()
        with (
            open(stored, "rb") as source,
            open(out, "xb", buffering=0) as target,
            self.programs.opened(*argvs, source=source) as chain,
        ):
            while data := chain.output.read(CHUNK):
                hashed.update(data)
                write_all(target, data)
                total += len(data)
            _raise(chain.finish())
        return Digested(bytes=total, sha256=hashed.hexdigest())

    def encrypt(self, data: bytes, recipients: Sequence[Path], out: Path) -> None:
        with self.sealing(recipients, out, compress=False) as feed:
            feed(data)

    def decrypt(self, stored: Path, identity: Path) -> bytes:
        """The plaintext of a small file. Raises `SealError`."""
        with (
            open(stored, "rb") as source,
            self.programs.opened(("age", "--decrypt", "-i", str(identity)), source=source) as chain,
        ):
            data = b"".join(iter(lambda: chain.output.read(CHUNK), b""))
            _raise(chain.finish())
        return data

    def sign(self, data: bytes, key: Path) -> bytes:
        """A detached signature, as text."""
        done = self.runner.run(
            ("ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", self.namespace), input=data, check=False
        )
        if done.returncode or "BEGIN SSH SIGNATURE" not in done.stdout:
            raise _judged(done, f"is {key} an ed25519 key without a passphrase?")
        return done.stdout.encode("ascii")

    def verify(self, data: bytes, signature: bytes, signers: Path, principal: str) -> None:
        """Raise `VerificationError` unless the signature is good and made by the key of this principal."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(signature)
            file.flush()
            who = ("-f", str(signers), "-I", principal, "-n", self.namespace, "-s", file.name)
            argv = ("ssh-keygen", "-Y", "verify", *who)
            done = self.runner.run(argv, input=data, check=False)
        if done.returncode or "Good " not in done.stdout:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise VerificationError(f"the signature is not {principal}'s: {lines[-1] if lines else 'no message'}")

    def new_identity(self, path: Path) -> str:
        """Make an age identity in a new file, readable by root only; returns its recipient."""
        self.runner.run(("age-keygen", "-o", str(path)))
        path.chmod(0o600)
        return self.recipient(path)

    def recipient(self, path: Path) -> str:
        return self.runner.run(("age-keygen", "-y", str(path))).stdout.strip()

    def new_signing_key(self, path: Path, comment: str) -> None:
        """Make an ed25519 key pair without a passphrase."""
        self.runner.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)))


def digest_file(file: IO[bytes]) -> Digested:
    """Read all of it."""
    hashed = hashlib.sha256()
    total = 0
    while data := file.read(CHUNK):
        hashed.update(data)
        total += len(data)
    return Digested(bytes=total, sha256=hashed.hexdigest())


def _raise(ends: tuple[Completed, ...]) -> None:
    try:
        raise_first(ends)
    except CommandError as error:
        hint = ""
        if "no identity matched" in error.stderr:
            hint = "this archive was encrypted to other recipients: find the identity that belongs to one of them"
        raise SealError(error.message, hint=hint, stderr=error.stderr, returncode=error.returncode) from None


def _judged(done: Completed, hint: str) -> SealError:
    error = failure(done)
    return SealError(error.message, hint=hint, stderr=error.stderr, returncode=error.returncode)
