"""Freeze a guest for the moment of its snapshot, and thaw it whatever happens.

Before the freeze a watchdog outside this process is armed and a marker is written; both go only when the guest
has said that it thawed. So a killed process, a hung API and a lost answer all end with a thawed guest:
by `finally`, by the watchdog, by the sweep at the next start, or by hand (`pve-zfsbackup thaw`) (DESIGN §3.9).
From before the freeze until after the thaw Proxmox's migration lock of the guest is ours.

What a point claims follows what is proven, never the other way round: inside the window it is crash-consistent;
`quiesced` or `offline` it becomes when the window has closed and nothing spoke against it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pve_zfsbackup.errors import (
    BackupError,
    CommandError,
    FreezeError,
    GuestChangedError,
    PveError,
    PveUnreachableError,
)
from pve_zfsbackup.host import agent as guest_agent
from pve_zfsbackup.host.agent import Agent
from pve_zfsbackup.host.marker import BOOT_ID, PIDS, Marker, marker_now, read_marker, write_marker
from pve_zfsbackup.host.watchdog import Watchdog
from pve_zfsbackup.model import Consistency, Guest, GuestKind, SnapshotGuest, Vmid, printable

THAW_WITHIN: Final = 60.0  # seconds of trying before it is left to the watchdog
WATCHDOG_SLACK: Final = 10.0  # seconds the watchdog waits longer than the freeze command may take
WATCHDOG_LIMIT: Final = 28.0  # and at most: no guest stands still for 30 s (timer and qm take a second each)
OTHERS_FREEZE: Final = 30.0  # seconds that a freeze of somebody else may last
LABEL_LIMIT: Final = 400  # characters
UNPROVEN: Final = "the run was cut off before more was proven"
STARTED: Final = "the guest was started while its point was made"
HIBERNATED: Final = "guest is hibernated: what it had in memory is not part of the point"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeRules:
    """How a guest's jobs want it frozen: how many seconds the command may take, and what runs on the node around it."""

    limit: float = 10.0
    before: tuple[tuple[str, ...], ...] = ()
    after: tuple[tuple[str, ...], ...] = ()


class Hook(Protocol):
    """Runs a command of the administrator for a guest. Raises `CommandError` when it fails or takes too long."""

    def __call__(self, argv: Sequence[str], step: SnapshotGuest, stage: str) -> None: ...


@dataclass(slots=True, kw_only=True)
class Window:
    """What became of the freeze. `consistency` and `reason` are what may truthfully be recorded at this moment."""

    consistency: Consistency = Consistency.CRASH
    reason: str = UNPROVEN
    seconds: float = 0.0  # from the freeze command until the guest said thawed
    trouble: str = ""  # what went wrong around it, though the point is as good as its label

    @property
    def label(self) -> str:
        """As a property's value: one short line of ASCII. The reason may hold what a hostile guest's agent said,
        and one tab or line break in it would make every later listing of the node unreadable."""
        reason = printable(self.reason).encode("ascii", "backslashreplace").decode("ascii")[:LABEL_LIMIT]
        return f"{self.consistency}: {reason}" if reason else self.consistency.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiescer:
    """Freezes guests of one node. `agents` can freeze guests of each kind; `markers` is a directory that survives a
    crash of this process; `running` asks Proxmox anew whether a guest runs; `migration` is Proxmox's lock; `unchanged`
    raises `GuestChangedError` for a guest that is not what it was planned with any more."""

    agents: Mapping[GuestKind, Agent]
    watchdog: Watchdog
    markers: Path
    running: Callable[[Guest], bool]
    migration: Callable[[Vmid], AbstractContextManager[None]]
    unchanged: Callable[[Guest], object]
    hook: Hook
    boot_id: Path = BOOT_ID
    pids: Path = PIDS

    @contextlib.contextmanager
    def window(self, step: SnapshotGuest, rules: FreezeRules) -> Iterator[Window]:
        """The guest is frozen inside, when it can be. Nothing but the snapshot belongs inside.

        Before anything is snapshotted it raises `GuestBusyError` when Proxmox is moving the guest, `GuestChangedError`
        when it was changed, locked or started on the way here, `FreezeError` when the policy requires a freeze that did
        not come about; and the thaw's error when the guest does not confirm it: then the watchdog goes on trying.
        """
        if step.freeze:
            with self._hooked(step, rules) as refused, self._freeze(step, rules.limit, refused) as window:
                yield window
            window.trouble = self._after(step, rules)
            return
        with self.migration(step.guest.vmid):
            self.unchanged(step.guest)
            if step.guest.hibernated:
                yield self._unfrozen(step, HIBERNATED)
            elif step.guest.running:
                yield Window(reason=step.reason)
            else:
                yield from self._standstill(step)

    @contextlib.contextmanager
    def _hooked(self, step: SnapshotGuest, rules: FreezeRules) -> Iterator[str]:
        """Yields why there shall be no freeze. What was begun before is ended also when the snapshot fails."""
        refused = ""
        try:
            for argv in rules.before:
                self.hook(argv, step, "before-freeze")
        except CommandError as error:
            refused = f"the before-freeze command failed: {error.message}"
        try:
            yield refused
        except BaseException:
            self._after(step, rules)
            raise

    def _after(self, step: SnapshotGuest, rules: FreezeRules) -> str:
        """Run what belongs after the thaw, whatever came before; returns what went wrong."""
        troubles = []
        for argv in rules.after:
            try:
                self.hook(argv, step, "after-thaw")
            except CommandError as error:
                troubles.append(f"the after-thaw command failed: {error.message}")
        return "; ".join(troubles)

    def _standstill(self, step: SnapshotGuest) -> Iterator[Window]:
        """A guest that was found stopped, maybe minutes ago: `offline` if it is before and after the snapshot."""
        doubt = self._doubt(step.guest)
        if doubt == STARTED:
            raise GuestChangedError(f"guest {step.guest.vmid}: was started since it was read")
        window = self._unfrozen(step, doubt) if doubt else Window()
        yield window
        window.reason = doubt or self._doubt(step.guest)
        if not window.reason:
            window.consistency, window.reason = Consistency.OFFLINE, step.reason

    def _doubt(self, guest: Guest) -> str:
        """What speaks against the guest being off; empty when nothing does."""
        try:
            return STARTED if self.running(guest) else ""
        except PveError as error:
            return f"whether the guest runs is not known: {error.message}"

    @contextlib.contextmanager
    def _freeze(self, step: SnapshotGuest, limit: float, refused: str) -> Iterator[Window]:
        obstacle = refused or self._obstacle(step.guest)
        with self.migration(step.guest.vmid):
            self.unchanged(step.guest)  # commands and the agent took their time
            if obstacle:
                yield self._unfrozen(step, obstacle)
            else:
                yield from self._frozen(step, limit)

    def _frozen(self, step: SnapshotGuest, limit: float) -> Iterator[Window]:
        vmid, kind = step.guest.vmid, step.guest.kind
        agent = self.agents[kind]
        marker = self.markers / str(vmid)
        try:
            write_marker(marker, self._now(kind, vmid))
        except OSError as error:  # full or read-only: without a marker there is no freeze
            yield self._unfrozen(step, f"its marker cannot be written: {marker}: {error.strerror}")
            return
        try:
            self.watchdog.arm(kind, vmid, step.name.rpartition("-")[2], min(limit + WATCHDOG_SLACK, WATCHDOG_LIMIT))
        except CommandError as error:
            marker.unlink()  # nothing was frozen: the sweep must not thaw somebody else's freeze
            yield self._unfrozen(step, f"the watchdog cannot be armed: {error.message}")
            return
        started = time.monotonic()
        window = Window()
        certain = refused = held = False
        frozen = 0
        thawed = guest_agent.Thawed(count=0)
        try:
            try:
                frozen = guest_agent.freeze(agent, vmid, timeout=limit)
                certain = True
            except PveUnreachableError as error:
                window = self._unfrozen(step, f"freezing was given up: {error.message}")
            except PveError as error:
                certain = refused = True
                window = self._unfrozen(step, error.message)
            yield window
            held = certain and not refused
        finally:
            if not refused:
                thawed = guest_agent.thaw(agent, vmid, within=THAW_WITHIN)
            window.seconds = time.monotonic() - started
            # A freeze whose fate is unknown may still be queued behind this thaw, which then found nothing frozen:
            # marker and watchdog stay, and thaw once more. No queue stands before a container.
            if certain or thawed.count or kind is GuestKind.CT:
                self._done(vmid, marker)
        if held and (doubt := thawed.doubt(frozen)):
            window.reason = doubt
        elif held:
            best = Consistency.QUIESCED if kind is GuestKind.VM else Consistency.FROZEN
            window.consistency, window.reason = best, ""

    def _obstacle(self, guest: Guest) -> str:
        """Why a freeze is not even tried; empty when it is."""
        try:
            frozen = guest_agent.status(self.agents[guest.kind], guest.vmid) == "frozen"
        except PveError as error:
            who = "guest agent" if guest.kind is GuestKind.VM else "container"
            return f"the {who} does not answer: {error.message}"
        return "the guest is already frozen by somebody else" if frozen else ""

    def _unfrozen(self, step: SnapshotGuest, reason: str) -> Window:
        if step.quiesce == "require":
            raise FreezeError(step.guest.vmid, reason)
        return Window(reason=reason)

    def sweep(self) -> list[str]:
        """Thaw what an earlier run may have left frozen; returns what was done. Call it under the lock."""
        told = []
        for marker in self._left():
            vmid = Vmid(int(marker.name))
            try:
                if self._outlived(vmid, marker):
                    self._done(vmid, marker)
                    told.append(f"guest {vmid}: was started again since an interrupted run, and is not frozen")
                    continue
                self.thaw(vmid)
            except BackupError as error:
                told.append(f"guest {marker.name}: may still be frozen by an interrupted run: {error}")
                continue
            told.append(f"guest {marker.name}: thawed after an interrupted run")
        return told

    def _outlived(self, vmid: Vmid, marker: Path) -> bool:
        """Whether the freeze of the marker ended with the guest's life then. What is frozen now is somebody else's, who
        is given the time of a freeze; one that lasts is thawed as ours: it may have come back by a migration."""
        left = read_marker(marker)
        if not left.outlived_by(self._now(left.kind, vmid)):
            return False
        deadline = time.monotonic() + OTHERS_FREEZE
        try:
            while guest_agent.status(self.agents[left.kind], vmid) == "frozen":
                if time.monotonic() >= deadline:
                    return False
                time.sleep(1)
        except PveError:
            return False
        return True

    def _now(self, kind: GuestKind, vmid: Vmid) -> Marker:
        return marker_now(kind, vmid, boot_id=self.boot_id, pids=self.pids)

    def thaw(self, vmid: Vmid, kind: GuestKind | None = None, *, done: bool = True) -> int:
        """Thaw a guest, whoever froze it; returns its file systems that were frozen. Raises the thaw's error.

        Without `kind` its marker tells it. `done` takes marker and watchdog away: have the lock of the snapshots.
        """
        marker = self.markers / str(vmid)
        agent = self.agents[kind or read_marker(marker).kind]
        thawed = guest_agent.thaw(agent, vmid, within=THAW_WITHIN)
        if done and marker.exists():
            self._done(vmid, marker)
        return thawed.count

    def unthawed(self) -> dict[Vmid, GuestKind]:
        """Guests that may still be frozen: those the sweep could do nothing about."""
        return {Vmid(int(marker.name)): read_marker(marker).kind for marker in self._left()}

    def _left(self) -> list[Path]:
        return sorted(path for path in self.markers.glob("[1-9]*") if path.name.isdecimal())

    def _done(self, vmid: Vmid, marker: Path) -> None:
        self.watchdog.disarm(vmid)
        marker.unlink(missing_ok=True)
