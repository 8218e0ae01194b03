"""Proxmox's own lock of the guest on the source, in its configuration: it does not start while its disks change places.

By the source's own `qm` or `pct`, which take the lock only where there is none. Killed, this leaves it; the place of
the unfinished work beside it tells the next try whose it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from pve_zfsbackup.errors import CommandError, GuestBusyError, add_hint
from pve_zfsbackup.host.ssh import Host
from pve_zfsbackup.model import Guest
from pve_zfsbackup.plan.failback import tool, unlocking
from pve_zfsbackup.plan.guest_config import settings
from pve_zfsbackup.plan.rollback import LOCK


@dataclass(slots=True, kw_only=True)
class Lock:
    """`held`: it is ours, from this try or an earlier one. `unsure`: it may be. `torn`: a disk has lost its place, and
    what is there now is of two times: it stays locked until all have theirs."""

    host: Host
    guest: Guest
    held: bool
    torn: bool
    unsure: bool = False

    def take(self) -> None:
        """Raises `GuestBusyError` when somebody else has it."""
        now = self._now()
        if self.held and now == LOCK:
            return
        self._refuse(now)
        self.held, self.unsure = False, True
        try:
            self.host.run((tool(self.guest), "set", str(self.guest.vmid), "--lock", LOCK), timeout=600)
        except CommandError:  # over ssh a refusal and an answer that did not come are both 255
            now = self._now()
            self.unsure = now == LOCK
            self._refuse("" if self.unsure else now)
            raise
        self.held, self.unsure = True, False

    def _refuse(self, lock: str) -> None:
        if lock:
            raise GuestBusyError(
                f"guest {self.guest.vmid}: is locked ({lock}) on {self.host.name} by now",
                hint="run this again when its task there has ended; what was sent stays",
            )

    def let_go(self) -> None:
        """It may start again. Somebody may have taken it off by hand meanwhile."""
        if self._now() == LOCK:
            self.host.run((tool(self.guest), "unlock", str(self.guest.vmid)), timeout=600)
        self.held = self.torn = False

    def _now(self) -> str:
        return settings(self.host.run((tool(self.guest), "config", str(self.guest.vmid))).stdout).get("lock", "")

    def left(self) -> str:
        """After a failure: take it off where that is right; else what a person has to know of it."""
        if self.held and not self.torn:
            with contextlib.suppress(CommandError):  # told below
                self.let_go()
        if not (self.held or self.unsure):
            return ""
        why = "its disks there may be of two times, and " if self.torn else ""
        return (
            f"guest {self.guest.vmid} {'may be' if self.unsure else 'stays'} locked there: {why}the same command goes "
            f"on; {unlocking(self.guest, self.host.name)}"
        )


@contextlib.contextmanager
def lock_there(host: Host, guest: Guest, *, held: bool) -> Iterator[Lock]:
    """The lock for the whole of a way home, not taken yet. `held`: by an earlier try, which may have come to exchange
    disks. However it ends, a lock that stays is told."""
    lock = Lock(host=host, guest=guest, held=held, torn=held)
    try:
        yield lock
    except BaseException as error:
        if told := lock.left():
            add_hint(error, told)
        raise
