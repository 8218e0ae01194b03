"""TLS material like Proxmox's, a server that answers recorded bytes, and a runner that answers recorded commands."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import re
import socket
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fakepve import FakePve

from pve_zfsbackup.host.api import Token
from pve_zfsbackup.host.pve import HttpsApi
from pve_zfsbackup.host.runner import Completed, Piped, failure

RECORDINGS = Path(__file__).parents[2] / "recordings_pve"
SECRET = "12345678-9abc-def0-1234-56789abcdef0"
TOKEN = Token(user="pve-zfsbackup@pve", name="backup", secret=SECRET)


@dataclass(frozen=True, kw_only=True)
class Recording:
    method: str
    path: str
    answer: bytes


def recording(name: str) -> Recording:
    """A recorded HTTPS answer, byte for byte."""
    request, _, rest = (RECORDINGS / "https" / f"{name}.txt").read_bytes().partition(b"\n")
    words = request.decode().split()
    path = next(word for word in words if word.startswith("/"))
    answer = re.sub(rb"\n--- wall_s=[\d.]+\n*\Z", b"", rest)
    return Recording(method=words[words.index("-X") + 1], path=path, answer=answer)


@dataclass(frozen=True, kw_only=True)
class Certificates:
    ca: Path
    other_ca: Path
    chain: Path
    other_name: Path
    key: Path
    fingerprint: str


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, *, ca: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        # No keyUsage: Proxmox's authority has none either.
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        here: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        names = here if subject == "pve1" else [x509.DNSName(subject)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def make_certificates(place: Path) -> Certificates:
    """An authority as Proxmox makes one, a node's certificate of it, and wrong ones of both."""
    authority, stranger, node = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    pem = serialization.Encoding.PEM
    leaf = _certificate("pve1", "Proxmox Virtual Environment", node, authority, ca=False)
    files = {
        "ca.pem": _certificate(
            "Proxmox Virtual Environment", "Proxmox Virtual Environment", authority, authority, ca=True
        ),
        "other.pem": _certificate(
            "Proxmox Virtual Environment", "Proxmox Virtual Environment", stranger, stranger, ca=True
        ),
        "node.pem": leaf,
        "pve9.pem": _certificate("pve9", "Proxmox Virtual Environment", node, authority, ca=False),
    }
    for name, certificate in files.items():
        (place / name).write_bytes(certificate.public_bytes(pem))
    (place / "node.key").write_bytes(
        node.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Certificates(
        ca=place / "ca.pem",
        other_ca=place / "other.pem",
        chain=place / "node.pem",
        other_name=place / "pve9.pem",
        key=place / "node.key",
        fingerprint=hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest(),
    )


@dataclass
class Replay:
    """A TLS server on loopback that answers `(method, path)` with bytes, in order; the last answer repeats."""

    certificates: Certificates
    stranger: bool = False  # shows a certificate of the same authority, for another name
    answers: dict[tuple[str, str], list[bytes]] = field(default_factory=lambda: defaultdict(list))
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    silent: bool = False  # accepts and never answers, as pveproxy whose workers cannot start
    latency: float = 0.0  # seconds before each answer
    handshake: float = 0.0  # seconds before it
    rude: int = 0  # so many connections are closed before the handshake, as by a worker that is being replaced
    drop_after: int = 0  # close each connection, without a word, after so many answers

    def __post_init__(self) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        chain = self.certificates.other_name if self.stranger else self.certificates.chain
        self._context.load_cert_chain(chain, self.certificates.key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._stopping = threading.Event()
        self._spawn(self._accept)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._socket.getsockname()[1]}"

    def add(self, name: str) -> Recording:
        """Answer like a recording."""
        found = recording(name)
        self.answers[found.method, found.path].append(found.answer)
        return found

    def add_json(self, method: str, path: str, text: str, *, status: str = "200 OK") -> None:
        body = text.encode()
        self.answers[method, path].append(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json;charset=UTF-8\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def close(self) -> None:
        self._stopping.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was quicker
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            if self.connections <= self.rude:
                connection.recv(1 << 16)  # the whole greeting: what is left unread would make it a reset
                connection.close()
                continue
            self._open.append(connection)
            self._spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            self._stopping.wait(self.handshake)
            try:
                with self._context.wrap_socket(connection, server_side=True) as tls, tls.makefile("rb") as stream:
                    served = 0
                    while self._answer(tls, stream):
                        served += 1
                        if self.drop_after and served >= self.drop_after:
                            return
            except (OSError, ssl.SSLError):
                return  # a client that does not trust us hangs up

    def _answer(self, tls: ssl.SSLSocket, stream: object) -> bool:
        line = stream.readline().decode()
        if not line:
            return False
        head = line
        while (header := stream.readline().decode()).strip():
            head += header
        length = re.search(r"(?im)^content-length: *(\d+)", head)
        body = stream.read(int(length[1])) if length else b""
        method, target, _ = line.split()
        path = target.removeprefix("/api2/json")
        self.requests.append((method, path, body))
        self.heads.append(head)
        if self.silent:
            self._stopping.wait(60)
            return False
        queue = self.answers[method, path] or self.answers[method, path.partition("?")[0]]
        if not queue:
            text = f"Method '{method} {path}' not implemented"
            tls.sendall(f"HTTP/1.1 501 {text}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return False
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        self._stopping.wait(self.latency)
        tls.sendall(answer)
        head_text = answer.partition(b"\r\n\r\n")[0].lower()
        return b"content-length" in head_text and not head_text.count(b"connection: close") > head_text.count(
            b"connection: keep-alive"
        )


@pytest.fixture
def replay(certificates: Certificates) -> Iterator[Replay]:
    server = Replay(certificates)
    yield server
    server.close()


@pytest.fixture
def api(replay: Replay, certificates: Certificates) -> Iterator[HttpsApi]:
    with HttpsApi(replay.url, TOKEN, ca_file=certificates.ca, timeout=5) as https:
        yield https


@dataclass
class RecordedRunner:
    """Answers argv with what was recorded or scripted for it, and remembers every argv."""

    answers: dict[tuple[str, ...], list[Completed | Exception]] = field(default_factory=lambda: defaultdict(list))
    argvs: list[tuple[str, ...]] = field(default_factory=list)
    handler: Callable[[tuple[str, ...]], Completed] | None = None

    def add(self, argv: Sequence[str], *, returncode: int = 0, stdout: str = "", stderr: str = "") -> None:
        key = tuple(argv)
        self.answers[key].append(Completed(argv=key, returncode=returncode, stdout=stdout, stderr=stderr))

    def add_recording(self, name: str, *, argv: Sequence[str] | None = None) -> tuple[str, ...]:
        """Answer as recorded, to the recorded command asked for as JSON, or to `argv`."""
        text = (RECORDINGS / "cli" / f"{name}.txt").read_text()
        match = re.fullmatch(r"\$ (.*?)\nrc=(\d+)\nwall_s=[\d.]+\n--- stdout\n(.*?)\n--- stderr\n(.*?)\n?", text, re.S)
        assert match, name
        key = tuple(argv or match[1].split())
        if key[0] == "pvesh" and "--output-format" not in key:
            key = (*key, "--output-format", "json")
        self.add(key, returncode=int(match[2]), stdout=match[3], stderr=match[4])
        return key

    def run(
        self, argv: Sequence[str], *, input: bytes | None = None, timeout: float = 300.0, check: bool = True
    ) -> Completed:
        key = tuple(argv)
        self.argvs.append(key)
        queue = self.answers[key]
        if not queue:
            assert self.handler is not None, f"nobody scripted {key}"
            done: Completed | Exception = self.handler(key)
        else:
            done = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(done, Exception):
            raise done
        if check and done.returncode:
            raise failure(done)
        return done

    def run_each(self, argvs: Sequence[Sequence[str]], *, timeout: float = 300.0) -> list[Completed]:
        return [self.run(argv, timeout=timeout, check=False) for argv in argvs]

    def pipe(self, *args: object, **kwargs: object) -> Piped:
        raise AssertionError("no pipe is needed here")


@pytest.fixture
def runner() -> RecordedRunner:
    return RecordedRunner()


@pytest.fixture
def fakepve(certificates: Certificates) -> Iterator[FakePve]:
    """A started fake with our certificate. Unlike its own fixture it ends only when every connection has ended."""
    pve = FakePve(host="127.0.0.1", port=0)
    pve.apitokens[str(TOKEN)] = SECRET
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def call(work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def stop() -> None:
        async with asyncio.timeout(20):
            while pve.runner.server.connections:
                await asyncio.sleep(0.01)
            await pve.stop()
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)

    call(pve.start(str(certificates.chain), str(certificates.key)))
    yield pve
    call(stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


@pytest.fixture
def fake_api(fakepve: FakePve, certificates: Certificates) -> Iterator[HttpsApi]:
    with HttpsApi(fakepve.url, TOKEN, ca_file=certificates.ca, timeout=5) as https:
        yield https
