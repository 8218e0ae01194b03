"""The `zfs` commands that have to do with keys. A passphrase travels by standard input only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pve_zfsbackup.errors import DatasetNotFoundError, KeyRefusedError, ZfsError
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.host.zfs_errors import classified
from pve_zfsbackup.model import Dataset
from pve_zfsbackup.model.keys import FILE, Encryption

CIPHER = "aes-256-gcm"
_COLUMNS = ("name", "encryptionroot", "keyformat", "keylocation", "keystatus", "origin")
_REFUSED = re.compile(
    r"Incorrect key provided|key too (?:long|short)|Passphrase too|Invalid hex|Failed to open key material"
)


def encryption(host: Host, names: Sequence[Dataset] = ()) -> tuple[Encryption, ...]:
    """How these datasets are encrypted, or all of the host. Raises `DatasetNotFoundError` when one is not there."""
    kinds = ("-t", "filesystem,volume", "-o", ",".join(_COLUMNS))
    done = host.run(("zfs", "list", "-Hp", *kinds, *(("--", *names) if names else ())), check=False)
    if done.returncode:
        raise classified(done)
    found = []
    for line in done.stdout.splitlines():
        cells = ["" if cell in ("-", "none") else cell for cell in line.split("\t")]
        if len(cells) != len(_COLUMNS):
            raise ZfsError(f"{host.name}: the answer of zfs is not understood: {line[:200]!r}")
        name, root, keyformat, keylocation, keystatus, origin = cells
        found.append(
            Encryption(
                name=Dataset(name),
                root=Dataset(root) if root else None,
                keyformat=keyformat,
                keylocation=keylocation,
                loaded=keystatus == "available",
                origin=origin,
            )
        )
    return tuple(found)


def encryption_of(host: Host, name: Dataset) -> Encryption | None:
    """The same of one dataset; None when it does not exist."""
    try:
        (found,) = encryption(host, (name,))
    except DatasetNotFoundError:
        return None
    return found


def create_encrypted(host: Host, name: Dataset, key: Path | str) -> None:
    """Make an encrypted file system: with a raw key from a file, or with a passphrase."""
    options = ("-o", f"encryption={CIPHER}", *_key_options(key))
    _run(host, ("zfs", "create", *options, "--", name), key)


def change_key(host: Host, name: Dataset, key: Path | str) -> None:
    """Wrap the master key with another one, in one transaction. The present one must be loaded."""
    _run(host, ("zfs", "change-key", *_key_options(key), "--", name), key)


def try_key(host: Host, name: Dataset, key: Path | str | None = None) -> None:
    """See whether a key opens an encryption root, loading nothing: the one it names itself, or this file or passphrase.

    Raises `KeyRefusedError` when it does not.
    """
    location = () if key is None else ("-L", _location(key))
    _run(host, ("zfs", "load-key", "-n", *location, "--", name), key)


def _key_options(key: Path | str) -> tuple[str, ...]:
    keyformat = "passphrase" if isinstance(key, str) else "raw"
    return ("-o", f"keyformat={keyformat}", "-o", f"keylocation={_location(key)}")


def _location(key: Path | str) -> str:
    return "prompt" if isinstance(key, str) else f"{FILE}{key}"


def _run(host: Host, argv: Sequence[str], key: Path | str | None) -> None:
    done = host.run(argv, check=False, input=f"{key}\n".encode() if isinstance(key, str) else b"")
    if not done.returncode:
        return
    error = classified(done)
    if _REFUSED.search(done.stderr):
        error = KeyRefusedError(error.message, stderr=done.stderr, returncode=done.returncode)
    raise error
