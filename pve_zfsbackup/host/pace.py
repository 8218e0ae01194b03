"""How fast bytes may leave: one allowance shared by all streams to a target, which may change while they run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

STEP_SECONDS = 0.1  # a piece is what may go in this time: waits stay short, and a new rate counts at once
LARGEST, SMALLEST = 1 << 20, 1 << 12


@dataclass(slots=True)
class Pace:
    """`rate` tells the bytes per second that hold now, 0 for as fast as it goes. Safe to share between threads."""

    rate: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    _free: float = 0.0  # when the line is free again
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def piece(self) -> int:
        """The most bytes to move at once."""
        rate = self.rate()
        return max(SMALLEST, min(LARGEST, int(rate * STEP_SECONDS))) if rate else LARGEST

    def wait(self, count: int) -> float:
        """Seconds to wait after `count` bytes were moved."""
        rate = self.rate()
        if not rate:
            return 0.0
        with self._lock:
            now = self.clock()
            self._free = max(self._free, now) + count / rate
            return max(0.0, self._free - now)
