"""`verify drill`: open the newest point of each guest that is due, and see whether it is what a restore would need.

It runs where the snapshots are: on the node with its own, or, as root on a target, with the replicas there. No source
gets a right for it on a target.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from pve_zfsbackup.app.boot import Boots, boots, judged_boot, sweep_boots
from pve_zfsbackup.app.files import sweep_files
from pve_zfsbackup.app.gather import Scope, assign, inventory
from pve_zfsbackup.app.outcome import failed
from pve_zfsbackup.app.planting import planted
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.tries import Tries
from pve_zfsbackup.config import Config, Job
from pve_zfsbackup.errors import BackupError, ConfigError, LockedError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.boot import LOCK, Yard
from pve_zfsbackup.host.clones import Bench, sweep
from pve_zfsbackup.host.drill import Drill
from pve_zfsbackup.host.health import pool_of
from pve_zfsbackup.host.listing import list_target, require
from pve_zfsbackup.host.lock import run_lock
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import SOURCE, Dataset, Guest, Listing, Point, Selector, SelectorKind, Vmid
from pve_zfsbackup.model.canary import PATH
from pve_zfsbackup.model.drill import Contents, Drilled, Expected, Judgement
from pve_zfsbackup.model.proof import VERIFIED, Level, Proof, Reading, encode_proof
from pve_zfsbackup.model.stages import DRILL, SWEEP
from pve_zfsbackup.plan.drill import Turn, closed, judged, turns
from pve_zfsbackup.plan.points import guest_points

STAGE = DRILL
LOCAL = "here"  # what a target calls itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where guests are drilled, and what is known of them. `place` is "source", or the root of the replicas."""

    place: str
    bench: Bench
    boots: Boots
    listing: Listing
    guests: Mapping[Vmid, Sequence[Point]]
    names: Mapping[Vmid, str] = field(default_factory=dict)
    jobs: Mapping[Vmid, tuple[str, ...]] = field(default_factory=dict)
    expected: Mapping[Vmid, Expected] = field(default_factory=dict)

    @property
    def pools(self) -> tuple[str, ...]:
        return pools_of(self.listing.roots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the administrator wants of one call. `every` and `budget` in seconds; `named`: due or not, and whatever
    it takes; `boot`: also started, if it is a VM whose disks are good."""

    every: float
    budget: float
    reading: Reading
    named: bool = False
    boot: bool = False


def on_node(session: Session, scope: Scope) -> Ground:
    """The guests in scope with the points of this node. Raises what keeps it from knowing them."""
    found = inventory(session)
    items, _ = assign(session, found, scope)
    own, known = guest_points(found.listing), planted(session.config)
    place = bench(session.hosts[SOURCE], session.config)
    return Ground(
        place=SOURCE,
        bench=place,
        boots=boots(place, _yard(session)),
        listing=found.listing,
        guests={item.guest.vmid: own.of(item.guest.vmid) for item in items},
        names={item.guest.vmid: item.guest.name for item in items},
        jobs={item.guest.vmid: item.names for item in items},
        expected={
            item.guest.vmid: replace(expected(item.guest, item.jobs), planted=tuple(known.get(item.guest.vmid, ())))
            for item in items
        },
    )


def on_target(config: Config, runner: Runner, root: Dataset, selectors: Sequence[Selector], wanted: Expected) -> Ground:
    """The guests whose replicas lie below a root of this very host. Raises `ConfigError` for one that is not there."""
    host = Host(name=LOCAL, runner=runner)
    listing = list_target(host, root)
    require(listing, root)
    own = guest_points(listing)
    if bad := [selector.text for selector in selectors if selector.kind is not SelectorKind.VMID or selector.negated]:
        raise ConfigError([f"{text}: here only vmids and ranges are known" for text in bad])
    chosen = [vmid for vmid in own.vmids if not selectors or any(s.low <= vmid <= s.high for s in selectors)]
    missing = [s.text for s in selectors if not any(s.low <= vmid <= s.high for vmid in chosen)]
    if missing:
        raise ConfigError([f"{text}: no such guest has points below {root}" for text in missing])
    place = bench(host, config)
    return Ground(
        place=root,
        bench=place,
        boots=boots(place, Yard(runner=runner)),
        listing=listing,
        guests={vmid: own.of(vmid) for vmid in chosen},
        expected=dict.fromkeys(chosen, wanted),
    )


def bench(host: Host, config: Config) -> Bench:
    return Bench(host=host, place=config.runtime_dir / "drill")


def expected(guest: Guest, jobs: Sequence[Job]) -> Expected:
    """What all jobs of a guest want to find there."""
    files = dict.fromkeys(path for job in jobs for path in job.verify_files)
    patterns = [pattern for job in jobs for pattern in job.verify_raw if pattern.vmid in (None, guest.vmid)]
    raw = {disk.key for disk in guest.disks if any(fnmatchcase(disk.key, pattern.key) for pattern in patterns)}
    return Expected(files=tuple(files), raw=frozenset(raw))


def drilling_alone(config: Config) -> AbstractContextManager[None]:
    """One drill at a time on a host: each sweeps what it finds. Raises `LockedError`."""
    return run_lock(config.runtime_dir, LOCK)


def drill(
    ground: Ground, rules: Rules, config: Config, now: float | None = None
) -> Generator[Drilled | Result, None, None]:
    """Drill one guest after another, those that wait longest first; each ends for itself.

    To be called `drilling_alone`: what a killed drill left is swept first. Raises `VerificationError` when something is
    left that does not go.
    """
    started, now = time.monotonic(), time.time() if now is None else now
    if rules.boot and not ground.boots.yard.there:
        raise ConfigError([f"no guest can be started here: {ground.boots.yard.root} is not mounted: is this Proxmox?"])
    yield from _swept(ground.bench, ground.boots, config, ground.pools)
    tries = Tries(config, ground.place)
    order = turns(ground.guests, now=int(now), every=rules.every, tried=tries.known)
    waiting = [turn for turn in order if rules.named or turn.due]
    for number, turn in enumerate(waiting):
        if not rules.named and time.monotonic() - started >= rules.budget:
            yield _left(waiting[number:])
            return
        begun = int(now + time.monotonic() - started)
        yield from tries.note(turn.vmid, begun)
        yield from _turn(ground, rules, turn, begun)


def _swept(place: Bench, own: Boots, config: Config, pools: Sequence[str]) -> Iterator[Result]:
    for told in sweep_boots(own, pools):
        yield Result(stage=SWEEP, outcome=Outcome.WARNING, message=f"a boot drill was killed: {told}")
    for told in sweep(place, pools):
        yield Result(stage=SWEEP, outcome=Outcome.WARNING, message=f"a drill was killed: {told}")
    for told in sweep_files(place, config, pools):
        yield Result(stage=SWEEP, outcome=Outcome.WARNING, message=f"a `restore --files` was killed: {told}")


def sweep_strays(session: Session) -> Iterator[Result]:
    """The same for a run on a node where a killed boot drill left a guest: it may run on, takes memory, and its clones
    keep their snapshots. Not while a drill is at work; what does not go is a failure, and stops nothing."""
    try:
        with drilling_alone(session.config):
            place = bench(session.hosts[SOURCE], session.config)
            roots = inventory(session).listing.roots
            yield from _swept(place, boots(place, _yard(session)), session.config, pools_of(roots))
    except LockedError:
        return
    except BackupError as error:
        yield failed(SWEEP, error)
    except OSError as error:  # Proxmox's file system: no reason to break off a run that did its work
        told = f"a guest that a killed drill left cannot be taken away: {error.strerror}"
        yield failed(SWEEP, BackupError(told, hint="is /etc/pve mounted? The next run tries again"))


def _yard(session: Session) -> Yard:
    return Yard(runner=session.runner, root=session.pve_root, locks=session.migration_locks.parent)


def pools_of(roots: Iterable[Dataset]) -> tuple[str, ...]:
    return tuple(sorted({pool_of(root) for root in roots}))


def _left(turns_left: Sequence[Turn]) -> Result:
    names = ", ".join(str(turn.vmid) for turn in turns_left)
    return Result(
        stage=STAGE,
        outcome=Outcome.SKIPPED,
        message=f"the time is over: {len(turns_left)} guests are left to the next drill: {names}",
        hint="give it more `budget`, or drill more often, if they never have their turn",
    )


def _turn(ground: Ground, rules: Rules, turn: Turn, now: int) -> Generator[Drilled | Result, None, None]:
    started = time.monotonic()
    try:
        contents, judgement = _proven(ground, rules, turn)
        _note(ground, turn, judgement, now)
        end = None
        if rules.boot and judgement.level.drilled:
            judgement, end = judged_boot(ground.boots, ground.listing, turn.point, judgement)
            _note(ground, turn, judgement, now)
    except Exception as error:  # also a bug of ours is this guest's alone
        result = failed(STAGE, error, host=_where(ground))
        name = ground.names.get(turn.vmid, "")
        yield Result(
            stage=STAGE, outcome=result.outcome, vmid=turn.vmid, guest=name, host=result.host, point=turn.point.id,
            message=f"could not be drilled: {result.message}", hint=result.hint, details=result.details,
            jobs=ground.jobs.get(turn.vmid, ()),
        )  # fmt: skip
        return
    yield Drilled(
        vmid=turn.vmid,
        guest=ground.names.get(turn.vmid, ""),
        host=_where(ground),
        point=turn.point.id,
        judgement=judgement,
        contents=contents,
        seconds=time.monotonic() - started,
        booted=end,
        jobs=ground.jobs.get(turn.vmid, ()),
    )


def _where(ground: Ground) -> str:
    return "" if ground.bench.host.name == SOURCE else ground.bench.host.name


def _proven(ground: Ground, rules: Rules, turn: Turn) -> tuple[Contents, Judgement]:
    point, volumes = turn.point, ground.listing.volumes
    locked = closed(point, volumes)
    if locked:
        told = f"{', '.join(locked)}: encrypted, and the key is not loaded here: only the chain can be proven"
        return Contents(), Judgement(level=Level.POINTS, notes=(told,))
    wanted = ground.expected.get(turn.vmid, Expected())
    disks = {key: (snap, volumes[snap.dataset].type == "volume") for key, snap in point.snapshots.items()}
    contents = Drill(bench=ground.bench, files=wanted.files, canary=PATH, reading=rules.reading).look(disks)
    return contents, judged(contents, wanted, point)


def _note(ground: Ground, turn: Turn, judgement: Judgement, now: int) -> None:
    """On the snapshots themselves, on the host where it was proven. What was booted stays so, and since when it was,
    while nothing fails. A drill that could not look into anything proves nothing, the chain neither."""
    if judgement.level is Level.POINTS:
        return
    known = turn.point.proof
    if known and judgement.level is not Level.FAILED and known.level.rank > judgement.level.rank:
        return
    value = encode_proof(Proof(level=judgement.level, at=now))
    names = [snapshot.full_name for snapshot in turn.point.own.values()]
    zfs.set_properties(ground.bench.host, names, {VERIFIED: value})


def as_result(ended: Drilled | Result) -> Result:
    """A drill as a result of a run has it: for alerts, the journal and the exit code."""
    if isinstance(ended, Result):
        return ended
    judgement = ended.judgement
    good = Outcome.SKIPPED if judgement.level is Level.POINTS else Outcome.OK
    return Result(
        stage=STAGE,
        outcome=Outcome.FAILED if judgement.problems else good,
        vmid=ended.vmid,
        guest=ended.guest,
        host=ended.host,
        point=ended.point,
        message="; ".join(judgement.problems) or f"drill: {judgement.level}",
        hint="look into it before it is needed: take a new point, and drill it again" if judgement.problems else "",
        seconds=ended.seconds,
        details=judgement.notes,
        jobs=ended.jobs,
    )


def as_told(ended: Drilled | Result) -> dict[str, object]:
    """What the journal has of a drill besides its result."""
    boot = {"boot_seconds": round(ended.booted.seconds, 3)} if isinstance(ended, Drilled) and ended.booted else {}
    return {"level": ended.judgement.level.value, **boot} if isinstance(ended, Drilled) else {}
