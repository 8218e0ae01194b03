"""Freezing containers. There is no API for it; on the node `lxc-freeze` stops all processes of one (pve-facts §d).

What it is: every process stands still, so the snapshots of all pools show one instant. What it is not: a word to
the applications. ZFS has what they wrote anyway, snapshot or not; only pages of mapped files that were not written
back may lag behind. A process that waits for FUSE can keep the freezer waiting, hence the watchdog, as for VMs.
"""

from __future__ import annotations

from typing import Any

from pve_zfsbackup.errors import AgentError, CommandTimeoutError, GuestMissingError, PveUnreachableError
from pve_zfsbackup.host.runner import Completed, Runner
from pve_zfsbackup.model import Vmid


class ContainerFreezer:
    """An `agent.Agent` for containers: the same words, answered by LXC."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def call(self, vmid: Vmid, command: str, timeout: float) -> Any:
        """`fsfreeze-status`, `fsfreeze-freeze` or `fsfreeze-thaw`; the last two count the container as one, and a thaw
        of one that somebody else let go before as none."""
        state = self._state(vmid, timeout)
        if state == "STOPPED":
            raise AgentError(f"CT {vmid} not running")
        if command == "fsfreeze-status":
            return "thawed" if state == "RUNNING" else "frozen"  # FREEZING and FROZEN; THAWED is no resting state
        program = {"fsfreeze-freeze": "lxc-freeze", "fsfreeze-thaw": "lxc-unfreeze"}[command]
        self._run((program, "-n", str(vmid)), vmid, timeout)
        return 0 if (command, state) == ("fsfreeze-thaw", "RUNNING") else 1

    def _state(self, vmid: Vmid, timeout: float) -> str:
        return self._run(("lxc-info", "-n", str(vmid), "-s", "-H"), vmid, timeout).stdout.strip().upper()

    def _run(self, argv: tuple[str, ...], vmid: Vmid, timeout: float) -> Completed:
        """Raises `GuestMissingError`, or `PveUnreachableError`: what failed may have stopped some of the processes."""
        try:
            done = self._runner.run(argv, timeout=timeout, check=False)
        except CommandTimeoutError as error:
            raise PveUnreachableError(f"ct {vmid}: {error.message}") from error
        if done.returncode:
            told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            missing = told[-1] == f"{vmid} doesn't exist"  # lxc-info of one that neither runs nor is defined
            fault = GuestMissingError if missing else PveUnreachableError
            raise fault(f"ct {vmid}: {argv[0]}: {told[-1]}")
        return done
