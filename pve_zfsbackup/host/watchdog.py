"""Who thaws a guest when this process cannot: something outside of it, armed before the freeze.

A systemd timer where systemd runs; elsewhere a detached process of its own (`host.thawer`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, Protocol

from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.model import GuestKind, Vmid

UNIT: Final = "pve-zfsbackup-thaw"
BOOTED: Final = Path("/run/systemd/system")  # sd_booted(3)


# `qm guest cmd` prints what the guest's agent refuses, and exits 0 (pve-facts §d): only a number of file systems is a
# thaw, or Windows' word that it let the writes through long ago (as in `agent.thaw`). sh, because it is there also when
# this package is being replaced. No `${`: systemd would put its own variables in.
_THAW: Final = """told=$(qm guest cmd "$1" fsfreeze-thaw) || exit
case $told in
*"hold writes"*) ;;
"" | *[!0-9]*) echo "guest $1 is not thawed: $told" >&2; exit 1 ;;
esac"""


def thaw_argv(kind: GuestKind, vmid: Vmid) -> tuple[str, ...]:
    """The command that thaws a guest of this node, for whoever has no Python at hand. It exits 0 only when the guest
    said that it is thawed."""
    if kind is GuestKind.CT:
        return ("lxc-unfreeze", "-n", str(vmid))
    return ("sh", "-c", _THAW, "sh", str(vmid))


class Watchdog(Protocol):
    """Thaws a guest later, from outside this process, unless disarmed."""

    def arm(self, kind: GuestKind, vmid: Vmid, token: str, after: float) -> None:
        """Raises `CommandError` when it cannot: then there is no freeze."""
        ...

    def disarm(self, vmid: Vmid) -> None: ...


class SystemdWatchdog:
    """A transient timer that runs the thawing command until it succeeds."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def arm(self, kind: GuestKind, vmid: Vmid, token: str, after: float) -> None:
        restart = ("Restart=on-failure", "RestartSec=2", "StartLimitIntervalSec=3600", "StartLimitBurst=300")
        self._runner.run(
            (
                "systemd-run", "--quiet", "--collect", f"--unit={UNIT}-{vmid}-{token}",
                f"--description=Thaw guest {vmid} if pve-zfsbackup did not",
                f"--on-active={after:.0f}s", "--timer-property=AccuracySec=1s",
                *(f"--property={item}" for item in restart),
                "--", *thaw_argv(kind, vmid),
            ),
            timeout=30,
        )  # fmt: skip

    def disarm(self, vmid: Vmid) -> None:
        pattern = f"{UNIT}-{vmid}-*"
        self._runner.run(("systemctl", "stop", f"{pattern}.timer", f"{pattern}.service"), timeout=60)


class ChildWatchdog:
    """A detached process that thaws the guest unless the marker is gone by then: there is nothing to disarm."""

    def __init__(self, runner: Runner, markers: Path) -> None:
        self._runner = runner
        self._markers = markers

    def arm(self, kind: GuestKind, vmid: Vmid, token: str, after: float) -> None:
        thawer = (sys.executable, "-I", "-m", "pve_zfsbackup.host.thawer")
        argv = ("setsid", "--fork", *thawer, str(self._markers / str(vmid)), f"{after:.0f}", *thaw_argv(kind, vmid))
        self._runner.run(argv, timeout=30)

    def disarm(self, vmid: Vmid) -> None:
        """The caller removes the marker next; within a second the process sees that and ends."""
