"""Resume tokens: those of real OpenZFS are understood, and nothing else is."""

from __future__ import annotations

import zlib

import pytest

from pve_zfsbackup.host.tokens import LONGEST, read_token
from pve_zfsbackup.host.zfs import send_argv
from pve_zfsbackup.model import SOURCE, Dataset, Guid, PointId, Resume, ResumeToken, Snapshot
from tests.fakes.tokens import Item, packed, token, wrapped

NAME = "rpool/crypt/vm-101-disk-0@pzb:20261101T000000Z-ab12"
WHERE: list[Item] = [("object", 2), ("offset", 4096), ("bytes", 5000)]
WHAT: list[Item] = [("toguid", 2**64 - 7), ("toname", NAME)]
GOOD: list[Item] = [("fromguid", 77), *WHERE, *WHAT, ("largeblockok", True), ("compressok", True)]
# As OpenZFS 0.8.1 and later printed them.
FULL = (
    "1-b338b54f3-c0-789c636064000310a500c4ec50360710e72765a52697303030419460caa7a515a796806474e0f26c48f2499525a9c540ba42"
    "430fabfe92fcf4d2cc140686c88a76d578ae45530c90e439c1f27989b9a90c0c5545a905390539892569f945b940234bf48b8b921d12c166020"
    "0c61a1aba"
)
RAW = (
    "1-e3f40c323-f8-789c636064000310a500c4ec50360710e72765a52697303030419460caa7a515a796806474e0f26c48f2499525a9c540da45"
    "4f0fabfe92fcf4d2cc140686c88a76d578ae45530c90e439c1f27989b9a90c0c5545a905390539892569f945b940234bf48b8b921d12c1e6713"
    "320dc9f9c9f5b50945a5c9c9f0d119380ba07265f94580e936200004ff12141"
)
INCREMENT = (
    "1-ef01e717e-e0-789c636064000310a501c49c50360710a715e5e7a69766a63040c1d904b9e342877e062900d9ec48eaf293b252934b181898"
    "a0ea30e4d3d28a534b40323e70793624f9a4ca92d46220fdc1ce0fabfe927c882bc46c8a0a9f71ad3baf8124cf0996cf4bcc4d6560a82acacf2"
    "fd1079a55a29fe86004710b00d8ae1f93"
)


@pytest.mark.parametrize(
    ("text", "to", "start", "raw", "received", "snapshot"),
    [
        (FULL, 0x94A20A5F25877859, 0, False, 3025016, "zreplplatformtest/src@a"),
        (RAW, 0x94A20A5F25877859, 0, True, 3026500, "zreplplatformtest/src@a"),
        (INCREMENT, 0xCFAE0AE671723C16, 0x52F9C212C71E60CD, False, 0x4E3EF0, "zroot/test/a@2"),
    ],
)
def test_tokens_of_real_zfs(text: str, to: int, start: int, raw: bool, received: int, snapshot: str) -> None:
    guids = {"to_guid": Guid(str(to)), "from_guid": Guid(str(start) if start else "")}
    assert read_token(text) == ResumeToken(token=text, **guids, raw=raw, received=received, snapshot=snapshot)


def test_the_tokens_of_our_fake_are_like_them() -> None:
    items: list[Item] = [("object", 2), ("offset", 0x2C0000), ("bytes", 3025016), ("toguid", 0x94A20A5F25877859)]
    assert zlib.decompress(bytes.fromhex(FULL.split("-")[3])) == packed([*items, ("toname", "zreplplatformtest/src@a")])


def test_flags_are_flags() -> None:
    found = read_token(token([*GOOD, ("rawok", True)]))
    assert (found.to_guid, found.from_guid, found.raw) == (str(2**64 - 7), "77", True)
    assert not read_token(token(GOOD)).raw
    assert read_token(token([("fromguid", 0), *WHERE, *WHAT])).from_guid == ""


def renamed(name: str) -> list[Item]:
    return [*WHERE, ("toguid", 7), ("toname", name)]


HOSTILE = {
    "a name that prints as a flag": token(renamed("rpool/crypt/vm-101-disk-0@x\n\trawok = 1")),
    "a name that prints as a guid": token(renamed("rpool/a@x\n\ttoguid = 0x1")),
    "a name of a terminal": token(renamed("rpool/a@\x1b[2J")),
    "a name in another script": token(renamed("rpool/\u00e4@x")),
    "no snapshot": token(renamed("rpool/a")),
    "a long name": token(renamed("rpool/" + "a" * 250 + "@x")),
    "twice": token([*GOOD, ("toguid", 7)]),
    "a flag twice": token([*GOOD, ("compressok", True)]),
    "a flag that is a number": token([*GOOD, ("rawok", 1)]),
    "a flag that is text": token([*GOOD, ("rawok", "rpool/a@x")]),
    "a guid that is text": token([*WHERE, ("toguid", "rpool/a@x"), ("toname", NAME)]),
    "an unknown key": token([*GOOD, ("savedok", True)]),
    "a redacted one": token([*GOOD, ("redact_snaps", 1)]),
    "a key with a line break": token([*GOOD, ("x\n\trawok", True)]),
    "no goal": token([*WHERE, ("toname", NAME)]),
    "goal nothing": token([*WHERE, ("toguid", 0), ("toname", NAME)]),
    "nothing": token([]),
    "cut": wrapped(packed(GOOD)[:-8]),
    "no end": wrapped(packed(GOOD)[:-4]),
    "more than one list": wrapped(packed(GOOD) + packed(GOOD)[12:]),
    "other flags of the list": wrapped(packed(GOOD).replace(b"\1\0\0\0", b"\2\0\0\0", 1)),
    "XDR": wrapped(b"\1" + packed(GOOD)[1:]),
    "big-endian": wrapped(b"\0\0" + packed(GOOD)[2:]),
    "a negative size": wrapped(packed(GOOD)[:12] + b"\xff\xff\xff\xff" + packed(GOOD)[16:]),
    "a size of nothing": wrapped(packed(GOOD)[:12] + bytes(4) + packed(GOOD)[16:]),
    "a pair beyond the end": wrapped(packed(GOOD)[:12] + b"\0\1\1\0" + packed(GOOD)[16:]),
    "a name without length": wrapped(packed(GOOD)[:16] + bytes(2) + packed(GOOD)[18:]),
    "a name beyond its pair": wrapped(packed(GOOD)[:16] + b"\xff\x7f" + packed(GOOD)[18:]),
    "more values than one": wrapped(packed(GOOD)[:20] + b"\2\0\0\0" + packed(GOOD)[24:]),
    "a bomb": wrapped(packed(GOOD) + bytes(64 << 20)),
    "another sum": "1-5-" + token(GOOD).split("-", 2)[2],
    "another length": token(GOOD).replace(f"-{len(packed(GOOD)):x}-", "-7-", 1),
    "version 2": "2" + token(GOOD)[1:],
    "more behind": token(GOOD) + "00",
    "odd": token(GOOD)[:-1],
    "large letters": token(GOOD).upper(),
    "a line": token(GOOD) + "\n",
    "spaces": token(GOOD).replace("-", "- "),
    "no zlib": "1-0-0-00000000",
    "none": "",
    "nonsense": "1-nonsense",
    "endless": "1-1-1-" + "0" * (16 * LONGEST),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nothing_else_is_understood(text: str) -> None:
    assert read_token(text) == ResumeToken(token=text)


def test_a_name_behind_the_zero_is_seen_by_nobody() -> None:
    """libzfs reads the name to its first zero, and so does nobody here another one."""
    data = packed(renamed("rpool/a@x#b/c@zzzz")).replace(b"#b/c", b"\0b/c")
    assert read_token(wrapped(data)).to_guid == ""


def test_every_changed_byte_is_refused_or_means_the_same_kind_of_thing() -> None:
    """No byte of it makes a token without `rawok` a raw one."""
    data = packed([*WHERE, *WHAT])
    for at in range(len(data)):
        for value in (0, 1, 9, 0x0A, 0x77, 0xFF):
            found = read_token(wrapped(data[:at] + bytes([value]) + data[at + 1 :]))
            assert not found.raw


def test_what_leaves_this_node_encrypted_is_raw_whatever_the_token_says() -> None:
    snapshot = Snapshot(dataset=Dataset("rpool/a"), name="pzb:x", guid=Guid("7"), createtxg=1, creation=1,
                        point=PointId("1/x"))  # fmt: skip
    there = Resume(host="t", token="1-x", snapshot=snapshot, dataset=Dataset("tank/a"), raw=True)
    back = Resume(host=SOURCE, token="1-x", snapshot=snapshot, dataset=Dataset("rpool/a"), raw=True)
    plain = Resume(host="t", token="1-x", snapshot=snapshot, dataset=Dataset("tank/a"), raw=False)
    assert send_argv(there) == ("zfs", "send", "-w", "-t", "1-x")
    assert send_argv(back) == ("zfs", "send", "-t", "1-x"), "a receiver's grammar; the token is of what is here"
    assert send_argv(plain) == ("zfs", "send", "-t", "1-x")
