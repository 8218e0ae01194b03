"""The example file and the reference are made from the definitions, and say what loading does."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pve_zfsbackup.config import Config, Job, Target, parse_config
from pve_zfsbackup.config.boxes import Box
from pve_zfsbackup.config.definitions import Api
from pve_zfsbackup.config.example import config_reference, example_config, reference_page
from pve_zfsbackup.config.hooks import Hooks, Vzdump
from pve_zfsbackup.config.option import key_of, option_fields
from pve_zfsbackup.model import Dataset, Disk, Guest, GuestKind, Keep, Vmid, parse_disk_pattern, parse_selector

GOLDEN = Path(__file__).parent / "golden"
GUESTS = (
    Guest(
        vmid=Vmid(100),
        kind=GuestKind.VM,
        node="pve1",
        name="web",
        running=True,
        disks=(
            Disk(key="scsi0", volid="local-zfs:vm-100-disk-0", dataset=Dataset("rpool/data/vm-100-disk-0")),
            Disk(
                key="scsi1",
                volid="local-zfs:vm-100-disk-1",
                dataset=Dataset("rpool/data/vm-100-disk-1"),
                reason="backup=0 is set on this disk",
            ),
            Disk(key="ide2", volid="none", reason="empty drive"),
        ),
    ),
    Guest(
        vmid=Vmid(200),
        kind=GuestKind.CT,
        node="pve1",
        name="",
        running=False,
        disks=(Disk(key="mp0", volid="/srv/x", reason="bind mount of the host's directory /srv/x"),),
    ),
)


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def everything_set(text: str) -> str:
    """What an administrator gets by removing every `#` of the first column that turns off an option."""
    return re.sub(r"(?m)^#(?! |$)|^#(?=  )", "", text)


def every_key() -> set[str]:
    found = set()
    for section in (Config, Api, Target, Box, Hooks, Vzdump, Job, Keep):
        prefix = "keep-" if section is Keep else ""
        found |= {key_of(entry, prefix) for entry, _ in option_fields(section)}
    return found


def test_example_is_as_expected() -> None:
    golden("config-example.yaml", example_config())


def test_first_config_is_as_expected() -> None:
    golden("config-first.yaml", example_config(GUESTS))


def test_reference_is_as_expected() -> None:
    golden("config-reference.md", config_reference())
    golden("../../docs/configuration.md", reference_page())


def test_example_loads_and_is_one_job_with_all_guests_at_the_defaults() -> None:
    config = parse_config(example_config(), "example")
    assert config == Config(jobs={"all": Job(name="all", guests=(parse_selector("all"),))})


def test_example_with_everything_set_loads() -> None:
    config = parse_config(everything_set(example_config(GUESTS)), "example")
    assert config.targets["backup1"].root == "tank/pve-zfsbackup"
    assert config.jobs["all"].targets == ("backup1",)
    assert config.jobs["all"].exclude_disks == (parse_disk_pattern("101:scsi1"),)
    assert config.timezone is not None
    assert config.api.fingerprint is not None


def test_what_the_example_says_about_defaults_is_true() -> None:
    """Options without an example of their own stand there with their default."""
    config = parse_config(everything_set(example_config()), "example")
    assert (config.journal_dir, config.runtime_dir, config.state_dir) == (
        Config().journal_dir,
        Config().runtime_dir,
        Config().state_dir,
    )
    for loaded, default in (
        (config.api, Api()),
        (config.targets["backup1"], Target(host="h", root=Dataset("a/b"))),
        (config.boxes["box1"], Box(host="h")),
        (config.jobs["all"], Job(guests=())),
    ):
        for entry, option in option_fields(type(default)):
            if not option.example:
                assert getattr(loaded, entry.name) == getattr(default, entry.name), entry.name


@pytest.mark.parametrize("text", [example_config(), config_reference()], ids=["example", "reference"])
def test_every_key_is_there(text: str) -> None:
    words = set(re.findall(r"[a-z][a-z-]+", text))
    assert every_key() <= words


def test_each_hash_can_be_removed_alone() -> None:
    """Except below an example's name, and where a target or a box is named that is not there."""
    lines = example_config().split("\n")
    hashes = [n for n, line in enumerate(lines) if re.match(r"#(?:  )*[a-z]", line)]
    names = (("#  backup1:", "jobs:"), ("#  ops:", "#timezone: Europe/Berlin"))
    below = {n for first, last in names for n in range(lines.index(first), lines.index(last))}
    alone = [n for n in hashes if n not in below and not re.search("targets:|boxes:", lines[n])]
    assert len(alone) > 12
    for n in alone:
        text = "\n".join([*lines[:n], lines[n][1:], *lines[n + 1 :]])
        assert parse_config(text, "example").jobs.keys() == {"all"}, lines[n]


@pytest.mark.parametrize(
    "name",
    ["a\nb: c", "x\r\ny", "\x1b[2J", "tab\there", "\u202egnp.exe", "\x85\u2028\u2029", "\ud800", "\ufeff", "é😀", "#"],
)
def test_hostile_names_stay_in_their_comment(name: str) -> None:
    disk = Disk(key="scsi0", volid=name, reason=name)
    guest = Guest(vmid=Vmid(100), kind=GuestKind.VM, node="pve1", name=name, running=True, disks=(disk,))
    text = example_config([guest])
    assert parse_config(text, "example") == parse_config(example_config(), "example")
    assert len(text.split("\n")) == len(example_config().split("\n")) + 3
    text.encode("utf-8")


def test_every_character_of_the_first_planes_may_be_in_a_name() -> None:
    blocks = [range(0x3100), range(0xD780, 0xE010), range(0xF8F0, 0x10010), range(0x1F600, 0x1F610)]
    name = "".join(chr(code) for block in blocks for code in block)
    guest = Guest(vmid=Vmid(100), kind=GuestKind.VM, node="pve1", name=name, running=True)
    assert parse_config(example_config([guest]), "example") == parse_config(example_config(), "example")
