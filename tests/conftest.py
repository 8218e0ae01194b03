"""What all tests share: unit tests start no process and open no connection, unless they say so."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FREE = ("browser", "lab", "package")  # directories whose tests are about the real thing


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "processes: starts real processes (others may not)")
    config.addinivalue_line("markers", "long: takes many minutes: for `make test-long`, not for `make test`")
    config.addinivalue_line("markers", "loopback: talks to a server of its own on this machine (others may not)")


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The receiver's `main` makes it strict, in the process of the test."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def isolated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no connection; a connection to this machine where that is what is tested."""
    path = request.path.relative_to(HERE)
    monkeypatch.setattr("pve_zfsbackup.host.journal.JOURNALD", Path("/nonexistent"))
    if path.parts[0] in FREE:
        yield
        return
    transports = path.parts[:2] == ("host", "pve")  # about real TLS on this machine, and real interpreters
    if not transports and request.node.get_closest_marker("processes") is None:
        monkeypatch.setattr(subprocess.Popen, "__init__", _no_process)
    local = transports or request.node.get_closest_marker("loopback")
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        own = str(request.config.getoption("basetemp", None) or tempfile.gettempdir())
        here = isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost")
        if local and (here or (isinstance(address, str) and address.startswith(f"{own}/"))):
            return connect(self, address)
        raise AssertionError(f"a unit test connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


def _no_process(self: object, args: Any, *rest: object, **more: object) -> None:
    raise AssertionError(f"a unit test starts {args}: mark it with pytest.mark.processes")


@pytest.fixture
def token_hex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random suffixes that can be foretold: 0001, 0002, …"""
    numbers = iter(range(1, 1 << 16))
    monkeypatch.setattr(secrets, "token_hex", lambda size: f"{next(numbers):0{2 * size}x}")
