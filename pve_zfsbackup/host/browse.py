"""Files of a point: found in its file systems, listed, copied out. Nothing of the guest is changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.host.clones import cloned
from pve_zfsbackup.host.copying import Copier
from pve_zfsbackup.host.inside import find, found_below, subvolumes
from pve_zfsbackup.host.partitions import Area
from pve_zfsbackup.host.visit import Visit
from pve_zfsbackup.model import Snapshot
from pve_zfsbackup.model.files import Entry, EntryKind, FileSystem, Found, Shown, Sought, file_system_name

Act = Callable[[Path, Path, FileSystem, Sought], None]


@dataclass(slots=True)
class Browser(Visit):
    """A look into the file systems of a point. Each is opened once to see what it has, and those that have what is
    sought once more: which of them is meant is known when all were seen."""

    shown: list[Shown] = field(default_factory=list)

    def look(
        self, disks: Mapping[str, tuple[Snapshot, bool]], sought: Sequence[Sought], copier: Copier | None = None
    ) -> Found:
        """List what is sought, or copy it. Raises what keeps it from looking, and what `Copier.copy` raises."""
        act = _copying(copier) if copier else self._show
        with cloned(self.bench, disks) as clones:
            systems = self._file_systems([pair for pair in self.areas(clones) if self.openable(*pair)])
            ranks = {item: self._ranked(system, area, sought) for item, (system, area) in systems.items()}
            best = {
                want.text: min(own[want.text] for own in ranks.values() if want.text in own)
                for want in sought
                if any(want.text in own for own in ranks.values())
            }
            for name, (system, area) in systems.items():
                wanted = [want for want in sought if ranks[name].get(want.text, -1) == best.get(want.text)]
                self._act(system, area, wanted, act)
        return Found(
            file_systems=tuple(system for system, _ in systems.values()),
            shown=tuple(self.shown),
            missing=tuple(want.text for want in sought if want.text not in best),
            looks=tuple(self.looks),
            copied=copier.copied if copier else None,
        )

    def _file_systems(self, areas: Sequence[tuple[str, Area]]) -> dict[str, tuple[FileSystem, Area]]:
        found: dict[str, tuple[FileSystem, Area]] = {}
        for key, area in areas:
            name = file_system_name(key, area.place, found)
            system = FileSystem(name=name, disk=key, place=area.place, kind=area.kind, label=area.label, size=area.size)
            found[name] = (system, area)
        return found

    def _ranked(self, system: FileSystem, area: Area, sought: Sequence[Sought]) -> dict[str, int]:
        """What of it this one has, and how surely it is what is meant: 0 is best."""
        ranks: dict[str, int] = {}
        with self.telling(system.disk, system.place, system.kind):
            self.settle(area)
            with self.opened(area) as root:
                found = ((want.text, _place(root, system, want)) for want in sought)
                ranks.update({text: place[0] for text, place in found if place})
        return ranks

    def _act(self, system: FileSystem, area: Area, sought: Sequence[Sought], act: Act) -> None:
        if not sought:
            return
        with self.opened(area) as root:
            for want in sought:
                if place := _place(root, system, want):
                    act(root, place[1], system, want)

    def _show(self, root: Path, place: Path, system: FileSystem, want: Sought) -> None:
        with self.telling(system.disk, system.place, system.kind):
            names = sorted(os.listdir(place)) if place.is_dir() else []
            entries = [_entry(place / name) for name in names] if place.is_dir() else [_entry(place)]
            path = "/" + "/".join(place.relative_to(root).parts)
            self.shown.append(Shown(file_system=system.name, asked=want.text, path=path, entries=tuple(entries)))


def _copying(copier: Copier) -> Act:
    return lambda root, place, system, _: copier.copy(root, place, system.name)


def _place(root: Path, system: FileSystem, want: Sought) -> tuple[int, Path] | None:
    """Where it is: in the file system that is named by its path there; else also where the guest may have it mounted.
    A root inside of a btrfs subvolume counts as one of its own."""
    if want.file_system not in ("", system.name):
        return None
    if not want.path.strip("/"):
        return 0, root
    if want.file_system:
        there = find(root, want.path)
        return (0, there) if there else None
    roots = [root, *(subvolumes(root) if system.kind == "btrfs" else ())]
    found = [place for one in roots if (place := found_below(one, want.path))]
    return min(found, key=lambda pair: pair[0], default=None)


def _entry(path: Path) -> Entry:
    info = path.lstat()
    kind = _kind(info.st_mode)
    return Entry(
        name=path.name,
        kind=kind,
        mode=info.st_mode,
        owner=info.st_uid,
        group=info.st_gid,
        size=info.st_size if kind is EntryKind.FILE else 0,
        modified=int(info.st_mtime),
        aim=os.readlink(path) if kind is EntryKind.LINK else "",
    )


def _kind(mode: int) -> EntryKind:
    if stat.S_ISLNK(mode):
        return EntryKind.LINK
    if stat.S_ISDIR(mode):
        return EntryKind.DIRECTORY
    return EntryKind.FILE if stat.S_ISREG(mode) else EntryKind.SPECIAL
