"""`check` and `metrics`: is every guest protected as its jobs promise? Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace

from pve_zfsbackup.app.conditions import Conditions, conditions, judged
from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.history import Coverage, History, history
from pve_zfsbackup.app.leavings import STRAY
from pve_zfsbackup.app.moved import moved
from pve_zfsbackup.app.overdue import findings as of_stages
from pve_zfsbackup.app.overdue import overdue
from pve_zfsbackup.app.proofs import DAY, drills_begun, verification_of
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.config import Config
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host.health import pool_of
from pve_zfsbackup.host.journal import read_journal
from pve_zfsbackup.host.pools import read_pools
from pve_zfsbackup.model import SOURCE, Disk, Vmid
from pve_zfsbackup.model.aside import PutAside
from pve_zfsbackup.model.health import Age, Disks, Due, Finding, Health, Level, Pool, Verification
from pve_zfsbackup.model.points import SKEW
from pve_zfsbackup.model.proof import Level as Proven
from pve_zfsbackup.model.room import Outlook, Room, rooms
from pve_zfsbackup.plan.audit import is_explained
from pve_zfsbackup.plan.forecast import outlook
from pve_zfsbackup.plan.obstacles import readable
from pve_zfsbackup.plan.past import past_rooms

FULL_WARN, FULL_CRITICAL = 0.85, 0.95  # ZFS slows down from about 90 % on, and a full pool stops its guests
SOON_WARN, SOON_CRITICAL = 14.0, 3.0  # days until a root is full
ASIDE_WARN = 7 * 86_400  # seconds in which one finds out whether what was put aside is needed
_WORST_FIRST = (Level.CRITICAL, Level.WARNING, Level.UNKNOWN, Level.OK)
NOTHING: Conditions = {}
LOOK_BACK = 30 * 86_400  # seconds of history a forecast is made from


def health(session: Session, scope: Scope) -> Health:
    """Ask everything once and judge it. Raises what keeps it from asking at all: then nothing is known."""
    return health_of(session, history(session, scope))


def health_of(session: Session, found: History) -> Health:
    """The judgement of what was asked already, and of the pools and their devices."""
    problems: list[Finding] = []
    pools: tuple[Pool, ...] = ()
    try:
        pools = read_pools(session.hosts[SOURCE])
    except BackupError as error:
        problems.append(Finding(level=Level.UNKNOWN, about="pools", text=error.message))
    told, doubts = conditions(session, found, pools)
    problems += doubts
    outlooks: tuple[Outlook, ...] = ()
    stages: tuple[Due, ...] = ()
    try:
        outlooks, stages = forecasts(session, found), overdue(session.config, found.now)
    except BackupError as error:
        problems.append(Finding(level=Level.UNKNOWN, about="journal", text=error.message))
    problems += of_stages(stages, found.now)
    try:
        problems += moved(session, found)
    except BackupError as error:
        problems.append(Finding(level=Level.UNKNOWN, about="guests of other nodes", text=error.message))
    return replace(judge(found, session.config, pools, problems, outlooks=outlooks, told=told), stages=stages)


def forecasts(session: Session, found: History) -> tuple[Outlook, ...]:
    """When each root and box is full, by what the runs of the last weeks saw; of a box nothing newer is known. Raises
    `BackupError` for the journal."""
    since = found.now - LOOK_BACK
    seen = past_rooms(read_journal(session.config.journal_dir, since, events=["room"]))
    recent = [room for room in seen if since <= room.at <= found.now + SKEW]
    current = [room for listing in found.listings.values() for room in rooms(listing, at=found.now)]
    boxes = {room.host: room for room in sorted(recent, key=lambda room: room.at) if not room.dataset}
    current += [room for name, room in boxes.items() if name in session.config.boxes]
    return tuple(outlook(room, recent) for room in current)


def judge(
    found: History, config: Config, pools: Sequence[Pool], before: Sequence[Finding] = (), *,
    outlooks: Sequence[Outlook] = (), told: Conditions = NOTHING,
) -> Health:  # fmt: skip
    """What is wrong, worst first; `told` is what `zpool status` says of pools."""
    ages = tuple(age for entry in found.coverage if entry.jobs for age in ages_of(found, entry, config))
    findings = [*before, *_of_config(config), *_of_targets(found, config), *_of_nobody(found)]
    findings += (Finding(level=Level.UNKNOWN, about="guests", text=doubt) for doubt in found.doubts)
    findings += (finding for age in ages for finding in _of_age(age))
    for entry in found.coverage:
        findings += _of_coverage(entry)
        findings += _of_takeover(found, entry)
        findings += _of_drills(found, entry)
    begun = drills_begun(found)
    verified = tuple(
        verification_of(found, entry, config, begun=begun)
        for entry in found.coverage
        if entry.jobs and entry.guest.to_protect and not entry.guest.template
    )
    broken = frozenset((entry.guest.vmid, host) for entry in found.coverage for host in _broken(found, entry))
    findings += _of_verified(verified, {vmid for vmid, _ in broken}, found.now)
    findings += judged(told, pools)
    findings += (finding for pool in pools for finding in _of_room(pool))
    findings += _of_outlooks(outlooks, found.now)
    findings += _of_boxes(outlooks, config, found.now)
    findings += (_of_aside(found, one) for one in found.aside)
    findings += (Finding(level=Level.WARNING, about=f"guest {vmid}", text=STRAY) for vmid in found.strays)
    findings.sort(key=lambda finding: (_WORST_FIRST.index(finding.level), finding.about))
    return Health(
        findings=tuple(findings),
        ages=ages,
        pools=tuple(pools),
        disks={entry.guest.vmid: _disks(entry) for entry in found.coverage if not entry.guest.template},
        answers={**dict.fromkeys(found.places, True), **dict.fromkeys(found.errors, False)},
        outlooks=tuple(outlooks),
        now=found.now,
        verified=verified,
        failed=broken,
        aside=found.aside,
        strays=found.strays,
        conditions=told,
    )


def _broken(found: History, entry: Coverage) -> Iterator[str]:
    """The hosts on which the last drill of a guest failed."""
    for host in found.hosts:
        proof = found.last_drill(host, entry.guest.vmid)
        if proof and proof.level is Proven.FAILED:
            yield host


def _of_drills(found: History, entry: Coverage) -> Iterator[Finding]:
    """A failed drill stays critical until one passes: nobody knows what a restore would give."""
    about = f"guest {entry.guest.vmid} {entry.guest.name}".rstrip()
    for host in _broken(found, entry):
        where = "here" if host == SOURCE else f"on {host}"
        text = f"the last drill {where} failed: `verify drill` tells more"
        yield Finding(level=Level.CRITICAL, about=about, text=text)


def _of_verified(verified: Iterable[Verification], broken: Set[Vmid], now: int) -> Iterator[Finding]:
    """Of a guest whose drill failed enough is said already."""
    for one in verified:
        if one.late(now) and one.vmid not in broken:
            about = f"guest {one.vmid} {one.guest}".rstrip()
            text = f"no drill passed for {(now - one.last.at) // DAY} days" if one.last else "no drill ever passed"
            yield Finding(level=Level.WARNING, about=about, text=f"{text}: `verify drill {one.vmid}`")


def _disks(entry: Coverage) -> Disks:
    protected = len(entry.guest.disks) - len(entry.unprotected)
    open_ = len(unexplained(entry))
    return Disks(guest=entry.guest.name, protected=protected, open=open_, left_out=len(entry.unprotected) - open_)


def ages_of(found: History, entry: Coverage, config: Config) -> Iterator[Age]:
    """The strictest of a guest's jobs counts. A target that does not answer is told once, not per guest. What is
    archived every day may be older than what is replicated every hour: by that day."""
    if not entry.guest.to_protect:
        return
    own = [config.jobs[name] for name in entry.jobs]
    vmid = entry.guest.vmid
    for host in (SOURCE, *found.targets.get(vmid, ()), *found.boxes.get(vmid, ())):
        if host not in found.places:
            continue
        newest = found.newest(host, vmid)
        pause = config.boxes[host].every_hours if host in found.archived else 0.0
        yield Age(
            vmid=vmid,
            guest=entry.guest.name,
            host=host,
            seconds=found.now - newest.creation if newest else None,
            warn=(min(job.warn_age for job in own) + pause) * 3600,
            critical=(min(job.critical_age for job in own) + pause) * 3600,
            consistency=newest.consistency if newest else "",
            points=newest.points if newest else 0,
            ahead=newest.ahead if newest else 0,
            bytes=newest.bytes if newest else 0,
        )


def _of_age(age: Age) -> Iterator[Finding]:
    about, where = f"guest {age.vmid} {age.guest}".rstrip(), "here" if age.host == SOURCE else f"on {age.host}"
    if age.seconds is None:
        yield Finding(level=Level.CRITICAL, about=about, text=f"no point {where}")
    elif age.seconds > age.warn:
        level = Level.CRITICAL if age.seconds > age.critical else Level.WARNING
        text = f"newest point {where} is {age.seconds / 3600:.1f} h old"
        yield Finding(level=level, about=about, text=text)
    if age.ahead:  # retention waits for them, and without older ones nothing would be late for as long
        some = f"{age.ahead} points {where} are" if age.ahead > 1 else f"1 point {where} is"
        text = f"{some} from the future: was the clock set back? Nothing is pruned until then"
        yield Finding(level=Level.WARNING, about=about, text=text)


def _of_config(config: Config) -> Iterator[Finding]:
    """Without a job everything is as well protected as promised. A host that only receives has none."""
    if not config.jobs and config.failover.root is None:
        yield Finding(level=Level.WARNING, about="configuration", text="no job: nothing is protected")


def _of_nobody(found: History) -> Iterator[Finding]:
    """What was asked for and is nobody: of nobody everything is fine, for as long as that goes unnoticed."""
    gone = found.orphans if found.scope.guests else ()
    for vmid in gone:
        text = f"is no guest of this node any more: `list {vmid}` has its points"
        yield Finding(level=Level.UNKNOWN, about=f"guest {vmid}", text=text)
    text = "means no guest here: `discover` has those there are"
    if found.scope.guests and not found.coverage and not gone:
        yield Finding(level=Level.WARNING, about="selection", text=text)
    used = {name for entry in found.coverage for name in entry.jobs}
    for name in () if found.scope.guests else (name for name in found.scope.jobs if name not in used):
        yield Finding(level=Level.WARNING, about=f"job {name}", text=text)


def _of_targets(found: History, config: Config) -> Iterator[Finding]:
    for host, error in sorted(found.errors.items()):
        kind = "box" if host in config.boxes else "target"
        yield Finding(level=Level.CRITICAL, about=f"{kind} {host}", text=error.message)
    for host, conflict in sorted(found.foreign.items()):
        yield Finding(level=Level.CRITICAL, about=f"target {host}", text=conflict.message)
    for name, box in sorted(found.archived.items()):
        for problem in box.problems:
            yield Finding(level=Level.CRITICAL, about=f"box {name}", text=problem)


def _of_coverage(entry: Coverage) -> Iterator[Finding]:
    about = f"guest {entry.guest.vmid} {entry.guest.name}".rstrip()
    if entry.guest.trouble:
        text = f"its configuration cannot be read: {entry.guest.trouble}"
        yield Finding(level=Level.CRITICAL, about=about, text=text)
    if not entry.jobs:
        if not (entry.guest.template or entry.guest.trouble or entry.excluded):
            yield Finding(level=Level.WARNING, about=about, text="in no job")
        return
    for disk in unexplained(entry):
        yield Finding(level=Level.WARNING, about=about, text=f"{disk.key} not protected: {disk.reason}")


def _of_takeover(found: History, entry: Coverage) -> Iterator[Finding]:
    """Critical for as long as it lasts: the guest here is not the one that counts, and is not replicated."""
    for conflict in found.taken.get(entry.guest.vmid, ()):
        about = f"guest {entry.guest.vmid} {entry.guest.name}".rstrip()
        yield Finding(level=Level.CRITICAL, about=about, text=conflict.message)


def unexplained(entry: Coverage) -> list[Disk]:
    """The disks that are not protected though nobody decided so."""
    return [disk for disk in entry.unprotected if not (entry.excluded or is_explained(disk))]


def _of_room(pool: Pool) -> Iterator[Finding]:
    if pool.size and pool.used_share >= FULL_WARN:
        level = Level.CRITICAL if pool.used_share >= FULL_CRITICAL else Level.WARNING
        yield Finding(level=level, about=f"pool {pool.name}", text=f"{pool.used_share:.0%} full")


def _of_aside(found: History, one: PutAside) -> Finding:
    """Room that nobody else speaks of, and which only a person may give back."""
    return Finding(
        level=Level.WARNING if found.now - one.since > ASIDE_WARN else Level.OK,
        about=f"guest {one.vmid}",
        text=f"{readable(one.bytes)} were put aside by {one.by} {max(found.now - one.since, 0) // DAY} days ago as "
        f"{one.dataset}: look at it: {one.look}; give it up: {one.remove}",
    )


def _of_boxes(outlooks: Iterable[Outlook], config: Config, now: int) -> Iterator[Finding]:
    for room in (one.room for one in outlooks if not one.room.dataset):
        box = config.boxes[room.host]
        if room.share * 100 >= box.warn_full:
            level = Level.CRITICAL if room.share * 100 >= box.critical_full else Level.WARNING
            yield Finding(level=level, about=f"box {room.host}", text=f"{room.share:.0%} full, {_as_seen(room, now)}")


def _as_seen(room: Room, now: int) -> str:
    return f"as a run saw it {max(now - room.at, 0) / 3600:.1f} h ago"


def _of_outlooks(outlooks: Iterable[Outlook], now: int) -> Iterator[Finding]:
    """One for each pool: its roots draw on the same space."""
    soonest: dict[tuple[str, str], tuple[float, Outlook]] = {}
    for one in outlooks:
        if one.days is not None and one.days < SOON_WARN:
            pool = (one.room.host, pool_of(one.room.dataset))
            soonest[pool] = min(soonest.get(pool, (one.days, one)), (one.days, one), key=lambda pair: pair[0])
    for days, one in soonest.values():
        where = "here" if one.room.host == SOURCE else f"on {one.room.host}"
        text = f"full in about {days:.0f} days, if it goes on as in the last weeks"
        level = Level.CRITICAL if days < SOON_CRITICAL else Level.WARNING
        about = f"space of {one.room.dataset} {where}" if one.room.dataset else f"space of box {one.room.host}"
        yield Finding(level=level, about=about, text=text if one.room.dataset else f"{text}, {_as_seen(one.room, now)}")
