"""Small files of ours that outlive a run: written whole or not at all, and no disaster when they are lost."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pve_zfsbackup.errors import BackupError


def recall(path: Path) -> dict[str, Any]:
    """What was remembered; nothing when it is missing or damaged. Raises `BackupError` when it cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        return {}  # a disk was full once; it is written anew
    except OSError as error:
        raise BackupError(f"{path}: cannot be read: {error.strerror}") from None
    return found if isinstance(found, dict) else {}


def remember(path: Path, value: Mapping[str, Any]) -> None:
    """Replace what was remembered. Raises `BackupError`; then the old is still there."""
    temporary = ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="ascii") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it may never have been made
            os.unlink(temporary)
        raise BackupError(f"{path}: cannot be written: {error.strerror}", hint="free space for it") from None
