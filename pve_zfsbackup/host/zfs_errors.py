"""What `zfs` meant: one table from its messages to our errors. Tested with captured stderr."""

from __future__ import annotations

import re

from pve_zfsbackup.errors import (
    CommandError,
    DatasetNotFoundError,
    DestinationModifiedError,
    FeatureMissingError,
    OutOfSpaceError,
    PoolReadOnlyError,
    ResumeRefusedError,
    SnapshotBusyError,
    SnapshotHeldError,
    StreamBrokenError,
    ZfsError,
)
from pve_zfsbackup.host.runner import Completed, failure

_TABLE: tuple[tuple[str, type[ZfsError], str], ...] = (
    (r"it's being held", SnapshotHeldError, "see `zfs holds` for who holds it"),
    (
        r"destination .* has been modified|cannot restore to .*: destination|local origin for clone",
        DestinationModifiedError,
        "the replica was written; nothing is forced: look at it, then roll it back or rename it yourself",
    ),
    (
        r"destination .* exists|most recent snapshot .* does not\s+match incremental source|"
        r"does not match incremental source",
        DestinationModifiedError,
        "the replica is not at the expected base; the next run plans anew",
    ),
    (
        r"pool is read-only|dataset is read-only",
        PoolReadOnlyError,
        "a pool was imported read-only (zpool get readonly): `zpool export` it where it is, and `zpool import` it",
    ),
    (
        r"quota exceeded|Disk quota",  # a receive says so of all four
        OutOfSpaceError,
        "raise what binds it: quota, refquota, snapshot_limit or filesystem_limit (zfs get, there and above)",
    ),
    (r"out of space|No space left", OutOfSpaceError, "free space on the pool"),
    (
        r"stream has unsupported feature|pool must be upgraded|feature .* (?:not enabled|must be enabled)",
        FeatureMissingError,
        "upgrade OpenZFS or the pool on the receiving host",
    ),
    (
        r"incomplete stream|failed to read from stream|broken pipe|stream was truncated",
        StreamBrokenError,
        "what arrived is kept; the next attempt goes on from there",
    ),
    (r"contains partially-complete state", SnapshotBusyError, "another receive is under way, or was cut"),
    (r"cannot resume send|resume token is corrupt|cannot receive resume stream", ResumeRefusedError, ""),
    (r"dataset is busy|has dependent clones|currently being received", SnapshotBusyError, ""),
    (
        r"dataset does not exist|bookmark .* does not exist|could not find any snapshots to destroy|no such pool",
        DatasetNotFoundError,
        "",
    ),
)


def classified(done: Completed) -> CommandError:
    """The error for a `zfs` command that failed, by its message."""
    plain = failure(done)
    for pattern, kind, hint in _TABLE:
        if re.search(pattern, done.stderr, re.IGNORECASE | re.DOTALL):
            return kind(plain.message, hint=hint, stderr=plain.stderr, returncode=plain.returncode)
    return ZfsError(plain.message, stderr=plain.stderr, returncode=plain.returncode)


# What a receive says that cannot go on from what an interrupted one left (libzfs_sendrecv.c).
_SPOILT = re.compile(r"IV set guid|invalid (?:backup )?stream|does not\s+match incremental source")


def resumed(done: Completed) -> CommandError:
    """The same for a receive that was to go on with a stream: whether that will never do, and it has to begin anew."""
    error = classified(done)
    if not _SPOILT.search(done.stderr):
        return error
    return ResumeRefusedError(error.message, stderr=error.stderr, returncode=error.returncode)
