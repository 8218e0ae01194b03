"""What a command works with: the configuration, one API session, the hosts, one connection per target."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from pve_zfsbackup.config import Config, Target, read_secret
from pve_zfsbackup.events import Emit
from pve_zfsbackup.execute import Executor
from pve_zfsbackup.host.agent import Agent, ApiAgent, NodeAgent, QmAgent
from pve_zfsbackup.host.api import Api, Token
from pve_zfsbackup.host.container import ContainerFreezer
from pve_zfsbackup.host.guests import config_bytes, is_running, node_name
from pve_zfsbackup.host.health import KSTAT
from pve_zfsbackup.host.hooks import freeze_hook
from pve_zfsbackup.host.lock import MIGRATION_LOCKS, migration_lock
from pve_zfsbackup.host.pace import Pace
from pve_zfsbackup.host.programs import ProcessPrograms, Programs
from pve_zfsbackup.host.quiesce import Quiescer
from pve_zfsbackup.host.runner import ProcessRunner, Runner
from pve_zfsbackup.host.ssh import Destination, Host, Link, connected
from pve_zfsbackup.host.vigil import TASKS, Vigil
from pve_zfsbackup.host.watchdog import BOOTED, ChildWatchdog, SystemdWatchdog
from pve_zfsbackup.model import SOURCE, Guest, GuestKind, rate_at

HOLD_TAG = "pve-zfsbackup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What a command knows without Proxmox: it may run on a target."""

    config: Config
    runner: Runner
    node: str

    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(Home):
    """Everything of one command. `hosts` has SOURCE and every target; nothing is connected before it is used."""

    api: Api
    agent: Agent
    hosts: Mapping[str, Host]
    emit: Emit
    pve_root: Path = field(default=Path("/etc/pve"))
    programs: Programs = field(default_factory=ProcessPrograms)
    pause: Callable[[threading.Event, float], bool] = threading.Event.wait
    random: Callable[[], float] = random.random
    kstat: Path = field(default=KSTAT)
    tasks: Path = field(default=TASKS)
    migration_locks: Path = MIGRATION_LOCKS
    own_lock: str = ""  # the lock of the task that called us: no reason to wait for its end
    patient: bool = True  # locked guests are waited for as their jobs say; else they are skipped
    systemd: bool = field(default_factory=BOOTED.is_dir)

    @property
    def executor(self) -> Executor:
        return Executor(hosts=self.hosts, emit=self.emit)

    def vigil(self, guests: Iterable[Guest]) -> Vigil:
        """Who sees when Proxmox takes one of their disks away."""
        return Vigil(guests, root=self.pve_root, tasks=self.tasks)

    @property
    def quiescer(self) -> Quiescer:
        markers = self.config.state_dir / "frozen"
        watchdog = SystemdWatchdog(self.runner) if self.systemd else ChildWatchdog(self.runner, markers)
        return Quiescer(
            agents={GuestKind.VM: self.agent, GuestKind.CT: ContainerFreezer(self.runner)},
            watchdog=watchdog,
            markers=markers,
            running=lambda guest: is_running(self.api, guest),
            migration=lambda vmid: migration_lock(vmid, directory=self.migration_locks),
            unchanged=lambda guest: config_bytes(guest.vmid, guest.kind, self.pve_root, guest.digest),
            hook=freeze_hook(self.runner, self.config.hooks.timeout),
        )

    @property
    def timezone(self) -> tzinfo:
        """Where days and weeks begin: with its rules for summer time, which an offset of today would not have."""
        return timezone(self.config)


@contextlib.contextmanager
def open_session(config: Config, emit: Emit, runner: Runner | None = None) -> Iterator[Session]:
    """A session whose connections are closed at the end, whatever happened."""
    runner = runner or ProcessRunner()
    node = node_name(config.api.node or "")
    with contextlib.ExitStack() as stack:
        api, agent = _api(config, runner, node, stack)
        hosts = {SOURCE: Host(name=SOURCE, runner=runner)}
        for name, target in config.targets.items():
            destination = destination_of(target, config.runtime_dir)
            host = Host(name=name, runner=runner, destination=destination, link=link(config, target))
            hosts[name] = stack.enter_context(connected(host))
        yield Session(config=config, api=api, agent=agent, node=node, runner=runner, hosts=hosts, emit=emit)


def link(config: Config, target: Target) -> Link:
    """How streams travel to a target: its limits hold for all of them together."""
    pace = Pace(lambda: rate_now(config, target)) if target.rate or target.rate_schedule else None
    return Link(stall=target.stall, pace=pace, mbuffer=target.mbuffer or 0)


def rate_now(config: Config, target: Target) -> int:
    """The bytes per second that may go to a target now, 0 for as many as it takes."""
    return rate_at(target.rate_schedule, target.rate, datetime.now(timezone(config)))


def timezone(config: Config) -> tzinfo:
    """The zone the configuration names, or the system's."""
    return config.timezone or _system_zone()


def _system_zone() -> tzinfo:
    try:
        with open("/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file)
    except FileNotFoundError:
        return UTC


def _api(config: Config, runner: Runner, node: str, stack: contextlib.ExitStack) -> tuple[Api, Agent]:
    """HTTPS where there is a token; before `setup` made one, `pvesh` and `qm` as root. Each is loaded where it is
    used: requests and all below it take as long as the rest of a `snapshot`."""
    if not config.api.token_file.exists():
        from pve_zfsbackup.host.pvesh import PveshApi  # noqa: PLC0415 - see above

        return PveshApi(runner), QmAgent(runner)
    from pve_zfsbackup.host.pve import HttpsApi  # noqa: PLC0415 - see above

    https = HttpsApi(
        config.api.url,
        Token.parse(read_secret(config.api.token_file).reveal()),
        ca_file=config.api.ca_file,
        fingerprint=config.api.fingerprint,
        timeout=config.api.timeout,
    )
    api = stack.enter_context(https)
    return api, NodeAgent(ApiAgent(api, node), QmAgent(runner))


def destination_of(target: Target, runtime: Path) -> Destination:
    return Destination(
        host=target.host,
        user=target.user,
        port=target.port,
        identity=target.identity_file,
        known_hosts=target.known_hosts_file,
        # Of this process alone: who is done closes the connection, and `status` shall not cut the streams of a run.
        control=runtime / f"{target.name}.{os.getpid()}",
        connect_timeout=int(target.connect_timeout),
    )
