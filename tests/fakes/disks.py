"""Disks of guests as a host's programs see them: what `lsblk`, `blkid`, `mount`, the checkers and LVM answer.

The texts are those of util-linux 2.38, e2fsprogs 1.47, xfsprogs 6.1 and LVM 2.03.16.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pve_zfsbackup.host.clones import Bench
from pve_zfsbackup.host.runner import Completed
from tests.fakes.pools import no, ok
from tests.fakes.runner import Ran

PVS = {"pe_start": "2048", "vg_extent_size": "8192"}


@dataclass(slots=True)
class Content:
    """What is on one device. `files` are in the file system; `fsck` is what its checker finds, `mount` why it cannot be
    mounted."""

    kind: str = ""
    files: dict[str, str] = field(default_factory=dict)
    fsck: str = ""
    mount: str = ""
    table: str = ""
    parts: list[Content] = field(default_factory=list)
    volumes: dict[str, Content] = field(default_factory=dict)  # of LVM, by name; all in the group vg0
    layouts: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Disks:
    """The programs. `contents` by the source dataset of a snapshot; `devices` stands for /dev/zvol, `mounts` for
    /proc/self/mountinfo."""

    place: Path
    contents: dict[str, Content] = field(default_factory=dict)
    here: dict[str, Content] = field(default_factory=dict)  # device -> content
    places: dict[str, Path] = field(default_factory=dict)  # file system -> its mountpoint
    mounted: dict[str, str] = field(default_factory=dict)  # directory -> options
    maps: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)  # programs that are not installed
    slow: bool = False  # the link of a volume never comes
    ran: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def devices(self) -> Path:
        return self.place / "zvol"

    @property
    def mounts(self) -> Path:
        return self.place / "mountinfo"

    def bench(self, real: Bench) -> Bench:
        """The same bench on this host."""
        return replace(
            real, place=self.place / real.name, devices=self.devices, rules=self.place / "rules", mounts=self.mounts
        )

    def watch(self, ran: Ran) -> None:
        """What the kernel and udev do when ZFS makes a clone or mounts one."""
        self.write()
        if ran.argv[:2] == ("zfs", "clone"):
            origin, name = ran.argv[-2:]
            content = self.contents.get(origin.partition("@")[0], Content())
            place = next((word for word in ran.argv if word.startswith("mountpoint=")), "")
            if place:
                self.here[name], self.places[name] = content, Path(place.partition("=")[2])
                return
            device = self.devices / name
            self.here[str(device)] = content
            if not self.slow:
                device.parent.mkdir(parents=True, exist_ok=True)
                device.write_bytes(b"\0" * 4096)
        if ran.argv[:2] == ("zfs", "mount"):
            self._fill(self.places[ran.argv[-1]], self.here[ran.argv[-1]])
        if ran.argv[:2] == ("zfs", "destroy"):
            device = self.devices / ran.argv[-1]
            if device.is_file():
                device.unlink()

    def _fill(self, where: Path, content: Content, options: str = "zfs") -> None:
        for name, text in content.files.items():
            path = where / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                path.symlink_to(text.removeprefix("-> "))
            else:
                path.write_text(text)
        self.mounted[str(where)] = options
        self.write()

    def write(self) -> None:
        self.mounts.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"36 35 98:0 / {path} rw - ext4 /dev/zd0 rw" for path in self.mounted]
        self.mounts.write_text("".join(f"{row}\n" for row in ["21 28 0:20 / /proc rw - proc proc rw", *rows]))

    def run(self, argv: tuple[str, ...]) -> Completed:
        self.ran.append(argv)
        if argv[0] in self.missing:
            from pve_zfsbackup.errors import NotInstalledError  # noqa: PLC0415

            raise NotInstalledError(f"{argv[0]}: not installed", hint=f"install the package that has {argv[0]}")
        programs = {"lsblk": self._lsblk, "blkid": self._blkid, "mount": self._mount, "umount": self._umount}
        if argv[0] in programs:
            return programs[argv[0]](argv)
        if argv[0] in ("pvs", "lvs"):
            return self._lvm(argv)
        if argv[0] == "dmsetup":
            return self._dmsetup(argv)
        if argv[0] == "udevadm":
            return ok(argv)
        found = self._content(argv[-1]).fsck
        return (
            no(argv, "", status=4, stdout=f"Pass 1: Checking inodes, blocks, and sizes\n{found}\n")
            if found
            else ok(argv)
        )

    def _content(self, device: str) -> Content:
        if device.startswith("/dev/dm-"):
            return self.here[device]
        match = re.fullmatch(r"(.*-\d+)p(\d+)", device)
        return self.here[match[1]].parts[int(match[2]) - 1] if match else self.here[device]

    def _lsblk(self, argv: tuple[str, ...]) -> Completed:
        device = argv[-1]
        node: dict[str, Any] = {"name": device, "type": "disk", "size": 1 << 30}
        if parts := self.here[device].parts:
            names = [f"{device}p{number}" for number in range(1, len(parts) + 1)]
            sizes = [1 << 20 if number == 1 and len(parts) > 1 else 1 << 30 for number in range(1, len(parts) + 1)]
            node["children"] = [
                {"name": name, "type": "part", "size": size, "parttype": "0fc63daf-8483-4772-8e79-3d69d8477de4"}
                for name, size in zip(names, sizes, strict=True)
            ]
        return ok(argv, json.dumps({"blockdevices": [node]}))

    def _blkid(self, argv: tuple[str, ...]) -> Completed:
        content = self._content(argv[-1])
        told = {"DEVNAME": argv[-1], "PTTYPE": content.table, "TYPE": content.kind}
        known = {key: value for key, value in told.items() if value}
        return (
            ok(argv, "".join(f"{key}={value}\n" for key, value in known.items()))
            if len(known) > 1
            else no(argv, "", status=2)
        )

    def _mount(self, argv: tuple[str, ...]) -> Completed:
        options, device, where = argv[argv.index("-o") + 1], argv[-2], argv[-1]
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(options.split(",")), argv
        content = self._content(device)
        if content.mount:
            return no(argv, f"mount: {where}: {content.mount}", status=32)
        self._fill(Path(where), content, options)
        return ok(argv)

    def _umount(self, argv: tuple[str, ...]) -> Completed:
        where = argv[-1]
        if where not in self.mounted:
            return no(argv, f"umount: {where}: not mounted.", status=32)
        del self.mounted[where]
        self.write()
        shutil.rmtree(where)
        Path(where).mkdir()
        return ok(argv)

    def _lvm(self, argv: tuple[str, ...]) -> Completed:
        config = argv[argv.index("--config") + 1]
        seen = [device for device in self._physical() if f"|^{device.replace('-', chr(92) + '-')}$|" in config]
        if argv[0] == "pvs":
            return ok(
                argv, json.dumps({"report": [{"pvseg": [row for device in seen for row in self._segments(device)]}]})
            )
        rows = [
            {"vg_name": "vg0", "lv_name": name, "lv_layout": content.layouts.get(name, "linear"), "lv_size": "40960"}
            for content in map(self._content, seen)
            for name in content.volumes
        ]
        return ok(argv, json.dumps({"report": [{"lv": rows}]}))

    def _physical(self) -> list[str]:
        found = []
        for device, content in self.here.items():
            names = [f"{device}p{n}" for n in range(1, len(content.parts) + 1)]
            found += [name for name in [device, *names] if self._content(name).kind == "LVM2_member"]
        return found

    def _segments(self, device: str) -> list[dict[str, str]]:
        content = self._content(device)
        return [
            {"pv_name": device, **PVS, "vg_name": "vg0", "pvseg_start": str(5 * at), "pvseg_size": "5", "lv_name": name,
             "segtype": content.layouts.get(name, "linear"), "seg_start": "0"}
            for at, name in enumerate(content.volumes)
        ]  # fmt: skip

    def _dmsetup(self, argv: tuple[str, ...]) -> Completed:
        if argv[1] == "ls":
            return ok(argv, "".join(f"{name}\t(254:0)\n" for name in ["pve-root", *self.maps]) or "No devices found\n")
        name = argv[-1]
        if argv[1] == "remove":
            self.maps.remove(name)
            return ok(argv)
        number = int(name.rpartition("-")[2])
        if argv[1] == "info":
            return ok(argv, f"dm-{number}\n")
        assert argv[1] == "create", argv
        volumes = [volume for device in self._physical() for volume in self._content(device).volumes.values()]
        self.maps.append(name)
        self.here[f"/dev/dm-{number}"] = volumes[number]
        return ok(argv)


def linux(*more: str, **about: Any) -> Content:
    """An ext4 with a system on it."""
    files = {
        "/usr/lib/os-release": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12"\n',
        "/etc/os-release": "-> ../usr/lib/os-release",
    }
    return Content(kind="ext4", files={**files, **dict.fromkeys(more, "x")}, **about)
