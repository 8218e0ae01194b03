"""Who thaws a guest when this process cannot: something outside of it, armed before the freeze.

A systemd timer where systemd runs; elsewhere a detached process of its own (`host.thawer`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, Protocol

from pve_zfsbackup.errors import CommandError
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.model import GuestKind, Vmid

UNIT: Final = "pve-zfsbackup-thaw"
BOOTED: Final = Path("/run/systemd/system")  # sd_booted(3)
UPTIME: Final = Path("/proc/uptime")
WATCHING: Final = "watching"  # what the process of its own says when it is up
QUEUED: Final = 60.0  # seconds after the first try in which a freeze may still come


# `qm guest cmd` prints what the guest's agent refuses, and exits 0 (pve-facts §d): only a number of file systems is a
# thaw, or Windows' word that it let the writes through long ago (as in `agent.thaw`). None were frozen? A freeze that
# was given up, or whose caller was killed, may wait for one of pvedaemon's workers: before the time in $2 it is no end.
# sh, because it is there also when this package is being replaced. No `${` and no `%`: systemd has a use for them.
_THAW: Final = """told=$(qm guest cmd "$1" fsfreeze-thaw) || exit
case $told in
*"hold writes"*) ;;
0) [ "$(cut -d. -f1 /proc/uptime)" -ge "$2" ] || { echo "guest $1 is not frozen yet" >&2; exit 1; } ;;
"" | *[!0-9]*) echo "guest $1 is not thawed: $told" >&2; exit 1 ;;
esac"""


def thaw_argv(kind: GuestKind, vmid: Vmid, until: float) -> tuple[str, ...]:
    """The command that thaws a guest of this node, for whoever has no Python at hand. It exits 0 only when the guest
    said that it is thawed; that nothing was frozen is enough only from `until` on, by `uptime`."""
    if kind is GuestKind.CT:
        return ("lxc-unfreeze", "-n", str(vmid))
    return ("sh", "-c", _THAW, "sh", str(vmid), f"{until:.0f}")


def uptime() -> float:
    """Seconds since the boot, as the script reads them: a clock that nobody sets."""
    return float(UPTIME.read_text("ascii").split()[0])


class Watchdog(Protocol):
    """Thaws a guest later, from outside this process, unless disarmed."""

    def arm(self, kind: GuestKind, vmid: Vmid, token: str, after: float) -> None:
        """Raises `CommandError` when it cannot: then there is no freeze."""
        ...

    def disarm(self, vmid: Vmid) -> None: ...


class SystemdWatchdog:
    """A transient timer that runs the thawing command until it succeeds; `disarm` ends it also between two tries."""

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
                "--", *thaw_argv(kind, vmid, uptime() + after + QUEUED),
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
        thawing = thaw_argv(kind, vmid, uptime() + after + QUEUED)
        argv = ("setsid", "--fork", *thawer, str(self._markers / str(vmid)), f"{after:.0f}", *thawing)
        done = self._runner.run(argv, timeout=30)  # until the process lets go of its output, or ends
        if done.stdout.strip() != WATCHING:  # setsid ends well whatever becomes of its child
            told = done.stderr.strip().splitlines() or ["it said nothing"]
            raise CommandError(f"the process that would thaw guest {vmid} did not come up: {told[-1]}")

    def disarm(self, vmid: Vmid) -> None:
        """The caller removes the marker next; within a second the process sees that and ends."""
