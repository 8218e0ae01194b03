"""The table from ZFS's messages, captured on OpenZFS 2.3.9 or quoted from its sources, to our errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pve_zfsbackup import errors
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.zfs_errors import classified

CAPTURED = (
    ("cannot open 'tank/x': dataset does not exist", errors.DatasetNotFoundError),
    ("could not find any snapshots to destroy; check snapshot names.", errors.DatasetNotFoundError),
    ("bookmark 'rpool/x#m' does not exist.", errors.DatasetNotFoundError),
    ("cannot create 'nopool/child': no such pool 'nopool'", errors.DatasetNotFoundError),
    ("cannot hold snapshot 'a@b': dataset does not exist", errors.DatasetNotFoundError),
    (
        "cannot destroy snapshot a@b: it's being held. Run 'zfs holds -r a@b' to see holders.",
        errors.SnapshotHeldError,
    ),
    (
        "cannot destroy 'a@b': snapshot has dependent clones\nuse '-R' to destroy the following datasets:\na/%recv",
        errors.SnapshotBusyError,
    ),
    ("cannot destroy 'a': dataset is busy", errors.SnapshotBusyError),
    (
        "cannot receive new filesystem stream: destination 'tank/x' exists\nmust specify -F to overwrite it",
        errors.DestinationModifiedError,
    ),
    (
        "cannot receive incremental stream: destination tank/x has been modified\nsince most recent snapshot",
        errors.DestinationModifiedError,
    ),
    (
        "cannot receive incremental stream: most recent snapshot of tank/x does not\nmatch incremental source",
        errors.DestinationModifiedError,
    ),
    ("cannot receive incremental stream: pool is read-only", errors.PoolReadOnlyError),
    ("cannot receive new filesystem stream: out of space", errors.OutOfSpaceError),
    ("cannot receive incremental stream: destination tank/x space quota exceeded.", errors.OutOfSpaceError),
    (
        "cannot receive: stream has unsupported feature, feature flags = 1420004 (unknown flags = 1000000)",
        errors.FeatureMissingError,
    ),
    ("cannot receive: internal error: nobody knows", errors.ZfsError),
    ("cannot receive: failed to read from stream", errors.StreamBrokenError),
    (
        "cannot receive resume stream: checksum mismatch or incomplete stream.\n"
        "Partially received snapshot is saved.\nA resuming stream can be generated …",
        errors.StreamBrokenError,
    ),
    (
        "cannot receive incremental stream: destination tank/x contains partially-complete state from"
        ' "zfs receive -s".',
        errors.SnapshotBusyError,
    ),
    ("cannot receive: dataset is busy", errors.SnapshotBusyError),
    (
        "cannot resume send: 'rpool/x@a' used in the initial send no longer exists",
        errors.ResumeRefusedError,
    ),
    ("cannot resume send: resume token is corrupt (invalid format)", errors.ResumeRefusedError),
    ("cannot receive resume stream: kernel modules must be upgraded", errors.ResumeRefusedError),
    ("cannot receive resume stream: out of space", errors.OutOfSpaceError),
    ("cannot create 'x/y/z': parent does not exist", errors.ZfsError),
    ("", errors.ZfsError),
)


def done(text: str) -> Completed:
    return Completed(argv=("zfs", "verb", "x"), returncode=1, stdout="", stderr=text)


@pytest.mark.parametrize(("text", "kind"), CAPTURED, ids=[text[:40] for text, _ in CAPTURED])
def test_captured_messages(text: str, kind: type[errors.ZfsError]) -> None:
    error = classified(done(text))
    assert type(error) is kind
    assert error.message.startswith("zfs verb: ")
    assert error.stderr == text


def test_no_recorded_refusal_is_taken_for_absence_but_those_that_are() -> None:
    recorded = json.loads((Path(__file__).parents[1] / "conformance/openzfs.json").read_text())
    answers = [answer for case in recorded["cases"].values() for answer in case if answer["status"]]
    assert len(answers) > 40
    for answer in answers:
        text = answer.get("stderr", "")
        absent = isinstance(classified(done(text)), errors.DatasetNotFoundError)
        assert absent == (("does not exist" in text and "parent" not in text and "destination" not in text
                          and "incremental source" not in text)
                          or "could not find" in text or "no such pool" in text
                          or "unable to restore" in text), text  # fmt: skip


def test_only_what_passes_by_itself_is_transient() -> None:
    assert classified(done("cannot destroy 'a': dataset is busy")).transient
    assert classified(done("cannot receive: failed to read from stream")).transient
    assert not classified(done("cannot receive: out of space")).transient
    assert not classified(done("cannot resume send: Invalid cross-device link")).transient
