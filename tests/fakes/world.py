"""A small cluster in memory: node pve1 with its guests, backup1 behind ssh, one configuration, a clock."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.run import ALL_STAGES, Report, Stage, run
from pve_zfsbackup.app.session import HOLD_TAG, Session, open_session
from pve_zfsbackup.config import load_config
from pve_zfsbackup.events import Event, Outcome, Result
from pve_zfsbackup.host.listing import list_host
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import Dataset, Listing, Point, PointId, Selector, Vmid, parse_selector
from pve_zfsbackup.plan.points import points
from tests.fakes.node import FakeNode, GuestState
from tests.fakes.pools import Clock, Pools, Snap
from tests.fakes.runner import HERE, FakeRunner, Killed

TARGET = "backup1"
ROOT = "tank/backups"
STORAGES = [
    {"storage": "local-zfs", "type": "zfspool", "pool": "rpool/data", "content": "images,rootdir"},
    {"storage": "fast", "type": "zfspool", "pool": "fast", "content": "images"},
    {"storage": "crypt", "type": "zfspool", "pool": "rpool/crypt", "content": "images"},
    {"storage": "local", "type": "dir", "path": "/var/lib/vz", "content": "iso"},
]
CONFIG = """\
api: {{node: pve1, token-file: {place}/no.token}}
targets:
  backup1: {{host: backup1.example, user: backup, root: tank/backups, parallel: 1, keep: {keep}}}
jobs:
  all:
    guests: [all]
    targets: [backup1]
    keep: {keep}
timezone: Europe/Berlin
journal-dir: {place}/log
runtime-dir: {place}/run
state-dir: {place}/state
"""
WEB, DB, MULTI, CT, FILES = 100, 101, 102, 200, 104
GUESTS = {
    WEB: "agent: 1\ncores: 2\nname: web\nscsi0: local-zfs:vm-100-disk-0,size=1G\nscsi1: fast:vm-100-disk-0,size=1G\n",
    DB: "agent: 1\ncores: 1\nname: db\nscsi0: crypt:vm-101-disk-0,size=1G\n",
    CT: "arch: amd64\nhostname: files\nrootfs: local-zfs:subvol-200-disk-0,size=1G\n",
}
DISKS = {
    "rpool/data/vm-100-disk-0": True,
    "fast/vm-100-disk-0": True,
    "rpool/crypt/vm-101-disk-0": True,
    "rpool/data/subvol-200-disk-0": False,
}
REPLICAS = {
    "rpool/data/vm-100-disk-0": f"{ROOT}/local-zfs/vm-100-disk-0",
    "fast/vm-100-disk-0": f"{ROOT}/fast/vm-100-disk-0",
    "rpool/crypt/vm-101-disk-0": f"{ROOT}/crypt/vm-101-disk-0",
    "rpool/data/subvol-200-disk-0": f"{ROOT}/local-zfs/subvol-200-disk-0",
}


@dataclass(slots=True)
class World:
    """Everything of a test. `place` is a directory of the test's own."""

    place: Path
    keep: str = "{keep-last: 3}"
    clock: Clock = field(default_factory=Clock)
    events: list[Event] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None  # what happens while a run waits
    source: Pools = field(init=False)
    target: Pools = field(init=False)
    node: FakeNode = field(init=False)
    runner: FakeRunner = field(init=False)

    def __post_init__(self) -> None:
        self.source, self.target = Pools("pve1", self.clock), Pools(TARGET, self.clock)
        for pool in ("rpool", "fast"):
            self.source.pool(pool)
        self.source.add("rpool/data")
        self.source.add("rpool/crypt", crypt="aes-256-gcm")
        self.target.pool("tank")
        for name, zvol in DISKS.items():
            self.source.add(name, zvol=zvol, crypt="aes-256-gcm" if "crypt" in name else "off")
            self.source.write(name, 1 << 20)
        self.node = FakeNode(etc=self.place / "etc-pve", storages=list(STORAGES))
        self.node.etc.mkdir(exist_ok=True)
        (self.node.etc / "pve-root-ca.pem").write_text("the certificate authority of this cluster\n")
        for vmid, text in GUESTS.items():
            self.node.define(vmid, text)
        pools = {HERE: self.source, TARGET: self.target}
        self.runner = FakeRunner(pools, self.node, {"backup1.example": TARGET})
        self.config = self.place / "config.yaml"
        self.configure(CONFIG)

    config: Path = field(init=False)

    def configure(self, text: str) -> None:
        self.config.write_text(text.format(place=self.place, keep=self.keep))
        self.config.chmod(0o600)

    def impatient(self) -> None:
        """Nothing is tried again within a run."""
        text = self.config.read_text()
        self.config.write_text(text.replace("parallel: 1,", "parallel: 1, retries: 0,"))

    @contextlib.contextmanager
    def session(self, runner: Runner | None = None) -> Iterator[Session]:
        with open_session(load_config(self.config), self.events.append, runner or self.runner) as opened:
            yield self.at_home(opened)

    def at_home(self, session: Session) -> Session:
        """The session of this node, which has its files elsewhere."""
        locks = self.place / "migrate"
        here = dataclasses.replace(session, pve_root=self.node.etc, migration_locks=locks, systemd=True)
        return dataclasses.replace(here, kstat=self.place / "kstat", pause=self.pause, random=lambda: 1.0)

    def pause(self, stop: threading.Event, seconds: float) -> bool:
        """Time goes by at once; what waits is noted."""
        self.waits.append(seconds)
        self.meanwhile()
        return stop.is_set()

    def run(self, *stages: Stage, guests: Sequence[str] = (), jobs: Sequence[str] = ()) -> Report:
        """A run like cron's, an hour after the last one."""
        self.clock.now += 3600
        selectors: tuple[Selector, ...] = tuple(parse_selector(text) for text in guests)
        with self.session() as session:
            return run(session, Scope(jobs=tuple(jobs), guests=selectors), stages or ALL_STAGES)

    def killed_run(self, kill_at: int, when: str) -> bool:
        """A run whose process dies at that command; False when it ended before."""
        self.runner.kill_at, self.runner.kill_when = kill_at, when
        try:
            self.run()
        except Killed:
            return True
        finally:
            self.runner.revive()
        return False

    def copy(self, place: Path) -> World:
        """The same hosts in a parallel world, with the same clock."""
        shutil.copytree(self.place, place, symlinks=True)
        twin = World(place, keep=self.keep, clock=self.clock)
        twin.source, twin.target = (copy.deepcopy(pools, {id(self.clock): self.clock}) for pools in self.hosts)
        twin.runner.pools = {HERE: twin.source, TARGET: twin.target}
        for vmid in twin.node.guests.keys() - self.node.guests.keys():
            twin.node.remove(vmid)
        for path in self.node.etc.glob("*/*.conf"):
            (place / path.relative_to(self.place)).write_text(path.read_text())
        return twin

    @property
    def hosts(self) -> tuple[Pools, Pools]:
        return self.source, self.target

    def guest(self, vmid: int) -> GuestState:
        return self.node.guests[vmid]

    def write(self, size: int = 64 << 10) -> None:
        """Every guest writes to every disk."""
        for name in DISKS:
            if name in self.source.datasets:
                self.source.write(name, size)

    # -- what is there

    def listing(self, host: str) -> Listing:
        """What the product would see, without being counted."""
        quiet = FakeRunner({HERE: self.runner.pools[host]}, self.node, {})
        roots = [Dataset(name) for name in self.runner.pools[host].txgs]
        return list_host(Host(name=host, runner=quiet), roots)

    def points(self, host: str, vmid: int) -> list[Point]:
        listing = self.listing(host)
        if host == HERE:
            listing = dataclasses.replace(listing, host="source")
        return [point for point in points(listing) if point.vmid == vmid]

    def complete(self, host: str, vmid: int) -> list[PointId]:
        return [point.id for point in self.points(host, vmid) if point.complete]

    def results(self, report: Report, outcome: Outcome, vmid: int | None = None) -> list[Result]:
        return [r for r in report.results if r.outcome is outcome and (vmid is None or r.vmid == Vmid(vmid))]


def assert_replicated(world: World, vmids: Sequence[int] = (WEB, DB, CT)) -> None:
    """Both sides have the newest point of each guest, marked, held once, with the same content; all is thawed."""
    for vmid in vmids:
        newest = world.complete(HERE, vmid)[-1]
        assert world.complete(TARGET, vmid)[-1] == newest, f"guest {vmid}: newest point is not on the target"
        there = next(point for point in world.points(TARGET, vmid) if point.id == newest)
        here = next(point for point in world.points(HERE, vmid) if point.id == newest)
        for key, snapshot in there.snapshots.items():
            mine, source = world.target.get(snapshot.full_name), world.source.get(here.snapshots[key].full_name)
            assert (mine.guid, mine.content) == (source.guid, source.content), snapshot.full_name
            assert mine.holds == {HOLD_TAG}, f"{snapshot.full_name} is held by {mine.holds}"
            older = [snap for snap in _snaps(world.target, snapshot.dataset) if snap is not mine]
            assert not any(snap.holds for snap in older), f"old holds on {snapshot.dataset}"
            assert_properties(source, mine)
    assert_safe(world)


def assert_properties(source: Snap, replica: Snap) -> None:
    own = {key: value for key, value in replica.props.items() if key != "pve-zfsbackup:volume"}
    assert own == source.props
    assert replica.props["pve-zfsbackup:volume"]


def assert_safe(world: World) -> None:
    """Holds between any two commands: no lie, and nothing of anybody else is touched."""
    for vmid, state in world.node.guests.items():
        assert not state.frozen, f"guest {vmid} is frozen"
    assert not world.runner.timers, "a watchdog was left behind"
    assert not any(snap.holds for ds in world.source.datasets.values() for snap in ds.snaps.values()), "held source"
    for host, pools in world.runner.pools.items():
        for dataset in pools.datasets.values():
            assert dataset.partial is None, f"{host}: {dataset.name} is half received"


def _snaps(pools: Pools, dataset: str) -> list[Snap]:
    return list(pools.datasets[dataset].snaps.values())
