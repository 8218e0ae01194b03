"""Options of hosts with ZFS that receive replicas."""
# ruff: noqa: RUF009 - `option` makes a field, as `dataclasses.field` does

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pve_zfsbackup.config import kinds
from pve_zfsbackup.config.option import DEFAULT_KEEP, KEEP_HELP, option
from pve_zfsbackup.model import Compress, Dataset, Keep, RateRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A host with ZFS that receives replicas over ssh."""

    name: str = ""  # its key under `targets`
    host: str = option("Name or address of the host.", kinds.HOST, example="backup1.example.org")
    root: Dataset = option(
        "Dataset below which the replicas are kept. Not a pool alone, and not the dataset of a Proxmox storage.",
        kinds.ROOT,
        example="tank/pve-zfsbackup",
    )
    append_only: bool = option(
        "The account may only add: its key runs pve-zfsbackup-receiver. Nothing is held, released or removed there "
        "from here; the target prunes by its own policy.",
        kinds.YES_OR_NO,
        default=False,
    )
    user: str = option("Account on the target.", kinds.USER, default="pve-zfsbackup")
    port: int = option("Port of its ssh server.", kinds.whole(1, 65535), default=22)
    identity_file: Path = option(
        "Private ssh key of this node, readable by root only.",
        kinds.SECRET_PATH,
        default=Path("/etc/pve-zfsbackup/id_ed25519"),
    )
    known_hosts_file: Path = option(
        "File with the target's ssh host key. A target whose key is not in it is refused.",
        kinds.PATH,
        default=Path("/etc/pve-zfsbackup/known_hosts"),
    )
    parallel: int = option("How many disks are sent at the same time.", kinds.whole(1, 8), default=2)
    connect_timeout: float = option("How long to wait for the connection.", kinds.seconds(1, 300), default=15.0)
    retries: int = option(
        "How often what may pass by itself (no connection, a stream that broke, a busy dataset) is tried again in "
        "one run without getting any further; with every progress the count begins anew.",
        kinds.whole(0, 100),
        default=3,
    )
    retry_wait: float = option(
        "How long to wait before the first of them; before each next it is twice as long, up to 300.",
        kinds.seconds(1, 300),
        default=10.0,
    )
    stall: float = option(
        "How long a stream may go without a byte before it is given up. The sender of a large disk with few changes "
        "may read for long; a link that is dead is noticed within a minute without this.",
        kinds.seconds(60, 86_400),
        default=3600.0,
    )
    rate: int = option(
        "Most bytes per second of all streams to this target together, as they are on the wire.",
        kinds.RATE,
        default=0,
        example="20M",
    )
    rate_schedule: tuple[RateRule, ...] = option(
        "Other rates by time and day, as a list; the first that fits counts, otherwise 'rate'. It changes also while "
        "a stream runs. The time is that of 'timezone'.",
        kinds.RATE_RULE,
        default=(),
        example="['mon-fri 08:00-18:00: 20M', '22:00-06:00: 0']",
    )
    mbuffer: int | None = option(
        "Memory for mbuffer on both sides; needs the package mbuffer there. Left out, there are 64M on this side alone "
        "for large streams, where a run of a month lost a tenth of its time to disks and link that take turns in being "
        "slow.",
        kinds.BUFFER,
        default=None,
        example="64M",
    )
    compress: Compress = option(
        "Compress streams on the wire; needs the package zstd on both sides. zstd: all but encrypted ones; auto: only "
        "those of disks that are not compressed by ZFS already, and only while the link is known to be slow (less than "
        "64 MiB a second: by 'rate', or by what runs of a month brought there). `why replicate` tells.",
        kinds.COMPRESS,
        default=Compress.OFF,
    )
    keep: Keep = option(
        f"History kept on the target. {KEEP_HELP}", kinds.whole(0, 100_000), default=DEFAULT_KEEP, prefix="keep-"
    )

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """A policy that nobody carries out would be a promise."""
        if values.get("append_only") and "keep" in values:
            yield "keep", "an append-only target prunes by its own policy: remove 'keep' here, and set it there"
