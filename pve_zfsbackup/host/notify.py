"""Ways out for a message: https, this node's sendmail, apprise. Addresses are secrets: no error repeats them.

Nothing here may hold up a backup: every call ends in seconds, and failing is a `BackupError` that the caller notes.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

import requests
from urllib3.exceptions import HTTPError

from pve_zfsbackup.errors import BackupError, CommandError
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.model import printable

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 10.0
WHOLE_SECONDS: Final = 20.0
ANSWER_LIMIT: Final = 64 << 10
SENDMAIL: Final = "/usr/sbin/sendmail"
SEND_SECONDS: Final = 60.0


def post(address: str, body: bytes, headers: Mapping[str, str], *, local: bool = False) -> None:
    """Post to an address; one that answers with anything but 2xx failed. Redirects are not followed: the address
    is where the message may go, nowhere else. Raises `BackupError`, without the address."""
    _request("POST", address, body, headers, local=local)


def ping(address: str, *, local: bool = False) -> None:
    """Get an address, as a dead man's switch wants it. Raises `BackupError`, without the address."""
    _request("GET", address, None, {}, local=local)


def _request(method: str, address: str, body: bytes | None, headers: Mapping[str, str], *, local: bool) -> None:
    parts = _checked(address)
    done: Future[str] = Future()

    def work() -> None:
        try:
            if not local:
                _refuse_local(parts)
            if done.set_running_or_notify_cancel():  # else it is tried again later, and would come twice
                done.set_result(_exchange(method, address, body, headers))
        except BaseException as error:  # raised again where it is waited for
            if done.running() or done.set_running_or_notify_cancel():
                done.set_exception(error)

    # Looking up a name has no time-out of ours, and what answers byte by byte keeps within every one of a socket: the
    # whole has one, and is then left to itself.
    threading.Thread(target=work, name="notify", daemon=True).start()
    try:
        problem = done.result(WHOLE_SECONDS)
    except TimeoutError:
        done.cancel()
        problem = f"no end within {WHOLE_SECONDS:g} s"
    if problem:
        raise BackupError(f"the service did not take it: {problem}", hint="it is tried again after the next run")


def _exchange(method: str, address: str, body: bytes | None, headers: Mapping[str, str]) -> str:
    """What went wrong, without the address; empty for an answer of 2xx."""
    with requests.Session() as session:
        session.trust_env = False  # neither a proxy nor a password of the environment
        try:
            answer = session.request(
                method,
                address,
                data=body,
                headers={"User-Agent": "pve-zfsbackup", **headers},
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                allow_redirects=False,
                stream=True,
            )
            with answer:
                answer.raw.read(ANSWER_LIMIT)
                return "" if 200 <= answer.status_code < 300 else f"status {answer.status_code}"
        except (requests.RequestException, HTTPError, OSError) as error:
            return type(error).__name__  # its text has the address


def _checked(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        good = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise BackupError("the address is not https://HOST/…", hint="look into its file")
    return parts


def _refuse_local(parts: SplitResult) -> None:
    """A service on this very host is mostly a mistake, or somebody's wish to reach what only this host may."""
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BackupError(f"the service's name is not known: {error.strerror}") from None
    for entry in found:
        place = ipaddress.ip_address(str(entry[4][0]).partition("%")[0])
        if place.is_loopback or place.is_link_local or place.is_unspecified or place.is_multicast:
            raise BackupError("the service is on this host itself", hint="if that is meant: local: true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A text file that goes with a mail. `type` is its media type."""

    name: str
    type: str
    text: str


def mail(runner: Runner, to: Sequence[str], subject: str, text: str, attached: Attachment | None = None) -> None:
    """Through this node's sendmail. Raises `BackupError`."""
    message = EmailMessage(policy=SMTP.clone(max_line_length=998))
    message["To"] = ", ".join(to)
    message["Subject"] = printable(subject)  # a line break would begin the next header
    message["Auto-Submitted"] = "auto-generated"  # no out-of-office answers (RFC 3834)
    message.set_content(text)
    if attached:
        data, (kind, _, form) = attached.text.encode(), attached.type.partition("/")
        message.add_attachment(data, maintype=kind, subtype=form, filename=printable(attached.name))
    lines = message.as_bytes().replace(b"\r\n", b"\n")  # what sendmail reads from a pipe
    try:
        runner.run((SENDMAIL, "-i", "--", *to), input=lines, timeout=SEND_SECONDS)
    except CommandError as error:
        raise BackupError(f"mail: {error.message}", hint=error.hint) from None


def apprise(runner: Runner, config: Path, title: str, text: str) -> None:
    """Every service of an apprise configuration. Raises `BackupError`; apprise's own words may hold addresses."""
    try:
        done = runner.run(
            ("apprise", "--config", str(config), "--title", title),
            input=text.encode(),
            timeout=SEND_SECONDS,
            check=False,
        )
    except CommandError as error:
        raise BackupError(f"apprise: {error.message}", hint=error.hint) from None
    if done.returncode:
        raise BackupError(f"apprise: exit status {done.returncode}", hint="see `apprise -v --config …` by hand")
