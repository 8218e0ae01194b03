"""Connections to a box are made once and used for many batches, against a real sshd; none outlives its use."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import pytest

from pve_zfsbackup.archive.outer import digest
from pve_zfsbackup.errors import CommandTimeoutError, HostUnreachableError, StoreError
from pve_zfsbackup.host import sftp, sftp_connection
from pve_zfsbackup.host.programs import Chain, ProcessPrograms
from pve_zfsbackup.host.store import Upload
from pve_zfsbackup.host.store_sftp import SftpStore
from tests.archive.sshd import Sshd, serving

pytestmark = [pytest.mark.processes, pytest.mark.loopback]


class Counted(ProcessPrograms):
    """Keeps every chain it opened."""

    def __init__(self) -> None:
        super().__init__()
        self.chains: list[Chain] = []

    @contextlib.contextmanager
    def opened(
        self, *argvs: Sequence[str], source: IO[bytes] | None = None, sink: IO[bytes] | None = None
    ) -> Iterator[Chain]:
        with super().opened(*argvs, source=source, sink=sink) as chain:
            self.chains.append(chain)
            yield chain


@dataclass
class Case:
    sshd: Sshd
    place: Path
    programs: Counted = field(default_factory=Counted)
    number: int = 0

    def __post_init__(self) -> None:
        made = self.sshd.store("box")
        self.store = SftpStore(client=sftp.Sftp(name="box1", programs=self.programs, server=made.client.server))

    def put(self, path: str) -> None:
        file = self.place / path.replace("/", "_")
        file.write_bytes(path.encode())
        self.store.put([Upload(file=file, path=path, sha256=digest(path.encode()))])

    @property
    def connections(self) -> int:
        return len(self.programs.chains)

    @property
    def running(self) -> int:
        return sum(not chain.ended() for chain in self.programs.chains)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with serving(tmp_path / "sshd") as sshd:
        yield Case(sshd, tmp_path)


def test_one_connection_serves_all_that_is_asked_while_it_is_kept(case: Case) -> None:
    with case.store.kept():
        for number in range(3):
            case.put(f"d/file-{number}")
        assert sorted(case.store.list(["d"])["d"]) == ["file-0", "file-1", "file-2"]
        case.store.get("d/file-1", case.place / "back", 8)
        assert (case.connections, case.running) == (1, 1)
    assert (case.place / "back").read_bytes() == b"d/file-1"
    assert (case.connections, case.running) == (1, 0)


def test_otherwise_each_call_has_its_own_and_leaves_none(case: Case) -> None:
    case.put("d/file")
    case.store.list(["d"])
    assert (case.connections, case.running) == (2, 0)


def test_a_command_that_fails_costs_one_connection_and_its_words_are_its_own(case: Case) -> None:
    with case.store.kept():
        case.put("d/file")
        with pytest.raises(StoreError, match="d/gone"):
            case.store.get("d/gone", case.place / "back", 8)
        assert case.store.list(["d", "nowhere"]).keys() == {"d"}, "what is not there is told, too, and ends nothing"
        case.store.remove(["d/file", "d/file"])
        case.store.get_many([("d/file", case.place / "none")], 8)
        assert case.store.list(["d"]) == {"d": {}}
        assert (case.connections, case.running) == (2, 1)


def test_a_connection_that_waited_too_long_is_not_used_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_connection, "IDLE", -1.0)
    with case.store.kept():
        case.put("d/file")
        case.put("d/file-2")
        assert (case.connections, case.running) == (4, 1), "bytes, then the name"


def test_a_connection_that_broke_while_it_waited_is_replaced(case: Case) -> None:
    """Whatever is asked next; sftp itself does not see it: it waits for commands, not for the server."""
    with case.store.kept():
        for number, ask in enumerate(
            [
                lambda: case.put("d/file"),
                lambda: case.put("d/other"),
                lambda: case.store.list(["d"]),
                lambda: case.store.get("d/file", case.place / "back", 6),
                lambda: case.store.remove(["d/file", "d/other"]),
                lambda: case.store.remove_directory("d"),
                case.store.free,
            ],
            1,
        ):
            ask()
            assert (case.connections, case.running) == (number, 1)
            case.sshd.kill_sessions()
    assert (case.place / "back").read_bytes() == b"d/file"
    assert list((case.sshd.files / "box").iterdir()) == []


def test_a_new_connection_that_breaks_is_told(case: Case) -> None:
    with case.store.kept():
        case.put("d/file")
        case.sshd.kill_sessions()
        case.sshd.stop()
        with pytest.raises(HostUnreachableError):
            case.store.list(["d"])


def test_a_server_that_is_gone_is_told_of_a_kept_connection_as_well(case: Case) -> None:
    with case.store.kept():
        case.put("d/file")
        case.sshd.stop()
        for chain in case.programs.chains:
            chain.kill()
        with pytest.raises(HostUnreachableError):
            case.store.list(["d"])


def test_many_commands_are_given_in_portions_and_their_answers_read_meanwhile(case: Case) -> None:
    with case.store.kept():
        case.put("d/" + "f" * 200)
        directories = [f"d/{'x' * 180}-{number}" for number in range(1200)]
        assert case.store.list([*directories, "d"]).keys() == {"d"}
        assert case.connections == 1


def test_connections_at_another_rate_are_ended_before_a_new_one_is_made(case: Case) -> None:
    rates = [0, 0, 4_000_000, 4_000_000, 0]
    client = replace(case.store.client, rate=lambda: rates.pop(0))
    with client.kept():
        for connections in (1, 1, 2, 2, 3):
            client.batch(["-df"])
            assert (case.connections, case.running) == (connections, 1)


def test_a_name_that_looks_like_an_answer_is_none(case: Case) -> None:
    """A hostile server, or another writer there, may give files any name."""
    case.put("d/file")
    evil = case.sshd.files / "box/d/x\nsftp> -ls -ln box"
    evil.write_bytes(b"")
    with case.store.kept():
        with pytest.raises(StoreError, match="not asked"):
            case.store.list(["d", "."])
        evil.unlink()
        assert case.store.list(["d"])["d"].keys() == {"file"}


def test_an_answer_without_end_is_given_up(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_connection, "ANSWER", 10_000)
    with case.store.kept():
        for number in range(3):
            case.put(f"d/{number}{'f' * 200}")
        assert len(case.store.list(["d"])["d"]) == 3
        with pytest.raises(StoreError, match="answers with more"):
            case.store.list(["d"] * 40)
        assert case.running == 0


@dataclass
class Moving:
    """A chain that moves a byte whenever it is looked at, until `until`."""

    until: float
    killed: float = 0.0
    bytes: int = 0

    def moved(self) -> int:
        self.bytes += time.monotonic() < self.until
        return self.bytes

    def kill(self) -> None:
        self.killed = time.monotonic()


@pytest.mark.parametrize("into", [(), (Path("/nonexistent"),)])
def test_who_moves_is_given_time_and_who_stands_still_is_not(
    into: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment needs hours on a slow line; a server that hangs does not answer for as long."""
    for name in ("WATCH", "GLANCE"):
        monkeypatch.setattr(sftp_connection, name, 0.1)
    chain = Moving(until=time.monotonic() + 2.0)
    watch = sftp_connection.Watch(chain=chain, seconds=60, still=0.5, most=9, into=into)  # type: ignore[arg-type]
    with watch.watching():
        time.sleep(4.0)
    assert (watch.late, watch.flooded) == (True, False)
    assert 0.3 < chain.killed - chain.until < 1.9


def test_where_nobody_tells_what_moves_only_the_whole_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_connection, "GLANCE", 0.1)
    chain = Moving(until=0)
    monkeypatch.setattr(chain, "moved", lambda: None)
    watch = sftp_connection.Watch(chain=chain, seconds=2.0, still=0.3, most=9, into=())  # type: ignore[arg-type]
    started = time.monotonic()
    with watch.watching():
        time.sleep(3.0)
    assert watch.late
    assert 1.8 < chain.killed - started < 2.9


def test_a_server_that_hangs_is_given_up(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.put("d/file")
    monkeypatch.setattr(sftp, "PATIENCE", 2.0)
    with case.store.kept():
        assert list(case.store.list(["d"])["d"]) == ["file"]
        sftp_pid = case.programs.chains[-1].processes[0].pid  # type: ignore[attr-defined]
        (ssh_pid,) = map(int, Path(f"/proc/{sftp_pid}/task/{sftp_pid}/children").read_text().split())
        os.kill(ssh_pid, signal.SIGSTOP)
        try:
            with pytest.raises(CommandTimeoutError, match="did not come to an end"):
                case.store.list(["d"])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(ssh_pid, signal.SIGKILL)


def test_scopes_within_scopes_end_with_the_outermost(case: Case) -> None:
    with case.store.kept():
        with case.store.kept():
            case.put("d/file")
        case.store.list(["d"])
        assert (case.connections, case.running) == (1, 1)
    assert case.running == 0


def test_an_interrupted_run_leaves_no_connection(case: Case) -> None:
    def run() -> None:
        with case.store.kept():
            case.put("d/file")
            case.programs.cancel()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert case.running == 0
