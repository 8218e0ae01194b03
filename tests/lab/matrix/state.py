"""Everything a pool has, from one `zfs list`, and questions about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

COLUMNS = (
    "name", "guid", "type", "createtxg", "creation", "userrefs", "clones", "receive_resume_token",
    "pve-zfsbackup:point",
)  # fmt: skip
SKEW = 3600  # seconds ahead of the clock that are no future yet
_NAME = re.compile(r"pzb:(\d{8}T\d{6}Z-[0-9a-f]{4})\Z")
_MARK = re.compile(r"pzb:\d{8}T\d{6}Z-[0-9a-f]{4}:(.+)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the list; `-` is an empty text."""

    name: str
    guid: str
    type: str
    createtxg: int
    creation: int
    userrefs: int
    clones: str
    token: str
    point: str

    @property
    def dataset(self) -> str:
        return re.split("[@#]", self.name)[0]

    @property
    def short(self) -> str:
        return re.split("[@#]", self.name)[-1]

    @property
    def ours(self) -> bool:
        """A point's snapshot, by name and property."""
        match = _NAME.match(self.short) if self.type == "snapshot" else None
        return match is not None and self.point.partition("/")[2] == match[1]

    @property
    def mark_of(self) -> str:
        """The target one of our bookmarks belongs to; empty for anything else."""
        match = _MARK.match(self.short) if self.type == "bookmark" else None
        return match[1] if match else ""


State = Mapping[str, Entry]


def parse(lines: Iterable[str]) -> dict[str, Entry]:
    """By name. Raises ValueError for a line that is not a row of the list."""
    found = {}
    for line in lines:
        cells = ["" if cell == "-" else cell for cell in line.split("\t")]
        if len(cells) != len(COLUMNS):
            raise ValueError(f"{len(cells)} columns in {line!r}")
        name, guid, kind, txg, creation, refs, clones, token, point = cells
        found[name] = Entry(
            name=name, guid=guid, type=kind, createtxg=int(txg or 0), creation=int(creation or 0),
            userrefs=int(refs or 0), clones=clones, token=token, point=point,
        )  # fmt: skip
    return found


def snapshots(state: State, dataset: str) -> list[Entry]:
    """Oldest first."""
    own = (e for e in state.values() if e.type == "snapshot" and e.dataset == dataset)
    return sorted(own, key=lambda entry: entry.createtxg)


def below(state: State, root: str) -> list[Entry]:
    """The datasets below a root (not the root)."""
    return [e for e in state.values() if e.type in ("filesystem", "volume") and e.name.startswith(f"{root}/")]


def points(state: State, root: str, disks: int) -> dict[str, list[Entry]]:
    """The points below `root` that have a snapshot of each of so many disks, as `in_order`."""
    found: dict[str, list[Entry]] = {}
    for entry in state.values():
        if entry.ours and entry.dataset.startswith(f"{root}/"):
            found.setdefault(entry.point, []).append(entry)
    whole = {point: entries for point, entries in found.items() if len({e.dataset for e in entries}) >= disks}
    return in_order(whole)


def in_order(found: Mapping[str, list[Entry]], now: float | None = None) -> dict[str, list[Entry]]:
    """Oldest first; before them those that are from the future at `now` (the clock was wrong when they were made)."""

    def order(item: tuple[str, list[Entry]]) -> tuple[bool, int]:
        creation = max(entry.creation for entry in item[1])
        return now is None or creation <= now + SKEW, creation

    return dict(sorted(found.items(), key=order))


def common(source: State, dataset: str, target: State, root: str) -> set[str]:
    """The guids that a source dataset (snapshots and bookmarks) shares with anything below the target's root."""
    here = {e.guid for e in source.values() if e.dataset == dataset and e.type in ("snapshot", "bookmark")}
    there = {e.guid for e in target.values() if e.type == "snapshot" and e.dataset.startswith(f"{root}/")}
    return here & there


def changed(before: State, after: State, ignore: Iterable[str]) -> list[str]:
    """Foreign objects (neither our points nor our bookmarks) that appeared, went or became another."""
    skip = set(ignore)

    def foreign(state: State) -> dict[str, str]:
        kept = (e for e in state.values() if not e.ours and not e.mark_of and not _NAME.match(e.short))
        return {e.name: e.guid for e in kept if e.dataset not in skip and e.name not in skip}

    was, now = foreign(before), foreign(after)
    gone = [f"{name} is gone" for name in sorted(was.keys() - now.keys())]
    new = [f"{name} appeared" for name in sorted(now.keys() - was.keys())]
    other = [f"{name} is another" for name in sorted(was.keys() & now.keys()) if was[name] != now[name]]
    return gone + new + other
