"""Taking over guests whose replicas lie on this host (docs/failover.md)."""
# ruff: noqa: RUF009 - `option` makes a field, as `dataclasses.field` does

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pve_zfsbackup.config import kinds
from pve_zfsbackup.config.option import option
from pve_zfsbackup.model import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """For the host that receives replicas: what it takes over, and from whom."""

    root: Dataset | None = option(
        "Dataset of this host below which another one's replicas lie.",
        kinds.ROOT,
        default=None,
        example="tank/pve-zfsbackup",
    )
    source: str | None = option(
        "Name or address of the host they come from. As long as it answers, nothing is taken over.",
        kinds.HOST,
        default=None,
        example="pve1.example.org",
    )
    user: str = option("Account there that `failback` uses. It receives disks: root's.", kinds.USER, default="root")
    port: int = option("Port of its ssh server.", kinds.whole(1, 65535), default=22)
    identity_file: Path = option(
        "Private ssh key for `failback`. Give it to this host only for that time: who has it owns the source.",
        kinds.SECRET_PATH,
        default=Path("/etc/pve-zfsbackup/failback_ed25519"),
    )
    known_hosts_file: Path = option(
        "File with the source's ssh host key.", kinds.PATH, default=Path("/etc/pve-zfsbackup/known_hosts")
    )
    timeout: float = option("How long to wait for an answer of the source.", kinds.seconds(1, 300), default=10.0)
    shutdown: float = option(
        "How long a guest may take to shut down for `failback`.", kinds.seconds(1, 3600), default=180.0
    )
