"""`import sanoid`: what another tool was told, told to us. Proxmox and ZFS say which guest is on which dataset."""

from __future__ import annotations

from pathlib import Path

from pve_zfsbackup.app.gather import inventory
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config.sanoid import parse_sanoid
from pve_zfsbackup.config.sanoid_import import translate
from pve_zfsbackup.errors import ConfigError
from pve_zfsbackup.host.guests import read_storages

LIMIT = 1 << 20


def read_foreign(path: Path) -> str:
    """The text of another tool's file, whosoever it is: nothing is done by it. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    if len(data) > LIMIT:
        raise ConfigError([f"{path}: larger than {LIMIT} bytes"])
    return data.decode("utf-8", "replace")


def import_sanoid(session: Session, path: Path) -> str:
    """The text of a configuration that does what this sanoid.conf does. Raises what reading and asking raise."""
    sections = parse_sanoid(read_foreign(path), str(path))
    guests = inventory(session).guests
    storages = {
        storage.id: storage.pool
        for storage in read_storages(session.api).values()
        if storage.type == "zfspool" and storage.pool and not storage.disabled
        if not storage.nodes or session.node in storage.nodes
    }
    return translate(sections, guests, storages, str(path))
