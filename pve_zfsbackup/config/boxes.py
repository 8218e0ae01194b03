"""A storage box: space that knows no ZFS, for encrypted archives (docs/archive-format.md)."""
# ruff: noqa: RUF009 - `option` makes a field, as `dataclasses.field` does

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pve_zfsbackup.config import kinds
from pve_zfsbackup.config.option import DEFAULT_KEEP, KEEP_HELP, option
from pve_zfsbackup.model import Keep, RateRule

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Storage reached by SFTP, or a directory of this node (a mount)."""

    name: str = ""  # its key under `boxes`
    host: str = option(
        "Name or address of the SFTP server; or an absolute path: a directory of this node, such as a mounted share; "
        "or rclone:REMOTE:PATH, a remote of rclone's configuration (S3 and the like).",
        kinds.PLACE,
        example="box.example.org",
    )
    user: str = option("Account on the server.", kinds.USER, default="pve-zfsbackup")
    port: int = option("Port of the server.", kinds.whole(1, 65535), default=22)
    path: str = option("Directory below the one the account starts in.", kinds.RELATIVE_PATH, default="pve-zfsbackup")
    identity_file: Path = option(
        "Private ssh key of this node, readable by root only.",
        kinds.SECRET_PATH,
        default=Path("/etc/pve-zfsbackup/id_ed25519"),
    )
    known_hosts_file: Path = option(
        "File with the server's ssh host key. A server whose key is not in it is refused.",
        kinds.PATH,
        default=Path("/etc/pve-zfsbackup/known_hosts"),
    )
    recipients_file: Path = option(
        "File with the age recipients every archive is encrypted to, one per line. Their identities belong in a "
        "safe, not on this node.",
        kinds.PATH,
        default=Path("/etc/pve-zfsbackup/archive.recipients"),
    )
    catalog_key_file: Path = option(
        "age identity of this node that opens manifests (what is archived, never what is in it). `setup box` makes it.",
        kinds.SECRET_PATH,
        default=Path("/etc/pve-zfsbackup/archive-catalog.key"),
    )
    signing_key_file: Path = option(
        "ed25519 key that signs manifests, readable by root only. `setup box` makes it.",
        kinds.SECRET_PATH,
        default=Path("/etc/pve-zfsbackup/archive-signing"),
    )
    signers_file: Path = option(
        "Public keys whose signatures are believed (allowed_signers of ssh-keygen).",
        kinds.PATH,
        default=Path("/etc/pve-zfsbackup/archive.signers"),
    )
    rclone_config_file: Path = option(
        "Configuration of rclone: its remotes and their secrets, readable by root only. For boxes reached by rclone.",
        kinds.SECRET_PATH,
        default=Path("/etc/pve-zfsbackup/rclone.conf"),
    )
    connections: int = option("How many connections are used at the same time.", kinds.whole(1, 4), default=2)
    connect_timeout: float = option("How long to wait for the connection.", kinds.seconds(1, 300), default=15.0)
    rate: int = option(
        "Most bytes per second of all connections together (not for a directory).",
        kinds.RATE,
        default=0,
        example="20M",
    )
    rate_schedule: tuple[RateRule, ...] = option(
        "Other rates by time and day, as a list; the first that fits counts, otherwise 'rate'. It holds from the next "
        "file on.",
        kinds.RATE_RULE,
        default=(),
        example="['mon-fri 08:00-18:00: 5M']",
    )
    segment_mib: int = option("MiB of a stream in one file.", kinds.whole(1, 1024), default=256)
    spool_dir: Path = option(
        "Where files wait for their upload: room for 'connections' + 1 of them. What a killed run left there goes with "
        "the next.",
        kinds.PATH,
        default=Path("/var/lib/pve-zfsbackup/spool"),
    )
    retry_hours: float = option(
        "For how many hours an upload is tried again while the server does not answer or refuses.",
        kinds.hours(0, 72),
        default=6.0,
    )
    every_hours: float = option(
        "The newest point is archived when the newest archived one is older by this many hours.",
        kinds.hours(0, 8760),
        default=24.0,
    )
    full_days: int = option(
        "A chain older than this is followed by a new full archive.", kinds.whole(1, 3650), default=30
    )
    full_increments: int = option(
        "A chain with so many increments is followed by a new full archive.", kinds.whole(1, 1000), default=30
    )
    full_percent: int = option(
        "When the increments of a chain have so many percent of its full archive's size, a new full one follows.",
        kinds.whole(1, 10_000),
        default=100,
    )
    warn_full: int = option(
        "`check` warns when more percent of the box are used, as the server said in the last run.",
        kinds.whole(1, 100),
        default=85,
    )
    critical_full: int = option("And so full it is critical.", kinds.whole(1, 100), default=95)
    keep: Keep = option(
        f"History kept in the box; what kept increments build on stays as well. {KEEP_HELP}",
        kinds.whole(0, 100_000),
        default=DEFAULT_KEEP,
        prefix="keep-",
    )

    @property
    def segment_bytes(self) -> int:
        return self.segment_mib * _MIB

    @property
    def directory(self) -> Path | None:
        """The directory of this node, where it is one."""
        return Path(self.host) if self.host.startswith("/") else None

    @property
    def remote(self) -> str:
        """The remote of rclone, with the directory in it; empty where it is none."""
        kind, _, remote = self.host.partition("rclone:")
        if kind or not remote:
            return ""
        return f"{remote}{'' if remote.endswith((':', '/')) else '/'}{self.path}"
