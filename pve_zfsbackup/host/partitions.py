"""What lies on a block device: partitions, file systems, and the logical volumes inside.

The host activates nothing of it: LVM is only read, with a filter that shows it these devices alone, and linear volumes
are mapped under names of ours, so that a volume group of the guest's may be called like one of the host's.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pve_zfsbackup.errors import BackupError, NotInstalledError, VerificationError
from pve_zfsbackup.host.runner import Runner

SECTOR: Final = 512
PV: Final = "LVM2_member"


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A device with a content. `kind` is blkid's TYPE, "" for nothing known; `place` is for people. `label` and
    `uuid` are the file system's. `use` is what the partition is for, by its table: a GUID, or 0x and a number."""

    device: str
    place: str
    kind: str
    size: int = 0
    label: str = ""
    uuid: str = ""
    table: str = ""  # the partition table, if it has one
    use: str = ""


def areas(runner: Runner, device: str) -> list[Area]:
    """The device itself, and its partitions."""
    done = runner.run(("lsblk", "-J", "-b", "-p", "-o", "NAME,TYPE,SIZE,PARTTYPE", "--", device), timeout=60)
    try:
        (whole,) = json.loads(done.stdout)["blockdevices"]
        parts = [child for child in whole.get("children", ()) if child["type"] == "part"]
        own = probed(runner, str(whole["name"]), "", int(whole["size"] or 0))  # LVM knows it by this name, not by links
        return [own, *(_partition(runner, own.device, part) for part in parts)]
    except (ValueError, KeyError, TypeError):
        raise VerificationError(f"{device}: the answer of lsblk is not understood") from None


def _partition(runner: Runner, whole: str, part: Any) -> Area:
    name = str(part["name"])
    number = re.sub(r"^p(?=\d)", "", name.removeprefix(whole))
    found = probed(runner, name, f"partition {number}", int(part["size"] or 0))
    return replace(found, use=str(part.get("parttype") or "").lower())


def probed(runner: Runner, device: str, place: str, size: int) -> Area:
    """What blkid makes of a device, asked anew and not from its cache. Raises when it cannot be read."""
    done = runner.run(("blkid", "-p", "-o", "export", "--", device), check=False, timeout=120)
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if done.returncode == 8:
        told = {"TYPE": "ambivalent"}  # two file systems at once: blkid(8)
    elif done.returncode not in (0, 2):
        raise VerificationError(f"{device}: blkid: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return Area(
        device=device,
        place=place,
        kind=told.get("TYPE", ""),
        size=size,
        label=told.get("LABEL", ""),
        uuid=told.get("UUID", ""),
        table=told.get("PTTYPE", ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalVolume:
    """A volume of a guest's volume group. `table` maps it for device-mapper; empty for one that is not linear."""

    group: str
    name: str
    layout: str
    size: int
    table: str

    @property
    def place(self) -> str:
        return f"LV {self.group}/{self.name}"


def logical_volumes(runner: Runner, devices: Sequence[str]) -> list[LogicalVolume]:
    """The volumes on these physical volumes, read without activating any. Raises `NotInstalledError` without LVM, and
    `VerificationError` for a device that LVM cannot read."""
    if not devices:
        return []
    known = set()
    segments: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    columns = "pv_name,pe_start,vg_name,vg_extent_size,pvseg_start,pvseg_size,lv_name,segtype,seg_start"
    for row in _report(runner, devices, ("pvs", "--segments"), columns, "pvseg"):
        known.add(row["pv_name"])
        if row["segtype"] == "linear":
            start, extent = int(row["pe_start"]), int(row["vg_extent_size"])
            length, offset = int(row["pvseg_size"]) * extent, start + int(row["pvseg_start"]) * extent
            line = f"{row['seg_start']} {length} linear {row['pv_name']} {offset}"
            segments[row["vg_name"], row["lv_name"]].append((int(row["seg_start"]), line))
    if unread := sorted(set(devices) - known):
        raise VerificationError(f"LVM finds no volume group on {', '.join(unread)}")
    found = []
    for row in _report(runner, devices, ("lvs",), "vg_name,lv_name,lv_layout,lv_size", "lv"):
        own = sorted(segments[row["vg_name"], row["lv_name"]])
        whole = row["lv_layout"] == "linear" and sum(int(line.split(" ")[1]) for _, line in own) == int(row["lv_size"])
        table = "".join(f"{line}\n" for _, line in own) if whole else ""
        found.append(
            LogicalVolume(
                group=row["vg_name"],
                name=row["lv_name"],
                layout=row["lv_layout"],
                size=int(row["lv_size"]) * SECTOR,
                table=table,
            )
        )
    return found


def _report(
    runner: Runner, devices: Sequence[str], command: tuple[str, ...], columns: str, key: str
) -> Iterator[dict[str, str]]:
    """A report of LVM about these devices, which are all that it sees (lvm.conf(5))."""
    seen = ", ".join([*(f'"a|^{re.escape(device)}$|"' for device in devices), '"r|.*|"'])
    config = f"devices {{ use_devicesfile=0 scan_lvs=0 filter=[ {seen} ] global_filter=[ {seen} ] }}"
    options = ("--readonly", "--reportformat", "json", "--units", "s", "--nosuffix", "-o", columns, "--config", config)
    done = runner.run((*command, *options), timeout=120)
    try:
        (report,) = json.loads(done.stdout)["report"]
        yield from ({name: str(value) for name, value in row.items()} for row in report[key])
    except (ValueError, KeyError, TypeError):
        raise VerificationError(f"the answer of {command[0]} is not understood: {done.stdout[:200]!r}") from None


def mapped(runner: Runner, volume: LogicalVolume, name: str) -> str:
    """Map a volume under our name; returns its device. No rule of udev's acts on it, nor makes it a link: the kernel's
    own name is asked for."""
    argv = ("dmsetup", "create", "--noudevsync", "--noudevrules", name)
    try:
        runner.run(argv, input=volume.table.encode("ascii"), timeout=60)
        asked = ("dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", name)
        told = runner.run(asked, timeout=60).stdout.strip()
    except NotInstalledError:
        raise
    except BackupError as error:
        raise VerificationError(f"{volume.place}: cannot be mapped: {error.message}", hint=error.hint) from None
    if not re.fullmatch(r"dm-\d+", told):
        raise VerificationError(f"{volume.place}: dmsetup names no device: {told[:80]!r}")
    return f"/dev/{told}"
