"""What somebody may bring as a key, and what is said of it."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

import pytest

from pve_zfsbackup.model import Dataset
from pve_zfsbackup.plan.keys import consequences, judge_dataset, judge_passphrase, judge_raw_key, key_name

RAW = bytes(range(100, 132))
GUIDE = base64.b64encode(bytes(range(64)))  # what `openssl rand -base64 64` writes, with its two line ends
GUIDE = GUIDE[:64] + b"\n" + GUIDE[64:] + b"\n"


def test_thirty_two_bytes_are_a_key_whatever_they_look_like() -> None:
    assert judge_raw_key(RAW) is None
    assert judge_raw_key(b"\n" + RAW[1:]) is None
    assert judge_raw_key(b"0123456789abcdef0123456789abcdef") is None, "ZFS takes it, and so it may be somebody's key"


@pytest.mark.parametrize(
    ("data", "reason", "remedy"),
    [
        (b"", "empty", "leave out --key-file"),
        (RAW[:31], "31 bytes", "leave out"),
        (RAW * 2, "64 bytes", "leave out"),
        (RAW + b"\n", "33 bytes.*line end", "head -c 32 /k > NEW"),
        (RAW.hex().encode(), "64 hexadecimal digits.*keyformat=hex", "basenc --base16 -d"),
        (RAW.hex().upper().encode() + b"\n", r"65 bytes", "basenc --base16 -d"),
        (base64.b64encode(RAW) + b"\n", "base64 text of 32 bytes", "base64 -d /k > NEW"),
        (GUIDE, "base64 text of 64 bytes .90 bytes.*Raw key too long.*openssl rand -base64 64", "dd if=/dev/urandom"),
        (bytes(32), "nearly all the same", "leave out"),
    ],
)
def test_the_reason_is_exact_and_the_remedy_is_a_command(data: bytes, reason: str, remedy: str) -> None:
    bad = judge_raw_key(data, "/k")
    assert bad is not None

    assert re.search(reason, bad.reason)
    assert remedy in bad.remedy


@pytest.mark.parametrize(
    ("text", "good"), [("12345678", True), ("1234567", False), ("ä" * 4, True), ("x" * 513, False)]
)
def test_passphrases_have_8_to_512_bytes(text: str, good: bool) -> None:
    assert (judge_passphrase(text) == "") is good
    assert judge_passphrase("two\nlines of it")


@pytest.mark.parametrize("name", ["rpool/crypt", "a/b-c_d.e:f/g h", "p/..a"])
def test_names_of_datasets(name: str) -> None:
    assert judge_dataset(name) == ""


@pytest.mark.parametrize(
    "name", ["rpool", "", "/x", "a//b", "a/", "a/../b", "a/..", "./a", "-o/x", "a/-x", "a@b", "a/b\n"]
)
def test_what_is_none_never_becomes_a_path_or_an_argument(name: str) -> None:
    assert judge_dataset(name)


def test_every_key_has_a_name_of_its_own() -> None:
    now = datetime(2026, 11, 26, 11, 15, tzinfo=UTC)
    assert key_name(Dataset("rpool/crypt"), now) == "rpool/crypt/20261126T111500Z.key"


def test_the_consequences_name_what_needs_the_old_key() -> None:
    told = "\n".join(consequences(Dataset("rpool/crypt"), "/k/old.key", ["backup1"], ["box1"]))
    for word in ("backup1", "box1", "/k/old.key", "key escrow rpool/crypt", "next raw increment"):
        assert word in told
    assert "old passphrase" in "\n".join(consequences(Dataset("a/b"), "", [], []))
