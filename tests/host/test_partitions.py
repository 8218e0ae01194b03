"""What programs say of devices, as they were heard to (lvm2 2.03.16, util-linux 2.38)."""

# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from pve_zfsbackup.errors import VerificationError
from pve_zfsbackup.host.filesystems import checked
from pve_zfsbackup.host.partitions import areas, logical_volumes, mapped
from pve_zfsbackup.host.runner import Completed, Runner

SEGMENTS = """\
  {
      "report": [
          {
              "pvseg": [
                  {"pv_name":"/dev/zd16", "pe_start":"2048", "vg_name":"vg0", "vg_extent_size":"8192", "pvseg_start":"0", "pvseg_size":"5", "lv_name":"root", "segtype":"linear", "seg_start":"0", "seg_size":"40960"},
                  {"pv_name":"/dev/zd16", "pe_start":"2048", "vg_name":"vg0", "vg_extent_size":"8192", "pvseg_start":"5", "pvseg_size":"3", "lv_name":"swap", "segtype":"linear", "seg_start":"0", "seg_size":"24576"},
                  {"pv_name":"/dev/zd16", "pe_start":"2048", "vg_name":"vg0", "vg_extent_size":"8192", "pvseg_start":"8", "pvseg_size":"2", "lv_name":"root", "segtype":"linear", "seg_start":"40960", "seg_size":"16384"},
                  {"pv_name":"/dev/zd16", "pe_start":"2048", "vg_name":"vg0", "vg_extent_size":"8192", "pvseg_start":"10", "pvseg_size":"39", "lv_name":"", "segtype":"free", "seg_start":"0", "seg_size":"319488"}
              ]
          }
      ]
  }
"""
VOLUMES = """\
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg0", "lv_name":"root", "lv_layout":"linear", "lv_size":"57344"},
                  {"vg_name":"vg0", "lv_name":"swap", "lv_layout":"linear", "lv_size":"24576"},
                  {"vg_name":"vg0", "lv_name":"thin", "lv_layout":"thin,sparse", "lv_size":"24576"},
                  {"vg_name":"vg0", "lv_name":"half", "lv_layout":"linear,partial", "lv_size":"24576"}
              ]
          }
      ]
  }
"""  # fmt: skip
LSBLK = """\
{"blockdevices": [{"name": "/dev/zd16", "type": "disk", "size": 209715200, "children": [
  {"name": "/dev/zd16p1", "type": "part", "size": 20971520, "parttype": "E3C9E316-0B5C-4DB8-817D-F92DF00215AE"},
  {"name": "/dev/zd16p2", "type": "part", "size": 83886080, "children": [
     {"name": "/dev/mapper/x-y", "type": "lvm", "size": 1}]}]}]}
"""


class Scripted:
    """Answers by the program."""

    def __init__(self, answers: Mapping[str, str | tuple[int, str]]) -> None:
        self.answers = answers
        self.ran: list[tuple[str, ...]] = []
        self.heard: list[bytes] = []

    def run(self, argv: Sequence[str], *, input: bytes | None = None, **_: Any) -> Completed:
        self.ran.append(tuple(argv))
        self.heard.append(input or b"")
        answer = self.answers[argv[0] if argv[0] != "blkid" or argv[-1] not in self.answers else argv[-1]]
        status, text = answer if isinstance(answer, tuple) else (0, answer)
        return Completed(argv=tuple(argv), returncode=status, stdout=text, stderr="")


def scripted(**answers: str | tuple[int, str]) -> tuple[Scripted, Runner]:
    made = Scripted(answers)
    return made, cast(Runner, made)


def test_volumes_are_found_with_the_map_that_opens_them() -> None:
    _, runner = scripted(pvs=SEGMENTS, lvs=VOLUMES)
    root, swap, thin, half = logical_volumes(runner, ["/dev/zd16"])
    assert root.place == "LV vg0/root"
    assert root.table == "0 40960 linear /dev/zd16 2048\n40960 16384 linear /dev/zd16 67584\n"
    assert root.size == 57344 * 512
    assert swap.table == "0 24576 linear /dev/zd16 43008\n"
    assert (thin.table, half.table) == ("", "")


def test_lvm_sees_these_devices_alone_and_changes_nothing() -> None:
    seen, runner = scripted(pvs=SEGMENTS, lvs=VOLUMES)
    logical_volumes(runner, ["/dev/zd16"])
    for argv in seen.ran:
        assert argv[0] in ("pvs", "lvs")
        assert "--readonly" in argv
        config = argv[argv.index("--config") + 1]
        only = r'[ "a|^/dev/zd16$|", "r|.*|" ]'
        assert f" filter={only} global_filter={only} " in config
        assert "use_devicesfile=0 scan_lvs=0" in config


def test_a_device_that_lvm_cannot_read_is_no_empty_one() -> None:
    _, runner = scripted(pvs='{"report": [{"pvseg": []}]}', lvs=VOLUMES)
    with pytest.raises(VerificationError, match="LVM finds no volume group on /dev/zd16"):
        logical_volumes(runner, ["/dev/zd16"])
    _, runner = scripted(pvs="garbage", lvs=VOLUMES)
    with pytest.raises(VerificationError, match="not understood"):
        logical_volumes(runner, ["/dev/zd16"])
    assert logical_volumes(runner, []) == []


def test_a_volume_is_mapped_under_our_name_without_udev() -> None:
    seen, runner = scripted(pvs=SEGMENTS, lvs=VOLUMES, dmsetup="dm-3\n")
    root, *_ = logical_volumes(runner, ["/dev/zd16"])
    assert mapped(runner, root, "pve-zfsbackup-drill-0") == "/dev/dm-3"
    assert seen.ran[-2] == ("dmsetup", "create", "--noudevsync", "--noudevrules", "pve-zfsbackup-drill-0")
    assert seen.heard[-2].decode() == root.table


def test_partitions_are_listed_and_what_the_host_built_on_them_is_not() -> None:
    answers = {"lsblk": LSBLK, "blkid": (2, ""), "/dev/zd16": "DEVNAME=/dev/zd16\nPTTYPE=gpt\n"}
    runner = cast(Runner, Scripted({**answers, "/dev/zd16p2": "DEVNAME=x\nLABEL=a\\ b\nTYPE=ext4\nUUID=u\n"}))
    whole, first, second = areas(runner, "/dev/zvol/tank/x")
    assert (whole.device, whole.table, whole.kind) == ("/dev/zd16", "gpt", "")
    assert (first.place, first.kind, first.use) == ("partition 1", "", "e3c9e316-0b5c-4db8-817d-f92df00215ae")
    assert (second.device, second.place, second.kind, second.size) == ("/dev/zd16p2", "partition 2", "ext4", 83886080)


def test_two_contents_at_once_and_none_that_can_be_read() -> None:
    runner = cast(Runner, Scripted({"lsblk": LSBLK, "blkid": (8, "")}))
    assert {area.kind for area in areas(runner, "/dev/zd16")} == {"ambivalent"}
    runner = cast(Runner, Scripted({"lsblk": LSBLK, "blkid": (4, "")}))
    with pytest.raises(VerificationError, match="blkid"):
        areas(runner, "/dev/zd16")
    runner = cast(Runner, Scripted({"lsblk": "no json", "blkid": ""}))
    with pytest.raises(VerificationError, match="lsblk"):
        areas(runner, "/dev/zd16")


def test_of_a_checker_only_what_it_found_is_told() -> None:
    said = "Phase 1 - find and verify superblock...\n        - scan ...\nbad magic # 0x0 in btcnt block 0/2\n"
    _, runner = scripted(xfs_repair=(1, said))
    with pytest.raises(VerificationError) as caught:
        checked(runner, "/dev/zd16", "xfs")
    assert caught.value.message == "xfs_repair: bad magic # 0x0 in btcnt block 0/2"
    _, runner = scripted(e2fsck=(0, "Pass 1: Checking inodes\n"))
    checked(runner, "/dev/zd16", "ext4")
    checked(runner, "/dev/zd16", "vfat")  # has no checker
