"""Looking into a point: clones of its disks, their partitions, volumes and file systems, one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.errors import BackupError, NotInstalledError
from pve_zfsbackup.host.clones import Bench, Clone, cloned
from pve_zfsbackup.host.filesystems import KINDS, KNOWN, checked, opened, settle
from pve_zfsbackup.host.inside import find_below, read_device, read_files, subvolumes, system_name
from pve_zfsbackup.host.partitions import PV, Area, areas, logical_volumes, mapped, probed
from pve_zfsbackup.model import Snapshot
from pve_zfsbackup.model.proof import Contents, Look, Reading, State


@dataclass(slots=True)
class Drill:
    """What is looked for in one point, and what was seen. `files` may lie in any file system of the guest."""

    bench: Bench
    files: Sequence[str] = ()
    reading: Reading = Reading.SAMPLE
    looks: list[Look] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    system: str = ""
    read: int = 0

    def look(self, disks: Mapping[str, tuple[Snapshot, bool]]) -> Contents:
        """Look into all disks of a point. Raises what keeps it from looking; what is wrong inside is a `Look`."""
        with cloned(self.bench, disks) as clones:
            for key, area in self._areas(clones):
                self._area(key, area)
        return Contents(looks=tuple(self.looks), present=frozenset(self.present), system=self.system, read=self.read)

    def _areas(self, clones: Mapping[str, Clone]) -> Iterator[tuple[str, Area]]:
        """Everything that may have a file system, disk by disk, then the volumes of LVM of all disks together."""
        physical: dict[str, str] = {}
        for key, clone in clones.items():
            if not clone.volume:
                self._inside(key, "", "zfs", clone.path)
                continue
            with self._telling(key, "", "disk"):
                for area in self._disk(key, clone):
                    if area.kind == PV:
                        physical[area.device] = key
                    yield key, area
        with self._telling(" ".join(sorted(set(physical.values()))), "", "LVM"):
            yield from self._volumes(physical)

    def _disk(self, key: str, clone: Clone) -> list[Area]:
        self._read(key, clone.path)
        found = areas(self.bench.host.runner, str(clone.path))
        whole, *parts = found
        if parts:
            self._note(key, "", whole.table or "disk", State.GOOD, f"{len(parts)} partitions")
            return parts
        if whole.table and not whole.kind:
            self._note(key, "", whole.table, State.BAD, "a partition table without partitions")
            return []
        return found

    def _read(self, key: str, path: Path) -> None:
        if self.reading is Reading.NONE:
            return
        with self._telling(key, "", "disk"):
            self.read += read_device(path, everything=self.reading is Reading.ALL)

    def _volumes(self, physical: Mapping[str, str]) -> Iterator[tuple[str, Area]]:
        for number, volume in enumerate(logical_volumes(self.bench.host.runner, sorted(physical))):
            key = " ".join(sorted({own for device, own in physical.items() if f" {device} " in volume.table}))
            key = key or " ".join(sorted(set(physical.values())))
            if not volume.table:
                self._note(
                    key,
                    volume.place,
                    f"LVM {volume.layout}",
                    State.UNOPENED,
                    "not linear, or a part of it is elsewhere",
                )
                continue
            with self._telling(key, volume.place, "LVM"):
                device = mapped(self.bench.host.runner, volume, f"{self.bench.prefix}-{number}")
                yield key, probed(self.bench.host.runner, device, volume.place, volume.size)

    def _area(self, key: str, area: Area) -> None:
        if area.kind in KINDS:
            with self._telling(key, area.place, area.kind):
                self._file_system(key, area)
        elif area.kind:
            self._note(key, area.place, area.kind, State.UNOPENED, KNOWN.get(area.kind, "not opened"))
        else:
            self._note(key, area.place, "", State.UNOPENED, "nothing recognised")

    def _file_system(self, key: str, area: Area) -> None:
        runner, where = self.bench.host.runner, self.bench.place / "look"
        try:
            settle(runner, area.device, area.kind, where)
        finally:  # also of one that cannot be mounted the check may tell why
            self._check(key, area)
        with opened(runner, area.device, area.kind, where) as root:
            self._inside(key, area.place, area.kind, root)

    def _check(self, key: str, area: Area) -> None:
        try:
            checked(self.bench.host.runner, area.device, area.kind)
        except NotInstalledError as error:
            self._note(key, area.place, area.kind, State.UNOPENED, f"not checked: {error.message}")

    def _inside(self, key: str, place: str, kind: str, root: Path) -> None:
        """A mounted file system: which files are there, and whether they can be read."""
        with self._telling(key, place, kind):
            roots = [root, *(subvolumes(root) if kind == "btrfs" else ())]
            system = next((name for one in roots if (name := system_name(one))), "")
            self.system = self.system or system
            self.present.update(path for path in self.files if any(find_below(one, path) for one in roots))
            told = f"system: {system}" if system else ""
            if self.reading is not Reading.NONE:
                ends = [read_files(one, everything=self.reading is Reading.ALL) for one in roots]
                self.read += sum(total for _, total in ends)
                told = ", ".join(filter(None, (told, f"{sum(count for count, _ in ends)} files read")))
            self._note(key, place, kind, State.GOOD, told)

    def _note(self, key: str, place: str, kind: str, state: State, text: str) -> None:
        self.looks.append(Look(disk=key, place=place, kind=kind, state=state, text=text))

    @contextlib.contextmanager
    def _telling(self, key: str, place: str, kind: str) -> Iterator[None]:
        """What goes wrong in one place is told of it, and the others are looked into all the same."""
        try:
            yield
        except NotInstalledError as error:
            self._note(key, place, kind, State.UNOPENED, error.message)
        except BackupError as error:
            self._note(key, place, kind, State.BAD, error.message)
        except OSError as error:  # what ZFS or the file system could not read
            self._note(key, place, kind, State.BAD, str(error.strerror))
