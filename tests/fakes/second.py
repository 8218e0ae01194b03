"""The host with the replicas, as a Proxmox node of its own that has lost its source."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pve_zfsbackup.app.session import Session, open_session
from pve_zfsbackup.config import load_config
from pve_zfsbackup.events import Event
from tests.fakes.node import FakeNode
from tests.fakes.pools import Pools
from tests.fakes.runner import HERE, FakeRunner
from tests.fakes.world import ROOT, TARGET, World

FIRST = "first"  # what the source is called from here
STORAGES = [
    {"storage": "local-zfs", "type": "zfspool", "pool": "tank/data", "content": "images,rootdir"},
    {"storage": "fast", "type": "zfspool", "pool": "ssd", "content": "images"},
    {"storage": "crypt", "type": "zfspool", "pool": "tank/data", "content": "images"},
]
CONFIG = """\
api: {{node: backup1, token-file: {place}/no.token}}
failover: {{root: {root}, source: pve1.example}}
timezone: Europe/Berlin
journal-dir: {place}/log2
runtime-dir: {place}/run2
state-dir: {place}/state2
"""


@dataclass(slots=True)
class Second:
    """`first` is the cluster in memory as the source saw it; its target's pools are the local ones here."""

    first: World
    events: list[Event] = field(default_factory=list)
    node: FakeNode = field(init=False)
    runner: FakeRunner = field(init=False)

    def __post_init__(self) -> None:
        place = self.first.place
        self.pools.pool("ssd")
        self.pools.add("tank/data")
        self.node = FakeNode(etc=place / "etc-pve2", name=TARGET, storages=list(STORAGES))
        (self.node.etc / "pve-root-ca.pem").write_text("another certificate authority\n")
        self.runner = FakeRunner(
            {HERE: self.pools, FIRST: self.first.source},
            self.node,
            {"pve1.example": FIRST},
            nodes={FIRST: self.first.node},
        )
        self.config = place / "second.yaml"
        self.config.write_text(CONFIG.format(place=place, root=ROOT))
        self.config.chmod(0o600)

    config: Path = field(init=False)

    @property
    def pools(self) -> Pools:
        return self.first.target

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        with open_session(load_config(self.config), self.events.append, self.runner) as opened:
            locks = self.first.place / "migrate2"
            here = dataclasses.replace(opened, pve_root=self.node.etc, migration_locks=locks, systemd=True)
            yield dataclasses.replace(here, kstat=self.first.place / "kstat2", pause=self.first.pause)
