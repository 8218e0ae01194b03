"""Long lives of a guest with two disks and two targets: runs that are cut, targets that are away, people who meddle.

Every step goes through `project`, which refuses what ZFS would refuse.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from pve_zfsbackup.model import (
    SOURCE,
    Conflict,
    CreateParent,
    Dataset,
    Destroy,
    Disk,
    Guid,
    Keep,
    Plan,
    Quiesce,
    ResumeToken,
    Send,
    Snapshot,
    Step,
    Vmid,
    Volume,
    World,
)
from pve_zfsbackup.plan.pairing import common_base, compare
from pve_zfsbackup.plan.points import bookmark_target, points
from pve_zfsbackup.plan.project import project
from pve_zfsbackup.plan.prune import PrunePolicy, plan_prune, survey
from pve_zfsbackup.plan.replication import ReplicationPolicy, phases, plan_replication
from pve_zfsbackup.plan.snapshot import plan_snapshot
from pve_zfsbackup.plan.unchanged import NO_REFERENCES, references
from tests.plan.worlds import DISK, GUEST, OTHER, OTHER_DISK, ROOT, TAG, ZVOL, listing

TARGETS = ("backup1", "backup2")
POLICIES = {host: ReplicationPolicy(host=host, root=ROOT, hold_tag=TAG) for host in TARGETS}
KEEP = {SOURCE: (Keep(last=2),), "backup1": (Keep(last=3, daily=2),), "backup2": (Keep(last=1),)}
DISKS = (DISK, OTHER_DISK)


@dataclass
class Life:
    chance: random.Random
    now: int = 1_795_000_000
    world: World = field(default_factory=dict)
    counter: int = 100
    away: set[str] = field(default_factory=set)
    sparing: bool = False  # skip-unchanged: then every disk has its history of contents, and it is compared
    contents: dict[Guid, tuple[int, ...]] = field(default_factory=dict)  # of snapshots
    spared: int = 0

    def __post_init__(self) -> None:
        made = [Volume(name=name, guid=self.fresh(), type="volume") for name in (ZVOL, OTHER)]
        self.world = {SOURCE: listing(SOURCE, *made), **{host: listing(host) for host in TARGETS}}

    def fresh(self) -> Guid:
        self.counter += 1
        return Guid(str(self.counter * 2_000_000_000_000_003))

    def put(self, host: str, volume: Volume) -> None:
        volumes = {**self.world[host].volumes, volume.name: volume}
        self.world = {**self.world, host: replace(self.world[host], volumes=volumes)}

    def carry_out(self, plans: list[Plan]) -> None:
        """As the replicate stage does it: all parents, all streams, then each disk's rest; cut anywhere."""
        parts = [phases(plan) for plan in plans]
        self.do(tuple(step for index in range(3) for part in parts for step in part[index]))

    def do(self, steps: tuple[Step, ...], *, may_cut: bool = True) -> bool:
        """Carry the steps out, sometimes only some of them; whether all were."""
        count = len(steps)
        if may_cut and steps and self.chance.random() < 0.3:
            count = self.chance.randrange(len(steps))
        for step in steps[:count]:
            if not (isinstance(step, CreateParent) and step.dataset in self.world[step.host].volumes):
                self.world = project(self.world, [step])
        cut = steps[count] if count < len(steps) else None
        if isinstance(cut, Send) and self.chance.random() < 0.7:
            self.cut_send(cut)
        return count == len(steps)

    def cut_send(self, step: Send) -> None:
        """The receive is interrupted half-way and leaves a token."""
        first = (*step.through, step.snapshot)[0]
        base = step.base.guid if step.base else Guid("")
        token = ResumeToken(token=str(self.fresh()), to_guid=first.guid, from_guid=base, raw=step.raw)
        volume = self.world[step.host].volumes.get(step.dataset)
        volume = volume or Volume(name=step.dataset, guid=self.fresh(), type="volume")
        self.put(step.host, replace(volume, resume=token))

    def snapshot(self) -> None:
        self.now += self.chance.choice([600, 3600, 50_000])
        when = datetime.fromtimestamp(self.now, UTC)
        guest = replace(GUEST, disks=DISKS)
        suffix = f"{self.chance.randrange(65536):04x}"
        if self.sparing:
            self.write()
        plan = plan_snapshot(guest, self.world[SOURCE], now=when, suffix=suffix, quiesce=Quiesce.OFF)
        self.do(plan.steps, may_cut=False)
        self.remember()
        if self.chance.random() < 0.1:  # the second pool's snapshot failed
            volume = self.world[SOURCE].volumes[OTHER]
            self.put(SOURCE, self.without(volume, volume.snapshots[-1]))

    def write(self) -> None:
        for name in (ZVOL, OTHER):
            volume = self.world[SOURCE].volumes[name]
            size = self.chance.choice((0, 0, 0, 7))
            self.put(SOURCE, replace(volume, written=volume.written + size, refer=volume.refer + size))

    def remember(self) -> None:
        """`refer` only grows here, so it stands for the content."""
        for volume in self.world[SOURCE].volumes.values():
            for made in volume.snapshots:
                self.contents.setdefault(made.guid, (int(volume.guid), made.refer))

    @staticmethod
    def without(volume: Volume, gone: Snapshot) -> Volume:
        """ZFS reckons what was written from the snapshot before."""
        left = [found for found in volume.snapshots if found != gone]
        later = [found for found in left if found.createtxg > gone.createtxg]
        if not later:
            return replace(volume, snapshots=tuple(left), written=volume.written + gone.written)
        heir = min(later, key=lambda found: found.createtxg)
        own = replace(heir, written=heir.written + gone.written)
        return replace(volume, snapshots=tuple(own if found == heir else found for found in left))

    def check_contents(self) -> None:
        """Whatever a complete point of a target consists of is what its disks had when it was taken."""
        taken = {}
        for volume in self.world[SOURCE].volumes.values():
            taken |= {(s.point, volume.guid): self.contents[s.guid] for s in volume.snapshots if s.point}
        for host in TARGETS:
            for point in (point for point in points(self.world[host]) if point.complete):
                for key, found in point.snapshots.items():
                    self.spared += key in point.borrowed
                    wanted = taken.get((point.id, found.volume))
                    assert wanted in (None, self.contents[found.guid]), (point.id, key)

    def replicate(self) -> None:
        for host in TARGETS:
            if host not in self.away:
                sides = compare(self.world[SOURCE], self.world[host])
                spared = references(DISKS, sides, POLICIES[host]) if self.sparing else NO_REFERENCES
                plans = [plan_replication(disk, sides, POLICIES[host], spared) for disk in DISKS]
                if self.chance.random() < 0.5:
                    self.carry_out(plans)
                    continue
                for disk, plan in zip(DISKS, plans, strict=True):
                    assert plan.reasons
                    self.check_conflicts(plan.conflicts)
                    overtaken = any("cannot be sent" in warning for warning in plan.warnings)
                    if self.do(plan.steps) and not plan.conflicts:
                        self.check_settled(disk, host, overtaken=overtaken)

    def check_settled(self, disk: Disk, host: str, *, overtaken: bool) -> None:
        sides = compare(self.world[SOURCE], self.world[host])
        spared = references(DISKS, sides, POLICIES[host]) if self.sparing else NO_REFERENCES
        again = plan_replication(disk, sides, POLICIES[host], spared)
        assert (again.steps, again.conflicts) == ((), ())
        assert disk.dataset is not None
        if self.sparing:
            return  # what stands for it may be there; `check_contents` looks
        wanted = [s for s in sides.source.volumes[disk.dataset].snapshots if s.point in sides.complete]
        there = {s.guid for volume in sides.target.volumes.values() for s in volume.snapshots if s.point}
        assert overtaken or not wanted or wanted[-1].guid in there

    def check_conflicts(self, conflicts: tuple[Conflict, ...]) -> None:
        assert not conflicts, "nobody touched the targets"

    def prune(self) -> None:
        seen = {host: found for host, found in self.world.items() if host not in self.away}
        policy = PrunePolicy(keep=KEEP, silent=frozenset(self.away))
        decided = plan_prune(Vmid(100), survey(seen), policy, tz=UTC, now=self.now)
        steps = decided.plan.steps
        assert all(step.snapshot.point for step in steps if isinstance(step, Destroy))
        before = self.bases()
        complete = {host: [p.id for p in points(found) if p.complete] for host, found in self.world.items()}
        self.do(steps)
        after = self.bases()
        assert before == after
        going = {(verdict.host, verdict.point.id) for verdict in decided.verdicts if not verdict.keep}
        for host, whole in complete.items():
            left = [p.id for p in points(self.world[host]) if p.complete]
            assert left[-1:] == whole[-1:]
            assert {id_ for id_ in whole if (host, id_) not in going} <= set(left), "what stays, stays whole"

    def bases(self) -> dict[tuple[str, Dataset, Dataset], Guid]:
        """The newest common guid of every pair, wherever the target is."""
        found = {}
        for host in TARGETS:
            for volume in self.world[SOURCE].volumes.values():
                for replica in self.world[host].volumes.values():
                    base = common_base(volume, replica)
                    if base is not None:
                        found[host, volume.name, replica.name] = base.guid
        return found

    def leave(self) -> None:
        self.away ^= {self.chance.choice(TARGETS)}

    def foreign_snapshot(self) -> None:
        """A person's, or Proxmox's."""
        name = self.chance.choice((ZVOL, OTHER))
        volume = self.world[SOURCE].volumes[name]
        pool = [v for v in self.world[SOURCE].volumes.values() if v.name.split("/")[0] == name.split("/")[0]]
        txg = max((i.createtxg for v in pool for i in v.snapshots + v.bookmarks), default=0) + 1
        made = Snapshot(dataset=name, name=f"x{txg}", guid=self.fresh(), createtxg=txg, creation=self.now)
        made = replace(made, refer=volume.refer, written=volume.written)
        self.put(SOURCE, replace(volume, snapshots=(*volume.snapshots, made), written=0))
        self.remember()

    def lose_snapshot(self) -> None:
        """Somebody destroys one of ours on the source, with whatever bookmarks there are left standing."""
        name = self.chance.choice((ZVOL, OTHER))
        volume = self.world[SOURCE].volumes[name]
        rest = [found for found in volume.snapshots if self.chance.random() > 0.3]
        marked = {(bookmark_target(bookmark), bookmark.guid) for bookmark in volume.bookmarks}
        based = {(host, guid) for (host, dataset, _), guid in self.bases().items() if dataset == name}
        unmarked = {guid for _, guid in based - marked}
        for found in volume.snapshots:
            if found not in rest and found.guid not in unmarked:
                there = self.world[SOURCE].volumes[name]
                gone = next(s for s in there.snapshots if s.guid == found.guid)
                self.put(SOURCE, self.without(there, gone))

    def recreate_disk(self) -> None:
        """`qm destroy`, `qm create`: the name lives on, with a new identity."""
        name = self.chance.choice((ZVOL, OTHER))
        self.put(SOURCE, Volume(name=name, guid=self.fresh(), type="volume"))

    def rename_replica(self) -> None:
        host = self.chance.choice(TARGETS)
        volumes = dict(self.world[host].volumes)
        replicas = [name for name, volume in volumes.items() if volume.snapshots]
        if replicas:
            old = volumes.pop(self.chance.choice(replicas))
            name = Dataset(f"{ROOT}/moved-{self.fresh()}")
            own = tuple(replace(found, dataset=name) for found in old.snapshots)
            volumes[name] = replace(old, name=name, snapshots=own)
            self.world = {**self.world, host: replace(self.world[host], volumes=volumes)}


def live(seed: int, rare: tuple[Callable[[Life], None], ...], *, sparing: bool = False) -> Life:
    life = Life(random.Random(seed), sparing=sparing)
    for _ in range(40):
        act = life.chance.choice([Life.snapshot, Life.snapshot, Life.replicate, Life.replicate, Life.prune, *rare])
        act(life)
        life.check_contents()
    life.away.clear()
    for _ in range(3):
        life.snapshot()
        life.replicate()
        life.prune()
        life.check_contents()
    return life


@pytest.mark.parametrize("seed", range(60))
def test_runs_that_are_cut_and_targets_that_are_away(seed: int) -> None:
    life = live(seed, (Life.leave, Life.foreign_snapshot))
    assert all(len(life.world[host].volumes) <= 5 for host in TARGETS), "one replica per disk: no second generation"


@pytest.mark.parametrize("seed", range(60))
def test_lost_snapshots_and_renamed_replicas(seed: int) -> None:
    life = live(seed, (Life.leave, Life.foreign_snapshot, Life.lose_snapshot, Life.rename_replica))
    for host in TARGETS:
        assert sum(bool(volume.snapshots) for volume in life.world[host].volumes.values()) <= 2


@pytest.mark.parametrize("seed", range(40))
def test_disks_made_anew_under_their_old_names(seed: int) -> None:
    """Each gets a generation of its own; nothing of the old ones is overwritten, no conflict arises."""
    life = live(seed, (Life.leave, Life.recreate_disk, Life.foreign_snapshot))
    for host in TARGETS:
        sources = [{found.volume for found in v.snapshots if found.volume} for v in life.world[host].volumes.values()]
        assert all(len(guids) <= 1 for guids in sources)


@pytest.mark.parametrize("seed", range(12))
def test_points_by_reference_have_the_content_they_had_on_the_source(seed: int) -> None:
    """Also when runs are cut, snapshots are lost, replicas renamed and others snapshot as well; and in the end all
    newest points are whole."""
    rare = (Life.leave, Life.foreign_snapshot, Life.lose_snapshot, Life.rename_replica, Life.recreate_disk)
    spared = 0
    for number in range(6):
        life = live(6 * seed + number, rare[: 2 + number % 4], sparing=True)
        spared += life.spared
        for host in TARGETS:
            for _ in range(6):  # a run may be cut
                life.replicate()
            here, there = ([p for p in points(life.world[h]) if p.complete][-1] for h in (SOURCE, host))
            assert here.id == there.id
    assert spared > 50
