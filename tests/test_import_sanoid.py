"""`import sanoid`: what comes out can be loaded, protects what sanoid protected, and tells of every line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from pve_zfsbackup.app.import_sanoid import import_sanoid
from pve_zfsbackup.config import Config, parse_config
from pve_zfsbackup.config.sanoid import apply, effective, hours, parse_sanoid, policy_of
from pve_zfsbackup.config.sanoid_import import translate
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.model import Dataset, Disk, Guest, GuestKind, Keep, Vmid
from pve_zfsbackup.plan.selection import select
from tests.fakes.world import World

GOLDEN = Path(__file__).parent / "golden/config"
STORAGES = {"local-zfs": "rpool/data", "fast": "fast", "slow": "tank/vm"}
SANOID = """\
# a sanoid.conf as people have it
[rpool/data]
\tuse_template = production
\trecursive = yes
\tprocess_children_only = yes
; one guest wants more
[rpool/data/vm-101-disk-0]
\tuse_template = production, long
\thourly = 72
[rpool/data/vm-102-disk-0]
\tuse_template = ignore
[fast]
\tuse_template = frequent
\trecursive = zfs
[rpool/ROOT/pve-1]
\tuse_template = production
[tank/replicas]
\tuse_template = backup
\trecursive = yes
[tank/vm/vm-104-disk-1]
\tautoprune = no
\thourly_warn = 120
\thourly_crit = 12h

[template_production]
\thourly = 36
\tdaily = 30
\tmonthly = 3
\tyearly = 0
\tautosnap = yes
\tautoprune = yes
\tdaily_hour = 3
\tpre_snapshot_script = /usr/local/bin/freeze
[template_long]
\tmonthly = 24
\tnonsense = 1
[template_frequent]
\tfrequently = 8
\tfrequent_period = 15
\thourly = 0
\tdaily = 0
\tmonthly = 0
[template_ignore]
\tautosnap = no
\tautoprune = no
\tmonitor = no
[template_backup]
\tautosnap = no
\thourly = 30
"""


def guest(vmid: int, **disks: str) -> Guest:
    """Its disks by key: the dataset each lies on."""
    pools = {pool: name for name, pool in STORAGES.items()}
    own = tuple(
        Disk(
            key=key,
            volid=f"{pools[name.rpartition('/')[0]]}:{name.rpartition('/')[2]}",
            storage=pools[name.rpartition("/")[0]],
            dataset=Dataset(name),
        )
        for key, name in disks.items()
    )
    return Guest(vmid=Vmid(vmid), kind=GuestKind.VM, node="pve1", name=f"g{vmid}", running=True, disks=own)


GUESTS = (
    guest(100, scsi0="rpool/data/vm-100-disk-0"),
    guest(101, scsi0="rpool/data/vm-101-disk-0", scsi1="rpool/data/vm-101-disk-1"),
    guest(102, scsi0="rpool/data/vm-102-disk-0"),
    guest(103, scsi0="fast/vm-103-disk-0", scsi1="rpool/data/vm-103-disk-0"),
    guest(104, scsi0="tank/vm/vm-104-disk-0", scsi1="tank/vm/vm-104-disk-1"),
    guest(105, scsi0="tank/vm/vm-105-disk-0"),
)


def translated(text: str, guests: Sequence[Guest] = GUESTS) -> tuple[str, Config]:
    made = translate(parse_sanoid(text, "sanoid.conf"), guests, STORAGES, "sanoid.conf")
    return made, parse_config(made, "made")


def members(config: Config, job: str, guests: Sequence[Guest] = GUESTS) -> list[int]:
    own = config.jobs[job]
    return [guest.vmid for guest in select(guests, include=own.guests, exclude=own.exclude).guests]


def test_golden(request: pytest.FixtureRequest) -> None:
    text, _ = translated(SANOID)
    path = GOLDEN / "from-sanoid.yaml"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text()


def test_every_guest_that_sanoid_protected_is_in_a_job_with_its_policy() -> None:
    _, config = translated(SANOID)
    told = {name: (members(config, name), job.keep) for name, job in config.jobs.items()}
    assert told == {
        "production": ([100, 101, 103], Keep(hourly=36, daily=30, monthly=3)),
        "production-long": ([101], Keep(hourly=72, daily=30, monthly=24)),
        "frequent": ([103], Keep(last=8)),
        "vm-104-disk-1": ([104], Keep()),
    }
    assert config.jobs["vm-104-disk-1"].warn_age == 2
    assert config.jobs["vm-104-disk-1"].critical_age == 12


def test_guests_that_come_later_are_in_where_sanoid_would_have_taken_them_in() -> None:
    _, config = translated(SANOID)
    later = guest(900, scsi0="rpool/data/vm-900-disk-0")
    assert members(config, "production", [later]) == [900]
    assert not [name for name in config.jobs if members(config, name, [guest(901, scsi0="tank/vm/vm-901-disk-0")])]


def test_every_line_is_told_of_once() -> None:
    text, _ = translated(SANOID)
    wanted = [number for number, line in enumerate(SANOID.splitlines(), 1) if line.strip() and line[0] not in "#;"]
    assert sorted(map(int, re.findall(r"(?m)^# +line (\d+): ", text))) == wanted
    assert "nonsense = 1: not a setting sanoid knows" in text
    assert "guest 105 (g105) is in no job" in text
    assert "guest 104 (g104): scsi0 (tank/vm/vm-104-disk-0) is not in sanoid.conf; a point has all disks" in text


def test_a_disk_sanoid_was_told_to_leave_is_left() -> None:
    text = "[rpool/data]\nrecursive = yes\n[rpool/data/vm-101-disk-1]\nautosnap = no\n"
    _, config = translated(text)
    (job,) = config.jobs.values()
    assert [pattern.text for pattern in job.exclude_disks] == ["101:scsi1"]


@pytest.mark.parametrize("text", ["hourly = 0\ndaily = 0\nmonthly = 0\n", "autosnap = off\n"])
def test_what_takes_nothing_makes_no_job(text: str) -> None:
    """All zeros keep nothing in sanoid and everything here: the worst that could be translated by the letter."""
    made, config = translated(f"[rpool/data]\nrecursive = yes\n{text}")
    assert config.jobs == {}
    assert "jobs: {}" in made


def test_defaults_are_sanoids_and_a_default_template_comes_before_them() -> None:
    sections = parse_sanoid("[rpool/data]\nrecursive=1\n", "f")
    assert policy_of(effective(sections[0], sections)).keep == Keep(hourly=48, daily=90, monthly=6)
    sections = parse_sanoid("[a/b]\nuse_template = x,y\nweekly=1\n[template_default]\nhourly=1\n[template_x]\ndaily=2\n"
                            "weekly=9\n[template_y]\ndaily=3\n", "f")  # fmt: skip
    assert policy_of(effective(sections[0], sections)).keep == Keep(hourly=1, daily=3, weekly=1, monthly=6)


def test_of_a_key_that_stands_there_twice_the_first_counts() -> None:
    sections = parse_sanoid("[a/b]\nhourly = 1\nhourly = 2\n", "f")
    assert sections[0].value("hourly") == "1"


def test_a_child_keeps_what_its_parent_said_and_adds_its_own() -> None:
    text = "[p]\nrecursive = yes\nhourly = 5\ndaily = 5\n[p/c]\nuse_template = few\n[template_few]\ndaily = 1\n"
    found = apply(parse_sanoid(text, "f"), ["p/c", "p/d", "q/c"])
    assert {name: policy_of(settings).keep for name, (_, settings) in found.items()} == {
        "p/c": Keep(hourly=5, daily=1, monthly=6),
        "p/d": Keep(hourly=5, daily=5, monthly=6),
    }
    skipped = apply(parse_sanoid(text + "[p/c/d]\n[p]\nskip_children = yes\n", "f"), ["p/c", "p/d"])
    assert not skipped


@pytest.mark.parametrize(
    ("text", "period", "span"),
    [
        ("90m", "hourly", 1.5),
        ("90", "hourly", 1.5),
        ("28h", "daily", 28),
        ("5", "monthly", 840),
        ("0", "hourly", None),
        ("1s", "hourly", 0.01),
        ("9999y", "hourly", 100_000),
    ],
)
def test_thresholds_have_the_unit_of_the_period_below(text: str, period: str, span: float | None) -> None:
    assert hours(text, period) == span


def test_what_is_no_sanoid_conf_is_told_with_its_lines() -> None:
    with pytest.raises(ConfigError) as error:
        parse_sanoid("jobs:\n  all: 1\n[a]\nhourly = many\n", "x.yaml")
    assert [problem.partition(": ")[0] for problem in error.value.problems] == ["x.yaml:1", "x.yaml:2", "x.yaml:4"]


@pytest.mark.parametrize("text", ["a\nb: c", "x\r\ny", "\x1b[2J", "\u202egnp", "\x85\u2028", "]", "'\"", "é😀 #"])
def test_hostile_words_stay_in_their_comment(text: str) -> None:
    word = text.replace("\n", " ").replace("\r", " ").replace("\x85", " ").replace("\u2028", " ")
    evil = guest(100, scsi0="rpool/data/vm-100-disk-0")
    object.__setattr__(evil, "name", text)
    lines = ("[rpool/data]", "recursive = yes", f"{word} = {word}", f"[{word}]", f"use_template = {word}")
    made, config = translated("\n".join(lines), [evil])
    assert config.jobs.keys() == {"data"}
    assert "\x1b" not in made


def test_the_nodes_storages_and_guests_are_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    file = tmp_path / "sanoid.conf"
    file.write_text("[rpool]\nrecursive = yes\nhourly = 24\ndaily = 7\nmonthly = 0\n[fast/vm-100-disk-0]\ndaily = 2\n")
    with world.session() as session:
        text = import_sanoid(session, file)
        with pytest.raises(ConfigError):
            import_sanoid(session, tmp_path / "none")
    config = parse_config(text, "made")
    assert [str(word.text) for word in config.jobs["rpool"].guests] == ["storage:crypt", "storage:local-zfs"]
    assert [word.text for word in config.jobs["vm-100-disk-0"].guests] == ["100"]
    assert not world.runner.changes
