"""The run journal: JSON lines for status, reports and alerts. It decides nothing; losing it loses history only."""

from __future__ import annotations

import json
import os
import syslog
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pve_zfsbackup.errors import BackupError, ConfigError

NAME = "journal.jsonl"


class Journal:
    """Appends to one file; each line is one `write`, so that lines of two runs never mix."""

    def __init__(self, directory: Path, run: str) -> None:
        """Raises `ConfigError` when the directory cannot be written: before anything was done, not after."""
        self._run = run
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(directory / NAME, flags, 0o640)
        except OSError as error:
            raise ConfigError([f"{directory}: the journal cannot be written: {error.strerror}"]) from None

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Raises `BackupError` when the disk is full or read-only."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        # ASCII: a hostile name may hold what other readers take for the end of a line (U+2028).
        line = json.dumps({"time": stamp, "run": self._run, "event": event, **fields})
        try:
            os.write(self._file, line.encode("ascii") + b"\n")
        except OSError as error:
            raise BackupError(f"the journal cannot be written: {error.strerror}", hint="free space for it") from None

    def close(self) -> None:
        os.close(self._file)


def log_line(text: str, *, failed: bool) -> None:
    """One line to syslog for a whole run; control characters of hostile names are escaped by `repr`-like rules."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    syslog.openlog("pve-zfsbackup", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR if failed else syslog.LOG_INFO, clean)
