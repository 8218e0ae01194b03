"""Progress of a disk on its way home, as events."""

from __future__ import annotations

import time

from pve_zfsbackup.events import Emit, Progress
from pve_zfsbackup.model import Dataset, Resume, Send


class Meter:
    """One disk that `host` receives; size in bytes, as far as it can be told before."""

    def __init__(self, emit: Emit, *, host: str, disk: Dataset, size: int) -> None:
        self._tell, self._host, self._disk, self._size = emit, host, disk, size
        self._began, self._moved = time.monotonic(), 0

    def begin(self, stream: Send | Resume) -> None:
        self._emit(done=False)

    def moved(self, stream: Send | Resume, count: int) -> None:
        self._moved = count
        self._emit(done=False)

    def end(self, stream: Send | Resume) -> None:
        self._emit(done=True)

    def _emit(self, *, done: bool) -> None:
        self._tell(
            Progress(
                host=self._host,
                disk=self._disk,
                moved=self._moved,
                total=max(self._size, self._moved),
                seconds=time.monotonic() - self._began,
                done=done,
            )
        )
