"""How often, and after how long, something that broke is tried again in one run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

LONGEST = 300.0  # seconds between two attempts, at most


@dataclass(slots=True, kw_only=True)
class Patience:
    """`retries` in a row without getting anywhere, `wait` seconds before the first, twice as long before each next.

    `pause` waits so many seconds and says whether it was told to stop; `random` gives 0 to 1: many nodes that lost
    one target shall not come back to it in the same second.
    """

    retries: int
    wait: float
    pause: Callable[[threading.Event, float], bool]
    random: Callable[[], float]
    tried: int = 0

    def again(self, stop: threading.Event) -> bool:
        """Wait for the next attempt; False when there shall be none."""
        if self.tried >= self.retries or stop.is_set():
            return False
        seconds = min(LONGEST, self.wait * 2**self.tried) * (0.5 + self.random() / 2)
        self.tried += 1
        return not self.pause(stop, seconds)

    def renew(self) -> None:
        """Something arrived: it is worth going on."""
        self.tried = 0
