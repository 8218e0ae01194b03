"""What runs saw of the links to targets, remembered in the state directory: how fast they are, for `compress: auto`,
and whether streams gain by a buffer."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pve_zfsbackup.app.session import Session, rate_now
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.host import zfs
from pve_zfsbackup.host.memory import recall, remember
from pve_zfsbackup.host.runner import ENVIRONMENT
from pve_zfsbackup.model import SOURCE, Compress, Dataset
from pve_zfsbackup.plan.wire import Wire, believed, gain, gained, gains, measured_rate, plan_wire, remembered

BUFFER: Final = 64 << 20  # as much as comes in while a pool is busy with what it had, for a second or two
FILE: Final = "links.json"  # target -> rate and when; lost, nothing is compressed until a run has seen it again
_WRITING: Final = threading.Lock()  # targets are served side by side, in one process at a time


def wire_to(session: Session, target: str) -> Wire:
    """How streams to a target travel now."""
    settings = session.config.targets[target]
    memory = _seen(session, target) if settings.compress is Compress.AUTO else {}
    measured = believed(memory, session.now().timestamp())
    return plan_wire(settings.compress, limit=rate_now(session.config, settings), measured=measured)


def buffer_to(session: Session, target: str) -> int:
    """Bytes of a buffer on this side alone, for large streams; 0 for none. Not where the configuration tells, nor under
    a limit: then it is that what they wait for."""
    settings = session.config.targets[target]
    if settings.mbuffer is not None or rate_now(session.config, settings):
        return 0
    pays = gains(_seen(session, target), session.now().timestamp())
    return BUFFER if pays and shutil.which("mbuffer", path=ENVIRONMENT["PATH"]) else 0


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
    streaming: float = 0.0  # the same of all streams added up
    lost: float = 0.0  # of these, for want of a buffer, at most
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

    def note(self, *, packed: bool, buffered: bool) -> None:
        """Remember what that says of the link, if it matters: nothing of its speed where anything was compressed, and
        nothing of a buffer where there was one."""
        settings, now = self.session.config.targets[self.target], self.session.now().timestamp()
        if not self.free or self._limit:
            return
        rate = measured_rate(self.moved, self.seconds) if settings.compress is Compress.AUTO and not packed else 0
        part = gain(self.moved, self.streaming, self.lost) if settings.mbuffer is None and not buffered else None
        path = self.session.config.state_dir / FILE
        with contextlib.suppress(BackupError), _WRITING:  # a full disk the journal tells
            links = recall(path)
            known = _of(links, self.target)
            seen = remembered(known, rate, now) if rate else known
            seen = gained(seen, part, now) if part is not None else seen
            if seen != known:
                remember(path, {**links, self.target: seen})


def _seen(session: Session, target: str) -> Mapping[str, object]:
    """What is remembered; nothing where it cannot be read, as if no run had seen the link."""
    with contextlib.suppress(BackupError):
        return _of(recall(session.config.state_dir / FILE), target)
    return {}


def _of(links: Mapping[str, Any], target: str) -> Mapping[str, object]:
    found = links.get(target)
    return found if isinstance(found, dict) else {}
