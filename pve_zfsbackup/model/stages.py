"""What results are of that come from no stage of a run: the words of journals and messages."""

from __future__ import annotations

from typing import Final

DRILL: Final = "verify-drill"
BOOT: Final = "boot"  # no stage: what of a drill was the guest coming up
CHAIN: Final = "verify-points"
READ_BACK: Final = "verify-archive"
RESTORE: Final = "restore"
ROLLBACK: Final = "rollback"
FAILOVER: Final = "failover"
FAILBACK: Final = "failback"
SWEEP: Final = "sweep"  # of what killed work left: no proof of anything, and nothing that has to come again
WISHES: Final = (RESTORE, ROLLBACK, FAILOVER, FAILBACK)  # somebody's, each for once
PROOFS: Final = (DRILL, CHAIN, READ_BACK, *WISHES)  # stages that say something of what is kept, guest by guest
