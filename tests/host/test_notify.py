"""Ways out for a message: what is sent, what is refused, and that no error tells an address."""

from __future__ import annotations

import email
import email.policy
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import responses

from pve_zfsbackup.errors import BackupError, CommandError, CommandTimeoutError
from pve_zfsbackup.host import notify
from pve_zfsbackup.host.runner import Completed

SECRET = "T0PSECRET"
URL = f"https://hooks.example/services/{SECRET}?token={SECRET}"


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Names and their addresses; anything else is unknown."""
    known = {"hooks.example": "203.0.113.7"}

    def lookup(host: str, port: int, **_: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return known


class Calls:
    """A runner that notes what is run."""

    def __init__(self, error: Exception | None = None, status: int = 0) -> None:
        self.seen: list[tuple[tuple[str, ...], bytes]] = []
        self.error, self.status = error, status

    def run(self, argv: Any, *, input: bytes = b"", timeout: float = 0, check: bool = True) -> Completed:
        assert 0 < timeout <= 60
        self.seen.append((tuple(argv), input))
        if self.error:
            raise self.error
        done = Completed(argv=tuple(argv), returncode=self.status, stdout="", stderr=f"cannot reach {URL}")
        if check and self.status:
            raise CommandError("sendmail: queue is full")
        return done


@responses.activate
def test_a_message_is_posted_as_it_is() -> None:
    responses.add(responses.POST, URL, status=204)
    notify.post(URL, b"body", {"Content-Type": "application/json"})
    (call,) = responses.calls
    assert call.request.body == b"body"
    assert call.request.headers["Content-Type"] == "application/json"
    assert "Authorization" not in call.request.headers


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 429, 500])
@responses.activate
def test_what_is_not_taken_is_an_error_and_no_redirect_is_followed(status: int) -> None:
    responses.add(responses.POST, URL, status=status, headers={"Location": "https://evil.example/"})
    with pytest.raises(BackupError, match=f"status {status}") as caught:
        notify.post(URL, b"", {})
    assert len(responses.calls) == 1
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        requests.ConnectionError(f"no route to {URL}"),
        requests.Timeout(URL),
        requests.exceptions.SSLError(URL),
        OSError(URL),
    ],
    ids=lambda error: type(error).__name__,
)
@responses.activate
def test_no_error_tells_the_address(error: Exception) -> None:
    responses.add(responses.GET, URL, body=error)
    with pytest.raises(BackupError) as caught:
        notify.ping(URL)
    chain = [
        caught.value,
        caught.value.__cause__,
        None if caught.value.__suppress_context__ else caught.value.__context__,
    ]
    assert SECRET not in " ".join(f"{link!r} {link}" for link in chain if link)
    assert type(error).__name__ in caught.value.message


@responses.activate
def test_a_service_that_never_ends_its_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 67: a byte every few seconds is within each time-out of the socket, for days."""
    end = threading.Event()
    monkeypatch.setattr(notify, "WHOLE_SECONDS", 0.2)
    responses.add_callback(responses.POST, URL, callback=lambda request: (200 if end.wait(20) else 500, {}, ""))
    try:
        with pytest.raises(BackupError, match=r"did not take it: no end within 0\.2 s") as caught:
            notify.post(URL, b"", {})
    finally:
        end.set()
        for thread in [one for one in threading.enumerate() if one.name == "notify"]:
            thread.join()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("known", [False, True])
@responses.activate
def test_a_name_that_is_looked_up_for_ever_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """Dead name servers cost 30 s and more for each service: each try of resolv.conf(5) has its own time-out."""
    end = threading.Event()

    def lookup(host: str, port: int, **_: Any) -> list[Any]:
        assert end.wait(20)
        if not known:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.7", 443))]

    monkeypatch.setattr(notify, "WHOLE_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    responses.add(responses.POST, URL)
    try:
        with pytest.raises(BackupError, match=r"did not take it: no end within 0\.2 s"):
            notify.post(URL, b"", {})
    finally:
        end.set()
        for thread in [one for one in threading.enumerate() if one.name == "notify"]:
            thread.join()
    assert not responses.calls, "it is told as not taken, and sent again: twice would be one too many"


@pytest.mark.parametrize(
    "answer", ["Content-Length: 9\r\n\r\nbegun", "Content-Length: 9\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nx"]
)
def test_an_answer_that_breaks_off_or_stalls_in_its_body_is_a_failure_like_any_other(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """urllib3 raises errors of its own while the body is read; they are none of requests."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 200 OK\r\n{answer}".encode())
                done.wait(20)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        monkeypatch.undo()  # the names: this is a real connection
        monkeypatch.setattr(notify, "READ_SECONDS", 0.2)
        told = notify._exchange("POST", f"http://127.0.0.1:{server.getsockname()[1]}/{SECRET}", b"", {})
        done.set()
        thread.join()
    assert told
    assert SECRET not in told


@pytest.mark.parametrize(
    "url", [f"http://hooks.example/{SECRET}", "file:///etc/passwd", "hooks.example", "https://", ""]
)
@responses.activate
def test_only_https_leaves(url: str) -> None:
    with pytest.raises(BackupError, match="not https") as caught:
        notify.post(url, b"", {})
    assert not responses.calls
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "169.254.169.254", "fe80::1%eth0", "0.0.0.0"])
@responses.activate
def test_this_host_itself_is_refused_unless_meant(names: dict[str, str], address: str) -> None:
    names["hooks.example"] = address
    responses.add(responses.POST, URL)
    with pytest.raises(BackupError, match="this host itself"):
        notify.post(URL, b"", {})
    assert not responses.calls
    notify.post(URL, b"", {}, local=True)
    assert len(responses.calls) == 1


@responses.activate
def test_a_service_in_the_lan_is_fine(names: dict[str, str]) -> None:
    names["hooks.example"] = "192.168.1.20"
    responses.add(responses.POST, URL)
    notify.post(URL, b"", {})
    assert len(responses.calls) == 1


def test_an_unknown_name_is_told_without_the_address() -> None:
    with pytest.raises(BackupError, match="name is not known") as caught:
        notify.ping(f"https://nowhere.example/{SECRET}")
    assert SECRET not in str(caught.value)


def test_mail_goes_through_sendmail_and_reads_back_equal() -> None:
    runner = Calls()
    text = "guest 100 wéb: failed\n.\nFrom here on\n" + "x" * 2000 + "\n"
    notify.mail(runner, ["root", "ops@example.org"], "2 problems", text)  # type: ignore[arg-type]
    ((argv, sent),) = runner.seen
    assert argv == ("/usr/sbin/sendmail", "-i", "--", "root", "ops@example.org")
    message = email.message_from_bytes(sent, policy=email.policy.default)
    assert message.get_content() == text
    assert (message["To"], message["Subject"]) == ("root, ops@example.org", "2 problems")
    assert message["Auto-Submitted"] == "auto-generated"
    assert b"\r" not in sent


def test_a_mail_carries_a_file_whole() -> None:
    runner = Calls()
    page = "<!DOCTYPE html>\n<p>w\u00e9b \u2013 \U0001f4be</p>\n" + "x" * 5000
    attached = notify.Attachment(name='r"\r\nX: y.html', type="text/html", text=page)
    notify.mail(runner, ["root"], "report", "All is well.\n", attached)  # type: ignore[arg-type]
    ((_, sent),) = runner.seen
    message = email.message_from_bytes(sent, policy=email.policy.default)
    text, file = message.iter_parts()  # type: ignore[union-attr]
    assert text.get_content() == "All is well.\n"
    assert (file.get_content_type(), file.get_content_disposition()) == ("text/html", "attachment")
    assert file.get_payload(decode=True).decode() == page
    assert "X" not in message
    assert "X" not in file


def test_a_line_break_in_a_subject_makes_no_header() -> None:
    runner = Calls()
    notify.mail(runner, ["root"], "x\nBcc: evil@example.org", "text")  # type: ignore[arg-type]
    message = email.message_from_bytes(runner.seen[0][1], policy=email.policy.default)
    assert (message["Subject"], message["Bcc"]) == (r"x\nBcc: evil@example.org", None)


@pytest.mark.parametrize("error", [CommandTimeoutError("sendmail: no end"), CommandError("not installed")])
@pytest.mark.parametrize("way", ["mail", "apprise"])
def test_a_program_that_fails_is_a_problem_of_the_alert_alone(way: str, error: Exception) -> None:
    runner: Any = Calls(error)
    send: dict[str, Callable[[], None]] = {
        "mail": lambda: notify.mail(runner, ["root"], "s", "t"),
        "apprise": lambda: notify.apprise(runner, Path("/x"), "s", "t"),
    }
    with pytest.raises(BackupError, match=way):
        send[way]()


def test_apprise_gets_its_text_by_stdin_and_its_words_are_not_repeated() -> None:
    runner = Calls()
    notify.apprise(runner, Path("/etc/x/apprise.yaml"), "title", "text")  # type: ignore[arg-type]
    assert runner.seen == [(("apprise", "--config", "/etc/x/apprise.yaml", "--title", "title"), b"text")]
    failing = Calls(status=1)
    with pytest.raises(BackupError, match="exit status 1") as caught:
        notify.apprise(failing, Path("/x"), "s", "t")  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)
