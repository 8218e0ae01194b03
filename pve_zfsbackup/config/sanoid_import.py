"""A sanoid.conf told as a configuration of ours: jobs for the guests on its datasets, and what became of each line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pve_zfsbackup.config.sanoid import (
    MOST,
    PERIODS,
    TEMPLATE,
    Line,
    Policy,
    Section,
    Settings,
    apply,
    hours,
    is_true,
    policy_of,
)
from pve_zfsbackup.model import Guest, printable

_NEW: Final = "(a disk of tomorrow)"  # no dataset can be called so
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_CRON: Final = "/etc/cron.d/pve-zfsbackup says when points are taken"
_SCRIPT: Final = "not translated: hooks see another environment (docs/hooks.md)"
_HEAD: Final = """\
# Made from {filename} by `pve-zfsbackup import sanoid`; nothing was changed anywhere. Read it, then put it where
# it belongs (/etc/pve-zfsbackup/config.yaml). `pve-zfsbackup simulate` shows what it would keep.
#
# sanoid's own snapshots stay: let sanoid prune them until they are gone (autosnap = no), or destroy them by hand.
# syncoid is another program with no file of its own: give the jobs a target (`pve-zfsbackup setup target`).
# sanoid counts snapshots of each kind by their age; here, the newest point of each of the last N hours, days, …
# that have one is kept, and a point is one guest with all its disks.
"""
_TOLD: Final[tuple[tuple[str, str], ...]] = (
    ("path", "the dataset this section is about"),
    ("process_children_only", "a guest's disk has no children, and what is no disk gets no points anyway"),
    ("skip_children", "children are left out, until a later section names one"),
    ("frequent_period", f"no equivalent: {_CRON}"),
    (r"(hourly|daily|weekly|monthly|yearly)_(min|hour|wday|mday|mon)",
     f"no equivalent: of each hour, day, … the newest point is kept, and {_CRON}"),
    ("prune_defer|min_percent_free", "no equivalent: what no rule keeps goes, however much room there is"),
    ("(pre|post)_snapshot_script", f"{_SCRIPT}: before-snapshot, after-snapshot, or before-freeze of a job"),
    ("pre_pruning_script|pruning_script", f"{_SCRIPT}: after-prune"),
    ("script_timeout", "not translated: hooks have a timeout of their own"),
    ("no_inconsistent_snapshot", "not translated: quiesce: require is what forbids points that were not quiesced"),
    ("force_post_snapshot_script", "no equivalent: after-thaw always runs"),
    ("monitor|monitor_dont_(warn|crit)", "no equivalent: `check` looks at every guest of every job"),
    ("capacity_(warn|crit)", "no equivalent here: let your monitoring watch the pool's capacity"),
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _Job:
    """One policy and everything it is for."""

    policy: Policy
    section: Section
    settings: Settings
    storages: list[str] = field(default_factory=list)
    vmids: list[int] = field(default_factory=list)
    without: list[int] = field(default_factory=list)
    disks: list[str] = field(default_factory=list)  # left out


def translate(sections: Sequence[Section], guests: Sequence[Guest], storages: Mapping[str, str], filename: str) -> str:
    """The text of a configuration with comments. `storages` has the pool of each ZFS storage."""
    disks = {str(disk.dataset): (guest, disk.key) for guest in guests for disk in guest.protected_disks}
    pools: dict[str, list[str]] = {}
    for storage, pool in sorted(storages.items()):
        pools.setdefault(f"{pool}/{_NEW}", []).append(storage)
    found = apply(sections, [*disks, *pools])
    jobs = _jobs(found, disks, pools, guests)
    names = _names(jobs)
    head = _HEAD.format(filename=printable(filename)).rstrip("\n")
    out = [head, *_explained(sections, found, disks, pools), "", "jobs:" if jobs else "jobs: {}"]
    for name, job in zip(names, jobs, strict=True):
        out += _job(name, job)
    out += ["", *_left(guests, jobs, found, disks)]
    return "\n".join(line.rstrip() for line in out).rstrip() + "\n"


def _jobs(
    found: Mapping[str, tuple[Section, Settings]],
    disks: Mapping[str, tuple[Guest, str]],
    pools: Mapping[str, Sequence[str]],
    guests: Sequence[Guest],
) -> list[_Job]:
    jobs: dict[Policy, _Job] = {}
    own: dict[int, dict[Policy, set[str]]] = {}  # vmid -> policy -> storages of its disks
    none: dict[int, list[str]] = {}  # disks that sanoid was told to take no snapshots of
    for dataset, (section, settings) in sorted(found.items(), key=lambda item: (item[1][0].number, item[0])):
        policy = policy_of(settings)
        if policy.keep is not None:
            job = jobs.setdefault(policy, _Job(policy=policy, section=section, settings=settings))
            if dataset in pools:
                job.storages += pools[dataset]
                continue
            guest, key = disks[dataset]
            storage = next(disk.storage for disk in guest.disks if disk.key == key)
            own.setdefault(guest.vmid, {}).setdefault(policy, set()).add(storage)
        elif dataset in disks:
            guest, key = disks[dataset]
            none.setdefault(guest.vmid, []).append(key)
    for guest in guests:
        for policy, job in jobs.items():
            here = {disk.storage for disk in guest.disks if not disk.key.startswith("unused")} & set(job.storages)
            if policy in own.get(guest.vmid, {}):
                if not here & own[guest.vmid][policy]:
                    job.vmids.append(guest.vmid)
                job.disks += (f"{guest.vmid}:{key}" for key in none.get(guest.vmid, ()))
            elif here:
                job.without.append(guest.vmid)
    return [job for job in jobs.values() if job.storages or job.vmids]


def _names(jobs: Sequence[_Job]) -> list[str]:
    """By template or dataset, each once."""
    names: list[str] = []
    for job in jobs:
        wanted = "-".join(job.section.templates) or job.section.path.rpartition("/")[2]
        wanted = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")[:28]
        wanted = wanted if _NAME.match(wanted) else "sanoid"
        number = 2
        name = wanted
        while name in names:
            name, number = f"{wanted}-{number}", number + 1
        names.append(name)
    return names


def _explained(
    sections: Sequence[Section],
    found: Mapping[str, tuple[Section, Settings]],
    disks: Mapping[str, tuple[Guest, str]],
    pools: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    templates = {section.name: section.number for section in sections if section.is_template}
    used = {TEMPLATE + name for section in sections for name in section.templates} | {f"{TEMPLATE}default"}
    for section in sections:
        yield "#"
        meant = [name for name, (last, _) in found.items() if last is section]
        yield f"# line {section.number}: [{printable(section.name)}] {_about(section, meant, used, disks, pools)}"
        for line in section.lines:
            yield f"#   line {line.number}: {printable(line.key)} = {printable(line.value)}: {_line(line, templates)}"


def _about(
    section: Section,
    meant: Sequence[str],
    used: Iterable[str],
    disks: Mapping[str, tuple[Guest, str]],
    pools: Mapping[str, Sequence[str]],
) -> str:
    if section.name == "version":
        return "no equivalent"
    if section.is_template:
        return "is used below or above" if section.name in used else "is used nowhere"
    storages = [storage for name in meant for storage in pools.get(name, ())]
    guests = sorted({disks[name][0].vmid for name in meant if name in disks})
    told = [f"storage {name}, new guests too" for name in storages] + [f"guest {vmid}" for vmid in guests]
    return ", ".join(told) or "has no disk of a guest of this node (any more): left out"


def _line(line: Line, templates: Mapping[str, int]) -> str:
    if line.key == "use_template":
        names = [name.strip() for name in line.value.split(",") if name.strip()]
        return "; ".join(
            f"line {templates[TEMPLATE + name]}"
            if TEMPLATE + name in templates
            else f"no [{TEMPLATE}{printable(name)}]"
            for name in names
        )
    if line.key == "recursive":
        on = is_true(line.value) or "zfs" in line.value.lower()
        return "a storage below it is taken as a whole" if on else "this dataset alone"
    if line.key in PERIODS:
        zero = "none of these; " if line.value == "0" else ""
        return f"{zero}keep-{line.key}: {min(int(line.value), MOST)}"
    if line.key == "frequently":
        return f"keep-last where nothing else is kept; otherwise no equivalent: {_CRON}"
    if line.key == "autosnap":
        return "points are taken" if is_true(line.value) else "no points: no job"
    if line.key == "autoprune":
        return "the policy holds" if is_true(line.value) else "keep: {} keeps everything"
    if match := re.fullmatch(r"(frequently|hourly|daily|weekly|monthly|yearly)_(warn|crit)", line.key):
        span = hours(line.value, match[1])
        key = "warn-age" if match[2] == "warn" else "critical-age"
        return f"{key}: {span:g}, if {match[1]} is the shortest that is kept" if span else "not watched"
    known = next((told for pattern, told in _TOLD if re.fullmatch(pattern, line.key)), "")
    return known or "not a setting sanoid knows"


def _job(name: str, job: _Job) -> Iterator[str]:
    words = [f"storage:{storage}" for storage in job.storages] + [str(vmid) for vmid in sorted(job.vmids)]
    words += [f"!{vmid}" for vmid in sorted(job.without)]
    yield f"  {name}:"
    yield f"    # as [{printable(job.section.name)}] of line {job.section.number} has it"
    yield f"    guests: [{', '.join(map(json.dumps, words))}]"
    if job.disks:
        yield "    # sanoid took no snapshots of these"
        yield f"    exclude-disks: [{', '.join(map(json.dumps, job.disks))}]"
    if job.policy.warn is not None:
        yield f"    warn-age: {job.policy.warn:g}"
    if job.policy.critical is not None:
        yield f"    critical-age: {job.policy.critical:g}"
    yield from _keep(job)


def _keep(job: _Job) -> Iterator[str]:
    keep = job.policy.keep
    assert keep is not None, "such a job is not made"
    if keep.everything:
        yield "    keep: {}  # autoprune is off: everything is kept"
        return
    yield "    keep:"
    for rule, key in (("last", "frequently"), *((period, period) for period in PERIODS)):
        if count := getattr(keep, rule):
            line = job.settings[key]
            setting = f"keep-{rule}: {count}"
            yield f"      {setting:<18}# " + (f"line {line.number}" if line.number else "sanoid's default")


def _left(
    guests: Sequence[Guest],
    jobs: Sequence[_Job],
    found: Mapping[str, tuple[Section, Settings]],
    disks: Mapping[str, tuple[Guest, str]],
) -> Iterator[str]:
    """What a reader should know of guests, besides the jobs."""
    taken = {name for name, (_, settings) in found.items() if policy_of(settings).keep is not None}
    for guest in guests:
        own = {name: key for name, (one, key) in disks.items() if one is guest}
        who = f"guest {guest.vmid} ({printable(guest.name)})"
        if own and not own.keys() & taken:
            yield f"# {who} is in no job: sanoid takes no snapshots of its disks."
            continue
        for name, key in own.items():
            if name not in found:
                yield f"# {who}: {key} ({name}) is not in sanoid.conf; a point has all disks, so it is in."
        policies = {policy_of(found[name][1]) for name in own if name in taken}
        if len(policies) > 1:
            yield f"# {who} has disks with different policies: it is in several jobs, and what any of them keeps stays."
