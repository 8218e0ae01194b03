"""How fast the links to targets are: seen by runs, remembered in the state directory, used by `compress: auto`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pve_zfsbackup.app.session import Session, rate_now
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.memory import recall, remember
from pve_zfsbackup.model import SOURCE, Compress, Dataset
from pve_zfsbackup.plan.wire import Wire, believed, measured_rate, plan_wire, remembered

FILE: Final = "links.json"  # target -> rate and when; lost, nothing is compressed until a run has seen it again
_WRITING: Final = threading.Lock()  # targets are served side by side, in one process at a time


def wire_to(session: Session, target: str) -> Wire:
    """How streams to a target travel now."""
    settings = session.config.targets[target]
    memory: Mapping[str, object] = {}
    if settings.compress is Compress.AUTO:
        with contextlib.suppress(BackupError):  # it is as if no run had seen the link
            memory = _of(recall(session.config.state_dir / FILE), target)
    measured = believed(memory, session.now().timestamp())
    return plan_wire(settings.compress, limit=rate_now(session.config, settings), measured=measured)


def ratios_of(session: Session, wire: Wire, plain: Sequence[Dataset]) -> Mapping[Dataset, float]:
    """How far ZFS compressed these disks, where it matters."""
    asked = plain and wire.compress is Compress.AUTO
    return zfs.compress_ratios(session.hosts[SOURCE], plain) if asked else {}


@dataclass(slots=True, kw_only=True)
class Stopwatch:
    """What an attempt brings to a target, and for how long anything was under way."""

    session: Session
    target: str
    moved: int = 0  # bytes
    seconds: float = 0.0
    free: bool = field(init=False)  # no limit was in force
    _since: float | None = None

    def __post_init__(self) -> None:
        self.free = not self._limit

    @property
    def _limit(self) -> int:
        return rate_now(self.session.config, self.session.config.targets[self.target])

    def mark(self, *, sending: bool) -> None:
        """To be called whenever streams may have begun or ended, with whether any is under way now."""
        now = time.monotonic()
        self.seconds += 0.0 if self._since is None else now - self._since
        self._since = now if sending else None

    def note(self) -> None:
        """Remember what that says of the link, if it matters. Not to be called where anything was compressed."""
        rate, settings = measured_rate(self.moved, self.seconds), self.session.config.targets[self.target]
        if not rate or settings.compress is not Compress.AUTO or not self.free or self._limit:
            return
        path, now = self.session.config.state_dir / FILE, self.session.now().timestamp()
        with contextlib.suppress(BackupError), _WRITING:  # a full disk the journal tells
            links = recall(path)
            remember(path, {**links, self.target: remembered(_of(links, self.target), rate, now)})


def _of(links: Mapping[str, Any], target: str) -> Mapping[str, object]:
    found = links.get(target)
    return found if isinstance(found, dict) else {}
