"""Selection: every form of word, alone and together, and what is told about words that meant nothing."""

from __future__ import annotations

import itertools

import pytest

from pve_zfsbackup.model import (
    Dataset,
    Disk,
    DiskPattern,
    Guest,
    GuestKind,
    Selector,
    SelectorKind,
    Vmid,
    parse_disk_pattern,
    parse_selector,
    printable,
)
from pve_zfsbackup.plan.selection import Selection, matches, select


def disk(key: str, storage: str = "local-zfs", reason: str = "") -> Disk:
    return Disk(key=key, volid=f"{storage}:x", storage=storage, dataset=Dataset(f"pool/{key}"), reason=reason)


WEB = Guest(
    vmid=Vmid(100),
    kind=GuestKind.VM,
    node="pve1",
    name="Web1",
    running=True,
    pool="production",
    tags=("prod", "zfs"),
    disks=(disk("scsi0"), disk("scsi1", "fast"), disk("unused0", "old", "not attached")),
)
DB = Guest(
    vmid=Vmid(101),
    kind=GuestKind.VM,
    node="pve1",
    name="db",
    running=True,
    tags=("Prod",),
    disks=(disk("scsi1"), Disk(key="ide2", volid="local:iso/x.iso", reason="CD-ROM")),
)
CT = Guest(
    vmid=Vmid(200),
    kind=GuestKind.CT,
    node="pve1",
    name="web2",
    running=False,
    disks=(disk("rootfs"), disk("mp0"), disk("mp1", reason="backup=1 is not set on this mount point")),
)
NAMELESS = Guest(vmid=Vmid(1000), kind=GuestKind.VM, node="pve2", name="", running=False)
EVIL = Guest(vmid=Vmid(666), kind=GuestKind.VM, node="pve1", name="all\n[*]", running=False, tags=("*",))
GUESTS = (WEB, DB, CT, EVIL, NAMELESS)


def chosen(*include: str, exclude: tuple[str, ...] = ()) -> list[int]:
    selection = select(
        GUESTS, include=[parse_selector(w) for w in include], exclude=[parse_selector(w) for w in exclude]
    )
    return [guest.vmid for guest in selection.guests]


@pytest.mark.parametrize(
    ("word", "vmids"),
    [
        ("all", [100, 101, 200, 666, 1000]),
        ("100", [100]),
        ("10", None),
        ("100-199", [100, 101]),
        ("100-100", [100]),
        ("101-1000", [101, 200, 666, 1000]),
        ("name:web*", [100, 200]),
        ("name:WEB1", [100]),
        ("name:web?", [100, 200]),
        ("name:*[2]", [200]),
        ("name:[!w]*", [101, 666]),
        ("name:web", []),
        ("name:*", [100, 101, 200, 666, 1000]),
        ("name:all*", [666]),
        ("tag:prod", [100, 101]),
        ("tag:PROD", [100, 101]),
        ("tag:z*", [100]),
        ("tag:pro", []),
        ("tag:[*]", [666]),
        ("pool:production", [100]),
        ("pool:Production", []),
        ("pool:p*", [100]),
        ("storage:fast", [100]),
        ("storage:local-zfs", [100, 101, 200]),
        ("storage:old", []),
        ("storage:local", []),
        ("storage:*", [100, 101, 200]),
        ("node:pve1", [100, 101, 200, 666]),
        ("node:pve2", [1000]),
        ("node:pve*", [100, 101, 200, 666, 1000]),
    ],
)
def test_one_word(word: str, vmids: list[int] | None) -> None:
    if vmids is None:
        with pytest.raises(ValueError, match="expected all, a vmid"):
            parse_selector(word)
    else:
        assert chosen(word) == vmids


def test_several_words_add_up_and_the_order_is_that_of_the_guests() -> None:
    assert chosen("200", "100", "name:web*", "100-101") == [100, 101, 200]


def test_exclusions_win_wherever_they_stand() -> None:
    assert chosen("all", "!100-199", "!node:pve2") == [200, 666]
    assert chosen("!100-199", "!node:pve2", "all") == [200, 666]
    assert chosen("all", exclude=("100-199", "node:pve2")) == [200, 666]
    assert chosen("100", "!tag:prod") == []
    assert chosen("100", exclude=("all",)) == []


def test_only_exclusions_and_nothing_select_nothing() -> None:
    assert chosen("!100") == []
    assert chosen() == []


WORDS = ("all", "100", "100-199", "name:web*", "tag:prod", "storage:fast", "node:pve1")


@pytest.mark.parametrize("include", list(itertools.combinations_with_replacement(WORDS, 2)))
def test_selection_is_the_union_less_the_exclusions(include: tuple[str, str]) -> None:
    for without in WORDS:
        expected = [
            guest.vmid
            for guest in GUESTS
            if any(matches(parse_selector(word), guest) for word in include)
            and not matches(parse_selector(without), guest)
        ]
        assert chosen(*include, exclude=(without,)) == chosen(*include, f"!{without}") == expected


def test_guests_named_and_not_here_are_told() -> None:
    words = ["100", "105", "name:nobody", "name:no*", "300-399", "tag:none", "pool:none", "storage:none", "!900"]
    selection = select(GUESTS, include=[parse_selector(word) for word in words])
    assert selection.unknown == ("105", "name:nobody")
    assert selection.unmatched == ("name:no*", "300-399", "tag:none", "pool:none", "storage:none")
    assert [guest.vmid for guest in selection.guests] == [100]


def test_guest_that_is_here_and_left_out_is_not_unknown() -> None:
    selection = select(GUESTS, include=[parse_selector("100")], exclude=[parse_selector("tag:prod")])
    assert selection == Selection()


def test_all_of_no_guests_is_nothing_to_tell() -> None:
    assert select((), include=[parse_selector("all")]) == Selection()


def test_excluded_disks_stay_with_their_reason() -> None:
    patterns = [parse_disk_pattern(text) for text in ("100:scsi1", "mp*")]
    selection = select(GUESTS[:3], include=[parse_selector("all")], exclude_disks=patterns, by="job nightly")
    assert {(guest.vmid, item.key): item.reason for guest in selection.guests for item in guest.disks} == {
        (100, "scsi0"): "",
        (100, "scsi1"): "excluded by job nightly",
        (100, "unused0"): "not attached",
        (101, "scsi1"): "",
        (101, "ide2"): "CD-ROM",
        (200, "rootfs"): "",
        (200, "mp0"): "excluded by job nightly",
        (200, "mp1"): "backup=1 is not set on this mount point",
    }
    assert [item.key for item in selection.guests[0].protected_disks] == ["scsi0"]
    assert selection.guests[0].disks[1].dataset == "pool/scsi1"
    assert selection.unmatched == ()
    assert GUESTS[0].disks[1].protected


def test_disks_that_fit_nothing_are_told() -> None:
    patterns = [parse_disk_pattern(text) for text in ("100:scsi9", "105:scsi0", "virtio*", "200:mp[01]")]
    selection = select(GUESTS[:3], include=[parse_selector("all")], exclude_disks=patterns)
    assert selection.unmatched == ("100:scsi9", "virtio*")


def test_selecting_again_narrows_a_job_down() -> None:
    job = select(GUESTS, include=[parse_selector("tag:prod")], by="job a")
    named = select(job.guests, include=[parse_selector("101"), parse_selector("200")])
    assert [guest.vmid for guest in named.guests] == [101]
    assert named.unknown == ("200",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "!!100",
        "99",
        "0100",
        "1000000000",
        "100-",
        "-100",
        "100-99",
        "200-100",
        "100-200-300",
        "100,101",
        "web",
        "name:",
        "name",
        "vmid:100",
        "all:x",
        "Name:web",
        "colour:red",
        ":x",
        "١٠٠",
    ],
)
def test_words_that_are_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_selector(text)


@pytest.mark.parametrize(
    ("text", "explicit"),
    [("100", True), ("100-100", True), ("100-101", False), ("name:web", True), ("name:w*", False), ("all", False)],
)
def test_explicit_words_name_one_guest(text: str, explicit: bool) -> None:
    assert parse_selector(text).explicit == explicit


def test_parsed_selector() -> None:
    assert parse_selector("! 100-199") == Selector(
        kind=SelectorKind.VMID, text="! 100-199", low=100, high=199, negated=True
    )
    assert parse_selector("tag:a:b") == Selector(kind=SelectorKind.TAG, text="tag:a:b", pattern="a:b")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("scsi1", DiskPattern(text="scsi1", key="scsi1")),
        ("mp*", DiskPattern(text="mp*", key="mp*")),
        ("*", DiskPattern(text="*", key="*")),
        ("?cs[io][1-3]", DiskPattern(text="?cs[io][1-3]", key="?cs[io][1-3]")),
        ("101:scsi1", DiskPattern(text="101:scsi1", key="scsi1", vmid=Vmid(101))),
    ],
)
def test_disk_pattern(text: str, pattern: DiskPattern) -> None:
    assert parse_disk_pattern(text) == pattern


@pytest.mark.parametrize("text", ["", "101", "101:", ":scsi1", "99:scsi1", "SCSI1", "a b", "scsi1\n", "../x", "1*"])
def test_disk_pattern_that_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match="expected a disk key"):
        parse_disk_pattern(text)


def test_printable_keeps_what_people_can_read() -> None:
    assert printable("Büro 🦀 №1") == "Büro 🦀 №1"
    assert printable("a\nb\x1b\u202e\udc80") == "a\\nb\\x1b\\u202e\\udc80"
