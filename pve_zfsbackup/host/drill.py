"""Looking into a point for a proof: every disk read, every file system checked, the expected files looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.errors import NotInstalledError
from pve_zfsbackup.host.clones import cloned
from pve_zfsbackup.host.filesystems import checked
from pve_zfsbackup.host.inside import find_below, read_device, read_files, read_text, subvolumes, system_name
from pve_zfsbackup.host.partitions import Area
from pve_zfsbackup.host.visit import MOUNTED, Visit
from pve_zfsbackup.model import Snapshot
from pve_zfsbackup.model.canary import LIMIT
from pve_zfsbackup.model.drill import Contents, State
from pve_zfsbackup.model.proof import Reading


@dataclass(slots=True)
class Drill(Visit):
    """What is looked for in one point, and what was seen. `files` may lie in any file system of the guest, and so may
    the `canary`, whose text is handed back."""

    files: Sequence[str] = ()
    canary: str = ""
    reading: Reading = Reading.SAMPLE
    present: set[str] = field(default_factory=set)
    canaries: list[str] = field(default_factory=list)
    system: str = ""
    read: int = 0

    def look(self, disks: Mapping[str, tuple[Snapshot, bool]]) -> Contents:
        """Look into all disks of a point. Raises what keeps it from looking; what is wrong inside is a `Look`."""
        with cloned(self.bench, disks) as clones:
            for key, clone in clones.items():
                if clone.volume:
                    self._read(key, clone.path)
            for key, area in self.areas(clones):
                if self.openable(key, area):
                    with self.telling(key, area.place, area.kind):
                        self._file_system(key, area)
        return Contents(
            looks=tuple(self.looks),
            present=frozenset(self.present),
            canaries=tuple(self.canaries),
            system=self.system,
            read=self.read,
        )

    def _read(self, key: str, path: Path) -> None:
        if self.reading is Reading.NONE:
            return
        with self.telling(key, "", "disk"):
            self.read += read_device(path, everything=self.reading is Reading.ALL)

    def _file_system(self, key: str, area: Area) -> None:
        try:
            self.settle(area)
        finally:  # also of one that cannot be mounted the check may tell why
            self._check(key, area)
        with self.opened(area) as root:
            self._inside(key, area.place, area.kind, root)

    def _check(self, key: str, area: Area) -> None:
        if area.kind == MOUNTED:
            return  # ZFS checks its sums
        try:
            checked(self.bench.host.runner, area.device, area.kind)
        except NotInstalledError as error:
            self.note(key, area.place, area.kind, State.UNOPENED, f"not checked: {error.message}")

    def _inside(self, key: str, place: str, kind: str, root: Path) -> None:
        """A mounted file system: which files are there, and whether they can be read."""
        with self.telling(key, place, kind):
            roots = [root, *(subvolumes(root) if kind == "btrfs" else ())]
            system = next((name for one in roots if (name := system_name(one))), "")
            self.system = self.system or system
            self.present.update(path for path in self.files if any(find_below(one, path) for one in roots))
            self.canaries += [text for one in roots if (text := self._canary(one)) is not None]
            told = f"system: {system}" if system else ""
            if self.reading is not Reading.NONE:
                ends = [read_files(one, everything=self.reading is Reading.ALL) for one in roots]
                self.read += sum(total for _, total in ends)
                told = ", ".join(filter(None, (told, f"{sum(count for count, _ in ends)} files read")))
            self.note(key, place, kind, State.GOOD, told)

    def _canary(self, root: Path) -> str | None:
        place = find_below(root, self.canary) if self.canary else None
        return read_text(place, limit=LIMIT) if place and place.is_file() else None
