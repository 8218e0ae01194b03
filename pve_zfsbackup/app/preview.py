"""A dry run: the same plans as a real one, each stage planned on what the stages before would leave behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from pve_zfsbackup.app.archive import archive_plans
from pve_zfsbackup.app.gather import Assignment, Inventory, Scope, assign, inventory, target_listings
from pve_zfsbackup.app.prune import decide, swept
from pve_zfsbackup.app.replicate import plan_target
from pve_zfsbackup.app.run import Stage, needed
from pve_zfsbackup.app.session import Session
from pve_zfsbackup.app.snapshot import plan_one
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Result
from pve_zfsbackup.model import SOURCE, Guest, Plan, Step, World
from pve_zfsbackup.plan.project import project


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What one stage would do for one guest on one host."""

    stage: Stage
    guest: Guest
    host: str
    plan: Plan
    would: str = ""  # where no step says it


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    previews: tuple[Preview, ...]
    errors: dict[str, BackupError]
    partials: tuple[Result, ...] = ()
    """Interrupted receives on a target with which nobody will go on."""


def preview(session: Session, scope: Scope, stages: Sequence[Stage]) -> DryRun:
    """Plan the stages without doing anything: one listing per host serves them all."""
    found = inventory(session)
    items, _ = assign(session, found, scope)
    names = [name for name in session.config.targets if any(name in item.targets for item in items)]
    listings, errors = target_listings(session, names) if set(stages) - {Stage.SNAPSHOT} else ({}, {})
    world: World = {SOURCE: found.listing, **listings}
    partials = tuple(swept(session, world, dry=True)) if Stage.PRUNE in stages else ()
    previews: list[Preview] = []
    for stage in needed(session.config, stages):
        planned = list(_plans(session, stage, found, items, world, frozenset(errors)))
        previews += planned
        steps: list[Step] = list(dict.fromkeys(step for shown in planned for step in shown.plan.steps))
        world = project(world, steps)
        found = replace(found, listing=world[SOURCE])
    return DryRun(previews=tuple(previews), errors=errors, partials=partials)


def _plans(
    session: Session,
    stage: Stage,
    found: Inventory,
    items: Sequence[Assignment],
    world: World,
    silent: frozenset[str],
) -> Iterator[Preview]:
    match stage:
        case Stage.SNAPSHOT:
            for item in items:
                yield Preview(stage=stage, guest=item.guest, host=SOURCE, plan=plan_one(session, found, item))
        case Stage.REPLICATE:
            for target in sorted(world.keys() - {SOURCE}):
                for work in plan_target(session, found, items, world[target]):
                    for plan in work.plans.values():
                        yield Preview(stage=stage, guest=work.guest, host=target, plan=plan)
        case Stage.ARCHIVE:
            for guest, box, plan, would in archive_plans(session, found, items):
                yield Preview(stage=stage, guest=guest, host=box, plan=plan, would=would)
        case Stage.PRUNE:
            for pruning in decide(session, world, items, silent=silent):
                yield Preview(stage=stage, guest=pruning.item.guest, host="all", plan=pruning.plan.plan)
        case unknown:
            assert_never(unknown)
