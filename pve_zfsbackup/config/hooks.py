"""Commands of the administrator, and what a hook of Proxmox asks us to do (docs/hooks.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pve_zfsbackup.config import kinds
from pve_zfsbackup.config.option import option

_EXAMPLE = "[/usr/local/sbin/pzb-notify]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Commands run at the points of a run, as lists of words: without a shell, with the environment docs/hooks.md
    tells. One that fails is a warning; one that fails `before` something keeps it from being done."""

    before_run: tuple[str, ...] = option("Before the first stage.", kinds.WORD, default=(), example=_EXAMPLE)
    before_snapshot: tuple[str, ...] = option(
        "Before the point of each guest.", kinds.WORD, default=(), example=_EXAMPLE
    )
    after_snapshot: tuple[str, ...] = option(
        "After the point of each guest, also when it was not made.", kinds.WORD, default=(), example=_EXAMPLE
    )
    before_replicate: tuple[str, ...] = option(
        "Before anything is sent in a run.", kinds.WORD, default=(), example=_EXAMPLE
    )
    after_replicate: tuple[str, ...] = option(
        "After the replication of each guest to each target.", kinds.WORD, default=(), example=_EXAMPLE
    )
    after_prune: tuple[str, ...] = option(
        "After each guest's history was pruned on a host.", kinds.WORD, default=(), example=_EXAMPLE
    )
    on_error: tuple[str, ...] = option("After every failure.", kinds.WORD, default=(), example=_EXAMPLE)
    after_run: tuple[str, ...] = option(
        "At the end of a run, whatever became of it.", kinds.WORD, default=(), example=_EXAMPLE
    )
    timeout: float = option("How long any of these commands may take.", kinds.seconds(1, 3600), default=60.0)

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Commands that could not be run."""
        for name, value in values.items():
            if isinstance(value, tuple) and (problem := kinds.command_problem(value)):
                yield name, problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Vzdump:
    """What the hook in a vzdump job does (`hooks/vzdump-hook`)."""

    replicate: bool = option(
        "Replicate the guest after its point was made at the end of its backup.", kinds.YES_OR_NO, default=True
    )
    skip_within: float = option(
        "A guest with a point younger than this is left alone: no second one for each backup. 0 for never.",
        kinds.seconds(0, 604_800),
        default=3600.0,
    )
    fail_backup: bool = option(
        "Let vzdump call the guest's backup failed when its point or replication failed.",
        kinds.YES_OR_NO,
        default=False,
    )
