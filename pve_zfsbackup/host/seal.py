"""Compression, encryption and signatures, by the programs people can use without us: zstd, age, ssh-keygen."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, Self

from pve_zfsbackup.errors import CommandError, SealError, VerificationError
from pve_zfsbackup.host.programs import Chain, Programs, fill, raise_first, tee, write_all
from pve_zfsbackup.host.runner import Completed, Runner, failure

CHUNK = 1 << 20
LEVEL = "-3"
GLANCE = 0.01  # seconds between two looks at a file that is being written


@dataclass(frozen=True, slots=True, kw_only=True)
class Digested:
    """What went through: its bytes and their sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealing:
    """A file in the making. `sealed` has its bytes and hash, or the `SealError` the programs ended with."""

    chain: Chain
    fed: threading.Event
    sealed: Future[Digested]

    def feed(self, data: bytes | memoryview) -> None:
        """Raises `SealError` when a program is gone."""
        try:
            write_all(self.chain.feed, data)
        except BrokenPipeError:
            self._broken()

    def pass_on(self, source: IO[bytes], buffer: memoryview) -> memoryview:
        """Feed what a pipe has next, and tell it: the part of the buffer that was filled, empty at the end of the
        pipe. Raises as `feed` does."""
        try:
            return tee(source, self.chain.feed, buffer)
        except BrokenPipeError:
            self._broken()

    def _broken(self) -> NoReturn:
        self.end()
        self.sealed.result()
        raise SealError("a program that seals ended before its input did") from None

    def end(self) -> None:
        """There is no more. Harmless when repeated."""
        if not self.fed.is_set():
            with contextlib.suppress(BrokenPipeError):
                self.chain.feed.close()
            self.fed.set()

    def kill(self) -> None:
        self.chain.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """`namespace` keeps our signatures apart from every other one of the same key."""

    runner: Runner
    programs: Programs
    namespace: str

    @contextlib.contextmanager
    def sealing(self, beside: Executor, recipients: Sequence[Path], out: Path, *, compress: bool) -> Iterator[Sealing]:
        """Take plaintext, which becomes a new file, compressed and encrypted; a thread of `beside` waits for that.
        Leaving the block ends the input, `sealed` tells of the file. Left by an exception, it is not to be used."""
        age = ("age", "--encrypt", *(part for file in recipients for part in ("-R", str(file))))
        argvs = (("zstd", "-q", "-c", "-T0", LEVEL), age) if compress else (age,)
        begun: Future[Chain] = Future()
        fed = threading.Event()
        try:
            sealed = beside.submit(self._collect, argvs, out, begun, fed)
            sealing = Sealing(chain=begun.result(), fed=fed, sealed=sealed)
        except BaseException:  # interrupted here: nobody will feed what may begin yet
            fed.set()
            begun.add_done_callback(_unwanted)
            raise
        try:
            yield sealing
        except BaseException:
            sealing.kill()
            raise
        finally:
            sealing.end()

    def _collect(
        self, argvs: Sequence[Sequence[str]], out: Path, begun: Future[Chain], fed: threading.Event
    ) -> Digested:
        """Have the programs write the file, then hash it. The chain is the feeder's until it says so."""
        try:
            with open(out, "xb", buffering=0) as target, self.programs.opened(*argvs, sink=target) as chain:
                begun.set_result(chain)
                try:
                    with _Following(out) as written:
                        while not fed.wait(GLANCE):
                            written.read_on()
                        _raise(chain.finish())
                        return written.whole()
                finally:  # closing the pipe under a write could write into another file
                    if not fed.is_set():
                        chain.kill()
                        fed.wait()
        except BaseException as error:
            if not begun.done():
                begun.set_exception(error)
            raise

    def unseal(self, stored: Path, identity: Path, out: Path, *, compressed: bool) -> Digested:
        """Decrypt and decompress a whole segment into a new file. Raises `SealError`."""
        age = ("age", "--decrypt", "-i", str(identity))
        argvs = (age, ("zstd", "-q", "-d", "-c")) if compressed else (age,)
        with (
            open(stored, "rb") as source,
            open(out, "xb", buffering=0) as target,
            self.programs.opened(*argvs, source=source, sink=target) as chain,
            _Following(out) as written,
        ):
            while not chain.ended():
                time.sleep(GLANCE)
                written.read_on()
            _raise(chain.finish())
            return written.whole()

    def encrypt(self, data: bytes, recipients: Sequence[Path], out: Path) -> None:
        with ThreadPoolExecutor(1) as beside:
            with self.sealing(beside, recipients, out, compress=False) as sealing:
                sealing.feed(data)
            sealing.sealed.result()

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


class _Following:
    """Hashes a file of this host while somebody else writes it. What was just written comes from memory; a pipe through
    this process would cost twice as much."""

    def __init__(self, path: Path) -> None:
        self.hash, self.bytes = hashlib.sha256(), 0
        self.buffer = memoryview(bytearray(CHUNK))
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the block

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self.file.close()

    def read_on(self) -> None:
        """What there is by now."""
        while data := fill(self.file, self.buffer):
            self.hash.update(data)
            self.bytes += len(data)

    def whole(self) -> Digested:
        """Nobody writes any more."""
        self.read_on()
        return Digested(bytes=self.bytes, sha256=self.hash.hexdigest())


def digest_file(path: Path) -> Digested:
    """Read all of it."""
    with _Following(path) as written:
        return written.whole()


def _unwanted(begun: Future[Chain]) -> None:
    if begun.exception() is None:
        begun.result().kill()


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
