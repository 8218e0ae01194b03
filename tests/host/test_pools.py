"""What `zpool status` says of devices: texts as `print_status_config` of OpenZFS 2.1 to 2.4 puts them together."""

from __future__ import annotations

from typing import Any

import pytest

from pve_zfsbackup.errors import CommandError, ZfsError
from pve_zfsbackup.host.pools import conditions_of, read_conditions
from pve_zfsbackup.host.runner import Completed
from pve_zfsbackup.host.ssh import Host

CLEAN = "No known data errors"


def text(*rows: tuple[int, str, str, str], pool: str = "tank", state: str = "ONLINE", errors: str = CLEAN) -> str:
    """Rows are (indent, name, state, the rest); a row without a state is a heading."""
    width = max(10, *(indent + len(name.encode()) for indent, name, _, _ in rows))
    lines = [f"  pool: {pool}", f" state: {state}", "status: One or more devices has been removed."]
    lines += ["\tSufficient replicas exist for the pool to continue functioning in a", "\tdegraded state."]
    lines += ["  scan: scrub repaired 0B in 00:00:01 with 0 errors on Sun Nov  8 00:24:02 2026", "config:", ""]
    lines += [f"\t{'NAME':<{width}}  {'STATE':<8} {'READ':>5} {'WRITE':>5} {'CKSUM':>5}"]
    for indent, name, word, rest in rows:
        padding = " " * (width - indent - len(name.encode()))
        lines += [f"\t{' ' * indent}{name}{padding}  {word:<8} {rest}" if word else f"\t{name}\t"]
    return "\n".join([*lines, "", f"errors: {errors}", ""])


NONE = "    0     0     0"
MIRROR = ((0, "tank", "ONLINE", NONE), (2, "mirror-0", "ONLINE", NONE), (4, "sda", "ONLINE", NONE))


def told(*rows: tuple[int, str, str, str], **more: Any) -> list[str]:
    return [str(device) for device in read_conditions(text(*rows, **more))["tank"].devices]


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("FAULTED", "external device fault"),
        ("UNAVAIL", "was /dev/disk/by-id/ata-X ONLINE       0     0     0"),
        ("REMOVED", ""),
        ("OFFLINE", ""),
        ("DEGRADED", "too many errors"),
    ],
)
def test_a_device_is_seen_though_its_pool_is_called_online(state: str, why: str) -> None:
    rest = f"{NONE}  {why}" if why else NONE
    expected = f"sdb {state} ({why})" if why else f"sdb {state}"
    assert told(*MIRROR, (4, "sdb", state, rest)) == [expected]


def test_nothing_is_told_of_what_is_as_it_should_be() -> None:
    rows = (
        *MIRROR, (4, "sdb", "ONLINE", f"{NONE}  (resilvering)"), (0, "logs", "", ""), (2, "nvme0n1p3", "ONLINE", NONE),
        (0, "cache", "", ""), (2, "nvme0n1p4", "ONLINE", f"{NONE}  block size: 512B configured, 4096B native"),
        (0, "spares", "", ""), (2, "sdx", "AVAIL", ""), (2, "sdy", "INUSE", "  currently in use"),
    )  # fmt: skip
    assert told(*rows) == []


def test_a_group_is_told_only_where_no_device_of_it_explains_its_state() -> None:
    rows = ((0, "tank", "DEGRADED", NONE), (2, "mirror-0", "DEGRADED", NONE), (4, "sda", "ONLINE", NONE))
    assert told(*rows, (4, "sdb", "FAULTED", NONE), state="DEGRADED") == ["sdb FAULTED"]
    assert told(*rows, (4, "sdb", "ONLINE", NONE), state="DEGRADED") == ["mirror-0 DEGRADED"]
    assert told(*rows, (4, "sdb", "ONLINE", NONE), (0, "logs", "", ""), (2, "sdc", "REMOVED", NONE)) == [
        "mirror-0 DEGRADED", "sdc REMOVED"
    ]  # fmt: skip


def test_errors_of_devices_that_are_online_are_told() -> None:
    rows = ((0, "tank", "ONLINE", "    0     0     2"), *MIRROR[1:])
    assert told(*rows, (4, "sdb", "ONLINE", "    1     0 18446744073709551615")) == [
        "tank: 0 read, 0 write, 2 checksum errors",
        "sdb: 1 read, 0 write, 18446744073709551615 checksum errors",
    ]


def test_spares_and_caches_that_are_gone_are_told() -> None:
    rows = (*MIRROR, (0, "cache", "", ""), (2, "sdc", "UNAVAIL", f"{NONE}  cannot open"), (0, "spares", "", ""))
    rows = (*rows, (2, "sdd", "UNAVAIL", "  cannot open"))
    assert told(*rows) == ["sdc UNAVAIL (cannot open)", "sdd UNAVAIL (cannot open)"]


@pytest.mark.parametrize(
    "name", ["/mnt/my disk", "/x ONLINE       0     0     0", "/mnt/büro.img", "FAULTED", "x" * 200]
)
def test_no_name_passes_for_a_state(name: str) -> None:
    assert told(*MIRROR, (4, name, "ONLINE", NONE)) == []
    assert told(*MIRROR, (4, name, "FAULTED", NONE)) == [f"{name} FAULTED"]


def test_what_is_not_understood_is_told_and_not_taken_for_good() -> None:
    (device,) = read_conditions(text(*MIRROR).replace("sda     ONLINE", "sda ONLINE"))["tank"].devices
    assert not device.there
    with pytest.raises(ZfsError, match="not understood"):
        read_conditions("  pool: tank\nwhatever\n")


def test_each_pool_has_its_own() -> None:
    damage = "3 data errors, use '-v' for a list"
    rows = ((0, "rpool", "ONLINE", NONE), (2, "sdz", "FAULTED", NONE))
    found = read_conditions(text(*MIRROR) + "\n" + text(*rows, pool="rpool", errors=damage))
    assert (found["tank"].errors, found["tank"].devices) == ("", ())
    assert found["rpool"].errors == damage
    assert [str(device) for device in found["rpool"].devices] == ["sdz FAULTED"]


class Answer:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def run(self, argv: Any, **_: Any) -> Completed:
        return Completed(argv=tuple(argv), returncode=self.status, stdout=self.out, stderr=self.err)


def test_a_pool_that_is_gone_takes_nothing_from_the_others() -> None:
    lost = "cannot open 'gone': no such pool\n"
    some = Host(name="here", runner=Answer(1, text(*MIRROR), lost))  # type: ignore[arg-type]
    assert list(conditions_of(some, ["gone", "tank"])) == ["tank"]
    with pytest.raises(CommandError, match="no such pool"):
        conditions_of(Host(name="here", runner=Answer(1, "", lost)), ["gone"])  # type: ignore[arg-type]
