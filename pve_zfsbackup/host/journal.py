"""The run journal: JSON lines for status, reports and alerts. It decides nothing; losing it loses history only."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import socket
import syslog
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pve_zfsbackup.errors import BackupError, ConfigError
from pve_zfsbackup.model.secrets import redacted

NAME = "journal.jsonl"
IDENTIFIER: Final = "pve-zfsbackup"
JOURNALD = Path("/run/systemd/journal/socket")
JOURNALD_SECONDS = 1.0
_AGED: Final = re.compile(re.escape(NAME) + r"\.(\d+)(?:\.gz)?")


class Journal:
    """Appends to one file; each line is one `write`, so that lines of two runs never mix."""

    def __init__(self, directory: Path, run: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Raises `ConfigError` when the directory cannot be written: before anything was done, not after."""
        self._run, self._now = run, now
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(directory / NAME, flags, 0o640)
        except OSError as error:
            raise ConfigError([f"{directory}: the journal cannot be written: {error.strerror}"]) from None

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Raises `BackupError` when the disk is full or read-only."""
        stamp = self._now().isoformat(timespec="milliseconds")
        # ASCII: a hostile name may hold what other readers take for the end of a line (U+2028).
        line = redacted(json.dumps({"time": stamp, "run": self._run, "event": event, **fields}))
        try:
            os.write(self._file, line.encode("ascii") + b"\n")
        except OSError as error:
            raise BackupError(f"the journal cannot be written: {error.strerror}", hint="free space for it") from None

    def close(self) -> None:
        os.close(self._file)


def log_line(
    text: str, *, failed: bool, warning: bool = False, fields: Mapping[str, object] = MappingProxyType({})
) -> None:
    """One line to journald with fields of ours (`PZB_RUN`, `PZB_GUEST`, …: `journalctl PZB_GUEST=100`), to syslog where
    there is no journald. Control characters of hostile names are shown as `?`, secrets not at all."""
    level = syslog.LOG_ERR if failed else syslog.LOG_WARNING if warning else syslog.LOG_INFO
    clean = _one_line(text)
    own = {"MESSAGE": clean, "PRIORITY": level, "SYSLOG_FACILITY": syslog.LOG_DAEMON >> 3}
    if not _to_journald({**own, **_named(fields)}):
        syslog.openlog(IDENTIFIER, syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(level, clean)


def _named(fields: Mapping[str, object]) -> dict[str, object]:
    return {f"PZB_{key.upper()}": value for key, value in fields.items() if value not in ("", None, ())}


def _to_journald(fields: Mapping[str, object]) -> bool:
    """Whether journald took it, in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram, a line for
    each field. No value has a line break."""
    lines = [f"{key}={_one_line(_joined(value))}" for key, value in fields.items()]
    data = "\n".join([*lines, f"SYSLOG_IDENTIFIER={IDENTIFIER}", f"SYSLOG_PID={os.getpid()}", ""]).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(JOURNALD_SECONDS)
            channel.sendto(data, str(JOURNALD))
    except TimeoutError:
        return True  # it is stopped, and syslog(3), which has no time-out, would wait for it as well: no run does
    except OSError:
        return False  # there is none, or it is too long for a datagram
    return True


def _joined(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _one_line(text: str) -> str:
    return redacted("".join(c if c.isprintable() else "?" for c in text))


def read_journal(
    directory: Path, since: float, *, events: Collection[str] = (), stages: Collection[str] = ()
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The lines that were written since then (seconds since the epoch), with those that logrotate put aside; only those
    of some events, or of some stages, where these are named.

    Only whole files that are older are left out, so a few older lines may come as well. A damaged line, or the rest
    of a damaged file, is skipped. Raises `BackupError` when the journal is there and cannot be read.
    """
    wanted = [b'"event": "%s"' % event.encode("ascii") for event in events]
    named = [b'"stage": "%s"' % stage.encode("ascii") for stage in stages]
    for path in _rotated(directory):
        try:
            if path.stat().st_mtime < since:
                continue
            with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
                for line in file:
                    if not all(any(word in line for word in words) for words in (wanted, named) if words):
                        continue  # before it is parsed: there are many
                    with contextlib.suppress(ValueError):
                        found = json.loads(line)
                        if isinstance(found, dict):
                            yield found
        except (EOFError, gzip.BadGzipFile, zlib.error):
            continue  # what could be read of it was
        except FileNotFoundError:
            continue  # rotated away meanwhile
        except OSError as error:
            raise BackupError(f"{path}: cannot be read: {error.strerror}") from None


def last_lines(directory: Path, size: int) -> list[dict[str, Any]]:
    """Of the last so many bytes of the journal, the whole lines; none where it is not there or may not be read."""
    try:
        with (directory / NAME).open("rb") as file:
            start = max(file.seek(0, os.SEEK_END) - size, 0)
            file.seek(start)
            lines = file.read().splitlines()[1 if start else 0 :]
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def _rotated(directory: Path) -> list[Path]:
    """Oldest first: journal.jsonl.2.gz, journal.jsonl.1, journal.jsonl."""
    aged = [(int(found[1]), path) for path in directory.glob(f"{NAME}.*") if (found := _AGED.fullmatch(path.name))]
    return [*(path for _, path in sorted(aged, reverse=True)), directory / NAME]
