"""Commands of the administrator: argv lists, no shell, an environment of their own, a time limit for all they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pve_zfsbackup.errors import CommandError, CommandTimeoutError
from pve_zfsbackup.host.journal import log_line
from pve_zfsbackup.host.quiesce import Hook
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.model import SnapshotGuest, printable

GRACE: Final = 5  # seconds between SIGTERM and SIGKILL
TIMED_OUT: Final = (124, 137)  # coreutils' timeout: it ended, it was killed
LINES: Final = 50  # of a command's output that are logged


def run_hook(runner: Runner, argv: Sequence[str], facts: Mapping[str, str], timeout: float) -> None:
    """Run a command with `facts` in its environment; what it prints goes to the journal.

    `timeout` ends it with everything it started; `env` is what gives it its environment, so that nobody else's
    comes along. Raises `CommandError` when it fails or takes too long.
    """
    pairs = (f"{key}={printable(value)}" for key, value in sorted(facts.items()))
    wrapped = ("timeout", f"--kill-after={GRACE}", f"{timeout:g}", "env", *pairs, *argv)
    stage = facts.get("PZB_HOOK", "hook")
    try:
        done = runner.run(wrapped, timeout=timeout + 2 * GRACE, check=False)
    except CommandTimeoutError:
        raise CommandTimeoutError(f"{argv[0]}: no end after {timeout:g} s, and it cannot be killed") from None
    lines = (done.stdout + done.stderr).splitlines()
    for line in lines[:LINES]:
        log_line(f"{stage}: {argv[0]}: {line}", failed=False)
    if done.returncode in TIMED_OUT:
        raise CommandTimeoutError(f"{argv[0]}: no end after {timeout:g} s", hint="the time limit is hooks: timeout")
    if done.returncode:
        told = f": {printable(lines[-1])[:200]}" if lines else ""
        raise CommandError(f"{argv[0]}: exit status {done.returncode}{told}", returncode=done.returncode)


def freeze_hook(runner: Runner, timeout: float) -> Hook:
    """The commands around a freeze, for the quiescer."""

    def hook(argv: Sequence[str], step: SnapshotGuest, stage: str) -> None:
        run_hook(runner, argv, {**facts_of(step), "PZB_HOOK": stage}, timeout)

    return hook


def facts_of(step: SnapshotGuest) -> dict[str, str]:
    """What a command is told of the guest and its point."""
    guest = step.guest
    return {
        "PZB_STAGE": "snapshot",
        "PZB_VMID": str(guest.vmid),
        "PZB_TYPE": guest.kind.value,
        "PZB_NAME": guest.name,
        "PZB_NODE": guest.node,
        "PZB_POINT": step.point,
    }
