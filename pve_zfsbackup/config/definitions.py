"""Every option there is: type, default, limits and help, in one place.

Loading, the example file, the reference page and the completion are all made from these classes. The YAML key
of an option is its field's name with `-` for `_`.
"""
# ruff: noqa: RUF009 - `option` makes a field, as `dataclasses.field` does

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from pve_zfsbackup.config import kinds
from pve_zfsbackup.config.alerts import Alerts, Webhook
from pve_zfsbackup.config.boxes import Box
from pve_zfsbackup.config.failover import Failover
from pve_zfsbackup.config.hooks import Hooks, Vzdump
from pve_zfsbackup.config.option import DEFAULT_KEEP, KEEP_HELP, option
from pve_zfsbackup.config.targets import Target
from pve_zfsbackup.config.verify import Verify
from pve_zfsbackup.model import DiskPattern, Keep, Quiesce, Selector, SelectorKind

ALL_GUESTS: Final = Selector(kind=SelectorKind.ALL, text="all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """How to reach the Proxmox API."""

    url: str = option(
        "Address of the API. The node itself is best: nothing leaves it.",
        kinds.URL,
        default="https://127.0.0.1:8006",
    )
    token_file: Path = option(
        "File with the API token (USER@REALM!NAME=SECRET), readable by root only. Without the file, "
        "pvesh is used: no token is needed then, but every call takes about a second.",
        kinds.SECRET_PATH,
        default=Path("/etc/pve-zfsbackup/api.token"),
    )
    ca_file: Path = option(
        "CA certificate that signed the certificate of the API.",
        kinds.PATH,
        default=Path("/etc/pve/pve-root-ca.pem"),
    )
    fingerprint: str | None = option(
        "SHA-256 fingerprint of the certificate of the API; used instead of the CA.",
        kinds.FINGERPRINT,
        default=None,
        example=":".join(["AB"] * 32),
    )
    timeout: float = option("How long to wait for an answer.", kinds.seconds(1, 600), default=30.0)
    node: str | None = option(
        "The node whose guests are handled. Without it: this host.", kinds.NODE, default=None, example="pve1"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Which guests are protected, how, and where they are replicated to."""

    name: str = ""  # its key under `jobs`
    guests: tuple[Selector, ...] = option(
        "Guests of this job, as a list. '!' in front leaves guests out (needs quotes: '!tag:scratch'). "
        "* ? [ab] are wildcards; names and tags do not mind upper and lower case.",
        kinds.SELECTOR,
        example="[all]",
    )
    exclude: tuple[Selector, ...] = option(
        "Guests to leave out, as a list of the same words.",
        kinds.SELECTOR,
        default=(),
        example="['tag:scratch', '900-999']",
    )
    exclude_disks: tuple[DiskPattern, ...] = option(
        "Disks to leave out, as a list; * ? [ab] are wildcards. Those with backup=0 are left out anyway.",
        kinds.DISK,
        default=(),
        example="['101:scsi1']",
    )
    quiesce: Quiesce = option(
        "Freeze the file systems in the guest for the moment of the snapshot. prefer: when the guest agent "
        "answers, otherwise the point is crash-consistent and says so; require: no freeze, no point; off: never.",
        kinds.QUIESCE,
        default=Quiesce.PREFER,
    )
    freeze_limit: float = option(
        "How long the command that freezes a guest may take before it is given up. 10 s later, after 28 s at most, a "
        "watchdog thaws the guest whatever happens. Windows gives up after 10 by itself.",
        kinds.seconds(1, 20),
        default=10.0,
    )
    warn_age: float = option(
        "`check` warns when the newest point of a guest, here or on a target, is older; in a box, when it is older by "
        "this and the box's every-hours.",
        kinds.hours(0.01, 100_000),
        default=3.0,
    )
    critical_age: float = option("And this old it is critical.", kinds.hours(0.01, 100_000), default=26.0)
    container_freeze: bool = option(
        "Stop all processes of a container (lxc-freeze) for the moment of the snapshot, so that disks in several "
        "pools show one instant. The applications are not told. Not for containers that use FUSE.",
        kinds.YES_OR_NO,
        default=False,
    )
    before_freeze: tuple[str, ...] = option(
        "Command run on the node before a guest is frozen, as a list of words. When it fails there is no freeze, "
        "and 'quiesce' decides what that means. docs/hooks.md tells its environment.",
        kinds.WORD,
        default=(),
        example="[/usr/local/sbin/pause-app, now]",
    )
    after_thaw: tuple[str, ...] = option(
        "Command run on the node after the guest was thawed, also when something failed.",
        kinds.WORD,
        default=(),
        example="[/usr/local/sbin/resume-app]",
    )
    lock_wait: float = option(
        "How long a run waits, after all other guests had their turn, for guests that Proxmox has locked (backup, "
        "migration, rollback). Then they are left to the next run, which is a failure.",
        kinds.seconds(0, 3600),
        default=300.0,
    )
    targets: tuple[str, ...] = option(
        "Names of the targets the points are replicated to. Without: snapshots on this node only.",
        kinds.TARGET_NAME,
        default=(),
        example="[backup1]",
        refers="targets",
    )
    boxes: tuple[str, ...] = option(
        "Names of the storage boxes the points are archived to, encrypted.",
        kinds.TARGET_NAME,
        default=(),
        example="[box1]",
        refers="boxes",
    )
    skip_unchanged: bool = option(
        "Send no stream of disks that nothing was written to since their last one (EFI, TPM, data at rest). Their "
        "points on the targets refer to an older snapshot, at most a day older, which stays as long; one disk of each "
        "guest is always sent. Where several jobs bring a guest to a target, all of them have to say so.",
        kinds.YES_OR_NO,
        default=False,
    )
    verify_files: tuple[str, ...] = option(
        "Files that a drill must find in each of these guests, as a list: such as one written for that purpose. Found "
        "in whichever file system of the guest has it, mounted anywhere.",
        kinds.GUEST_PATH,
        default=(),
        example="[/srv/data/canary]",
    )
    verify_within: float | None = option(
        "`check` warns when the newest drill of a guest that passed, on any host, is older, or there is none; 0 never "
        "warns. Without it: as soon as any guest was drilled, when that is older than `verify: every` and two weeks "
        "more.",
        kinds.days(0, 3650),
        default=None,
        example="45",
    )
    verify_raw: tuple[DiskPattern, ...] = option(
        "Disks on which a drill need not find a file system, as a list; * ? [ab] are wildcards.",
        kinds.DISK,
        default=(),
        example="['101:scsi2']",
    )
    keep: Keep = option(
        f"History kept on this node. {KEEP_HELP}", kinds.whole(0, 100_000), default=DEFAULT_KEEP, prefix="keep-"
    )

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Fields, good alone, that do not go together, with what is wrong. `values` has the good ones."""
        if values.get("warn_age", 3.0) > values.get("critical_age", 26.0):
            yield "warn_age" if "warn_age" in values else "critical_age", "warn-age is above critical-age"
        guests = values.get("guests", ())
        if guests and all(selector.negated for selector in guests):
            yield "guests", "this only leaves guests out, and so selects none: begin with all"
        if any(selector.negated for selector in values.get("exclude", ())):
            yield "exclude", "'exclude' leaves out what it names: no '!' here"
        for section in ("targets", "boxes"):
            names = values.get(section, ())
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield section, f"{name!r} is named twice"
        for key in ("before_freeze", "after_thaw"):
            if problem := kinds.command_problem(values.get(key, ())):
                yield key, problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file."""

    api: Api = option("How to reach the Proxmox API.", default=Api())
    targets: Mapping[str, Target] = option(
        "Hosts with ZFS that receive replicas over ssh, by a name of your choice.",
        kinds.TARGET_NAME,
        default=dict,
        example="backup1",
    )
    boxes: Mapping[str, Box] = option(
        "Storage without ZFS that takes encrypted archives, by a name of your choice.",
        kinds.TARGET_NAME,
        default=dict,
        example="box1",
    )
    jobs: Mapping[str, Job] = option(
        "Which guests are protected, how, and where they are replicated to, by a name of your choice.",
        kinds.NAME,
        default=dict,
        example="all",
    )
    alerts: Alerts = option("Who is told when something fails, and when it is well again.", default=Alerts())
    webhooks: Mapping[str, Webhook] = option(
        "Services that are told as well, by a name of your choice.", kinds.NAME, default=dict, example="ops"
    )
    failover: Failover = option(
        "Where this host is the one that receives: taking over the guests of another (docs/failover.md).",
        default=Failover(),
    )
    hooks: Hooks = option("Commands of yours at the points of a run (docs/hooks.md).", default=Hooks())
    vzdump: Vzdump = option("What the hook in a vzdump job does (docs/hooks.md).", default=Vzdump())
    verify: Verify = option("How often what is kept is proven (`verify`).", default=Verify())
    timezone: ZoneInfo | None = option(
        "Time zone in which days, weeks and months of the history begin. Without it: the system's.",
        kinds.TIMEZONE,
        default=None,
        example="Europe/Berlin",
    )
    journal_dir: Path = option(
        "Where each run writes its journal (JSON lines). /etc/logrotate.d/pve-zfsbackup rotates it in the default "
        "directory alone: add another one there, or it grows for ever.",
        kinds.PATH,
        default=Path("/var/log/pve-zfsbackup"),
    )
    runtime_dir: Path = option(
        "For the lock and the ssh connection; emptied by a reboot.",
        kinds.PATH,
        default=Path("/run/pve-zfsbackup"),
    )
    state_dir: Path = option(
        "For what outlives a run, such as guests that may be frozen.",
        kinds.PATH,
        default=Path("/var/lib/pve-zfsbackup"),
    )

    @property
    def receives(self) -> bool:
        """Whether this host has replicas of others: then it may have no job of its own."""
        return bool(self.verify.local or self.failover.root)

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Two targets at one place would take each other's replicas for their own."""
        places: dict[tuple[str, int, str], str] = {}
        for name, target in values.get("targets", {}).items():
            other = places.setdefault((target.host.lower(), target.port, target.root), name)
            if other != name:
                yield "targets", f"{other!r} and {name!r} are the same place: one root takes one target"
        # Bookmarks on the source carry the name alone.
        for name in sorted(values.get("targets", {}).keys() & values.get("boxes", {}).keys()):
            yield "boxes", f"{name!r} is the name of a target already"
