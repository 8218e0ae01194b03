"""What is on the disks of a point: partitions, volumes of LVM and file systems, one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pve_zfsbackup.errors import BackupError, NotInstalledError
from pve_zfsbackup.host.clones import Bench, Clone
from pve_zfsbackup.host.filesystems import KINDS, KNOWN, opened, settle
from pve_zfsbackup.host.partitions import PV, Area, areas, logical_volumes, mapped, probed
from pve_zfsbackup.model.drill import Look, State

MOUNTED: Final = "zfs"  # the kind of a container's disk: its clone is mounted, the device is a directory


@dataclass(slots=True)
class Visit:
    """A way through the clones of a point's disks. What was found, and what could not be opened, are `looks`."""

    bench: Bench
    looks: list[Look] = field(default_factory=list)

    def areas(self, clones: Mapping[str, Clone]) -> Iterator[tuple[str, Area]]:
        """Everything that may have a file system, disk by disk, then the volumes of LVM of all disks together."""
        physical: dict[str, str] = {}
        for key, clone in clones.items():
            if not clone.volume:
                yield key, Area(device=str(clone.path), place="", kind=MOUNTED)
                continue
            with self.telling(key, "", "disk"):
                for area in self._disk(key, clone):
                    if area.kind == PV:
                        physical[area.device] = key
                    yield key, area
        with self.telling(" ".join(sorted(set(physical.values()))), "", "LVM"):
            yield from self._volumes(physical)

    def openable(self, key: str, area: Area) -> bool:
        """Whether there is a file system that can be looked into; if not, it is noted what there is."""
        if area.kind in (MOUNTED, *KINDS):
            return True
        told = KNOWN.get(area.kind, "not opened") if area.kind else "nothing recognised"
        self.looks.append(
            Look(
                disk=key, place=area.place, kind=area.kind, state=State.UNOPENED, text=told,
                size=area.size, use=area.use,
            )
        )  # fmt: skip
        return False

    def settle(self, area: Area) -> None:
        """Let a file system go on in its journal. Raises `VerificationError` when it cannot be mounted."""
        if area.kind != MOUNTED:
            settle(self.bench.host.runner, area.device, area.kind, self._where)

    @contextlib.contextmanager
    def opened(self, area: Area) -> Iterator[Path]:
        """A file system, mounted for reading only. Raises `VerificationError` when that fails."""
        if area.kind == MOUNTED:
            yield Path(area.device)
            return
        with opened(self.bench.host.runner, area.device, area.kind, self._where) as root:
            yield root

    @property
    def _where(self) -> Path:
        return self.bench.place / "look"

    def _disk(self, key: str, clone: Clone) -> list[Area]:
        found = areas(self.bench.host.runner, str(clone.path))
        whole, *parts = found
        if parts:
            self.note(key, "", whole.table or "disk", State.GOOD, f"{len(parts)} partitions")
            return parts
        if whole.table and not whole.kind:
            self.note(key, "", whole.table, State.BAD, "a partition table without partitions")
            return []
        return found

    def _volumes(self, physical: Mapping[str, str]) -> Iterator[tuple[str, Area]]:
        for number, volume in enumerate(logical_volumes(self.bench.host.runner, sorted(physical))):
            key = " ".join(sorted({own for device, own in physical.items() if f" {device} " in volume.table}))
            key = key or " ".join(sorted(set(physical.values())))
            if not volume.table:
                told = "not linear, or a part of it is elsewhere"
                self.note(key, volume.place, f"LVM {volume.layout}", State.UNOPENED, told)
                continue
            with self.telling(key, volume.place, "LVM"):
                device = mapped(self.bench.host.runner, volume, f"{self.bench.prefix}-{number}")
                yield key, probed(self.bench.host.runner, device, volume.place, volume.size)

    def note(self, key: str, place: str, kind: str, state: State, text: str) -> None:
        self.looks.append(Look(disk=key, place=place, kind=kind, state=state, text=text))

    @contextlib.contextmanager
    def telling(self, key: str, place: str, kind: str) -> Iterator[None]:
        """What goes wrong in one place is told of it, and the others are looked into all the same."""
        try:
            yield
        except NotInstalledError as error:
            self.note(key, place, kind, State.UNOPENED, error.message)
        except BackupError as error:
            self.note(key, place, kind, State.BAD, error.message)
        except OSError as error:  # what ZFS or the file system could not read
            self.note(key, place, kind, State.BAD, str(error.strerror))
