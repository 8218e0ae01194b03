"""The administrator's commands at the points of a run (docs/hooks.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pve_zfsbackup.app.session import Session
from pve_zfsbackup.errors import CommandError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.hooks import run_hook

AFTER: Final = {"snapshot": "after-snapshot", "replicate": "after-replicate", "prune": "after-prune"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """The commands of one run. What comes `before` keeps from being done what it is for; the rest can only warn."""

    session: Session
    run: str = ""

    def before(self, point: str, **facts: str) -> None:
        """Raises `CommandError` when the command fails."""
        argv: tuple[str, ...] = getattr(self.session.config.hooks, point.replace("-", "_"))
        if argv:
            common = {"PZB_HOOK": point, "PZB_RUN": self.run, "PZB_NODE": self.session.node}
            run_hook(self.session.runner, argv, {**common, **facts}, self.session.config.hooks.timeout)

    def after(self, result: Result) -> Iterator[Result]:
        """After something was done; yields the commands that failed."""
        facts = facts_of(result)
        if result.stage in AFTER:
            yield from self._told(AFTER[result.stage], facts)
        if result.outcome is Outcome.FAILED:
            yield from self._told("on-error", facts)

    def end(self, result: str, exit_code: int) -> Iterator[Result]:
        """After everything."""
        yield from self._told("after-run", {"PZB_RESULT": result, "PZB_EXIT_CODE": str(exit_code)})

    def _told(self, point: str, facts: dict[str, str]) -> Iterator[Result]:
        try:
            self.before(point, **facts)
        except CommandError as error:
            message = f"{point} command failed: {error.message}"
            yield Result(stage="hook", outcome=Outcome.WARNING, message=message, hint=error.hint)


def facts_of(result: Result) -> dict[str, str]:
    """What a command is told of a result; empty where there is nothing to tell."""
    return {
        "PZB_STAGE": result.stage,
        "PZB_VMID": str(result.vmid or ""),
        "PZB_NAME": result.guest,
        "PZB_HOST": result.host,
        "PZB_POINT": result.point,
        "PZB_RESULT": result.outcome.value,
        "PZB_MESSAGE": result.message,
        "PZB_BYTES": str(result.bytes),
        "PZB_SECONDS": f"{result.seconds:.3f}",
    }
