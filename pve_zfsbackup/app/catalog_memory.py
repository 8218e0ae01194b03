"""Manifests this node wrote, remembered: they never change, so a run does not fetch and open all of them again.

Used only to plan. What is verified or restored is read from the box.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pve_zfsbackup.app.box import Vault
from pve_zfsbackup.archive.chain import Signed
from pve_zfsbackup.archive.inner import Inner
from pve_zfsbackup.archive.names import INNER, INNER_SIGNATURE, OUTER, OUTER_SIGNATURE
from pve_zfsbackup.archive.outer import Outer, digest
from pve_zfsbackup.archive.text import LIMIT, SIGNATURE_LIMIT
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.notebook import read_json, write_json
from pve_zfsbackup.host.store import Entry

MANIFESTS = (OUTER, OUTER_SIGNATURE, INNER, INNER_SIGNATURE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One file per point in `directory`. What cannot be read there is as if it had not been written."""

    directory: Path

    def recall(self, path: str, files: Mapping[str, Entry]) -> tuple[Signed, Inner | None] | None:
        """The manifests of the point at this path, if the box shows files of the same sizes."""
        try:
            found = read_json(self._file(path))
            if found is None or found["path"] != path or found["sizes"] != manifest_sizes(files):
                return None
            data = str(found["outer"]).encode("ascii")
            inner = Inner.decode(str(found["inner"]).encode("ascii"), path) if found["inner"] else None
            return Signed(outer=Outer.decode(data, path), sha256=digest(data)), inner
        except (BackupError, KeyError, ValueError):
            return None

    def knows(self, path: str) -> bool:
        """Whether a point was published at this path that nothing of ours has removed since."""
        return self._file(path).exists()

    def note(self, path: str, files: Mapping[str, Entry], signed: Signed, inner: Inner | None) -> None:
        """Remember manifests that were found genuine."""
        members: dict[str, Any] = {"path": path, "sizes": manifest_sizes(files)}
        texts = {"outer": signed.outer.encode(), "inner": inner.encode() if inner else b""}
        write_json(self._file(path), {**members, **{name: text.decode("ascii") for name, text in texts.items()}})

    def any(self) -> bool:
        return next(self.directory.glob("*.json"), None) is not None

    def lost(self, paths: Collection[str]) -> dict[str, Inner]:
        """What is remembered of points that are not among these paths, by the name of the file."""
        names = {self._file(path).name for path in paths}
        found = {}
        for file in self.directory.glob("*.json"):
            if file.name not in names:
                with contextlib.suppress(BackupError, KeyError, TypeError, ValueError):
                    found[file.name] = Inner.decode(str((read_json(file) or {})["inner"]).encode("ascii"), file.name)
        return found

    def forget(self, paths: Collection[str], spare: Collection[str] = ()) -> None:
        """Those that are not among these paths are gone from the box; files of these names stay all the same."""
        names = {*spare, *(self._file(path).name for path in paths)}
        self.drop({file.name for file in self.directory.glob("*.json")} - names)

    def removing(self, paths: Collection[str]) -> None:
        """What is about to be removed is no longer known: what a cut removal leaves may go."""
        self.drop([self._file(path).name for path in paths])

    def drop(self, names: Collection[str]) -> None:
        for name in names:
            (self.directory / name).unlink(missing_ok=True)

    def _file(self, path: str) -> Path:
        return self.directory / f"{path.rpartition('/')[2]}.json"


def memory_of(vault: Vault) -> Memory:
    return Memory(directory=vault.state / "manifests")


def too_large(files: Mapping[str, Entry]) -> bool:
    """Whether a manifest or signature among these files is larger than any of ours can be: nothing reads it."""
    limits = {OUTER: LIMIT, INNER: LIMIT, OUTER_SIGNATURE: SIGNATURE_LIMIT, INNER_SIGNATURE: SIGNATURE_LIMIT}
    return any(size > limits[name] for name, size in manifest_sizes(files).items())


def manifest_sizes(files: Mapping[str, Entry]) -> dict[str, int]:
    """Of the manifests that are listed among these files."""
    return {name: files[name].bytes for name in MANIFESTS if name in files}
