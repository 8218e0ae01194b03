"""When the last drill of each guest was begun, whatever became of it. It feeds the order of the next drills alone: one
that breaks off leaves no proof, and its guest would be the first again and again, whoever else waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pve_zfsbackup.config import Config
from pve_zfsbackup.errors import BackupError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host.memory import recall, remember
from pve_zfsbackup.model import Vmid
from pve_zfsbackup.model.stages import DRILL

FILE: Final = "drills.json"


class Tries:
    """Of one place: "source", or the root of replicas. `known` is in seconds since the epoch."""

    def __init__(self, config: Config, place: str) -> None:
        self._path, self._place = config.state_dir / FILE, place
        self._told = False
        self._everything: dict[str, Any] = {}
        self._unread: BackupError | None = None
        try:
            self._everything = recall(self._path)
        except BackupError as error:
            self._unread = error
        own = self._everything.get(place)
        found = own.items() if isinstance(own, dict) else ()
        self.known = {Vmid(int(text)): at for text, at in found if text.isdecimal() and isinstance(at, int)}

    def note(self, vmid: Vmid, now: int) -> Iterator[Result]:
        """Before a drill: it may take this process with it. That it cannot be noted is told once, and stops none."""
        self.known[vmid] = now
        try:
            if self._unread:
                raise self._unread
            remember(self._path, {**self._everything, self._place: {str(key): at for key, at in self.known.items()}})
        except BackupError as error:
            if not self._told:
                yield Result(stage=DRILL, outcome=Outcome.WARNING, message=error.message, hint=error.hint)
            self._told = True
