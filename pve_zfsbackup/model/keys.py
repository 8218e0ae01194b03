"""Keys of encrypted datasets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.model.names import Dataset

RAW_BYTES: Final = 32  # zfs-load-key(8): a raw key has exactly these
PASSPHRASE_LENGTHS: Final = range(8, 513)  # zfsprops(7), keyformat
FILE: Final = "file://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """How a dataset is encrypted: `root` is the dataset whose key opens it, itself where it has a key of its own."""

    name: Dataset
    root: Dataset | None  # None: not encrypted
    keyformat: str = ""
    keylocation: str = ""
    loaded: bool = False
    origin: str = ""

    @property
    def key_file(self) -> str:
        """The path behind `keylocation=file://…`, empty for a prompt and anything else."""
        return self.keylocation.removeprefix(FILE) if self.keylocation.startswith(FILE) else ""
