"""Freeze a guest for the moment of its snapshot, and thaw it whatever happens.

Before the freeze a watchdog outside this process is armed and a marker is written; both go only when the guest
has said that it thawed. So a killed process, a hung API and a lost answer all end with a thawed guest:
by `finally`, by the watchdog (a systemd timer that runs `qm`), or by the sweep at the next start (DESIGN §3.9).

What a point claims follows what is proven, never the other way round: inside the window it is crash-consistent;
`quiesced` or `offline` it becomes when the window has closed and nothing spoke against it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pve_zfsbackup.errors import BackupError, CommandError, FreezeError, PveError, PveUnreachableError
from pve_zfsbackup.host import agent as guest_agent
from pve_zfsbackup.host.agent import Agent
from pve_zfsbackup.host.runner import Runner
from pve_zfsbackup.model import Consistency, Guest, SnapshotGuest, Vmid, printable

THAW_WITHIN: Final = 60.0  # seconds of trying before it is left to the watchdog
WATCHDOG_SLACK: Final = 10.0  # seconds the watchdog waits longer than a freeze may take
UNIT: Final = "pve-zfsbackup-thaw"
LABEL_LIMIT: Final = 400  # characters
UNPROVEN: Final = "the run was cut off before more was proven"


class Watchdog(Protocol):
    """Thaws a guest later, from outside this process, unless disarmed."""

    def arm(self, vmid: Vmid, token: str, after: float) -> None: ...
    def disarm(self, vmid: Vmid) -> None: ...


class SystemdWatchdog:
    """A transient timer that runs `qm guest cmd … fsfreeze-thaw` until it succeeds."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def arm(self, vmid: Vmid, token: str, after: float) -> None:
        """Raises `CommandError` when the timer cannot be set: then there is no freeze."""
        restart = ("Restart=on-failure", "RestartSec=2", "StartLimitIntervalSec=3600", "StartLimitBurst=300")
        self._runner.run(
            (
                "systemd-run", "--quiet", "--collect", f"--unit={UNIT}-{vmid}-{token}",
                f"--description=Thaw guest {vmid} if pve-zfsbackup did not",
                f"--on-active={after:.0f}s", "--timer-property=AccuracySec=1s",
                *(f"--property={item}" for item in restart),
                "--", "qm", "guest", "cmd", str(vmid), "fsfreeze-thaw",
            ),
            timeout=30,
        )  # fmt: skip

    def disarm(self, vmid: Vmid) -> None:
        pattern = f"{UNIT}-{vmid}-*"
        self._runner.run(("systemctl", "stop", f"{pattern}.timer", f"{pattern}.service"), timeout=60)


@dataclass(slots=True, kw_only=True)
class Window:
    """What became of the freeze. `consistency` and `reason` are what may truthfully be recorded at this moment."""

    consistency: Consistency = Consistency.CRASH
    reason: str = UNPROVEN
    seconds: float = 0.0  # from the freeze command until the guest said thawed

    @property
    def label(self) -> str:
        """As a property's value: one short line of ASCII. The reason may hold what a hostile guest's agent said,
        and one tab or line break in it would make every later listing of the node unreadable."""
        reason = printable(self.reason).encode("ascii", "backslashreplace").decode("ascii")[:LABEL_LIMIT]
        return f"{self.consistency}: {reason}" if reason else self.consistency.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiescer:
    """Freezes guests of one node. `markers` is a directory that survives a crash of this process; `running`
    asks Proxmox anew whether a guest runs."""

    agent: Agent
    watchdog: Watchdog
    markers: Path
    running: Callable[[Guest], bool]

    @contextlib.contextmanager
    def window(self, step: SnapshotGuest, limit: float) -> Iterator[Window]:
        """The guest is frozen inside, when it can be. Nothing but the snapshot belongs inside.

        `limit` is how many seconds a freeze may take. Raises `FreezeError` when the policy requires a freeze
        that did not come about, before anything was snapshotted, and the thaw's error when the guest does not
        confirm it: then the watchdog goes on trying.
        """
        if step.freeze:
            with self._freeze(step, limit) as window:
                yield window
        elif step.guest.running:
            yield Window(reason=step.reason)
        else:
            yield from self._standstill(step)

    def _standstill(self, step: SnapshotGuest) -> Iterator[Window]:
        """A guest that was found stopped, maybe minutes ago: `offline` if it is before and after the snapshot."""
        started = "the guest was started while its point was made"
        if doubt := self._doubt(step.guest, started):
            yield Window(reason=doubt)
            return
        window = Window()
        yield window
        window.reason = self._doubt(step.guest, started)
        if not window.reason:
            window.consistency, window.reason = Consistency.OFFLINE, step.reason

    def _doubt(self, guest: Guest, started: str) -> str:
        """What speaks against the guest being off; empty when nothing does."""
        try:
            return started if self.running(guest) else ""
        except PveError as error:
            return f"whether the guest runs is not known: {error.message}"

    @contextlib.contextmanager
    def _freeze(self, step: SnapshotGuest, limit: float) -> Iterator[Window]:
        vmid = step.guest.vmid
        if obstacle := self._obstacle(vmid):
            yield self._unfrozen(step, obstacle)
            return
        marker = self.markers / str(vmid)
        try:
            self._write(marker)
        except OSError as error:  # full or read-only: without a marker there is no freeze
            yield self._unfrozen(step, f"its marker cannot be written: {marker}: {error.strerror}")
            return
        try:
            self.watchdog.arm(vmid, step.name.rpartition("-")[2], limit + WATCHDOG_SLACK)
        except CommandError as error:
            marker.unlink()  # nothing was frozen: the sweep must not thaw somebody else's freeze
            yield self._unfrozen(step, f"the watchdog cannot be armed: {error.message}")
            return
        started = time.monotonic()
        window = Window()
        certain = refused = held = False
        try:
            try:
                guest_agent.freeze(self.agent, vmid, timeout=limit)
                certain = True
            except PveUnreachableError as error:
                window = self._unfrozen(step, f"freezing was given up: {error.message}")
            except PveError as error:
                certain = refused = True
                window = self._unfrozen(step, error.message)
            yield window
            if certain and not refused:
                held = self._still_frozen(vmid)
                if not held:  # PVE 8 thaws without asking whose freeze it was (pve-facts §d)
                    window.reason = "somebody else thawed the guest before the snapshot was done"
        finally:
            thawed = 0 if refused else guest_agent.thaw(self.agent, vmid, within=THAW_WITHIN)
            window.seconds = time.monotonic() - started
            # A freeze whose fate is unknown may still be queued behind this thaw, which then found nothing frozen:
            # marker and watchdog stay, and thaw once more.
            if certain or thawed:
                self._done(vmid, marker)
        if held:
            window.consistency, window.reason = Consistency.QUIESCED, ""

    def _obstacle(self, vmid: Vmid) -> str:
        """Why a freeze is not even tried; empty when it is."""
        try:
            frozen = guest_agent.status(self.agent, vmid) == "frozen"
        except PveError as error:
            return f"the guest agent does not answer: {error.message}"
        return "the guest is already frozen by somebody else" if frozen else ""

    def _unfrozen(self, step: SnapshotGuest, reason: str) -> Window:
        if step.quiesce == "require":
            raise FreezeError(
                f"guest {step.guest.vmid}: quiescing is required, but {reason}",
                hint="make the guest agent work, or set quiesce: prefer",
            )
        return Window(reason=reason)

    def _still_frozen(self, vmid: Vmid) -> bool:
        try:
            return guest_agent.status(self.agent, vmid) == "frozen"
        except PveError:
            return False  # not known is not proven

    def sweep(self) -> list[str]:
        """Thaw what an earlier run may have left frozen; returns what was done. Call it under the lock."""
        told = []
        for marker in self._left():
            vmid = Vmid(int(marker.name))
            try:
                guest_agent.thaw(self.agent, vmid, within=THAW_WITHIN)
                self._done(vmid, marker)
            except BackupError as error:
                told.append(f"guest {vmid}: may still be frozen by an interrupted run: {error}")
                continue
            told.append(f"guest {vmid}: thawed after an interrupted run")
        return told

    def unthawed(self) -> tuple[Vmid, ...]:
        """Guests that may still be frozen: those the sweep could do nothing about."""
        return tuple(Vmid(int(marker.name)) for marker in self._left())

    def _left(self) -> list[Path]:
        return sorted(path for path in self.markers.glob("[1-9]*") if path.name.isdecimal())

    def _done(self, vmid: Vmid, marker: Path) -> None:
        self.watchdog.disarm(vmid)
        marker.unlink(missing_ok=True)

    def _write(self, marker: Path) -> None:
        self.markers.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(marker, "w", encoding="ascii") as file:
            file.write(f"{int(time.time())}\n")
            file.flush()
            os.fsync(file.fileno())
